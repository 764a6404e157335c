"""Variants of attention against transformers: the masks, the eager functions and the modules of published models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma2Config,
    GptOssConfig,
    MistralConfig,
    Qwen3NextConfig,
)
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.diffllama import modeling_diffllama as diffllama
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from llm_study.functional import attention_variants as V
from llm_study.functional.attention import (
    attention,
    biased_attention,
    biased_attention_reference,
    causal_mask,
    merge_heads,
    padding_mask,
    sink_attention,
    sink_attention_reference,
    sliding_window_mask,
    softcap_attention,
    split_heads,
)
from llm_study.functional.norms import gemma_rms_norm
from llm_study.functional.positions import apply_rope
from tests.parity.closeness import assert_close

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
B, T, WINDOW = 2, 16, 5

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def heads(*, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of four heads, keys and values of two, large enough that weights differ."""
    return (
        2 * torch.randn(B, 4, T, 8, dtype=dtype),
        2 * torch.randn(B, 2, T, 8, dtype=dtype),
        torch.randn(B, 2, T, 8, dtype=dtype),
    )


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as transformers' eager functions want it: what is added to the scores."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def scrambled(module: nn.Module) -> Any:
    """Return the module with weights five times as large, and random biases and norms."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=5 * 0.2 / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_()
    return module.eval()


def rotation(module: nn.Module, length: int = T) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return our cosines and sines, half as wide as the model's, and the model's own."""
    theirs = module(torch.zeros(B, length, 32), torch.arange(length)[None])
    cos, sin = (x[0, :, : x.shape[-1] // 2] for x in theirs)
    return cos, sin, theirs


# --- windows


@pytest.mark.parametrize("config", [MistralConfig, Gemma2Config, GptOssConfig])
@pytest.mark.parametrize("window", [1, WINDOW, 16, 40])
def test_window_is_the_one_of_transformers(config: Any, window: int) -> None:
    sizes = config(**SIZES, sliding_window=window)
    real = padding_mask(torch.tensor([T, 9]), T)
    theirs = create_sliding_window_causal_mask(
        config=sizes,
        inputs_embeds=torch.zeros(B, T, 32),
        attention_mask=real[:, 0, 0].long(),
        past_key_values=None,
        position_ids=torch.arange(T)[None],
    )
    ours = sliding_window_mask(T, window=window) & real
    assert torch.equal(theirs == 0, ours.expand(B, 1, T, T))


def test_window_attention_matches_mistral() -> None:
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=WINDOW)
    theirs, x = scrambled(mistral.MistralAttention(config, 0)), torch.randn(B, T, 32)
    cos, sin, embeddings = rotation(mistral.MistralRotaryEmbedding(config))
    mask = sliding_window_mask(T, window=WINDOW)
    expected, _ = theirs(x, embeddings, additive(mask.expand(B, 1, T, T), torch.float32))

    q, k, v = (split_heads(p(x), n) for p, n in ((theirs.q_proj, 4), (theirs.k_proj, 2), (theirs.v_proj, 2)))
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    for out in (attention(q, k, v, mask=mask), V.sliding_window_attention(q, k, v, window=WINDOW)):
        assert_close(theirs.o_proj(merge_heads(out)), expected)


# --- soft-capping, sinks, bias


@both_dtypes
@pytest.mark.parametrize("cap", [0.5, 2.0, 50.0])
def test_softcap_matches_gemma2(cap: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = heads(dtype=dtype)
    mask = sliding_window_mask(T, window=WINDOW)
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    added = additive(mask, dtype)[None, None]
    expected, _ = gemma2.eager_attention_forward(module, q, k, v, added, scaling=0.3, softcap=cap)
    out = softcap_attention(q, k, v, cap=cap, mask=mask, scale=0.3).transpose(1, 2)
    # Gemma 2 casts the scores to float32 before softmax
    assert_close(out.float(), expected.float())


@both_dtypes
@pytest.mark.parametrize("mask", [None, sliding_window_mask(T, window=WINDOW)], ids=["everywhere", "window"])
def test_sinks_match_gpt_oss(mask: Tensor | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = heads(dtype=dtype)
    sinks = 3 * torch.randn(4, dtype=dtype)
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
    added = None if mask is None else additive(mask, dtype)[None, None]
    expected, _ = gpt_oss.eager_attention_forward(module, q, k, v, added, scaling=0.3)
    for function in (sink_attention, sink_attention_reference):
        assert_close(function(q, k, v, sinks, mask=mask, scale=0.3).transpose(1, 2), expected)


@both_dtypes
def test_bias_matches_torch_sdpa(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = heads(dtype=dtype)
    bias, mask = 3 * torch.randn(4, T, T, dtype=dtype), causal_mask(T)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, bias + additive(mask, dtype), enable_gqa=True)
    for function in (biased_attention, biased_attention_reference):
        assert_close(function(q, k, v, bias, mask=mask), expected)


# --- latent attention


def latent_weights(theirs: Any) -> V.LatentWeights:
    """Return the matrices of an attention of DeepSeek-V3."""
    low_rank = theirs.q_proj is None
    return V.LatentWeights(
        n_heads=theirs.num_heads,
        d_rope=theirs.qk_rope_head_dim,
        kv_down=theirs.kv_a_proj_with_mqa.weight,
        kv_norm=theirs.kv_a_layernorm.weight,
        kv_up=theirs.kv_b_proj.weight,
        out=theirs.o_proj.weight,
        q_up=theirs.q_b_proj.weight if low_rank else theirs.q_proj.weight,
        q_down=theirs.q_a_proj.weight if low_rank else None,
        q_norm=theirs.q_a_layernorm.weight if low_rank else None,
    )


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "halves"])
@pytest.mark.parametrize("q_lora_rank", [None, 12])
def test_latent_attention_matches_deepseek_v3(q_lora_rank: int | None, interleaved: bool) -> None:
    torch.manual_seed(0)
    sizes = {name: size for name, size in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
    widths = {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 7}
    config = DeepseekV3Config(
        **sizes, **widths, num_key_value_heads=4, q_lora_rank=q_lora_rank, rope_interleave=interleaved
    )
    theirs, x = scrambled(deepseek.DeepseekV3Attention(config, 0)), torch.randn(B, T, 32, requires_grad=True)
    cos, sin, embeddings = rotation(deepseek.DeepseekV3RotaryEmbedding(config))
    mask = causal_mask(T) & padding_mask(torch.tensor([T, 9]), T)
    expected, _ = theirs(x, embeddings, additive(mask, torch.float32))

    weights = latent_weights(theirs)
    cache = V.latent_cache(x, weights, cos, sin, interleaved=interleaved)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), x, retain_graph=True)
    for form in (V.latent_attention, V.latent_attention_absorbed):
        out = form(x, cache, weights, cos, sin, mask=mask, interleaved=interleaved)
        assert_close(out, expected)
        assert_close(torch.autograd.grad(out.sin().sum(), x, retain_graph=True)[0], gradient)


