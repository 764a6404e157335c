"""Formulas are set by KaTeX at build time: one Node run per build, one cache for all languages, no script on the page.

Formulas are collected while pages are read and set before the writers fork, so that every writer has them.
A formula that KaTeX cannot read, or reads with a doubt, is a warning of Sphinx with file and line.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import katex_node
import polib
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.locale import _
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.i18n import docname_to_domain
from sphinx.util.math import get_node_equation_number
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

ADVICE = {
    "error": r"mend the formula; a command of our own is defined in katex_macros of conf.py",
    "newLineInDisplayMode": r"put the lines between \begin{aligned} and \end{aligned}",
    "unicodeTextInMathMode": r"put words between the braces of \text{}, and write symbols as LaTeX commands",
    "unknownSymbol": "write it as a LaTeX command, or outside the formula",
    "symbolNotInFont": "the fonts of KaTeX lack it: write it as a LaTeX command, or outside the formula",
    "blank": r"a blank line does not separate formulas: write two directives, or \begin{aligned} with \\ between lines",
    "number": r"Sphinx numbers formulas: use :label:, :eq: and, for several lines, \begin{aligned}",
    "heading": "it also stands in the browser's tab, in links and in search results: write it in words or in Unicode",
}
"""What to do about each kind of problem: the codes of the script and of KaTeX's strict mode, then our own."""

NUMBERING = re.compile(r"\\(?:tag|label|ref|eqref)\b|\\begin\{(?:align|alignat|equation|gather)\}")
"""What asks LaTeX, or KaTeX's stylesheet, for a number beside that of Sphinx."""


class Formula(NamedTuple):
    """One formula of a page, and where a reader of warnings finds it."""

    tex: str
    display: bool
    place: str
    catalog: str = ""
    heading: bool = False

    @property
    def key(self) -> str:
        """Return the name of this formula in the cache."""
        return hashlib.sha256(f"{self.display:d}{self.tex}".encode()).hexdigest()[:24]

    @property
    def location(self) -> str:
        """Return ``file:line``; of a translated formula, of the catalog and of the page."""
        for entry in polib.pofile(self.catalog) if self.catalog else ():
            if self.tex in entry.msgstr:
                return f"{self.catalog}:{entry.linenum}, the translation of {self.place}"
        return self.place

    def own_problems(self) -> Iterator[tuple[str, str]]:
        """Yield what KaTeX would accept although the page would be wrong."""
        if re.search(r"\n\s*\n", self.tex):
            yield "blank", "The formula has a blank line inside"
        if found := NUMBERING.search(self.tex):
            yield "number", f"The formula contains {found[0]}"
        if self.heading:
            yield "heading", "A heading cannot hold a formula"

    def report(self, problems: Iterable[Sequence[str]]) -> None:
        """Warn of KaTeX's problems with this formula, and of ours."""
        for code, message in (*problems, *self.own_problems()):
            advice = ADVICE.get(code, "change the formula until KaTeX has no doubt")
            text = f"{message.rstrip('.')} ({advice}), in: {shorten(self.tex, 80, placeholder=' …')}"
            logger.warning("%s", text, location=self.location, type="katex", subtype=code)


def is_math(node: nodes.Node) -> bool:
    """Return whether a node is a formula, in a line or on a line of its own."""
    return isinstance(node, nodes.math | nodes.math_block)


def source_of(node: nodes.Element) -> str:
    """Return the LaTeX source of a formula, also after `SourceOutOfText`."""
    return node.get("tex") or node.astext().strip()


def ancestors(node: nodes.Element | None) -> Iterator[nodes.Element]:
    """Yield a node and all that it stands in, the innermost first."""
    while node is not None:
        yield node
        node = node.parent


def describe(env: BuildEnvironment, node: nodes.Element) -> Formula:
    """Return what is to be known of a formula when its page is no longer at hand."""
    docname, catalog = env.current_document.docname, ""
    if any(parent.get("translated") for parent in ancestors(node)):
        name = docname_to_domain(docname, env.config.gettext_compact) + ".po"
        paths = (
            env.srcdir / folder / str(env.config.language) / "LC_MESSAGES" / name for folder in env.config.locale_dirs
        )
        catalog = next((os.path.normpath(path) for path in paths if path.exists()), "")
    heading = any(isinstance(n, nodes.title) and isinstance(n.parent, nodes.section) for n in ancestors(node))
    place = logging.get_node_location(node) or docname
    return Formula(source_of(node), isinstance(node, nodes.math_block), place, catalog, heading)


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Note the formulas of a page in its metadata, which Sphinx keeps, merges and forgets with the page."""
    found = [describe(app.env, node) for node in doctree.findall(is_math)]
    app.env.metadata[app.env.current_document.docname]["formulas"] = found


class SourceOutOfText(SphinxPostTransform):
    r"""Move LaTeX source from the text of a page into an attribute.

    Sphinx indexes for search whatever text a page has, unless a node's class is ``no-search``; but the words of a
    title or a table's caption are taken from the title as a whole, so that class alone would let ``\frac`` pass.
    """

    default_priority = 900  # others may want to read formulas
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Leave formulas without text."""
        for node in list(self.document.findall(is_math)):
            node["tex"] = source_of(node)
            node.clear()


