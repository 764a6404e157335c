"""No line begins with the comma that follows a formula, nor ends with the bracket before it.

Browsers may break a line between a formula, which is a box to them, and any text. Both are put into one span that does
not break (``site.css``). A long formula is left alone: on a phone it must be able to break at its own signs.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

LONG = 24
"""Symbols that surely find room in one line of a phone."""

NO_SYMBOL = re.compile(r"\\(?:left|right|[bB]igg?|mathrm|mathbb|mathbf|operatorname|text|[,;:!])|[\s{}_^&]")
SYMBOL = re.compile(r"\\[A-Za-z]+|.")
OPENING = re.compile(r"[（《「『“‘(\[]+$")
CLOSING = re.compile(r"[，。、；：？！）》」』”’…,.;:?!)\]]+")


def symbols(tex: str) -> int:
    r"""Return about how many symbols a formula has.

    >>> symbols(r"\operatorname{Var}[q_i] = \sigma^2")
    10
    """
    return len(SYMBOL.findall(NO_SYMBOL.sub("", tex)))


class Unbroken(SphinxPostTransform):
    """Keep formulas and the marks around them together."""

    default_priority = 890  # before katex_math takes the source out of the text
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Wrap every short formula of a page that a mark touches."""
        for formula in list(self.document.findall(nodes.math)):
            if symbols(formula.astext()) <= LONG:
                self.wrap(formula)

    def wrap(self, formula: nodes.math) -> None:
        """Move the marks that touch a formula into a span with it."""
        parent, place = formula.parent, formula.parent.index(formula)
        before, after = (parent[i] if 0 <= i < len(parent) else None for i in (place - 1, place + 1))
        opening = OPENING.search(before) if isinstance(before, nodes.Text) else None
        closing = CLOSING.match(after) if isinstance(after, nodes.Text) else None
        marks = [nodes.Text(found[0]) if found else nodes.Text("") for found in (opening, closing)]
        if closing:
            parent[place + 1] = nodes.Text(after[closing.end() :])
        if opening:
            parent[place - 1] = nodes.Text(before[: opening.start()])
        if opening or closing:
            parent[place] = nodes.inline("", "", marks[0], formula, marks[1], classes=["unbroken"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_post_transform(Unbroken)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
