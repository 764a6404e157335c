"""How much of a page is translated, for ``po.py stat`` and for the page of the book that shows it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import polib

from catalogs.storage import catalogs, read


class Counts(NamedTuple):
    """The messages of a page by their state."""

    messages: int = 0
    translated: int = 0
    fuzzy: int = 0
    empty: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Return the counts of both together."""
        return Counts(*map(sum, zip(self, other, strict=True)))


def count(messages: Iterable[str], known: Mapping[str, polib.POEntry]) -> Counts:
    """Count messages by their state in a catalog; one that the catalog lacks is empty."""
    messages = list(messages)
    found = [known[message] for message in messages if message in known]
    fuzzy = sum(entry.fuzzy for entry in found)
    translated = sum(bool(entry.msgstr.strip()) and not entry.fuzzy for entry in found)
    return Counts(len(messages), translated, fuzzy, len(messages) - translated - fuzzy)


def count_all(locale: Path, language: str) -> dict[str, Counts]:
    """Count the catalogs of a language as they are on disk, by domain.

    Raises:
        BrokenCatalogError: if one of them cannot be read.
    """
    counts = {}
    for domain, path in catalogs(locale, language).items():
        known = read(path, language, domain).active
        counts[domain] = count(known, known)
    return counts
