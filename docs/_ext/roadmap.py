"""What is written and what is to come, so that the landing page cannot disagree with the book.

``docs/data/chapters.toml`` lists every planned chapter. ``.. roadmap::`` shows those without a page; the landing page
has a card for each of the others, recognized by the measured time on it, ``:running-time:`general/transformer_1```. A
page that is not planned, a heading that is not the planned title and a chapter without a card fail the build.
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from languages import BOOK
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

PLAN, TIMES = "data/chapters.toml", "data/running_time.json"
RECORD = "python docs/figures/record_running_time.py"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One part of the book: the name of its folder, its title, and the titles of its chapters by docname."""

    name: str
    title: str
    chapters: dict[str, str]


def plan(docs: Path) -> list[Part]:
    """Return the parts of the book with all that is planned, in the order of reading."""
    parts = tomllib.loads(Path(docs, PLAN).read_text("utf-8"))["part"]
    return [
        Part(part["name"], part["title"], {f"{part['name']}/{name}": title for name, title in part["chapters"]})
        for part in parts
    ]


def is_written(page: Path) -> bool:
    """Whether a chapter is there for readers; one that is being written begins with ``:orphan:``."""
    return page.exists() and not page.read_text("utf-8").startswith(":orphan:")


def written(docs: Path, parts: list[Part]) -> list[str]:
    """Return the docnames of all chapters in the folders of the parts, planned or not."""
    pages = [page for part in parts for page in sorted(Path(docs, part.name).glob("*.rst")) if page.stem != "index"]
    return [page.relative_to(docs).with_suffix("").as_posix() for page in pages if is_written(page)]


class Roadmap(SphinxDirective):
    """The chapters to come: for each part a heading and a list."""

    def run(self) -> list[nodes.Node]:
        """Return the lists; the titles are messages of the page, so catalogs translate them."""
        docs = Path(self.env.srcdir)
        self.env.note_dependency(str(docs / PLAN))
        box = nodes.container(classes=["roadmap"])
        for part in plan(docs):
            pages = {docname: docs / f"{docname}.rst" for docname in part.chapters}
            for page in filter(Path.exists, pages.values()):
                self.env.note_dependency(str(page))  # it may become, or cease to be, an orphan
            titles = [part.chapters[docname] for docname, page in pages.items() if not is_written(page)]
            if titles:
                box += self.text(nodes.rubric, part.title)
                box += nodes.bullet_list(
                    "", *[nodes.list_item("", self.text(nodes.paragraph, text)) for text in titles]
                )
        return [box]

    def text(self, kind: type[nodes.TextElement], title: str) -> nodes.TextElement:
        """Return a heading or a paragraph that the catalogs take for one of the page."""
        node = kind(title, title)
        node.source, node.line = str(Path(self.env.srcdir, PLAN)), self.lineno
        return node


class RunningTime(SphinxRole):
    """The seconds that the code of a chapter takes, from the record of a measurement."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the number, which also says that here is the card of the chapter."""
        path = Path(self.env.srcdir, TIMES)
        self.env.note_dependency(str(path))
        times = json.loads(path.read_text("utf-8"))["chapters"] if path.exists() else {}
        if self.text not in times:
            known = ", ".join(times) or "none"
            text = f"running-time: expected a chapter of docs/{TIMES} ({known}), found {self.text!r}; run {RECORD}"
            message = self.inliner.reporter.error(text, line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        seconds = str(max(1, round(times[self.text]["seconds"])))
        return [nodes.inline(self.rawtext, seconds, card_of=self.text)], []


def refresh(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Return the landing page when a page is new: it may be a chapter that stood on the roadmap."""
    return [app.config.root_doc] if added and app.config.root_doc in env.found_docs else []


def problems(env: BuildEnvironment) -> Iterator[tuple[str, Any]]:
    """Yield what is wrong, and where."""
    docs, root = Path(env.srcdir), env.config.root_doc
    parts = plan(docs)
    planned = {docname: title for part in parts for docname, title in part.chapters.items()}
    cards = [node for node in env.get_doctree(root).findall(nodes.inline) if "card_of" in node]
    seen: set[str] = set()
    for card in cards:
        chapter = card["card_of"]
        if chapter in seen or not is_written(docs / f"{chapter}.rst"):
            found = "a second one" if chapter in seen else f"one, but docs/{chapter}.rst is not written yet"
            yield f"expected one card for each written chapter, found {found} for {chapter!r}; remove it", card
        seen.add(chapter)
    for docname in written(docs, parts):
        heading = env.titles[docname].astext() if docname in env.titles else ""
        if docname not in planned:
            yield f"expected a row for this chapter in docs/{PLAN}, found none; add it in the order of reading", docname
        elif env.config.language == BOOK and heading != planned[docname]:
            title = planned[docname]
            yield f"expected the title of docs/{PLAN}, {title!r}, found {heading!r}; correct one of them", (docname, 1)
        if docname not in seen:
            role = f":running-time:`{docname}`"
            yield f"expected a card with {role} for this chapter, found none; add it, and run {RECORD}", root


def check_consistency(app: Sphinx, env: BuildEnvironment) -> None:
    """Report every disagreement as a warning, that is, as an error of the build."""
    for text, place in problems(env):
        logger.warning(text, location=place, type="roadmap")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive, the role and the check."""
    app.add_directive("roadmap", Roadmap)
    app.add_role("running-time", RunningTime())
    app.add_css_file("landing.css")
    app.connect("env-get-outdated", refresh)
    app.connect("env-check-consistency", check_consistency)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
