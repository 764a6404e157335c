r"""Language models that count: n-grams with every classical smoothing, in plain Python.

An n-gram model of order ``n`` predicts a symbol from the ``n - 1`` symbols before it. A symbol is anything hashable: an
id, a byte, a character, a word; only ``None`` is taken, for the places before the beginning of a sequence. The
vocabulary is closed: what is not in it has no probability and is refused.

All models here share one form. With the context :math:`h` and the context :math:`h'` that is one symbol shorter,

.. math:: p(w \mid h) = a(w \mid h) + g(h)\,p(w \mid h'),

down to the uniform distribution :math:`1/V` below the empty context; a context that was never seen has
:math:`g(h) = 1`. A smoothing method is a rule for the shares :math:`a` and the rests :math:`g`. To have a distribution
over whole texts, end every sequence with a symbol of its own.
"""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from llm_study.core.checks import check_at_least

__all__ = [
    "Level",
    "NGramModel",
    "StupidBackoff",
    "ngram_counts",
    "continuation_counts",
    "discounts",
    "maximum_likelihood",
    "add_k",
    "jelinek_mercer",
    "interpolation_weights",
    "witten_bell",
    "absolute_discounting",
    "kneser_ney",
    "modified_kneser_ney",
]

Gram = tuple[Hashable, ...]
Sequences = Iterable[Sequence[Hashable]]


class Level(NamedTuple):
    """What contexts of one length contribute.

    Args:
        share: ``a(w | h)`` of each n-gram ``(*h, w)`` that was seen; 0 for all others.
        rest: ``g(h)`` of each context that was seen, the probability that is left to shorter contexts; 1 for others.

    Example:
        >>> Level({("a", "b"): 0.75}, {("a",): 0.25}).rest["a",]
        0.25
    """

    share: dict[Gram, float]
    rest: dict[Gram, float]


