"""The laws of activations and gates, and their hand-written gradients, on random cases in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional import activations as A

law = settings(max_examples=40, derandomize=True, deadline=None)

BACKWARD: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu_squared": (A.relu_squared, A.relu_squared_backward),
    "gelu": (A.gelu_reference, A.gelu_backward),
    "gelu_tanh": (A.gelu_tanh_reference, A.gelu_tanh_backward),
    "silu": (A.silu, A.swish_backward),
    "quick_gelu": (A.quick_gelu, lambda x, g: A.swish_backward(x, g, beta=1.702)),
    "swish_0.3": (lambda x: A.swish(x, beta=0.3), lambda x, g: A.swish_backward(x, g, beta=0.3)),
    "mish": (A.mish_reference, A.mish_backward),
}
GATES: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]] = {
    "glu": (A.glu, A.glu_backward, torch.sigmoid),
    "reglu": (A.reglu, A.reglu_backward, A.relu),
    "geglu": (A.geglu, A.geglu_backward, A.gelu_reference),
    "swiglu": (A.swiglu, A.swiglu_backward, A.swish),
}
TWINS = {
    "gelu": (A.gelu, A.gelu_reference),
    "gelu_tanh": (A.gelu_tanh, A.gelu_tanh_reference),
    "silu": (A.silu, A.swish),
    "mish": (A.mish, A.mish_reference),
}


def grid(low: float = -12, high: float = 12, n: int = 2001) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


# --- the equations


@pytest.mark.parametrize(("fast", "reference"), TWINS.values(), ids=TWINS)
def test_fast_equals_reference(fast: Any, reference: Any) -> None:
    x = grid()
    assert close(fast(x), reference(x))
    assert close(fast(x.reshape(3, 23, 29)), reference(x).reshape(3, 23, 29))


@pytest.mark.parametrize("x", [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0])
def test_values_are_those_of_the_formulas(x: float) -> None:
    def logistic(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    tanh_argument = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        A.relu: max(x, 0.0),
        A.leaky_relu: x if x > 0 else 0.01 * x,
        A.relu_squared: x * x if x > 0 else 0.0,
        A.gelu: x * 0.5 * math.erfc(-x / math.sqrt(2)),
        A.gelu_tanh: 0.5 * x * (1 + math.tanh(tanh_argument)),
        A.quick_gelu: x * logistic(1.702 * x),
        A.silu: x * logistic(x),
        A.mish: x * math.tanh(math.log1p(math.exp(x))),
    }
    for function, value in expected.items():
        assert function(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(value, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "mish", "quick_gelu", "relu2", "relu"])
def test_bfloat16_stays_bfloat16_and_near(name: str) -> None:
    x = grid(-6, 6).bfloat16()
    out, exact = A.activation(name)(x), A.activation(name)(x.double())
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-7 * exact.abs() + 2**-9).all()


@given(seed=st.integers(0, 2**32), size=st.sampled_from([0.1, 3.0, 50.0]))
@law
def test_homogeneity(seed: int, size: float) -> None:
    (x,) = draw(seed, (40,))
    assert close(A.relu(size * x), size * A.relu(x))
    assert close(A.relu_squared(size * x), size**2 * A.relu_squared(x))


@pytest.mark.parametrize("function", [A.gelu, A.gelu_tanh, A.silu, A.quick_gelu])
def test_a_self_gate_splits_the_identity(function: Any) -> None:
    x = grid()
    assert close(function(x) - function(-x), x)  # x p(x) + x p(-x) = x, because p(x) + p(-x) = 1


# --- the gates


@pytest.mark.parametrize("name", GATES)
@given(seed=st.integers(0, 2**32))
@law
def test_a_gate_is_its_activation_times_up(name: str, seed: int) -> None:
    gate, up = draw(seed, (2, 3, 5), (2, 3, 5))
    function, _, inner = GATES[name]
    assert close(function(gate, up), inner(gate) * up)
    assert close(function(gate, 2 * up), 2 * function(gate, up))  # linear in up


def test_bilinear_is_linear_in_both() -> None:
    gate, up = draw(0, (4, 5), (4, 5))
    assert close(A.bilinear(-2 * gate, 3 * up), -6 * gate * up)


@given(seed=st.integers(0, 2**32))
@law
def test_recomputed_swiglu_is_swiglu(seed: int) -> None:
    gate, up, direction = draw(seed, (3, 7), (3, 7), (3, 7))
    gate, up = gate.requires_grad_(), up.requires_grad_()
    plain, again = A.swiglu(gate, up), A.swiglu_recomputed(gate, up)
    assert torch.equal(plain, again)
    for a, b in zip(*(torch.autograd.grad(y, (gate, up), direction) for y in (plain, again)), strict=True):
        assert close(a, b)


def test_recomputing_keeps_two_tensors_and_not_three() -> None:
    gate, up = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    for function, expected in ((A.swiglu, 3), (A.swiglu_recomputed, 2)):
        kept: dict[int, Tensor] = {}
        with saved_tensors_hooks(lambda t, kept=kept: kept.setdefault(t.data_ptr(), t), lambda t: t):
            function(gate, up)
        assert len(kept) == expected


# --- the gradients


class ByHand(torch.autograd.Function):
    """A function with the backward pass that was derived by hand."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.by_hand = backward
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        grads = ctx.by_hand(*ctx.saved_tensors, grad_out)
        return None, None, *(grads if isinstance(grads, tuple) else (grads,))


