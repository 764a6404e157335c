"""Unigram: each text has many cuts into pieces, each cut a probability; the best one encodes the text.

The functions take a text and the log-probability of every piece. All cuts of a text are the paths of a lattice whose
nodes are the places between its characters, so what is asked of exponentially many cuts (the best one, their sum, one
at random) is answered in one pass from left to right. :class:`Unigram` is the tokenizer, with the ids that the
tokenizers library gives for the same file.
"""

import heapq
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from llm_study.core.checks import check_at_least
from llm_study.tokenizers._files import added_tokens, check_special, special_entries, write_json
from llm_study.tokenizers._normalize import normalizer_of
from llm_study.tokenizers._unicode import WHITE_SPACE
from llm_study.tokenizers.base import check_text, read_tokenizer_json, split_special

__all__ = [
    "segmentations",
    "viterbi",
    "log_likelihood",
    "expected_counts",
    "n_best",
    "sample_segmentation",
    "em_step",
    "removal_losses",
    "seed_pieces",
    "estimate_and_prune",
    "metaspace",
    "Unigram",
]

SPACE = "\u2581"  # ▁ stands for a space, so that a piece may begin with one
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
BYTE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
UNK_PENALTY = 10.0  # an unknown character is this much less probable, in nats, than the least probable piece
FLOOR = -25.0  # a character that longer pieces make superfluous keeps this log-probability, for texts to come
Arc = tuple[int, int, float]


# --- the lattice


