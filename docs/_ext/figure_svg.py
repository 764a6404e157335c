"""Draw one function of ``docs/figures/`` as SVG that stands inside a page: it takes the page's font and color of text.

The same inputs give the same bytes: salted ids, no date, fixed seeds, matplotlib's own font, no one's settings.
"""

import importlib.util
import io
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

INK = "#010203"
"""Drawn where a figure wants the color of the text; becomes ``currentColor``, so it follows light and dark mode."""

PALETTE = ("#4755fe", "#b78c0a", "#a047a6", "#12967a", "#995841", "#1a95fe", "#c37b9c", "#80858c")
"""C0 … C7: a contrast of at least 3 : 1 on both backgrounds of the theme, #ffffff and #131416; C7 is a neutral gray."""

STYLE = {
    "figure.figsize": (5.2, 3.2),  # on a phone 500 px become 358 px, and text of 10 pt stays above 9 px
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "legend.facecolor": "none",
    "image.interpolation": "none",  # cells of a matrix stay sharp at any size
    "font.family": "DejaVu Sans",  # shipped with matplotlib: text is measured alike everywhere
    "axes.titlesize": "medium",
    "svg.fonttype": "none",
    **dict.fromkeys(
        [
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
            "patch.edgecolor",
            "hatch.color",
        ],
        INK,
    ),
    **{f"boxplot.{part}.color": INK for part in ("boxprops", "capprops", "flierprops", "whiskerprops")},
}

STAND_INS = (*range(0x4DC0, 0x4E00), *range(0x1D300, 0x1D357))
"""Signs as wide as a Chinese character that the font has and nobody draws: hexagrams and tetragrams."""


class FigureError(Exception):
    """A figure that cannot be drawn; the text says where, and what to do."""


class StandIns:
    """Replaces characters that matplotlib's font lacks while it measures text, and puts them back.

    Without this a Chinese character counts as a box of the wrong width, and beside a formula it is drawn as ¤.
    """

    def __init__(self, known: Mapping[int, int]) -> None:
        self.known = known
        self.used: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """Return the text in characters that the font has."""
        return "".join(char if ord(char) in self.known or char.isspace() else self._stand_in(char) for char in text)

    def _stand_in(self, char: str) -> str:
        if char not in self.used:
            if len(self.used) == len(STAND_INS):
                raise FigureError(f"more than {len(STAND_INS)} different Chinese characters; say it in fewer words")
            self.used[char] = chr(STAND_INS[len(self.used)])
        return self.used[char]

    def show(self, text: str) -> str:
        """Return the text as it was."""
        return text.translate({ord(stand_in): char for char, stand_in in self.used.items()})


def draw(script: Path, function: str, strings: Mapping[str, str]) -> str:
    """Return the SVG of one figure; ``strings`` are the translations that its ``_()`` finds.

    Raises:
        FigureError: if the script or the function is not as expected, or raises.
    """
    import matplotlib  # half a second that a build without figures need not spend

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    style = {**STYLE, "axes.prop_cycle": matplotlib.cycler(color=PALETTE), "svg.hashsalt": f"{script.stem}:{function}"}
    output = io.BytesIO()
    with plt.style.context([style], after_reset=True), _stand_ins() as stand_ins, _told(script, function):
        paint = _function(_load(script), function)
        with _repeatable():
            figure = paint(plt, lambda text: strings.get(text, text))
            if not isinstance(figure, Figure):
                raise FigureError(
                    f"{function}() returned {type(figure).__name__}, expected the figure; end it with «return fig»"
                )
            figure.savefig(output, format="svg", bbox_inches="tight", metadata={"Date": None})
            plt.close("all")
    return _inlined(output.getvalue(), stand_ins)


def _load(script: Path) -> ModuleType:
    """Run the script as a module of its own name."""
    spec = importlib.util.spec_from_file_location(f"figures_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise FigureError("Python cannot load the file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function of the module."""
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    own = [key for key in own if callable(vars(module)[key]) and not key.startswith("_")]
    if name not in own:
        raise FigureError(f"no function {name}; expected one of {', '.join(sorted(own)) or 'def name(plt, _): …'}")
    return getattr(module, name)


@contextmanager
def _told(script: Path, function: str) -> Iterator[None]:
    """Turn whatever a script raises into words, with its file and line."""
    try:
        yield
    except Exception as error:
        import matplotlib.pyplot as plt

        plt.close("all")
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else 1
        what = str(error) if isinstance(error, FigureError) else f"{type(error).__name__}: {error}"
        where = "/".join(script.parts[-3:])
        raise FigureError(
            f"{where}:{line}: {what} [{function}(); mend it there, the figure is drawn at each build]"
        ) from error


@contextmanager
def _stand_ins() -> Iterator[StandIns]:
    """Let every text of matplotlib pass through stand-ins."""
    from matplotlib import font_manager, ft2font
    from matplotlib.text import Text

    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    stand_ins, original = StandIns(font.get_charmap()), Text.set_text
    Text.set_text = lambda self, text: original(self, text if text is None else stand_ins.hide(str(text)))
    try:
        yield stand_ins
    finally:
        Text.set_text = original


@contextmanager
def _repeatable() -> Iterator[None]:
    """Seed what a figure may draw from, and keep torch to one thread: pages are read in forked workers."""
    import numpy as np

    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inlined(svg: bytes, stand_ins: StandIns) -> str:
    """Return matplotlib's SVG without what would disturb a page: prolog, global style, fonts, unused ids."""
    root = ElementTree.fromstring(svg)
    used = set(re.findall(rb'(?:url\(|href=")#([^")]+)', svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in [child for child in element if child.tag.rpartition("}")[2] in {"metadata", "style"}]:
            element.remove(child)
        values = {key.rpartition("}")[2]: _value(key, value) for key, value in element.attrib.items()}
        element.attrib = {key: value for key, value in values.items() if value}
        if element.get("id", "").encode() not in used:
            element.attrib.pop("id", None)
        element.text, element.tail = (stand_ins.show(_compact(text)) for text in (element.text, element.tail))
    width, height = (f"{float(root.attrib[side].removesuffix('pt')) / 0.75:.0f}" for side in ("width", "height"))
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _compact(text: str | None) -> str:
    """Drop the white space that only indents."""
    return "" if text is None or ("\n" in text and not text.strip()) else text


def _value(key: str, value: str) -> str:
    """Return an attribute in the page's terms: its color of text, its fonts."""
    value = re.sub(r"\s+", " ", value.replace(INK, "currentColor")).strip()
    if key == "style":
        value = re.sub(
            r"font-family: [^;]*(?:; )?", lambda found: "font-family: monospace; " if "Mono" in found[0] else "", value
        )
    return re.sub(r" ?rotate\(-?0 [^)]*\)", "", value) if key == "transform" else value
