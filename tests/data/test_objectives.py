"""The laws of the objectives: nothing is lost, targets say what was hidden, and draws have their distribution."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.data import objectives as O

law = settings(max_examples=80, derandomize=True, deadline=None)
seeds = st.integers(0, 2**32)
SENTINELS = list(range(999, 899, -1))
MARKS = O.MiddleTokens(prefix=997, suffix=998, middle=999)
MODES = {"R": 700, "S": 701, "X": 702}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_share(hits: int, trials: int, p: float) -> None:
    """Fail unless a count is within four standard errors of what a probability makes likely."""
    error = math.sqrt(p * (1 - p) / trials)
    assert abs(hits / trials - p) < 4 * error, (
        f"{hits} of {trials} is {hits / trials:.4f}, expected {p:.4f} ± {error:.4f}"
    )


def assert_distribution(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Fail unless each outcome has its share, and nothing else occurred."""
    trials = counts.total()
    assert set(counts) <= set(expected)
    for outcome, p in expected.items():
        assert_share(counts[outcome], trials, p)


# --- causal


def test_causal_targets_are_the_next_tokens() -> None:
    ids = torch.arange(12).reshape(3, 4)
    pair = O.causal(ids)
    assert pair.ids.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert pair.targets.tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]


# --- masked tokens


