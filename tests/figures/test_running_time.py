"""The times on the cards of the landing page are those of the chapters of today."""

import json
from pathlib import Path

import pytest
import roadmap

from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
RECORD = json.loads((DOCS / roadmap.TIMES).read_text("utf-8"))
script = load(DOCS.parent / RECORD["script"])


def test_every_chapter_that_is_written_was_measured():
    assert list(RECORD["chapters"]) == roadmap.written(DOCS, roadmap.plan(DOCS))
    assert RECORD["machine"]["threads"] == script.THREADS


@pytest.mark.parametrize("name", RECORD["chapters"])
def test_a_chapter_has_about_as_many_examples_as_when_it_was_measured(name):
    today, then = script.examples(DOCS / f"{name}.rst"), RECORD["chapters"][name]["examples"]
    assert abs(today - then) <= then / 5, f"{name}: {then} examples then, {today} today; run {roadmap.RECORD}"


def test_measuring_runs_every_example_of_a_page(tmp_path):
    page, nested = tmp_path / "a.rst", ".. dropdown:: 乙\n\n   .. doctest::\n\n      >>> x + 1\n      2\n"
    page.write_text(f".. doctest::\n\n   >>> x = 1\n   >>> x\n   1\n\n{nested}", "utf-8")
    measured = script.measure(page, rounds=1)
    assert measured["examples"] == 3
    assert measured["seconds"] >= 0
    page.write_text(page.read_text("utf-8").replace("2\n", "3\n"), "utf-8")
    with pytest.raises(ValueError, match="expected examples that pass"):
        script.measure(page, rounds=1)


def test_the_fastest_round_counts(tmp_path, monkeypatch):
    page = tmp_path / "a.rst"
    page.write_text(">>> 1\n1\n", "utf-8")
    times = iter([3.0, 1.24, 2.0])
    monkeypatch.setattr(script, "seconds", lambda page: next(times))
    assert script.measure(page) == {"examples": 1, "seconds": 1.2}


def test_code_that_would_not_be_timed_is_refused(tmp_path):
    page = tmp_path / "a.rst"
    page.write_text(".. testcode::\n\n   x = 1\n", "utf-8")
    with pytest.raises(ValueError, match=r"found '\.\. testcode::'"):
        script.measure(page)
