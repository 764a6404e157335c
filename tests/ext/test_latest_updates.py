"""The newest updates on the landing page are those of the page of updates, in the language of the reader."""

import re

import pytest

from .conftest import Book, Built

INDEX = "书\n==\n\n.. latest-updates:: 2\n\n.. toctree::\n\n   updates\n   sub/a\n"
UPDATES = """\
更新
====

.. list-table::
   :header-rows: 1

   * - 日期
     - 内容
   * - 2026-11-23
     - 最早的。
   * - 2027-01-05
     - 最新的，见 :ref:`a`。
   * - 2026-12-31
     - .. _here:

       居中的。
"""
FILES = {"index.rst": INDEX, "updates.rst": UPDATES, "sub/a.rst": ".. _a:\n\n甲\n==\n\n.. latest-updates:: 1\n"}
OPTIONS = {"extensions": ["latest_updates"]}
ENGLISH = {"updates": {"最新的，见 :ref:`a`。": "Newest, see :ref:`a`.", "居中的。": "Between."}, "sub/a": {"甲": "A"}}


def shown(built: Built, page: str) -> str:
    """Return the markup of the entries on a page."""
    box = re.search(r'<div class="latest-updates.*?</div>', built.read(f"{page}.html"), re.DOTALL)
    assert box is not None
    return box[0]


def entries(built: Built, page: str = "index") -> list[str]:
    """Return what readers see of the entries of a page."""
    return [
        re.sub("<[^>]+>", "", cell).strip()
        for cell in re.findall(r"<d[td]>(.*?)</d[td]>", shown(built, page), re.DOTALL)
    ]


def test_the_newest_come_first_whatever_the_order_of_the_table(book: Book) -> None:
    built = book(FILES, **OPTIONS)
    assert built.warnings == ""
    assert entries(built) == ["2027-01-05", "最新的，见 甲。", "2026-12-31", "居中的。"]
    assert entries(built, "sub/a") == ["2027-01-05", "最新的，见 甲。"]


def test_they_are_in_the_language_of_the_page_without_a_second_translation(book: Book) -> None:
    built = book(FILES, ENGLISH, language="en", **OPTIONS)
    assert entries(built) == ["2027-01-05", "Newest, see A.", "2026-12-31", "Between."]
    assert "最新的" not in book(FILES, builder="gettext", language="en", **OPTIONS).read("index.pot")


def test_links_start_from_the_page_that_shows_them_and_ids_stay_unique(book: Book) -> None:
    built = book(FILES, **OPTIONS)
    assert 'href="sub/a.html#a"' in shown(built, "index")
    assert 'href="#a"' in shown(built, "sub/a")
    assert 'id="here"' in built.read("updates.html")
    assert 'id="here"' not in built.read("index.html")


def test_an_entry_or_a_translation_that_changes_is_shown_in_the_next_build(book: Book) -> None:
    book(FILES, **OPTIONS)
    changed = FILES | {"updates.rst": UPDATES.replace("2026-11-23", "2028-11-23")}
    assert entries(book(changed, **OPTIONS), "sub/a") == ["2028-11-23", "最早的。"]
    book(changed, ENGLISH, language="en", **OPTIONS)
    better = {"updates": {"最早的。": "The very first."}}
    assert entries(book(changed, better, language="en", **OPTIONS), "sub/a") == ["2028-11-23", "The very first."]


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_the_number_of_entries_must_be_one(book: Book, number: str) -> None:
    warnings = book(FILES | {"index.rst": INDEX.replace(":: 2", f":: {number}")}, **OPTIONS).warnings
    assert "docs/index.rst:4" in warnings
    assert f"expected how many entries to show, found '{number}'" in warnings


def test_the_page_of_updates_must_exist(book: Book) -> None:
    warnings = book({"index.rst": "书\n==\n\n.. latest-updates:: 2\n"}, **OPTIONS).warnings
    assert "docs/index.rst:4" in warnings
    assert "expected the page docs/updates.rst, found none" in warnings
