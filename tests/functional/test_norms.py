"""The laws of the norms and their hand-written gradients, on random cases in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import norms as N

law = settings(max_examples=60, derandomize=True, deadline=None)
layer = pytest.mark.parametrize("function", [N.layer_norm, N.layer_norm_reference], ids=["fast", "reference"])
rms = pytest.mark.parametrize(
    "function", [N.rms_norm, N.rms_norm_reference, N.rms_norm_late_cast], ids=["fast", "reference", "late"]
)
every = pytest.mark.parametrize(
    "function",
    [
        N.layer_norm,
        N.layer_norm_reference,
        N.rms_norm,
        N.rms_norm_reference,
        N.rms_norm_late_cast,
        N.gemma_rms_norm,
        lambda x, weight, **options: N.dynamic_tanh(x, torch.tensor(0.7, dtype=x.dtype), weight),
    ],
    ids=["layer", "layer-reference", "rms", "rms-reference", "late", "gemma", "tanh"],
)


@dataclass(frozen=True)
class Case:
    """One random problem; ``repr`` shows what hypothesis found."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor
    eps: float

    def __repr__(self) -> str:
        return f"Case(eps {self.eps}, x\n{self.x}, weight {self.weight}, bias {self.bias}, grad\n{self.grad})"


@st.composite
def cases(draw: st.DrawFn, least: int = 1) -> Case:
    """Draw vectors of any number of leading dimensions, a scale over many orders of magnitude, and an ε."""
    leading = draw(st.lists(st.integers(0, 3), max_size=3))
    D = draw(st.integers(least, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x, grad, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((*leading, D), (*leading, D), (D,), (D,))
    )
    scale, shift = draw(st.sampled_from([1e-3, 1.0, 30.0])), draw(st.sampled_from([0.0, 2.0]))
    return Case(scale * (x + shift), weight, bias, grad, draw(st.sampled_from([1e-6, 1e-5, 0.1])))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def by_hand(x: Tensor, eps: float, *, center: bool) -> Tensor:
    """Second formula, independent of the first: plain numbers, one vector at a time."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        mean = sum(row) / len(row) if center else 0.0
        scale = (sum((value - mean) ** 2 for value in row) / len(row) + eps) ** 0.5
        rows.append([(value - mean) / scale for value in row])
    return torch.tensor(rows, dtype=x.dtype).reshape(x.shape)


# --- the equations


@layer
@given(case=cases())
@law
def test_layer_norm_is_its_definition(function: Any, case: Case) -> None:
    normal = by_hand(case.x, case.eps, center=True)
    assert close(function(case.x, eps=case.eps), normal, 1e-11)
    assert close(function(case.x, case.weight, eps=case.eps), case.weight * normal, 1e-11)
    assert close(function(case.x, None, case.bias, eps=case.eps), normal + case.bias, 1e-11)
    assert close(function(case.x, case.weight, case.bias, eps=case.eps), case.weight * normal + case.bias, 1e-11)


@rms
@given(case=cases())
@law
def test_rms_norm_is_its_definition(function: Any, case: Case) -> None:
    normal = by_hand(case.x, case.eps, center=False)
    assert close(function(case.x, case.weight, eps=case.eps), case.weight * normal)
    assert close(N.gemma_rms_norm(case.x, case.weight - 1, eps=case.eps), case.weight * normal)


@given(case=cases())
@law
def test_the_weight_may_be_left_out(case: Case) -> None:
    for function in (N.rms_norm, N.rms_norm_reference):
        assert close(function(case.x, eps=case.eps), function(case.x, torch.ones_like(case.weight), eps=case.eps))


@given(case=cases())
@law
def test_dynamic_tanh_is_its_definition(case: Case) -> None:
    alpha = torch.tensor(0.3, dtype=torch.float64)
    bounded = 1 - 2 / ((0.6 * case.x).exp() + 1)  # tanh(0.3 x), written with the exponential
    assert close(N.dynamic_tanh(case.x, alpha), bounded)
    assert close(N.dynamic_tanh(case.x, alpha, case.weight), case.weight * bounded)
    assert close(N.dynamic_tanh(case.x, alpha, case.weight, case.bias), case.weight * bounded + case.bias)


def test_default_eps() -> None:
    x = torch.tensor([1e-3, -1e-3], dtype=torch.float64)  # variance 1e-6
    assert close(N.layer_norm(x), x / (1e-6 + 1e-5) ** 0.5)
    assert close(N.layer_norm_reference(x), x / (1e-6 + 1e-5) ** 0.5)
    one = torch.ones(2, dtype=torch.float64)
    for function in (N.rms_norm, N.rms_norm_reference, N.rms_norm_late_cast):
        assert close(function(x, one), x / (2e-6) ** 0.5)
    assert close(N.gemma_rms_norm(x, 0 * one), x / (2e-6) ** 0.5)
    assert close(N.rms_norm_backward(x, one, one)[0], one / (2e-6) ** 0.5)
    assert close(N.layer_norm_backward(x, one, x)[0], x * 1e-5 / 1.1e-5**1.5)


# --- laws


@given(case=cases())
@law
def test_rms_norm_of_what_is_centered_is_layer_norm(case: Case) -> None:
    centered = case.x - case.x.mean(-1, keepdim=True)
    assert close(
        N.rms_norm(centered, case.weight, eps=case.eps), N.layer_norm(case.x, case.weight, eps=case.eps), 1e-11
    )


@given(case=cases(), scale=st.sampled_from([0.01, 3.0, 1e4]))
@law
def test_scaling_the_input_is_scaling_eps(case: Case, scale: float) -> None:
    for function in (N.layer_norm, N.rms_norm, N.rms_norm_late_cast, N.gemma_rms_norm):
        scaled = function(scale * case.x, case.weight, eps=scale**2 * case.eps)
        assert close(scaled, function(case.x, case.weight, eps=case.eps), 1e-11)


@given(case=cases())
@law
def test_a_common_shift_is_invisible_to_layer_norm_only(case: Case) -> None:
    assert close(
        N.layer_norm(case.x + 2, case.weight, eps=case.eps), N.layer_norm(case.x, case.weight, eps=case.eps), 1e-9
    )
    if case.x.numel():
        assert not close(N.rms_norm(case.x + 9, eps=case.eps), N.rms_norm(case.x - 9, eps=case.eps))


@every
@given(case=cases())
@law
def test_every_vector_stands_alone(function: Callable[..., Tensor], case: Case) -> None:
    flat = case.x.reshape(-1, case.x.shape[-1])
    rows = [function(row, case.weight, eps=case.eps) for row in flat]
    whole = function(case.x, case.weight, eps=case.eps)
    assert close(whole, torch.stack(rows).reshape(case.x.shape) if rows else case.x)


@every
def test_extreme_vectors_stay_finite(function: Callable[..., Tensor]) -> None:
    for dtype, huge in ((torch.float32, 1e18), (torch.bfloat16, 1e18), (torch.float16, 6e4)):
        x = torch.tensor([[0.0, 0.0], [huge, -huge], [huge, 0.0], [1e-7, 0.0]], dtype=dtype)
        weight = torch.ones(2, dtype=dtype)
        assert function(x, weight, eps=1e-6).isfinite().all()


# --- gradients


@given(case=cases())
@law
def test_layer_norm_backward_is_autograd(case: Case) -> None:
    inputs = [t.clone().requires_grad_() for t in (case.x, case.weight, case.bias)]
    for function in (N.layer_norm, N.layer_norm_reference):
        expected = torch.autograd.grad(function(*inputs, eps=case.eps), inputs, case.grad)
        ours = N.layer_norm_backward(case.x, case.weight, case.grad, eps=case.eps)
        assert all(close(a, b, 1e-9) for a, b in zip(ours, expected, strict=True))


@given(case=cases())
@law
def test_rms_norm_backward_is_autograd(case: Case) -> None:
    inputs = [t.clone().requires_grad_() for t in (case.x, case.weight)]
    for function in (N.rms_norm, N.rms_norm_reference, N.rms_norm_late_cast):
        expected = torch.autograd.grad(function(*inputs, eps=case.eps), inputs, case.grad)
        ours = N.rms_norm_backward(case.x, case.weight, case.grad, eps=case.eps)
        assert all(close(a, b, 1e-9) for a, b in zip(ours, expected, strict=True))


@every
def test_gradcheck(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (5,)))
    assert torch.autograd.gradcheck(lambda x, weight: function(x, weight, eps=0.1), (x, weight))


def test_gradient_is_orthogonal_to_the_input() -> None:
    torch.manual_seed(0)
    x, weight, grad = (torch.randn(*shape, dtype=torch.float64) for shape in ((9, 8), (8,), (9, 8)))
    dx, _ = N.rms_norm_backward(x, weight, grad, eps=0.0)
    assert close((dx * x).sum(-1), torch.zeros(9, dtype=torch.float64))
    dx, _, _ = N.layer_norm_backward(x, weight, grad, eps=0.0)
    assert close((dx * x).sum(-1), torch.zeros(9, dtype=torch.float64))
    assert close(dx.sum(-1), torch.zeros(9, dtype=torch.float64))


# --- precision


@every
def test_half_precision_is_computed_in_single(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    for dtype, unit in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        x, weight = (3 * torch.randn(40, 256)).to(dtype), torch.randn(256).to(dtype)
        out, exact = function(x, weight, eps=1e-6), function(x.double(), weight.double(), eps=1e-6)
        assert out.dtype == dtype
        # three roundings at most: after the norm, of (1 + w) or the product, at the end
        assert (out.double() - exact).abs().max() <= 3 * unit * exact.abs().max()


def test_cast_orders_differ_only_in_half_precision() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, 256), torch.randn(256)
    assert torch.equal(N.rms_norm_reference(x, weight), N.rms_norm_late_cast(x, weight))
    x, weight = x.bfloat16(), weight.bfloat16()
    early, late = N.rms_norm(x, weight), N.rms_norm_late_cast(x, weight)
    assert torch.equal(early, N.rms_norm_reference(x, weight))
    assert 0.1 < (early != late).float().mean() < 0.5
    exact = N.rms_norm(x.double(), weight.double())
    error = [(y.double() - exact).square().mean().item() for y in (early, late)]
    assert error[1] < error[0]  # one rounding is better than two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_backward_keeps_dtypes(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 4).to(dtype), torch.randn(4)
    assert [g.dtype for g in N.rms_norm_backward(x, weight, x)] == [dtype, torch.float32]
    assert [g.dtype for g in N.layer_norm_backward(x, weight, x)] == [dtype, torch.float32, torch.float32]


@every
def test_a_weight_of_another_dtype_leaves_the_dtype_of_the_input(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8), torch.randn(8)
    for a, b in ((x.bfloat16(), weight), (x, weight.bfloat16())):
        out = function(a, b, eps=1e-6)
        assert out.dtype == a.dtype
        assert torch.allclose(out.float(), function(x, weight, eps=1e-6), atol=0.05)


# --- errors


@every
def test_bad_input(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"shape of weight is \(3,\).*\(4,\)"):
        function(torch.randn(2, 4), torch.randn(3), eps=1e-6)
    with pytest.raises(ValueError, match=r"shape of weight is \(1,\).*\(4,\)"):  # would broadcast, silently
        function(torch.randn(2, 4), torch.randn(1), eps=1e-6)
    with pytest.raises(ValueError, match=r"number of dimensions of x is 0, expected at least 1"):
        function(torch.tensor(1.0), torch.randn(1), eps=1e-6)
    with pytest.raises(ValueError, match=r"size D of the last dimension of x is 0, expected at least 1"):
        function(torch.randn(2, 0), torch.randn(0), eps=1e-6)
    with pytest.raises(ValueError, match=r"x has dtype torch.int64"):
        function(torch.ones(2, 4, dtype=torch.int64), torch.randn(4), eps=1e-6)


def test_bad_bias_gradient_and_alpha() -> None:
    x, weight = torch.randn(2, 4), torch.randn(4)
    with pytest.raises(ValueError, match=r"shape of bias is \(3,\).*\(4,\)"):
        N.layer_norm(x, weight, torch.randn(3))
    for backward in (N.layer_norm_backward, N.rms_norm_backward):
        with pytest.raises(ValueError, match=r"shape of grad_out is \(4,\).*\(2, 4\)"):
            backward(x, weight, weight)
    with pytest.raises(ValueError, match=r"number of elements of alpha is 4.*1"):
        N.dynamic_tanh(x, weight)


@given(case=cases())
@law
def test_rms_norm_is_its_definition_without_gradients_too(case: Case) -> None:
    normal, weight = by_hand(case.x, case.eps, center=False), case.weight.clone()
    with torch.no_grad():
        assert close(N.rms_norm(case.x, case.weight, eps=case.eps), weight * normal)
        assert close(N.rms_norm(case.x, eps=case.eps), normal)
    assert torch.equal(case.weight, weight)
