"""Laws of the filters and penalties, the draws against their distributions, and what is refused.

A draw is compared with its distribution by Pearson's χ² at a significance of 0.001, with fixed seeds: the tests pass or
fail always, and a wrong distribution fails.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import sampling as S

law = settings(max_examples=60, derandomize=True, deadline=None)
Filter = Callable[[Tensor, float], Tensor]
MASS: dict[str, Filter] = {"top-p": S.top_p_filter, "typical": S.typical_filter}
THRESHOLD: dict[str, Filter] = {
    "min-p": S.min_p_filter,
    "epsilon": S.epsilon_filter,
    "eta": S.eta_filter,
    "n-sigma": lambda z, p: S.top_n_sigma_filter(z, 3 * p),
    "mirostat": lambda z, p: S.mirostat_filter(z, torch.full(z.shape[:-1], 5 * p, dtype=z.dtype)),
    "plausible": S.plausible_filter,
    "top-k": lambda z, p: S.top_k_filter(z, math.ceil(p * 7)),
}
FILTERS = {**MASS, **THRESHOLD}
every_filter = pytest.mark.parametrize("name", FILTERS)


@dataclass(frozen=True)
class Case:
    """Logits and the parameter of a filter."""

    logits: Tensor
    p: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw logits of different sharpness, some of them forbidden, never a whole row."""
    B, V = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = draw(st.sampled_from([0.1, 1.0, 3.0, 15.0])) * torch.randn(B, V, generator=generator, dtype=torch.float64)
    forbidden = torch.rand(B, V, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    forbidden[torch.arange(B), torch.randint(V, (B,), generator=generator)] = False
    return Case(logits.masked_fill(forbidden, -math.inf), draw(st.floats(0.01, 0.99)))


def kept(logits: Tensor) -> Tensor:
    """Return where tokens are allowed."""
    return logits != -math.inf


# --- laws of filters


@every_filter
@given(case=cases())
@law
def test_a_filter_only_forbids(name: str, case: Case) -> None:
    out = FILTERS[name](case.logits, case.p)
    source = case.logits.log_softmax(-1) if name == "plausible" else case.logits
    assert bool((kept(source) >= kept(out)).all())
    assert torch.equal(out[kept(out)], source[kept(out)])
    assert bool(kept(out).any(-1).all())


@every_filter
@given(case=cases())
@law
def test_what_is_kept_does_not_depend_on_a_constant(name: str, case: Case) -> None:
    expected = kept(FILTERS[name](case.logits, case.p))
    moved = case.logits + 4  # exact sums are not needed: near a threshold rounding may decide
    assert (kept(FILTERS[name](moved, case.p)) != expected).sum() == 0


@every_filter
@given(case=cases())
@law
def test_what_is_kept_is_permuted_with_the_vocabulary(name: str, case: Case) -> None:
    order = torch.randperm(case.logits.shape[-1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        kept(FILTERS[name](case.logits[:, order], case.p)), kept(FILTERS[name](case.logits, case.p))[:, order]
    )


@pytest.mark.parametrize("name", [*THRESHOLD, "top-p"])
@given(case=cases())
@law
def test_the_most_probable_token_stays_and_what_stays_is_a_top_set(name: str, case: Case) -> None:
    out = FILTERS[name](case.logits, case.p)
    assert torch.equal(out.argmax(-1), case.logits.argmax(-1))
    least = case.logits.masked_fill(~kept(out), math.inf).amin(-1, keepdim=True)
    assert not bool((kept(case.logits) & ~kept(out) & (case.logits > least)).any())


@pytest.mark.parametrize("name", ["top-k", "min-p", "plausible", "n-sigma"])
@given(case=cases())
@law
def test_idempotent_where_the_rule_looks_at_ratios(name: str, case: Case) -> None:
    once = FILTERS[name](case.logits, case.p)
    twice = FILTERS[name](once, case.p)
    if name == "n-sigma":  # the others are left alone, and the spread of what is left is smaller
        assert bool((kept(twice) <= kept(once)).all())
    else:
        assert torch.equal(kept(twice), kept(once))


def test_nucleus_of_a_nucleus_is_smaller() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    once = S.top_p_filter(logits, 0.6)
    assert kept(once).tolist() == [[True, True, False, False]]  # 0.4 + 0.3
    assert kept(S.top_p_filter(once, 0.55)).tolist() == [[True, False, False, False]]  # 0.4 / 0.7 = 0.571


@given(case=cases(), k=st.integers(1, 30))
@law
def test_top_k_and_top_p_do_not_commute_but_min_p_and_top_k_do(case: Case, k: int) -> None:
    def top(z: Tensor) -> Tensor:
        return S.top_k_filter(z, k)

    assert torch.equal(top(S.min_p_filter(case.logits, case.p)), S.min_p_filter(top(case.logits), case.p))
    p_then_k, k_then_p = top(S.top_p_filter(case.logits, case.p)), S.top_p_filter(top(case.logits), case.p)
    assert bool((kept(k_then_p) <= kept(p_then_k)).all())  # after top-k the mass counts for more


def test_top_k_and_top_p_in_both_orders() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept(S.top_p_filter(S.top_k_filter(logits, 2), 0.5)).sum() == 1  # 0.4 / 0.7 is enough
    assert kept(S.top_k_filter(S.top_p_filter(logits, 0.5), 2)).sum() == 2


@given(case=cases(), temperature=st.sampled_from([0.25, 0.5, 2.0, 4.0]))
@law
def test_only_top_k_and_top_n_sigma_ignore_temperature(case: Case, temperature: float) -> None:
    warm = S.temperature_scale(case.logits, temperature)
    assert torch.equal(kept(S.top_k_filter(warm, 3)), kept(S.top_k_filter(case.logits, 3)))
    assert torch.equal(kept(S.top_n_sigma_filter(warm, 1.0)), kept(S.top_n_sigma_filter(case.logits, 1.0)))


def test_min_p_depends_on_temperature() -> None:
    logits = torch.tensor([[3.0, 1.0]])
    assert kept(S.min_p_filter(logits, 0.2)).sum() == 1  # e^-2 = 0.135
    assert kept(S.min_p_filter(S.temperature_scale(logits, 2.0), 0.2)).sum() == 2  # e^-1 = 0.368


# --- the rules, written a second time


@pytest.mark.parametrize(("fast", "reference"), [(S.top_p_filter, S.top_p_filter_reference)])
@given(case=cases())
@law
def test_top_p_is_its_definition(fast: Filter, reference: Filter, case: Case) -> None:
    assert torch.equal(fast(case.logits, case.p), reference(case.logits, case.p))


@given(case=cases())
@law
def test_typical_is_its_definition(case: Case) -> None:
    p = case.logits.softmax(-1)
    distance = (-p.log() - torch.special.entr(p).sum(-1, keepdim=True)).abs()
    gaps = distance.sort(-1).values.diff(dim=-1)
    if not bool((gaps < 1e-9).any()):  # ties are kept by one and cut by the other
        assert torch.equal(S.typical_filter(case.logits, case.p), S.typical_filter_reference(case.logits, case.p))


@given(case=cases())
@law
def test_the_nucleus_is_the_smallest_set_with_the_mass(case: Case) -> None:
    p = case.logits.softmax(-1)
    for row, inside in zip(p, kept(S.top_p_filter(case.logits, case.p)), strict=True):
        n = int(inside.sum())
        largest = row.sort(descending=True).values
        assert row[inside].sum() >= case.p - 1e-12
        assert n == 1 or largest[: n - 1].sum() < case.p + 1e-12  # no set of n - 1 tokens is enough


@pytest.mark.parametrize("case", [[0.5, 0.25, 0.125, 0.125]])
def test_thresholds_by_hand(case: list[float]) -> None:
    z = torch.tensor([case], dtype=torch.float64).log()

    def survivors(out: Tensor) -> list[int]:
        return kept(out)[0].nonzero().flatten().tolist()

    assert survivors(S.epsilon_filter(z, 0.2)) == [0, 1]
    assert survivors(S.epsilon_filter(z, 0.9)) == [0]  # nothing is that probable: the best stays
    assert survivors(S.min_p_filter(z, 0.4)) == [0, 1]
    assert survivors(S.plausible_filter(z, 0.4)) == [0, 1]
    assert survivors(S.plausible_filter(z, 1.0)) == [0]  # the best is as probable as the best
    entropy = 1.75 * math.log(2)
    eta = math.sqrt(0.5) * math.exp(-entropy)  # 0.2102, below epsilon = 0.5
    assert 0.125 < eta < 0.25
    assert survivors(S.eta_filter(z, 0.5)) == [0, 1]
    assert survivors(S.eta_filter(z, 0.17)) == [0, 1, 2, 3]  # 0.1226, below both
    assert survivors(S.eta_filter(z, 0.07)) == [0, 1, 2, 3]  # epsilon itself, below 0.0787
    assert survivors(S.eta_filter(z, 0.2)) == [0, 1]  # 0.1329
    assert survivors(S.mirostat_filter(z, torch.tensor([2.5], dtype=torch.float64))) == [0, 1]
    assert survivors(S.mirostat_filter(z, torch.tensor([0.5], dtype=torch.float64))) == [0]


def test_top_n_sigma_ignores_what_is_forbidden() -> None:
    z = torch.tensor([[4.0, 3.0, 0.0, 0.0, 0.0]])
    more = torch.cat([z, torch.full((1, 7), -math.inf)], dim=1)
    assert z.std(-1).item() == pytest.approx(1.9494, abs=1e-4)
    assert torch.equal(S.top_n_sigma_filter(more, 1.0)[:, :5], S.top_n_sigma_filter(z, 1.0))
    assert kept(S.top_n_sigma_filter(z, 0.51)).sum() == 1  # 4 - 0.51 · 1.9494 = 3.006
    assert kept(S.top_n_sigma_filter(z, 0.52)).sum() == 2
    assert kept(S.top_n_sigma_filter(torch.tensor([[-math.inf, 2.0]]), 1.0)).tolist() == [[False, True]]


# --- penalties


@given(case=cases(), n=st.integers(1, 4), T=st.integers(0, 12))
@law
def test_no_repeat_ngram_is_its_definition(case: Case, n: int, T: int) -> None:
    B, V = case.logits.shape
    ids = torch.randint(min(V, 3), (B, T), generator=torch.Generator().manual_seed(T))
    assert torch.equal(S.no_repeat_ngram(case.logits, ids, n), S.no_repeat_ngram_reference(case.logits, ids, n))


@given(case=cases(), T=st.integers(0, 12))
@law
def test_frequency_and_presence_count(case: Case, T: int) -> None:
    B, V = case.logits.shape
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(T))
    out = S.frequency_presence_penalty(case.logits, ids, frequency=0.3, presence=0.7)
    for b, v in itertools.product(range(B), range(V)):
        count = ids[b].tolist().count(v)
        expected = case.logits[b, v] - 0.3 * count - (0.7 if count else 0.0)
        assert torch.isclose(out[b, v], expected, rtol=0, atol=1e-12)


def test_repetition_penalty_counts_once_and_moves_down() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.0, 2.0]])
    out = S.repetition_penalty(logits, torch.tensor([[0, 0, 1, 2]]), 2.0)
    assert out.tolist() == [[1.5, -2.0, 0.0, 2.0]]
    assert torch.equal(S.repetition_penalty(logits, torch.tensor([[0, 1]]), 1.0), logits)


