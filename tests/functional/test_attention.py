"""The laws of attention, its masks and its hand-written gradient, on random cases in float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional import attention as A

law = settings(max_examples=60, derandomize=True, deadline=None)
both = pytest.mark.parametrize("function", [A.attention, A.attention_reference], ids=["fast", "reference"])


@dataclass(frozen=True)
class Case:
    """One random problem; ``repr`` shows what hypothesis found."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    scale: float | None

    def __repr__(self) -> str:
        return (
            f"Case(q {self.q.shape}, k {self.k.shape}, v {self.v.shape}, scale {self.scale}, mask\n{self.mask.int()})"
        )


@st.composite
def cases(draw: st.DrawFn, least: int = 1, *, square: bool = False) -> Case:
    """Draw shapes with grouped heads, a mask with some empty rows, and a scale of any sign."""
    B, K, group, Dk, Dv = (draw(st.integers(1, 3)) for _ in range(5))
    T, S = (draw(st.integers(least, 7)) for _ in range(2))
    S = T if square else S
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    q, k, v = (
        2 * torch.randn(B, heads, length, width, dtype=torch.float64, generator=generator)
        for heads, length, width in ((K * group, T, Dk), (K, S, Dk), (K, S, Dv))
    )
    mask = torch.rand(B, 1, T, S, generator=generator) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    return Case(q, k, v, mask, draw(st.sampled_from([None, 1.0, 0.3, 0.0, -0.5])))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def loop(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Second formula, independent of the first: one query of one head at a time, only over the keys it may see."""
    B, H, T, _ = q.shape
    out = torch.zeros(B, H, T, v.shape[-1], dtype=q.dtype)
    for b, h, t in ((b, h, t) for b in range(B) for h in range(H) for t in range(T)):
        seen = mask[b, 0, t].nonzero().flatten()
        shared = h * k.shape[1] // H
        raw = (scale * (k[b, shared, seen] @ q[b, h, t])).exp()
        out[b, h, t] = (raw / raw.sum()) @ v[b, shared, seen] if len(seen) else 0.0
    return out


# --- the equation


@both
@given(case=cases(least=0))
@law
def test_is_its_definition(function: Any, case: Case) -> None:
    scale = case.q.shape[-1] ** -0.5 if case.scale is None else case.scale
    expected = loop(case.q, case.k, case.v, case.mask, scale)
    assert close(function(case.q, case.k, case.v, mask=case.mask, scale=case.scale), expected, 1e-11)


@given(case=cases(least=0))
@law
def test_fast_equals_reference(case: Case) -> None:
    for mask in (case.mask, None):
        fast = A.attention(case.q, case.k, case.v, mask=mask, scale=case.scale)
        assert close(fast, A.attention_reference(case.q, case.k, case.v, mask=mask, scale=case.scale))


@both
@pytest.mark.parametrize(("T", "S"), [(0, 4), (3, 0), (0, 0)])
def test_no_queries_give_nothing_and_no_keys_give_zeros(function: Any, T: int, S: int) -> None:
    q, k, v = torch.randn(2, 4, T, 3), torch.randn(2, 2, S, 3), torch.randn(2, 2, S, 5)
    for mask in (None, torch.ones(T, S, dtype=torch.bool)):
        assert torch.equal(function(q, k, v, mask=mask), torch.zeros(2, 4, T, 5))


@both
def test_bfloat16_stays_bfloat16_and_near(function: Any) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16).bfloat16() for _ in range(3))
    out, exact = function(q, k, v), A.attention_reference(q.double(), k.double(), v.double())
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() <= 2**-6 * exact.abs().max()


@given(case=cases())
@law
def test_weights_are_a_distribution_over_what_is_allowed(case: Case) -> None:
    weights = A.attention_weights(case.q, case.k, mask=case.mask, scale=case.scale)
    assert (weights >= 0).all()
    assert (weights.masked_select(~case.mask.expand(weights.shape)) == 0).all()
    assert close(weights.sum(-1), case.mask.any(-1).double().expand(weights.shape[:3]))
    group = case.q.shape[1] // case.k.shape[1]
    out = A.attention(case.q, case.k, case.v, mask=case.mask, scale=case.scale)
    assert close(weights @ case.v.repeat_interleave(group, dim=1), out)


# --- laws


@given(case=cases(square=True), data=st.data())
@law
def test_the_future_changes_nothing(case: Case, data: st.DataObject) -> None:
    T = case.q.shape[2]
    now = data.draw(st.integers(0, T - 1), label="now")
    q, k, v = (x.clone().requires_grad_() for x in (case.q, case.k, case.v))
    later = [torch.cat([x[:, :, : now + 1], 9 - x[:, :, now + 1 :]], dim=2) for x in (case.k, case.v)]
    for run in (
        lambda *qkv: A.causal_attention(*qkv, scale=case.scale),
        lambda *qkv: A.attention(*qkv, scale=case.scale, mask=A.causal_mask(T)),
        lambda *qkv: A.attention_reference(*qkv, scale=case.scale, mask=A.causal_mask(T)),
    ):
        past = run(q, k, v)[:, :, : now + 1]
        assert close(past, run(q, *later)[:, :, : now + 1])
        for grad in torch.autograd.grad(past.sum(), (q, k, v)):
            assert (grad[:, :, now + 1 :] == 0).all()


@given(case=cases(), more=st.integers(0, 5))
@law
def test_causal_attention_is_attention_with_the_causal_mask(case: Case, more: int) -> None:
    q = case.q[:, :, : case.k.shape[2]]  # S >= T
    mask = A.causal_mask(q.shape[2], case.k.shape[2])
    expected = A.attention_reference(q, case.k, case.v, mask=mask, scale=case.scale)
    assert close(A.causal_attention(q, case.k, case.v, scale=case.scale), expected)


@both
@given(case=cases())
@law
def test_padding_changes_nothing(function: Any, case: Case) -> None:
    B, S = case.q.shape[0], case.k.shape[2]
    lengths = torch.arange(B) % (S + 1)
    mask = A.padding_mask(lengths, S)
    hidden = ~mask[:, :, 0, :, None]
    out = function(case.q, case.k.masked_fill(hidden, 1e3), case.v.masked_fill(hidden, -1e3), mask=mask)
    for b, length in enumerate(lengths.tolist()):
        alone = function(case.q[b : b + 1], case.k[b : b + 1, :, :length], case.v[b : b + 1, :, :length])
        assert close(out[b : b + 1], alone)


@both
@given(case=cases(square=True), data=st.data())
@law
def test_permuted_tokens_give_permuted_outputs(function: Any, case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(case.q.shape[2])), label="order")
    q, k, v = (x[:, :, order] for x in (case.q, case.k, case.v))
    assert close(function(q, k, v, scale=case.scale), function(case.q, case.k, case.v, scale=case.scale)[:, :, order])


@both
@given(case=cases(), data=st.data())
@law
def test_the_order_of_key_value_pairs_is_invisible(function: Any, case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(case.k.shape[2])), label="order")
    out = function(case.q, case.k[:, :, order], case.v[:, :, order], mask=case.mask[..., order], scale=case.scale)
    assert close(out, function(case.q, case.k, case.v, mask=case.mask, scale=case.scale))


@both
@given(case=cases())
@law
def test_one_vector_added_to_all_keys_is_invisible(function: Any, case: Case) -> None:
    shift = torch.linspace(-1, 2, case.k.shape[-1], dtype=torch.float64)  # moves all scores of a query alike
    out = function(case.q, case.k + shift, case.v, mask=case.mask, scale=case.scale)
    assert close(out, function(case.q, case.k, case.v, mask=case.mask, scale=case.scale), 1e-11)


@both
@given(case=cases())
@law
def test_grouped_heads_are_repeated_heads(function: Any, case: Case) -> None:
    group = case.q.shape[1] // case.k.shape[1]
    k, v = (torch.stack([x] * group, dim=2).flatten(1, 2) for x in (case.k, case.v))
    assert close(
        function(case.q, case.k, case.v, mask=case.mask, scale=case.scale),
        function(case.q, k, v, mask=case.mask, scale=case.scale),
    )


@both
@given(case=cases())
@law
def test_default_scale_is_one_over_the_root_of_the_key_width(function: Any, case: Case) -> None:
    named = function(case.q, case.k, case.v, scale=1 / case.k.shape[-1] ** 0.5)
    assert close(function(case.q, case.k, case.v), named)


@both
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(function: Any) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    out = function(q, k, v, mask=mask)
    assert (out[:, :, 1] == 0).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][:, :, 1] == 0).all()
    assert (grads[0][:, :, 0] != 0).any()


# --- gradient by hand


@given(case=cases(least=0))
@law
def test_backward_equals_autograd(case: Case) -> None:
    q, k, v = (x.clone().requires_grad_() for x in (case.q, case.k, case.v))
    for mask in (case.mask, None):
        out = A.attention_reference(q, k, v, mask=mask, scale=case.scale)
        grad_out = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).reshape(out.shape)
        expected = torch.autograd.grad(out, (q, k, v), grad_out)
        ours = A.attention_backward(case.q, case.k, case.v, grad_out, mask=mask, scale=case.scale)
        assert all(close(a, b) for a, b in zip(ours, expected, strict=True))


class ByHand(torch.autograd.Function):
    """The fast forward pass with our backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.mask, ctx.scale = mask, scale
        return A.attention(q, k, v, mask=mask, scale=scale)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        return *A.attention_backward(*ctx.saved_tensors, grad_out, mask=ctx.mask, scale=ctx.scale), None, None


@pytest.mark.parametrize("scale", [None, 0.7])
def test_gradcheck_of_the_backward_pass(scale: float | None) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3))
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    mask = A.causal_mask(3, 5) & A.padding_mask(torch.tensor([5, 0]), 5)  # one sequence has nothing to see
    assert torch.autograd.gradcheck(ByHand.apply, (q, k, v, mask, scale))


