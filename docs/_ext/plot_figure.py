"""``.. plot-figure:: module:function`` draws a figure at build time, from our own code, in the language of the page.

``docs/figures/<module>.py`` holds ``def function(plt, _): … return fig``; ``_()`` finds translations in ``figures.po``.
Options, caption and legend are those of ``figure``; ``:alt:`` is required, for it is what people who cannot see the
figure get. Drawings are kept in ``docs/_generated`` under a name that changes with whatever they are made from.
"""

import difflib
import hashlib
import html
import importlib.metadata
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import figure_svg
import polib
from docutils import nodes
from figure_svg import FigureError
from marked_strings import strings as marked
from python_source import closure
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec

CACHE = "_generated"
OPTIONS = ("align", "alt", "class", "figclass", "name", "width")
VERSIONS = tuple(importlib.metadata.version(name) for name in ("matplotlib", "numpy", "torch"))


class PlotFigure(SphinxDirective, Figure):
    """The directive: a ``figure`` whose image is drawn here."""

    drawing: ClassVar[bool] = True
    """Whether the builder of this process shows pictures; gettext and doctest do not."""

    option_spec: ClassVar[OptionSpec] = {name: Figure.option_spec[name] for name in OPTIONS}

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        plot = self.arguments[0]
        try:
            if not self.options.get("alt", "").strip():
                raise FigureError("expected ':alt:' with a sentence that says what the figure shows, found none")
            script, function = self._locate(plot)
            picture = self._draw(script, function) if self.drawing else None
        except FigureError as error:
            raise self.error(f"plot-figure: {plot}: {error}") from error
        self.arguments[0] = f"/{CACHE}/{picture.name}" if picture else f"figure://{plot}"
        result: list[nodes.Node] = super().run()
        for image in result[0].findall(nodes.image):
            image["plot"] = str(picture or "")
        return result

    def _locate(self, plot: str) -> tuple[Path, str]:
        """Return the script and the name of the function."""
        match = re.fullmatch(r"(\w+):(\w+)", plot)
        if not match:
            raise FigureError("expected «module:function», a function in docs/figures/<module>.py")
        folder = Path(self.env.srcdir, "figures")
        script = folder / f"{match[1]}.py"
        if not script.is_file():
            known = difflib.get_close_matches(match[1], [path.stem for path in folder.glob("*.py")], cutoff=0.0)
            raise FigureError(
                f"there is no docs/figures/{script.name}; nearest: {', '.join(known) or 'the folder is empty'}"
            )
        self.env.note_dependency(str(script))
        return script, match[2]

    def _draw(self, script: Path, function: str) -> Path:
        """Return the drawing, made now unless one from the same inputs exists."""
        language = self.config.language
        strings = self._translations(script)
        inputs = [script, *self._imported(script), *_data(script)]
        for path in inputs:
            self.env.note_dependency(str(path))
        key = _digest([function, strings, VERSIONS], [*inputs, Path(figure_svg.__file__)])
        target = Path(self.env.srcdir, CACHE, f"{script.stem}-{function}.{language}-{key}.svg")
        if not target.exists():
            _keep(target, figure_svg.draw(script, function, strings), like=script)
        for other in target.parent.glob(f"{script.stem}-{function}.{language}-*.svg"):
            if other != target:
                other.unlink(missing_ok=True)
        return target

    def _imported(self, script: Path) -> list[Path]:
        """Return the files of the package that the figure runs."""
        try:
            return closure(script, Path(self.env.srcdir).parent)
        except SyntaxError as error:
            raise FigureError(f"{error.filename}:{error.lineno}: {error.msg}; mend the file") from error

    def _translations(self, script: Path) -> dict[str, str]:
        """Return what the catalog has for the strings of this script."""
        if not self.config.locale_dirs:
            return {}
        catalog = Path(self.env.srcdir, self.config.locale_dirs[0], self.config.language, "LC_MESSAGES", "figures.po")
        if not catalog.is_file():
            return {}
        self.env.note_dependency(str(catalog.resolve()))
        try:
            wanted = {text for _, text in marked(script.read_text("utf-8")) if text}
            return {
                entry.msgid: entry.msgstr
                for entry in polib.pofile(str(catalog))
                if entry.translated() and entry.msgid in wanted
            }
        except (OSError, ValueError) as error:
            raise FigureError(f"{catalog.resolve()}: {error}; mend the catalog") from error


def _data(script: Path) -> list[Path]:
    """Return the files of ``docs/data`` that the script names."""
    text = script.read_text("utf-8")
    return sorted(path for path in (script.parents[1] / "data").glob("*") if path.is_file() and path.stem in text)


def _digest(values: Iterable[Any], files: Iterable[Path]) -> str:
    """Return a short name for everything that a drawing is made from."""
    digest = hashlib.sha256(repr(list(values)).encode())
    for path in files:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _keep(target: Path, svg: str, like: Path) -> None:
    """Write a file whole or not at all: two workers may draw the same figure, and a build may be stopped.

    Its time is that of the script, so that no page seems older than a figure which another worker wrote once more.
    """
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.write_text(svg, "utf-8")
    os.utime(temporary, ns=(like.stat().st_mtime_ns,) * 2)
    os.replace(temporary, target)


def prepare(app: Sphinx) -> None:
    """Tell the directive what the builder needs."""
    PlotFigure.drawing = bool(app.builder.supported_image_types)


def inline(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Put drawings into the page, where they follow its light or dark mode; only an EPUB keeps them as files."""
    if app.builder.format != "html" or app.builder.name == "epub":
        return
    count: Counter[str] = Counter()
    for image in [image for image in document.findall(nodes.image) if image.get("plot")]:
        path = Path(image["plot"])
        name = path.name.split(".")[0]
        count[name] += 1
        prefix = f"{name}-" if count[name] == 1 else f"{name}-{count[name]}-"
        svg = _attributes(image) + _prefixed(path.read_text("utf-8"), prefix).removeprefix("<svg")
        image.replace_self(nodes.raw("", svg, format="html", classes=["no-search"]))


def _prefixed(svg: str, prefix: str) -> str:
    """Return the drawing with ids that are its own on the page."""
    return re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\1{prefix}", svg)


def _attributes(image: nodes.image) -> str:
    """Return the beginning of the element: what it is to screen readers, and how it is laid out."""
    classes = html.escape(" ".join(["plot", *image["classes"]]))
    width = f' style="width: {html.escape(image["width"])}"' if "width" in image else ""
    return f'<svg class="{classes}" role="img" aria-label="{html.escape(image["alt"])}"{width}'


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive, and the styles of figures."""
    app.add_directive("plot-figure", PlotFigure)
    app.connect("builder-inited", prepare)
    app.connect("doctree-resolved", inline)
    app.add_css_file("figures.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
