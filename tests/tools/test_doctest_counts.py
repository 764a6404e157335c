"""The two languages must run the same number of examples."""

import json
import os
from pathlib import Path

import pytest
from doctest_counts import main

LANGUAGES = """
[[language]]
code = "zh_CN"
path = "zh"
tag = "zh-CN"
label = "中文"
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


@pytest.fixture
def ran(tmp_path: Path):
    """Return a function that writes what each language ran after the last change of a chapter."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/languages.toml").write_text(LANGUAGES, "utf-8")
    (tmp_path / "docs/a.rst").write_text("A\n=\n", "utf-8")

    def write(**runs: dict[str, int]) -> Path:
        for path, counts in runs.items():
            folder = tmp_path / "build/doctest" / path
            folder.mkdir(parents=True)
            (folder / "counts.json").write_text(json.dumps(counts), "utf-8")
        return tmp_path

    return write


def test_equal_numbers_pass(ran, capsys):
    assert main(ran(zh={"a": 3, "b": 0}, en={"a": 3})) == 0
    assert capsys.readouterr().out == "doctest(zh): 3 examples on 1 pages\ndoctest(en): 3 examples on 1 pages\n"


def test_different_numbers_fail_by_page(ran, capsys):
    assert main(ran(zh={"a": 3, "b": 1}, en={"a": 2, "b": 2})) == 1
    out = capsys.readouterr().out
    assert "docs/a.rst: expected the same number of examples in each language, found 3 in zh, 2 in en" in out
    assert "docs/b.rst" in out


def test_a_run_older_than_a_chapter_is_not_compared(ran, capsys):
    root = ran(zh={"a": 3}, en={"a": 2})
    later = (root / "docs/a.rst").stat().st_mtime + 10
    os.utime(root / "docs/a.rst", (later, later))
    os.utime(root / "build/doctest/zh/counts.json", (later, later))
    assert main(root) == 0
    assert "doctest(en)" not in capsys.readouterr().out
