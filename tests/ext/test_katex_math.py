import json
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import katex_math
import katex_node
import pytest
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from .conftest import Book, Built

DOCS = Path(__file__).parents[2] / "docs"
DIST = DOCS / "node_modules/katex/dist"

Build = Callable[..., Built]


@pytest.fixture
def build(book: Book) -> Build:
    """Return ``book`` with KaTeX switched on."""

    def run(files: dict[str, str], catalogs: dict[str, dict[str, str]] | None = None, **conf: Any) -> Built:
        options = {"extensions": ["katex_math"], "html_math_renderer": "katex", "katex_dist": str(DIST)}
        return book(files, catalogs, **{**options, "numfig": True, "math_numfig": True, **conf})

    return run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return a list that grows by the formulas of each run of Node."""
    found: list[list[str]] = []
    real = katex_node.run

    def spy(dist: Path, macros: dict[str, str], formulas: list[tuple[str, bool]]) -> list[dict[str, Any]]:
        if formulas:
            found.append([tex for tex, _ in formulas])
        return real(dist, macros, formulas)

    monkeypatch.setattr(katex_node, "run", spy)
    return found


def warnings_of(built: Built) -> list[str]:
    """Return the warnings of formulas, with paths relative to the project."""
    root = str(Path(built.app.srcdir).parent) + "/"
    return [line.replace(root, "") for line in built.warnings.splitlines() if "[katex" in line]


def places(warnings: Iterable[str]) -> list[str]:
    return [line.split(": WARNING")[0] for line in warnings]


PAGE = r"""
题目
====

文中 :math:`a < b`。

.. math::
   :label: eq-page-energy

   E = mc^2

见 :eq:`eq-page-energy`。
"""


def test_a_formula_is_html_and_mathml_with_number_and_permalink(build: Build) -> None:
    built = build({"index.rst": ".. toctree::\n   :numbered:\n\n   page\n", "page.rst": PAGE})
    page = built.read("page.html")
    assert warnings_of(built) == []
    inline, block = re.findall(r'<(?:span|div) class="math notranslate nohighlight".*?</math>', page, re.S)
    assert "<mi>a</mi><mo>&lt;</mo><mi>b</mi>" in inline
    assert 'display="block"' in block
    assert "<mi>m</mi><msup><mi>c</mi><mn>2</mn></msup>" in block
    assert block.index('<span class="eqno">(1.1)<a class="headerlink" href="#equation-eq-page-energy"') < block.index(
        "<math"
    )
    assert page.count('class="katex-html" aria-hidden="true"') == 2
    assert '<a class="reference internal" href="#equation-eq-page-energy">(1.1)</a>' in page
    assert "mathjax" not in page.lower()


BROKEN = r"""
题目
====

行内 :math:`\inline` 公式。

* 外

  * 里 :math:`\nested`

+---------------+---+
| :math:`\cell` | b |
+---------------+---+

.. list-table::

   * - 甲
     - :math:`\listed`

.. math::
   :label: eq-x

   \text{中文} = \block

.. automodule:: broken_docstring
   :members:
