"""A third language, made up, from end to end: one command makes its catalogs, one row puts it on the site."""

import re
import shutil
from pathlib import Path

import po
import polib
import pytest
import sphinx_build
from catalogs.extraction import Project

ROOT = Path(__file__).parents[2]
CONF = """\
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent / "_ext"))
extensions = ["site_html", "site_i18n", "verified"]
language = "zh_CN"
locale_dirs = ["../locale"]
gettext_compact = False
gettext_additional_targets = {"index", "literal-block", "doctest-block"}
exclude_patterns = ["figures", "_*"]
templates_path = ["_templates"]
html_theme = "furo"
doctest_test_doctest_blocks = ""
"""
ROW = """
[[language]]
code = "qq"
path = "qq"
tag = "qq"
label = "Quenq"
title = "Lib Quenq"
complete = true
"""


@pytest.fixture
def whole(book):
    """Return the small book with the machinery of the real one."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("_ext", "_templates"):
        shutil.copytree(ROOT / "docs" / name, book.root / "docs" / name, ignore=unwanted, dirs_exist_ok=True)
    book.write("docs/conf.py", CONF)
    return book


def files(root: Path) -> dict[Path, bytes]:
    found = (path for folder in ("docs", "locale") for path in (root / folder).rglob("*"))
    return {path: path.read_bytes() for path in found if path.is_file() and path.suffix != ".pyc"}


def translate(book) -> None:
    """Complete the catalogs of the made-up language: numbered words, and code with a translated comment."""
    for path in sorted((book.root / "locale/qq").rglob("*.po")):
        catalog = polib.pofile(str(path), wrapwidth=0)
        for number, entry in enumerate(catalog):
            words = f"Quenq {path.stem} {'abcdefghijklmnopqrstuvwxyz'[number % 26]}"
            kept = re.findall(r"%(?:\(\w+\))?s|\{\w+\}|<[^<>]*>", entry.msgid)
            code = "code: " in entry.comment
            entry.msgstr = re.sub("# .*", "# quenq", entry.msgid) if code else " ".join([words, *kept])
        catalog.save(newline="\n")


def test_from_one_command_to_a_page(whole, capsys):
    before = files(whole.root)
    assert whole.po("update", "qq") == 0
    after = files(whole.root)
    assert {path: data for path, data in after.items() if path in before} == before
    assert {path.relative_to(whole.root).parts[:2] for path in after.keys() - before.keys()} == {("locale", "qq")}

    assert whole.po("lint", "qq") == 1
    assert "po-empty" in capsys.readouterr().out
    translate(whole)
    assert whole.po("lint", "qq") == 0, capsys.readouterr().out

    table = whole.root / "docs/languages.toml"
    table.write_text(table.read_text("utf-8") + ROW, "utf-8")
    assert list(Project(whole.root).languages()) == ["zh_CN", "en", "qq"]
    assert sphinx_build.build("html", "qq", root=whole.root) == 0
    page = (whole.root / "build/html/qq/general/a.html").read_text("utf-8")
    assert re.search(r'<html[^>]* lang="qq"', page)
    assert "<title>Quenq a a - Lib Quenq</title>" in re.sub(r"\s+", " ", page)
    assert "<p>Quenq a b</p>" in page
    assert "# quenq" in page
    assert not re.search("[\u4e00-\u9fff]", re.sub(r'<a [^>]*lang="zh-CN".*?</a>', "", page))
    assert re.findall(r'<a lang="([\w-]+)"[^>]* data-language="(\w+)"', page)[:2] == [("zh-CN", "zh"), ("en", "en")]
    api = (whole.root / "build/html/qq/api/m.html").read_text("utf-8")
    assert "<p>Quenq m a</p>" in api


def test_the_whole_table_is_updated_without_a_name(whole, monkeypatch):
    whole.extracts(monkeypatch, {"a": ["甲"]})
    whole.write("docs/languages.toml", (whole.root / "docs/languages.toml").read_text("utf-8") + ROW)
    assert whole.po("update") == 0
    assert {name.partition("/")[0] for name in whole.catalogs()} == {"zh_CN", "en", "qq"}
    assert po.main(["--root", str(whole.root), "stat"]) == 0