class NGramModel:
    """An n-gram language model; the functions of this module make it from text.

    Args:
        vocabulary: all symbols that it can predict.
        levels: what contexts of length 0, 1, 2, … contribute; their number is the order of the model.

    Raises:
        ValueError: if the vocabulary is empty or contains ``None``, or there is no level.

    References:
        Chen and Goodman (1999), An empirical study of smoothing techniques for language modeling.

    Example:
        >>> model = kneser_ney(["abab.", "abba."], 2)
        >>> round(model.probability("a", "b"), 4), round(sum(model.distribution("ab").values()), 12)
        (0.7143, 1.0)
    """

    def __init__(self, vocabulary: Iterable[Hashable], levels: Sequence[Level]) -> None:
        self.vocabulary = tuple(dict.fromkeys(vocabulary))
        _check_vocabulary(self.vocabulary)
        check_at_least("number of levels", len(levels), 1)
        self.levels = tuple(levels)
        self._known = frozenset(self.vocabulary)

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.levels)

    def probability(self, context: Sequence[Hashable], symbol: Hashable) -> float:
        """Probability that a symbol comes next.

        Args:
            context: all that came before in the sequence; the last ``order - 1`` symbols count, and a shorter one is
                the beginning of a sequence.
            symbol: what may come next.

        Returns:
            Its probability. Over the vocabulary the probabilities sum to 1, whatever the context.

        Raises:
            ValueError: if a symbol is not in the vocabulary.
        """
        self._check(symbol)
        return self._probability(self._context(context), symbol)

    def distribution(self, context: Sequence[Hashable] = ()) -> dict[Hashable, float]:
        """Probabilities of all symbols.

        Args:
            context: all that came before in the sequence.

        Returns:
            The probability of each symbol, in the order of the vocabulary.

        Raises:
            ValueError: if a symbol of the context is not in the vocabulary.
        """
        context = self._context(context)
        grams, p = self.vocabulary, [1 / len(self.vocabulary)] * len(self.vocabulary)
        for length, (share, rest) in enumerate(self.levels):
            h = context[len(context) - length :]
            if (g := rest.get(h)) is not None:  # contexts that were never seen leave everything to shorter ones
                p = [share.get((*h, w), 0.0) + g * q for w, q in zip(grams, p, strict=True)]
        return dict(zip(grams, p, strict=True))

    def log_probabilities(self, ids: Sequence[Hashable]) -> list[float]:
        """Log-probability of each symbol of a sequence, given what comes before it.

        Args:
            ids: one sequence.

        Returns:
            Natural logarithms, one for each symbol; ``-inf`` where the probability is 0.

        Raises:
            ValueError: if a symbol is not in the vocabulary.

        Cost: ``order`` look-ups for each symbol.
        """
        for symbol in dict.fromkeys(ids):
            self._check(symbol)
        padded, n = _padded(ids, self.order), self.order - 1
        values = (self._probability(padded[t : t + n], padded[t + n]) for t in range(len(ids)))
        return [math.log(p) if p > 0 else -math.inf for p in values]

    def log_likelihood(self, ids: Sequence[Hashable]) -> float:
        """Log-probability of a sequence, by the chain rule.

        Args:
            ids: one sequence, with its end symbol if the model was trained with one.

        Returns:
            The natural logarithm of its probability; ``-inf`` if that is 0.

        Raises:
            ValueError: if a symbol is not in the vocabulary.
        """
        return math.fsum(self.log_probabilities(ids))

    def perplexity(self, ids: Sequence[Hashable]) -> float:
        """Perplexity of a sequence: the exponential of its average loss in nats.

        Args:
            ids: one sequence, at least one symbol.

        Returns:
            The perplexity, between 1 and infinity; the size of the vocabulary for a model that knows nothing.

        Raises:
            ValueError: if the sequence is empty or a symbol is not in the vocabulary.
        """
        check_at_least("length of the sequence", len(ids), 1)
        loss = -self.log_likelihood(ids) / len(ids)
        return math.exp(loss) if loss < math.inf else math.inf

    def bits_per_byte(self, ids: Sequence[Hashable], n_bytes: int | None = None) -> float:
        """Bits that the model needs for each byte of text.

        Args:
            ids: one sequence, at least one symbol.
            n_bytes: number of bytes of the text. Default: the symbols are bytes.

        Returns:
            Bits per byte, which models with different symbols share.

        Raises:
            ValueError: if there are no symbols or no bytes, or a symbol is not in the vocabulary.
        """
        n_bytes = len(ids) if n_bytes is None else n_bytes
        check_at_least("n_bytes", n_bytes, 1)
        return -self.log_likelihood(ids) / math.log(2) / n_bytes

    def sample(
        self, length: int, *, seed: int = 0, prompt: Sequence[Hashable] = (), end: Hashable = None
    ) -> list[Hashable]:
        """Draw a text from the model, symbol by symbol.

        Args:
            length: how many symbols at most.
            seed: seed of the generator of random numbers; the same seed gives the same text.
            prompt: what the text goes on from.
            end: a symbol after which to stop. Default: none.

        Returns:
            The new symbols, without the prompt.

        Raises:
            ValueError: if the length is negative or a symbol of the prompt is not in the vocabulary.
        """
        check_at_least("length", length, 0)
        generator, text = random.Random(seed), list(prompt)
        for _ in range(length):
            weights = self.distribution(text)
            text += generator.choices(self.vocabulary, list(weights.values()))
            if end is not None and text[-1] == end:
                break
        return text[len(prompt) :]

    def _probability(self, context: Gram, symbol: Hashable) -> float:
        """Return the probability after a context that is padded to ``order - 1`` symbols; nothing is checked."""
        p, full = 1 / len(self.vocabulary), len(context)
        for length, (share, rest) in enumerate(self.levels):
            h = context[full - length :]
            if (g := rest.get(h)) is not None:
                p = share.get((*h, symbol), 0.0) + g * p
        return p

    def _context(self, context: Sequence[Hashable]) -> Gram:
        n = self.order - 1
        tail = tuple(context[max(len(context) - n, 0) :])
        for symbol in tail:
            self._check(symbol)
        return (None,) * (n - len(tail)) + tail

    def _check(self, symbol: Hashable) -> None:
        if symbol not in self._known:
            text = f"symbol {symbol!r} is not in the vocabulary of {len(self.vocabulary)} symbols"
            raise ValueError(f"{text}: give the vocabulary when training, or replace unknown symbols by one of it")


