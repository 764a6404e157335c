"""Whether the markup of a message survives its translation: roles, literals, links, formulas, and the kind of block."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import docutils.frontend
import docutils.parsers.rst
import docutils.utils
from docutils import nodes
from languages import CJK

from catalogs.finding import Finding, excerpt
from catalogs.markup import named, tokens
from catalogs.page import CHINESE, PLAIN, Page, rule

TEXT = re.compile(r"\\text(?:rm|bf|it|normal)?\{((?:[^{}$]|\$[^$]*\$|\{[^{}]*\})*)\}")
BLOCK = re.compile(
    r"""\s | [-+*•‣⁃]\s | (?:\(?(?:\d+|\#|[A-Za-z]|[ivxlcdmIVXLCDM]+)[.)])(?:\s|$) | :[^:`\s][^:`]*:\s | --?\w | /[A-Z]
      | >>> | \|\s | \.\.(?:\s|$) | __\s | \+[-=]+\+ | [=-]+\s+[=-]+ | ([!-/:-@[-`{-~])\1*\s*$
      | .*\n | .*::\s*$""",
    re.VERBOSE | re.DOTALL,
)
"""What a text may begin with, or hold, that is no paragraph; anything else need not be parsed."""


def compare(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, str] | None:
    """Return what a translation lacks and what it has instead, if anything, in the order of their texts."""
    a, b = Counter(ours), Counter(theirs)
    lost, new = (", ".join((x - y).elements()) for x, y in ((a, b), (b, a)))
    return (lost or "nothing more", new or "nothing") if lost or new else None


@rule
def markup(page: Page) -> Iterator[Finding]:
    """Roles with their targets, literals, substitutions, notes, links and addresses are the same on both sides."""
    kinds = ("role", "literal", "substitution", "note", "link", "anchor", "uri")
    for entry in page.marked():
        if found := compare(named(entry.msgid, *kinds), named(entry.msgstr, *kinds)):
            yield page.finding(entry, "po-markup", *found, "use the same markup as the source; titles may differ")


@rule
def emphasis(page: Page) -> Iterator[Finding]:
    """Strong text and emphasis survive; Chinese has no italics, so there one may stand for the other."""
    for entry in page.marked():
        source, translation = ([token.kind for token in tokens(text)] for text in (entry.msgid, entry.msgstr))
        for kinds in [("strong", "emphasis")] if page.catalog.language == CHINESE else [("strong",), ("emphasis",)]:
            a, b = (sum(kind in kinds for kind in side) for side in (source, translation))
            if a != b:
                name = " or ".join({"strong": "**strong**", "emphasis": "*emphasis*"}[kind] for kind in kinds)
                mend = "mark the same words; marks need a space or punctuation around them"
                yield page.finding(entry, "po-emphasis", f"{a} × {name}", f"{b}", mend)


@rule
def formula(page: Page) -> Iterator[Finding]:
    r"""Formulas are identical outside ``\text{…}``; notation such as ``N_{\text{layer}}`` is no text to translate."""
    for entry, about in page.pairs():
        if "code: " in about:
            continue
        ours, theirs = (formulas(text, about, page.catalog.domain) for text in (entry.msgid, entry.msgstr))
        notation = [words for tex in ours for words in texts(tex) if not CJK.search(words)]
        lost = Counter(notation) - Counter(words for tex in theirs for words in texts(tex))
        found = compare(map(skeleton, ours), map(skeleton, theirs))
        if not found and page.catalog.language != CHINESE and lost:
            found = rf"\text{{{next(iter(lost))}}}", "another text"
        if found:
            yield page.finding(
                entry, "po-formula", *found, r"change nothing outside \text{…}, nor text without Chinese"
            )


def formulas(text: str, about: str, domain: str) -> list[str]:
    """Return the formulas of a message."""
    if "formula" in about:
        return [text]
    return re.findall(r"\$[^$]+\$", text) if domain in PLAIN else named(text, "math")


def texts(tex: str) -> list[str]:
    r"""Return what a formula says in words."""
    return [found[1].strip() for found in TEXT.finditer(tex)]


def skeleton(tex: str) -> str:
    r"""Return a formula with its texts emptied of words; commands and formulas inside them stay."""

    def keep(found: re.Match[str]) -> str:
        return found[0].partition("{")[0] + "{" + "".join(re.findall(r"\$[^$]*\$|\\[a-zA-Z]+", found[1])) + "}"

    return TEXT.sub(keep, tex)


@rule
def placeholder(page: Page) -> Iterator[Finding]:
    """Plain messages keep their placeholders: ``{name}``, ``%s`` and ``%(name)s``."""
    pattern = re.compile(r"\{[^{}]*\}|%(?:\(\w+\))?[sdrif%]|<[^<>]*>")
    for entry in page.texts() if page.catalog.domain in PLAIN else ():
        if found := compare(pattern.findall(entry.msgid), pattern.findall(entry.msgstr)):
            yield page.finding(entry, "po-placeholder", *found, "write the placeholders of the source")


@rule
def block(page: Page) -> Iterator[Finding]:
    """A translation is one paragraph, or one title: Sphinx silently shows the source of any other kind of block."""
    for entry in page.marked():
        title = "title" in page.template[entry.msgid].comment
        text = f"{entry.msgstr}\n{'=' * 2 * len(entry.msgstr)}" if title else entry.msgstr
        if BLOCK.match(entry.msgstr) and (kinds := blocks(text)) != ["section" if title else "paragraph"]:
            mend = "write one line; put a backslash before a mark that begins a list, an option or a field"
            found = f"{' and '.join(kinds) or 'nothing'} at {excerpt(entry.msgstr)}"
            yield page.finding(entry, "po-block", "one title" if title else "one paragraph", found, mend)


def blocks(text: str) -> list[str]:
    """Return the kinds of blocks that docutils reads in a text."""
    settings = docutils.frontend.get_default_settings(docutils.parsers.rst.Parser)
    settings.report_level, settings.halt_level, settings.warning_stream = 5, 5, False
    settings.file_insertion_enabled = settings.raw_enabled = False
    document = docutils.utils.new_document("", settings)
    docutils.parsers.rst.Parser().parse(text, document)
    return [type(node).__name__ for node in document if not isinstance(node, nodes.system_message)]
