"""N-gram models: every smoothing against its definition by brute force, laws, and clear errors."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_study.models import ngram as N

law = settings(max_examples=50, derandomize=True, deadline=None)
LETTERS = "abcd"
texts = st.lists(st.text("abc", max_size=9), min_size=1, max_size=5).filter(any)
orders = st.integers(1, 4)

Build = Callable[..., N.NGramModel]
SMOOTHINGS: dict[str, Build] = {
    "maximum likelihood": N.maximum_likelihood,
    "add-k": lambda t, n, **o: N.add_k(t, n, k=0.3, **o),
    "Jelinek-Mercer": lambda t, n, **o: N.jelinek_mercer(t, n, weights=[0.9, 0.7, 0.5, 0.6][:n], **o),
    "Witten-Bell": N.witten_bell,
    "absolute": N.absolute_discounting,
    "absolute, fixed": lambda t, n, **o: N.absolute_discounting(t, n, discount=0.6, **o),
    "Kneser-Ney": N.kneser_ney,
    "Kneser-Ney, fixed": lambda t, n, **o: N.kneser_ney(t, n, discount=0.6, **o),
    "modified Kneser-Ney": N.modified_kneser_ney,
}
every = pytest.mark.parametrize("build", SMOOTHINGS.values(), ids=SMOOTHINGS.keys())


class Counts:
    """A second way to count, straight from the definitions: scan the padded texts again for each question."""

    def __init__(self, corpus: list[str], order: int) -> None:
        self.order = order
        self.events = [
            ((None,) * (order - 1) + tuple(text))[t : t + order] for text in corpus for t in range(len(text))
        ]

    def c(self, gram: tuple[Any, ...]) -> int:
        return sum(event[self.order - len(gram) :] == gram for event in self.events)

    def places(self, gram: tuple[Any, ...]) -> int:
        """Different symbols before a gram; its count where it is as long as the order."""
        if len(gram) == self.order:
            return self.c(gram)
        longer = {event[self.order - len(gram) - 1 :] for event in self.events}
        return sum(one[1:] == gram for one in longer)


def interpolated(count: Callable[[tuple[Any, ...]], int], rule: Any, h: tuple[Any, ...], w: str) -> float:
    """Definition of all interpolated smoothings: ``rule`` gives share and rest from the counts after a context."""
    below = interpolated(count, rule, h[1:], w) if h else 1 / len(LETTERS)
    after = {v: n for v in LETTERS if (n := count((*h, v)))}
    if not after:
        return below
    share, rest = rule(len(h), after, after.get(w, 0))
    return float(share + rest * below)


def contexts(order: int) -> list[tuple[Any, ...]]:
    """All contexts, seen and unseen, also those at the beginning of a text."""
    n = order - 1
    return [(None,) * (n - k) + h for k in range(n + 1) for h in itertools.product(LETTERS, repeat=k)]


def after(context: tuple[Any, ...]) -> str:
    return "".join(symbol for symbol in context if symbol)


# --- counts


@given(corpus=texts, order=orders)
@law
def test_counts_and_continuation_counts_are_their_definitions(corpus: list[str], order: int) -> None:
    counts, truth = N.ngram_counts(corpus, order), Counts(corpus, order)
    places = N.continuation_counts(counts)
    assert [level.total() for level in counts] == [sum(map(len, corpus))] * order
    for level, continued in zip(counts, places, strict=True):
        assert dict(level) == {gram: truth.c(gram) for gram in level}
        assert dict(continued) == {gram: truth.places(gram) for gram in level}


def test_discounts_are_the_published_formulas() -> None:
    counts = Counter({(i,): r for i, r in enumerate([1] * 10 + [2] * 5 + [3] * 3 + [4] * 2 + [9] * 4)})
    y = Fraction(10, 20)
    expected = (1 - 2 * y * Fraction(5, 10), 2 - 3 * y * Fraction(3, 5), 3 - 4 * y * Fraction(2, 3))
    assert N.discounts(counts) == pytest.approx([float(x) for x in expected])
    assert N.discounts(Counter({(0,): 5})) == (0.5, 0.5, 0.5)
    assert N.discounts(Counter({(0,): 1})) == (1.0, 1.0, 1.0)


# --- distributions


@every
@given(corpus=texts, order=orders)
@law
def test_probabilities_sum_to_one_after_every_context(build: Build, corpus: list[str], order: int) -> None:
    model = build(corpus, order, vocabulary=LETTERS)
    for context in contexts(order):
        p = model.distribution(after(context))
        assert list(p) == list(LETTERS)
        assert min(p.values()) >= 0
        assert math.fsum(p.values()) == pytest.approx(1, abs=1e-12)
        assert all(model.probability(after(context), w) == q for w, q in p.items())


@given(corpus=texts, order=orders)
@law
def test_simple_models_are_their_formulas(corpus: list[str], order: int) -> None:
    truth, k = Counts(corpus, order), 0.3
    ml, added = (
        N.maximum_likelihood(corpus, order, vocabulary=LETTERS),
        SMOOTHINGS["add-k"](corpus, order, vocabulary=LETTERS),
    )
    for h, w in itertools.product(contexts(order), LETTERS):
        n, total = truth.c((*h, w)), sum(truth.c((*h, v)) for v in LETTERS)
        assert ml.probability(after(h), w) == pytest.approx(n / total if total else 1 / 4)
        assert added.probability(after(h), w) == pytest.approx((n + k) / (total + 4 * k))


def _witten_bell(_: int, counts: dict[str, int], n: int) -> tuple[float, float]:
    total, new = sum(counts.values()), len(counts)
    return n / (total + new), new / (total + new)


def _jelinek_mercer(length: int, counts: dict[str, int], n: int) -> tuple[float, float]:
    weight = [0.9, 0.7, 0.5, 0.6][length]
    return weight * n / sum(counts.values()), 1 - weight


def _discount(_: int, counts: dict[str, int], n: int) -> tuple[float, float]:
    total = sum(counts.values())
    return max(n - 0.6, 0) / total, 0.6 * len(counts) / total


@pytest.mark.parametrize(
    ("name", "rule", "continued"),
    [
        ("Jelinek-Mercer", _jelinek_mercer, False),
        ("Witten-Bell", _witten_bell, False),
        ("absolute, fixed", _discount, False),
        ("Kneser-Ney, fixed", _discount, True),
    ],
)
@given(corpus=texts, order=orders)
@law
def test_interpolated_models_are_their_formulas(
    name: str, rule: Any, continued: bool, corpus: list[str], order: int
) -> None:
    model, truth = SMOOTHINGS[name](corpus, order, vocabulary=LETTERS), Counts(corpus, order)
    count = truth.places if continued else truth.c
    for h, w in itertools.product(contexts(order), LETTERS):
        assert model.probability(after(h), w) == pytest.approx(interpolated(count, rule, h, w), abs=1e-12)


@given(corpus=texts, order=orders)
@law
def test_estimated_discounts_are_those_of_each_length(corpus: list[str], order: int) -> None:
    truth, counts = Counts(corpus, order), N.ngram_counts(corpus, order)
    tables = [{gram: truth.places(gram) for gram in level} for level in counts]

    def modified(length: int, after: dict[str, int], n: int) -> tuple[float, float]:
        d, total = N.discounts(tables[length]), sum(after.values())
        taken = sum(d[min(c, 3) - 1] for c in after.values())
        return (n - d[min(n, 3) - 1] if n else 0) / total, taken / total

    def single(length: int, after: dict[str, int], n: int) -> tuple[float, float]:
        d, total = N.discounts(tables[length])[0], sum(after.values())
        return max(n - d, 0) / total, d * len(after) / total

    for build, rule in ((N.modified_kneser_ney, modified), (N.kneser_ney, single)):
        model = build(corpus, order, vocabulary=LETTERS)
        for h, w in itertools.product(contexts(order), LETTERS):
            assert model.probability(after(h), w) == pytest.approx(interpolated(truth.places, rule, h, w), abs=1e-12)


# --- laws


@given(corpus=texts, data=st.data(), order=st.integers(1, 3))
@law
def test_relative_frequencies_maximize_the_likelihood(corpus: list[str], data: st.DataObject, order: int) -> None:
    model = N.maximum_likelihood(corpus, order)
    best = sum(map(model.log_likelihood, corpus))
    bent: dict[tuple[Any, ...], float] = {}
    for gram, p in model.levels[-1].share.items():
        bent[gram] = p * math.exp(data.draw(st.floats(-0.5, 0.5)))
    totals: dict[Any, float] = defaultdict(float)
    for gram, p in bent.items():
        totals[gram[:-1]] += p
    share = {gram: p / totals[gram[:-1]] for gram, p in bent.items()}
    other = N.NGramModel(model.vocabulary, [*model.levels[:-1], N.Level(share, model.levels[-1].rest)])
    assert sum(map(other.log_likelihood, corpus)) <= best + 1e-9


@given(corpus=texts, held_out=texts, order=orders)
@law
def test_expectation_maximization_never_goes_down(corpus: list[str], held_out: list[str], order: int) -> None:
    weights, likelihoods = N.interpolation_weights(corpus, held_out, order, vocabulary=LETTERS, steps=12)
    assert all(0 <= weight <= 1 for weight in weights)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(likelihoods))
    model = N.jelinek_mercer(corpus, order, weights=weights, vocabulary=LETTERS)
    assert sum(map(model.log_likelihood, held_out)) == pytest.approx(likelihoods[-1], abs=1e-9)


def test_expectation_maximization_finds_the_optimum() -> None:
    corpus, held_out = ["abcabcabd", "abab"], ["abdab", "cab"]
    weights, likelihoods = N.interpolation_weights(corpus, held_out, 2, steps=3000)

    def likelihood(a: float, b: float) -> float:
        model = N.jelinek_mercer(corpus, 2, weights=[a, b])
        return sum(map(model.log_likelihood, held_out))

    grid = [i / 100 for i in range(1, 100)]
    assert max(likelihood(a, b) for a in grid for b in grid) <= likelihoods[-1] + 1e-6
    for direction in (1e-3, -1e-3):
        for moved in ((weights[0] + direction, weights[1]), (weights[0], weights[1] + direction)):
            if all(0 <= weight <= 1 for weight in moved):
                assert likelihood(*moved) <= likelihoods[-1] + 1e-12


@given(corpus=texts)
@law
def test_kneser_ney_keeps_the_marginals(corpus: list[str]) -> None:
    counts = N.ngram_counts(corpus, 2)
    model = N.NGramModel(LETTERS, _kneser_ney_without_floor(corpus))
    total = Counter[Any]()
    for (h, _), n in counts[1].items():
        total[h] += n
    for w in LETTERS:
        marginal = sum(n * model.probability(after((h,)), w) for h, n in total.items())
        assert marginal == pytest.approx(counts[0][w,])


def _kneser_ney_without_floor(corpus: list[str]) -> list[N.Level]:
    """Bigrams with discount 0.6 over the plain continuation distribution, which is not smoothed further."""
    places = N.continuation_counts(N.ngram_counts(corpus, 2))[0]
    lower = N.Level({g: n / places.total() for g, n in places.items()}, {(): 0.0})
    return [lower, N.kneser_ney(corpus, 2, discount=0.6, vocabulary=LETTERS).levels[1]]


@every
def test_a_text_with_an_end_is_a_distribution_over_all_texts(build: Build) -> None:
    model = build(["ab.", "b.", "aab."], 2, vocabulary="ab.")
    mass, open_texts = 0.0, {"": 1.0}
    for _ in range(18):  # the mass of all texts of up to 18 symbols, and what is left to longer ones
        grown = {text + w: p * q for text, p in open_texts.items() for w, q in model.distribution(text).items()}
        mass += sum(p for text, p in grown.items() if text[-1] == ".")
        merged: dict[str, float] = defaultdict(float)
        for text, p in grown.items():
            if text[-1] != ".":
                merged[text[-1]] += p
        open_texts = dict(merged)  # an order-2 model sees the last symbol only
        assert mass + sum(open_texts.values()) == pytest.approx(1)
    assert mass > 0.97


@every
@given(corpus=texts, order=orders, text=st.text("abcd", min_size=1, max_size=8))
@law
def test_likelihood_perplexity_and_bits_agree(build: Build, corpus: list[str], order: int, text: str) -> None:
    model = build(corpus, order, vocabulary=LETTERS)
    p = math.prod(model.probability(text[:t], w) for t, w in enumerate(text))
    if p == 0:
        assert (model.log_likelihood(text), model.perplexity(text)) == (-math.inf, math.inf)
        return
    assert math.exp(model.log_likelihood(text)) == pytest.approx(p)
    assert model.perplexity(text) == pytest.approx(p ** (-1 / len(text)))
    assert model.bits_per_byte(text) == pytest.approx(math.log2(model.perplexity(text)))
    assert model.bits_per_byte(text, 3 * len(text)) == pytest.approx(model.bits_per_byte(text) / 3)


def test_samples_follow_the_model_and_the_seed() -> None:
    model = N.add_k(["aab.", "ab."], 2, k=0.5)
    assert model.sample(20, seed=3) == model.sample(20, seed=3)
    assert model.sample(20, seed=3) != model.sample(20, seed=4)
    first = Counter(model.sample(1, seed=seed)[0] for seed in range(3000))
    for w, p in model.distribution().items():
        assert abs(first[w] / 3000 - p) <= 4 * math.sqrt(p * (1 - p) / 3000)
    ended = model.sample(500, prompt="a", end=".")
    assert ended.index(".") == len(ended) - 1
    assert N.maximum_likelihood(["abc"], 2).sample(2, prompt="a") == ["b", "c"]


def test_any_symbols_will_do_and_bytes_are_ids() -> None:
    words = N.kneser_ney([["the", "cat", "sat"], ["the", "dog", "sat"]], 2)
    assert words.probability(["the"], "cat") == words.probability(["the"], "dog") > words.probability(["the"], "sat")
    data = "小猫, ok".encode()
    model = N.witten_bell([data], 6, vocabulary=range(256))
    assert model.bits_per_byte(data) < 8
    assert N.add_k([b"a"], 1, k=1e12, vocabulary=range(256)).bits_per_byte(data) == pytest.approx(8)
    assert (model.order, len(model.vocabulary)) == (6, 256)


def test_stupid_backoff_is_its_formula_and_does_not_sum_to_one() -> None:
    scores = N.StupidBackoff(["abc", "abd"], 3)
    assert scores.score("ab", "c") == 1 / 2
    assert scores.score("ab", "a") == pytest.approx(0.4**2 * 2 / 6)
    assert scores.score("db", "c") == pytest.approx(0.4 * 1 / 2)
    assert scores.score("", "a") == 1.0
    assert scores.score("ab", "z") == 0.0
    assert sum(scores.score("ab", w) for w in LETTERS) > 1.05


# --- errors


@every
@pytest.mark.parametrize(
    ("corpus", "order", "options", "message"),
    [
        ([], 1, {}, "number of symbols in the corpus is 0, expected at least 1: the corpus is empty"),
        (["", ""], 2, {}, "number of symbols in the corpus is 0"),
        (["ab"], 1, {"vocabulary": "a"}, r"1 symbols of the text are not in the vocabulary of 1, the first is 'b'"),
        (["ab"], 1, {"vocabulary": ""}, "size of the vocabulary is 0"),
        (["ab"], 1, {"vocabulary": ["a", "b", None]}, "symbol 2 of the vocabulary is None"),
        ([["a", None]], 2, {}, "the corpus contains None 1 times"),
    ],
)
def test_bad_text_is_refused(build: Build, corpus: Any, order: int, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(corpus, order, **options)


@pytest.mark.parametrize("order", [0, -2])
@pytest.mark.parametrize("build", [N.maximum_likelihood, N.witten_bell, N.kneser_ney, N.StupidBackoff])
def test_an_order_below_one_is_refused(build: Any, order: int) -> None:
    with pytest.raises(ValueError, match=f"order is {order}, expected at least 1"):
        build(["ab"], order)


@pytest.mark.parametrize("k", [0.0, -1.0, math.nan, math.inf])
def test_k_must_be_positive(k: float) -> None:
    with pytest.raises(ValueError, match=f"k is {k}, expected a number above 0"):
        N.add_k(["ab"], 1, k=k)


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_lies_between_zero_and_one(discount: float) -> None:
    for build in (N.kneser_ney, N.absolute_discounting):
        with pytest.raises(ValueError, match=f"discount is {discount}, expected a number between 0 and 1"):
            build(["ab"], 1, discount=discount)


def test_other_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="2 weights for order 3"):
        N.jelinek_mercer(["ab"], 3, weights=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"weight 1\.5 is not between 0 and 1"):
        N.jelinek_mercer(["ab"], 1, weights=[1.5])
    with pytest.raises(ValueError, match="steps is -1"):
        N.interpolation_weights(["ab"], ["ab"], 1, steps=-1)
    with pytest.raises(ValueError, match="the corpus is empty"):
        N.interpolation_weights(["ab"], [], 1)
    with pytest.raises(ValueError, match="1 symbols of the text are not in the vocabulary of 2, the first is 'z'"):
        N.interpolation_weights(["ab"], ["z"], 1, vocabulary="ab")
    with pytest.raises(ValueError, match="alpha is 0"):
        N.StupidBackoff(["ab"], 1, alpha=0)
    with pytest.raises(ValueError, match="number of levels is 0"):
        N.NGramModel("ab", [])


def test_unknown_symbols_are_refused_by_name() -> None:
    model = N.witten_bell(["ab"], 2)
    message = "symbol 'z' is not in the vocabulary of 2 symbols"
    for call in (
        lambda: model.probability("a", "z"),
        lambda: model.probability("z", "a"),
        lambda: model.distribution("z"),
        lambda: model.log_likelihood("az"),
        lambda: model.sample(1, prompt="z"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="length of the sequence is 0"):
        model.perplexity("")
    with pytest.raises(ValueError, match="n_bytes is 0"):
        model.bits_per_byte("")
    with pytest.raises(ValueError, match="length is -1"):
        model.sample(-1)