@pytest.mark.parametrize("name", BACKWARD)
def test_gradcheck_of_activations(name: str) -> None:
    forward, backward = BACKWARD[name]
    x = grid(-5.03, 5, 41).requires_grad_()
    assert torch.autograd.gradcheck(ByHand.apply, (forward, backward, x))


@pytest.mark.parametrize("name", GATES)
def test_gradcheck_of_gates(name: str) -> None:
    forward, backward, _ = GATES[name]
    gate, up = (x.requires_grad_() for x in draw(1, (3, 4), (3, 4)))
    assert torch.autograd.gradcheck(ByHand.apply, (forward, backward, gate, up))


def test_gradcheck_of_the_feed_forward_network() -> None:
    inputs = [(0.5 * x).requires_grad_() for x in draw(2, (2, 2, 3), (4, 3), (4, 3), (3, 4))]
    functions = (A.swiglu_feed_forward, A.swiglu_feed_forward_backward)
    assert torch.autograd.gradcheck(ByHand.apply, (*functions, *inputs))


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_far_out_are_finite(name: str) -> None:
    x = torch.tensor([-1e4, -88.0, 0.0, 88.0, 1e4])
    assert BACKWARD[name][1](x, torch.ones(5)).isfinite().all()


# --- GELU where it is trained


