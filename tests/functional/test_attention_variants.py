"""The laws of the variants of attention, on random cases in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional import attention as A
from llm_study.functional import attention_variants as V
from llm_study.functional.positions import rope_cos_sin, rope_frequencies
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


# --- fewer keys and values


def test_pooled_heads_are_the_averages_of_their_groups() -> None:
    weight = torch.randn(6 * 4, 5, dtype=torch.float64)
    pooled = V.pool_heads(weight, n_heads=6, n_kv_heads=2)
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    all_heads, few = A.split_heads(x @ weight.T, 6), A.split_heads(x @ pooled.T, 2)
    for g in range(2):
        assert close(few[:, g], sum(all_heads[:, 3 * g + i] for i in range(3)) / 3)
    assert torch.equal(V.pool_heads(weight, n_heads=6, n_kv_heads=6), weight)
    assert close(
        V.pool_heads(weight[:, 0], n_heads=6, n_kv_heads=3), V.pool_heads(weight, n_heads=6, n_kv_heads=3)[:, 0]
    )


def test_pooling_equal_heads_changes_no_output() -> None:
    torch.manual_seed(0)
    head, x = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    weight = head.repeat_interleave(2, dim=0).flatten(0, 1)  # heads 0 and 1 are equal, as are 2 and 3, 4 and 5
    q, full = torch.randn(2, 6, 7, 4, dtype=torch.float64), A.split_heads(x @ weight.T, 6)
    few = A.split_heads(x @ V.pool_heads(weight, n_heads=6, n_kv_heads=3).T, 3)
    assert close(A.attention(q, few, few), A.attention(q, full, full))


@pytest.mark.parametrize("share", [1, 2, 3, 10])
def test_sources_of_layers_are_the_first_of_their_group(share: int) -> None:
    sources = V.cross_layer_sources(9, share=share)
    assert all(0 <= layer - source < share and source % share == 0 for layer, source in enumerate(sources))
    assert len(set(sources)) == math.ceil(9 / share)


# --- latent attention


def latent(*, low_rank_queries: bool, dtype: torch.dtype = torch.float64) -> V.LatentWeights:
    """Return random weights with sizes that are all different, large enough that the scores matter."""
    generator = torch.Generator().manual_seed(3)
    D, H, R, Rq, Dn, Dr, Dv = 11, 3, 5, 7, 6, 4, 2

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    return V.LatentWeights(
        n_heads=H,
        d_rope=Dr,
        kv_down=draw(R + Dr, D),
        kv_norm=draw(R),
        kv_up=draw(H * (Dn + Dv), R),
        out=draw(D, H * Dv),
        q_up=draw(H * (Dn + Dr), Rq if low_rank_queries else D),
        q_down=draw(Rq, D) if low_rank_queries else None,
        q_norm=draw(Rq) if low_rank_queries else None,
    )


def angles(start: int, stop: int, d_rope: int = 4) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the positions from ``start`` to ``stop``."""
    return rope_cos_sin(torch.arange(start, stop), rope_frequencies(d_rope), dtype=torch.float64)


both_queries = pytest.mark.parametrize("low_rank_queries", [True, False])


@both_queries
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_absorbed_latent_attention_is_the_one_with_keys_and_values(
    low_rank_queries: bool, interleaved: bool, scale: float | None
) -> None:
    torch.manual_seed(0)
    w, x = latent(low_rank_queries=low_rank_queries), torch.randn(2, 9, 11, dtype=torch.float64)
    cos, sin = angles(0, 9)
    mask = A.causal_mask(9) & A.padding_mask(torch.tensor([9, 6]), 9)
    cache = V.latent_cache(x, w, cos, sin, interleaved=interleaved)
    plain, absorbed = (
        f(x, cache, w, cos, sin, mask=mask, scale=scale, interleaved=interleaved)
        for f in (V.latent_attention, V.latent_attention_absorbed)
    )
    assert plain.shape == x.shape
    assert close(plain, absorbed, 1e-11)


