r"""Byte-level BPE: training, encoding, and the files of tokenizers and tiktoken.

Text is first cut into words by a regular expression, a word is written as its UTF-8 bytes, and pairs of neighbors are
merged in the order in which training found them. Ids 0 to 255 are the single bytes, in the order of GPT-2's vocabulary:
first those that are printable in Latin-1, then the rest. Id ``256 + k`` is what merge ``k`` made. No text is out of
vocabulary, and every sequence of bytes survives encoding and decoding.
"""

import base64
import binascii
import heapq
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from llm_study.core.checks import check_at_least
from llm_study.tokenizers._files import check_special, special_entries, write_json, write_text
from llm_study.tokenizers._regex import Pattern, as_of_unicode_16, compile_pattern
from llm_study.tokenizers.base import check_text, read_tokenizer_json, split_special

__all__ = [
    "PATTERNS",
    "split_words",
    "byte_alphabet",
    "bpe_reference",
    "train_bpe",
    "apply_merges_reference",
    "apply_merges",
    "ByteLevelBPE",
]

Pair = tuple[int, int]

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How GPT-2 and GPT-4 cut text into words, as published.

The first stands in ``encoder.py`` of openai/gpt-2, the second in ``openai_public.py`` of tiktoken. There version 0.14
has another alternative, ``\\s++$``, that joins a line end to the spaces after it when they end the text; Llama 3's
``tokenizer.json`` has the form that stands here.
"""

BYTES = 256
GONE = -1
WORD_CACHE, LONGEST_CACHED = 1 << 17, 256  # words remembered, characters of the longest


# --- bytes and words


def byte_alphabet() -> list[str]:
    r"""Return a visible character for each byte, as GPT-2 writes bytes in ``encoder.json`` and ``tokenizer.json``.

    The 188 bytes that are printable characters in Latin-1 stand for themselves; the other 68 get U+0100 and what
    follows. Sorted by these characters, the bytes have the ids 0 to 255.

    Returns:
        The characters, indexed by byte.

    Example:
        >>> alphabet = byte_alphabet()
        >>> "".join(alphabet[byte] for byte in " é\n".encode())
        'ĠÃ©Ċ'
    """
    others = iter(range(0x100, 0x100 + BYTES))
    return [chr(byte) if _is_printable(byte) else chr(next(others)) for byte in range(BYTES)]


def _is_printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)  # no spaces, no controls, no soft hyphen


_ALPHABET = byte_alphabet()
_BYTE_OF_ID = bytes(sorted(range(BYTES), key=_ALPHABET.__getitem__))
_ID_OF_BYTE = bytes(_BYTE_OF_ID.index(byte) for byte in range(BYTES))
_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(_ALPHABET)}


def split_words(text: str, pattern: str = "gpt4") -> list[str]:
    """Cut a text into words; no merge crosses the border between two.

    Letters and digits are those of Unicode 16.0, as in the libraries that this is tested against: characters that
    Unicode got later count as symbols, so that an update of ``regex`` does not change the ids of a text.

    Args:
        text: the text.
        pattern: a name in :data:`PATTERNS`.

    Returns:
        The words; joined they are the text.

    Raises:
        ValueError: if there is no such pattern.

    Example:
        >>> split_words("You're 12345 times  better")
        ['You', "'re", ' ', '123', '45', ' times', ' ', ' better']
        >>> split_words("You're 12345 times  better", "gpt2")
        ['You', "'re", ' 12345', ' times', ' ', ' better']
    """
    return _split(text, [_named(pattern)])


def _named(pattern: str) -> Pattern:
    if pattern not in PATTERNS:
        raise ValueError(f"there is no pattern {pattern!r}, expected one of {sorted(PATTERNS)}")
    return compile_pattern(PATTERNS[pattern])


def _split(text: str, steps: Sequence[Pattern]) -> list[str]:
    """Cut a text by one pattern, the pieces by the next, and so on."""
    shadow = as_of_unicode_16(text)
    if shadow == text and len(steps) == 1 and steps[0].pattern in PATTERNS.values():
        return steps[0].findall(text)  # these patterns leave no gap
    borders = [0, len(text)]
    for step in steps:
        borders = [b for start, end in pairwise(borders) for b in _borders(step, shadow, start, end)]
        borders.append(len(text))
    return [text[start:end] for start, end in pairwise(borders) if end > start]


def _borders(step: Pattern, text: str, start: int, end: int) -> Iterator[int]:
    """Yield where a piece begins, and where matches and gaps within it do; look at nothing outside the piece."""
    yield start
    for match in step.finditer(text[start:end]):
        yield start + match.start()
        if start + match.end() < end:
            yield start + match.end()


# --- training


def bpe_reference(words: Iterable[bytes], n_merges: int) -> list[Pair]:
    """Training of BPE, written as its definition; :func:`train_bpe` is the fast twin.

    Count all pairs of neighbors within words, merge the most frequent one everywhere, and begin again. Of pairs that
    are equally frequent, the one with the smallest ids wins, the left id first.

    Args:
        words: the words, repeated as often as the corpus has them.
        n_merges: how many merges to learn.

    Returns:
        The merges in order, fewer if no pair is left; merge ``k`` makes id ``256 + k``.

    Raises:
        ValueError: if ``n_merges`` is negative.

    Cost: ``n_merges`` passes over the corpus.

    References:
        Sennrich et al. (2016), arXiv:1508.07909, algorithm 1; on bytes: Radford et al. (2019).

    Example:
        >>> bpe_reference([b"abab", b"ab"], 2)  # a and b have the ids 64 and 65
        [(64, 65), (256, 256)]
    """
    check_at_least("n_merges", n_merges, 0)
    sequences, merges = [list(word.translate(_ID_OF_BYTE)) for word in words], []
    for new in range(BYTES, BYTES + n_merges):
        counts = Counter(pair for ids in sequences for pair in pairwise(ids))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        sequences = [_merge(ids, best, new) for ids in sequences]
        merges.append(best)
    return merges


def _merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Replace a pair from left to right."""
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        merged.append(new if found else ids[i])
        i += 2 if found else 1
    return merged