@given(seed=st.integers(0, 2**32), n=st.integers(1, 6), size=st.sampled_from([1.0, 30.0]))
@law
def test_softmax_jacobian_equals_autograd(seed: int, n: int, size: float) -> None:
    x = size * torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    jacobians = A.softmax_jacobian(x.softmax(-1))
    for i, j in ((i, j) for i in range(2) for j in range(3)):
        expected = torch.autograd.functional.jacobian(lambda row: row.softmax(-1), x[i, j])
        assert close(jacobians[i, j], expected)


# --- masks


@pytest.mark.parametrize(("t", "s"), [(0, 0), (1, 1), (4, 4), (1, 5), (3, 5), (0, 2)])
def test_causal_mask_is_its_definition(t: int, s: int) -> None:
    expected = [[j <= i + (s - t) for j in range(s)] for i in range(t)]
    assert A.causal_mask(t, s).tolist() == expected
    assert A.causal_mask(t, s).dtype == torch.bool


def test_causal_mask_is_square_by_default_and_made_on_the_device() -> None:
    assert torch.equal(A.causal_mask(4), A.causal_mask(4, 4))
    assert A.causal_mask(4, device="meta").device.type == "meta"


def test_rows_of_a_long_causal_mask_are_those_of_a_decoding_step() -> None:
    full = A.causal_mask(6)
    for t in range(1, 7):
        assert torch.equal(full[t - 1 : t, :t], A.causal_mask(1, t))
        assert torch.equal(full[-t:], A.causal_mask(t, 6))


