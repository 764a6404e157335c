"""Chinese pages set a full-width colon where English ones set a dash: between an argument and what is said of it.

Sphinx writes the dash as a text of its own, ``" -- "``, and leaves it raw where smart quotes are off, as in Chinese.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.typing import ExtensionMetadata

DASH, COLON = " -- ", "："


class FieldDashes(SphinxPostTransform):
    """Replaces the dash of field lists."""

    default_priority = 800  # the fields have been made from docstrings by then

    def run(self, **kwargs: object) -> None:
        """Look at every text that is just the dash."""
        if not self.config.language.startswith("zh"):
            return
        for text in list(self.document.findall(nodes.Text)):
            if text == DASH and text.parent is not None:
                text.parent.replace(text, nodes.Text(COLON))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the transform."""
    app.add_post_transform(FieldDashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