def test_repetition_penalty_depends_on_a_constant() -> None:
    logits, ids = torch.tensor([[1.0, 1.0]]), torch.tensor([[0]])
    one = S.repetition_penalty(logits, ids, 2.0).softmax(-1)
    other = S.repetition_penalty(logits + 9, ids, 2.0).softmax(-1)
    assert one[0, 0].item() == pytest.approx(1 / (1 + math.exp(0.5)), rel=1e-6)
    assert other[0, 0].item() == pytest.approx(1 / (1 + math.exp(5)), rel=1e-6)


# --- draws


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """Return Pearson's statistic and its degrees of freedom; impossible outcomes must not occur."""
    expected = probabilities * counts.sum()
    possible = expected > 0
    assert not bool(counts[~possible].any())
    assert bool((expected[possible] > 5).all())  # the approximation holds
    statistic = ((counts - expected)[possible].square() / expected[possible]).sum().item()
    return statistic, int(possible.sum()) - 1


def survival(statistic: float, freedom: int) -> float:
    """Return the probability of a χ² statistic at least this large."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def test_survival_knows_the_tables() -> None:
    assert survival(10.828, 1) == pytest.approx(0.001, rel=1e-3)
    assert survival(29.588, 10) == pytest.approx(0.001, rel=1e-3)


def assert_drawn_from(ids: Tensor, probabilities: Tensor) -> None:
    counts = torch.bincount(ids, minlength=len(probabilities)).double()
    statistic, freedom = chi_square(counts, probabilities)
    assert freedom == 0 or survival(statistic, freedom) > 0.001  # one outcome: chi_square saw that it is the only one


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, -math.inf, 1.5, -3.0], dtype=torch.float64)
DRAWS = {
    "sample": S.sample,
    "gumbel_max": S.gumbel_max,
    "first of gumbel_top_k": lambda z, generator: S.gumbel_top_k(z, 3, generator=generator)[..., 0],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_frequencies_are_the_softmax(name: str, seed: int, dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype).expand(40_000, -1)
    ids = DRAWS[name](logits, generator=torch.Generator().manual_seed(seed))
    assert_drawn_from(ids, LOGITS.softmax(-1))


def test_the_check_of_frequencies_can_fail() -> None:
    ids = S.sample(LOGITS.expand(40_000, -1) / 1.05, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(ids, minlength=len(LOGITS)).double()
    assert survival(*chi_square(counts, LOGITS.softmax(-1))) < 0.001


@pytest.mark.parametrize("name", FILTERS)
def test_what_a_filter_leaves_is_drawn_in_proportion(name: str) -> None:
    logits = FILTERS[name](LOGITS[None], 0.5)[0]
    expected = torch.where(kept(logits), LOGITS.softmax(-1), 0.0)
    ids = S.sample(logits.expand(40_000, -1), generator=torch.Generator().manual_seed(1))
    assert_drawn_from(ids, expected / expected.sum())


@pytest.mark.parametrize("seed", range(3))
def test_gumbel_top_k_draws_without_replacement(seed: int) -> None:
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5], dtype=torch.float64)
    p = logits.softmax(-1).tolist()
    drawn = S.gumbel_top_k(logits.expand(60_000, -1), 3, generator=torch.Generator().manual_seed(seed))
    codes = drawn @ torch.tensor([16, 4, 1])
    probabilities = torch.zeros(64, dtype=torch.float64)
    for a, b, c in itertools.permutations(range(4), 3):
        probabilities[16 * a + 4 * b + c] = p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
    assert probabilities.sum().item() == pytest.approx(1.0)
    assert_drawn_from(codes, probabilities)


def test_draws_keep_leading_dimensions_and_seeds() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for draw in (S.sample, S.gumbel_max):
        first = draw(logits, generator=torch.Generator().manual_seed(1))
        assert first.shape == (2, 3)
        assert torch.equal(first, draw(logits, generator=torch.Generator().manual_seed(1)))
    assert S.gumbel_top_k(logits, 4).shape == (2, 3, 4)


# --- mirostat


def test_mirostat_meets_its_target_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 200, generator=generator, dtype=torch.float64)
    surprise = -logits.log_softmax(-1) / math.log(2)
    target, rate, steps = 4.0, 0.1, 2000
    entropy = (logits.softmax(-1) * surprise).sum(-1)
    assert bool((surprise.amin(-1) < target).all() and (target < entropy).all())  # it can be met
    mu = start = torch.full((4,), 2 * target, dtype=torch.float64)
    total = torch.zeros(4, dtype=torch.float64)
    for _ in range(steps):
        ids, mu = S.mirostat(logits, mu, target=target, rate=rate, generator=generator)
        total += surprise.gather(-1, ids[:, None])[:, 0]
    assert torch.allclose(total / steps - target, (start - mu) / (rate * steps))  # the sum telescopes
    assert bool(((total / steps - target).abs() < 0.05).all())


def test_mirostat_draws_from_the_truncated_distribution() -> None:
    ids, _ = S.mirostat(
        LOGITS.expand(40_000, -1),
        torch.full((40_000,), 3.0, dtype=torch.float64),
        target=2.0,
        generator=torch.Generator().manual_seed(0),
    )
    p = LOGITS.softmax(-1)
    inside = torch.where(-p.log2() <= 3, p, 0.0)
    assert 1 < int((inside > 0).sum()) < 7
    assert_drawn_from(ids, inside / inside.sum())


# --- two models, or two layers


@given(case=cases(), scale=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
@law
def test_guidance_is_the_weighted_product(case: Case, scale: float) -> None:
    without = torch.randn(case.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = case.logits.softmax(-1), without.softmax(-1)
    product = torch.where(kept(case.logits), p**scale * q ** (1 - scale), 0.0)
    ours = S.classifier_free_guidance(case.logits, without, scale).softmax(-1)
    assert torch.allclose(ours, product / product.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)


@given(case=cases(), beta=st.sampled_from([0.0, 0.5, 3.0]))
@law
def test_contrastive_scores_are_truncated_guidance(case: Case, beta: float) -> None:
    amateur = torch.randn(case.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = S.contrastive_scores(case.logits, amateur, alpha=case.p, beta=beta)
    guided = S.classifier_free_guidance(case.logits, amateur, 1 + beta)
    inside = kept(S.min_p_filter(case.logits, case.p))
    assert torch.equal(kept(scores), inside)
    assert torch.allclose(scores[inside], guided[inside], rtol=1e-9, atol=1e-9)
    difference = S.contrastive_difference(case.logits, amateur, alpha=case.p)
    ratio = (case.logits.softmax(-1) / amateur.softmax(-1)).log()
    assert torch.equal(kept(difference), inside)
    assert torch.allclose(difference[inside], ratio[inside], rtol=1e-9, atol=1e-9)


def test_an_impossible_token_of_the_amateur_is_no_reason() -> None:
    expert, amateur = torch.tensor([[1.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, -math.inf]])
    for scores in (
        S.contrastive_difference(expert, amateur),
        S.contrastive_scores(expert, amateur),
        S.classifier_free_guidance(expert, amateur, 1.5),
    ):
        assert not bool(scores.isnan().any())
        assert scores[0, 2] == -math.inf


@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_search_scores_by_loop(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    candidates, past = (torch.randn(2, n, 5, generator=generator, dtype=torch.float64) for n in (3, 4))
    mask = torch.tensor([[False, True, True, True], [True] * 4]) if masked else None
    out = S.contrastive_search_scores(probabilities, candidates, past, alpha=0.6, mask=mask)
    for b, i in itertools.product(range(2), range(3)):
        seen = [j for j in range(4) if mask is None or mask[b, j]]
        cosine = [torch.cosine_similarity(candidates[b, i], past[b, j], dim=0) for j in seen]
        expected = 0.4 * probabilities[b, i] - 0.6 * max(cosine)
        assert torch.isclose(out[b, i], expected, rtol=1e-12)


def test_dola_chooses_by_divergence_and_contrasts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, early = (2 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 9), (6, 4, 9)))
    p = logits.softmax(-1)
    for b in range(6):
        divergences = []
        for q in early[b].softmax(-1):
            m = (p[b] + q) / 2
            divergences.append(0.5 * (p[b] * (p[b] / m).log()).sum() + 0.5 * (q * (q / m).log()).sum())
        best = int(torch.stack(divergences).argmax())
        assert S.dola_layer(logits, early)[b] == best
        expected = S.contrastive_difference(logits[b : b + 1], early[b, best][None], alpha=0.2)
        assert torch.equal(S.dola_scores(logits, early, alpha=0.2)[b : b + 1], expected)
    assert len(S.dola_layer(logits, early).unique()) > 1


# --- dtypes, purity, gradients of what stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_come_back_and_nothing_is_written_in_place(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    other, ids = logits.flip(-1).clone(), torch.tensor([[0, 1, 0], [2, 2, 3]])
    before = logits.clone()
    results = [FILTERS[name](logits, 0.5) for name in FILTERS if name != "mirostat"]
    results += [
        S.mirostat_filter(logits, torch.tensor([2.0, 2.0])),
        S.temperature_scale(logits, 0.5),
        S.repetition_penalty(logits, ids, 1.5),
        S.frequency_presence_penalty(logits, ids, frequency=0.1, presence=0.1),
        S.no_repeat_ngram(logits, ids, 2),
        S.classifier_free_guidance(logits, other, 1.5),
        S.contrastive_scores(logits, other),
        S.contrastive_difference(logits, other),
        S.dola_scores(logits, other[:, None]),
    ]
    assert {out.dtype for out in results} == {dtype}
    assert torch.equal(logits, before)
    assert all(out.data_ptr() != logits.data_ptr() for out in results)
    assert S.sample(logits).dtype == S.gumbel_max(logits).dtype == torch.int64


# --- what is refused

Z = torch.zeros(2, 3)
IDS = torch.zeros(2, 4, dtype=torch.int64)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "temperature 0": (lambda: S.temperature_scale(Z, 0.0), r"temperature is 0.0, .*take the argmax"),
    "temperature -1": (lambda: S.temperature_scale(Z, -1.0), r"temperature is -1.0, expected a number in \(0, inf\)"),
    "temperature nan": (lambda: S.temperature_scale(Z, math.nan), r"temperature is nan"),
    "temperature inf": (lambda: S.temperature_scale(Z, math.inf), r"temperature is inf"),
    "top_k 0": (lambda: S.top_k_filter(Z, 0), r"k is 0, expected at least 1"),
    "top_p 0": (lambda: S.top_p_filter(Z, 0.0), r"p is 0.0, expected a number in \(0, 1\]"),
    "top_p 1.1": (lambda: S.top_p_filter(Z, 1.1), r"p is 1.1, expected a number in \(0, 1\]"),
    "top_p reference": (lambda: S.top_p_filter_reference(Z, 1.1), r"p is 1.1"),
    "min_p": (lambda: S.min_p_filter(Z, -0.1), r"p is -0.1, expected a number in \[0, 1\]"),
    "typical": (lambda: S.typical_filter(Z, 0.0), r"p is 0.0"),
    "typical reference": (lambda: S.typical_filter_reference(Z, 0.0), r"p is 0.0"),
    "epsilon": (lambda: S.epsilon_filter(Z, 1.0), r"epsilon is 1.0, expected a number in \(0, 1\)"),
    "eta": (lambda: S.eta_filter(Z, 0.0), r"epsilon is 0.0"),
    "n": (lambda: S.top_n_sigma_filter(Z, 0.0), r"n is 0.0"),
    "penalty": (lambda: S.repetition_penalty(Z, IDS, 0.0), r"penalty is 0.0"),
    "penalty batch": (lambda: S.repetition_penalty(Z, IDS[:1], 1.1), r"batch size of ids is 1, .* is 2"),
    "penalty id": (lambda: S.repetition_penalty(Z, IDS + 3, 1.1), r"ids are from 3 to 3, expected 0 to 2"),
    "penalty negative id": (lambda: S.repetition_penalty(Z, IDS - 1, 1.1), r"ids are from -1 to -1"),
    "frequency": (lambda: S.frequency_presence_penalty(Z, IDS, frequency=math.inf), r"frequency is inf"),
    "presence": (lambda: S.frequency_presence_penalty(Z, IDS, presence=math.nan), r"presence is nan"),
    "ids without batch": (lambda: S.no_repeat_ngram(Z, IDS[0], 2), r"ids has shape \(4,\)"),
    "n-gram": (lambda: S.no_repeat_ngram(Z, IDS, 0), r"n is 0, expected at least 1"),
    "n-gram reference": (lambda: S.no_repeat_ngram_reference(Z, IDS, 0), r"n is 0, expected at least 1"),
    "logits without batch": (lambda: S.repetition_penalty(Z[0], IDS, 1.1), r"logits has shape \(3,\)"),
    "sample nan": (lambda: S.sample(Z.index_fill(1, torch.tensor([1]), math.nan)), r"row 0 .*maximum nan"),
    "sample inf": (lambda: S.sample(torch.tensor([[0.0], [math.inf]])), r"row 1 .*maximum inf"),
    "sample nothing": (lambda: S.sample(torch.full((1, 3), -math.inf)), r"maximum -inf.*forbids every token"),
    "gumbel nothing": (lambda: S.gumbel_max(torch.full((1, 3), -math.inf)), r"maximum -inf"),
    "gumbel k": (lambda: S.gumbel_top_k(Z, 0), r"k is 0"),
    "gumbel V": (lambda: S.gumbel_top_k(Z, 4), r"V is 3, expected at least 4"),
    "mu": (lambda: S.mirostat_filter(Z, torch.zeros(3)), r"shape of mu is \(3,\).* \(2,\)"),
    "target": (lambda: S.mirostat(Z, torch.ones(2), target=0.0), r"target is 0.0"),
    "rate": (lambda: S.mirostat(Z, torch.ones(2), target=1.0, rate=-1.0), r"rate is -1.0"),
    "scale": (lambda: S.classifier_free_guidance(Z, Z, -1.0), r"scale is -1.0"),
    "guidance shapes": (lambda: S.classifier_free_guidance(Z, Z[:1], 1.0), r"shape of unconditional is \(1, 3\)"),
    "alpha": (lambda: S.contrastive_difference(Z, Z, alpha=0.0), r"alpha is 0.0"),
    "beta": (lambda: S.contrastive_scores(Z, Z, beta=-0.5), r"beta is -0.5"),
    "amateur": (lambda: S.contrastive_scores(Z, Z[:, :2]), r"shape of amateur is \(2, 2\)"),
    "amateur of the difference": (lambda: S.contrastive_difference(Z, Z[:, :2]), r"shape of amateur is \(2, 2\)"),
    "search alpha": (lambda: S.contrastive_search_scores(Z, Z[..., None], Z[..., None], alpha=1.5), r"alpha is 1.5"),
    "search candidates": (
        lambda: S.contrastive_search_scores(Z, Z[:, :2, None], Z[..., None]),
        r"shape of candidates is \(2, 2\)",
    ),
    "search past": (lambda: S.contrastive_search_scores(Z, Z[..., None], Z[:, :0, None]), r"length of past is 0"),
    "early": (lambda: S.dola_layer(Z, Z), r"early has shape \(2, 3\)"),
    "early vocabulary": (lambda: S.dola_scores(Z, Z[:, None, :2]), r"shape of early without J is \(2, 2\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


@every_filter
def test_a_nan_stays_visible(name: str) -> None:
    logits = torch.tensor([[0.0, math.nan, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    out = FILTERS[name](logits, 0.5)
    assert bool(out[0].isnan().any())
    with pytest.raises(ValueError, match="row 0"):
        S.sample(out)
