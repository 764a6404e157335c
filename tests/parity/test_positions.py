"""Position encodings against transformers: the same frequencies to the bit, the same rotations, buckets and slopes."""

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    ParakeetEncoderConfig,
    SmolLM3Config,
    T5Config,
    Wav2Vec2BertConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderRelPositionalEncoding,
)
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from llm_study.functional import positions as P
from llm_study.functional.attention import biased_attention, merge_heads, split_heads
from tests.parity.closeness import assert_close

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama(theta: float = 10000.0, d_head: int = 64, **scaling: object) -> LlamaConfig:
    """Return a configuration with a given base, width of a head and scaling of RoPE."""
    rope = {"rope_type": "default", "rope_theta": theta, **scaling}
    return LlamaConfig(hidden_size=4 * d_head, num_attention_heads=4, head_dim=d_head, rope_parameters=rope)


# --- RoPE


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("d_head", [2, 6, 64, 80, 128, 256])
def test_frequencies_are_those_of_llama_to_the_bit(d_head: int, base: float) -> None:
    theirs, _ = modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters(llama(base, d_head))
    assert torch.equal(P.rope_frequencies(d_head, base=base), theirs)


@pytest.mark.parametrize("factor", [1.0, 4.0, 7.3])
def test_linear_scaling_is_that_of_transformers(factor: float) -> None:
    theirs, attention_factor = ROPE_INIT_FUNCTIONS["linear"](llama(rope_type="linear", factor=factor))
    assert attention_factor == 1.0
    assert torch.equal(P.linear_frequencies(P.rope_frequencies(64), factor=factor), theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 32.0},
        {"factor": 3.3},
        {"low_freq_factor": 0.7, "high_freq_factor": 9.0},
        {"original_max_position_embeddings": 300},
    ],
)
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_llama3_scaling_is_that_of_transformers(base: float, changes: dict[str, float]) -> None:
    scaling = {**LLAMA3, **changes}
    theirs, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](llama(base, 128, rope_type="llama3", **scaling))
    ours = P.llama3_frequencies(P.rope_frequencies(128, base=base), **scaling)
    assert attention_factor == 1.0
    assert torch.equal(ours, theirs)
    kept, divided = (ours == P.rope_frequencies(128, base=base)), ours * scaling["factor"]
    assert kept.any()
    assert (divided == P.rope_frequencies(128, base=base)).any()
    assert not kept.all()


def ours_and_llamas(dtype: torch.dtype, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same queries, rotated here and by Llama's code."""
    torch.manual_seed(0)
    q = 5 * torch.randn(2, 4, positions.shape[-1], 64).to(dtype)
    rotary = modeling_llama.LlamaRotaryEmbedding(llama())
    cos, sin = rotary(q, positions)
    theirs, _ = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    tables = P.rope_cos_sin(positions, P.rope_frequencies(64), dtype=dtype)
    return P.apply_rope(q, *(table[:, None] for table in tables)), theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotations_are_those_of_llama_to_the_bit(dtype: torch.dtype) -> None:
    positions = torch.stack([torch.arange(300), torch.arange(300) + 5000])  # bfloat16 has no 257
    ours, theirs = ours_and_llamas(dtype, positions)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_reference_rotates_as_llama_does() -> None:
    torch.manual_seed(0)
    q, positions = 5 * torch.randn(2, 4, 9, 64), torch.randint(0, 4096, (2, 9))
    cos, sin = modeling_llama.LlamaRotaryEmbedding(llama())(q, positions)
    theirs, _ = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    assert_close(P.rope_reference(q, positions[:, None], P.rope_frequencies(64)), theirs)


def test_interleaved_pairs_are_those_of_gpt_j() -> None:
    torch.manual_seed(0)
    q = 5 * torch.randn(2, 7, 4, 16)  # GPT-J keeps (B, T, H, Dh)
    table = modeling_gptj.create_sinusoidal_positions(50, 16)
    positions = torch.randint(0, 50, (2, 7))
    sin, cos = table[positions].chunk(2, dim=-1)
    theirs = modeling_gptj.apply_rotary_pos_emb(q, sin, cos).transpose(1, 2)
    ours = P.rope_cos_sin(positions[:, None], P.rope_frequencies(16))
    assert_close(P.apply_rope(q.transpose(1, 2), *ours, interleaved=True), theirs)
    reference = P.rope_reference(q.transpose(1, 2), positions[:, None], P.rope_frequencies(16), interleaved=True)
    assert_close(reference, theirs)


# --- biases


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 20, 32, 112])
def test_alibi_is_that_of_bloom(n_heads: int) -> None:
    T = 11
    theirs = build_alibi_tensor(torch.ones(1, T), n_heads, torch.float32)  # slope times key: softmax sees no shift
    assert_close(P.alibi_slopes(n_heads), theirs[:, 0, 1])
    causal = torch.ones(T, T).tril().bool()
    scores = 3 * torch.randn(n_heads, T, T)
    biases = P.alibi_bias(n_heads, T), theirs
    weights = [(scores + bias).masked_fill(~causal, -torch.inf).softmax(-1) for bias in biases]
    assert_close(weights[0], weights[1])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (64, 512), (32, 100), (4, 3)])
