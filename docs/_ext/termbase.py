"""The glossary: ``.. glossary-terms::`` shows defined terms in both languages, ``.. termbase::`` the whole table.

The terms come from ``locale/terms.tsv``, the table that translations are held to, so page and catalogs cannot disagree.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from languages import BOOK, load
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles
from sphinx.util.typing import ExtensionMetadata


@dataclass(frozen=True)
class Term:
    """One row of the table: the Chinese term, the English forms that may render it, and a note for translators."""

    zh: str
    en: tuple[str, ...]
    note: str

    @property
    def anchor(self) -> str:
        """Return the id of the term on the glossary page."""
        return nodes.make_id(f"term-{self.en[0]}")


def read_terms(path: Path) -> dict[str, Term]:
    """Return the rows of the table by their Chinese term."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        terms = [
            Term(row["zh"], tuple(form.strip() for form in row["en"].split(";")), row["note"] or "") for row in rows
        ]
    return {term.zh: term for term in terms}


class TermDirective(SphinxDirective):
    """What both directives share: the table, and how a term is written."""

    def terms(self) -> dict[str, Term]:
        """Return the table, of which the page then depends."""
        path = Path(self.env.srcdir, "../locale/terms.tsv").resolve()
        self.env.note_dependency(str(path))
        return read_terms(path)

    def words(self, term: Term, forms: tuple[str, ...]) -> list[nodes.inline]:
        """Return the term in the language of the page, then in the other."""
        # no inline node may say "translatable": Sphinx would dissolve it and put its text at the end
        chinese = nodes.inline("", term.zh, classes=[f"language-{load()[BOOK].tag}"])
        english = nodes.inline("", ", ".join(forms), classes=["language-en"])
        return [chinese, english] if self.config.language == BOOK else [english, chinese]


class GlossaryTerms(TermDirective):
    """A definition list whose headwords stand in the termbase."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the definitions and write each headword in both languages."""
        box = nodes.container()
        nested_parse_with_titles(self.state, self.content, box, self.content_offset)
        terms = self.terms()
        for item in box.findall(nodes.definition_list_item):
            head = item[0]
            if (term := terms.get(head.astext())) is None:
                raise self.error(f"the term {head.astext()!r} is not in locale/terms.tsv: add a row with its English")
            first, second = self.words(term, term.en[:1])
            head.children = []
            head["ids"], head["translatable"] = [term.anchor], False
            head += [first, nodes.Text(" · "), second]
        return box.children


class Termbase(TermDirective):
    """The whole table, ordered by its English."""

    def run(self) -> list[nodes.Node]:
        """Return a table of two columns."""
        body = nodes.tbody()
        for term in sorted(self.terms().values(), key=lambda term: term.en[0].lower()):
            cells = [
                nodes.entry("", nodes.paragraph("", "", word, translatable=False)) for word in self.words(term, term.en)
            ]
            body += nodes.row("", *cells)
        group = nodes.tgroup("", *[nodes.colspec(colwidth=50) for _ in range(2)], body, cols=2)
        return [nodes.table("", group, classes=["termbase"])]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register both directives."""
    app.add_directive("glossary-terms", GlossaryTerms)
    app.add_directive("termbase", Termbase)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