@both_queries
def test_gradients_of_both_forms_agree(low_rank_queries: bool) -> None:
    torch.manual_seed(0)
    w, x = latent(low_rank_queries=low_rank_queries), torch.randn(2, 5, 11, dtype=torch.float64)
    names = [name for name, value in vars(w).items() if isinstance(value, Tensor)]

    def run(form: Any, x: Tensor, *values: Tensor) -> Tensor:
        weights = replace(w, **dict(zip(names, values, strict=True)))
        return form(x, V.latent_cache(x, weights, *angles(0, 5)), weights, *angles(0, 5), mask=A.causal_mask(5))

    inputs = (x, *(getattr(w, name) for name in names))
    plain, absorbed = (
        gradients(lambda *values, f=f: run(f, *values), *inputs)
        for f in (V.latent_attention, V.latent_attention_absorbed)
    )
    assert finite_and_close(plain, absorbed)
    assert all((grad != 0).any() for grad in plain)


@pytest.mark.parametrize("form", [V.latent_attention, V.latent_attention_absorbed])
def test_a_cache_of_latent_vectors_gives_what_the_whole_sequence_gives(form: Any) -> None:
    torch.manual_seed(0)
    w, x = latent(low_rank_queries=True), torch.randn(2, 8, 11, dtype=torch.float64)
    whole = form(x, V.latent_cache(x, w, *angles(0, 8)), w, *angles(0, 8), mask=A.causal_mask(8))
    cache = V.latent_cache(x[:, :5], w, *angles(0, 5))
    for t in range(5, 8):
        new = V.latent_cache(x[:, t : t + 1], w, *angles(t, t + 1))
        cache = V.LatentCache(torch.cat([cache.latent, new.latent], 1), torch.cat([cache.k_rope, new.k_rope], 1))
        assert close(form(x[:, t : t + 1], cache, w, *angles(t, t + 1)), whole[:, t : t + 1])
    assert sum(part.shape[-1] for part in vars(cache).values()) == 5 + 4  # numbers per token


@pytest.mark.parametrize("form", [V.latent_attention, V.latent_attention_absorbed])
@pytest.mark.parametrize("interleaved", [True, False])
def test_latent_attention_sees_only_differences_of_positions(form: Any, interleaved: bool) -> None:
    w, x = latent(low_rank_queries=False), torch.randn(1, 6, 11, dtype=torch.float64)
    here, there, scrambled = angles(0, 6), angles(100, 106), angles(5, 11)
    outputs = [
        form(x, V.latent_cache(x, w, *a, interleaved=interleaved), w, *b, interleaved=interleaved)
        for a, b in ((here, here), (there, there), (here, scrambled))
    ]
    assert close(outputs[0], outputs[1], 1e-6)  # frequencies are float32
    assert not close(outputs[0], outputs[2], 1e-3)


def test_latent_attention_is_attention_with_low_rank_projections() -> None:
    torch.manual_seed(0)
    w, x = latent(low_rank_queries=False), torch.randn(2, 6, 11, dtype=torch.float64)
    still = angles(0, 1)  # no rotation: everything is then one projection of c and of x
    cache = V.latent_cache(x, w, *still)
    k_up, v_up = w.key_and_value_up
    rotated_key = cache.k_rope[:, None].expand(2, 3, 6, 4)
    k = torch.cat([A.split_heads(cache.latent @ k_up.flatten(0, 1).T, 3), rotated_key], -1)
    v = A.split_heads(cache.latent @ v_up.flatten(0, 1).T, 3)
    q = A.split_heads(x @ w.q_up.T, 3)
    expected = A.merge_heads(A.attention_reference(q, k, v)) @ w.out.T
    assert close(V.latent_attention(x, cache, w, *still), expected)


