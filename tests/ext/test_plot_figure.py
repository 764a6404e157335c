"""Figures drawn at build time: equal bytes, the page's language and colors, a cache that follows its inputs, errors."""

import colorsys
import html
import os
import re
import time
from xml.etree import ElementTree

import figure_svg
import pytest
from plot_figure import CACHE

SCRIPT = '''\
"""Figures of a test."""

import random


def curve(plt, _):
    fig, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, random.random()], marker="o", label=_("一条线"))
    ax.set_title(_("位置编码"))
    ax.set_xlabel(_("缩放后的 $x^2$"))
    ax.legend()
    return fig


def bars(plt, _):
    fig, ax = plt.subplots()
    ax.bar([0, 1], [1, 2])
    ax.set_xticks([0, 1], ["早", "late"])
    return fig
'''
DIRECTIVE = ".. plot-figure:: tiny:curve\n   :alt: 一条“上升”的线\n   :name: fig-curve\n\n   说明文字。\n\n   图例。\n"


def page(*parts):
    return "Title\n=====\n\n" + "\n\n".join(parts) + "\n"


def build(book, *parts, script=SCRIPT, files=None, **options):
    files = {"index.rst": page(*parts), "figures/tiny.py": script, **(files or {})}
    options = {"extensions": ["plot_figure"], "exclude_patterns": ["_*"], "numfig": True, **options}
    return book(files, **options)


def drawn(built):
    """Return the drawings in the cache, by name without the key."""
    return {path.name.rpartition("-")[0]: path for path in (built.app.srcdir / CACHE).iterdir()}


def figures(built, name="index.html"):
    return re.findall(r"<svg class=\"plot.*?</svg>", built.read(name), re.DOTALL)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(SCRIPT, "utf-8")
    return path


def test_two_drawings_have_the_same_bytes(script):
    first = figure_svg.draw(script, "curve", {})
    assert figure_svg.draw(script, "curve", {}) == first
    assert re.search(r"\b20\d\d-\d\d", first) is None  # no date


def test_settings_of_the_machine_do_not_count(script):
    import matplotlib

    first = figure_svg.draw(script, "curve", {})
    with matplotlib.rc_context(
        {"lines.linewidth": 7, "font.size": 30, "axes.prop_cycle": matplotlib.cycler(color=["red"])}
    ):
        assert figure_svg.draw(script, "curve", {}) == first


def test_text_stays_text_also_beside_a_formula(script):
    root = ElementTree.fromstring(figure_svg.draw(script, "curve", {}))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "位置编码" in texts
    assert any(re.search("缩放后的.*x", text) for text in texts)
    assert "¤" not in "".join(texts)
    assert not [char for char in "".join(texts) if ord(char) in figure_svg.STAND_INS]


def test_chinese_text_is_measured_about_as_wide_as_it_is_drawn(tmp_path, recwarn):
    text = (
        "def wide(plt, _):\n    fig = plt.figure()\n    fig.text(0, 0, _('注意力' * 10), fontsize=10)\n    return fig\n"
    )
    (tmp_path / "tiny.py").write_text(text, "utf-8")
    box = ElementTree.fromstring(figure_svg.draw(tmp_path / "tiny.py", "wide", {})).get("viewBox")
    assert 270 <= float(box.split()[2]) <= 320  # 30 characters of 10 points
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_tick_labels_that_no_translation_passed_through_are_kept(script):
    assert ">早<" in figure_svg.draw(script, "bars", {})


def test_the_drawing_takes_font_and_color_of_the_page(script):
    svg = figure_svg.draw(script, "curve", {})
    assert "currentColor" in svg
    assert figure_svg.INK not in svg
    assert not re.search("#000000|#ffffff|font-family|<style|<metadata|<!--|xlink", svg)
    text = re.search(r"<text [^>]*>位置编码", svg)[0]
    assert "fill: currentColor" in text


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#131416"])
def test_the_palette_is_legible_in_light_and_dark_mode(background):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert all(contrast(color, background) >= 3 for color in figure_svg.PALETTE)


