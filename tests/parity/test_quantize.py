"""Affine quantization against PyTorch's fake quantization, which has the levels but not the groups."""

import pytest
import torch
from torch import Tensor

from llm_study.functional.quantize import dequantize_affine, quantize_affine, quantize_affine_reference
from tests.parity.closeness import assert_close


def by_torch(groups: Tensor, bits: int) -> Tensor:
    """Quantize each row by torch, whose levels start at 0: move the smallest value there, and back."""
    minimum = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1) - minimum[:, 0]) / (2**bits - 1)
    zero = torch.zeros(len(groups), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(groups - minimum, step, zero, 0, 0, 2**bits - 1) + minimum


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(10))
def test_matches_torch_fake_quantize(bits: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = 5 * torch.randn(12, 16) + torch.randn(12, 1)
    expected = by_torch(x, bits)
    assert_close(quantize_affine_reference(x, bits=bits), expected)
    assert_close(dequantize_affine(quantize_affine(x, bits=bits, group=16)), expected)
    assert_close(dequantize_affine(quantize_affine(x.T, bits=bits, group=16, dim=0)), expected.T)
