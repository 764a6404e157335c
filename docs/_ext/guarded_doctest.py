"""Doctests that run the code which the page shows, in the language of the page, or say why not.

Sphinx alone runs the untranslated code of a translated page in many cases (a fuzzy or missing entry, a bare ``>>>``,
inline flags), and nothing at all where a translation lost its prompts. Here each such case is an error, all pages are
checked before any code runs, and a translation runs only if it is the same code as its source (``code_gate``).
"""

import json
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from code_gate import difference, executes_strings
from docutils import nodes
from languages import BOOK, CJK, source_language
from sphinx.application import Sphinx
from sphinx.ext import doctest
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)
KINDS = {"doctest": "pycon", "testcode": "python", "testsetup": "python", "testcleanup": "python", "testoutput": "text"}


class Faithful(SphinxDirective):
    """Keeps what is shown, translated and run one text, and remembers what the author wrote."""

    def run(self) -> list[nodes.Node]:
        """Undo Sphinx's second, untranslatable copy of blocks with inline flags or ``<BLANKLINE>``."""
        [node] = super().run()
        if "test" in node:  # flags are trimmed again when the page is written
            source = node.attributes.pop("test")
            node.rawsource, node.children = source, []
            node += nodes.Text(source)
        node["source_code"] = node.astext()
        return [node]


def faithful(name: str) -> type:
    """Return Sphinx's directive of this name with the change of ``Faithful``."""
    base = getattr(doctest, f"{name.capitalize()}Directive")
    return type(f"Faithful{name.capitalize()}", (Faithful, base), {})


DIRECTIVES = {name: faithful(name) for name in KINDS}


def is_block(node: nodes.Node) -> bool:
    """Whether the doctest builder takes any notice of a node."""
    return isinstance(node, nodes.literal_block | nodes.comment) and "testnodetype" in node


def complaint(node: nodes.Element, foreign: bool) -> str | None:
    """Return why a block must not run on a page; ``foreign`` if the page is a translation."""
    source, shown = node.get("source_code", ""), node.astext()
    if node.get("test", shown) != shown:
        return "expected the code that is shown to run, found another copy of it; remove the inline flags of the block"
    if node["testnodetype"] == "doctest" and not re.search(r"^\s*>>> ", source, re.MULTILINE):
        return "expected examples that begin with '>>> ', found none, so that nothing would run"
    if not foreign:
        return None
    if CJK.search(source) and isinstance(node, nodes.comment):
        return "expected ASCII in a hidden block, found Chinese, which is never translated; translate or show it"
    if CJK.search(source) and not node.get("translated"):
        return "expected a translation, found an entry that is empty, fuzzy or missing; complete it in the catalog"
    return difference(source, shown, KINDS[node["testnodetype"]])


def stray_outputs(blocks: list[nodes.Element]) -> Iterator[nodes.Element]:
    """Yield each ``testoutput`` that follows no ``testcode`` of its group: Sphinx compares it with nothing."""
    last: dict[str, str] = {}
    for node in blocks:
        kind = node["testnodetype"]
        if kind == "testoutput" and any(last.get(group) != "testcode" for group in node["groups"]):
            yield node
        last.update(dict.fromkeys(node["groups"], kind))


class GuardedDocTestBuilder(doctest.DocTestBuilder):
    """The doctest builder that never runs a page which would show one thing and run another."""

    name = "doctest"

    def write_documents(self, docnames: Set[str]) -> None:
        """Check every page; only if all may run, run them, and write how many examples each had."""
        trees = {docname: self.env.get_doctree(docname) for docname in sorted(docnames)}
        problems = [found for docname, tree in trees.items() for found in self.refusals(docname, tree)]
        for node, text in problems:
            logger.warning(text, location=node, type="doctest", subtype="guard")
        if problems:
            self._warn_out(f"refused to run anything: {len(problems)} blocks would run other code than they show\n")
            self._app.statuscode = 1
            return
        self.counts: dict[str, int] = {}
        super().write_documents(docnames)
        target = Path(self.outdir, "counts.json")
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(self.counts, indent=1, sort_keys=True) + "\n", "utf-8")
        os.replace(partial, target)

    def refusals(self, docname: str, tree: nodes.document) -> Iterator[tuple[nodes.Element, str]]:
        """Yield the blocks of a page that must not run, each with the reason."""
        foreign = source_language(docname) != self.config.language
        if source_language(docname) == BOOK:
            for node in tree.findall(nodes.doctest_block):
                yield node, "expected '.. doctest::', found a bare '>>>', which is neither translated nor run"
        blocks: list[nodes.Element] = list(tree.findall(is_block))
        for node in blocks:
            if text := complaint(node, foreign):
                yield node, text
        for node in stray_outputs(blocks):
            yield node, "expected '.. testcode::' before this output, found none in its group"
        if foreign and any(executes_strings(node.get("source_code", "")) for node in blocks):
            for node in blocks:
                if difference(node.get("source_code", ""), node.astext(), KINDS[node["testnodetype"]], strings=False):
                    yield node, "expected untranslated strings on a page that calls exec or eval, found translated ones"

    def test_doc(self, docname: str, doctree: nodes.Node) -> bool:
        """Run one page and count its examples."""
        before = self.total_tries
        success = super().test_doc(docname, doctree)
        self.counts[docname] = self.total_tries - before
        return success


def setup(app: Sphinx) -> ExtensionMetadata:
    """Replace Sphinx's directives and builder."""
    app.setup_extension("sphinx.ext.doctest")
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive, override=True)
    app.add_builder(GuardedDocTestBuilder, override=True)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
