"""``.. translation-status::`` shows how much of each page is translated, counted from the catalogs at build time."""

import functools
from pathlib import Path

from catalogs.counts import Counts, count_all
from catalogs.storage import BrokenCatalogError
from docutils import nodes
from languages import Language, load
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

PAGE, LOCALE = "contributing/status", "../locale"
HEADINGS = ("页面", "全部", "译好", "待核对", "未译")
TOTAL = "合计"


class TranslationStatus(SphinxDirective):
    """One table for each language, one row for each catalog."""

    def run(self) -> list[nodes.Node]:
        """Return the tables; the page depends on every catalog."""
        if self.env.current_document.docname != PAGE:
            raise self.error(f"translation-status: expected on the page {PAGE!r} only, which is kept up to date")
        locale = Path(self.env.srcdir, LOCALE).resolve()
        for path in sorted(locale.rglob("*.po")):
            self.env.note_dependency(str(path))
        try:
            return [node for row in self.languages() for node in self.status(row, count_all(locale, row.code))]
        except BrokenCatalogError as error:
            raise self.error(str(error)) from error

    def languages(self) -> list[Language]:
        """Return the table of languages."""
        path = Path(self.env.srcdir, "languages.toml")
        self.env.note_dependency(str(path))
        return [*load(path).values()]

    def status(self, language: Language, counts: dict[str, Counts]) -> list[nodes.Node]:
        """Return the heading and the table of one language."""
        rows = [self.row(self.link(domain), each) for domain, each in sorted(counts.items())]
        rows.append(self.row(self.said(TOTAL), functools.reduce(Counts.plus, counts.values(), Counts())))
        head = nodes.row("", *[nodes.entry("", self.said(text)) for text in HEADINGS])
        group = nodes.tgroup("", *[nodes.colspec(colwidth=width) for width in (60, 10, 10, 10, 10)], cols=5)
        group += [nodes.thead("", head), nodes.tbody("", *rows)]
        heading = nodes.rubric(
            "", "", nodes.inline("", language.label, classes=[f"language-{language.tag}"]), translatable=False
        )
        return [heading, nodes.table("", group, classes=["translation-status", f"status-{language.path}"])]

    def row(self, name: nodes.paragraph, counts: Counts) -> nodes.row:
        """Return one row; what is left to do is strong."""
        cells = [nodes.inline("", str(number)) for number in counts]
        cells[2:] = [nodes.strong("", str(number)) if number else nodes.inline("", "0") for number in counts[2:]]
        paragraphs = [name, *(nodes.paragraph("", "", cell, translatable=False) for cell in cells)]
        return nodes.row("", *[nodes.entry("", paragraph) for paragraph in paragraphs])

    def link(self, domain: str) -> nodes.paragraph:
        """Return the link to the page of a catalog; figures and the theme have catalogs, but no pages."""
        name: nodes.Node = nodes.literal("", f"{domain}.po")
        if domain in self.env.found_docs:
            here = self.env.current_document.docname
            name = addnodes.pending_xref("", nodes.inline("", domain), refexplicit=False, refwarn=True)
            name.attributes |= {"refdomain": "std", "reftype": "doc", "reftarget": f"/{domain}", "refdoc": here}
        return nodes.paragraph("", "", name, translatable=False)

    def said(self, text: str) -> nodes.paragraph:
        """Return a paragraph that the catalogs take for one of the page."""
        node = nodes.paragraph(text, text)
        node.source, node.line = self.get_source_info()
        return node


def refresh(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Return the page where catalogs or pages have come or gone; for those that changed, it has noted them."""
    locale = Path(app.srcdir, LOCALE).resolve()
    now = sorted(path.relative_to(locale).as_posix() for path in locale.rglob("*.po"))
    before, env.status_catalogs = getattr(env, "status_catalogs", now), now
    return [PAGE] if PAGE in env.found_docs and (added or removed or now != before) else []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.connect("env-get-outdated", refresh)
    app.add_directive("translation-status", TranslationStatus)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