class Katex:
    """The formulas of one build, and how a page shows them."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.html: dict[str, str] = {}

    @property
    def dist(self) -> Path:
        """The folder of KaTeX."""
        return katex_node.found(Path(self.app.confdir, self.app.config.katex_dist))

    @property
    def cache(self) -> Path:
        """The file that this build shares with others of the same project."""
        folder = Path(self.app.confdir).parent / "build/katex"
        return katex_node.cache_file(folder, self.dist, self.app.config.katex_macros)

    @property
    def active(self) -> bool:
        """Whether this build shows formulas by KaTeX at all; others need no Node."""
        return getattr(self.app.builder, "math_renderer_name", None) == "katex"

    def install_assets(self, app: Sphinx) -> None:
        """Bring the stylesheet before any page is written: each page names its checksum."""
        if self.active:
            katex_node.install_assets(self.dist, Path(app.outdir, "_static/katex"))
            app.add_css_file("katex/katex.min.css")

    def prerender(self, app: Sphinx, env: BuildEnvironment) -> None:
        """Set what the cache does not have, before the writers fork."""
        if self.active:
            self.html = katex_node.read_cache(self.cache)
            self.render(formula for page in sorted(env.all_docs) for formula in env.metadata[page].get("formulas", ()))

    def render(self, formulas: Iterable[Formula]) -> None:
        """Set formulas that are not set yet; a problem is reported at each place, and again in each build."""
        todo: dict[str, list[Formula]] = {}
        for formula in formulas:
            if formula.key not in self.html or any(formula.own_problems()):
                todo.setdefault(formula.key, []).append(formula)
        jobs = [(places[0].tex, places[0].display) for places in todo.values()]
        results = dict(zip(todo, katex_node.run(self.dist, self.app.config.katex_macros, jobs), strict=True))
        for key, result in results.items():
            self.html[key] = result["html"]
            for formula in todo[key]:
                formula.report(result["problems"])
        if good := {key: result["html"] for key, result in results.items() if not result["problems"]}:
            katex_node.write_cache(self.cache, good)

    def shown(self, translator: HTML5Translator, node: nodes.Element) -> str:
        """Return a formula as HTML and MathML, or its source where KaTeX could not read it."""
        place = logging.get_node_location(node) or translator.builder.current_docname
        formula = Formula(source_of(node), isinstance(node, nodes.math_block), place)
        if formula.key not in self.html:  # made while writing, so it could not be collected
            self.render([formula])
        return self.html[formula.key] or translator.encode(formula.tex)

    def visit_math(self, translator: HTML5Translator, node: nodes.math) -> None:
        """Write a formula inside a line."""
        start = translator.starttag(node, "span", "", CLASS="math notranslate nohighlight")
        translator.body.append(f"{start}{self.shown(translator, node)}</span>")
        raise nodes.SkipNode

    def visit_math_block(self, translator: HTML5Translator, node: nodes.math_block) -> None:
        """Write a formula on a line of its own, with its number and a link to it."""
        translator.body.append(translator.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
        if node["number"]:
            translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
            translator.add_permalink_ref(node, _("Link to this equation"))
            translator.body.append("</span>")
        translator.body.append(f"{self.shown(translator, node)}</div>\n")
        raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the renderer; ``html_math_renderer = "katex"`` chooses it."""
    katex = Katex(app)
    app.add_html_math_renderer("katex", (katex.visit_math, None), (katex.visit_math_block, None))
    app.add_config_value("katex_dist", "node_modules/katex/dist", "", str)
    app.add_config_value("katex_macros", {}, "html", dict)
    app.add_post_transform(SourceOutOfText)
    app.connect("builder-inited", katex.install_assets)
    app.connect("doctree-read", collect)
    app.connect("env-updated", katex.prerender)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