def test_padding_mask_is_its_definition() -> None:
    mask = A.padding_mask(torch.tensor([0, 2, 4]), 4)
    assert mask.shape == (3, 1, 1, 4)
    assert mask[:, 0, 0].tolist() == [[j < n for j in range(4)] for n in (0, 2, 4)]
    assert mask.dtype == torch.bool


def test_prefix_mask_is_its_definition() -> None:
    mask = A.prefix_mask(torch.tensor([0, 1, 3, 5]), 5)
    assert mask.shape == (4, 1, 5, 5)
    for row, p in zip(mask[:, 0].tolist(), (0, 1, 3, 5), strict=True):
        assert row == [[j <= i or j < p for j in range(5)] for i in range(5)]


@both
@given(case=cases(square=True))
@law
def test_prefix_of_nothing_is_causal_and_of_everything_is_full(function: Any, case: Case) -> None:
    B, _, T, _ = case.q.shape
    none, everything = (A.prefix_mask(torch.full((B,), p), T) for p in (0, T))
    assert close(function(case.q, case.k, case.v, mask=none), function(case.q, case.k, case.v, mask=A.causal_mask(T)))
    assert close(function(case.q, case.k, case.v, mask=everything), function(case.q, case.k, case.v))


@given(seed=st.integers(0, 2**32))
@law
def test_masked_softmax_is_softmax_of_what_is_left(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, mask = torch.randn(5, 6, dtype=torch.float64, generator=generator), torch.rand(6, generator=generator) < 0.5
    weights = A.masked_softmax(scores, mask)
    assert close(weights[:, mask], scores[:, mask].softmax(-1))
    assert (weights[:, ~mask] == 0).all()


def test_an_empty_row_meets_no_nan_on_its_way_back() -> None:
    scores, mask = torch.zeros(2, 3, requires_grad=True), torch.tensor([[True, True, False], [False] * 3])
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():  # raises at any NaN
        A.masked_softmax(scores, mask).square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_survives_the_largest_scores(dtype: torch.dtype) -> None:
    scores = torch.tensor([[6e4, -6e4, 6e4], [-6e4, -6e4, 6e4]], dtype=dtype)
    weights = A.masked_softmax(scores, torch.tensor([True, True, False]))
    assert weights.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]


