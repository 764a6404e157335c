"""``po.py lint``: each rule with pages that pass and pages that fail, at the right line."""

import polib
import pytest
from catalogs import rules
from catalogs.rules import RULES, Page
from catalogs.storage import HEADER, read

TEMPLATE = [
    polib.POEntry(msgid="甲", comment="title"),
    polib.POEntry(msgid="一段话。", occurrences=[("a.rst", "4")]),
    polib.POEntry(msgid=">>> 1 + 1  # 一\n2", comment="code: pycon"),
]
GOOD = (
    HEADER.format(language="en")
    + """
#. title
msgid "甲"
msgstr "A"

# a translator's comment
msgid "一段话。"
msgstr "Some words."

#. code: pycon
msgid ""
">>> 1 + 1  # 一\\n"
"2"
msgstr ""
">>> 1 + 1  # one\\n"
"2"
"""
)
# what is done to the good catalog → the rule that finds it, and the line
BAD = {
    "another language": ("Language: en", "Language: de", "po-header", 4),
    "another charset": ("UTF-8", "GBK", "po-header", 6),
    "a time stamp": ('"Language: en\\n"', '"PO-Revision-Date: now\\n"\n"Language: en\\n"', "po-header", 4),
    "a line number": ('msgid "一段话。"', '#: a.rst:4\nmsgid "一段话。"', "po-format", 14),
    "a wrapped line": ('msgstr "Some words."', 'msgstr ""\n"Some "\n"words."', "po-format", 15),
    "an empty line more": ('msgstr "A"\n\n', 'msgstr "A"\n\n\n', "po-format", 13),
    "a message twice": ('\n# a tr', '\nmsgid "甲"\nmsgstr "B"\n\n# a tr', "po-duplicate", 13),
    "a context": ('msgid "一段话。"', 'msgctxt "x"\nmsgid "一段话。"', "po-plain", 13),
    "a fuzzy entry": ('msgid "一段话。"', '#, fuzzy\nmsgid "一段话。"', "po-fuzzy", 13),
    "a former text": ('msgid "一段话。"', '#| msgid "旧"\nmsgid "一段话。"', "po-previous", 13),
    "an empty entry": ('"Some words."', '""', "po-empty", 13),
    "a blank entry": ('"Some words."', '" "', "po-empty", 13),
    "an obsolete entry": ('"Some words."\n', '"Some words."\n\n#~ msgid "旧"\n#~ msgstr "old"\n', "po-obsolete", 17),
    "an entry of no page": ('msgid "一段话。"', 'msgid "别的话。"', "po-stale", 13),
    "a missing entry": ('# a translator\'s comment\nmsgid "一段话。"\nmsgstr "Some words."\n\n', "", "po-missing", 1),
    "another order": (
        '#. title\nmsgid "甲"\nmsgstr "A"\n\n# a translator\'s comment\nmsgid "一段话。"\nmsgstr "Some words."',
        '# a translator\'s comment\nmsgid "一段话。"\nmsgstr "Some words."\n\n#. title\nmsgid "甲"\nmsgstr "A"',
        "po-order",
        9,
    ),
    "another kind": ("code: pycon", "code: text", "po-order", 17),
    "other code": (">>> 1 + 1  # one", ">>> 1 + 2  # one", "po-code", 17),
    "another output": ('# one\\n"\n"2"', '# one\\n"\n"3"', "po-code", 17),
    "more code": ('# one\\n"\n"2"', '# one\\n"\n"2\\n"\n">>> import os"', "po-code", 17),
    "a loaded module": ('msgstr "Some words."', 'msgstr ""\n"A\\n"\n"\\n"\n".. automodule:: os"', "po-directive", 13),
    "a raw role": ('"Some words."', '"Some :raw:`words`."', "po-directive", 13),
    "a silenced warning": ('"Some words."', '"Some words. #noqa"', "po-directive", 13),
    "a link": ('"Some words."', '"Some `words <https://x.org>`_."', "po-link", 13),
    "an image": ('msgstr "Some words."', 'msgstr ""\n"A\\n"\n"\\n"\n".. |x| image:: x.png"', "po-directive", 13),
}  # fmt: skip


def check(tmp_path, text, template=TEMPLATE, complete=True):
    path = tmp_path / "a.po"
    path.write_text(text, "utf-8", newline="")
    page = Page(read(path, "en", "a"), {entry.msgid: entry for entry in template}, complete)
    return [(finding.code, finding.line) for rule in RULES for finding in rule(page)]


