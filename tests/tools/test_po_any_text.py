"""Whatever stands in messages, the tools neither crash nor lose an entry, not even when they are interrupted."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import po
import polib
import pytest
from catalogs.rules import Page
from catalogs.storage import Catalog, read
from catalogs.tables import Tables
from hypothesis import given, settings
from hypothesis import strategies as st

ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")
MARKS = "*`:|_[]<>{}\\$\n -.=#>“”\"'()，。一三万十注意力a1,%@/"
TEXT = st.text(st.one_of(ANY, st.sampled_from(MARKS)), min_size=1, max_size=30)
PIECES = [
    "**",
    "``",
    ":ref:`",
    ":math:`",
    "`",
    "<a>",
    "`_",
    "|",
    "[1]_",
    ".. ",
    "::",
    "\n",
    "\n\n",
    " ",
    "\\",
    "- ",
    "1. ",
]
PIECES += [
    ">>> ",
    "... ",
    "\\text{",
    "}",
    "$",
    "三个",
    "3.5",
    "40 万",
    "KiB",
    "自注意力",
    "javascript:",
    "a",
    "。",
    "=\n",
]
MARKED = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
MESSAGE = st.one_of(TEXT, MARKED)
KINDS = ["", "title", "term", "image text", "formula", "code: pycon", "code: python", "code: none", "code: text\ntitle"]
TABLES = Tables(terms={"注意力": ("attention",), "自注意力": ("self-attention", "x y")}, allowed={"en/a": ("力",)})


@settings(deadline=None)
@given(
    st.dictionaries(MESSAGE, st.tuples(MESSAGE, st.sampled_from(KINDS)), min_size=1, max_size=4),
    st.sampled_from(["en", "zh_CN", "qq"]),
    st.sampled_from(["a", "figures", "sphinx"]),
)
def test_no_message_makes_a_rule_crash(messages, language, domain):
    entries = [
        polib.POEntry(msgid=msgid, msgstr=msgstr, comment=kind, linenum=number)
        for number, (msgid, (msgstr, kind)) in enumerate(messages.items(), 9)
    ]
    catalog = Catalog(Path("a.po"), language, domain, entries=entries)
    page = Page(catalog, {entry.msgid: entry for entry in entries}, tables=TABLES)
    for finding in po.judge(page)[0]:
        assert 9 <= finding.line < 9 + len(entries)
        assert str(finding).startswith(f"a.po:{finding.line}: {finding.code} expected ")


@contextmanager
def book(pages: dict[str, dict[str, str]], catalogs: dict[str, dict[str, str]]):
    """Yield a project that consists of these messages by page, and has these catalogs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "docs").mkdir()
        (root / "docs/languages.toml").write_text("language = []\n", "utf-8")
        found = {domain: [polib.POEntry(msgid=text) for text in texts] for domain, texts in pages.items() if texts}
        for domain, messages in catalogs.items():
            path = root / f"locale/en/LC_MESSAGES/{domain}.po"
            entries = [polib.POEntry(msgid=msgid, msgstr=msgstr) for msgid, msgstr in messages.items()]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Catalog(path, "en", domain, entries=entries).dump(), "utf-8", newline="")
        with mock.patch.object(po, "templates", lambda project, targets, fresh: dict.fromkeys(targets, found)):
            yield root


MESSAGES = st.dictionaries(MESSAGE, MESSAGE, max_size=4)
PAGES = st.fixed_dictionaries({"a": MESSAGES, "deep/b": MESSAGES})


@settings(deadline=None, max_examples=50)
@given(PAGES, PAGES)
def test_no_update_loses_a_message_or_a_translation(pages, known):
    with book(pages, known) as root:
        assert po.main(["--root", str(root), "update", "en"]) == 0
        for domain, messages in pages.items():
            path = root / f"locale/en/LC_MESSAGES/{domain}.po"
            told = {e.msgid: e.msgstr for e in read(path, "en", domain).entries} if messages else {}
            assert list(told) == list(messages)
            assert all(told[text] == known[domain][text] for text in messages if text in known[domain])
        assert po.main(["--root", str(root), "lint", "en"]) in (0, 1)
        before = {path: path.read_bytes() for path in root.rglob("*.po")}
        assert po.main(["--root", str(root), "update", "en"]) == 0
        assert {path: path.read_bytes() for path in root.rglob("*.po")} == before


@pytest.mark.parametrize("writes", range(4))
def test_an_update_that_is_interrupted_at_any_file_leaves_whole_files(writes):
    old = {name: {"旧文字": "old", "不变": "same"} for name in "abc"}
    new = {name: {"新的一句话": "", "不变": ""} for name in "abc"}
    calls, real = [], os.replace

    def replace(source, target):
        calls.append(target)
        if len(calls) > writes:
            raise KeyboardInterrupt
        real(source, target)

    with book(new, old) as root:
        before = {path: path.read_bytes() for path in root.rglob("*.po")}
        with mock.patch.object(os, "replace", replace):
            if writes < 3:
                with pytest.raises(KeyboardInterrupt):
                    po.main(["--root", str(root), "update", "en"])
            else:
                po.main(["--root", str(root), "update", "en"])
        after = {path: path.read_bytes() for path in root.rglob("locale/**/*") if path.is_file()}
        assert after.keys() == before.keys()  # nothing half written lies about
        assert sum(after[path] != before[path] for path in before) == writes
        assert all("不变" in read(path, "en", path.stem).active for path in after)
        assert po.main(["--root", str(root), "update", "en"]) == 0
        assert all(list(read(path, "en", path.stem).active) == ["新的一句话", "不变"] for path in after)
