"""Position encodings against transformers: the same frequencies to the bit, the same rotations, buckets and slopes."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, T5Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.t5.modeling_t5 import T5Attention

from llm_study.functional import positions as P
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
    weights = [
        (scores + bias).masked_fill(~causal, -torch.inf).softmax(-1) for bias in (P.alibi_bias(n_heads, T), theirs)
    ]
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
