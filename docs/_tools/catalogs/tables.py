"""What people decided for the whole book: the terms, what may stay Chinese, and the messages that rules let pass."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from catalogs.finding import Finding, excerpt

WAIVABLE = frozenset({"po-term", "po-number"})
"""Codes that judge wording; markup, formulas and code are never waived."""


class TableError(Exception):
    """A table that cannot be read: where, what was expected, what was found, how to mend it."""


@dataclass(frozen=True)
class Waiver:
    """One finding that a person looked at and lets pass, with the reason."""

    catalog: str
    code: str
    message: str
    """A piece of the source text that no other message of the catalog has."""
    what: str
    """The term or number that the translation may leave out, as the finding names it."""
    reason: str
    line: int = 0

    def covers(self, finding: Finding, message: str) -> bool:
        """Whether this is the finding that is let pass."""
        return self.code == finding.code and self.message in message and repr(self.what) in finding.expected


@dataclass(frozen=True)
class Tables:
    """All tables of one project; without files all are empty."""

    terms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each Chinese term with the English forms that may render it."""
    words: frozenset[str] = frozenset()
    """Ordinary Chinese words that only look as if they held a term."""
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Chinese data that a catalog in another script may show, by the name of the catalog."""
    waivers: tuple[Waiver, ...] = ()
    path: Path = Path("locale/waivers.toml")

    def judge(
        self, name: str, findings: list[Finding], messages: Mapping[int, str]
    ) -> tuple[list[Finding], set[Waiver]]:
        """Return the findings of one catalog that nothing waives, and the waivers that were needed.

        Args:
            name: the catalog, such as ``en/general/transformer_1``.
            findings: what the rules say about it.
            messages: its source texts by the line of their entries.
        """
        mine, used, left = [waiver for waiver in self.waivers if waiver.catalog == name], set(), []
        for finding in findings:
            covering = {waiver for waiver in mine if waiver.covers(finding, messages.get(finding.line, ""))}
            used |= covering
            if not covering:
                left.append(finding)
        return left, used

    def idle(self, used: set[Waiver], languages: list[str]) -> list[Finding]:
        """Return a finding for each waiver that covers nothing, so that their number can only fall."""
        idle = [w for w in self.waivers if w not in used and w.catalog.partition("/")[0] in languages]
        return [
            Finding(self.path, w.line, "po-waiver", f"a finding {w.code} {w.what!r} in {w.catalog}",
                    f"none at {excerpt(w.message)}", "remove the waiver")
            for w in idle
        ]  # fmt: skip


def load(locale: Path) -> Tables:
    """Read the tables of a project; a file that does not exist is an empty table.

    Raises:
        TableError: if a row lacks a key or a reason, or waives what cannot be waived.
    """
    allowed: dict[str, tuple[str, ...]] = {}
    rows, lines, words = _rows(locale / "allowed.toml", "allowed", {"catalog", "text", "reason"})
    for row in rows:
        allowed[row["catalog"]] = (*allowed.get(row["catalog"], ()), row["text"])
    path = locale / "waivers.toml"
    rows, lines, _ = _rows(path, "waiver", {"catalog", "code", "message", "what", "reason"})
    waivers = tuple(replace(Waiver(**row), line=line) for row, line in zip(rows, lines, strict=True))
    for waiver in waivers:
        if waiver.code not in WAIVABLE:
            raise TableError(
                f"{path}:{waiver.line}: expected one of {sorted(WAIVABLE)}, found {waiver.code!r}; mend it"
            )
    return Tables(_terms(locale / "terms.tsv"), frozenset(words), allowed, waivers, path)


def _rows(path: Path, name: str, keys: set[str]) -> tuple[list[dict[str, str]], list[int], list[str]]:
    """Return the rows of one array of tables, the line of each, and the list ``words``."""
    text = path.read_text("utf-8") if path.exists() else ""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = found[1] if (found := re.search(r"line (\d+)", str(error))) else 1
        raise TableError(f"{path}:{line}: expected TOML, found an error: {error}; mend this line") from None
    lines = [number for number, line in enumerate(text.split("\n"), 1) if line.strip() == f"[[{name}]]"]
    for row, line in zip(content.get(name, []), lines, strict=True):
        if row.keys() != keys or not all(isinstance(value, str) and value.strip() for value in row.values()):
            raise TableError(
                f"{path}:{line}: expected the keys {sorted(keys)}, none empty, found {row}; complete the row"
            )
    words = re.findall(r"\S+", content.get("words", ""))
    return content.get(name, []), lines, words


def _terms(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.exists():
        return {}
    from termbase import read_terms  # it brings Sphinx along, which not every command needs

    return {zh: term.en for zh, term in read_terms(path).items()}