def test_costs_of_both_forms_are_what_torch_counts() -> None:
    w = latent(low_rank_queries=True)
    B, T, S, D, H, R, Rq, Dn, Dr, Dv = 2, 3, 8, 11, 3, 5, 7, 6, 4, 2
    x, cache = zeros(B, T, D).double(), V.LatentCache(zeros(B, S, R).double(), zeros(B, S, Dr).double())
    projections = 2 * B * T * (D * Rq + Rq * H * (Dn + Dr) + H * Dv * D)
    for form, cost in (
        (V.latent_attention, 2 * B * H * T * S * (Dn + Dr + Dv) + 2 * B * H * S * R * (Dn + Dv)),
        (V.latent_attention_absorbed, 2 * B * H * T * S * (2 * R + Dr) + 2 * B * H * T * R * (Dn + Dv)),
    ):
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr(V, "attention", A.attention_reference)  # the counter does not know every fused kernel
            form(x, cache, w, *angles(0, T))
        assert counter.get_total_flops() == projections + cost


# --- a window, in blocks


@given(case=cases(square=True), window=st.integers(1, 9))
@law
def test_window_in_blocks_is_attention_with_the_mask(case: Case, window: int) -> None:
    mask = A.sliding_window_mask(case.q.shape[2], window=window)
    ours, theirs = (
        gradients(f, case.q, case.k, case.v)
        for f in (
            lambda *x: V.sliding_window_attention(*x, window=window, scale=case.scale),
            lambda *x: A.attention_reference(*x, mask=mask, scale=case.scale),
        )
    )
    assert finite_and_close(ours, theirs)
    out = V.sliding_window_attention(case.q, case.k, case.v, window=window, scale=case.scale)
    assert close(out, A.attention_reference(case.q, case.k, case.v, mask=mask, scale=case.scale))


def test_the_cost_of_a_window_grows_with_the_length_only() -> None:
    B, H, W, Dk, Dv = 1, 2, 8, 4, 6
    for T in (32, 64):
        q, v = zeros(B, H, T, Dk), zeros(B, H, T, Dv)
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr(V, "attention", A.attention_reference)
            V.sliding_window_attention(q, q, v, window=W)
        assert counter.get_total_flops() == 4 * B * H * T * W * (Dk + Dv)


# --- gates and differences


@given(case=cases())
@law
def test_a_gate_multiplies_the_output_before_the_heads_are_mixed(case: Case) -> None:
    out = A.attention_reference(case.q, case.k, case.v, mask=case.mask, scale=case.scale)
    gate = torch.linspace(-3, 4, out.numel(), dtype=torch.float64).reshape(out.shape)
    for g in (gate, gate[..., :1]):
        gated = V.gated_attention(case.q, case.k, case.v, g, mask=case.mask, scale=case.scale)
        assert close(gated, out / (1 + (-g).exp()))