def test_the_palette_colors_what_is_drawn_and_ends_in_gray(script):
    svg = figure_svg.draw(script, "bars", {}) + figure_svg.draw(script, "curve", {})
    assert f"fill: {figure_svg.PALETTE[0]}" in svg
    assert len(set(figure_svg.PALETTE)) == 8
    red, green, blue = (int(figure_svg.PALETTE[7][i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert colorsys.rgb_to_hls(red, green, blue)[2] < 0.1


def test_text_of_a_figure_of_the_usual_size_is_readable_on_a_phone(script):
    svg = figure_svg.draw(script, "curve", {})
    width, units = (float(re.search(pattern, svg)[1]) for pattern in (r' width="(\d+)"', r'viewBox="0 0 ([\d.]+)'))
    assert 400 < width < 560
    sizes = [float(size) for size in re.findall(r"<text style=\"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * 358 / units >= 9


def test_the_page_holds_the_figure_with_its_number_caption_and_accessible_name(book):
    built = build(book, DIRECTIVE, "See :numref:`fig-curve`.")
    text = built.read("index.html")
    assert built.warnings == ""
    assert re.search(r'<figure class="[^"]*" id="fig-curve">', text)
    [svg] = figures(built)
    assert 'role="img"' in svg
    assert html.unescape(re.search('aria-label="([^"]*)"', svg)[1]) == "一条“上升”的线"
    assert "说明文字。" in text
    assert "图例。" in text
    assert re.search(r'href="#fig-curve"><span class="std std-numref">\S+ 1<', text)
    assert "<img" not in text
    assert not (built.out / "_images").exists()
    assert re.search(r'href="_static/figures\.css', text)


def test_width_class_and_alignment_are_kept(book):
    options = "   :width: 60%\n   :class: wide\n   :align: right\n"
    built = build(book, f".. plot-figure:: tiny:curve\n   :alt: a & <b>\n{options}")
    [svg] = figures(built)
    assert svg.startswith('<svg class="plot wide" role="img" aria-label="a &amp; &lt;b&gt;" style="width: 60%"')
    assert "align-right" in built.read("index.html")


def test_words_inside_a_figure_do_not_enter_the_search_index(book):
    built = build(book, DIRECTIVE, script=SCRIPT.replace("一条线", "quokka"), language="en")
    assert "quokka" in figures(built)[0]
    assert "quokka" not in built.read("searchindex.js")


def test_ids_are_unique_on_a_page_and_every_reference_is_met(book):
    again = DIRECTIVE.replace("fig-curve", "fig-again")
    built = build(book, DIRECTIVE, again, ".. plot-figure:: tiny:bars\n   :alt: bars\n")
    ids = re.findall(r'\bid="([^"]+)"', built.read("index.html"))
    assert len(figures(built)) == 3
    assert len(ids) == len(set(ids))
    for svg in figures(built):
        references = re.findall(r'(?:url\(|href=")#([^")]+)', svg)
        assert references
        assert set(references) == set(re.findall(r' id="([^"]+)"', svg))


def test_one_figure_on_two_pages_is_drawn_once_also_by_two_workers(book):
    names = [f"p{number}" for number in range(6)]
    files = {f"{name}.rst": page(DIRECTIVE.replace("fig-curve", f"fig-{name}")) for name in names}
    toc = ".. toctree::\n\n" + "".join(f"   {name}\n" for name in names)
    built = build(book, toc, files=files, parallel=2, language="en")
    assert built.warnings == ""
    assert list(drawn(built)) == ["tiny-curve.en"]
    assert len({svg for name in names for svg in figures(built, f"{name}.html")}) == 1
    again = book({}, extensions=["plot_figure"], exclude_patterns=["_*"], numfig=True, parallel=2, language="en")
    assert "0 added, 0 changed, 0 removed" in again.status


def test_each_language_gets_its_own_words_and_alternative_text(book):
    catalogs = {
        "figures": {"位置编码": "Positions"},
        "index": {"一条“上升”的线": "A rising line", "说明文字。": "A caption."},
    }
    english = build(book, DIRECTIVE, catalogs=catalogs, language="en")
    chinese = build(book, DIRECTIVE)
    assert "Positions" in figures(english)[0]
    assert "位置编码" not in figures(english)[0]
    assert 'aria-label="A rising line"' in figures(english)[0]
    assert "位置编码" in figures(chinese)[0]
    assert set(drawn(chinese)) == {"tiny-curve.en", "tiny-curve.zh_CN"}


def test_fuzzy_translations_are_not_drawn(book):
    catalog = '#, fuzzy\nmsgid "位置编码"\nmsgstr "Positions"\n'
    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    built = build(book, DIRECTIVE, catalogs={"figures": header + catalog}, language="en")
    assert "Positions" not in figures(built)[0]


def key(built):
    return drawn(built)[f"tiny-curve.{built.app.config.language}"].name


def test_a_second_build_draws_nothing(book, monkeypatch):
    first = build(book, DIRECTIVE)
    monkeypatch.setattr(figure_svg, "draw", None)
    second = build(book, DIRECTIVE, "another paragraph")
    assert second.warnings == ""
    assert key(second) == key(first)
    assert "another paragraph" in second.read("index.html")


IMPORTS = SCRIPT.replace(
    "    fig, ax", "    if not plt:\n        from llm_study.functional import used\n    fig, ax", 1
)
PACKAGE = {
    "../llm_study/__init__.py": "",
    "../llm_study/functional/__init__.py": "",
    "../llm_study/functional/used.py": "from . import deeper\n",
    "../llm_study/functional/deeper.py": "from ..core.base import x\n",
    "../llm_study/functional/unused.py": "",
    "../llm_study/core/__init__.py": "",
    "../llm_study/core/base.py": "x = 1\n",
    "data/run.json": "{}",
    "data/other.json": "{}",
}


@pytest.mark.parametrize(
    ("name", "redrawn"),
    [
        ("figures/tiny.py", True),
        ("../llm_study/__init__.py", True),
        ("../llm_study/functional/__init__.py", True),
        ("../llm_study/functional/used.py", True),
        ("../llm_study/functional/deeper.py", True),
        ("../llm_study/core/base.py", True),
        ("../llm_study/functional/unused.py", False),
        ("data/run.json", True),
        ("data/other.json", False),
    ],
)
def test_a_figure_is_redrawn_when_what_it_is_made_from_changes_and_only_then(book, name, redrawn):
    script = IMPORTS.replace("import random", 'import random\n\nRECORD = "run.json"')
    first = build(book, DIRECTIVE, script=script, files=PACKAGE)
    before = key(first)
    source = first.app.srcdir / name
    source.write_text(source.read_text("utf-8") + "\n", "utf-8")
    later = time.time() + 2  # newer than the first build by the file system's clock, however coarse
    os.utime(source, (later, later))
    second = book({}, extensions=["plot_figure"], exclude_patterns=["_*"], numfig=True)
    assert (key(second) != before) is redrawn
    assert len(drawn(second)) == len(list((second.app.srcdir / CACHE).iterdir())) == 1  # nothing stale is left
    assert len(figures(second)) == 1


def test_an_import_of_the_package_itself_counts_as_all_of_it(book):
    script = IMPORTS.replace("from llm_study.functional import used", "import llm_study")
    first = key(build(book, DIRECTIVE, script=script, files=PACKAGE))
    files = {**PACKAGE, "../llm_study/functional/unused.py": "x = 2\n"}
    assert key(build(book, DIRECTIVE, script=script, files=files)) != first


def test_translations_of_other_figures_do_not_redraw_this_one(book):
    own, both = {"位置编码": "Positions"}, {"位置编码": "Positions", "别的": "Other"}
    first = key(build(book, DIRECTIVE, catalogs={"figures": own}, language="en"))
    assert key(build(book, DIRECTIVE, catalogs={"figures": both}, language="en")) == first
    assert key(build(book, DIRECTIVE, catalogs={"figures": {"位置编码": "Places"}}, language="en")) != first


def test_a_drawing_that_was_deleted_comes_back(book):
    built = build(book, DIRECTIVE)
    drawn(built)["tiny-curve.zh_CN"].unlink()
    again = build(book, DIRECTIVE)
    assert again.warnings == ""
    assert len(figures(again)) == 1


def test_builders_that_show_no_pictures_draw_none(book):
    built = build(book, DIRECTIVE, builder="gettext")
    assert built.warnings == ""
    assert not (built.app.srcdir / CACHE).exists()
    catalog = built.read("index.pot")
    assert 'msgid "一条“上升”的线"' in catalog
    assert 'msgid "说明文字。"' in catalog


def test_an_epub_keeps_figures_as_files(book):
    built = build(book, DIRECTIVE, builder="epub", epub_show_urls="no", version="1")
    assert [path.suffix for path in (built.out / "_images").iterdir()] == [".svg"]
    assert '<img alt="一条“上升”的线" src="_images/' in built.read("index.xhtml")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    return 1 / 0\n", "docs/figures/tiny.py:2: ZeroDivisionError: division by zero [curve(); mend it there"),
        (
            "    return _helper()\ndef _helper():\n    raise ValueError('no')\n",
            "docs/figures/tiny.py:4: ValueError: no",
        ),
        ("    import json\n    json.loads('x')\n", "docs/figures/tiny.py:3: JSONDecodeError: "),
        (
            "    return 5\n",
            "docs/figures/tiny.py:1: curve() returned int, expected the figure; end it with «return fig»",
        ),
        ("    return (\n", "docs/figures/tiny.py:2: '(' was never closed; mend the file"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_an_error_with_both_places(book, body, told):
    built = build(book, "text", DIRECTIVE, script="def curve(plt, _):\n" + body)
    assert "docs/index.rst:6: ERROR: plot-figure: tiny:curve: " in built.warnings
    assert told in built.warnings
    assert "Traceback" not in built.warnings
    assert figures(built) == []


@pytest.mark.parametrize(
    ("directive", "told"),
    [
        (".. plot-figure:: tiny:curve", "expected ':alt:' with a sentence that says what the figure shows, found none"),
        (".. plot-figure:: tiny:curve\n   :alt:", "expected ':alt:'"),
        (".. plot-figure:: tiny\n   :alt: a", "expected «module:function», a function in docs/figures/<module>.py"),
        (".. plot-figure:: ../tiny:curve\n   :alt: a", "expected «module:function»"),
        (".. plot-figure:: tinny:curve\n   :alt: a", "there is no docs/figures/tinny.py; nearest: tiny"),
        (".. plot-figure:: tiny:curv\n   :alt: a", "no function curv; expected one of bars, curve"),
        (".. plot-figure:: tiny:random\n   :alt: a", "no function random; expected one of bars, curve"),
    ],
)
def test_a_directive_that_cannot_be_followed_says_what_was_expected(book, directive, told):
    built = build(book, "text", directive)
    assert "docs/index.rst:6: ERROR: plot-figure: " in built.warnings
    assert told in built.warnings


def test_a_broken_catalog_is_named_with_its_line(book):
    built = build(book, DIRECTIVE, catalogs={"figures": 'msgid "a"\nnonsense\n'}, language="en")
    told = r"docs/index.rst:4: ERROR: plot-figure: .*figures\.po: .*line 2\).*; mend the catalog"
    assert re.search(told, built.warnings)


def test_a_failed_drawing_leaves_no_file_and_no_open_figure(book):
    import matplotlib.pyplot as plt

    built = build(book, DIRECTIVE, script=SCRIPT.replace("    ax.legend()", "    raise ValueError"))
    assert not (built.app.srcdir / CACHE).exists() or not drawn(built)
    assert plt.get_fignums() == []