def test_heads_are_blocks_of_features() -> None:
    x = torch.arange(2 * 3 * 8).reshape(2, 3, 8)
    heads = A.split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert all(torch.equal(heads[:, h], x[:, :, 2 * h : 2 * h + 2]) for h in range(4))
    assert heads.data_ptr() == x.data_ptr()
    assert torch.equal(A.merge_heads(heads), x)


# --- bad input: each message holds both numbers


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


K_OF_6, V_OF_6 = zeros(1, 2, 6, 8), zeros(1, 2, 6, 3)
BAD_INPUTS = {
    "q of three dimensions": (zeros(4, 5, 8), K_OF_6, V_OF_6, r"q has shape \(4, 5, 8\).*4 dim"),
    "k of three dimensions": (zeros(1, 4, 5, 8), zeros(2, 6, 8), V_OF_6, r"k has shape \(2, 6, 8\).*4 dim"),
    "v of three dimensions": (zeros(1, 4, 5, 8), K_OF_6, zeros(2, 6, 3), r"v has shape \(2, 6, 3\).*4 dim"),
    "batches differ": (zeros(3, 4, 5, 8), K_OF_6, V_OF_6, "k is 1, batch size of q is 3.*expand"),
    "lengths of k and v differ": (
        zeros(1, 4, 5, 8), K_OF_6, zeros(1, 2, 7, 3), r"v is \(1, 2, 7\).*k is \(1, 2, 6\)"
    ),
    "widths differ": (zeros(1, 4, 5, 8), zeros(1, 2, 6, 9), V_OF_6, "width of k is 9, width of q is 8"),
    "no width": (zeros(1, 4, 5, 0), zeros(1, 2, 6, 0), V_OF_6, "width Dk of q and k is 0.*least 1"),
    "heads": (zeros(1, 4, 5, 8), zeros(1, 3, 6, 8), zeros(1, 3, 6, 3), "v = 3 does not divide heads of q = 4"),
    "no heads": (zeros(1, 4, 5, 8), zeros(1, 0, 6, 8), zeros(1, 0, 6, 3), "heads of k and v is 0.*least 1"),
    "k float64": (zeros(1, 4, 5, 8), K_OF_6.double(), V_OF_6, "k is torch.float64, .* q is torch.float32"),
    "v float16": (zeros(1, 4, 5, 8), K_OF_6, V_OF_6.half(), "v is torch.float16, .* q is torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize(("q", "k", "v", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
@pytest.mark.parametrize("function", [A.attention, A.attention_reference, A.causal_attention])
def test_shapes_that_do_not_fit_are_refused(function: Any, q: Tensor, k: Tensor, v: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(q, k, v)
    with pytest.raises(ValueError, match=message):
        A.attention_backward(q, k, v, q)


@pytest.mark.parametrize("name", ["q of three dimensions", "k of three dimensions", "batches differ", "heads"])
def test_weights_refuse_shapes_that_do_not_fit(name: str) -> None:
    q, k, _, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        A.attention_weights(q, k)


@pytest.mark.parametrize("function", [A.attention, A.attention_reference])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, 3, dtype=torch.bool), r"mask has shape \(4, 3\).*\(2, 2, 3, 4\).*expected \(T, S\)"),
        (torch.ones(3, 3, 4, dtype=torch.bool), r"mask has shape \(3, 3, 4\).*\(2, 2, 3, 4\)"),
        (torch.ones(1, 2, 2, 3, 4, dtype=torch.bool), r"mask has shape \(1, 2, 2, 3, 4\).*\(2, 2, 3, 4\)"),
        (torch.zeros(3, 4), "mask has dtype torch.float32, expected torch.bool.*mask == 0"),
        (torch.ones(3, 4, dtype=torch.int64), "mask has dtype torch.int64, expected torch.bool"),
    ],
)
def test_masks_that_do_not_fit_are_refused(function: Any, mask: Tensor, message: str) -> None:
    q, k = torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 4, 8)
    with pytest.raises(ValueError, match=message):
        function(q, k, k, mask=mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: A.causal_mask(5, 3), "s is 3, expected at least 5.*t = 5"),
        (lambda: A.causal_mask(-1), "t is -1, expected at least 0"),
        (lambda: A.causal_attention(zeros(1, 1, 5, 2), zeros(1, 1, 3, 2), zeros(1, 1, 3, 2)), "s is 3.*at least 5"),
        (lambda: A.padding_mask(torch.tensor([2, 5]), 4), "lengths holds 5, expected 0 to 4"),
        (lambda: A.padding_mask(torch.tensor([2, -1]), 4), "lengths holds -1, expected 0 to 4"),
        (lambda: A.padding_mask(torch.tensor(3), 4), r"lengths has shape \(\), expected 1 dimensions \(B\)"),
        (lambda: A.padding_mask(torch.tensor([1.0]), 4), "lengths has dtype torch.float32, expected integers"),
        (lambda: A.padding_mask(torch.tensor([True]), 4), "lengths has dtype torch.bool, expected integers"),
        (lambda: A.prefix_mask(torch.tensor([5]), 4), "prefix_lengths holds 5, expected 0 to 4"),
        (lambda: A.split_heads(torch.zeros(2, 3, 8), 3), "n_heads = 3 does not divide width of x = 8"),
        (lambda: A.split_heads(torch.zeros(3, 8), 2), r"x has shape \(3, 8\), expected 3 dimensions"),
        (lambda: A.merge_heads(torch.zeros(2, 3, 8)), r"x has shape \(2, 3, 8\), expected 4 dimensions"),
        (lambda: A.softmax_jacobian(torch.tensor(1.0)), "p is 0, expected at least 1"),
        (
            lambda: A.attention_backward(zeros(1, 2, 3, 4), zeros(1, 2, 5, 4), zeros(1, 2, 5, 6), zeros(1, 2, 3, 4)),
            r"grad_out is \(1, 2, 3, 4\).*\(1, 2, 3, 6\)",
        ),
    ],
)
def test_bad_arguments_are_refused_with_both_numbers(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the costs that the docstrings state


def test_costs_are_what_torch_counts() -> None:
    B, H, K, T, S, Dk, Dv = 2, 4, 2, 3, 5, 6, 7
    q, k, v, grad_out = zeros(B, H, T, Dk), zeros(B, K, S, Dk), zeros(B, K, S, Dv), zeros(B, H, T, Dv)
    for run, cost in (
        (lambda: A.attention_reference(q, k, v), 2 * B * H * T * S * (Dk + Dv)),
        (lambda: A.attention_weights(q, k), 2 * B * H * T * S * Dk),
        (lambda: A.attention_backward(q, k, v, grad_out), 2 * B * H * T * S * (3 * Dk + 2 * Dv)),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == cost
