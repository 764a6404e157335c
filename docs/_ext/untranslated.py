"""``nox -s docs-live`` marks what is left to translate, and only that: formulas and code without words need nothing.

Sphinx marks every message that no catalog has. Ours leave out what is the same in every language.
"""

from typing import Any

from languages import BOOK, source_language
from site_i18n import is_same_everywhere, needs_translation
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import extract_messages
from sphinx.util.typing import ExtensionMetadata


class NothingToDo(SphinxTransform):
    """Takes for translated what needs no translation."""

    default_priority = 21  # after the translation, before Sphinx counts and marks

    def apply(self, **kwargs: Any) -> None:
        """Look at each message of the page."""
        source = source_language(self.env.current_document.docname)
        for node, message in extract_messages(self.document):
            same = source != BOOK and is_same_everywhere(node)
            if same or not needs_translation(message, source):
                node["translated"] = True


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the transform."""
    app.add_transform(NothingToDo)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