"""
DOCSTRING = 'def f():\n    r"""Sum.\n\n    Of :math:`\\documented`.\n    """\n'


def test_what_katex_cannot_read_is_reported_with_file_and_line(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_docstring.py").write_text(DOCSTRING, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    built = build({"index.rst": BROKEN}, extensions=["katex_math", "sphinx.ext.autodoc"])
    warnings = warnings_of(built)
    assert dict(zip(re.findall(r"sequence: (\\\w+)", "\n".join(warnings)), places(warnings), strict=True)) == {
        r"\inline": "docs/index.rst:5",
        r"\nested": "docs/index.rst:9",
        r"\cell": "docs/index.rst:12",
        r"\listed": "docs/index.rst:18",
        r"\block": "docs/index.rst:20",
        r"\documented": "broken_docstring.py:docstring of broken_docstring.f:3",
    }
    assert all("defined in katex_macros of conf.py" in line for line in warnings)
    assert r"\text{中文} = \block</div>" in built.read("index.html")  # the source, so that nothing is missing


def test_a_broken_translation_is_reported_where_it_stands(build: Build) -> None:
    page = BROKEN.split(".. automodule")[0].replace(r"\inline", "a").replace(r"\block", "b")
    files = {"index.rst": page + "未译 :math:`\\wrong`。\n"}
    catalog = {r"行内 :math:`a` 公式。": r"An :math:`\wrong` one.", r"\text{中文} = b": r"\text{English} = \bad"}
    warnings = warnings_of(build(files, {"index": catalog}, language="en"))
    po = "locale/en/LC_MESSAGES/index.po"
    assert [w for w in places(warnings) if po in w] == [
        f"{po}:5, the translation of docs/index.rst:5",
        f"{po}:8, the translation of docs/index.rst:20",
    ]
    assert {w for w in places(warnings) if po not in w} == {f"docs/index.rst:{line}" for line in (9, 12, 18, 25)}


def test_catalogs_are_read_only_to_report_a_problem(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(katex_math.polib, "pofile", None)  # it takes longer than all formulas of a page
    page = build({"index.rst": PAGE}, {"index": {"文中 :math:`a < b`。": "Here :math:`x > y`."}}, language="en").read(
        "index.html"
    )
    assert "<mi>x</mi><mo>&gt;</mo><mi>y</mi>" in page


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (r".. math:: a \\ b", r"put the lines between \begin{aligned} and \end{aligned}"),
        (".. math:: 注意 = 1", r"put words between the braces of \text{}"),
        (".. math:: x = ☃", "the fonts of KaTeX lack it"),
        (r":math:`\text{😀}`", "write it as a LaTeX command, or outside"),
        (r".. math:: a % b", "change the formula until KaTeX has no doubt"),
        (".. math::\n\n   a\n\n   b", "a blank line does not separate formulas"),
        (r".. math:: a \tag{1}", "use :label:, :eq:"),
        (r".. math:: \begin{align} a \end{align}", r"for several lines, \begin{aligned}"),
        (r"见 :math:`\eqref{a}`。", "use :label:, :eq:"),
    ],
)
def test_what_would_look_wrong_is_reported_with_advice(build: Build, source: str, advice: str) -> None:
    warnings = warnings_of(build({"index.rst": f"题目\n====\n\n{source}\n"}))
    assert any(advice in line for line in warnings)
    assert set(places(warnings)) == {"docs/index.rst:4"}
    assert "\n".join(warnings).encode()  # no half of an emoji, which no terminal can show


def test_a_heading_holds_no_formula_but_a_caption_may(build: Build) -> None:
    page = "题目\n====\n\n.. list-table:: 代价 :math:`b`\n\n   * - 甲\n\n乙 :math:`a`\n----------\n"
    [warning] = warnings_of(build({"index.rst": page}))
    assert places([warning]) == ["docs/index.rst:9"]  # docutils counts a heading by the line under it
    assert "it also stands in the browser's tab" in warning


def test_chinese_inside_text_is_no_problem(build: Build) -> None:
    page = (
        "题目\n====\n\n.. math:: \\begin{aligned} a &= \\text{注意力，得分} \\\\ b &= \\reflectbox{x} \\end{aligned}\n"
    )
    assert warnings_of(build({"index.rst": page}, katex_macros={r"\reflectbox": "#1"})) == []


def test_macros_are_for_all_pages_and_a_changed_one_sets_anew(build: Build) -> None:
    page = {"index.rst": "题目\n====\n\n:math:`\\R + \\R`\n"}
    assert (
        build(page, katex_macros={r"\R": r"\mathbb{R}"})
        .read("index.html")
        .count('<mi mathvariant="double-struck">R</mi>')
        == 2
    )
    assert build(page, katex_macros={r"\R": "r"}).read("index.html").count("<mi>r</mi>") == 2


def test_nothing_is_set_twice(build: Build, runs: list[list[str]]) -> None:
    pages = {"index.rst": PAGE, "b.rst": ":orphan:\n\n乙\n==\n\n:math:`E = mc^2` :math:`a < b`\n"}
    build(pages, parallel=2)
    assert [sorted(run) for run in runs] == [["E = mc^2", "E = mc^2", "a < b"]]  # a displayed one is another
    build(pages)  # nothing changed
    build(pages, language="en")  # the other language
    assert len(runs) == 1
    built = build({"b.rst": pages["b.rst"] + "\n:math:`c`\n"})
    assert runs[1:] == [["c"]]
    assert built.read("b.html").count("<math") == 3


def test_a_problem_is_reported_again_until_it_is_mended(build: Build) -> None:
    bad = {
        "index.rst": "题目\n====\n\n:math:`\\bad` 与 :math:`中`\n",
        "b.rst": ":orphan:\n\n乙 :math:`b`\n===========\n\n:math:`\\bad`\n",
    }
    first = warnings_of(build(bad))
    assert len(first) == 4
    assert warnings_of(build(bad)) == first
    assert warnings_of(build({"index.rst": "题目\n====\n", "b.rst": ":orphan:\n\n乙\n==\n"})) == []


@pytest.mark.parametrize("content", [b"", b'{"a": "b', b"[]", b"\xff\xfe"])
def test_a_broken_cache_is_made_anew(build: Build, runs: list[list[str]], tmp_path: Path, content: bytes) -> None:
    build({"index.rst": PAGE})
    [cache] = (tmp_path / "build/katex").iterdir()
    whole = cache.read_text("utf-8")
    cache.write_bytes(content)
    built = build({"index.rst": PAGE + "\n"})
    assert built.read("index.html").count("<math") == 2
    assert cache.read_text("utf-8") == whole
    assert len(runs) == 2


def test_builds_at_the_same_time_never_see_half_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "build/cache.json"
    katex_node.write_cache(path, {"first": "x" * 10_000})

    def one_build(number: int) -> bool:
        katex_node.write_cache(path, {f"{number}": "x" * 100_000})
        return "first" in json.loads(path.read_text("utf-8"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one_build, range(40)))
    assert [file.name for file in path.parent.iterdir()] == ["cache.json"]


def test_writers_in_parallel_have_every_formula(build: Build, runs: list[list[str]]) -> None:
    pages = {f"p{n}.rst": f"页\n==\n\n:math:`x_{{{n}}}`\n" for n in range(12)}
    index = ".. toctree::\n\n" + "".join(f"   p{n}\n" for n in range(12))
    built = build({**pages, "index.rst": index}, parallel=3)
    assert [len(run) for run in runs] == [12]
    assert warnings_of(built) == []
    assert all(f"<mn>{n}</mn>" in built.read(f"p{n}.html") for n in range(12))


def test_a_formula_that_appears_while_writing_is_set_too(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: Sphinx, doctree: nodes.document, docname: str) -> None:
        doctree += nodes.paragraph("", "", nodes.math("", "q^2"), nodes.math("", r"\late"))

    monkeypatch.setitem(sys.modules, "late", SimpleNamespace(setup=lambda app: app.connect("doctree-resolved", add)))
    built = build({"index.rst": PAGE}, extensions=["katex_math", "late"])
    assert "<msup><mi>q</mi><mn>2</mn></msup>" in built.read("index.html")
    [warning] = warnings_of(built)
    assert r"\late" in warning
    assert places([warning]) == ["docs/index.rst"]


def test_the_stylesheet_is_local_and_its_fonts_are_there(build: Build) -> None:
    built = build({"index.rst": PAGE})
    assert re.search(
        r'<link rel="stylesheet" type="text/css" href="_static/katex/katex.min.css\?v=\w+"', built.read("index.html")
    )
    css = built.read("_static/katex/katex.min.css")
    urls = re.findall(r"url\(([^)]+)\)", css)
    assert len(urls) == 20
    assert {f"katex/{url}" for url in urls} == {
        f"katex/fonts/{f.name}" for f in (built.out / "_static/katex/fonts").iterdir()
    }
    assert all(url.endswith(".woff2") for url in urls)
    assert css.count("@font-face{") == css.count('format("woff2")}') + css.count('format("woff2");') == 20


def test_without_katex_the_error_says_what_to_run(build: Build) -> None:
    with pytest.raises(ExtensionError, match=r"nowhere/katex\.js.*nox -s docs-env.*npm ci --prefix docs"):
        build({"index.rst": PAGE}, katex_dist="nowhere")


@pytest.mark.parametrize(("builder", "written"), [("gettext", "index.pot"), ("text", "index.txt")])
def test_builders_without_formulas_need_no_katex(build: Build, builder: str, written: str) -> None:
    built = build({"index.rst": PAGE}, builder=builder, katex_dist="nowhere")
    assert "E = mc^2" in built.read(written)


def test_katex_is_pinned_and_the_lock_names_no_host() -> None:
    package = json.loads((DOCS / "package.json").read_text("utf-8"))
    lock = (DOCS / "package-lock.json").read_text("utf-8")
    assert re.fullmatch(r"\d+\.\d+\.\d+", package["dependencies"]["katex"])
    assert json.loads(lock)["packages"]["node_modules/katex"]["version"] == package["dependencies"]["katex"]
    assert "resolved" not in lock
    assert "://" not in re.sub(r'"funding": \[.*?\]', "", lock, flags=re.S)
    assert "omit-lockfile-registry-resolved=true" in (DOCS / ".npmrc").read_text("utf-8").split()


def test_every_advice_belongs_to_a_problem_that_exists() -> None:
    script = (
        (DIST / "katex.js").read_text("utf-8")
        + katex_node.SCRIPT.read_text("utf-8")
        + Path(katex_math.__file__).read_text("utf-8")
    )
    assert [code for code in katex_math.ADVICE if len(re.findall(rf'"{code}"', script)) < 2] == []
