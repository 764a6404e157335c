"""``:issue:`open an issue <docs/index.rst>``` leads to the form for it, about this file; without an address it is text.

Like the link at the foot of each page it is made when the page is written: the address depends on where that happens.
"""

import os
from typing import Any

from addresses import repository
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import ReferenceRole
from sphinx.util.typing import ExtensionMetadata


class Issue(ReferenceRole):
    """The words that are to become a link."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return them with a mark."""
        return [nodes.inline(self.rawtext, self.title, issue_about=self.target)], []


class Link(SphinxPostTransform):
    """Makes the links."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Replace the words by a link, if there is an address."""
        marked = [node for node in self.document.findall(nodes.inline) if "issue_about" in node]
        if marked and (found := repository(os.environ)):
            for node in marked:
                address = found.report(f"{node['issue_about']}: ")
                node.replace_self(nodes.reference("", node.astext(), refuri=address, internal=False))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the role and what makes the links."""
    app.add_role("issue", Issue())
    app.add_post_transform(Link)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
