"""``po.py update``: nothing is lost, nothing is invented, and the difference is as small as the change."""

import difflib
import os
import re

import po
import pytest
from catalogs.extraction import ExtractionError, Project, templates

PAGES = {"a": ["第一段，说明注意力的由来。", "第二段，说明注意力的用途。"], "b": ["另一章的第一段话。"]}


@pytest.fixture
def done(book, monkeypatch):
    """Return the book with complete catalogs of ``PAGES``, and no need of Sphinx."""
    book.extracts(monkeypatch, PAGES)
    assert book.po("update", "en") == 0
    book.translate()
    return book


def changed(before: bytes, after: bytes) -> list[str]:
    """Return the lines that differ between two catalogs."""
    lines = difflib.ndiff(before.decode().split("\n"), after.decode().split("\n"))
    return sorted(line for line in lines if line[0] in "+-")


def test_from_the_sources_to_catalogs_in_both_directions_and_back(book, capsys):
    assert book.po("update") == 0
    assert list(book.catalogs()) == [
        "en/LC_MESSAGES/figures.po",
        "en/LC_MESSAGES/general/a.po",
        "en/LC_MESSAGES/general/b.po",
        "en/LC_MESSAGES/index.po",
        "zh_CN/LC_MESSAGES/api/m.po",
        "zh_CN/LC_MESSAGES/sphinx.po",
    ]
    assert book.catalog("general/a").read_text("utf-8").partition("\n\n")[2] == (
        '#. title\nmsgid "甲"\nmsgstr ""\n\n'
        'msgid "第一段，说明注意力的由来。"\nmsgstr ""\n\nmsgid "第二段，说明注意力的用途。"\nmsgstr ""\n\n'
        '#. code: pycon\nmsgid ""\n">>> 1 + 1  # 一加一\\n"\n"2"\nmsgstr ""\n'
    )
    assert "en/general/a: 4 new, 0 fuzzy, 0 gone" in capsys.readouterr().out

    book.translate()
    before = book.catalogs()
    assert book.po("lint") == 0, capsys.readouterr().out
    assert book.po("update") == 0
    assert book.catalogs() == before
    assert "up to date" in capsys.readouterr().out

    book.edit("docs/general/a.rst", "由来", "来历")
    assert book.po("lint", "en") == 1
    missing, stale = capsys.readouterr().out.splitlines()
    assert stale.startswith(
        "locale/en/LC_MESSAGES/general/a.po:13: po-stale expected a message of the page, found '第一段"
    )
    assert missing.startswith(
        "locale/en/LC_MESSAGES/general/a.po:1: po-missing expected an entry for '第一段，说明注意力的来历。' of a.rst:4"
    )
    assert book.po("update", "en") == 0
    after = book.catalogs()
    assert [name for name in before if before[name] != after[name]] == ["en/LC_MESSAGES/general/a.po"]


def test_a_new_language_needs_no_other_change(book, capsys):
    assert book.po("update", "qq") == 0
    names = ("api/m", "figures", "general/a", "general/b", "index", "sphinx")
    assert list(book.catalogs()) == [f"qq/LC_MESSAGES/{name}.po" for name in names]
    assert book.po("stat", "qq") == 0
    assert re.search(r"^  general/a +4 +0 +0 +4$", capsys.readouterr().out, re.M)


def test_templates_are_extracted_again_only_when_a_source_changed(book):
    project = Project(book.root)
    first = templates(project, ["en"], fresh=False)
    (book.root / "build/gettext/en/marker.pot").write_text('msgid ""\nmsgstr ""\n\nmsgid "kept"\nmsgstr ""\n', "utf-8")
    assert "marker" in templates(project, ["en"], fresh=False)["en"]
    book.edit("docs/general/a.rst", "由来", "来历")
    second = templates(project, ["en"], fresh=False)
    assert "marker" not in second["en"]
    assert [entry.msgid for entry in first["en"]["general/a"]] != [entry.msgid for entry in second["en"]["general/a"]]
    book.write("docs/conf.py", "1 / 0")
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(ExtractionError, match="division by zero"):
            templates(project, ["en"], fresh=False)


def test_sources_that_cannot_be_read_stop_the_update(done, monkeypatch, capsys):
    def fail(project, targets, fresh):
        raise ExtractionError("index.rst:1: no")

    monkeypatch.setattr(po, "templates", fail)
    before = done.catalogs()
    assert done.po("update", "en") == 1
    assert done.catalogs() == before
    assert "index.rst:1: no" in capsys.readouterr().err


def test_a_figure_that_marks_no_plain_string_is_an_error(book, capsys):
    book.edit("docs/figures/f.py", '_("横轴")', '_(f"横轴{1}")')
    assert book.po("update", "en") == 1
    assert 'f.py:5: expected _("…") around one plain string' in capsys.readouterr().err


