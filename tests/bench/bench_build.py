"""A cold build of both languages with formulas set by KaTeX, against the same build that leaves them to the browser."""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.timing import Row, quartile, row, show

CHAPTERS, SECTIONS, FORMULAS = 30, 10, 10  # formulas of one section, of which two are displayed
SENTENCE = "注意力把每个词元的查询与所有键作内积，经过缩放和归一化得到权重，再对值加权求和；序列越长，代价越高。"

ROOT = Path(__file__).parents[2]
LANGUAGES = [row["code"] for row in tomllib.loads((ROOT / "docs/languages.toml").read_text("utf-8"))["language"]]
RENDERER = f"""
import os
katex_dist = {str(ROOT / "docs/node_modules/katex/dist")!r}
html_math_renderer = os.environ["RENDERER"]
if html_math_renderer != "katex":
    extensions.remove("katex_math")
"""


def section(chapter: int, number: int) -> str:
    """Return about 800 characters with ten formulas, no two of the book alike, and one doctest."""
    title = f"第 {number} 节"
    parts = [f"{title}\n{'-' * 2 * len(title)}"]
    for last in range(FORMULAS):
        tex = rf"\frac{{\exp(q_{{{chapter}}}^\top k_{{{number}}})}}{{\sum_{{j=1}}^{{{last}}} \exp(q^\top k_j)}}"
        parts += [f"{SENTENCE} :math:`{tex}`。" if last % 5 else f"{SENTENCE}\n\n.. math:: {tex}", SENTENCE[:30]]
    return "\n\n".join([*parts, f".. doctest::\n\n   >>> {chapter} + {number}\n   {chapter + number}\n\n"])


def write_book(docs: Path) -> None:
    """Copy the real book without its pages, let the environment choose the renderer, and write chapters."""
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("node_modules", "_generated", "*.rst"))
    with (docs / "conf.py").open("a", encoding="utf-8") as file:
        file.write(RENDERER)
    names = [f"chapter_{number}" for number in range(CHAPTERS)]
    contents = "\n   ".join([":numbered:", "", *names])
    (docs / "index.rst").write_text(f"书\n====\n\n.. toctree::\n   {contents}\n", "utf-8")
    for number, name in enumerate(names):
        title = f"第 {number} 章"
        text = "".join(section(number, part) for part in range(SECTIONS))
        (docs / f"{name}.rst").write_text(f"{title}\n{'=' * 2 * len(title)}\n\n{text}", "utf-8")


def build(folder: Path, renderer: str) -> None:
    """Build all languages from nothing."""
    shutil.rmtree(folder / "build", ignore_errors=True)
    for code in LANGUAGES:
        out = folder / "build" / code
        folders = ["-d", f"{out}-doctrees", "docs", str(out)]
        command = [sys.executable, "-m", "sphinx", "-q", "-j", "auto", "-D", f"language={code}", *folders]
        subprocess.run(command, cwd=folder, env={**os.environ, "RENDERER": renderer}, check=True)


def main() -> list[dict[str, str | float]]:
    """Measure, print and return the row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_book(folder / "docs")
        renderers = {name: lambda name=name: build(folder, name) for name in ("katex", "mathjax")}
        best = quartile(renderers, rounds=2, warmup=0)
    rows: list[Row] = [row(f"cold build, {CHAPTERS} chapters / left to MathJax", best["katex"], best["mathjax"], 1.3)]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
