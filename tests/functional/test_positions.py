"""The laws of position encodings, on random cases in float64, and second formulas where no library is left to ask."""

import cmath
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import positions as P
from llm_study.functional.attention import biased_attention_reference, causal_mask, masked_softmax

law = settings(max_examples=60, derandomize=True, deadline=None)
both_pairings = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Case:
    """Queries, keys, and where they stand."""

    q: Tensor
    k: Tensor
    frequencies: Tensor
    q_positions: Tensor
    k_positions: Tensor

    def __repr__(self) -> str:
        where = f"positions {self.q_positions.tolist()} and {self.k_positions.tolist()}"
        return f"Case(q {self.q.shape}, k {self.k.shape}, {where}, frequencies {self.frequencies.tolist()})"

    def rotated(self, shift: int = 0, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """Return queries and keys, rotated at their positions plus a shift."""
        both = ((self.q, self.q_positions), (self.k, self.k_positions))
        tables = [P.rope_cos_sin(m + shift, self.frequencies, dtype=torch.float64) for _, m in both]
        q, k = (P.apply_rope(x, *table, interleaved=interleaved) for (x, _), table in zip(both, tables, strict=True))
        return q, k


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw shapes, positions in any order, and frequencies of any sign."""
    B, H, T, S, half = (draw(st.integers(1, 4)) for _ in range(5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    q, k = (torch.randn(B, H, n, 2 * half, dtype=torch.float64, generator=generator) for n in (T, S))
    frequencies = torch.randn(half, dtype=torch.float64, generator=generator)
    where = [torch.randint(0, 100, (n,), generator=generator) for n in (T, S)]
    return Case(q, k, frequencies, *where)


# --- sinusoidal


@given(seed=st.integers(0, 10**6), half=st.integers(1, 8), base=st.sampled_from([10.0, 1e4, 5e5]))
@law
def test_sinusoidal_is_its_definition(seed: int, half: int, base: float) -> None:
    positions = torch.randint(0, 10**5, (5,), generator=torch.Generator().manual_seed(seed))
    rows = P.sinusoidal(positions, 2 * half, base=base)
    assert rows.dtype == torch.float32
    for m, row in zip(positions.tolist(), rows.tolist(), strict=True):
        angles = [m / base ** (2 * i / (2 * half)) for i in range(half)]
        expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
        assert row == pytest.approx(expected, abs=1e-6)


def test_sinusoidal_turns_into_a_later_position_by_one_rotation() -> None:
    m, shift = torch.arange(50), 7
    here, there = (P.sinusoidal(m + d, 16).double().reshape(50, 8, 2) for d in (0, shift))
    angles = shift * 10000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
    s, c = here.unbind(-1)
    turned = torch.stack([s * angles.cos() + c * angles.sin(), c * angles.cos() - s * angles.sin()], dim=-1)
    assert close(turned, there, 1e-6)


# --- RoPE


def by_complex_numbers(x: list[float], m: int, frequencies: list[float], interleaved: bool) -> list[float]:
    """Second formula: one pair of features at a time, by Python's complex numbers."""
    half, out = len(frequencies), list(x)
    for i, theta in enumerate(frequencies):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        z = complex(x[a], x[b]) * cmath.exp(1j * m * theta)
        out[a], out[b] = z.real, z.imag
    return out


@both_pairings
@given(case=cases())
@law
def test_rope_is_its_definition(interleaved: bool, case: Case) -> None:
    q, _ = case.rotated(interleaved=interleaved)
    expected = torch.tensor(
        [
            [
                [
                    by_complex_numbers(x, m, case.frequencies.tolist(), interleaved)
                    for x, m in zip(head, case.q_positions.tolist(), strict=True)
                ]
                for head in row
            ]
            for row in case.q.tolist()
        ],
        dtype=torch.float64,
    )
    assert close(q, expected)
    assert close(P.rope_reference(case.q, case.q_positions, case.frequencies, interleaved=interleaved), expected)


@both_pairings
@given(case=cases(), shift=st.integers(-200, 200))
@law
def test_scores_depend_on_the_difference_of_positions_only(interleaved: bool, case: Case, shift: int) -> None:
    q, k = case.rotated(interleaved=interleaved)
    moved_q, moved_k = case.rotated(shift, interleaved=interleaved)
    assert close(q @ k.mT, moved_q @ moved_k.mT)


@both_pairings
@given(case=cases())
@law
def test_rotation_keeps_norms_and_inner_products_of_one_position(interleaved: bool, case: Case) -> None:
    tables = P.rope_cos_sin(torch.tensor([17]), case.frequencies, dtype=torch.float64)
    q, k = (P.apply_rope(x, *tables, interleaved=interleaved) for x in (case.q, case.k))
    assert close(q.norm(dim=-1), case.q.norm(dim=-1))
    assert close(q @ k.mT, case.q @ case.k.mT)


@both_pairings
@given(case=cases(), m=st.integers(0, 50), n=st.integers(0, 50))
@law
def test_rotations_add_up_and_undo(interleaved: bool, case: Case, m: int, n: int) -> None:
    def at(x: Tensor, position: int) -> Tensor:
        tables = P.rope_cos_sin(torch.tensor([position]), case.frequencies, dtype=torch.float64)
        return P.apply_rope(x, *tables, interleaved=interleaved)

    assert close(at(at(case.q, m), n), at(case.q, m + n))
    assert close(at(at(case.q, m), -m), case.q)
    assert torch.equal(at(case.q, 0), case.q)


@given(case=cases())
@law
def test_the_permutation_carries_one_pairing_into_the_other(case: Case) -> None:
    order = P.rope_permutation(case.q.shape[-1])
    tables = P.rope_cos_sin(case.q_positions, case.frequencies, dtype=torch.float64)
    interleaved = P.apply_rope(case.q, *tables, interleaved=True)
    assert torch.equal(P.apply_rope(case.q[..., order], *tables), interleaved[..., order])
    assert torch.equal(P.apply_rope(case.q[..., order], *tables)[..., order.argsort()], interleaved)


def test_the_permutation_of_weights_is_that_of_the_conversion_script() -> None:
    weight = torch.randn(3 * 8, 5)  # three heads of width 8: cut into pairs, transpose
    theirs = weight.reshape(3, 4, 2, 5).transpose(1, 2).reshape(24, 5)
    ours = weight.reshape(3, 8, 5)[:, P.rope_permutation(8)].reshape(24, 5)
    assert torch.equal(ours, theirs)


@both_pairings
def test_the_direction_is_counterclockwise(interleaved: bool) -> None:
    tables = P.rope_cos_sin(torch.tensor([1]), torch.tensor([math.pi / 2]))
    turned = P.apply_rope(torch.tensor([[[[1.0, 0.0]]]]), *tables, interleaved=interleaved)
    assert close(turned.flatten(), torch.tensor([0.0, 1.0]), 1e-6)


def test_positions_of_a_batch_are_those_of_each_sequence() -> None:
    torch.manual_seed(0)
    x, positions, frequencies = torch.randn(2, 3, 5, 8), torch.randint(0, 99, (2, 5)), P.rope_frequencies(8)
    batch = P.apply_rope(x, *(table[:, None] for table in P.rope_cos_sin(positions, frequencies)))
    for b in range(2):
        alone = P.apply_rope(x[b : b + 1], *P.rope_cos_sin(positions[b], frequencies))
        assert torch.equal(batch[b : b + 1], alone)
    assert close(P.rope_reference(x, positions[:, None], frequencies), batch, 1e-5)


def test_gradcheck_of_the_rotation() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    tables = P.rope_cos_sin(torch.arange(3), P.rope_frequencies(4), dtype=torch.float64)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(lambda x, i=interleaved: P.apply_rope(x, *tables, interleaved=i), x)


def test_angles_are_not_rounded_to_bfloat16() -> None:
    cos, sin = P.rope_cos_sin(torch.tensor([256, 257]), torch.tensor([1.0]), dtype=torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    assert cos.flatten().tolist() == pytest.approx([math.cos(256), math.cos(257)], abs=4e-3)
    assert sin.flatten().tolist() == pytest.approx([math.sin(256), math.sin(257)], abs=4e-3)


def test_bfloat16_comes_out_whatever_the_tables() -> None:
    x = torch.randn(1, 1, 4, 8).bfloat16()
    tables = P.rope_cos_sin(torch.arange(4), P.rope_frequencies(8))
    out = P.apply_rope(x, *tables)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, P.apply_rope(x.float(), *tables).bfloat16())  # rounded once, at the end


def test_llama3_keeps_what_is_fast_and_stretches_what_is_slow() -> None:
    turns = torch.tensor([40.0, 4.0, 2.5, 1.0, 0.1])
    theta = 2 * math.pi * turns / 1000
    new = P.llama3_frequencies(
        theta, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1000
    )
    assert (new / theta).tolist() == pytest.approx([1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8], rel=1e-5)


# --- xPos and M-RoPE


@given(case=cases(), shift=st.integers(-200, 200), scale_base=st.sampled_from([8.0, 512.0]))
@law
def test_xpos_scores_depend_on_the_difference_and_shrink_with_it(case: Case, shift: int, scale_base: float) -> None:
    def scores(shift: int) -> Tensor:
        def turned(x: Tensor, positions: Tensor, sign: int) -> Tensor:
            cos, sin = P.rope_cos_sin(positions + shift, case.frequencies, dtype=torch.float64)
            scales = P.xpos_scales(positions + shift, x.shape[-1], scale_base=scale_base).double() ** sign
            return P.apply_rope(x, cos * scales, sin * scales)

        return turned(case.q, case.q_positions, 1) @ turned(case.k, case.k_positions, -1).mT

    half = len(case.frequencies)
    zeta = [(i / half + 0.4) / 1.4 for i in range(half)]
    expected = torch.zeros_like(scores(0))
    for t, m in enumerate(case.q_positions.tolist()):
        for s, n in enumerate(case.k_positions.tolist()):
            for i, theta in enumerate(case.frequencies.tolist()):
                a, b = (torch.complex(x[..., i], x[..., i + half]) for x in (case.q[:, :, t], case.k[:, :, s]))
                turn = cmath.exp(1j * (m - n) * theta)
                expected[:, :, t, s] += zeta[i] ** ((m - n) / scale_base) * (turn * a * b.conj()).real
    assert torch.allclose(scores(0), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert torch.allclose(scores(shift), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_xpos_at_position_zero_scales_nothing() -> None:
    assert torch.equal(P.xpos_scales(torch.zeros(3), 8), torch.ones(3, 4))
    assert (P.xpos_scales(torch.tensor([1]), 8) < 1).all()


def test_mrope_of_text_is_rope() -> None:
    positions, frequencies = torch.randint(0, 99, (2, 5)), P.rope_frequencies(16)
    ours = P.mrope_cos_sin(positions.expand(3, 2, 5), frequencies, [2, 3, 3])
    assert all(torch.equal(a, b) for a, b in zip(ours, P.rope_cos_sin(positions, frequencies), strict=True))


def test_mrope_turns_each_section_by_its_own_axis() -> None:
    frequencies, positions = P.rope_frequencies(16), torch.tensor([[3], [5], [7]])
    cos, sin = P.mrope_cos_sin(positions, frequencies, [2, 3, 3])
    angles = torch.tensor([3, 3, 5, 5, 5, 7, 7, 7]) * frequencies
    assert torch.equal(cos[0], angles.cos())
    assert torch.equal(sin[0], angles.sin())


# --- ALiBi and T5


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16, 64])
def test_slopes_of_a_power_of_two_are_geometric(n_heads: int) -> None:
    slopes = P.alibi_slopes(n_heads)
    assert slopes[-1].item() == 2.0**-8
    assert torch.allclose(slopes[1:] / slopes[:-1], torch.full((n_heads - 1,), 2 ** (-8 / n_heads)))
    assert slopes[0].item() == pytest.approx(2 ** (-8 / n_heads))


@pytest.mark.parametrize("n_heads", [3, 5, 6, 7, 12, 40])
def test_other_head_counts_take_between_the_slopes(n_heads: int) -> None:
    power = 2 ** math.floor(math.log2(n_heads))
    expected = [*P.alibi_slopes(power).tolist(), *P.alibi_slopes(2 * power).tolist()[::2][: n_heads - power]]
    assert P.alibi_slopes(n_heads).tolist() == expected
    assert len(set(expected)) == n_heads


def test_alibi_is_its_definition() -> None:
    bias, slopes = P.alibi_bias(6, 3, 5), P.alibi_slopes(6).tolist()
    expected = [[[-m * abs(i + 2 - j) for j in range(5)] for i in range(3)] for m in slopes]
    assert torch.allclose(bias, torch.tensor(expected))
    assert torch.equal(P.alibi_bias(6, 5)[:, -3:], bias)


def bucket(relative: int, bidirectional: bool, n_buckets: int, max_distance: int) -> int:
    """Second formula: compare with the edges of the buckets, in exact arithmetic of integers."""
    n = n_buckets // 2 if bidirectional else n_buckets
    distance = abs(relative) if bidirectional else max(0, -relative)
    e, start = n // 2, n if bidirectional and relative > 0 else 0
    if distance < e:
        return start + distance
    # distance >= e * (max / e) ** (j / (n - e)), raised to the power n - e
    larger = [j for j in range(n - e) if distance ** (n - e) * e**j >= e ** (n - e) * max_distance**j]
    return start + e + max(larger)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (64, 512), (12, 100)])