def test_buckets_are_those_of_t5(n_buckets: int, max_distance: int, bidirectional: bool) -> None:
    relative = torch.arange(-700, 701)
    theirs = T5Attention._relative_position_bucket(relative, bidirectional, n_buckets, max_distance)
    ours = P.t5_buckets(relative, bidirectional=bidirectional, n_buckets=n_buckets, max_distance=max_distance)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_bias_is_that_of_t5(is_decoder: bool) -> None:
    torch.manual_seed(0)
    config = T5Config(d_model=16, num_heads=3, is_decoder=is_decoder, is_encoder_decoder=False)
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    table = attention.relative_attention_bias.weight.data.normal_()
    for t, s in ((9, 9), (1, 200), (7, 150)):
        ours = P.t5_bias(table, t, s, bidirectional=not is_decoder)
        assert torch.equal(ours[None], attention.compute_bias(t, s, past_seen_tokens=s - t))


# --- relative positions that depend on the query


@pytest.mark.parametrize(("t", "left", "right"), [(9, 3, 3), (4, 6, 6), (12, 1, 1)])
def test_shaw_keys_are_those_of_wav2vec2_bert(t: int, left: int, right: int) -> None:
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        hidden_size=24,
        num_attention_heads=3,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=left,
        right_max_position_embeddings=right,
    )
    module = modeling_wav2vec2_bert.Wav2Vec2BertSelfAttention(config)
    q = 5 * torch.randn(2, 3, t, 8)
    _, theirs = modeling_wav2vec2_bert._apply_relative_key_position_encoding(module, q, q)
    assert_close(P.shaw_bias(q, module.distance_embedding.weight), theirs)


def test_transformer_xl_is_the_attention_of_parakeet() -> None:
    torch.manual_seed(0)
    config = ParakeetEncoderConfig(hidden_size=24, num_attention_heads=3, attention_bias=False)
    config._attn_implementation = "eager"
    module = ParakeetEncoderAttention(config, layer_idx=0).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 7, 24)
    distances = ParakeetEncoderRelPositionalEncoding(config)(x)
    theirs, _ = module(x, distances)
    q, k, v = (split_heads(proj(x), 3) for proj in (module.q_proj, module.k_proj, module.v_proj))
    r = split_heads(module.relative_k_proj(distances), 3)[0]
    for bias in (P.transformer_xl_bias, P.transformer_xl_bias_reference):
        ours = biased_attention(q, k, v, bias(q, k, r, module.bias_u, module.bias_v))
        assert_close(module.o_proj(merge_heads(ours)), theirs)


def test_distances_of_parakeet_are_sinusoids_that_fall() -> None:
    config = ParakeetEncoderConfig(hidden_size=24, num_attention_heads=3)
    theirs = ParakeetEncoderRelPositionalEncoding(config)(torch.zeros(1, 5, 24))
    assert_close(P.sinusoidal(torch.arange(4, -5, -1), 24), theirs[0])


def test_relative_shift_is_that_of_xlnet() -> None:
    x = torch.randn(2, 3, 6, 6 + 8)  # XLNet has a column more: T + S distances, the first of which is not used
    theirs = XLNetRelativeAttention.rel_shift_bnij(x, klen=8)
    assert torch.equal(P.relative_shift(x[..., 1:]), theirs)


# --- M-RoPE


@pytest.mark.parametrize("sections", [[16, 24, 24], [32, 16, 16], [64, 0, 0]])
def test_mrope_is_that_of_qwen2_vl(sections: list[int]) -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2VLTextConfig(hidden_size=256, num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope)
    q, positions = 5 * torch.randn(2, 2, 9, 128), torch.randint(0, 3000, (3, 2, 9))
    cos, sin = modeling_qwen2_vl.Qwen2VLRotaryEmbedding(config)(q, positions)
    theirs, _ = modeling_qwen2_vl.apply_rotary_pos_emb(q, q, cos, sin)
    tables = P.mrope_cos_sin(positions, P.rope_frequencies(128, base=1e6), sections)
    assert torch.equal(P.apply_rope(q, *(table[:, None] for table in tables)), theirs)


# --- what models use, as the chapter says


def test_settings_of_models_are_those_of_the_table() -> None:
    t5, gpt_j, neo_x = T5Config(), GPTJConfig(), GPTNeoXConfig()
    assert GPT2Config().n_positions == 1024
    assert BertConfig().max_position_embeddings == 512
    assert (t5.relative_attention_num_buckets, t5.relative_attention_max_distance) == (32, 128)
    assert (gpt_j.rotary_dim, gpt_j.n_embd // gpt_j.n_head) == (64, 256)
    assert neo_x.rope_parameters["partial_rotary_factor"] == 0.25
    assert LlamaConfig().rope_parameters["rope_theta"] == 10000.0
    local, everywhere = (Gemma3TextConfig().rope_parameters[kind] for kind in ("sliding_attention", "full_attention"))
    assert (local["rope_theta"], everywhere["rope_theta"]) == (1e4, 1e6)
    assert SmolLM3Config(num_hidden_layers=8).no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]
