"""The landing page and the book agree: what is written has a card, what is planned is on the roadmap."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import roadmap
from docutils import nodes

from .conftest import Book, Built

DOCS = Path(__file__).parents[2] / "docs"

PLAN = """\
[[part]]
name = "general"
title = "通识"
chapters = [
  ["one", "第一章"],
  ["two", "第二章"],
  ["three", "LoRA"],
]

[[part]]
name = "algorithms"
title = "算法"
chapters = [
  ["bpe", "分词"],
]
"""
TIMES = {"chapters": {"general/one": {"examples": 3, "seconds": 4.6}, "general/two": {"examples": 1, "seconds": 0.2}}}
INDEX = """\
书
==

运行约 :running-time:`general/one` 秒

.. roadmap::

.. toctree::

   general/index
"""
FILES = {
    "data/chapters.toml": PLAN,
    "data/running_time.json": json.dumps(TIMES),
    "index.rst": INDEX,
    "general/index.rst": "通识\n====\n\n.. toctree::\n   :glob:\n\n   *\n",
    "general/one.rst": "第一章\n======\n\n正文。\n",
}
OPTIONS: dict[str, Any] = {"extensions": ["roadmap"], "exclude_patterns": ["data"]}


def shown(built: Built) -> dict[str, list[str]]:
    """Return the titles of the roadmap by part, as readers see them."""
    box = next(node for node in built.app.env.get_doctree("index").findall(nodes.container))
    headings = [node.astext() for node in box.children if isinstance(node, nodes.rubric)]
    lists = [node for node in box.children if isinstance(node, nodes.bullet_list)]
    return {title: [item.astext() for item in items] for title, items in zip(headings, lists, strict=True)}


def test_the_roadmap_shows_what_has_no_page(book: Book) -> None:
    built = book(FILES, **OPTIONS)
    assert built.warnings == ""
    assert shown(built) == {"通识": ["第二章", "LoRA"], "算法": ["分词"]}


def test_titles_are_messages_of_the_page_and_are_translated(book: Book) -> None:
    messages = {"通识": "Basics", "第二章": "Chapter two", "分词": "Tokens", "算法": "Algorithms"}
    built = book(FILES, {"index": messages}, language="en", **OPTIONS)
    assert shown(built) == {"Basics": ["Chapter two", "LoRA"], "Algorithms": ["Tokens"]}
    template = book(FILES, builder="gettext", language="en", **OPTIONS).read("index.pot")
    assert all(f'msgid "{text}"' in template for text in messages)


def test_a_chapter_that_gets_a_page_moves_to_the_cards_in_the_next_build(book: Book) -> None:
    book(FILES, **OPTIONS)
    draft = FILES | {"general/two.rst": ":orphan:\n\n第二章\n======\n\n正文。\n"}
    built = book(draft, **OPTIONS)
    assert (built.warnings, shown(built)["通识"]) == ("", ["第二章", "LoRA"])
    built = book(draft | {"general/two.rst": "第二章\n======\n\n正文。\n"}, **OPTIONS)
    assert shown(built)["通识"] == ["LoRA"]
    assert "expected a card with :running-time:`general/two`" in built.warnings
    carded = INDEX.replace("秒\n", "秒，:running-time:`general/two` 秒\n")
    assert book(FILES | {"index.rst": carded}, **OPTIONS).warnings == ""


def test_a_part_without_anything_to_come_is_left_out(book: Book) -> None:
    plan = PLAN.replace('  ["two", "第二章"],\n  ["three", "LoRA"],\n', "")
    assert shown(book(FILES | {"data/chapters.toml": plan}, **OPTIONS)) == {"算法": ["分词"]}


@pytest.mark.parametrize(("seconds", "number"), [(4.6, "5"), (4.4, "4"), (0.2, "1")])
def test_the_time_on_a_card_is_the_measured_one(book: Book, seconds: float, number: str) -> None:
    times = json.dumps({"chapters": {"general/one": {"seconds": seconds}}})
    built = book(FILES | {"data/running_time.json": times}, **OPTIONS)
    assert f"运行约 <span>{number}</span> 秒" in built.read("index.html")


ONE = ":running-time:`general/one`"
WRONG = {
    "not planned": ("general/new.rst", "新章\n====\n\n正文。\n", "", "expected a row for this chapter"),
    "other title": ("general/one.rst", "首章\n====\n\n正文。\n", ":1", "'第一章', found '首章'"),
    "no card": ("index.rst", INDEX.replace(ONE, "五"), "", f"expected a card with {ONE}"),
    "unknown": ("index.rst", INDEX.replace("general/one", "general/six"), ":4", "general/two), found 'general/six'"),
    "not written": (
        "index.rst",
        INDEX.replace("general/one", "general/two"),
        ":4",
        "general/two.rst is not written yet",
    ),
    "twice": ("index.rst", INDEX.replace("秒", f"秒，{ONE} 秒"), ":4", "found a second one for 'general/one'"),
}


@pytest.mark.parametrize(("name", "source", "line", "text"), WRONG.values(), ids=WRONG)
def test_what_disagrees_is_an_error_with_its_place(book: Book, name: str, source: str, line: str, text: str) -> None:
    warnings = book(FILES | {name: source}, **OPTIONS).warnings.splitlines()
    [found] = [warning for warning in warnings if text in warning]
    assert f"docs/{name}{line}" in found


def test_a_translated_heading_is_not_compared_with_the_plan(book: Book) -> None:
    assert book(FILES, {"general/one": {"第一章": "Chapter one"}}, language="en", **OPTIONS).warnings == ""


def test_the_plan_of_the_book_names_each_chapter_once() -> None:
    parts = tomllib.loads((DOCS / roadmap.PLAN).read_text("utf-8"))["part"]
    assert [part["name"] for part in parts] == ["general", "finetuning", "algorithms"]
    rows = [(part["name"], name, title) for part in parts for name, title in part["chapters"]]
    assert len(rows) == len({row[:2] for row in rows}) == len({row[2] for row in rows}) > 60
    assert all(name.isidentifier() and name == name.lower() and title.strip() for _part, name, title in rows)