def segmentations(text: str, logp: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """Enumerate all cuts of a text into known pieces: the definition, at exponential cost.

    Args:
        text: the text.
        logp: log-probability of each piece.

    Yields:
        The pieces of each cut.

    Example:
        >>> list(segmentations("abc", {"a": -1.0, "b": -1.0, "c": -1.0, "ab": -1.5, "bc": -2.5}))
        [('a', 'b', 'c'), ('a', 'bc'), ('ab', 'c')]
    """
    if not text:
        yield ()
    for end in range(1, len(text) + 1):
        if text[:end] in logp:
            yield from ((text[:end], *rest) for rest in segmentations(text[end:], logp))


def _arcs(text: str, logp: Mapping[str, float], unk: float | None, longest: int | None) -> Iterator[Arc]:
    """Yield every piece of a text as start, end and score; a character that is no piece has the score ``unk``."""
    longest = max(map(len, logp), default=1) if longest is None else longest
    n = len(text)
    for start in range(n):
        for end in range(start + 1, min(start + longest, n) + 1):
            score = logp.get(text[start:end])
            if score is not None:
                yield start, end, score
        if unk is not None and text[start] not in logp:
            yield start, start + 1, unk


def viterbi(text: str, logp: Mapping[str, float], *, unk: float | None = None, longest: int | None = None) -> list[str]:
    r"""Return the most probable cut of a text.

    .. math:: v_j = \max_{i < j,\; x_{i:j} \in V} \bigl(v_i + \ln p(x_{i:j})\bigr), \qquad v_0 = 0

    Args:
        text: the text.
        logp: log-probability of each piece.
        unk: log-probability of a character that is no piece. Default: it is impossible.
        longest: characters of the longest piece, if the caller knows it.

    Returns:
        The pieces. Of several best cuts, the one whose last piece is longest, then the last but one, and so on.

    Raises:
        ValueError: if the text cannot be cut.

    Cost: ``n * longest`` lookups for ``n`` characters.

    References:
        Viterbi (1967); for pieces of words Kudo (2018), arXiv:1804.10959, section 3.2.

    Example:
        >>> viterbi("abc", {"a": -1.0, "b": -1.0, "c": -1.0, "ab": -1.5, "bc": -2.5})
        ['ab', 'c']
    """
    best = [-math.inf] * (len(text) + 1)
    best[0] = 0.0
    back = [-1] * (len(text) + 1)
    for start, end, score in _arcs(text, logp, unk, longest):
        if best[start] + score > best[end]:
            best[end], back[end] = best[start] + score, start
    _check_reached(text, best)
    pieces: list[str] = []
    end = len(text)
    while end:
        pieces.append(text[back[end] : end])
        end = back[end]
    return pieces[::-1]


def _check_reached(text: str, scores: Sequence[float]) -> None:
    if scores[-1] == -math.inf:
        furthest = max(i for i, score in enumerate(scores) if score > -math.inf)
        raise ValueError(f"no pieces cut the text beyond index {furthest} of {len(text)}, {text[furthest]!r}: give unk")


def _logaddexp(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def _forward(n: int, arcs: Iterable[Arc]) -> list[float]:
    alpha = [-math.inf] * (n + 1)
    alpha[0] = 0.0
    for start, end, score in arcs:
        if alpha[start] > -math.inf:
            alpha[end] = _logaddexp(alpha[end], alpha[start] + score)
    return alpha


def _backward(n: int, arcs: Sequence[Arc]) -> list[float]:
    beta = [-math.inf] * (n + 1)
    beta[n] = 0.0
    for start, end, score in reversed(arcs):
        if beta[end] > -math.inf:
            beta[start] = _logaddexp(beta[start], score + beta[end])
    return beta


def log_likelihood(
    text: str, logp: Mapping[str, float], *, unk: float | None = None, longest: int | None = None
) -> float:
    r"""Return the log-probability of a text, summed over all its cuts.

    .. math:: \alpha_j = \sum_{i < j,\; x_{i:j} \in V} \alpha_i\, p(x_{i:j}), \quad \alpha_0 = 1, \quad P(x) = \alpha_n

    Args:
        text: the text.
        logp: log-probability of each piece.
        unk: log-probability of a character that is no piece. Default: it is impossible.
        longest: characters of the longest piece, if the caller knows it.

    Returns:
        The sum in nats, ``-inf`` if the text cannot be cut.

    Example:
        >>> half = {"a": math.log(0.5), "aa": math.log(0.5)}
        >>> round(math.exp(log_likelihood("aa", half)), 4)  # 1/4 + 1/2
        0.75
    """
    return _forward(len(text), _arcs(text, logp, unk, longest))[-1]


def expected_counts(
    text: str, logp: Mapping[str, float], *, longest: int | None = None
) -> tuple[float, dict[str, float]]:
    r"""Return the log-probability of a text and how often each piece occurs in it, on average over all cuts.

    .. math:: \mathbb{E}[c_w] = \frac{1}{P(x)} \sum_{i < j,\; x_{i:j} = w} \alpha_i\, p(w)\, \beta_j

    Args:
        text: the text.
        logp: log-probability of each piece.
        longest: characters of the longest piece, if the caller knows it.

    Returns:
        The log-probability in nats, and the expected count of each piece that is in the text.

    Raises:
        ValueError: if the text cannot be cut.

    Cost: two passes over at most ``n * longest`` arcs.

    References:
        The forward-backward algorithm, Baum et al. (1970).

    Example:
        >>> half = {"a": math.log(0.5), "aa": math.log(0.5)}
        >>> total, counts = expected_counts("aa", half)
        >>> {piece: round(count, 4) for piece, count in counts.items()}  # a cut of two a has probability 1/3
        {'a': 0.6667, 'aa': 0.6667}
    """
    arcs = list(_arcs(text, logp, None, longest))
    alpha, beta = _forward(len(text), arcs), _backward(len(text), arcs)
    _check_reached(text, alpha)
    counts: defaultdict[str, float] = defaultdict(float)
    for start, end, score in arcs:
        counts[text[start:end]] += math.exp(alpha[start] + score + beta[end] - alpha[-1])
    return alpha[-1], dict(counts)


def n_best(
    text: str, logp: Mapping[str, float], n: int, *, unk: float | None = None, longest: int | None = None
) -> list[tuple[float, list[str]]]:
    """Return the most probable cuts of a text, the best first.

    Args:
        text: the text.
        logp: log-probability of each piece.
        n: how many; fewer if there are no more.
        unk: log-probability of a character that is no piece. Default: it is impossible.
        longest: characters of the longest piece, if the caller knows it.

    Returns:
        Log-probability and pieces of each.

    Raises:
        ValueError: if ``n`` is below 1, or the text cannot be cut.

    Cost: each place keeps its ``n`` best beginnings, so ``n`` times that of :func:`viterbi`, and a sort.

    Example:
        >>> [cut for _, cut in n_best("abc", {"a": -1.0, "b": -1.0, "c": -1.0, "ab": -1.5, "bc": -2.5}, 2)]
        [['ab', 'c'], ['a', 'b', 'c']]
    """
    check_at_least("n", n, 1)
    arriving: list[list[tuple[float, int, int]]] = [[] for _ in range(len(text) + 1)]  # score, where from, which there
    kept: list[list[tuple[float, int, int]]] = [[] for _ in range(len(text) + 1)]
    kept[0] = [(0.0, -1, -1)]
    for start, end, score in _arcs(text, logp, unk, longest):
        if start and not kept[start]:
            kept[start] = heapq.nlargest(n, arriving[start], key=lambda arrival: arrival[0])
        arriving[end] += [(before + score, start, rank) for rank, (before, _, _) in enumerate(kept[start])]
    kept[-1] = heapq.nlargest(n, arriving[-1], key=lambda arrival: arrival[0]) if text else kept[0]
    _check_reached(text, [0.0 if beginnings else -math.inf for beginnings in kept])

    def pieces(end: int, rank: int) -> list[str]:
        _, start, before = kept[end][rank]
        return [*pieces(start, before), text[start:end]] if end else []

    return [(score, pieces(len(text), rank)) for rank, (score, _, _) in enumerate(kept[-1])]


def sample_segmentation(
    text: str,
    logp: Mapping[str, float],
    *,
    rng: Random,
    alpha: float = 1.0,
    unk: float | None = None,
    longest: int | None = None,
) -> list[str]:
    r"""Draw a cut of a text with a probability that is proportional to the ``alpha``-th power of its own.

    Sums are made from left to right, then pieces are drawn from right to left: the one that ends at :math:`j` begins at
    :math:`i` with probability :math:`\alpha_i\, p(x_{i:j}) / \alpha_j`.

    Args:
        text: the text.
        logp: log-probability of each piece.
        rng: source of random numbers.
        alpha: 1 draws as the model says, 0 makes all cuts equally probable, large values give the best cut.
        unk: log-probability of a character that is no piece. Default: it is impossible.
        longest: characters of the longest piece, if the caller knows it.

    Returns:
        The pieces.

    Raises:
        ValueError: if ``alpha`` is negative, or the text cannot be cut.

    References:
        Kudo (2018), arXiv:1804.10959, section 3.3.

    Example:
        >>> rng, half = Random(0), {"a": math.log(0.5), "aa": math.log(0.5)}
        >>> round(sum(sample_segmentation("aa", half, rng=rng) == ["aa"] for _ in range(3000)) / 3000, 4)  # near 2/3
        0.6617
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, expected at least 0")
    arcs = [(start, end, alpha * score) for start, end, score in _arcs(text, logp, unk, longest)]
    sums = _forward(len(text), arcs)
    _check_reached(text, sums)
    ending: list[list[tuple[int, float]]] = [[] for _ in sums]
    for start, end, score in arcs:
        if sums[start] > -math.inf:
            ending[end].append((start, math.exp(sums[start] + score - sums[end])))
    pieces: list[str] = []
    end = len(text)
    while end:
        starts, weights = zip(*ending[end], strict=True)
        (start,) = rng.choices(starts, weights)
        pieces.append(text[start:end])
        end = start
    return pieces[::-1]


# --- training


def seed_pieces(words: Mapping[str, int], *, size: int, max_length: int = 16) -> dict[str, float]:
    """Return pieces to start from: all characters, and the repeated substrings that cover most of the corpus.

    Args:
        words: how often each word occurs.
        size: how many pieces of several characters there may be.
        max_length: characters of the longest one.

    Returns:
        The log-probability of each piece, in proportion to occurrences times length.

    Raises:
        ValueError: if ``size`` is negative or ``max_length`` is below 1.

    References:
        SentencePiece takes substrings from a suffix array and ranks them by the same product.

    Example:
        >>> seeds = seed_pieces({"abab": 1, "abc": 2}, size=1)
        >>> sorted(seeds), round(sum(map(math.exp, seeds.values())), 4)
        (['a', 'ab', 'b', 'c'], 1.0)
    """
    check_at_least("size", size, 0)
    check_at_least("max_length", max_length, 1)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + max_length, len(word)) + 1):
                counts[word[start:end]] += count
    weights = {piece: count * len(piece) for piece, count in counts.items() if count > 1 or len(piece) == 1}
    several = sorted((piece for piece in weights if len(piece) > 1), key=lambda piece: (-weights[piece], piece))
    chosen = [*(piece for piece in weights if len(piece) == 1), *several[:size]]
    total = sum(weights[piece] for piece in chosen)
    return {piece: math.log(weights[piece] / total) for piece in chosen}


def em_step(words: Mapping[str, int], logp: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    r"""Make one step of expectation maximization, which never lowers the likelihood of the corpus.

    .. math:: p'(w) = \frac{\sum_s n_s\, \mathbb{E}_s[c_w]}{\sum_{w'} \sum_s n_s\, \mathbb{E}_s[c_{w'}]}

    Args:
        words: how often each word occurs.
        logp: log-probability of each piece.

    Returns:
        The log-likelihood of the corpus *before* the step, and the new log-probabilities. A piece that is in no word
        would get probability zero and is left out.

    Raises:
        ValueError: if there are no words, or one cannot be cut.

    Cost: that of :func:`expected_counts` for each different word.

    References:
        Kudo (2018), arXiv:1804.10959, section 3.2.

    Example:
        >>> logp = {"a": math.log(0.9), "aa": math.log(0.1)}
        >>> for _ in range(3):
        ...     total, logp = em_step({"aa": 2, "a": 1}, logp)
        ...     print(round(total, 4))
        -0.294
        -0.1368
        -0.0586
    """
    if not words:
        raise ValueError("there are 0 words, expected at least 1")
    longest = max(map(len, logp), default=1)
    total, counts = 0.0, defaultdict[str, float](float)
    for word, count in words.items():
        likelihood, expected = expected_counts(word, logp, longest=longest)
        total += count * likelihood
        for piece, c in expected.items():
            counts[piece] += count * c
    everything = sum(counts.values())
    return total, {piece: math.log(count / everything) for piece, count in counts.items() if count > 0}


def removal_losses(words: Mapping[str, int], logp: Mapping[str, float]) -> dict[str, float]:
    r"""Return by how much the log-likelihood of a corpus falls if one piece is taken away and the others stay.

    .. math:: \operatorname{loss}(w) = -\sum_s n_s \ln\bigl(1 - \Pr(w \text{ is in the cut of } s \mid s)\bigr)

    Args:
        words: how often each word occurs.
        logp: log-probability of each piece; all characters of the words must be pieces.

    Returns:
        The loss, in nats, of each piece of more than one character; 0 where no word contains it.

    Raises:
        ValueError: if a word cannot be cut.

    Cost: about that of :func:`em_step`; a word is cut again without a piece that it contains twice or needs badly.

    References:
        The loss is that of Kudo (2018), arXiv:1804.10959, section 3.2; SentencePiece estimates it from the best cuts.

    Example:
        >>> third = dict.fromkeys(["a", "b", "ab"], math.log(1 / 3))
        >>> round(removal_losses({"ab": 1}, third)["ab"], 4)  # from 1/3 + 1/9 to 1/9
        1.3863
    """
    longest = max(map(len, logp), default=1)
    losses = {piece: 0.0 for piece in logp if len(piece) > 1}
    for word, count in words.items():
        likelihood, expected = expected_counts(word, logp, longest=longest)
        for piece, c in expected.items():
            if len(piece) > 1:
                if c < 0.5 and word.find(piece) == word.rfind(piece):
                    losses[piece] -= count * math.log1p(-c)  # at one place only, so c is a probability
                else:
                    arcs = [arc for arc in _arcs(word, logp, None, longest) if word[arc[0] : arc[1]] != piece]
                    losses[piece] += count * (likelihood - _forward(len(word), arcs)[-1])
    return losses


def estimate_and_prune(
    words: Mapping[str, int], logp: Mapping[str, float], size: int, *, n_steps: int = 2, shrink: float = 0.75
) -> dict[str, float]:
    """Estimate and prune in turn until ``size`` pieces are left; the last of them are estimated once more.

    Args:
        words: how often each word occurs.
        logp: log-probability of the pieces to start from; all characters of the words must be pieces.
        size: how many pieces may be left; characters always stay.
        n_steps: steps of :func:`em_step` between two prunings.
        shrink: which part of the pieces of several characters each pruning keeps.

    Returns:
        The log-probability of each piece; that of a character is at least -25, so that it can be used in other texts.

    Raises:
        ValueError: if ``n_steps`` is below 1, ``shrink`` is not between 0 and 1, or ``size`` is below the number of
            different characters.

    Example:
        >>> words = {"abab": 3, "cab": 2, "ca": 1}
        >>> sorted(estimate_and_prune(words, seed_pieces(words, size=20), 4))
        ['a', 'abab', 'b', 'c']
    """
    characters = {character for word in words for character in word}
    check_at_least("n_steps", n_steps, 1)
    check_at_least("size", size, len(characters), hint="all characters stay")
    if not 0 < shrink < 1:
        raise ValueError(f"shrink is {shrink}, expected more than 0 and less than 1")
    model = dict(logp)
    while True:
        for _ in range(n_steps):
            model = em_step(words, model)[1]
            model |= {c: FLOOR for c in characters if model.get(c, -math.inf) < FLOOR}
        if len(model) <= size:
            return model
        losses = removal_losses(words, model)
        keep = max(size - len(characters), int(shrink * len(losses)))
        kept = set(sorted(losses, key=lambda piece: (-losses[piece], piece))[:keep])
        model = {piece: score for piece, score in model.items() if len(piece) == 1 or piece in kept}


# --- text into words


def metaspace(text: str, *, prepend: bool = True, split: bool = True) -> list[str]:
    """Write spaces as ``▁`` and cut before each.

    Args:
        text: the text.
        prepend: put a ``▁`` before the text, unless it begins with one.
        split: whether to cut.

    Returns:
        The words; joined they are the text with its ``▁``.

    Example:
        >>> metaspace("a cat  sat")
        ['▁a', '▁cat', '▁', '▁sat']
    """
    text = text.replace(" ", SPACE)
    if prepend and text and not text.startswith(SPACE):
        text = SPACE + text
    if not split:
        return [text] if text else []
    found: list[str] = re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text)
    return found


# --- the tokenizer


class Unigram:
    """A tokenizer that cuts each word into its most probable pieces.

    Args:
        pieces: each piece with its log-probability, in the order of ids.
        unk_id: id of an unknown character, or of several in a row. Default: there is none.
        byte_fallback: whether an unknown character becomes its bytes, pieces such as ``<0x41>``.
        special_tokens: pieces that plain text never becomes; the unknown token is one of them in any case.
        normalizer: entry of a ``tokenizer.json`` that says what is done to a text first. Default: nothing.
        pre_tokenizer: entry that says how words are made. Default: :func:`metaspace`.
        decoder: entry that says how words become text. Default: what undoes the pre-tokenizer.

    Raises:
        ValueError: if an entry asks for a step that this class does not know, ``unk_id`` or a special token is no
            piece, a piece occurs twice, or a byte is missing.

    Example:
        >>> tokenizer = Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁hug", -3.0), ("h", -4.0), ("ug", -3.5), ("s", -2.5)])
        >>> tokenizer.encode("hug hugs ug!")
        [2, 2, 5, 1, 4, 0]
        >>> tokenizer.decode([2, 2, 5, 1, 4])
        'hug hugs ug'
    """

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        *,
        unk_id: int | None = 0,
        byte_fallback: bool = False,
        special_tokens: Collection[str] = (),
        normalizer: Mapping[str, Any] | None = None,
        pre_tokenizer: Mapping[str, Any] | None = METASPACE,
        decoder: Mapping[str, Any] | None = None,
    ) -> None:
        self.pieces = [(piece, float(score)) for piece, score in pieces]
        self.ids = {piece: id for id, (piece, _) in enumerate(pieces)}
        self.unk_id, self.byte_fallback, self.special_tokens = unk_id, byte_fallback, tuple(special_tokens)
        self.normalizer, self.pre_tokenizer = normalizer, pre_tokenizer
        self.decoder = (BYTE_DECODER if byte_fallback else pre_tokenizer) if decoder is None else decoder
        self._check_pieces()
        self._normalize = normalizer_of(normalizer)
        self._split_words, self._prepend, self._cut = _pre_tokenizer_of(pre_tokenizer)
        self._decode_bytes, self._drop = _decoder_of(self.decoder)
        self._bytes = {id: bytes([b]) for b in range(256) if (id := self.ids.get(f"<0x{b:02X}>")) is not None}
        hidden = {*special_tokens} if unk_id is None else {*special_tokens, pieces[unk_id][0]}
        self.logp = {
            piece: score
            for id, (piece, score) in enumerate(self.pieces)
            if piece and piece not in hidden and not (byte_fallback and id in self._bytes)
        }
        self._longest = max(map(len, self.logp), default=1)
        self._unk = min(score for _, score in self.pieces) - UNK_PENALTY
        self._cache: dict[str, list[int]] = {}

    def _check_pieces(self) -> None:
        n = len(self.pieces)
        if len(self.ids) != n:
            raise ValueError(f"there are {n} pieces but only {len(self.ids)} different ones")
        if n == 0 or (self.unk_id is not None and not 0 <= self.unk_id < n):
            raise ValueError(f"unk_id is {self.unk_id}, expected an id of the {n} pieces")
        missing = [token for token in self.special_tokens if token not in self.ids]
        if self.byte_fallback:
            missing += [name for b in range(256) if (name := f"<0x{b:02X}>") not in self.ids]
        if missing:
            raise ValueError(f"{len(missing)} tokens are not among the {n} pieces, the first is {missing[0]}: add them")

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Turn text into the ids of its most probable pieces.

        Args:
            text: the text.
            allowed_special: special tokens that become their one id where the text spells them.

        Returns:
            The ids, without the tokens such as ``</s>`` that a model may want around them.

        Raises:
            ValueError: if the text holds a lone surrogate, a character is unknown and there is no unknown token, or an
                allowed special token is none of this tokenizer's.
        """
        return [id for word in self._words(text, allowed_special) for id in self._encode_word(word)]

    def sample(self, text: str, *, rng: Random, alpha: float = 1.0, allowed_special: Collection[str] = ()) -> list[int]:
        """Turn text into the ids of a random cut, another one each time: subword regularization.

        Args:
            text: the text.
            rng: source of random numbers.
            alpha: as in :func:`sample_segmentation`; 0.1 to 0.5 are usual.
            allowed_special: special tokens that become their one id where the text spells them.

        Returns:
            The ids.

        Raises:
            ValueError: as :meth:`encode`, and if ``alpha`` is negative.
        """
        ids: list[int] = []
        for word in self._words(text, allowed_special):
            if isinstance(word, int):
                ids.append(word)
            else:
                unk, longest = self._unk, self._longest
                ids += self._ids(sample_segmentation(word, self.logp, rng=rng, alpha=alpha, unk=unk, longest=longest))
        return ids

    def _words(self, text: str, allowed_special: Collection[str]) -> Iterator[str | int]:
        """Yield words, and special tokens as their ids."""
        check_text(text)
        check_special(allowed_special, self.special_tokens)
        first = True
        for part, special in split_special(text, allowed_special):
            if special:
                yield self.ids[part]
            else:
                normal = self._normalize(part)
                spans = WHITE_SPACE.split(normal) if self._split_words else [normal]
                for i, span in enumerate(spans):
                    prepend = self._prepend == "always" or (self._prepend == "first" and first and i == 0)
                    if self._prepend:
                        yield from metaspace(span, prepend=prepend, split=self._cut)
                    elif span:
                        yield span
            first = False

    def _encode_word(self, word: str | int) -> list[int]:
        if isinstance(word, int):
            return [word]
        ids = self._cache.get(word)
        if ids is None:
            ids = self._ids(viterbi(word, self.logp, unk=self._unk, longest=self._longest))
            if len(self._cache) < 2**16:
                self._cache[word] = ids
        return ids

    def _ids(self, pieces: Iterable[str]) -> list[int]:
        """Return the ids of pieces; unknown characters in a row are one unknown token, or their bytes."""
        ids: list[int] = []
        unknown = ""
        for piece in [*pieces, ""]:
            id = self.ids[piece] if piece in self.logp else None
            if unknown and (id is not None or not piece):
                ids += self._unknown_ids(unknown)
                unknown = ""
            if id is not None:
                ids.append(id)
            elif piece:
                unknown += piece
        return ids

    def _unknown_ids(self, text: str) -> list[int]:
        if self.byte_fallback:
            return [self.ids[f"<0x{byte:02X}>"] for byte in text.encode()]
        if self.unk_id is None:
            raise ValueError(f"{text!r} is unknown, and there is no unknown token: give unk_id")
        return [self.unk_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Args:
            ids: the ids.

        Returns:
            The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes.

        Args:
            ids: the ids.

        Returns:
            The bytes, which need not be UTF-8 where bytes stand for unknown characters.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return b"".join(self._bytes_of(id, first=i == 0) for i, id in enumerate(ids))

    def _bytes_of(self, id: int, *, first: bool) -> bytes:
        if not 0 <= id < len(self.pieces):
            raise ValueError(f"id {id} is not in the vocabulary of {len(self.pieces)} pieces")
        if self._decode_bytes and id in self._bytes:
            text = self._bytes[id]
        else:
            piece = self.pieces[id][0]
            if first and self._drop == "all":
                piece = piece.replace(SPACE, "")
            text = (piece.replace(SPACE, " ") if self._drop else piece).encode()
        return text.removeprefix(b" ") if first and self._drop == "one" else text

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        special_tokens: Sequence[str] = ("<unk>",),
        byte_fallback: bool = False,
        max_length: int = 16,
        seed_size: int | None = None,
        n_steps: int = 2,
        shrink: float = 0.75,
    ) -> "Unigram":
        """Make a vocabulary: from too many pieces, drop those that the likelihood misses least, and estimate again.

        Characters are never dropped, though longer pieces may leave them little probability. Between two prunings
        :func:`em_step` runs ``n_steps`` times.

        Args:
            texts: the corpus.
            vocab_size: how many pieces, special ones and bytes included; fewer if the corpus repeats too little.
            special_tokens: the first pieces; ``<unk>`` must be among them.
            byte_fallback: whether unknown characters become bytes; adds 256 pieces after the special ones.
            max_length: characters of the longest piece.
            seed_size: how many pieces of several characters to start from. Default: ten times ``vocab_size``.
            n_steps: steps of expectation maximization between two prunings.
            shrink: which part of the pieces each pruning keeps.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if the corpus is empty, or has a lone surrogate, ``vocab_size`` is too small for special tokens,
                bytes and characters, ``<unk>`` is missing, or an option is out of its range.

        Cost: each step, that of :func:`expected_counts` for each different word.
        """
        if "<unk>" not in special_tokens:
            raise ValueError(f"<unk> is not among the {len(special_tokens)} special tokens: add it")
        first = [*special_tokens, *(f"<0x{b:02X}>" for b in range(256) if byte_fallback)]
        words = _count_words(texts)
        characters = sorted({character for word in words for character in word})
        if vocab_size < len(first) + len(characters):
            what = f"{len(first)} special tokens and bytes and {len(characters)} characters"
            raise ValueError(f"vocab_size is {vocab_size}, expected at least {len(first) + len(characters)}: {what}")
        logp = seed_pieces(words, size=10 * vocab_size if seed_size is None else seed_size, max_length=max_length)
        logp = estimate_and_prune(words, logp, vocab_size - len(first), n_steps=n_steps, shrink=shrink)
        pieces = [(token, 0.0) for token in first] + sorted(logp.items(), key=lambda item: (-item[1], item[0]))
        unk_id = list(special_tokens).index("<unk>")
        return cls(pieces, unk_id=unk_id, byte_fallback=byte_fallback, special_tokens=special_tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``tokenizer.json`` for the tokenizers library and :meth:`load`.

        Args:
            path: the file.
        """
        model = {"type": "Unigram", "unk_id": self.unk_id, "vocab": self.pieces, "byte_fallback": self.byte_fallback}
        raw = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special_entries({token: self.ids[token] for token in self.special_tokens}),
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": None,
            "decoder": self.decoder,
            "model": model,
        }
        write_json(path, raw)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Unigram":
        """Read a ``tokenizer.json`` whose model is Unigram, as that of T5.

        Truncation, padding and the tokens that a post-processor puts around a text are no matter of this class.

        Args:
            path: the file, or the folder in which it lies.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, is of another model, or asks for a step that this class does not know.
        """
        raw = read_tokenizer_json(path)
        model = raw["model"]
        if model["type"] != "Unigram":
            raise ValueError(f"{path}: the model is {model['type']}, expected Unigram: load it with its own class")
        pieces = _pieces(path, model["vocab"])
        added, special = added_tokens(path, raw)
        known = {piece for piece, _ in pieces}
        for token, id in sorted(added.items(), key=lambda item: item[1]):
            if token not in known:
                if id != len(pieces):
                    raise ValueError(f"{path}: the added token {token!r} has id {id}, expected {len(pieces)}: a gap")
                pieces.append((token, 0.0))
        try:
            return cls(
                pieces,
                unk_id=model.get("unk_id"),
                byte_fallback=bool(model.get("byte_fallback")),
                special_tokens=special,
                normalizer=raw.get("normalizer"),
                pre_tokenizer=raw.get("pre_tokenizer"),
                decoder=raw.get("decoder") or {},
            )
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None


def _count_words(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        check_text(text)
        counts.update(metaspace(text))
    if not counts:
        raise ValueError("the corpus has 0 words, expected at least 1: give texts that are not empty")
    return counts


# --- the parts of a tokenizer.json


def _pieces(path: str | os.PathLike[str], vocab: object) -> list[tuple[str, float]]:
    try:
        if isinstance(vocab, list):
            return [(str(piece), float(score)) for piece, score in vocab]
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{path}: the vocab of the model is no list of pieces and scores: the file is damaged")


def _pre_tokenizer_of(entry: Mapping[str, Any] | None) -> tuple[bool, str, bool]:
    """Return whether white space cuts, when ▁ is put before a text (nothing: spaces stay), and whether ▁ cuts."""
    parts = list(entry.get("pretokenizers", [])) if entry and entry.get("type") == "Sequence" else [entry or {}]
    white = bool(parts) and parts[0].get("type") == "WhitespaceSplit"
    rest = parts[1:] if white else parts
    if rest in ([], [{}]):
        return white, "", False
    if len(rest) > 1 or rest[0].get("type") != "Metaspace" or rest[0].get("replacement") != SPACE:
        kinds = ", ".join(str(part.get("type")) for part in parts)
        raise ValueError(f"the pre_tokenizer is {kinds}, expected WhitespaceSplit, Metaspace with ▁, both or none")
    return white, _prepend_of(rest[0]), rest[0].get("split", True)


def _prepend_of(entry: Mapping[str, Any]) -> str:
    scheme = entry.get("prepend_scheme") or ("always" if entry.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise ValueError(f"the prepend_scheme of Metaspace is {scheme}, expected always, first or never")
    return str(scheme)


def _decoder_of(entry: Mapping[str, Any] | None) -> tuple[bool, str]:
    """Return whether pieces of bytes are bytes, and how ▁ of the first piece are dropped (nothing: ▁ stays)."""
    entry = dict(entry or {})
    if entry == BYTE_DECODER:
        return True, "one"
    if entry.get("type") == "Metaspace" and entry.get("replacement") == SPACE:
        return False, "none" if _prepend_of(entry) == "never" else "all"
    if entry.get("type") == "Sequence" and entry.get("pretokenizers"):  # a pre-tokenizer: what undoes its last part
        return _decoder_of(entry["pretokenizers"][-1])
    if not entry or entry.get("type") == "WhitespaceSplit":
        return False, ""
    raise ValueError(f"the decoder is {entry.get('type')}, expected Metaspace, the one of byte fallback, or none")
