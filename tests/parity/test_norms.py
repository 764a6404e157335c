"""The norms against PyTorch's and transformers': close in float32 and float64, equal bit for bit in half precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from llm_study.functional.norms import (
    gemma_rms_norm,
    layer_norm,
    layer_norm_backward,
    layer_norm_reference,
    rms_norm,
    rms_norm_backward,
    rms_norm_late_cast,
    rms_norm_reference,
)
from tests.parity.closeness import assert_close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
eps_values = pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs whose vectors differ in scale by 10⁴ and have a mean, weight, bias and an incoming gradient."""
    generator = torch.Generator().manual_seed(0)
    x, grad, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 9, 64), (4, 9, 64), (64,), (64,))
    )
    sizes = torch.logspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x, grad, weight, bias = (t.to(dtype) for t in ((x + 0.5) * sizes, grad, weight, bias))
    return x, weight, bias, grad


@both_dtypes
@eps_values
def test_layer_norm_matches_torch(eps: float, dtype: torch.dtype) -> None:
    x, weight, bias, grad = problem(dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    expected = F.layer_norm(x, (64,), weight, bias, eps)
    for function in (layer_norm, layer_norm_reference):
        assert_close(function(x, weight, bias, eps=eps), expected)
    gradients = torch.autograd.grad(expected, inputs, grad)
    for ours, theirs in zip(layer_norm_backward(x, weight, grad, eps=eps), gradients, strict=True):
        assert_close(ours, theirs)


@both_dtypes
@eps_values
def test_rms_norm_matches_torch(eps: float, dtype: torch.dtype) -> None:
    x, weight, _, grad = problem(dtype)
    module = nn.RMSNorm(64, eps=eps, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
    expected = module(x.requires_grad_())
    for function in (rms_norm, rms_norm_reference, rms_norm_late_cast):
        assert_close(function(x, weight, eps=eps), expected)
    gradients = torch.autograd.grad(expected, [x, module.weight], grad)
    for ours, theirs in zip(rms_norm_backward(x, weight, grad, eps=eps), gradients, strict=True):
        assert_close(ours, theirs)


@half
@eps_values
def test_half_precision_is_bit_equal_to_transformers(eps: float, dtype: torch.dtype) -> None:
    x, weight, _, _ = problem(dtype)
    orders = {
        rms_norm: (LlamaRMSNorm, Qwen3RMSNorm),
        rms_norm_reference: (LlamaRMSNorm, Qwen3RMSNorm),
        rms_norm_late_cast: (Olmo2RMSNorm,),
        gemma_rms_norm: (Gemma2RMSNorm, Gemma3RMSNorm),
    }
    for function, kinds in orders.items():
        for kind in kinds:
            module = kind(64, eps=eps).to(dtype)
            with torch.no_grad():
                module.weight.copy_(weight)
            assert torch.equal(function(x, weight, eps=eps), module(x)), (function, kind)


@half
def test_torch_multiplies_before_the_cast(dtype: torch.dtype) -> None:
    x, weight, _, _ = problem(dtype)
    expected = F.rms_norm(x, (64,), weight, 1e-6)
    assert torch.equal(rms_norm_late_cast(x, weight), expected)
    assert not torch.equal(rms_norm(x, weight), expected)


@eps_values
def test_single_precision_matches_transformers(eps: float) -> None:
    x, weight, _, grad = problem(torch.float32)
    for function, kind in (
        (rms_norm, LlamaRMSNorm),
        (rms_norm_late_cast, Olmo2RMSNorm),
        (gemma_rms_norm, Gemma3RMSNorm),
    ):
        module = kind(64, eps=eps)
        with torch.no_grad():
            module.weight.copy_(weight)
        ours, theirs = weight.clone().requires_grad_(), module.weight
        mine, expected = function(x.requires_grad_(), ours, eps=eps), module(x)
        assert_close(mine, expected)
        for a, b in zip(
            torch.autograd.grad(mine, [x, ours], grad), torch.autograd.grad(expected, [x, theirs], grad), strict=True
        ):
            assert_close(a, b)