@law
@given(
    seeds, st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.sampled_from([(0.1, 0.1), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
)
def test_masking_hides_only_what_it_asks_for(seed: int, rate: float, shares: tuple[float, float]) -> None:
    keep, swap = shares
    ids = torch.randint(5, 50, (3, 20), generator=generator(seed))
    special = torch.rand(3, 20, generator=generator(seed + 1)) < 0.2
    options: dict[str, Any] = {"mask_id": 4, "vocab_size": 50, "rate": rate, "keep": keep, "swap": swap}
    pair = O.mask_tokens(ids, **options, special=special, generator=generator(seed))
    selected = pair.targets != O.IGNORE
    assert torch.equal(torch.where(selected, pair.targets, pair.ids), ids)  # the original, exactly
    assert not (selected & special).any()
    if shares == (0.0, 0.0):
        assert (pair.ids[selected] == 4).all()
    if shares == (1.0, 0.0):
        assert torch.equal(pair.ids, ids)
    again = O.mask_tokens(ids, **options, special=special, generator=generator(seed))
    assert torch.equal(again.ids, pair.ids)
    assert torch.equal(again.targets, pair.targets)


@pytest.mark.parametrize(("keep", "swap"), [(0.1, 0.2), (0.0, 0.2), (0.0, 1.0)])
def test_masking_has_its_shares(keep: float, swap: float) -> None:
    V, mask_id, ids = 10, 0, torch.full((400, 500), 7)
    pair = O.mask_tokens(ids, mask_id=mask_id, vocab_size=V, rate=0.15, keep=keep, swap=swap, generator=generator())
    selected = pair.targets != O.IGNORE
    n = int(selected.sum())
    assert_share(n, ids.numel(), 0.15)
    expected = dict.fromkeys(range(V), swap / V)  # what is swapped in may be the mask, and the token itself
    expected[mask_id] += 1 - keep - swap
    expected[7] += keep
    assert_distribution(Counter(pair.ids[selected].tolist()), expected)


def test_tokens_are_selected_independently_of_their_neighbors() -> None:
    pair = O.mask_tokens(
        torch.zeros(200_000, dtype=torch.long), mask_id=1, vocab_size=2, rate=0.3, generator=generator()
    )
    selected = pair.targets != O.IGNORE
    assert_share(int((selected[0::2] & selected[1::2]).sum()), 100_000, 0.09)


# --- replaced tokens


def test_replacements_follow_the_generator_and_a_right_guess_is_original() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    ids, selected = torch.ones(60_000, dtype=torch.long), torch.arange(60_000) % 2 == 0
    pair = O.replaced_tokens(ids, selected, p.log().expand(60_000, 3), generator=generator())
    assert (pair.ids[~selected] == 1).all()
    assert_distribution(Counter(pair.ids[selected].tolist()), dict(enumerate(p.tolist())))
    assert torch.equal(pair.targets, (pair.ids != ids).long())
    assert_share(int(pair.targets.sum()), 60_000, 0.5 * 0.7)


def test_nothing_is_asked_at_special_tokens_and_no_logits_are_read_elsewhere() -> None:
    ids, selected = torch.tensor([[1, 2, 3]]), torch.tensor([[True, False, True]])
    logits = torch.full((1, 3, 5), math.nan)
    logits[selected] = torch.tensor([0.0, -math.inf, -math.inf, -math.inf, -math.inf])
    pair = O.replaced_tokens(ids, selected, logits, special=torch.tensor([[False, True, False]]))
    assert pair.ids.tolist() == [[0, 2, 0]]
    assert pair.targets.tolist() == [[1, O.IGNORE, 1]]
    nothing = O.replaced_tokens(ids, torch.zeros_like(selected), logits)
    assert nothing.ids.tolist() == ids.tolist()
    assert nothing.targets.tolist() == [[0, 0, 0]]


# --- spans


@law
@given(seeds, st.integers(2, 60), st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.sampled_from([1.0, 1.5, 3.0, 8.0, 64.0]))
def test_spans_have_their_numbers_and_alternate(seed: int, length: int, rate: float, mean_length: float) -> None:
    noise, spans = O.span_counts(length, rate=rate, mean_length=mean_length)
    cut = O.random_spans(length, rate=rate, mean_length=mean_length, generator=generator(seed))
    assert cut.dtype == torch.bool
    assert len(cut) == length
    assert int(cut.sum()) == noise
    assert int((cut[1:] & ~cut[:-1]).sum()) == spans
    assert not cut[0]
    assert cut[-1]


def test_all_masks_with_the_same_numbers_are_equally_likely() -> None:
    length, rate, mean_length = 9, 0.45, 2.0  # 4 tokens in 2 spans
    assert O.span_counts(length, rate=rate, mean_length=mean_length) == (4, 2)
    possible = [
        mask
        for mask in itertools.product((0, 1), repeat=length)
        if sum(mask) == 4 and mask[0] == 0 and mask[-1] == 1 and sum(b > a for a, b in itertools.pairwise(mask)) == 2
    ]
    assert len(possible) == math.comb(3, 1) * math.comb(4, 1)  # cut 4 in two, and 5 in two
    source, counts = generator(), Counter[tuple[int, ...]]()
    for _ in range(6_000):
        cut = O.random_spans(length, rate=rate, mean_length=mean_length, generator=source)
        counts[tuple(cut.int().tolist())] += 1
    assert_distribution(counts, dict.fromkeys(possible, 1 / len(possible)))


def test_lengths_of_the_configuration_of_t5() -> None:
    assert O.span_lengths(568) == (512, 114)
    assert O.span_lengths(569)[0] == 513  # one more token would not fit
    assert O.span_lengths(512, eos=False) == (512 - 77 + 26, 77 + 26)


@law
@given(seeds, st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from([None, 1]))
def test_any_spans_can_be_put_back(seed: int, length: int, rate: float, eos_id: int | None) -> None:
    ids = torch.randint(1, 50, (length,), generator=generator(seed))  # the text may hold the token that ends it
    cut = torch.rand(length, generator=generator(seed + 1)) < rate
    pair = O.corrupt_spans(ids, cut, sentinels=SENTINELS, eos_id=eos_id)
    assert torch.equal(O.restore_spans(pair.ids, pair.targets, sentinels=SENTINELS, eos_id=eos_id), ids)
    marks_in, marks_out = ([token for token in side.tolist() if token in SENTINELS] for side in pair)
    assert marks_in == SENTINELS[: len(marks_in)]
    assert marks_out == SENTINELS[: len(marks_in) + int(not cut[-1])]
    ends = [] if eos_id is None else [eos_id]
    assert [token for token in pair.ids.tolist() if token not in SENTINELS] == ids[~cut].tolist() + ends
    assert [token for token in pair.targets.tolist() if token not in SENTINELS] == ids[cut].tolist() + ends


@law
@given(seeds, st.integers(2, 60), st.sampled_from([0.15, 0.5]), st.sampled_from([1.0, 3.0, 8.0]), st.booleans())
def test_corruption_has_its_lengths_and_restores(seed: int, length: int, rate: float, mean: float, eos: bool) -> None:
    ids, eos_id = torch.randint(5, 50, (length,), generator=generator(seed)), 1 if eos else None
    options = {"rate": rate, "mean_length": mean}
    pair = O.span_corruption(ids, sentinels=SENTINELS, **options, eos_id=eos_id, generator=generator(seed))
    assert (len(pair.ids), len(pair.targets)) == O.span_lengths(length, **options, eos=eos)
    assert torch.equal(O.restore_spans(pair.ids, pair.targets, sentinels=SENTINELS, eos_id=eos_id), ids)


def test_a_gap_that_the_target_leaves_out_stays_empty() -> None:
    ids = torch.tensor([1, 99, 2, 98, 3])
    assert O.restore_spans(ids, torch.tensor([98, 7]), sentinels=[99, 98]).tolist() == [1, 2, 7, 3]


# --- prefixes


@law
@given(seeds, st.integers(1, 4), st.integers(1, 8))
def test_a_prefix_is_seen_whole_and_not_predicted(seed: int, B: int, T: int) -> None:
    ids = torch.randint(5, 50, (B, T + 1), generator=generator(seed))
    pair = O.prefix_lm(ids, generator=generator(seed))
    assert torch.equal(pair.ids, ids[:, :-1])
    for row in range(B):
        predicted = pair.targets[row] != O.IGNORE
        length = T + 1 - int(predicted.sum())
        assert 1 <= length <= T
        assert predicted.tolist() == [i + 1 >= length for i in range(T)]
        assert torch.equal(pair.targets[row, predicted], ids[row, length:])
        expected = [[j <= i or j < length for j in range(T)] for i in range(T)]
        assert pair.mask[row].tolist() == expected


def test_lengths_of_prefixes_are_drawn_evenly() -> None:
    ids = torch.zeros(20_000, 6, dtype=torch.long)
    targets = O.prefix_lm(ids, generator=generator()).targets
    counts = Counter((6 - (targets != O.IGNORE).sum(1)).tolist())
    assert_distribution(counts, dict.fromkeys(range(1, 6), 1 / 5))


# --- middles


def test_cuts_are_two_even_draws_sorted() -> None:
    n, source = 4, generator()
    counts = Counter(O.random_cuts(n, generator=source) for _ in range(20_000))
    pairs = Counter((min(p), max(p)) for p in itertools.product(range(n + 1), repeat=2))
    assert_distribution(counts, {cuts: times / (n + 1) ** 2 for cuts, times in pairs.items()})


@law
@given(
    st.lists(st.integers(5, 50), max_size=6),
    st.lists(st.integers(5, 50), max_size=6),
    st.lists(st.integers(5, 50), max_size=6),
)
def test_both_orders_can_be_put_back(prefix: list[int], middle: list[int], suffix: list[int]) -> None:
    parts = [torch.tensor(part, dtype=torch.long) for part in (prefix, middle, suffix)]
    first, second = O.psm(*parts, tokens=MARKS), O.spm(*parts, tokens=MARKS)
    assert first.tolist() == [997, *prefix, 998, *suffix, 999, *middle]
    assert second.tolist() == [997, 998, *suffix, 999, *prefix, *middle]
    for ids in (first, second):
        assert O.restore_middle(ids, tokens=MARKS).tolist() == prefix + middle + suffix


@law
@given(seeds, st.integers(1, 20), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_reordered_document_can_be_put_back(seed: int, length: int, rate: float, spm_rate: float) -> None:
    ids = torch.randint(5, 50, (length,), generator=generator(seed))
    moved = O.fill_in_the_middle(ids, tokens=MARKS, rate=rate, spm_rate=spm_rate, generator=generator(seed))
    assert torch.equal(O.restore_middle(moved, tokens=MARKS), ids)
    assert len(moved) in {0.0: {length}, 1.0: {length + 3}}.get(rate, {length, length + 3})


def test_documents_are_reordered_at_their_rates() -> None:
    source, ids, counts = generator(), torch.arange(5, 55), Counter[str]()
    for _ in range(4_000):
        moved = O.fill_in_the_middle(ids, tokens=MARKS, rate=0.6, spm_rate=0.25, generator=source)
        counts["as it is" if len(moved) == 50 else "spm" if moved[1] == 998 else "psm"] += 1
    empty = 0.6 * 0.75 * (2 * 51 - 1) / 51**2  # psm with an empty prefix looks like spm
    assert_distribution(counts, {"as it is": 0.4, "spm": 0.6 * 0.25 + empty, "psm": 0.6 * 0.75 - empty})


@law
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), seeds, st.sampled_from([0.5, 1.0]))
def test_text_is_cut_between_characters(text: str, seed: int, rate: float) -> None:
    tokens = O.MiddleTokens(prefix=256, suffix=257, middle=258)
    moved = O.fill_in_the_middle_text(text, str.encode, tokens=tokens, rate=rate, generator=generator(seed))
    assert bytes(O.restore_middle(moved, tokens=tokens).tolist()).decode() == text
    marks = [i for i, token in enumerate(moved.tolist()) if token > 255]
    for begin, end in itertools.pairwise([-1, *marks, len(moved)]):
        bytes(moved[begin + 1 : end].tolist()).decode()  # no character is torn


# --- UL2


@law
@given(seeds, st.integers(2, 80))
def test_ul2_restores_and_says_its_mode(seed: int, length: int) -> None:
    ids = torch.randint(5, 50, (length,), generator=generator(seed))
    pair = O.ul2(ids, sentinels=SENTINELS, modes=MODES, eos_id=1, generator=generator(seed))
    assert pair.ids[0] in MODES.values()
    assert torch.equal(O.restore_spans(pair.ids[1:], pair.targets, sentinels=SENTINELS, eos_id=1), ids)


def test_ul2_draws_its_seven_tasks_evenly() -> None:
    ids, source, sentinels = torch.arange(5, 1005), generator(), range(3000, 2700, -1)
    tasks = {}  # mode, length of the target, so many sentinels → probability
    for denoiser in O.UL2_DENOISERS:
        noise, spans = O.span_counts(1000, rate=denoiser.rate, mean_length=denoiser.mean_length or 250)
        tasks[MODES[denoiser.mode], noise + spans] = 1 / 7
    assert len(tasks) == 7
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(3_000):
        pair = O.ul2(ids, sentinels=sentinels, modes=MODES, generator=source)
        counts[int(pair.ids[0]), len(pair.targets)] += 1
    assert_distribution(counts, tasks)


def test_the_sequential_task_cuts_out_the_end() -> None:
    ids = torch.arange(5, 25)
    pair = O.denoise(ids, O.Denoiser(mode="S", rate=0.25), sentinels=[99])
    assert pair.ids.tolist() == [*range(5, 20), 99]
    assert pair.targets.tolist() == [99, *range(20, 25)]


# --- bad input


IDS = torch.arange(5, 15)
EMPTY = torch.zeros(0, dtype=torch.long)


def masked(ids: Tensor = IDS, **options: Any) -> Callable[[], Any]:
    return lambda: O.mask_tokens(ids, **{"mask_id": 4, "vocab_size": 50, **options})


def spans(ids: Tensor = IDS, **options: Any) -> Callable[[], Any]:
    return lambda: O.span_corruption(ids, **{"sentinels": SENTINELS, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: O.causal(IDS[:1]), "number of tokens of a text is 1, expected at least 2"),
        (lambda: O.causal(IDS.float()), "ids have dtype torch.float32, expected integers"),
        (masked(rate=0.0), r"rate is 0.0, expected a number in \(0, 1\)"),
        (masked(rate=1.0), r"rate is 1.0, expected a number in \(0, 1\)"),
        (masked(rate=math.nan), r"rate is nan, expected a number in \(0, 1\)"),
        (masked(keep=-0.1), r"keep is -0.1, expected a number in \[0, 1\]"),
        (masked(keep=0.75, swap=0.5), r"keep \+ swap is 1.25, expected a number in \[0, 1\]"),
        (masked(mask_id=50), "mask_id is 50, expected 0 to 49"),
        (masked(mask_id=-1), "mask_id is -1, expected 0 to 49"),
        (masked(vocab_size=14), "ids are from 5 to 14, expected 0 to 13"),
        (masked(EMPTY), "number of tokens of a text is 0, expected at least 1"),
        (masked(special=torch.zeros(3, dtype=torch.bool)), r"shape of special is \(3,\), shape of ids is \(10,\)"),
        (masked(special=torch.zeros(10)), "special"),
        (lambda: O.replaced_tokens(IDS, IDS > 7, torch.zeros(9, 50)), r"leading shape of logits is \(9,\)"),
        (lambda: O.replaced_tokens(IDS, IDS > 7, torch.zeros(10, 14)), "ids are from 5 to 14, expected 0 to 13"),
        (lambda: O.replaced_tokens(IDS, IDS, torch.zeros(10, 50)), "selected"),
        (lambda: O.replaced_tokens(IDS, IDS[:3] > 7, torch.zeros(10, 50)), r"shape of selected is \(3,\)"),
        (lambda: O.span_counts(1), "length is 1, expected at least 2"),
        (spans(rate=1.0), r"rate is 1.0, expected a number in \(0, 1\)"),
        (spans(mean_length=0.5), "mean_length is 0.5, expected at least 1"),
        (spans(IDS[:1]), "length is 1, expected at least 2"),
        (spans(EMPTY), "length is 0, expected at least 2"),
        (spans(IDS[None]), "ids has shape"),
        (spans(rate=0.5, mean_length=1.0, sentinels=[99, 98]), "number of sentinels is 2, expected at least 5"),
        (spans(sentinels=[99, 99]), "number of sentinels is 2, number of different sentinels is 1"),
        (spans(sentinels=[99], eos_id=99), "eos_id is 99, one of the sentinels"),
        (spans(sentinels=[5]), "the text holds 5, one of the sentinels"),
        (lambda: O.corrupt_spans(EMPTY, EMPTY.bool(), sentinels=[99]), "number of tokens of a text is 0"),
        (lambda: O.corrupt_spans(IDS, IDS[:3] > 7, sentinels=[99]), r"shape of cut is \(3,\)"),
        (lambda: O.corrupt_spans(IDS, IDS, sentinels=[99]), "cut"),
        (lambda: O.corrupt_spans(IDS, IDS == 7, sentinels=[99]), "number of sentinels is 1, expected at least 2"),
        (lambda: O.restore_spans(IDS, torch.tensor([7]), sentinels=[99]), "the target begins with 7, expected one"),
        (lambda: O.prefix_lm(IDS), "ids has shape"),
        (lambda: O.prefix_lm(IDS[None, :1]), "number of tokens of a text is 1, expected at least 2"),
        (lambda: O.prefix_lm(IDS[None], lengths=torch.tensor([10])), "are from 10 to 10, expected 1 to 9"),
        (lambda: O.prefix_lm(IDS[None], lengths=torch.tensor([0])), "are from 0 to 0, expected 1 to 9"),
        (lambda: O.prefix_lm(IDS[None], lengths=torch.tensor([1, 2])), r"number of lengths is \(2,\)"),
        (lambda: O.MiddleTokens(prefix=1, suffix=2, middle=1), "expected three different ids"),
        (lambda: O.random_cuts(0), "length is 0, expected at least 1"),
        (lambda: O.fill_in_the_middle(EMPTY, tokens=MARKS), "number of tokens of a text is 0, expected at least 1"),
        (lambda: O.fill_in_the_middle(IDS[None], tokens=MARKS), "ids has shape"),
        (lambda: O.fill_in_the_middle(IDS, tokens=MARKS, rate=1.5), r"rate is 1.5, expected a number in \[0, 1\]"),
        (lambda: O.fill_in_the_middle(IDS, tokens=MARKS, spm_rate=-1), "spm_rate is -1, expected a number"),
        (
            lambda: O.fill_in_the_middle(torch.tensor([5, 998]), tokens=MARKS),
            "the document holds 998, one of the marks",
        ),
        (lambda: O.fill_in_the_middle_text("", str.encode, tokens=MARKS), "number of characters is 0"),
        (
            lambda: O.restore_middle(torch.tensor([997, 5, 999, 6]), tokens=MARKS),
            r"the marks are \[997, 999\], expected",
        ),
        (lambda: O.restore_middle(torch.tensor([5, 997, 998, 999]), tokens=MARKS), "the first in front"),
        (lambda: O.ul2(IDS, sentinels=SENTINELS, modes=MODES, denoisers=()), "number of denoisers is 0"),
        (
            lambda: O.ul2(IDS, sentinels=SENTINELS, modes={"R": 1}),
            r"modes has ids for \['R'\], expected one for \['S', 'X'\]",
        ),
        (
            lambda: O.denoise(IDS[:1], O.Denoiser(mode="S", rate=0.25), sentinels=[99]),
            "length is 1, expected at least 2",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
