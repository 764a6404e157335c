"""What a rule of catalogs looks at, and the list that every rule enters."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import polib

from catalogs.finding import Finding
from catalogs.storage import Catalog
from catalogs.tables import Tables

UPDATE = "run 'nox -s po-update'"
PLAIN = frozenset({"figures", "sphinx"})
"""Domains whose messages are plain text, not reStructuredText."""
CHINESE, ENGLISH = "zh_CN", "en"


@dataclass(frozen=True)
class Page:
    """A catalog, the messages that its page has now, and what was decided for the whole book."""

    catalog: Catalog
    template: Mapping[str, polib.POEntry]
    complete: bool = True
    """Whether the language must be at 100 %."""
    tables: Tables = field(default_factory=Tables)

    @property
    def name(self) -> str:
        """The language and the domain, as ``locale/*.toml`` names a catalog."""
        return f"{self.catalog.language}/{self.catalog.domain}"

    def finding(self, entry: polib.POEntry | None, code: str, expected: str, found: str, mend: str) -> Finding:
        """Return a finding at the first line of an entry, or of the file."""
        return Finding(self.catalog.path, (entry.linenum if entry else 0) or 1, code, expected, found, mend)

    def pairs(self) -> Iterator[tuple[polib.POEntry, str]]:
        """Yield the entries that readers see, with what the extraction says about each."""
        for entry in self.catalog.entries:
            if not entry.obsolete and not entry.fuzzy and entry.msgstr and entry.msgid in self.template:
                yield entry, self.template[entry.msgid].comment

    def texts(self) -> Iterator[polib.POEntry]:
        """Yield the entries that hold words to be read: neither code nor formulas."""
        for entry, about in self.pairs():
            if "code: " not in about and "formula" not in about:
                yield entry

    def marked(self) -> Iterator[polib.POEntry]:
        """Yield the entries that Sphinx reads as reStructuredText."""
        if self.catalog.domain not in PLAIN:
            yield from (entry for entry in self.texts() if "image text" not in self.template[entry.msgid].comment)


Rule = Callable[[Page], Iterator[Finding]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Add a function to the rules."""
    RULES.append(function)
    return function
