"""A formula keeps the mark that follows it."""

import re

import pytest

from .conftest import Book

SPAN = r'<p>(.*?)<span class="unbroken">([^<]*)<span class="math[^>]*>.*?</span>([^<]*)</span>(.*?)</p>'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("令 :math:`x`，则", ("令 ", "", "，", "则")),
        ("有（:math:`x`）。完", ("有", "（", "）。", "完")),
        ("有（:math:`x` 或", ("有", "（", "", " 或")),
        ("where :math:`x`, then", ("where ", "", ",", " then")),
        ("就是 :math:`x`。", ("就是 ", "", "。", "")),
    ],
)
def test_marks_stay_with_the_formula(book: Book, text: str, parts: tuple[str, ...]) -> None:
    html = book({"index.rst": f"页\n==\n\n{text}\n"}, extensions=["line_breaks"]).read("index.html")
    found = re.search(SPAN, html)
    assert found
    assert found.groups() == parts


@pytest.mark.parametrize(
    "text",
    [
        f"令 :math:`{'+'.join('abcdefghijklm')}`，则",
        "令 :math:`x` 为",
        "由 :math:`x`",
        ":math:`x` （参数）",
        ":math:`x` :math:`y`",
    ],
)
def test_other_formulas_are_left_alone(book: Book, text: str) -> None:
    html = book({"index.rst": f"页\n==\n\n{text}\n"}, extensions=["line_breaks"]).read("index.html")
    assert "unbroken" not in html
    assert html.count('class="math') == text.count(":math:")


def test_several_formulas_in_one_paragraph(book: Book) -> None:
    html = book({"index.rst": "页\n==\n\n:math:`a`、:math:`b`，:math:`c`。\n"}, extensions=["line_breaks"]).read(
        "index.html"
    )
    assert re.findall(r'unbroken">.*?</span>([^<]+)</span>', html) == ["、", "，", "。"]