# --- differences and gates


def test_differential_attention_matches_diffllama() -> None:
    torch.manual_seed(0)
    config = DiffLlamaConfig(**SIZES, rms_norm_eps=1e-3, lambda_std_dev=0.5)
    layer = 1
    theirs, x = diffllama.DiffLlamaAttention(config, layer), torch.randn(B, T, 32)
    vectors = [theirs.lambda_q1, theirs.lambda_k1, theirs.lambda_q2, theirs.lambda_k2]
    scrambled(theirs)
    with torch.no_grad():
        for vector in vectors:
            vector.mul_(0.3)
    cos, sin, embeddings = rotation(diffllama.DiffLlamaRotaryEmbedding(config))
    expected, _ = theirs(x, embeddings, additive(causal_mask(T).expand(B, 1, T, T), torch.float32))

    q, k, v = (split_heads(p(x), n) for p, n in ((theirs.q_proj, 4), (theirs.k_proj, 2), (theirs.v_proj, 2)))
    (q1, q2), (k1, k2) = apply_rope(q, cos, sin).chunk(2, dim=1), apply_rope(k, cos, sin).chunk(2, dim=1)
    initial = V.differential_lambda_initial(layer)
    lam = V.differential_lambda(*vectors, initial=initial)
    wide = torch.cat(v.chunk(2, dim=1), dim=-1)  # values are twice as wide as keys
    out = V.differential_attention(q1, k1, q2, k2, wide, lam, mask=causal_mask(T))
    out = V.differential_head_norm(out, initial=initial, eps=1e-3)
    assert_close(theirs.o_proj(merge_heads(out)), expected)


def test_gated_attention_matches_qwen3_next() -> None:
    torch.manual_seed(0)
    config = Qwen3NextConfig(**SIZES, rms_norm_eps=1e-3, partial_rotary_factor=0.5)
    theirs, x = scrambled(qwen3_next.Qwen3NextAttention(config, 0)), torch.randn(B, T, 32)
    cos, sin, embeddings = rotation(qwen3_next.Qwen3NextRotaryEmbedding(config))
    expected, _ = theirs(x, embeddings, additive(causal_mask(T).expand(B, 1, T, T), torch.float32))

    q, gate = split_heads(theirs.q_proj(x), 4).chunk(2, dim=-1)  # query and gate of each head side by side
    k, v = split_heads(theirs.k_proj(x), 2), split_heads(theirs.v_proj(x), 2)
    q, k = (gemma_rms_norm(y, norm.weight, eps=1e-3) for y, norm in ((q, theirs.q_norm), (k, theirs.k_norm)))
    turned = 2 * cos.shape[-1]  # only the first features of a head are rotated
    q, k = (torch.cat([apply_rope(y[..., :turned], cos, sin), y[..., turned:]], dim=-1) for y in (q, k))
    out = V.gated_attention(q, k, v, gate, mask=causal_mask(T))
    assert_close(theirs.o_proj(merge_heads(out)), expected)
