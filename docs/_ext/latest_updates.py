"""``.. latest-updates:: 3`` shows the newest entries of the page of updates, in the language of the page.

They are taken from the translated page when this one is written, so the two cannot disagree and nothing is translated
twice. The table of ``docs/updates.rst`` has one row for each entry: its date, then its text.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

PAGE = "updates"


class LatestUpdates(SphinxDirective):
    """The place where the entries will stand."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return an empty box; the page depends on the other one and on its catalog."""
        number = self.arguments[0]
        if not number.isdecimal() or number == "0":
            raise self.error(f"latest-updates: expected how many entries to show, found {number!r}")
        page = Path(self.env.srcdir, f"{PAGE}.rst")
        if not page.exists():
            raise self.error(f"latest-updates: expected the page docs/{PAGE}.rst, found none")
        catalogs = [Path(self.env.srcdir, folder, self.config.language) for folder in self.config.locale_dirs]
        for path in (page, *(folder / f"LC_MESSAGES/{PAGE}.po" for folder in catalogs)):
            if path.exists():
                self.env.note_dependency(str(path))
        return [nodes.container(classes=["latest-updates"], latest=int(number))]


class Fill(SphinxPostTransform):
    """Copies the entries, before references are resolved."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Fill every box of the page."""
        for box in self.document.findall(nodes.container):
            if "latest" in box:
                rows = [row.children for row in next(self.env.get_doctree(PAGE).findall(nodes.tbody))]
                newest = sorted(rows, key=lambda cells: cells[0].astext(), reverse=True)[: box["latest"]]
                box += nodes.definition_list("", *[self.entry(*cells) for cells in newest])

    def entry(self, date: nodes.Element, text: nodes.Element) -> nodes.definition_list_item:
        """Return one entry, whose links start from this page, and whose ids stay on the other."""
        definition = nodes.definition("", *[child.deepcopy() for child in text.children])
        for node in definition.findall(nodes.Element):
            node["ids"], node["names"] = [], []
            if isinstance(node, addnodes.pending_xref):
                node["refdoc"] = self.env.current_document.docname
        return nodes.definition_list_item("", nodes.term("", date.astext()), definition)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive and what fills it."""
    app.add_directive("latest-updates", LatestUpdates)
    app.add_post_transform(Fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
