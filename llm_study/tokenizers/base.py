"""What every tokenizer does, and what several of them share: checks, special tokens, streaming, ``tokenizer.json``.

A tokenizer turns text into ids and ids into bytes. Bytes, not characters, are what ids stand for: one token may end in
the middle of a character that the next one completes. :class:`StreamDecoder` therefore waits for whole characters.
"""

import codecs
import os
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from llm_study.core.hub import read_json

__all__ = ["Tokenizer", "StreamDecoder", "check_text", "split_special", "read_tokenizer_json", "TOKENIZER"]

TOKENIZER = "tokenizer.json"


class Tokenizer(Protocol):
    """What other modules ask of a tokenizer.

    Two laws hold. ``decode(ids)`` is ``decode_bytes(ids)`` read as UTF-8, U+FFFD where it is none. And the bytes of an
    id depend on nothing but whether another id stands before it (WordPiece writes a space between words, Unigram none
    before the first), so that text can be decoded while it is made.

    Example:
        >>> class Letters:
        ...     vocab_size = 128
        ...     def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        ...         return list(text.encode("ascii"))
        ...     def decode(self, ids: Iterable[int]) -> str:
        ...         return self.decode_bytes(ids).decode("utf-8", "replace")
        ...     def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ...         return bytes(ids)
        >>> tokenizer: Tokenizer = Letters()
        >>> tokenizer.encode("abc")
        [97, 98, 99]
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, that of a special token included; so many rows an embedding needs."""

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

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Args:
            ids: the ids.

        Returns:
            The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes; nothing is lost.

        Args:
            ids: the ids.

        Returns:
            The bytes, which need not be UTF-8.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """


# --- streaming


class StreamDecoder:
    r"""Decodes ids one by one into whole characters: all that is returned, joined, is what ``decode`` gives.

    A character whose bytes are spread over several tokens is held back until it is complete. Where the bytes are no
    UTF-8, U+FFFD is returned as ``decode`` would, as soon as that is certain.

    Args:
        tokenizer: the tokenizer of the ids.

    Example:
        >>> class Bytes:  # a tokenizer whose tokens are single bytes
        ...     vocab_size = 256
        ...     def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        ...         return list(text.encode())
        ...     def decode(self, ids: Iterable[int]) -> str:
        ...         return self.decode_bytes(ids).decode("utf-8", "replace")
        ...     def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ...         return bytes(ids)
        >>> decoder = StreamDecoder(Bytes())
        >>> [decoder.push(i) for i in Bytes().encode("né") + [0xC3]]
        ['n', '', 'é', '']
        >>> decoder.flush() == "\N{REPLACEMENT CHARACTER}"  # the half that was left
        True
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._reset()

    def _reset(self) -> None:
        self._before: list[int] = []  # ids that make the next one not the first
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take the next id.

        Args:
            id: the id.

        Returns:
            The characters that it completes; often one word, sometimes nothing.

        Raises:
            ValueError: if the id is not of the vocabulary.
        """
        old = self._tokenizer.decode_bytes(self._before)
        new = self._tokenizer.decode_bytes([*self._before, id])[len(old) :]
        if new:
            self._before = [id]
        elif not old:
            self._before.append(id)
        return self._characters.decode(new)

    def flush(self) -> str:
        """End the text; the decoder is then as new.

        Returns:
            U+FFFD for a character that was begun and not completed, else nothing.
        """
        rest = self._characters.decode(b"", final=True)
        self._reset()
        return rest


# --- text and special tokens


def check_text(text: str) -> None:
    r"""Check that a text can be written as UTF-8, that is, that it holds no half of a surrogate pair.

    Args:
        text: the text.

    Raises:
        ValueError: if it holds one; the message says which, and at which index.

    Example:
        >>> check_text("any text é 🙂")
        >>> check_text("ab\ud83dc")
        Traceback (most recent call last):
        ValueError: text has a lone surrogate U+D83D at index 2, which no encoding knows: read it with errors='replace'
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"text has a lone surrogate U+{ord(text[error.start]):04X} at index {error.start}"
        raise ValueError(f"{what}, which no encoding knows: read it with errors='replace'") from None


def split_special(text: str, specials: Collection[str]) -> list[tuple[str, bool]]:
    """Cut a text at special tokens, from left to right; where two begin at one place the longer wins.

    Args:
        text: the text.
        specials: the special tokens.

    Returns:
        The pieces in order, none of them empty, each with whether it is a special token; joined they are the text.

    Raises:
        ValueError: if a special token is empty.

    Example:
        >>> split_special("<s>Hi<s><s>>", ["<s>", "<s>>"])
        [('<s>', True), ('Hi', False), ('<s>', True), ('<s>>', True)]
    """
    if not text:
        return []
    if not specials:
        return [(text, False)]
    pieces = _pattern(frozenset(specials)).split(text)  # a group in the pattern: every second piece is special
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


@lru_cache(maxsize=64)
def _pattern(specials: frozenset[str]) -> re.Pattern[str]:
    if "" in specials:
        raise ValueError("a special token has 0 characters, expected at least 1")
    longest_first = sorted(specials, key=lambda special: (-len(special), special))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


# --- tokenizer.json


def read_tokenizer_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``tokenizer.json`` as the tokenizers library writes it.

    Args:
        path: the file, or the folder in which it lies.

    Returns:
        What the file says. The type of the model, such as ``"BPE"``, is there also if the file is so old that it lacks
        it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no UTF-8 text, no JSON, or says nothing of a model with a vocabulary.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / TOKENIZER).write_text(json.dumps({"model": {"vocab": {"a": 0}, "merges": []}}))
        ...     read_tokenizer_json(folder)["model"]["type"]
        'BPE'
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER
    raw = read_json(file)
    model = raw.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ValueError(f"{file}: has no model with a vocab, expected a {TOKENIZER} of the tokenizers library")
    kind = model.get("type") or _kind_of(model)
    if not isinstance(kind, str):
        raise ValueError(f"{file}: the type of the model is {kind!r}, expected a name such as BPE")
    return {**raw, "model": {**model, "type": kind}}


def _kind_of(model: dict[str, Any]) -> str:
    """Tell the type of a model by what only this type has; early versions of the library did not write it."""
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"