def test_buckets_are_their_definition(n_buckets: int, max_distance: int, bidirectional: bool) -> None:
    relative = list(range(-600, 601))
    ours = P.t5_buckets(
        torch.tensor(relative), bidirectional=bidirectional, n_buckets=n_buckets, max_distance=max_distance
    )
    assert ours.tolist() == [bucket(r, bidirectional, n_buckets, max_distance) for r in relative]
    assert ours.min() == 0
    assert ours.max() == n_buckets - 1


def test_t5_bias_looks_up_its_table() -> None:
    table = torch.randn(32, 3)
    bias = P.t5_bias(table, 4, 9)
    for i in range(4):
        for j in range(9):
            assert torch.equal(bias[:, i, j], table[bucket(j - (i + 5), True, 32, 128)])


# --- Shaw, Transformer-XL


@given(seed=st.integers(0, 2**32), c=st.integers(0, 4), T=st.integers(1, 5), more=st.integers(0, 3))
@law
def test_shaw_is_its_definition(seed: int, c: int, T: int, more: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    S, mask = T + more, causal_mask(T, T + more)
    q, k, v = normal(2, 3, T, 4), normal(2, 3, S, 4), normal(2, 3, S, 5)
    keys, values = normal(2 * c + 1, 4), normal(2 * c + 1, 5)
    scores, out = torch.zeros(2, 3, T, S, dtype=torch.float64), torch.zeros(2, 3, T, 5, dtype=torch.float64)
    for i in range(T):
        rows = [min(max(j - (i + more), -c), c) + c for j in range(S)]
        for j, row in enumerate(rows):
            scores[:, :, i, j] = (q[:, :, i] * (k[:, :, j] + keys[row])).sum(-1) / 2
        weights = masked_softmax(scores[:, :, i], mask[i])
        for j, row in enumerate(rows):
            out[:, :, i] += weights[..., j, None] * (v[:, :, j] + values[row])
    assert close(P.shaw_attention_reference(q, k, v, keys, values, mask=mask), out)
    weights = masked_softmax(q @ k.mT / 2 + P.shaw_bias(q, keys, S), mask)
    assert close(weights @ v + P.shaw_values(weights, values), out)
    key_side = P.shaw_attention_reference(q, k, v, keys, torch.zeros_like(values), mask=mask)
    assert close(biased_attention_reference(q, k, v, P.shaw_bias(q, keys, S), mask=mask), key_side)
    assert close(P.shaw_bias(q, keys, S, scale=3.0), 6 * P.shaw_bias(q, keys, S))


@given(seed=st.integers(0, 2**32), T=st.integers(1, 5), more=st.integers(0, 3), scale=st.sampled_from([None, 2.0]))
@law
def test_transformer_xl_is_its_four_terms(seed: int, T: int, more: int, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    H, S, D = 3, T + more, 8
    x = torch.randn(S, D, dtype=torch.float64, generator=generator)
    wq, wk, wr = torch.randn(3, H, D, 4, dtype=torch.float64, generator=generator)
    u, v = torch.randn(2, H, 4, dtype=torch.float64, generator=generator)
    q, k = (x[more:] @ wq)[None], (x @ wk)[None]
    r = P.sinusoidal(torch.arange(S - 1, -T, -1), D).double() @ wr
    expected = torch.zeros(1, H, T, S, dtype=torch.float64)
    for i in range(T):
        for j in range(S):
            wave = P.sinusoidal(torch.tensor([i + more - j]), D).double()[0]
            for h in range(H):
                query, key = x[i + more] @ wq[h], x[j] @ wk[h]
                expected[0, h, i, j] = query @ key + query @ (wave @ wr[h]) + u[h] @ key + v[h] @ (wave @ wr[h])
    s = 4**-0.5 if scale is None else scale
    for bias in (P.transformer_xl_bias, P.transformer_xl_bias_reference):
        assert close(s * q @ k.mT + bias(q, k, r, u, v, scale=scale), s * expected)


@given(T=st.integers(1, 6), more=st.integers(0, 4))
@law
def test_relative_shift_puts_each_distance_in_its_place(T: int, more: int) -> None:
    S = T + more
    distances = torch.arange(S - 1, -T, -1).expand(2, T, -1)
    expected = torch.arange(more, S)[:, None] - torch.arange(S)
    assert torch.equal(P.relative_shift(distances), expected.expand(2, T, S))


# --- FIRE, CoPE


@given(T=st.integers(1, 6), more=st.integers(0, 4), c=st.floats(0.01, 10), threshold=st.floats(0.5, 20))
@law
def test_fire_is_its_definition(T: int, more: int, c: float, threshold: float) -> None:
    ours = P.fire_distances(T, T + more, c=c, threshold=threshold)
    for i in range(T):
        for j in range(T + more):
            own = i + more
            expected = math.log(c * max(own - j, 0) + 1) / math.log(c * max(threshold, own) + 1)
            assert ours[i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (ours >= 0).all()
    assert (ours <= 1 + 1e-6).all()


def test_fire_learns_its_two_numbers() -> None:
    c, threshold = (torch.tensor(x, requires_grad=True) for x in (0.5, 7.0))
    P.fire_distances(9, c=c, threshold=threshold).sum().backward()
    assert c.grad is not None
    assert threshold.grad is not None
    assert c.grad.abs() > 0
    assert threshold.grad.abs() > 0


@given(seed=st.integers(0, 2**32), T=st.integers(1, 5), P_=st.integers(1, 4))
@law
def test_cope_is_its_definition(seed: int, T: int, P_: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 3, T, T, dtype=torch.float64, generator=generator)
    q, table = (torch.randn(*n, 4, dtype=torch.float64, generator=generator) for n in ((2, 3, T), (P_,)))
    positions = P.cope_positions(scores, mask=causal_mask(T))
    for i in range(T):
        for j in range(T):
            expected = torch.sigmoid(scores[:, :, i, j : i + 1]).sum(-1)  # nothing is counted after the query
            assert close(positions[:, :, i, j], expected)
            for b, h in ((b, h) for b in range(2) for h in range(3)):
                p = min(positions[b, h, i, j].item(), P_ - 1)
                low = math.floor(p)
                vector = (1 - p + low) * table[low] + (p - low) * table[min(low + 1, P_ - 1)]
                for bias in (P.cope_bias, P.cope_bias_reference):
                    assert bias(q, positions, table)[b, h, i, j].item() == pytest.approx((q[b, h, i] @ vector).item())


def test_cope_with_open_gates_counts_tokens() -> None:
    positions = P.cope_positions(torch.full((4, 4), 50.0), mask=causal_mask(4))
    distance = torch.arange(4)[:, None] - torch.arange(4)
    assert close(positions, (distance + 1).clamp(min=0).float(), 1e-6)


# --- bad input: each message holds both numbers


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


COS = zeros(5, 4)
BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "matrix of positions": (lambda: P.sinusoidal(zeros(2, 3), 4), r"positions has shape \(2, 3\), expected 1 dim"),
    "odd model": (lambda: P.sinusoidal(zeros(2), 5), "2 does not divide d_model = 5"),
    "odd head": (lambda: P.rope_frequencies(7), "2 does not divide d_head = 7"),
    "no head": (lambda: P.rope_frequencies(0), "d_head is 0, expected at least 2"),
    "odd permutation": (lambda: P.rope_permutation(3), "2 does not divide d_head = 3"),
    "factor": (lambda: P.linear_frequencies(zeros(2), factor=0.0), "factor is 0.0, expected more than 0"),
    "table of frequencies": (lambda: P.rope_cos_sin(zeros(2), zeros(2, 2)), r"frequencies has shape \(2, 2\)"),
    "width": (lambda: P.apply_rope(zeros(1, 2, 5, 6), COS, COS), "width of x is 6, twice the width of cos is 8"),
    "batch": (
        lambda: P.apply_rope(zeros(2, 3, 5, 8), zeros(2, 5, 4), zeros(2, 5, 4)),
        r"cos has shape \(2, 5, 4\).*\(2, 3, 5, 4\).*cos\[:, None\]",
    ),
    "sines": (lambda: P.apply_rope(zeros(2, 3, 5, 8), COS, zeros(6, 4)), r"sin has shape \(6, 4\)"),
    "reference": (lambda: P.rope_reference(zeros(1, 1, 1, 6), zeros(1), zeros(4)), "width of x is 6, .* is 8"),
    "scale base": (lambda: P.xpos_scales(zeros(2), 4, scale_base=-1.0), "scale_base is -1.0"),
    "axes": (lambda: P.mrope_cos_sin(zeros(2, 5), zeros(8), [2, 3, 3]), "sections is 3, .* axes.* is 2"),
    "sections": (lambda: P.mrope_cos_sin(zeros(3, 5), zeros(8), [2, 3, 2]), "sum of sections is 7, .* is 8"),
    "no heads": (lambda: P.alibi_slopes(0), "n_heads is 0, expected at least 1"),
    "fewer keys": (lambda: P.alibi_bias(2, 5, 3), "s is 3, expected at least 5.*t = 5"),
    "buckets": (lambda: P.t5_buckets(zeros(2), n_buckets=6), "4 does not divide n_buckets = 6"),
    "near": (lambda: P.t5_buckets(zeros(2), max_distance=8), "max_distance is 8, expected at least 9.*below 8"),
    "table of numbers": (lambda: P.t5_bias(zeros(32), 3), r"table has shape \(32,\), expected 2 dimensions"),
    "even table": (lambda: P.shaw_bias(zeros(1, 1, 3, 2), zeros(4, 2)), "table has 4 rows, expected an odd number"),
    "even values": (lambda: P.shaw_values(zeros(1, 1, 3, 3), zeros(4, 2)), "table has 4 rows, expected an odd number"),
    "width of table": (lambda: P.shaw_bias(zeros(1, 1, 3, 2), zeros(3, 5)), "width of table is 5, width of q is 2"),
    "distances": (
        lambda: P.transformer_xl_bias(zeros(1, 2, 3, 4), zeros(1, 2, 5, 4), zeros(2, 5, 4), zeros(2, 4), zeros(2, 4)),
        r"rows of r is 5, number of distances T \+ S - 1 is 7",
    ),
    "columns": (lambda: P.relative_shift(zeros(4, 3)), "columns is 3, expected at least 4"),
    "c": (lambda: P.fire_distances(3, c=0.0, threshold=1.0), "c is 0.0, expected more than 0"),
    "threshold": (lambda: P.fire_distances(3, c=1.0, threshold=torch.tensor(-2.0)), "threshold is -2.0"),
    "mask of numbers": (lambda: P.cope_positions(zeros(2, 2), mask=zeros(2, 2)), "mask has dtype torch.float32"),
    "mask": (lambda: P.cope_positions(zeros(2, 2), mask=zeros(3, 2).bool()), r"mask has shape \(3, 2\).*\(2, 2\)"),
    "width of vectors": (lambda: P.cope_bias(zeros(1, 1, 1, 4), zeros(1, 1, 1, 1), zeros(3, 5)), "is 5, .* q is 4"),
    "factors of Llama 3": (
        lambda: P.llama3_frequencies(
            zeros(2), factor=2.0, low_freq_factor=4.0, high_freq_factor=1.0, original_max_position_embeddings=9
        ),
        "high_freq_factor is 1.0, low_freq_factor is 4.0",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "made",
    [
        lambda: P.rope_frequencies(4, device="meta"),
        lambda: P.rope_permutation(4, device="meta"),
        lambda: P.alibi_bias(2, 3, device="meta"),
        lambda: P.fire_distances(3, c=1.0, threshold=1.0, device="meta"),
    ],
)
def test_tensors_are_made_on_the_device(made: Any) -> None:
    assert made().device.type == "meta"