def test_one_changed_paragraph_changes_its_own_lines_only(done, monkeypatch, capsys):
    before = done.catalogs()
    done.extracts(monkeypatch, {**PAGES, "a": ["第一段，说明注意力的来历。", PAGES["a"][1]]})
    done.po("update", "en")
    after = done.catalogs()
    assert before["en/LC_MESSAGES/b.po"] == after["en/LC_MESSAGES/b.po"]
    assert changed(before["en/LC_MESSAGES/a.po"], after["en/LC_MESSAGES/a.po"]) == [
        "+ #, fuzzy",
        '+ #| msgid "第一段，说明注意力的由来。"',
        '+ msgid "第一段，说明注意力的来历。"',
        '- msgid "第一段，说明注意力的由来。"',
    ]
    assert "en/a: 0 new, 1 fuzzy, 0 gone\n  fuzzy '第一段，说明注意力的来历。'" in capsys.readouterr().out
    done.po("update", "en")
    assert done.catalogs() == after


def test_a_fuzzy_entry_remembers_the_last_text_that_was_checked(done, monkeypatch):
    for text in ("来历", "历史"):
        done.extracts(monkeypatch, {"a": [f"第一段，说明注意力的{text}。"]})
        done.po("update", "en")
    expected = '#, fuzzy\n#| msgid "第一段，说明注意力的由来。"\nmsgid "第一段，说明注意力的历史。"\nmsgstr "First."\n'
    assert expected in done.catalog("a").read_text("utf-8")


def test_a_translation_is_offered_once(done, monkeypatch):
    done.extracts(monkeypatch, {"a": ["第一段，说明注意力的来历。", "第一段，说明注意力的历史。"]})
    done.po("update", "en")
    assert done.catalog("a").read_text("utf-8").count('msgstr "First."') == 1


def test_a_new_paragraph_is_empty_and_stands_where_the_page_has_it(done, monkeypatch):
    done.extracts(monkeypatch, {**PAGES, "a": [PAGES["a"][0], "全新：与别处毫无相似", PAGES["a"][1]]})
    done.po("update", "en")
    assert 'msgstr "First."\n\nmsgid "全新：与别处毫无相似"\nmsgstr ""\n\nmsgid "第二段' in done.catalog("a").read_text(
        "utf-8"
    )


def test_a_removed_paragraph_goes(done, monkeypatch, capsys):
    done.extracts(monkeypatch, {**PAGES, "a": PAGES["a"][:1]})
    done.po("update", "en")
    text = done.catalog("a").read_text("utf-8")
    assert "第一段" in text
    assert "第二段" not in text
    assert "#~" not in text
    assert "1 gone\n  gone  '第二段" in capsys.readouterr().out


def test_a_paragraph_that_moved_to_another_page_keeps_its_translation(done, monkeypatch):
    done.extracts(monkeypatch, {"a": PAGES["a"][:1], "b": [*PAGES["b"], PAGES["a"][1]]})
    done.po("update", "en")
    assert f'msgid "{PAGES["a"][1]}"\nmsgstr "Second."\n' in done.catalog("b").read_text("utf-8")
    assert "fuzzy" not in done.catalog("b").read_text("utf-8")


def test_a_renamed_page_takes_its_translations_along(done, monkeypatch):
    before = done.catalog("b").read_bytes()
    done.catalog("b").with_suffix(".mo").write_bytes(b"compiled")
    done.extracts(monkeypatch, {"a": PAGES["a"], "deep/c": PAGES["b"]})
    done.po("update", "en")
    assert list(done.catalogs()) == ["en/LC_MESSAGES/a.po", "en/LC_MESSAGES/deep/c.po"]
    assert done.catalog("deep/c").read_bytes() == before
    done.extracts(monkeypatch, {"a": PAGES["a"]})
    done.po("update", "en")
    assert not done.catalog("deep/c").parent.exists()


def test_a_comment_of_the_translator_stays(done):
    path = done.catalog("a")
    path.write_text(path.read_text("utf-8").replace('msgid "第二段', '# keep this short\nmsgid "第二段'), "utf-8")
    before = path.read_bytes()
    done.po("update", "en")
    assert path.read_bytes() == before


def test_other_formats_become_canonical(done):
    path = done.catalog("a")
    text = path.read_text("utf-8")
    wrapped = text.replace('msgid "第一段，说明', '#: a.rst:4\n#, python-format\nmsgid ""\n"第一段，"\n"说明')
    stamped = wrapped.replace(
        '"Language: en\\n"', '"Language: en\\n"\n"X-Generator: Editor\\n"\n"PO-Revision-Date: 2026-01-01\\n"'
    )
    path.write_text(stamped + '\n#~ msgid "旧"\n#~ msgstr "old"\n', "utf-8")
    done.po("update", "en")
    assert path.read_text("utf-8") == text


def test_a_broken_catalog_stops_the_update_before_anything_is_written(done, monkeypatch, capsys):
    done.extracts(monkeypatch, {"a": PAGES["a"], "b": ["新"]})
    path = done.catalog("b")
    path.write_text(path.read_text("utf-8").replace('msgstr "Another."', 'msgstr "Another.'), "utf-8")
    before = done.catalogs()
    assert done.po("update", "en") == 1
    assert done.catalogs() == before
    assert f"{path}:10: " in capsys.readouterr().err


def test_an_interrupted_write_leaves_the_old_files(done, monkeypatch):
    done.extracts(monkeypatch, {"a": PAGES["a"], "b": ["新"]})
    before = done.catalogs()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        done.po("update", "en")
    assert done.catalogs() == before
