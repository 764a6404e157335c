"""The page of the translation status counts the catalogs, and follows them."""

import re
from pathlib import Path

import pytest

from .conftest import Book, Built, po

LANGUAGES = """\
[[language]]
code = "zh_CN"
path = "zh"
tag = "zh-CN"
label = "简体中文"
title = "书"
complete = true

[[language]]
code = "en"
path = "en"
tag = "en"
label = "English"
title = "Book"
complete = true
"""
FILES = {
    "languages.toml": LANGUAGES,
    "index.rst": "书\n==\n\n.. toctree::\n\n   contributing/status\n   general/a\n",
    "contributing/status.rst": "进度\n====\n\n.. translation-status::\n",
    "general/a.rst": "甲\n==\n\n一。\n\n二。\n\n三。\n\n四。\n",
    "../locale/en/LC_MESSAGES/figures.po": po({"横轴": "x axis"}),
    "../locale/zh_CN/LC_MESSAGES/sphinx.po": po({"Menu": ""}),
}
ENGLISH = {"general/a": {"甲": "A", "一。": "One.", "二。": "", "三。": " ", "四。": "Four."}}
OPTIONS = {"extensions": ["translation_status"]}


def status(built: Built, language: str) -> list[list[str]]:
    """Return the rows of the table of one language, as readers see them."""
    table = re.search(rf"<table[^>]*status-{language}\b.*?</table>", built.read("contributing/status.html"), re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
    return [
        [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_every_catalog_is_counted(book: Book) -> None:
    catalog = po(ENGLISH["general/a"]).replace('msgid "四。"', '#, fuzzy\nmsgid "四。"')
    built = book({**FILES, "../locale/en/LC_MESSAGES/general/a.po": catalog}, **OPTIONS)
    assert built.warnings == ""
    assert status(built, "en") == [
        ["页面", "全部", "译好", "待核对", "未译"],
        ["figures.po", "1", "1", "0", "0"],
        ["甲", "5", "2", "1", "2"],
        ["合计", "6", "3", "1", "2"],
    ]
    assert status(built, "zh")[1:] == [["sphinx.po", "1", "0", "0", "1"], ["合计", "1", "0", "0", "1"]]


def test_a_page_has_a_link_with_its_title_in_the_language_of_the_reader(book: Book) -> None:
    translated = {**ENGLISH, "contributing/status": {"进度": "Status", "页面": "Page", "合计": "Total"}}
    built = book(FILES, translated, language="en", **OPTIONS)
    rows = status(built, "en")
    assert [row[0] for row in rows] == ["Page", "Status", "figures.po", "A", "Total"]
    assert 'href="../general/a.html"' in built.read("contributing/status.html")
    template = book(FILES, builder="gettext", language="en", locale_dirs=[""], **OPTIONS).read(
        "contributing/status.pot"
    )
    assert re.findall(r'^msgid "(.+)"', template, re.M) == [
        "进度", "页面", "全部", "译好", "待核对", "未译", "合计",
    ]  # fmt: skip


def test_what_is_left_to_do_stands_out(book: Book) -> None:
    html = book(FILES, ENGLISH, language="en", **OPTIONS).read("contributing/status.html")
    assert re.findall(r"<strong>(\d+)</strong>", html) == ["1", "1", "2", "2"]  # empty: sphinx, its total, a, its total


def test_the_page_follows_the_catalogs(book: Book, tmp_path: Path) -> None:
    assert status(book(FILES, ENGLISH, **OPTIONS, language="en"), "en")[2][2:] == ["3", "0", "2"]
    path = tmp_path / "locale/en/LC_MESSAGES/general/a.po"
    path.write_text(po({**ENGLISH["general/a"], "二。": "Two."}), "utf-8")
    assert status(book(FILES, language="en", **OPTIONS), "en")[2][2:] == ["4", "0", "1"]
    new = {"../locale/en/LC_MESSAGES/index.po": po({"书": "Book"})}
    assert "Book" in [row[0] for row in status(book({**FILES, **new}, language="en", **OPTIONS), "en")]
    path.unlink()
    assert "甲" not in [row[0] for row in status(book(FILES, language="en", **OPTIONS), "en")]


def test_a_new_language_has_its_table(book: Book) -> None:
    files = {**FILES, "../locale/ja/LC_MESSAGES/general/a.po": po({"甲": ""})}
    book(files, **OPTIONS)
    row = LANGUAGES[LANGUAGES.rindex("[[language]]") :].replace("en", "ja").replace("English", "日本語")
    built = book({**files, "languages.toml": LANGUAGES + row}, **OPTIONS)
    assert status(built, "ja")[1] == ["甲", "1", "0", "0", "1"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../locale/en/LC_MESSAGES/index.po": 'msgid "'}, r"index\.po:1"),
        ({"general/a.rst": "甲\n==\n\n.. translation-status::\n"}, r"general/a\.rst:4.*'contributing/status' only"),
    ],
    ids=["broken catalog", "another page"],
)
def test_an_error_says_where(book: Book, files: dict[str, str], message: str) -> None:
    assert re.search(message, book({**FILES, **files}, **OPTIONS).warnings)