def test_a_good_catalog_has_no_finding(tmp_path):
    assert check(tmp_path, GOOD) == []


@pytest.mark.parametrize(("old", "new", "code", "line"), BAD.values(), ids=BAD)
def test_a_defect_is_found_at_its_line(tmp_path, old, new, code, line):
    assert GOOD.count(old) >= 1
    assert (code, line) in check(tmp_path, GOOD.replace(old, new))


def test_every_rule_of_entries_and_code_has_a_defect(tmp_path):
    found = {code for old, new, *_ in BAD.values() for code, _ in check(tmp_path, GOOD.replace(old, new))}
    modules = {"catalogs.rules_entries", "catalogs.rules_code"}
    named = {f"po-{rule.__name__}" for rule in RULES if rule.__module__ in modules}
    aliases = {"po-canonical": "po-format", "po-leftover": "po-previous"}
    assert {aliases.get(name, name) for name in named} - found == {"po-orphan"}


def test_a_catalog_of_no_page_is_an_orphan(tmp_path):
    assert check(tmp_path, GOOD, []) == [("po-orphan", 1)]


@pytest.mark.parametrize("name", ["a fuzzy entry", "an empty entry", "a missing entry"])
def test_a_language_that_is_not_complete_may_lack_translations(tmp_path, name):
    old, new, code, line = BAD[name]
    assert (code, line) in check(tmp_path, GOOD.replace(old, new))
    assert check(tmp_path, GOOD.replace(old, new), complete=False) == []


def test_code_of_a_fuzzy_entry_is_not_judged(tmp_path):
    text = (
        GOOD.replace("# one", "")
        .replace("#. code: pycon\n", "#. code: pycon\n#, fuzzy\n")
        .replace('"2"\nmsgstr', '"2"\nmsgstr')
    )
    assert [code for code, _ in check(tmp_path, text)] == ["po-fuzzy"]


def test_a_finding_says_what_was_expected_what_was_found_and_how_to_mend_it(book, monkeypatch, capsys):
    book.extracts(monkeypatch, {"a": ["甲"]})
    book.po("update", "en")
    capsys.readouterr()
    assert book.po("lint", "en") == 1
    assert (
        capsys.readouterr().out
        == "locale/en/LC_MESSAGES/a.po:9: po-empty expected a translation, found none of '甲'; translate it\n"
    )


@pytest.mark.parametrize(
    ("damage", "line", "found"),
    [
        (lambda b: b"\xef\xbb\xbf" + b, 1, "byte order mark"),
        (lambda b: b.replace(b"\n", b"\r\n"), 1, "carriage return"),
        (lambda b: b.replace("甲".encode(), "甲".encode("gbk")), 9, "not UTF-8"),
        (lambda b: b[: b.rindex(b"msgstr")], 9, "the end of the file"),
        (lambda b: b[:-3], 10, "quotation mark"),
        (lambda b: b.replace(b'msgstr "A"', b'msgstr "A" B'), 10, "quotation mark"),
        (lambda b: b.replace(b'msgstr "A"', b'msgstr "A\\"'), 10, "quotation mark"),
        (lambda b: b.replace(b'msgstr "A"', b'msgstr "A" "B"'), 10, ""),
        (lambda b: b.replace(b'msgstr "A"', b'"A"'), 10, ""),
        (lambda b: b.replace(b'msgid "\xe7', b'msgxx "\xe7'), 9, ""),
        (lambda b: b"", 1, "the end of the file"),
    ],
    ids=[
        "bom",
        "crlf",
        "gbk",
        "truncated-entry",
        "truncated-string",
        "text-behind",
        "escaped-quote",
        "two-strings",
        "no-keyword",
        "keyword",
        "empty-file",
    ],
)
def test_a_file_that_is_no_catalog_is_reported_with_its_line(book, monkeypatch, capsys, damage, line, found):
    book.extracts(monkeypatch, {"a": ["甲"]})
    book.po("update", "en")
    book.translate()
    path = book.catalog("a")
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert book.po("lint", "en") == 1
    output = capsys.readouterr().out
    assert output.startswith(f"locale/en/LC_MESSAGES/a.po:{line}: po-parse expected a catalog in UTF-8, found ")
    assert found in output


def test_rules_are_registered_once():
    names = [rule.__name__ for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(any(getattr(module, name, None) for module in rules.MODULES) for name in names)