def train_bpe(word_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Training of BPE: the merges that :func:`bpe_reference` finds, without passing over the corpus again and again.

    Each distinct word is kept once, with how often it occurs. The count of every pair is kept up to date: a merge
    changes only the counts of pairs that touch it, and only in words that hold it, which an index names. A heap gives
    the most frequent pair; an entry whose count has fallen since is put back with what it is now.

    Args:
        word_counts: how often each word occurs.
        n_merges: how many merges to learn.

    Returns:
        The merges in order, fewer if no pair is left; merge ``k`` makes id ``256 + k``.

    Raises:
        ValueError: if ``n_merges`` is negative, or above the 1,113,856 that have a code point each.

    Cost: one pass over the distinct words, then work in proportion to the places where words are merged, and the
    logarithm of the number of pairs for each change of a count.

    References:
        Sennrich et al. (2016), arXiv:1508.07909, section 3.2, names the index; Zouhar et al. (2023), arXiv:2306.16837.

    Example:
        >>> train_bpe({b"abab": 1, b"ab": 1}, 2)
        [(64, 65), (256, 256)]
    """
    check_at_least("n_merges", n_merges, 0)
    if n_merges > 0x110000 - BYTES:
        raise ValueError(f"n_merges is {n_merges}, expected at most {0x110000 - BYTES}")
    corpus = _Corpus(word_counts)
    merges: list[Pair] = []
    while len(merges) < n_merges and (pair := corpus.most_frequent()):
        corpus.merge(pair, chr(BYTES + len(merges)))
        merges.append((ord(pair[0]), ord(pair[1])))
    return merges


class _Corpus:
    """Distinct words with the counts of their pairs; a word is a string, its characters are the ids.

    So a pair is a string of two characters, pairs compare as their ids do, and splitting and joining are C's work.
    """

    def __init__(self, word_counts: Mapping[bytes, int]) -> None:
        self.words = [word.translate(_ID_OF_BYTE).decode("latin-1") for word in word_counts]
        self.times = list(word_counts.values())
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.where: defaultdict[str, set[int]] = defaultdict(set)  # words that hold a pair, or held it once
        for i, word in enumerate(self.words):
            for left, right in pairwise(word):
                self.counts[left + right] += self.times[i]
                self.where[left + right].add(i)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def most_frequent(self) -> str | None:
        """Return the most frequent pair, the smallest of several; None if no pair is left."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            now = self.counts.get(pair, 0)
            if now and now == -count:
                return pair
            if now:
                heapq.heappush(self.heap, (-now, pair))
        return None

    def merge(self, pair: str, new: str) -> None:
        """Merge a pair in all words, and count what changes."""
        made: set[str] = set()
        for i in self.where.pop(pair):
            parts = self.words[i].split(pair)
            if len(parts) > 1:
                self.words[i] = new.join(parts)
                made.update(self._recount(parts, pair, new, i))
        del self.counts[pair]
        for other in made:
            heapq.heappush(self.heap, (-self.counts[other], other))

    def _recount(self, parts: list[str], pair: str, new: str, i: int) -> Iterator[str]:
        """Change the counts around each place where a word was merged; yield the pairs that are new."""
        last = len(parts) - 1
        for k, part in enumerate(parts):
            if part and k:
                yield self._replace(pair[1] + part[0], new + part[0], i)
            if part and k < last:
                yield self._replace(part[-1] + pair[0], part[-1] + new, i)
            if not part and 0 < k < last:  # two merges side by side
                yield self._replace(pair[1] + pair[0], new + new, i)

    def _replace(self, old: str, made: str, i: int) -> str:
        self.counts[old] -= self.times[i]
        self.counts[made] += self.times[i]
        self.where[made].add(i)
        return made


# --- merging


def apply_merges_reference(ids: Sequence[int], merges: Sequence[Pair]) -> list[int]:
    """Encoding of a word, written as its definition: all merges, in the order in which training found them.

    Args:
        ids: the ids of the bytes of the word.
        merges: the merges; merge ``k`` makes id ``256 + k``.

    Returns:
        The ids of the tokens.

    Cost: one pass over the word for each merge.

    References:
        Sennrich et al. (2016), arXiv:1508.07909, section 3.2.

    Example:
        >>> apply_merges_reference([64, 65, 64, 65, 64], [(64, 65), (256, 256)])
        [257, 64]
    """
    merged = list(ids)
    for rank, pair in enumerate(merges):
        merged = _merge(merged, pair, BYTES + rank)
    return merged


def apply_merges(ids: Sequence[int], made: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Encoding of a word: merge the pair of lowest rank, of several the leftmost, until no pair has a rank.

    Places wait in a heap, sorted by rank, and a list linked in both directions knows the neighbors of each place, so
    that a long word costs little more for each byte than a short one.

    Args:
        ids: the ids of the bytes of the word.
        made: for each pair its rank and the id that it makes.

    Returns:
        The ids of the tokens.

    Cost: the length of the word times its logarithm.

    Example:
        >>> apply_merges([64, 65, 64, 65, 64], {(64, 65): (0, 256), (256, 256): (1, 257)})
        [257, 64]
    """
    at = list(ids)  # GONE where a place was merged into the one on its left
    before, after = list(range(-1, len(at) - 1)), list(range(1, len(at) + 1))
    pairs = pairwise(ids)
    heap = [(made[pair][0], i, pair) for i, pair in enumerate(pairs) if pair in made]
    heapq.heapify(heap)
    while heap:
        _, i, (left, right) = heapq.heappop(heap)
        j = after[i]
        if j == len(at) or at[i] != left or at[j] != right:
            continue  # one of the two was merged with another neighbor since
        at[i] = made[left, right][1]
        at[j] = GONE
        after[i] = after[j]
        if after[i] < len(at):
            before[after[i]] = i
        for k in (before[i], i):
            if k >= 0 and after[k] < len(at):
                pair = (at[k], at[after[k]])
                if pair in made:
                    heapq.heappush(heap, (made[pair][0], k, pair))
    return [id for id in at if id != GONE]


# --- the tokenizer


class ByteLevelBPE:
    """A tokenizer as GPT-2, GPT-4, Llama 3 and Qwen have it: words by a pattern, bytes, merges.

    Made by :meth:`train` or :meth:`load`; the constructor is for whoever has tokens and merges from elsewhere.

    Args:
        tokens: the bytes of each id, special tokens left out; every single byte must be among them.
        merges: pairs of ids in the order of their rank; the token that a pair makes must be in ``tokens``.
        pattern: how text is cut into words, a name in :data:`PATTERNS`.
        special_tokens: id of each special token.

    Raises:
        ValueError: if a single byte is missing, two ids have the same bytes, a merge makes what is no token, a special
            token is empty or has the id or the bytes of another token, or there is no such pattern.

    Example:
        >>> tokenizer = ByteLevelBPE.train(["low lower lowest"], vocab_size=260, special_tokens=["<|end|>"])
        >>> tokenizer.encode("lower<|end|>", allowed_special=["<|end|>"])
        [257, 68, 81, 259]
        >>> tokenizer.decode([257, 68, 81, 259])
        'lower<|end|>'
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes],
        merges: Sequence[Pair],
        *,
        pattern: str = "gpt4",
        special_tokens: Mapping[str, int] | None = None,
    ) -> None:
        self._tokens = dict(tokens)
        self._ids = {token: id for id, token in self._tokens.items()}
        self._special = dict(special_tokens or {})
        _check_vocabulary(self._tokens, self._ids, self._special)
        self._byte_ids = [self._ids[bytes([byte])] for byte in range(BYTES)]
        self._merges = list(merges)
        self._made = {pair: (rank, self._make(pair)) for rank, pair in enumerate(self._merges)}
        self._always: frozenset[str] = frozenset()  # added tokens that are no control tokens, found in any text
        self._steps = [_named(pattern)]
        self._whole_words = False  # whether a word that is a token is never merged: tiktoken, Llama 3
        self._nfc = False  # whether text is normalized: Qwen
        self._bytes = {**self._tokens, **{id: special.encode() for special, id in self._special.items()}}
        self._words = _WordCache(self)

    def _make(self, pair: Pair) -> int:
        if not all(id in self._tokens for id in pair):
            raise ValueError(f"merge {pair} is of ids that are no tokens")
        token = self._tokens[pair[0]] + self._tokens[pair[1]]
        if token not in self._ids:
            raise ValueError(f"merge {pair} makes {token!r}, which is no token")
        return self._ids[token]

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt4", special_tokens: Sequence[str] = ()
    ) -> "ByteLevelBPE":
        """Learn a vocabulary; the merges are those of the tokenizers library.

        Args:
            texts: the corpus; a word does not reach from one text into the next.
            vocab_size: number of ids: 256 bytes, the merges, the special tokens.
            pattern: how text is cut into words, a name in :data:`PATTERNS`.
            special_tokens: they get the last ids. In the corpus their spelling is plain text.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if ``vocab_size`` has no room for the bytes and the special tokens, if the corpus is empty,
                holds a lone surrogate, or has fewer pairs to merge than asked for, or there is no such pattern.

        Example:
            >>> ByteLevelBPE.train(["aaaa"], vocab_size=258).encode("aaaaa")
            [257, 64]
        """
        hint = f"256 bytes and {len(special_tokens)} special tokens come first"
        check_at_least("vocab_size", vocab_size, BYTES + len(special_tokens), hint=hint)
        n_merges = vocab_size - BYTES - len(special_tokens)
        merges = train_bpe(_count_words(texts, _named(pattern)), n_merges)
        if len(merges) < n_merges:
            what = f"the corpus gives {len(merges)} merges, vocab_size {vocab_size} asks for {n_merges}"
            raise ValueError(f"{what}: use more text, or vocab_size={vocab_size - n_merges + len(merges)}")
        return cls.from_merges(merges, pattern=pattern, special_tokens=special_tokens)

    @classmethod
    def from_merges(
        cls, merges: Sequence[Pair], *, pattern: str = "gpt4", special_tokens: Sequence[str] = ()
    ) -> "ByteLevelBPE":
        """Make the tokenizer of what :func:`train_bpe` has learned.

        Args:
            merges: pairs of ids; merge ``k`` makes id ``256 + k``.
            pattern: how text is cut into words, a name in :data:`PATTERNS`.
            special_tokens: they get the last ids.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if a special token is named twice, or has the bytes of another token, or there is no such
                pattern.

        Example:
            >>> ByteLevelBPE.from_merges([(64, 65)], special_tokens=["<|end|>"]).encode("aabab")
            [64, 256, 256]
        """
        tokens = {id: bytes([byte]) for id, byte in enumerate(_BYTE_OF_ID)}
        for left, right in merges:
            tokens[len(tokens)] = tokens[left] + tokens[right]
        special = _after(len(tokens), special_tokens)
        return cls(tokens, merges, pattern=pattern, special_tokens=special)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, which is how many rows an embedding table needs."""
        return max(self._bytes) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        """Id of each special token."""
        return dict(self._special)

    @property
    def merges(self) -> list[Pair]:
        """Pairs of ids in the order of their rank."""
        return list(self._merges)

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Turn text into ids.

        Args:
            text: the text.
            allowed_special: special tokens that become their one id where the text spells them; any other is plain
                text, so that what a user writes cannot pass for a control token.

        Returns:
            The ids.

        Raises:
            ValueError: if the text holds a lone surrogate, or an allowed special token is none of this tokenizer's.
        """
        check_text(text)
        check_special(allowed_special, self._special)
        ids: list[int] = []
        for piece, is_special in split_special(text, self._always.union(allowed_special)):
            ids += [self._special[piece]] if is_special else self._encode(piece)
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Turn any bytes into ids, UTF-8 or not; :meth:`decode_bytes` gives them back.

        Args:
            data: the bytes. What is UTF-8 is cut into words as :meth:`encode` does; any other byte counts as a symbol.

        Returns:
            The ids; none is special.
        """
        return self._encode(data.decode("utf-8", "surrogateescape"))

    def _encode(self, text: str) -> list[int]:
        text = unicodedata.normalize("NFC", text) if self._nfc else text
        return list(chain.from_iterable(map(self._words.__getitem__, _split(text, self._steps))))

    def encode_word(self, word: bytes) -> list[int]:
        """Turn one word into ids, without looking whether the pattern would cut it.

        Args:
            word: its bytes.

        Returns:
            The ids.
        """
        if self._whole_words and word in self._ids:
            return [self._ids[word]]
        return apply_merges([self._byte_ids[byte] for byte in word], self._made)

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
        """Turn ids into bytes; nothing is lost.

        Args:
            ids: the ids.

        Returns:
            The bytes, which need not be UTF-8.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        try:
            return b"".join(map(self._bytes.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"id {error.args[0]!r} is no token, expected 0 to {self.vocab_size - 1}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer: a rank file where the name ends in ``.tiktoken``, else a ``tokenizer.json``.

        A rank file holds neither pattern nor special tokens: give both to :meth:`load` again.

        Args:
            path: the file.

        Raises:
            ValueError: if the name asks for a rank file and the ids of the tokens are not 0, 1, 2, …
        """
        if Path(path).suffix == ".tiktoken":
            write_text(path, _rank_file(self._tokens))
        else:
            write_json(path, _tokenizer_json(self))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, pattern: str = "gpt4", special_tokens: Sequence[str] = ()
    ) -> "ByteLevelBPE":
        """Read a tokenizer that :meth:`save` wrote, or a library: tokenizers, transformers, tiktoken.

        Nothing that would change ids is passed over: what this class does not do is refused. Only what a
        ``tokenizer.json`` says of the ids around a text (its ``post_processor``) is left to the caller.

        Args:
            path: a file whose name ends in ``.tiktoken``; else a ``tokenizer.json``, or the folder in which it lies.
            pattern: how text is cut into words, for a rank file; a ``tokenizer.json`` says so itself.
            special_tokens: they get the ids after the last rank, for a rank file.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, has a gap, lacks a single byte, holds another kind of model, or asks for
                something that this class does not do.
        """
        if Path(path).suffix != ".tiktoken":
            if special_tokens:
                raise ValueError(f"{path} names its special tokens itself: leave special_tokens out")
            return _from_tokenizer_json(cls, path)
        tokens = _read_ranks(Path(path))
        tokenizer = cls(tokens, [], pattern=pattern, special_tokens=_after(len(tokens), special_tokens))
        tokenizer._merge_by_rank()
        return tokenizer

    def _merge_by_rank(self) -> None:
        """Merge as tiktoken: any two neighbors that together are a token, the token of smallest id first."""
        self._whole_words = True
        self._merges = [
            (self._ids[token[:cut]], self._ids[token[cut:]])
            for _, token in sorted(self._tokens.items())
            for cut in range(1, len(token))
            if token[:cut] in self._ids and token[cut:] in self._ids
        ]
        made = ((pair, self._make(pair)) for pair in self._merges)
        self._made = {pair: (id, id) for pair, id in made}


class _WordCache(dict[str, list[int]]):
    """The ids of words that were seen; text consists of few different ones."""

    def __init__(self, tokenizer: ByteLevelBPE) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids = self._tokenizer.encode_word(word.encode("utf-8", "surrogateescape"))
        if len(word) <= LONGEST_CACHED:
            if len(self) >= WORD_CACHE:
                self.clear()
            self[word] = ids
        return ids


def _count_words(texts: Iterable[str], pattern: Pattern) -> dict[bytes, int]:
    """Count the words of a corpus."""
    if isinstance(texts, str):
        raise ValueError("texts is one string, expected several: pass [text]")
    counts: Counter[str] = Counter()
    for text in texts:
        check_text(text)
        counts.update(_split(text, [pattern]))
    if not counts:
        raise ValueError("the corpus has 0 words, expected at least 1: are the texts empty, or an iterator used up?")
    return {word.encode(): count for word, count in counts.items()}


def _after(first: int, special_tokens: Sequence[str]) -> dict[str, int]:
    """Give special tokens the ids from ``first`` on."""
    special = {special: first + i for i, special in enumerate(special_tokens)}
    if len(special) < len(special_tokens):
        raise ValueError(f"special_tokens holds {len(special_tokens)} names, {len(special)} of them different")
    return special


def _check_vocabulary(tokens: Mapping[int, bytes], ids: Mapping[bytes, int], special: Mapping[str, int]) -> None:
    """Check that ids and tokens belong together one to one, and that no byte is missing."""
    missing = [byte for byte in range(BYTES) if bytes([byte]) not in ids]
    if missing:
        raise ValueError(f"the vocabulary lacks {len(missing)} of 256 single bytes, the first is 0x{missing[0]:02X}")
    if len(ids) < len(tokens):
        raise ValueError(f"the vocabulary has {len(tokens)} ids for {len(ids)} different tokens")
    if min(chain(tokens, special.values())) < 0:
        raise ValueError(f"the vocabulary has the id {min(chain(tokens, special.values()))}, expected at least 0")
    used: dict[int, object] = dict(tokens)
    for name, id in special.items():
        if not name:
            raise ValueError("a special token has 0 characters, expected at least 1")
        check_text(name)
        if id in used or name.encode() in ids:
            other = used.get(id, name.encode())
            raise ValueError(f"special token {name!r} with id {id} is in conflict with the token {other!r}")
        used[id] = name


# --- rank files


def _rank_file(tokens: Mapping[int, bytes]) -> str:
    if set(tokens) != set(range(len(tokens))):
        gap = next(id for id in range(len(tokens)) if id not in tokens)
        raise ValueError(f"id {gap} is no ordinary token, a rank file wants ids without gaps: save as tokenizer.json")
    return "".join(f"{base64.b64encode(tokens[id]).decode()} {id}\n" for id in range(len(tokens)))


def _read_ranks(file: Path) -> dict[int, bytes]:
    """Read a rank file: in each line a token in base64 and its rank."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            id = int(rank)
            bytes_ = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            what = "expected a token in base64 and its rank"
            raise ValueError(f"{file}:{number}: {line[:60]!r}, {what}") from None
        if id in tokens:
            raise ValueError(f"{file}:{number}: rank {id} a second time")
        tokens[id] = bytes_
    gap = next((id for id in range(len(tokens)) if id not in tokens), None)
    if gap is not None:
        raise ValueError(f"{file}: rank {gap} is missing, the largest is {max(tokens)}: the file is incomplete")
    return tokens


# --- tokenizer.json


def _tokenizer_json(tokenizer: ByteLevelBPE) -> dict[str, Any]:
    """Return the file as tokenizers 0.23 writes it."""
    text = {id: _characters(token) for id, token in tokenizer._tokens.items()}
    specials = sorted(tokenizer._special.items(), key=lambda item: item[1])
    vocab = {text[id]: id for id in sorted(text)}
    if [id for _, id in specials] != [*range(len(vocab), len(vocab) + len(specials))]:
        vocab |= dict(specials)  # the library counts on from the vocabulary unless it finds them there
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {**entry, "special": entry["content"] not in tokenizer._always}
            for entry in special_entries(tokenizer._special)
        ],
        "normalizer": {"type": "NFC"} if tokenizer._nfc else None,
        "pre_tokenizer": _pre_tokenizer([step.pattern for step in tokenizer._steps]),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer._whole_words,
            "vocab": vocab,
            "merges": [[text[left], text[right]] for left, right in tokenizer._merges],
        },
    }