class StupidBackoff:
    r"""Scores of "stupid backoff": relative frequencies, or those of the shorter context times a constant.

    .. math::

        S(w \mid h) = \begin{cases} c(hw) / c(h) & c(hw) > 0, \\ \alpha\,S(w \mid h') & \text{otherwise.} \end{cases}

    They are fast and good for ranking, but no probabilities: they do not sum to 1, so that they have no perplexity.

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        alpha: the constant.

    Raises:
        ValueError: if the order is below 1, there is no text, or the constant is not between 0 and 1.

    References:
        Brants et al. (2007), Large Language Models in Machine Translation, section 4, which takes 0.4.

    Example:
        >>> scores = StupidBackoff(["ab", "ac"], 2)
        >>> scores.score("a", "b"), scores.score("b", "c")  # 1/2; backed off: 0.4 · 1/4
        (0.5, 0.1)
    """

    def __init__(self, sequences: Sequences, order: int, *, alpha: float = 0.4) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}, expected a number above 0, at most 1")
        self.alpha, self.counts = alpha, ngram_counts(sequences, order)
        self.totals = [_totals(counts) for counts in self.counts]

    def score(self, context: Sequence[Hashable], symbol: Hashable) -> float:
        """Score of a symbol; higher is likelier.

        Args:
            context: all that came before in the sequence.
            symbol: what may come next.

        Returns:
            A number between 0 and 1; 0 for a symbol that was never seen.
        """
        padded, factor = _padded(context, len(self.counts)), 1.0
        for length in reversed(range(len(self.counts))):
            h = padded[len(padded) - length :]
            if count := self.counts[length][*h, symbol]:
                return factor * count / self.totals[length][h]
            factor *= self.alpha
        return 0.0


def ngram_counts(sequences: Sequences, order: int) -> list[Counter[Gram]]:
    """Count n-grams of all lengths up to an order.

    Each symbol of a sequence ends one n-gram of each length; where fewer symbols came before it, ``None`` fills up.

    Args:
        sequences: texts, each a sequence of symbols; a single text goes into a list.
        order: length of the longest n-grams, at least 1.

    Returns:
        The counts of n-grams of length 1, 2, …, ``order``.

    Raises:
        ValueError: if the order is below 1, there is no symbol at all, or a symbol is ``None``.

    Cost: ``order`` dictionary updates for each symbol; memory grows with the number of different n-grams.

    Example:
        >>> ngram_counts(["aab"], 2)[1][None, "a"], ngram_counts(["aab"], 2)[0]["a",]
        (1, 2)
    """
    check_at_least("order", order, 1, hint="a model of order 1 has no context")
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sequence in sequences:
        padded = _padded(sequence, order)
        for n, counter in enumerate(counts, start=1):
            counter.update(zip(*(padded[order - n + i :] for i in range(n)), strict=False))
    check_at_least("number of symbols in the corpus", counts[0].total(), 1, hint="the corpus is empty")
    if (None,) in counts[0]:
        raise ValueError(f"the corpus contains None {counts[0][None,]} times: it stands for the place before a text")
    return counts


def continuation_counts(counts: Sequence[Mapping[Gram, int]]) -> list[Counter[Gram]]:
    r"""In how many different places an n-gram was seen: the number of different symbols before it.

    .. math:: N_{1+}(\bullet\,g) = \bigl|\{u : c(ug) > 0\}\bigr|

    Args:
        counts: counts of n-grams of length 1, 2, …, from :func:`ngram_counts`.

    Returns:
        For each length but the longest, the number of different n-grams that are one longer and end in it. The longest
        keep their counts: nothing longer was counted.

    References:
        Kneser and Ney (1995), Improved backing-off for m-gram language modeling.

    Example:
        >>> counts = ngram_counts(["ab", "cb", "cb"], 2)
        >>> counts[0]["b",], continuation_counts(counts)[0]["b",]  # seen three times, in two places
        (3, 2)
    """
    places = [Counter(gram[1:] for gram in longer) for longer in counts[1:]]
    return [*places, Counter(counts[-1])]


