"""Attention against PyTorch's, on random shapes with weights large enough that a wrong mask or scale shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.functional.attention import attention, attention_reference, causal_mask, padding_mask
from llm_study.nn.attention import MultiHeadAttention
from tests.parity.closeness import assert_close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@both_dtypes
@pytest.mark.parametrize("seed", range(20))
def test_matches_torch_sdpa(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    B, K, group, T, S, Dk, Dv = torch.randint(1, 9, (7,)).tolist()
    q = torch.randn(B, K * group, T, Dk, dtype=dtype)
    k = torch.randn(B, K, S, Dk, dtype=dtype)
    v = torch.randn(B, K, S, Dv, dtype=dtype)
    mask = torch.rand(B, 1, T, S) < 0.7
    mask[0, 0, 0] = False  # one query may see nothing
    scale = [None, 0.1, 3.0][seed % 3]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    assert_close(attention_reference(q, k, v, mask=mask, scale=scale), expected)
    assert_close(attention(q, k, v, mask=mask, scale=scale), expected)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (5, 6), (5, 1), (1, 5, 6), (4, 1, 6), (3, 1, 1, 6), (3, 4, 5, 6)])
def test_every_mask_that_broadcasts(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 7)
    mask = torch.rand(shape) < 0.5
    full = mask.expand(3, 4, 5, 6)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=full, enable_gqa=True)
    assert_close(attention_reference(q, k, v, mask=mask), expected)
    assert_close(attention(q, k, v, mask=mask), expected)


def random_pair(d_model: int, n_heads: int, dtype: torch.dtype) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Return our module and PyTorch's with the same parameters: five times the usual size, biases random."""
    theirs = nn.MultiheadAttention(d_model, n_heads, batch_first=True, dtype=dtype)
    ours = MultiHeadAttention(d_model, n_heads, bias=True).to(dtype)
    with torch.no_grad():
        theirs.in_proj_weight.mul_(5)
        theirs.out_proj.weight.mul_(5)
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for layer, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights, biases, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    ours.o_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed random functional of ``y``."""
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    return torch.autograd.grad(y, inputs, direction)


@both_dtypes
def test_matches_torch_multihead(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = random_pair(d_model=24, n_heads=4, dtype=dtype)
    x = torch.randn(3, 10, 24, dtype=dtype, requires_grad=True)
    causal, real = causal_mask(10), padding_mask(torch.tensor([10, 7, 1]), 10)

    y = ours(x, mask=causal & real)
    expected, _ = theirs(x, x, x, attn_mask=~causal, key_padding_mask=~real[:, 0, 0])  # there True forbids
    assert_close(y, expected)
    assert_close(*gradients(y, x), *gradients(expected, x))


@both_dtypes
def test_matches_torch_multihead_across_sequences(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = random_pair(d_model=24, n_heads=3, dtype=dtype)
    x = torch.randn(3, 4, 24, dtype=dtype, requires_grad=True)
    context = torch.randn(3, 9, 24, dtype=dtype, requires_grad=True)
    real = padding_mask(torch.tensor([9, 5, 1]), 9)

    y = ours(x, context, mask=real)
    expected, _ = theirs(x, context, context, key_padding_mask=~real[:, 0, 0])
    assert_close(y, expected)
    for mine, other in zip(gradients(y, x, context), gradients(expected, x, context), strict=True):
        assert_close(mine, other)


@both_dtypes
def test_parameter_gradients_match_torch_multihead(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = random_pair(d_model=16, n_heads=4, dtype=dtype)
    x = torch.randn(2, 6, 16, dtype=dtype)
    *projections, out = (ours.q_proj, ours.k_proj, ours.v_proj, ours.o_proj)
    in_weight, in_bias, out_weight, out_bias = gradients(theirs(x, x, x)[0], *theirs.parameters())
    mine = gradients(ours(x), *(p.weight for p in projections), *(p.bias for p in projections), *out.parameters())
    assert_close(torch.cat(mine[:3]), in_weight)
    assert_close(torch.cat(mine[3:6]), in_bias)
    assert_close(mine[6], out_weight)
    assert_close(mine[7], out_bias)