BYTE_LEVEL = {"add_prefix_space": False, "trim_offsets": True}


def _characters(token: bytes) -> str:
    return "".join(_ALPHABET[byte] for byte in token)


def _pre_tokenizer(patterns: list[str]) -> dict[str, Any]:
    """Write patterns; GPT-2's is part of ``ByteLevel`` when it stands last."""
    built_in = patterns[-1:] == [PATTERNS["gpt2"]]
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (patterns[:-1] if built_in else patterns)
    ]
    byte_level = {"type": "ByteLevel", **BYTE_LEVEL, "use_regex": built_in}
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level]} if splits else byte_level


def _from_tokenizer_json(cls: type[ByteLevelBPE], path: str | os.PathLike[str]) -> ByteLevelBPE:
    raw = read_tokenizer_json(path)
    try:
        added = {token["content"]: token for token in raw.get("added_tokens") or []}
        _check_model(raw["model"])
        _check_added(added.values(), raw.get("normalizer"))
        vocab: dict[str, int] = raw["model"]["vocab"]
        tokens = {id: _bytes_of(text) for text, id in vocab.items() if text not in added}
        ids = {token: id for id, token in tokens.items()}
        pairs = [_pair_of(merge) for merge in raw["model"]["merges"]]
        missing = next((part for pair in pairs for part in pair if _bytes_of(part) not in ids), None)
        if missing is not None:
            raise ValueError(f"merges name {missing!r}, which is not in the vocabulary")
        merges = [(ids[_bytes_of(left)], ids[_bytes_of(right)]) for left, right in pairs]
        tokenizer = cls(tokens, merges, special_tokens={name: token["id"] for name, token in added.items()})
        tokenizer._steps = [compile_pattern(pattern) for pattern in _patterns_of(raw.get("pre_tokenizer"))]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tokenizer._always = frozenset(name for name, token in added.items() if not token.get("special", True))
    tokenizer._whole_words = bool(raw["model"].get("ignore_merges"))
    tokenizer._nfc = bool(raw.get("normalizer"))
    return tokenizer


