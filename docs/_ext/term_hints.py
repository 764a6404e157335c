"""Terms in the running text of chapters show their counterpart in the other language, on hover and on focus.

The first occurrence in each section of the second level is marked, unless the counterpart follows in parentheses; of
these the first on the page is in the tab order, so that each term is reached and none is a burden. On an English page a
term counts where the Chinese of the same paragraph has it: "value" is 值 only there. The texts of the page stay whole,
for search, copying and readers without style sheets: only attributes say what the bubble shows.
"""

import hashlib
import html
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from catalogs.markup import prose
from catalogs.rules_terms import longest, spelled
from catalogs.tables import load
from docutils import nodes
from languages import BOOK, CJK
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

APART = (nodes.reference, nodes.literal, nodes.math, nodes.table)
"""Not running text. Links are in the tab order already; in tables, terms are headings more often than not."""
PARTICLES = "的地与和或及是为在把从将对由这那该各每个几以而"
"""Beside these a term of one character is a word of its own: 每个键的值, but neither 关键 nor 键盘."""
ENGLISH = "en"


class Hint(NamedTuple):
    """A term in a text: where it stands, and what it is called in the other language."""

    start: int
    end: int
    counterpart: str
    again: bool
    """Whether an earlier section has it, too."""


class Terms(NamedTuple):
    """The table of terms, and the ordinary words that only look as if they held one."""

    forms: dict[str, tuple[str, ...]]
    words: frozenset[str]
    headwords: frozenset[str]

    def in_chinese(self, text: str) -> Iterator[tuple[re.Match[str], str]]:
        """Yield where terms stand in a Chinese text, the longest at each place, and the terms."""
        for found in longest(frozenset(self.forms) | self.words).finditer(text):
            if found[0] in self.forms and (len(found[0]) > 1 or stands_alone(found)):
                yield found, found[0]

    def names(self, zh: str) -> list[str]:
        """Return the English forms of a term without those that are the name of another: heads are 头, not 多头."""
        first, *others = self.forms[zh]
        return [first, *(form for form in others if not {form, form.removesuffix("s")} & self.headwords)]

    def in_english(self, text: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
        """Yield where the terms of a Chinese source text stand in its translation."""
        forms = {form: zh for _, zh in self.in_chinese(source) for form in self.names(zh)}
        taken: list[range] = []
        for form in sorted(forms, key=len, reverse=True):
            for found in spelled(form).finditer(text):
                if not any(found.start() in place for place in taken):  # a longer form has it
                    taken.append(range(*found.span()))
                    yield found, forms[form]


def stands_alone(found: re.Match[str]) -> bool:
    """Whether a single Chinese character is no part of a longer word."""
    before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
    return all(not CJK.match(beside) or beside in PARTICLES or not beside.isalnum() for beside in (before, after))


@lru_cache(maxsize=2)
def read(locale: Path, digest: str) -> Terms:
    """Return the terms; the digest of the files is there so that a change is seen."""
    tables = load(locale)
    return Terms(dict(tables.terms), tables.words, frozenset(forms[0] for forms in tables.terms.values()))


def note_tables(app: Sphinx, config: Config) -> None:
    """Remember what the tables say: where they changed, Sphinx writes every page again."""
    files = [Path(app.srcdir, "../locale", name) for name in ("terms.tsv", "allowed.toml")]
    config.term_hints_digest = hashlib.sha256(b"".join(f.read_bytes() for f in files if f.exists())).hexdigest()


def is_chapter(docname: str, config: Config) -> bool:
    """Whether the terms of a page are to be marked."""
    return any(fnmatch(docname, pattern) for pattern in config.term_hints_pages)


class Hints(SphinxPostTransform):
    """Finds the terms of a chapter; the texts keep them for the writer."""

    default_priority = 900  # links are links by then
    builders = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Note at each text which terms in it are marked."""
        if self.config.language not in {BOOK, ENGLISH} or not is_chapter(
            self.env.current_document.docname, self.config
        ):
            return
        terms = read(Path(self.env.srcdir, "../locale").resolve(), self.config.term_hints_digest)
        seen: dict[str, set[int]] = {}
        reached: set[str] = set()
        for text, block, section in running(self.document):
            text.hints = []
            for found, zh in sorted(self.occurrences(terms, text, block), key=lambda pair: pair[0].start()):
                explained = text[found.end() :].startswith(("（", "("))
                if section not in seen.setdefault(zh, set()) and not explained:
                    counterpart = terms.forms[zh][0] if self.config.language == BOOK else zh
                    text.hints.append(Hint(*found.span(), counterpart, zh in reached))
                    reached.add(zh)
                seen[zh].add(section)

    def occurrences(self, terms: Terms, text: nodes.Text, block: nodes.Element) -> Iterator[tuple[re.Match[str], str]]:
        """Yield the terms of a text in the language of the page."""
        if self.config.language == BOOK:
            return terms.in_chinese(text)
        return terms.in_english(text, prose(block.rawsource))  # the Chinese, also of a translated paragraph


def running(document: nodes.document) -> Iterator[tuple[nodes.Text, nodes.Element, int]]:
    """Yield the texts of all paragraphs and figure captions, with the paragraph and the number of the section."""
    sections: dict[int, int] = {}
    for text in document.findall(nodes.Text):
        block, node, top = None, text.parent, 0
        while node is not None and not isinstance(node, APART):
            if block is None and is_block(node):
                block = node
            if isinstance(node, nodes.section) and isinstance(node.parent.parent, nodes.document):
                top = sections.setdefault(id(node), len(sections) + 1)
            node = node.parent
        if block is not None and node is None:
            yield text, block, top


def is_block(node: nodes.Element) -> bool:
    """Whether a node is a paragraph or what stands below a figure; titles of dropdowns and tabs are neither."""
    caption = isinstance(node, nodes.caption) and isinstance(node.parent, nodes.figure)
    return caption or isinstance(node, nodes.paragraph)


def visit_text(self: HTML5Translator, node: nodes.Text) -> None:
    """Write a text as always, with an element around each term; the element can be focused, and says what it is."""
    end, write = 0, type(self).visit_Text
    for hint in getattr(node, "hints", ()):
        name, tab = html.escape(hint.counterpart), -1 if hint.again else 0
        write(self, nodes.Text(node[end : hint.start]))
        self.body.append(f'<span class="term-hint" tabindex="{tab}" data-term="{name}" aria-description="{name}">')
        write(self, nodes.Text(node[hint.start : hint.end]))
        self.body.append("</span>")
        end = hint.end
    write(self, nodes.Text(node[end:]))


def depart_text(self: HTML5Translator, node: nodes.Text) -> None:
    """Close nothing: what is opened is closed."""


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register what finds terms, and what writes them."""
    app.add_config_value("term_hints_pages", ["general/*", "finetuning/*", "algorithms/*"], "html", frozenset({list}))
    app.add_config_value("term_hints_digest", "", "html", frozenset({str}))
    app.connect("config-inited", note_tables)
    app.add_post_transform(Hints)
    app.add_node(nodes.Text, override=True, html=(visit_text, depart_text))
    app.add_css_file("term_hints.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
