"""WordPiece: merges that raise the likelihood most, and words cut greedily into the longest known pieces.

A word is cut from left to right; every piece but the first carries a prefix, ``##``, so that the pieces say where words
begin. :class:`WordPiece` does what BERT's tokenizer does, normalizing included, and gives the ids that the tokenizers
library gives for the same file.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from llm_study.tokenizers import _unicode
from llm_study.tokenizers._files import added_tokens, check_special, check_type, special_entries, write_json
from llm_study.tokenizers.base import check_text, read_tokenizer_json, split_special

__all__ = ["BertNormalizer", "bert_split", "longest_match", "pair_scores", "likelihood_gain", "WordPiece"]

Word = tuple[str, ...]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)
_MARKS, _SPACE = _unicode.PUNCTUATION.pattern, _unicode.WHITE_SPACE.pattern
_WORDS = re.compile(f"{_MARKS}|[^{_MARKS[1:-1]}{_SPACE[1:-1]}]+")
# what the decoder of the library puts back after each token
_CLEANUP = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]
_CLEANUP += [(" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]


# --- text into words


@dataclass(frozen=True)
class BertNormalizer:
    """What BERT does to a text before it is cut.

    Args:
        clean_text: remove control characters, make every kind of white space a space.
        handle_chinese_chars: put spaces around Chinese characters, so that each is a word.
        strip_accents: remove accents. Default: if letters are made small.
        lowercase: make letters small.

    Example:
        >>> BertNormalizer()("Crème  BRÛLÉE")
        'creme  brulee'
        >>> BertNormalizer(lowercase=False)("Crème 好")
        'Crème  好 '
    """

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None
    lowercase: bool = True

    def __call__(self, text: str) -> str:
        """Return the text as BERT sees it.

        Args:
            text: the text.

        Returns:
            The normalized text.
        """
        if self.clean_text:
            text = _unicode.WHITE_SPACE.sub(" ", _unicode.REMOVED.sub("", text))
        if self.handle_chinese_chars:
            text = _CHINESE.sub(r" \g<0> ", text)
        if self.lowercase if self.strip_accents is None else self.strip_accents:
            text = _unicode.ACCENT.sub("", _unicode.normal_form("NFD", text))
        return _unicode.lower(text) if self.lowercase else text


def bert_split(text: str) -> list[str]:
    """Cut a text at white space, and make each punctuation mark a word.

    Args:
        text: the text, normalized already.

    Returns:
        The words, without white space.

    Example:
        >>> bert_split("don't stop, now")
        ['don', "'", 't', 'stop', ',', 'now']
    """
    found: list[str] = _WORDS.findall(text)
    return found


# --- words into pieces


def longest_match(word: str, vocab: Collection[str], *, prefix: str = "##") -> list[str]:
    """Cut a word from left to right, each time the longest piece of the vocabulary that fits.

    Args:
        word: the word, not empty.
        vocab: the pieces; those that do not begin a word begin with ``prefix``.
        prefix: what marks a piece that does not begin a word.

    Returns:
        The pieces; none at all if at some point no piece fits, even if another cut of the word would have worked.

    Cost: at most ``n * (n + 1) / 2`` lookups for ``n`` characters.

    References:
        Devlin et al. (2019), arXiv:1810.04805, use it; the linear-time algorithm is Song et al. (2021),
        arXiv:2012.15524.

    Example:
        >>> longest_match("unaffable", {"un", "una", "##aff", "##ff", "##able"})
        ['una', '##ff', '##able']
        >>> longest_match("unaffable", {"un", "una", "##aff", "##able"})  # un + aff + able exists, but una is longer
        []
    """
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = prefix if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocab), None)
        if end is None:
            return []
        pieces.append(mark + word[start:end])
        start = end
    return pieces


# --- training


def pair_scores(words: Mapping[Word, int]) -> dict[tuple[str, str], float]:
    r"""Score every pair of neighbors by how much more often they meet than chance would have it.

    .. math:: \operatorname{score}(a, b) = \frac{n_{ab}}{n_a\, n_b}

    Times the number of all pieces it is the exponential of the pointwise mutual information.

    Args:
        words: how often each word occurs, the word being the tuple of its pieces.

    Returns:
        The score of each pair.

    References:
        Schuster and Nakajima (2012) merge what raises the likelihood most; of that, see :func:`likelihood_gain`, this
        formula keeps the mutual information and drops the count.

    Example:
        >>> pair_scores({("h", "##u", "##g"): 2, ("b", "##u", "##g"): 1})[("##u", "##g")]
        0.3333333333333333
    """
    pieces: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for piece in word:
            pieces[piece] += count
        for pair in pairwise(word):
            pairs[pair] += count
    return {(a, b): count / (pieces[a] * pieces[b]) for (a, b), count in pairs.items()}


def likelihood_gain(count_a: int, count_b: int, count_ab: int, total: int) -> float:
    r"""By how much the log-likelihood of a corpus grows if every ``ab`` becomes one piece.

    The corpus is a sequence of ``total`` independent pieces, each as probable as it is frequent. With
    :math:`\varphi(x) = x \ln x` its log-likelihood is :math:`\sum_t \varphi(n_t) - \varphi(N)`.

    Args:
        count_a: occurrences of ``a``.
        count_b: occurrences of ``b``, another piece than ``a``.
        count_ab: occurrences of ``a`` followed by ``b``.
        total: occurrences of all pieces.

    Returns:
        The gain in nats; to first order ``count_ab * (log(count_ab * total / (count_a * count_b)) - 1)``.

    Raises:
        ValueError: if ``count_ab`` is below 1 or above another count, or ``total`` is below ``count_a + count_b``.

    Example:
        >>> round(likelihood_gain(2, 2, 2, 4), 4)  # abab: from four times ln 1/2 to certainty
        2.7726
    """
    if not 1 <= count_ab <= min(count_a, count_b):
        raise ValueError(f"count_ab is {count_ab}, expected at least 1 and at most {min(count_a, count_b)}")
    if total < count_a + count_b:
        raise ValueError(f"total is {total}, expected at least {count_a} + {count_b}")

    def phi(x: int) -> float:
        return x * math.log(x) if x else 0.0

    before = phi(count_a) + phi(count_b) - phi(total)
    return phi(count_a - count_ab) + phi(count_b - count_ab) + phi(count_ab) - phi(total - count_ab) - before


class _Merger:
    """The words of a corpus while pairs are merged: what :func:`pair_scores` counts, kept up to date."""

    def __init__(self, words: Mapping[Word, int]) -> None:
        self.words = [list(word) for word in words]
        self.counts = list(words.values())
        self.pieces: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for index in range(len(self.words)):
            self._count(index, +1)

    def _count(self, index: int, sign: int) -> None:
        word, count = self.words[index], sign * self.counts[index]
        for piece in word:
            self.pieces[piece] += count
        for pair in pairwise(word):
            self.pairs[pair] += count
            if sign > 0:
                self.where[pair].add(index)

    def best(self, min_frequency: int) -> tuple[str, str] | None:
        """Return the pair of the highest score, of several the first in the alphabet."""
        pieces, found = self.pieces, None
        highest = 0.0
        for pair, count in self.pairs.items():
            if count >= min_frequency:
                score = count / (pieces[pair[0]] * pieces[pair[1]])
                if score > highest or (score == highest and found is not None and pair < found):
                    highest, found = score, pair
        return found

    def merge(self, pair: tuple[str, str], new: str) -> None:
        for index in self.where.pop(pair):
            self._count(index, -1)
            self.words[index] = _merged(self.words[index], pair, new)
            self._count(index, +1)
        self.pairs = Counter({pair: count for pair, count in self.pairs.items() if count})


def _merged(word: list[str], pair: tuple[str, str], new: str) -> list[str]:
    """Return a word in which each ``pair``, from the left, is one piece."""
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] = new
        else:
            out.append(piece)
    return out


# --- the tokenizer


class WordPiece:
    """A tokenizer that cuts each word greedily into the longest pieces that it knows.

    A word that cannot be cut is one unknown token, so text is not kept exactly: ``decode(encode(text))`` is the text in
    small letters, its words joined with spaces, without what was unknown.

    Args:
        vocab: id of each piece, special tokens included.
        unk_token: piece for a word that cannot be cut.
        prefix: what marks a piece that does not begin a word.
        max_word_length: longer words, in characters, are unknown.
        normalizer: what is done to a text first. Default: what BERT does; None for nothing.
        cleanup: whether decoding removes spaces before some punctuation.
        special_tokens: pieces that plain text never becomes.

    Raises:
        ValueError: if the unknown token or a special token is not in the vocabulary, or two pieces have one id.

    Example:
        >>> tokenizer = WordPiece({"[UNK]": 0, "hug": 1, "##s": 2, "!": 3})
        >>> tokenizer.encode("Hugs! Bugs!")
        [1, 2, 3, 0, 3]
        >>> tokenizer.decode([1, 2, 3])
        'hugs!'
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        unk_token: str = "[UNK]",
        prefix: str = "##",
        max_word_length: int = 100,
        normalizer: BertNormalizer | None = BertNormalizer(),
        cleanup: bool = True,
        special_tokens: Collection[str] = (),
    ) -> None:
        missing = [token for token in (unk_token, *special_tokens) if token not in vocab]
        if missing:
            raise ValueError(f"the vocabulary of {len(vocab)} pieces lacks {', '.join(missing)}: add them to it")
        self.vocab = dict(vocab)
        self.pieces = {id: piece for piece, id in vocab.items()}
        if len(self.pieces) != len(vocab):
            raise ValueError(f"the vocabulary has {len(vocab)} pieces but {len(self.pieces)} different ids")
        self.unk_token, self.prefix, self.max_word_length = unk_token, prefix, max_word_length
        self.normalizer, self.cleanup, self.special_tokens = normalizer, cleanup, tuple(special_tokens)
        self._plain = {piece: id for piece, id in vocab.items() if piece not in set(special_tokens)}
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, which is how many rows an embedding table needs."""
        return max(self.pieces) + 1

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Turn text into ids.

        Args:
            text: the text.
            allowed_special: special tokens that become their one id where the text spells them.

        Returns:
            The ids, without the tokens such as ``[CLS]`` that a model may want around them.

        Raises:
            ValueError: if the text holds a lone surrogate, or an allowed special token is none of this tokenizer's.
        """
        check_text(text)
        check_special(allowed_special, self.special_tokens)
        ids: list[int] = []
        for piece, special in split_special(text, allowed_special):
            if special:
                ids.append(self.vocab[piece])
            else:
                for word in bert_split(self.normalizer(piece) if self.normalizer else piece):
                    ids += self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids = self._cache.get(word)
        if ids is None:
            short = len(word) <= self.max_word_length
            pieces = longest_match(word, self._plain, prefix=self.prefix) if short else []
            ids = [self._plain[piece] for piece in pieces] or [self.vocab[self.unk_token]]
            if len(self._cache) < 2**16:
                self._cache[word] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text: words joined with spaces, pieces without their prefix.

        Args:
            ids: the ids.

        Returns:
            The text.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return "".join(self._text_of(id, first=i == 0) for i, id in enumerate(ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into the UTF-8 bytes of their text.

        Args:
            ids: the ids.

        Returns:
            The bytes.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return self.decode(ids).encode()

    def _text_of(self, id: int, *, first: bool) -> str:
        if id not in self.pieces:
            raise ValueError(f"id {id} is not in the vocabulary, whose largest is {self.vocab_size - 1}")
        text = self.pieces[id]
        if not first:
            text = text.removeprefix(self.prefix) if text.startswith(self.prefix) else " " + text
        if self.cleanup:
            for old, new in _CLEANUP:
                text = text.replace(old, new)
        return text

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        special_tokens: Sequence[str] = SPECIAL,
        min_frequency: int = 2,
        normalizer: BertNormalizer | None = BertNormalizer(),
    ) -> "WordPiece":
        """Make a vocabulary: all characters, then one piece after another by :func:`pair_scores`.

        Args:
            texts: the corpus.
            vocab_size: how many pieces, special ones included; fewer if the corpus has no more pairs.
            special_tokens: the first pieces; ``[UNK]`` must be among them.
            min_frequency: pairs that occur less often are not merged; without it the rarest pairs win.
            normalizer: what is done to a text first; None for nothing.

        Returns:
            The tokenizer. Of pairs with the same score, the first in the alphabet is merged.

        Raises:
            ValueError: if the corpus has no words, or a lone surrogate, or ``vocab_size`` is too small for special
                tokens and characters, or ``[UNK]`` is missing.

        Cost: each merge looks at every pair once.
        """
        counts = _count_words(texts, normalizer)
        merger = _Merger({_characters(word): count for word, count in counts.items()})
        vocab = dict.fromkeys([*special_tokens, *sorted(merger.pieces)])
        if vocab_size < len(vocab):
            what = f"{len(special_tokens)} special tokens and {len(merger.pieces)} characters"
            raise ValueError(f"vocab_size is {vocab_size}, expected at least {len(vocab)}: there are {what}")
        while len(vocab) < vocab_size and (pair := merger.best(min_frequency)):
            new = pair[0] + pair[1].removeprefix("##")
            merger.merge(pair, new)
            vocab[new] = None
        ids = {piece: id for id, piece in enumerate(vocab)}
        return cls(ids, normalizer=normalizer, special_tokens=special_tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``tokenizer.json`` for the tokenizers library and :meth:`load`.

        Args:
            path: the file.
        """
        raw = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special_entries({token: self.vocab[token] for token in self.special_tokens}),
            "normalizer": {"type": "BertNormalizer", **asdict(self.normalizer)} if self.normalizer else None,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": self.prefix, "cleanup": self.cleanup},
            "model": {
                "type": "WordPiece",
                "unk_token": self.unk_token,
                "continuing_subword_prefix": self.prefix,
                "max_input_chars_per_word": self.max_word_length,
                "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])),
            },
        }
        write_json(path, raw)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WordPiece":
        """Read a ``tokenizer.json`` whose model is WordPiece, as that of BERT.

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
        if model["type"] != "WordPiece":
            raise ValueError(f"{path}: the model is {model['type']}, expected WordPiece: load it with its own class")
        check_type(path, raw, "pre_tokenizer", "BertPreTokenizer")
        prefix = model.get("continuing_subword_prefix", "##")
        added, special = added_tokens(path, raw)
        return cls(
            {**_vocab(path, model["vocab"]), **added},
            unk_token=model.get("unk_token", "[UNK]"),
            prefix=prefix,
            max_word_length=model.get("max_input_chars_per_word", 100),
            normalizer=_normalizer(path, raw),
            cleanup=_cleanup(path, raw, prefix),
            special_tokens=special,
        )


def _characters(word: str) -> Word:
    return (word[0], *("##" + character for character in word[1:]))


def _count_words(texts: Iterable[str], normalizer: BertNormalizer | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        check_text(text)
        counts.update(bert_split(normalizer(text) if normalizer else text))
    if not counts:
        raise ValueError("the corpus has 0 words, expected at least 1: give texts that are more than white space")
    return counts


# --- the parts of a tokenizer.json


def _vocab(path: str | os.PathLike[str], vocab: object) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(isinstance(id, int) for id in vocab.values()):
        raise ValueError(f"{path}: the vocab of the model is no object of pieces and ids: the file is damaged")
    return vocab


def _normalizer(path: str | os.PathLike[str], raw: Mapping[str, Any]) -> BertNormalizer | None:
    entry = check_type(path, raw, "normalizer", "BertNormalizer", None)
    entry.pop("type", None)
    return BertNormalizer(**entry) if entry else None


def _cleanup(path: str | os.PathLike[str], raw: Mapping[str, Any], prefix: str) -> bool:
    entry = check_type(path, raw, "decoder", "WordPiece", None)
    if entry.get("prefix", prefix) != prefix:
        raise ValueError(f"{path}: the decoder removes {entry['prefix']!r}, but the model writes {prefix!r}")
    return bool(entry.get("cleanup", True))
