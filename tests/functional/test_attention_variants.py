"""The laws of the variants of attention, on random cases in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional import attention as A
from tests.functional.test_attention import Case, cases, close, law


def weigh(case: Case, score: Callable[[int, Tensor], Tensor], sinks: Tensor | None = None) -> Tensor:
    """Second formula: one query of one head at a time, its raw weights by ``score(head, dot products)``."""
    B, H, T, Dk = case.q.shape
    scale = Dk**-0.5 if case.scale is None else case.scale
    out = torch.zeros(B, H, T, case.v.shape[-1], dtype=case.q.dtype)
    for b, h, t in ((b, h, t) for b in range(B) for h in range(H) for t in range(T)):
        shared = h * case.k.shape[1] // H
        raw = case.mask[b, 0, t] * score(h, scale * (case.k[b, shared] @ case.q[b, h, t])).exp()
        total = raw.sum() + (0 if sinks is None else sinks[h].exp())
        out[b, h, t] = (raw / total) @ case.v[b, shared] if total > 0 else 0.0
    return out


def gradients(run: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed functional of ``run(*inputs)``."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = run(*inputs)
    direction = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return torch.autograd.grad(out, inputs, direction)


def finite_and_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    """Whether two lists of gradients are finite and the same up to rounding."""
    return all(a.isfinite().all() and close(a, b, 1e-10) for a, b in zip(ours, theirs, strict=True))


# --- a number added to each score


@given(case=cases(least=0))
@law
def test_bias_is_its_definition(case: Case) -> None:
    H, T, S = case.q.shape[1], case.q.shape[2], case.k.shape[2]
    bias = torch.linspace(-2, 3, H * T * S, dtype=torch.float64).reshape(H, T, S).sin()
    group = case.q.shape[1] // case.k.shape[1]
    scale = case.q.shape[-1] ** -0.5 if case.scale is None else case.scale
    raw = (scale * case.q @ case.k.repeat_interleave(group, dim=1).mT + bias).exp() * case.mask
    expected = (raw / raw.sum(-1, keepdim=True)).nan_to_num() @ case.v.repeat_interleave(group, dim=1)
    for function in (A.biased_attention, A.biased_attention_reference):
        assert close(function(case.q, case.k, case.v, bias, mask=case.mask, scale=case.scale), expected, 1e-11)


@given(case=cases())
@law
def test_gradients_of_biased_attention_are_the_references(case: Case) -> None:
    bias = torch.linspace(-1, 1, case.q.shape[2] * case.k.shape[2], dtype=torch.float64)
    bias = bias.reshape(case.q.shape[2], case.k.shape[2])
    ours, theirs = (
        gradients(lambda *x, f=f: f(*x, mask=case.mask, scale=case.scale), case.q, case.k, case.v, bias)
        for f in (A.biased_attention, A.biased_attention_reference)
    )
    assert finite_and_close(ours, theirs)


@pytest.mark.parametrize("function", [A.biased_attention, A.biased_attention_reference])
@pytest.mark.parametrize("shape", [(), (6,), (5, 6), (5, 1), (4, 1, 6), (4, 5, 6), (3, 1, 1, 6), (3, 4, 5, 6)])
def test_every_bias_that_broadcasts(function: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 7)
    bias, mask = 2 * torch.randn(shape), torch.rand(5, 6) < 0.5
    for m in (None, mask):
        expected = A.biased_attention_reference(q, k, v, bias.expand(3, 4, 5, 6).contiguous(), mask=m)
        assert close(function(q, k, v, bias, mask=m), expected, 1e-5)


@given(case=cases())
@law
def test_a_bias_of_zero_or_of_one_number_per_query_is_invisible(case: Case) -> None:
    bias = torch.linspace(-3, 5, case.q.shape[2], dtype=torch.float64)[:, None]
    expected = A.attention_reference(case.q, case.k, case.v, mask=case.mask, scale=case.scale)
    for b in (bias, torch.zeros_like(bias)):
        assert close(A.biased_attention(case.q, case.k, case.v, b, mask=case.mask, scale=case.scale), expected, 1e-11)


# --- a bound on the scores


@given(case=cases(least=0), cap=st.sampled_from([0.5, 2.0, 30.0]))
@law
def test_softcap_attention_is_its_definition(case: Case, cap: float) -> None:
    expected = weigh(case, lambda _, z: cap * (1 - 2 / ((2 * z / cap).exp() + 1)))  # tanh from its exponentials
    out = A.softcap_attention(case.q, case.k, case.v, cap=cap, mask=case.mask, scale=case.scale)
    assert close(out, expected, 1e-11)


def test_softcap_is_bounded_odd_increasing_and_the_identity_near_zero() -> None:
    x = torch.linspace(-500, 500, 4001, dtype=torch.float64)
    y = A.softcap(x, 50.0)
    assert y.abs().max() < 50
    assert close(y, -y.flip(0))
    assert (y.diff() >= 0).all()
    near = x.abs() <= 5
    assert ((y - x)[near].abs() <= x[near].abs() ** 3 / (3 * 50**2) + 1e-12).all()  # the next term of the series
    assert close(A.softcap(x, 1e9), x, 1e-9)


def test_the_slope_of_softcap_is_one_minus_the_square_of_tanh() -> None:
    x = torch.linspace(-300, 300, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(A.softcap(x, 50.0).sum(), x)
    assert close(slope, 1 - (x / 50).tanh().square())


def test_no_two_weights_differ_by_more_than_the_cap_allows() -> None:
    torch.manual_seed(0)
    q, k = 100 * torch.randn(1, 2, 5, 8, dtype=torch.float64), 100 * torch.randn(1, 2, 7, 8, dtype=torch.float64)
    weights = A.softcap_attention(q, k, torch.eye(7, dtype=torch.float64).expand(1, 2, 7, 7), cap=1.5)
    spread = (weights.amax(-1) / weights.amin(-1)).log()
    assert spread.max() <= 2 * 1.5 + 1e-9
    assert spread.max() >= 2 * 1.4  # the bound is nearly reached


# --- a place for weight that no key deserves


@given(case=cases(least=0))
@law
def test_sinks_are_one_more_term_in_the_denominator(case: Case) -> None:
    sinks = torch.linspace(-2, 1.5, case.q.shape[1], dtype=torch.float64)
    expected = weigh(case, lambda _, z: z, sinks)
    for function in (A.sink_attention, A.sink_attention_reference):
        assert close(function(case.q, case.k, case.v, sinks, mask=case.mask, scale=case.scale), expected, 1e-11)
    everywhere = Case(case.q, case.k, case.v, torch.ones_like(case.mask), case.scale)
    expected = weigh(everywhere, lambda _, z: z, sinks)
    assert close(A.sink_attention(case.q, case.k, case.v, sinks, scale=case.scale), expected, 1e-11)


@given(case=cases())
@law
def test_gradients_of_sink_attention_are_the_references(case: Case) -> None:
    sinks = torch.linspace(-1, 1, case.q.shape[1], dtype=torch.float64)
    ours, theirs = (
        gradients(lambda *x, f=f: f(*x, mask=case.mask, scale=case.scale), case.q, case.k, case.v, sinks)
        for f in (A.sink_attention, A.sink_attention_reference)
    )
    assert finite_and_close(ours, theirs)


@given(case=cases())
@law
def test_a_sink_far_below_the_scores_is_plain_attention(case: Case) -> None:
    sinks = torch.full((case.q.shape[1],), -200.0, dtype=torch.float64)
    out = A.sink_attention(case.q, case.k, case.v, sinks, mask=case.mask, scale=case.scale)
    assert close(out, A.attention_reference(case.q, case.k, case.v, mask=case.mask, scale=case.scale), 1e-11)


@given(case=cases())
@law
def test_a_sink_shrinks_plain_attention_by_a_sigmoid(case: Case) -> None:
    sinks = torch.linspace(-2, 2, case.q.shape[1], dtype=torch.float64)
    scale = case.q.shape[-1] ** -0.5 if case.scale is None else case.scale
    k = case.k.repeat_interleave(case.q.shape[1] // case.k.shape[1], dim=1)
    total = (scale * case.q @ k.mT).masked_fill(~case.mask, -math.inf).logsumexp(-1, keepdim=True)
    gate = torch.sigmoid(total - sinks[:, None, None])
    plain = A.attention(case.q, case.k, case.v, mask=case.mask, scale=case.scale)
    out = A.sink_attention(case.q, case.k, case.v, sinks, mask=case.mask, scale=case.scale)
    assert close(out, gate * plain, 1e-11)


@pytest.mark.parametrize("function", [A.sink_attention, A.sink_attention_reference])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (5, 6), (5, 1), (4, 1, 6), (3, 1, 1, 6), (3, 4, 5, 6)])
def test_every_mask_that_broadcasts_beside_a_sink(function: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v, sinks = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 7), torch.randn(4)
    mask = torch.rand(shape) < 0.5
    expected = A.sink_attention_reference(q, k, v, sinks, mask=mask.expand(3, 4, 5, 6))
    assert close(function(q, k, v, sinks, mask=mask), expected, 1e-5)


# --- a window


@pytest.mark.parametrize("T", range(7))
@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_a_query_sees_itself_and_the_keys_just_before_it(T: int, more: int, window: int) -> None:
    mask = A.sliding_window_mask(T, T + more, window=window)
    for i in range(T):
        position = i + more
        assert mask[i].nonzero().flatten().tolist() == list(range(max(0, position - window + 1), position + 1))


@pytest.mark.parametrize("window", [1, 3, 4])
def test_layers_of_windows_see_one_more_than_layers_times_window_less_one(window: int) -> None:
    T, layers = 24, 3
    mask = A.sliding_window_mask(T, window=window)
    x = torch.randn(1, 1, T, 2, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(layers):
        y = A.attention(y, y, y, mask=mask)
    (grad,) = torch.autograd.grad(y[0, 0, -1].sum(), x)
    seen = grad[0, 0].abs().sum(-1).nonzero().flatten()
    assert len(seen) == T - seen.min() == layers * (window - 1) + 1


# --- what does not fit is refused; what fits keeps its dtype


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: A.biased_attention(q, q, q, zeros(4, 3)), r"bias has shape \(4, 3\).*\(2, 4, 3, 3\)"),
        (lambda q: A.biased_attention(q, q, q, zeros(3, 3).double()), "bias is torch.float64, .* q is torch.float32"),
        (lambda q: A.biased_attention(q, q, q, zeros(3, 3) == 0), "bias is torch.bool"),
        (lambda q: A.biased_attention_reference(q, q, q, zeros(4, 3)), r"bias has shape \(4, 3\)"),
        (lambda q: A.biased_attention(q, q, q, zeros(3, 3), mask=zeros(3, 3)), "mask has dtype torch.float32"),
        (lambda q: A.biased_attention(q, q, zeros(2, 4, 4, 5), zeros(3, 3)), r"\(2, 4, 4\).*\(2, 4, 3\)"),
        (lambda q: A.softcap_attention(q, q, q, cap=0.0), "cap is 0.0, expected more than 0"),
        (lambda q: A.softcap_attention(q, q, q, cap=-1.0), "cap is -1.0, expected more than 0"),
        (lambda q: A.softcap_attention(q, q, q, cap=math.nan), "cap is nan, expected more than 0"),
        (lambda q: A.softcap_attention(q, zeros(2, 3, 3, 5), zeros(2, 3, 3, 5), cap=1.0), "3 does not divide .* 4"),
        (lambda q: A.sink_attention(q, q, q, zeros(3)), "number of sinks is 3, heads of q is 4"),
        (lambda q: A.sink_attention(q, q, q, zeros(4, 1)), r"sinks has shape \(4, 1\)"),
        (lambda q: A.sink_attention_reference(q, q, q, zeros(4).half()), "sinks is torch.float16"),
        (lambda q: A.sink_attention(q, q, q, zeros(4), mask=zeros(2, 3) == 0), r"mask has shape \(2, 3\)"),
        (lambda q: A.sliding_window_mask(3, window=0), "window is 0, expected at least 1"),
        (lambda q: A.sliding_window_mask(3, 2, window=1), "s is 2, expected at least 3"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(zeros(2, 4, 3, 5))


def test_bfloat16_stays_bfloat16_and_near() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16).bfloat16() for _ in range(3))
    sinks, bias = torch.randn(4).bfloat16(), torch.randn(4, 9, 9).bfloat16()
    for run in (
        lambda *x: A.softcap_attention(*x[:3], cap=2.0),
        lambda *x: A.sink_attention(*x[:4]),
        lambda *x: A.sink_attention_reference(*x[:4]),
        lambda *x: A.biased_attention(*x[:3], x[4]),
        lambda *x: A.biased_attention_reference(*x[:3], x[4]),
    ):
        out, exact = run(q, k, v, sinks, bias), run(*(x.double() for x in (q, k, v, sinks, bias)))
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).abs().max() <= 2**-6 * exact.abs().max()


def test_costs_are_what_torch_counts() -> None:
    B, H, K, T, S, Dk, Dv = 2, 4, 2, 3, 5, 6, 7
    q, k, v = zeros(B, H, T, Dk), zeros(B, K, S, Dk), zeros(B, K, S, Dv)
    with FlopCounterMode(display=False) as counter:
        A.softcap_attention(q, k, v, cap=1.0)
    assert counter.get_total_flops() == 2 * B * H * T * S * (Dk + Dv)
