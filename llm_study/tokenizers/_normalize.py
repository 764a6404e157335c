"""The normalizers of a ``tokenizer.json`` that files of Unigram models use, each as a function on text."""

import base64
import binascii
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, get_args

from llm_study.tokenizers._regex import compile_pattern
from llm_study.tokenizers._unicode import WHITE_SPACE, Form, lower, normal_form

__all__ = ["Normalizer", "normalizer_of"]

Normalizer = Callable[[str], str]
_GRAPHEME = compile_pattern(r"\X")


def normalizer_of(entry: Mapping[str, Any] | None) -> Normalizer:
    """Return the function that an entry of the file describes; raise where it is none of those known."""
    if entry is None:
        return str
    kind = entry.get("type")
    if kind == "Sequence":
        return _sequence([normalizer_of(part) for part in entry["normalizers"]])
    if kind == "Precompiled":
        return _Precompiled(entry["precompiled_charsmap"])
    if kind == "Replace":
        return _replace(entry["pattern"], entry["content"])
    if kind == "Strip":
        return _strip(entry["strip_left"], entry["strip_right"])
    if kind == "Prepend":
        return lambda text: entry["prepend"] + text if text else text
    if kind == "Lowercase":
        return lower
    for form in get_args(Form):
        if form == kind:
            return _form(form)
    known = "Sequence, Precompiled, Replace, Strip, Prepend, Lowercase, NFC, NFD, NFKC, NFKD or none"
    raise ValueError(f"the normalizer is {kind}, expected {known}, the only ones known")


def _sequence(parts: list[Normalizer]) -> Normalizer:
    def apply(text: str) -> str:
        for part in parts:
            text = part(text)
        return text

    return apply


def _form(form: Form) -> Normalizer:
    return lambda text: normal_form(form, text)


def _strip(left: bool, right: bool) -> Normalizer:
    space = WHITE_SPACE.pattern
    sides = [rf"^{space}+"] * left + [rf"{space}+\Z"] * right
    pattern = re.compile("|".join(sides) or r"(?!)")
    return lambda text: pattern.sub("", text)


def _replace(pattern: Mapping[str, str], content: str) -> Normalizer:
    if "String" in pattern:
        return lambda text: text.replace(pattern["String"], content)
    if pattern.get("Regex") != " {2,}":
        raise ValueError(
            f"the normalizer replaces {pattern.get('Regex')!r}, expected the pattern ' {{2,}}' or a string"
        )
    spaces = re.compile(" {2,}")
    return lambda text: spaces.sub(lambda _: content, text)


class _Precompiled:
    """The table of SentencePiece: a trie of characters, as a double array, that leads to what replaces them.

    A unit of the array holds, from below, a byte, whether a value follows, and how far away its children are. The table
    is asked for clusters of a base and its marks that take fewer than six bytes, then for single characters.
    """

    def __init__(self, charsmap: str) -> None:
        try:
            raw = base64.b64decode(charsmap, validate=True)
            (size,) = struct.unpack_from("<I", raw)
            self._units = struct.unpack_from(f"<{size // 4}I", raw, 4)
        except (binascii.Error, struct.error):
            raise ValueError("the precompiled_charsmap of the normalizer is damaged: no table can be read") from None
        self._texts = raw[4 + size :]
        self._known: dict[str, str | None] = {}

    def __call__(self, text: str) -> str:
        return "".join(self._cluster(cluster) for cluster in _GRAPHEME.findall(text))

    def _cluster(self, cluster: str) -> str:
        if len(cluster.encode()) < 6 and (found := self._lookup(cluster)) is not None:
            return found
        return "".join(c if (found := self._lookup(c)) is None else found for c in cluster)

    def _lookup(self, chunk: str) -> str | None:
        if chunk not in self._known:
            self._known[chunk] = self._search(chunk.encode())
        return self._known[chunk]

    def _search(self, chunk: bytes) -> str | None:
        """Return what stands at the shortest key that begins the chunk."""
        units = self._units
        at = _offset(units[0])
        for byte in chunk:
            at ^= byte
            if byte == 0 or at >= len(units) or units[at] & 0x800000FF != byte:
                return None
            has_value = units[at] >> 8 & 1
            at ^= _offset(units[at])
            if has_value:
                begin = units[at] & 0x7FFFFFFF
                return self._texts[begin : self._texts.index(b"\0", begin)].decode()
        return None


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
