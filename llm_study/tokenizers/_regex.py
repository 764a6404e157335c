"""The ``regex`` package, with types, and with the characters of Unicode 16.0, so that an update of it changes no ids.

A vocabulary belongs to one way of cutting text into words. ``regex`` learns the letters of each new version of Unicode
and would then cut differently than before, and differently than tokenizers 0.23 and tiktoken 0.14, which know Unicode
16.0. To them a character that Unicode assigned later is neither letter, digit, nor space, whatever it is today.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Protocol

# Assigned in 17.0 and 18.0, as far as regex 2026.11.15 knows; ranges run over places that 16.0 had free as well.
RANGES = """
    558 58B-58C 5C8-5C9 88F B53-B54 C5C CDC 1ACF-1AF0 208F 209D-209F 20C1-20C4 2B96 2E60-2E63 A7CE-A7CF
    A7D2 A7D4 A7DD-A7F1 AB6C-AB6D FBC3-FBD2 FD90-FD91 FDC8-FDCE 107BB-107BF 10940-10959 10EC5-10EFB
    11B0A-11B67 11DB0-11DF1 1246F 12475-1247F 12550-12686 16EA0-16ED3 16FF2-16FF6 187F8-187FF
    18CD6-18CDA 18D09-191D2 1B123-1B128 1B168 1CCFA-1CCFC 1CEBA-1CEFD 1D127-1D128 1D1EB-1D1FF
    1D250-1D281 1D6A6 1DB00-1DB1C 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF 1F1AE 1F6D8-1F6D9 1F777-1F77A
    1F7DA-1F7DB 1F7F1-1F7FF 1F8D0-1F8D8 1FA54-1FA57 1FA8A-1FA8E 1FAC8-1FACD 1FADD 1FAEA-1FAEF
    1FAF9-1FAFA 1FBFA 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-3FC3F
"""


def _character_class(ranges: str, *, below: int = 0x110000) -> str:
    ends = [pair.split("-") for pair in ranges.split()]
    pairs = [(int(e[0], 16), int(e[-1], 16)) for e in ends]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in pairs if first < below)


_LATER = re.compile(f"[{_character_class(RANGES)}]")
_PERHAPS_LATER = re.compile(f"[{_character_class(RANGES, below=0x10000)}\\U00010000-\\U0010ffff]")  # searched faster


def as_of_unicode_16(text: str) -> str:
    """Return the text with U+E000, which no version gives a meaning, for each character younger than Unicode 16."""
    return _LATER.sub("\ue000", text) if _PERHAPS_LATER.search(text) else text


class Pattern(Protocol):
    """What we use of a compiled pattern; ``regex`` itself says nothing of its types."""

    @property
    def pattern(self) -> str:
        """Its source."""

    def findall(self, text: str) -> list[str]:
        """Return all matches."""

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Yield all matches."""


def compile_pattern(source: str) -> Pattern:
    """Compile a pattern, which may name Unicode's categories as the standard library's ``re`` cannot."""
    library = import_module("regex")
    try:
        pattern: Pattern = library.compile(source)
    except library.error as error:
        raise ValueError(f"the pattern {source!r} is no regular expression: {error}") from None
    return pattern