def _check_model(model: Mapping[str, Any]) -> None:
    """Refuse what is no byte-level BPE, or does more than this class."""
    if model["type"] != "BPE":
        raise ValueError(f"the model is {model['type']}, expected BPE: use llm_study.tokenizers.auto.load_tokenizer")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise ValueError(f"the model has {name} {model[name]!r}, which byte-level BPE has not")


def _check_added(added: Iterable[Mapping[str, Any]], normalizer: Mapping[str, Any] | None) -> None:
    """Refuse normalizers other than NFC, and added tokens that take more than their own spelling."""
    if normalizer and normalizer["type"] != "NFC":
        raise ValueError(f"the normalizer is {normalizer['type']}, expected none or NFC")
    for token in added:
        for name in ("single_word", "lstrip", "rstrip"):
            if token.get(name):
                raise ValueError(
                    f"the added token {token['content']!r} has {name}, expected one that stands for itself"
                )
        if normalizer and token.get("normalized") and not token["content"].isascii():
            raise ValueError(f"the added token {token['content']!r} is normalized, expected one that is not")


def _patterns_of(pre_tokenizer: Mapping[str, Any] | None) -> list[str]:
    """Return the patterns that a pre-tokenizer applies one after the other; the last step must be ``ByteLevel``."""
    steps = [pre_tokenizer] if pre_tokenizer else []
    if pre_tokenizer and pre_tokenizer["type"] == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        raise ValueError("the pre_tokenizer does not end in ByteLevel without add_prefix_space: no byte-level BPE")
    splits = [_pattern_of(step) for step in steps[:-1]]
    return [*splits, PATTERNS["gpt2"]] if steps[-1].get("use_regex", True) else splits


def _pattern_of(step: Mapping[str, Any]) -> str:
    """Return the pattern of one step; what it matches, and what lies between, are pieces."""
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if step["type"] != "Split":
        raise ValueError(f"the pre_tokenizer {step['type']} is not known, expected Split, Digits or ByteLevel")
    (kind, pattern), *_ = step["pattern"].items()
    pattern = re.escape(pattern) if kind == "String" else pattern
    how = (step["behavior"].lower(), bool(step.get("invert")))
    if how != ("isolated", False) and not (how == ("removed", True) and pattern in PATTERNS.values()):
        raise ValueError(f"Split has behavior {step['behavior']}, invert {how[1]}, expected Isolated, false")
    return str(pattern)


def _bytes_of(text: str) -> bytes:
    """Return the bytes that the characters of :func:`byte_alphabet` stand for."""
    unknown = next((character for character in text if character not in _BYTE_OF_CHARACTER), None)
    if unknown is not None:
        raise ValueError(f"the token {text!r} holds {unknown!r}, which stands for no byte: no byte-level BPE")
    return bytes(_BYTE_OF_CHARACTER[character] for character in text)


def _pair_of(merge: Any) -> tuple[str, str]:
    """Return the two halves of a merge, which older files write with a space between them."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