def test_gelu_that_is_trained_is_the_kernel_and_has_its_derivatives() -> None:
    x = grid(-5.03, 5, 41).requires_grad_()
    assert close(A.gelu_tanh(x), A.gelu_tanh(x.detach()))
    assert torch.autograd.gradcheck(A.gelu_tanh, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(A.gelu_tanh, x)
    (slope,) = torch.autograd.grad(A.gelu_tanh(x).sum(), x)
    assert close(slope, A.gelu_tanh_backward(x, torch.ones_like(x)))


def test_gelu_that_is_trained_under_transformations() -> None:
    (x,) = draw(3, (4, 5))

    def total(x: Tensor) -> Tensor:
        return A.gelu_tanh(x).sum()

    slopes = A.gelu_tanh_backward(x, torch.ones_like(x))
    assert close(torch.func.vmap(torch.func.grad(total))(x), slopes)
    _, along = torch.func.jvp(lambda x: torch.func.grad_and_value(total)(x)[1], (x,), (torch.ones_like(x),))
    assert close(along, slopes.sum())
    kernel = torch.func.hessian(lambda x: torch.nn.functional.gelu(x, approximate="tanh").sum())
    assert close(torch.func.hessian(total)(x[0]), kernel(x[0]))
    inputs = x.clone().requires_grad_()
    torch.compile(total, backend="eager", fullgraph=True)(inputs).backward()
    assert inputs.grad is not None
    assert close(inputs.grad, slopes)


def test_gelu_that_is_trained_in_half_precision_rounds_once() -> None:
    x = grid(-6, 6).bfloat16()
    assert torch.equal(A.gelu_tanh(x.clone().requires_grad_()), A.gelu_tanh(x))


def test_gelu_that_is_trained_far_out() -> None:
    x = torch.tensor([-1e4, -88.0, 88.0, 1e4], requires_grad=True)
    y = A.gelu_tanh(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [0.0, 0.0, 88.0, 1e4]
    assert slope.tolist() == [0.0, 0.0, 1.0, 1.0]


# --- sizes


@pytest.mark.parametrize(
    ("arguments", "width"),
    [
        ({"d_model": 4096}, 11008),
        ({"d_model": 5120}, 13824),
        ({"d_model": 8192}, 22016),
        ({"d_model": 8192, "multiplier": 1.3, "multiple_of": 4096}, 28672),
        ({"d_model": 4096, "multiplier": 1.3, "multiple_of": 1024}, 14336),
        ({"d_model": 3, "multiple_of": 1}, 8),
        ({"d_model": 96, "multiple_of": 256}, 256),  # exactly 256: no further multiple
    ],
)
def test_widths_of_published_models(arguments: dict[str, Any], width: int) -> None:
    assert A.gated_width(**arguments) == width


def test_costs_are_what_torch_counts() -> None:
    N, D, F = 5, 6, 7
    x, w_gate, w_up, w_down = torch.zeros(N, D), torch.zeros(F, D), torch.zeros(F, D), torch.zeros(D, F)
    for run, cost in (
        (lambda: A.swiglu_feed_forward(x, w_gate, w_up, w_down), 6 * N * D * F),
        (lambda: A.swiglu_feed_forward_backward(x, w_gate, w_up, w_down, x), 16 * N * D * F),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == cost


# --- names and bad input


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'geluu', expected one of the 22 names gelu, gelu_10, .*silu.*tanh"):
        A.activation("geluu")


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    "function", [A.bilinear, A.glu, A.reglu, A.geglu, A.swiglu, A.clamped_swiglu, A.swiglu_recomputed]
)
def test_gates_refuse_other_shapes(function: Any) -> None:
    with pytest.raises(ValueError, match=r"shape of gate is \(2, 3\), shape of up is \(2, 1\)"):
        function(zeros(2, 3), zeros(2, 1))


@pytest.mark.parametrize("function", [A.glu_backward, A.reglu_backward, A.geglu_backward, A.swiglu_backward])
def test_gradients_of_gates_refuse_other_shapes(function: Any) -> None:
    with pytest.raises(ValueError, match=r"shape of gate is \(2, 3\), shape of up is \(2, 1\)"):
        function(zeros(2, 3), zeros(2, 1), zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape of gate is \(2, 3\), shape of grad_out is \(3,\)"):
        function(zeros(2, 3), zeros(2, 3), zeros(3))


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_of_activations_refuse_other_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=r"shape of x is \(2, 3\), shape of grad_out is \(3,\)"):
        BACKWARD[name][1](zeros(2, 3), zeros(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: A.gated_width(0), "d_model is 0, expected at least 1"),
        (lambda: A.gated_width(8, multiple_of=0), "multiple_of is 0, expected at least 1"),
        (
            lambda: A.swiglu_feed_forward(zeros(2, 3), zeros(4, 5), zeros(4, 5), zeros(5, 4)),
            r"width of w_gate is 5, width of x is 3.*w_gate is \(F, D\)",
        ),
        (
            lambda: A.swiglu_feed_forward(zeros(2, 3), zeros(4, 3), zeros(5, 3), zeros(3, 4)),
            r"w_gate is \(4, 3\).*w_up is \(5, 3\)",
        ),
        (
            lambda: A.swiglu_feed_forward(zeros(2, 3), zeros(4, 3), zeros(4, 3), zeros(4, 3)),
            r"w_down is \(4, 3\).*\(3, 4\)",
        ),
        (
            lambda: A.swiglu_feed_forward_backward(zeros(2, 3), zeros(4, 3), zeros(4, 3), zeros(3, 4), zeros(1, 3)),
            r"shape of x is \(2, 3\), shape of grad_out is \(1, 3\)",
        ),
    ],
)
def test_bad_arguments_are_refused_with_both_numbers(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("limit", [0.0, -7.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=rf"limit is {limit}, expected a positive number"):
        A.clamped_swiglu(torch.zeros(2), torch.zeros(2), limit=limit)


def test_a_far_limit_leaves_the_gate_as_it_is() -> None:
    gate, up = torch.randn(2, 50, dtype=torch.float64)
    torch.testing.assert_close(A.clamped_swiglu(gate, up - 1, beta=1.0, limit=1e6), A.swiglu(gate, up))