@given(case=cases(), lam=st.sampled_from([0.0, 0.3, 1.0]))
@law
def test_difference_is_attention_with_the_difference_of_the_weights(case: Case, lam: float) -> None:
    q2, k2 = case.q.flip(2), case.k.flip(2)
    first = A.attention_weights(case.q, case.k, mask=case.mask, scale=case.scale)
    second = A.attention_weights(q2, k2, mask=case.mask, scale=case.scale)
    v = case.v.repeat_interleave(case.q.shape[1] // case.v.shape[1], dim=1)
    out = V.differential_attention(case.q, case.k, q2, k2, case.v, lam, mask=case.mask, scale=case.scale)
    assert close(out, (first - lam * second) @ v)
    by_head = torch.full((case.q.shape[1], 1, 1), lam, dtype=torch.float64)
    assert close(
        V.differential_attention(case.q, case.k, q2, k2, case.v, by_head, mask=case.mask, scale=case.scale), out
    )


def test_lambda_starts_at_its_initial_value_and_moves_with_the_vectors() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert V.differential_lambda(a, b, a, b, initial=0.35).item() == pytest.approx(0.35)
    value = V.differential_lambda(a, a, a, b, initial=0.2).item()
    assert value == pytest.approx(math.exp(5.0) - math.exp(-1.5) + 0.2)
    starts = [V.differential_lambda_initial(layer) for layer in range(40)]
    assert starts[0] == pytest.approx(0.2)
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(0.8, abs=1e-4)


def test_head_norm_fixes_the_size_of_each_head_alone() -> None:
    x = (
        torch.randn(2, 3, 4, 8, dtype=torch.float64)
        * torch.tensor([1e-1, 1.0, 1e3], dtype=torch.float64)[:, None, None]
    )
    y = V.differential_head_norm(x, initial=0.2, eps=0.0)
    assert close(y.square().mean(-1).sqrt(), torch.full((2, 3, 4), 0.8, dtype=torch.float64), 1e-6)
    weight = torch.linspace(1, 2, 8, dtype=torch.float64)
    assert close(V.differential_head_norm(x, initial=0.2, eps=0.0, weight=weight), y * weight)
    assert V.differential_head_norm(torch.ones(1, 1, 1, 2), initial=0.0, eps=3.0)[0, 0, 0, 0].item() == 0.5


def bad_latent(**changes: Any) -> V.LatentWeights:
    return replace(latent(low_rank_queries=True), **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: V.pool_heads(zeros(8, 3), n_heads=4, n_kv_heads=3), "n_kv_heads = 3 does not divide n_heads = 4"),
        (lambda: V.pool_heads(zeros(9, 3), n_heads=4, n_kv_heads=2), "n_heads = 4 does not divide rows of weight = 9"),
        (lambda: V.cross_layer_sources(4, share=0), "share is 0, expected at least 1"),
        (lambda: V.cross_layer_sources(-1, share=2), "n_layers is -1"),
        (lambda: bad_latent(kv_down=zeros(8, 11)), r"rows of kv_down is 8, R \+ d_rope is 9"),
        (lambda: bad_latent(kv_up=zeros(23, 5)), r"shape of kv_up is \(23, 5\).*\(24, 5\)"),
        (lambda: bad_latent(q_norm=None), "only one of q_down and q_norm"),
        (lambda: bad_latent(q_down=zeros(8, 11)), "columns of q_up is 7, .* is 8"),
        (lambda: bad_latent(n_heads=4), "n_heads = 4 does not divide rows of q_up = 30"),
        (lambda: bad_latent(n_heads=0), "n_heads is 0"),
        (lambda: V.latent_cache(zeros(2, 3, 10).double(), bad_latent(), *angles(0, 3)), "width of x is 10, .* is 11"),
        (lambda: V.latent_cache(zeros(3, 11).double(), bad_latent(), *angles(0, 3)), r"x has shape \(3, 11\)"),
        (lambda: V.latent_cache(zeros(2, 3, 11).double(), bad_latent(), *angles(0, 3, 6)), "width of x is 4"),
        (lambda: V.sliding_window_attention(*[zeros(1, 1, 3, 2)] * 3, window=0), "window is 0"),
        (lambda: V.sliding_window_attention(*[zeros(1, 1, 3, 2)] * 2, zeros(1, 1, 2, 2), window=2), "length of v is 2"),
        (lambda: V.gated_attention(*[zeros(1, 2, 3, 4)] * 3, zeros(1, 2, 3, 5)), r"gate has shape \(1, 2, 3, 5\)"),
        (lambda: V.differential_attention(*[zeros(1, 2, 3, 4)] * 2, *[zeros(1, 2, 2, 4)] * 3, 0.1), "shape of q2"),
        (lambda: V.differential_lambda_initial(-1), "layer is -1"),
    ],
)  # fmt: skip
def test_bad_arguments_of_variants_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_variants_keep_bfloat16_and_come_near() -> None:
    torch.manual_seed(0)
    w, x = latent(low_rank_queries=True, dtype=torch.bfloat16), torch.randn(2, 9, 11).bfloat16()
    cos, sin = rope_cos_sin(torch.arange(9), rope_frequencies(4))
    exact_w = replace(w, **{name: value.double() for name, value in vars(w).items() if isinstance(value, Tensor)})
    cache = V.latent_cache(x, w, cos, sin)
    exact = V.latent_attention(x.double(), V.latent_cache(x.double(), exact_w, cos, sin), exact_w, cos, sin)
    for form in (V.latent_attention, V.latent_attention_absorbed):
        out = form(x, cache, w, cos, sin)
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).abs().max() <= 2**-4 * exact.abs().max()
