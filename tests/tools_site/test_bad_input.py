"""What an author or a translator gets wrong stops the build with file and line, and the last good site stays."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = """.. _index:

书
==

看 :cite:p:`vaswani2017attention`，得 :math:`x^2`。

.. plot-figure:: small:line
   :alt: 一条线

   一条线。

.. doctest::
   :verifies: eq-index-two

   >>> 1 + 1  # 二
   2

.. math::
   :label: eq-index-two

   1 + 1 = 2

.. bibliography::
"""
FIGURE = "def line(plt, _):\n    fig, ax = plt.subplots()\n    ax.plot([1, 2])\n    return fig\n"
CATALOG = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "书"\nmsgstr "Book"\n'

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the book's own configuration and one page, built once."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("_ext", "_tools", "_templates", "_static"):
        shutil.copytree(ROOT / "docs" / name, root / "docs" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf.py", "redirects.toml", "inventory.txt", "references.bib"):
        shutil.copy(ROOT / "docs" / name, root / "docs" / name)
    languages = (ROOT / "docs/languages.toml").read_text(
        "utf-8"
    )  # the page shows its source where it is not translated
    (root / "docs/languages.toml").write_text(languages.replace("complete = true", "complete = false"), "utf-8")
    os.symlink(ROOT / "docs/node_modules", root / "docs/node_modules")
    shutil.copytree(ROOT / "llm_study", root / "llm_study", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs/figures").mkdir()
    (root / "docs/data").mkdir()
    shutil.copy(ROOT / "docs/data/chapters.toml", root / "docs/data")
    (root / "docs/index.rst").write_text(PAGE, "utf-8")
    (root / "docs/figures/small.py").write_text(FIGURE, "utf-8")
    (root / "locale/en/LC_MESSAGES").mkdir(parents=True)
    (root / "locale/en/LC_MESSAGES/index.po").write_text(CATALOG, "utf-8")
    for name in ("terms.tsv", "allowed.toml", "waivers.toml"):
        shutil.copy(ROOT / "locale" / name, root / "locale")
    shutil.copytree(ROOT / "locale/zh_CN", root / "locale/zh_CN", ignore=shutil.ignore_patterns("api"))
    run = make(root)
    assert run.returncode == 0, run.stdout + run.stderr
    return root


def make(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "docs/_tools/make_site.py"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


DEFECTS = {
    "a formula that KaTeX cannot read": ("docs/index.rst", ":math:`x^2`", r":math:`\frac{1`", ["index.rst:6", "katex"]),
    "a missing citation": (
        "docs/index.rst",
        "vaswani2017attention",
        "nobody1900nothing",
        ["index.rst:6", "nobody1900"],
    ),
    "an unknown label": ("docs/index.rst", "得", "见 :ref:`nowhere`，得", ["index.rst:6", "nowhere"]),
    "a figure that raises": (
        "docs/figures/small.py",
        "    return fig",
        '    raise RuntimeError("no data")',
        ["index.rst:8", "small.py:4", "no data"],
    ),
    "an equation that nothing verifies": ("docs/index.rst", "   :verifies: eq-index-two\n", "", ["eq-index-two"]),
    "a catalog with an unterminated string": (
        "locale/en/LC_MESSAGES/index.po",
        'msgstr "Book"',
        'msgstr "Book',
        ["index.po:5"],
    ),
    "a catalog that is no UTF-8": ("locale/en/LC_MESSAGES/index.po", "Book", "B\udcfcch", ["index.po", "UTF-8"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_stops_the_build_and_leaves_the_last_good_site(good: Path, defect: str) -> None:
    name, before, after, told = DEFECTS[defect]
    path, site = good / name, good / "build/site"
    was, pages = path.read_bytes(), {page: page.read_bytes() for page in site.rglob("*.html")}
    text = was.decode("utf-8")
    assert before in text
    try:
        path.write_bytes(text.replace(before, after).encode("utf-8", "surrogateescape"))
        run = make(good)
    finally:
        path.write_bytes(was)
    assert run.returncode != 0
    for words in told:
        assert words in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert {page: page.read_bytes() for page in site.rglob("*.html")} == pages