def discounts(counts: Mapping[Gram, int]) -> tuple[float, float, float]:
    r"""Estimate what to take off a count of 1, of 2, and of 3 or more.

    With :math:`n_r` the number of n-grams that occur :math:`r` times and :math:`Y = n_1 / (n_1 + 2 n_2)`,

    .. math:: D_1 = 1 - 2Y \frac{n_2}{n_1}, \qquad D_2 = 2 - 3Y \frac{n_3}{n_2}, \qquad D_{3+} = 3 - 4Y \frac{n_4}{n_3}.

    :math:`D_1` equals :math:`Y`, the single discount of the simpler methods. On a small text an estimate may be
    undefined or leave the range from 0 to the count; then :math:`Y` stands for it, and one half for :math:`Y` where
    nothing occurs once.

    Args:
        counts: counts of n-grams of one length.

    Returns:
        Three discounts, each above 0 and at most 1, 2 and 3.

    References:
        Chen and Goodman (1999), An empirical study of smoothing techniques for language modeling. The single discount:
        Ney, Essen and Kneser (1994), On structuring probabilistic dependences in stochastic language modelling.

    Example:
        >>> discounts({("a",): 1, ("b",): 1, ("c",): 2, ("d",): 3})  # Y = 2 / (2 + 2 · 1)
        (0.5, 0.5, 3.0)
    """
    n1, n2, n3, n4 = (sum(count == r for count in counts.values()) for r in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    d2 = 2 - 3 * y * n3 / n2 if n2 else y
    d3 = 3 - 4 * y * n4 / n3 if n3 else y
    return y, d2 if 0 < d2 <= 2 else y, d3 if 0 < d3 <= 3 else y


def maximum_likelihood(sequences: Sequences, order: int, *, vocabulary: Iterable[Hashable] | None = None) -> NGramModel:
    r"""Relative frequencies: the model that makes the training text as probable as possible.

    .. math:: p(w \mid h) = \frac{c(hw)}{c(h)}

    Args:
        sequences: the training text, at least one symbol.
        order: length of the n-grams, at least 1.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model. What was never seen has probability 0; after a context that was never seen, where the text says
        nothing, all symbols are equally likely.

    Raises:
        ValueError: if the order is below 1, there is no text, or the text has symbols that the vocabulary lacks.

    References:
        Chen and Goodman (1996), cmp-lg/9606011, section 1.

    Example:
        >>> maximum_likelihood(["ab", "ab", "ac"], 2).probability("a", "b")  # doctest: +ELLIPSIS
        0.666...
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    return _top_only(vocabulary, counts, 0.0)


def add_k(
    sequences: Sequences, order: int, *, k: float = 1.0, vocabulary: Iterable[Hashable] | None = None
) -> NGramModel:
    r"""Add ``k`` to each count: the posterior mean under a symmetric Dirichlet prior; ``k = 1`` is Laplace's rule.

    .. math:: p(w \mid h) = \frac{c(hw) + k}{c(h) + kV}

    Args:
        sequences: the training text, at least one symbol.
        order: length of the n-grams, at least 1.
        k: what is added, above 0.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if ``k`` is not above 0, the order is below 1, there is no text, or the text has symbols that the
            vocabulary lacks.

    References:
        Chen and Goodman (1996), cmp-lg/9606011, section 2, with its history.

    Example:
        >>> add_k(["ab", "ab", "ac"], 2).probability("a", "b")  # (2 + 1) / (3 + 3)
        0.5
    """
    if not 0 < k < math.inf:
        raise ValueError(f"k is {k}, expected a number above 0: maximum_likelihood is the model without it")
    counts, vocabulary = _count(sequences, order, vocabulary)
    return _top_only(vocabulary, counts, k * len(vocabulary))


def jelinek_mercer(
    sequences: Sequences, order: int, *, weights: Sequence[float], vocabulary: Iterable[Hashable] | None = None
) -> NGramModel:
    r"""Linear interpolation of relative frequencies of all lengths, with one weight for each length.

    .. math:: p(w \mid h) = \lambda_{|h|} \frac{c(hw)}{c(h)} + (1 - \lambda_{|h|})\,p(w \mid h')

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        weights: :math:`\lambda` for contexts of length 0, 1, …, ``order - 1``, each between 0 and 1;
            :func:`interpolation_weights` finds them.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if there are not ``order`` weights between 0 and 1, the order is below 1, there is no text, or the
            text has symbols that the vocabulary lacks.

    References:
        Jelinek and Mercer (1980), Interpolated estimation of Markov source parameters from sparse data.

    Example:
        >>> model = jelinek_mercer(["ab", "ab", "ac"], 2, weights=[1.0, 0.5])
        >>> model.probability("a", "b")  # (2/3 + 2/6) / 2
        0.5
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    _check_weights(weights, order)
    return NGramModel(vocabulary, [_mixed(level, weight) for level, weight in zip(counts, weights, strict=True)])


def interpolation_weights(
    sequences: Sequences,
    held_out: Sequences,
    order: int,
    *,
    vocabulary: Iterable[Hashable] | None = None,
    steps: int = 20,
) -> tuple[list[float], list[float]]:
    r"""Find the weights of :func:`jelinek_mercer` by expectation maximization on text that was held out.

    The model is read as a story: from the longest context that was seen, stop with probability
    :math:`\lambda_{|h|}` and draw from its relative frequencies, or go on to the next shorter one. Where each symbol
    stopped is not known; the E-step computes its probability, the M-step counts stops among visits. No step lowers the
    likelihood of the text held out.

    Args:
        sequences: the training text, at least one symbol.
        held_out: other text, at least one symbol. On the training text itself all weight would go to the longest.
        order: length of the longest n-grams, at least 1.
        vocabulary: all symbols that may occur. Default: those of the two texts.
        steps: how often E-step and M-step alternate.

    Returns:
        The weights for contexts of length 0, 1, …, and the log-likelihood of the held-out text, in nats, before each
        step and after the last.

    Raises:
        ValueError: if ``steps`` is negative, the order is below 1, a text is empty, or the vocabulary lacks a symbol.

    Cost: ``steps`` passes over the held-out text with ``order`` look-ups for each symbol.

    References:
        Jelinek and Mercer (1980), Interpolated estimation of Markov source parameters from sparse data.

    Example:
        >>> weights, likelihoods = interpolation_weights(["abab", "abba"], ["aba", "bab"], 2)
        >>> likelihoods == sorted(likelihoods)
        True
    """
    check_at_least("steps", steps, 0)
    sequences, held_out = list(sequences), list(held_out)
    seen = vocabulary if vocabulary is not None else (w for text in [*sequences, *held_out] for w in text)
    counts, vocabulary = _count(sequences, order, seen)
    totals = [_totals(level) for level in counts]
    events = ngram_counts(held_out, order)[-1]
    _check_symbols(events, vocabulary)
    rows = [(n, _frequencies(gram, counts, totals)) for gram, n in events.items()]
    weights, likelihoods = [0.5] * order, []
    for step in range(steps + 1):
        likelihood, stops, visits = _expect(rows, weights, 1 / len(vocabulary))
        likelihoods.append(likelihood)
        if step < steps:
            weights = [s / v if v else w for s, v, w in zip(stops, visits, weights, strict=True)]
    return weights, likelihoods


def witten_bell(sequences: Sequences, order: int, *, vocabulary: Iterable[Hashable] | None = None) -> NGramModel:
    r"""Leave as much to shorter contexts as new symbols came up: a first sight counts once more, as "something new".

    .. math:: p(w \mid h) = \frac{c(hw) + N_{1+}(h\,\bullet)\,p(w \mid h')}{c(h) + N_{1+}(h\,\bullet)}

    where :math:`N_{1+}(h\,\bullet)` is the number of different symbols seen after :math:`h`.

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if the order is below 1, there is no text, or the text has symbols that the vocabulary lacks.

    References:
        Witten and Bell (1991), The zero-frequency problem, method C.

    Example:
        >>> witten_bell(["ab", "ab", "ac"], 1).probability("", "a")  # (3 + 3 · 1/3) / (6 + 3)
        0.444...
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    return NGramModel(vocabulary, [_padded_with_new(level) for level in counts])


def absolute_discounting(
    sequences: Sequences,
    order: int,
    *,
    discount: float | None = None,
    vocabulary: Iterable[Hashable] | None = None,
) -> NGramModel:
    r"""Take the same amount off every count and leave it to shorter contexts.

    .. math:: p(w \mid h) = \frac{\max(c(hw) - D, 0)}{c(h)} + \frac{D\,N_{1+}(h\,\bullet)}{c(h)}\,p(w \mid h')

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        discount: :math:`D`, between 0 and 1, the same for all lengths. Default: :math:`n_1 / (n_1 + 2 n_2)` for each.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if the discount is not between 0 and 1, the order is below 1, there is no text, or the text has
            symbols that the vocabulary lacks.

    References:
        Ney, Essen and Kneser (1994), On structuring probabilistic dependences in stochastic language modelling.

    Example:
        >>> absolute_discounting(["ab", "ab", "ac"], 1, discount=0.5).probability("", "a")  # 2.5 / 6 + 1.5 / 6 · 1/3
        0.5
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    return NGramModel(vocabulary, [_discounted(level, _single(level, discount)) for level in counts])


def kneser_ney(
    sequences: Sequences,
    order: int,
    *,
    discount: float | None = None,
    vocabulary: Iterable[Hashable] | None = None,
) -> NGramModel:
    r"""Interpolated Kneser–Ney smoothing: shorter contexts count in how many places a symbol was seen, not how often.

    .. math:: p(w \mid h) = \frac{\max(c(hw) - D, 0)}{c(h)} + \frac{D\,N_{1+}(h\,\bullet)}{c(h)}\,p(w \mid h')

    with counts for the longest n-grams and :func:`continuation_counts` in place of :math:`c` for all shorter ones.

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        discount: :math:`D`, between 0 and 1, the same for all lengths. Default: :math:`n_1 / (n_1 + 2 n_2)` for each.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if the discount is not between 0 and 1, the order is below 1, there is no text, or the text has
            symbols that the vocabulary lacks.

    References:
        Kneser and Ney (1995), Improved backing-off for m-gram language modeling; interpolated: Chen and Goodman (1999).

    Example:
        >>> model = kneser_ney(["ab", "cb", "cb"], 2, discount=0.5)
        >>> round(model.probability("a", "b"), 4)  # 0.5 / 1 + 0.5 · (1.5 / 4 + 1.5 / 4 · 1/3)
        0.75
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    places = continuation_counts(counts)
    return NGramModel(vocabulary, [_discounted(level, _single(level, discount)) for level in places])


def modified_kneser_ney(
    sequences: Sequences, order: int, *, vocabulary: Iterable[Hashable] | None = None
) -> NGramModel:
    r"""Kneser–Ney smoothing with one discount for counts of 1, one for counts of 2, and one for all larger counts.

    .. math:: p(w \mid h) = \frac{c(hw) - D(c(hw))}{c(h)} + \frac{\sum_v D(c(hv))}{c(h)}\,p(w \mid h')

    with the three values of :func:`discounts` for each length, and continuation counts for all but the longest n-grams.

    Args:
        sequences: the training text, at least one symbol.
        order: length of the longest n-grams, at least 1.
        vocabulary: all symbols that may occur. Default: those of the text.

    Returns:
        The model.

    Raises:
        ValueError: if the order is below 1, there is no text, or the text has symbols that the vocabulary lacks.

    References:
        Chen and Goodman (1999), An empirical study of smoothing techniques for language modeling.

    Example:
        >>> model = modified_kneser_ney(["abracadabra."], 3)
        >>> round(sum(model.distribution("ab").values()), 12)
        1.0
    """
    counts, vocabulary = _count(sequences, order, vocabulary)
    return NGramModel(vocabulary, [_discounted(level, discounts(level)) for level in continuation_counts(counts)])


def _padded(sequence: Sequence[Hashable], order: int) -> Gram:
    return (None,) * (order - 1) + tuple(sequence)


def _count(
    sequences: Sequences, order: int, vocabulary: Iterable[Hashable] | None
) -> tuple[list[Counter[Gram]], tuple[Hashable, ...]]:
    """Count, and settle the vocabulary."""
    counts = ngram_counts(sequences, order)
    symbols = [gram[0] for gram in counts[0]]
    known = tuple(dict.fromkeys(symbols if vocabulary is None else vocabulary))
    _check_vocabulary(known)
    _check_symbols(counts[0], known)
    return counts, known


def _check_symbols(grams: Iterable[Gram], vocabulary: Sequence[Hashable]) -> None:
    if unknown := list(dict.fromkeys(gram[-1] for gram in grams if gram[-1] not in frozenset(vocabulary))):
        text = f"{len(unknown)} symbols of the text are not in the vocabulary of {len(vocabulary)}"
        raise ValueError(f"{text}, the first is {unknown[0]!r}: add them, or replace them by a symbol of it")


def _check_vocabulary(vocabulary: Sequence[Hashable]) -> None:
    check_at_least("size of the vocabulary", len(vocabulary), 1)
    if None in vocabulary:
        i = vocabulary.index(None)
        raise ValueError(f"symbol {i} of the vocabulary is None, which stands for what precedes a text")


def _check_weights(weights: Sequence[float], order: int) -> None:
    if len(weights) != order:
        raise ValueError(f"{len(weights)} weights for order {order}, expected one for each length of context")
    if bad := [weight for weight in weights if not 0 <= weight <= 1]:
        raise ValueError(f"weight {bad[0]} is not between 0 and 1")


def _totals(counts: Mapping[Gram, int]) -> dict[Gram, int]:
    """Sum the counts of each context."""
    totals: dict[Gram, int] = {}
    for gram, count in counts.items():
        h = gram[:-1]
        totals[h] = totals.get(h, 0) + count
    return totals


def _top_only(vocabulary: tuple[Hashable, ...], counts: Sequence[Mapping[Gram, int]], prior: float) -> NGramModel:
    """Use the longest n-grams alone, with ``prior`` counts that are spread evenly."""
    totals = _totals(counts[-1])
    share = {gram: count / (totals[gram[:-1]] + prior) for gram, count in counts[-1].items()}
    top = Level(share, {h: prior / (total + prior) for h, total in totals.items()})
    return NGramModel(vocabulary, [*(Level({}, {}) for _ in counts[1:]), top])


def _mixed(counts: Mapping[Gram, int], weight: float) -> Level:
    totals = _totals(counts)
    share = {gram: weight * count / totals[gram[:-1]] for gram, count in counts.items()}
    return Level(share, dict.fromkeys(totals, 1 - weight))


def _padded_with_new(counts: Mapping[Gram, int]) -> Level:
    totals, new = _totals(counts), Counter(gram[:-1] for gram in counts)
    share = {gram: count / (totals[gram[:-1]] + new[gram[:-1]]) for gram, count in counts.items()}
    return Level(share, {h: n / (totals[h] + n) for h, n in new.items()})


def _single(counts: Mapping[Gram, int], discount: float | None) -> tuple[float, float, float]:
    """Return one discount for all counts."""
    if discount is None:
        discount = discounts(counts)[0]
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount}, expected a number between 0 and 1: more than a count of 1 has not")
    return discount, discount, discount


def _discounted(counts: Mapping[Gram, int], by: tuple[float, float, float]) -> Level:
    """Take a discount off each count and leave the sum of what was taken to shorter contexts."""
    totals, share = _totals(counts), {}
    taken = dict.fromkeys(totals, 0.0)
    for gram, count in counts.items():
        h, off = gram[:-1], by[min(count, 3) - 1]
        share[gram] = (count - off) / totals[h]
        taken[h] += off
    return Level(share, {h: taken[h] / total for h, total in totals.items()})


def _frequencies(
    gram: Gram, counts: Sequence[Mapping[Gram, int]], totals: Sequence[Mapping[Gram, int]]
) -> list[tuple[int, float]]:
    """Return length of context and relative frequency of the last symbol, for the contexts that were seen."""
    found = []
    for length, (level, total) in enumerate(zip(counts, totals, strict=True)):
        tail = gram[len(gram) - length - 1 :]
        if n := total.get(tail[:-1]):
            found.append((length, level.get(tail, 0) / n))
    return found


def _expect(
    rows: Iterable[tuple[int, list[tuple[int, float]]]], weights: Sequence[float], uniform: float
) -> tuple[float, list[float], list[float]]:
    """E-step: the log-likelihood, and how often each length was stopped at and visited, in expectation."""
    likelihood, stops, visits = 0.0, [0.0] * len(weights), [0.0] * len(weights)
    for n, frequencies in rows:
        p, below = uniform, []
        for length, frequency in frequencies:  # from the shortest context up
            below.append(p)
            p = weights[length] * frequency + (1 - weights[length]) * p
        likelihood += n * math.log(p)
        reach = float(n)  # expected number of times that this length is reached, from the longest down
        for (length, frequency), rest in zip(reversed(frequencies), reversed(below), strict=True):
            stop, on = weights[length] * frequency, (1 - weights[length]) * rest
            visits[length] += reach
            stops[length] += reach * stop / (stop + on)
            reach *= on / (stop + on)
    return likelihood, stops, visits
