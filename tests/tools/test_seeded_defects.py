"""Defects seeded, one at a time, into copies of the real catalogs and chapters: every one is caught where it is."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import chapters
import po
import pytest
from catalogs.rules import Page
from catalogs.storage import BrokenCatalogError, Catalog, catalogs, read
from catalogs.tables import load

ROOT = Path(__file__).parents[2]
CODE, FORMULA, TEXT = "code: pycon", "formula", ""
# what is done → (code, kind of message, what is replaced in a translation, by what)
ENGLISH = {
    "swapped target of a reference": ("po-markup", TEXT, r":ref:`([^<`]*)<[^>]*>`", r":ref:`\1<appendix-glossary>`"),
    "reference of another kind": ("po-markup", TEXT, r":numref:`", ":ref:`"),
    "swapped label of an equation": ("po-markup", TEXT, r":eq:`[^`]*`", ":eq:`eq-transformer_1-other`"),
    "dropped reference to an equation": ("po-markup", TEXT, r" :eq:`[^`]*`", ""),
    "another function": ("po-markup", TEXT, r":func:`[^`]*`", ":func:`~llm_study.core.checks.positive`"),
    "another source": ("po-markup", TEXT, r":cite:p:`\w+", ":cite:p:`other2020paper"),
    "changed literal": ("po-markup", TEXT, r"``[\w.]+``", "``other``"),
    "literal without marks": ("po-markup", TEXT, r"``([\w.]+)``", r"\1"),
    "markup glued to a word": ("po-markup", TEXT, r" (:eq:`[^`]*`)", r" x\1"),
    "changed sign in a formula": ("po-formula", TEXT, r"(:math:`[^`]*) - ", r"\1 + "),
    "dropped root": ("po-formula", TEXT, r":math:`\\sqrt\{d_k\}`", ":math:`d_k`"),
    "changed index": ("po-formula", TEXT, r":math:`k_j`", ":math:`k_i`"),
    "dropped formula": ("po-formula", TEXT, r":math:`W_Q`", ""),
    "changed sign in a displayed formula": ("po-formula", FORMULA, r" \+ ", " - "),
    "changed factor in a displayed formula": ("po-formula", FORMULA, r"\d", "7"),
    "translated notation": ("po-formula", FORMULA, r"\\text\{layer\}", r"\\text{block}"),
    "dropped bold": ("po-emphasis", TEXT, r"\*\*([^*]+)\*\*", r"\1"),
    "bold turned to emphasis": ("po-emphasis", TEXT, r"\*\*([^*]+)\*\*", r"*\1*"),
    "bold glued to a word": ("po-emphasis", TEXT, r"\*\*([^*]+)\*\*", r"**\1**s"),
    "bold of its own": ("po-emphasis", TEXT, r"^(The) ", r"**\1** "),
    "changed output": ("po-code", CODE, r"\nTrue\b", "\nFalse"),
    "changed number of the output": ("po-code", CODE, r"\ntensor\(\[\d", "\ntensor([9"),
    "import in translated code": ("po-code", CODE, r"^>>> ", ">>> import os\n>>> "),
    "call behind a comment": ("po-code", CODE, r"  # .*", "; exit()"),
    "code inside an f-string": ("po-code", CODE, r'f"\{x', 'f"{exit()'),
    "changed number in code": ("po-code", CODE, r"range\(\d+", "range(99"),
    "changed operator": ("po-code", CODE, r" @ ", " * "),
    "lost example": ("po-code", CODE, r"\n>>> [^\n]*", ""),
    "flag of a doctest": ("po-code", CODE, r"  # [^\n]*", "  # doctest: +SKIP"),
    "raw role": ("po-directive", TEXT, r"^The ", ":raw-html:`<script>` "),
    "directive": ("po-directive", TEXT, r"^The ", ".. include:: /etc/passwd\n\nThe "),
    "silenced warnings": ("po-directive", TEXT, r"\.$", ". #noqa"),
    "link that runs a script": ("po-link", TEXT, r"^The ", "`The <javascript:alert(1)>`_ "),
    "link that holds a page": ("po-link", TEXT, r"^The ", "`The <data:text/html,x>`_ "),
    "link to another site": ("po-link", TEXT, r"^The ", "`The <https://example.org>`_ "),
    "Chinese left over": ("po-script", TEXT, r"^The ", "这 "),
    "full-width comma": ("po-script", TEXT, r"(\w), ", r"\1，"),
    "Chinese in a comment of code": ("po-script", CODE, r"  # ", "  # 注 "),
    "Chinese in a formula": ("po-script", FORMULA, r"\\text\{projections\}", r"\\text{投影}"),
    "curly apostrophe": ("po-typography", TEXT, r"(\w)'s ", r"\1’s "),
    "Chinese dash": ("po-typography", TEXT, r", which ", "——which "),
    "straight quotation marks": ("po-quotes", TEXT, r"“([^”]*)”", r'"\1"'),
    "open quotation": ("po-quotes", TEXT, r"”", ""),
    "replaced term": ("po-term", TEXT, r"^[^-]*?\b[Ss]elf-attention\b[^-]*$", "Introspection."),
    "another word for a term": ("po-term", TEXT, r"residual connection", "skip connection"),
    "dropped word of a term": ("po-term", TEXT, r"standard errors?", "error"),
    "changed year": ("po-number", TEXT, r"\b2017\b", "2018"),
    "changed power of ten": ("po-number", TEXT, r"\bmillion\b", "thousand"),
    "changed number word": ("po-number", TEXT, r"\bthree\b", "four"),
    "changed unit": ("po-number", TEXT, r"\bGiB\b", "GB"),
    "decimal comma": ("po-number", TEXT, r"\b0\.125\b", "0,125"),
    "paragraph that begins like a list": ("po-block", TEXT, r"^(?=The )", "- "),
    "paragraph that begins like a numbered list": ("po-block", TEXT, r"^(?=The )", "1. "),
    "paragraph that begins like a field": ("po-block", TEXT, r"^(?=The )", ":note: "),
    "paragraph that ends like a literal": ("po-block", TEXT, r":$", "::\n\n   x"),
    "paragraph that looks like a heading": ("po-block", TEXT, r"^(The )([^\n]*)", r"\1\n====\n\n\2"),
    "second paragraph": ("po-block", TEXT, r"\. (?=[A-Z])", ".\n\n"),
    "empty translation": ("po-empty", TEXT, r".+", ""),
}  # fmt: skip
CHINESE = {
    "dropped role": ("po-markup", TEXT, r":func:`[^`]*`", "函数"),
    "another exception": ("po-markup", TEXT, r":exc:`ValueError`", ":exc:`TypeError`"),
    "half-width comma": ("po-typography", TEXT, r"([\u4e00-\u9fff])，", r"\1,"),
    "half-width period": ("po-typography", TEXT, r"([\u4e00-\u9fff])。$", r"\1."),
    "no space before markup": ("po-typography", TEXT, r"([\u4e00-\u9fff]) ([A-Z])", r"\1\2"),
    "straight quotation marks": ("po-quotes", TEXT, r"“([^”]*)”", r'"\1"'),
    "another term": ("po-term", TEXT, r"自注意力", "内部关注"),
    "changed year": ("po-number", TEXT, r"（2017）", "（2018）"),
}  # fmt: skip


@cache
def original(language: str) -> dict[str, Catalog]:
    """Return the real catalogs of one language; what each says now is taken for its page."""
    return {d: read(path, language, d) for d, path in catalogs(ROOT / "locale", language).items()}


TABLES = load(ROOT / "locale")


def findings(catalog: Catalog, source: Catalog) -> list[tuple[str, str, int]]:
    page = Page(catalog, {entry.msgid: entry for entry in source.entries}, tables=TABLES)
    return [(finding.path.name, finding.code, finding.line) for finding in po.judge(page)[0]]


def seeded(tmp_path: Path, source: Catalog, text: str | bytes) -> list[tuple[str, str, int]]:
    """Return what the rules say about a changed copy of a catalog."""
    path = tmp_path / source.path.name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        return findings(read(path, source.language, source.domain), source)
    except BrokenCatalogError as error:
        return [(error.path.name, "po-parse", error.line)]


@pytest.mark.parametrize("language", ["en", "zh_CN"])
def test_the_untouched_catalogs_give_no_finding(language):
    assert [found for catalog in original(language).values() for found in findings(catalog, catalog)] == []


def test_the_untouched_chapters_give_no_finding():
    assert [str(finding) for path in chapters.chapters() for finding in chapters.check(path)] == []


PREFERRED = {"general/transformer_1", "api/functional.attention"}
"""Pages that have something of everything."""


def find(language: str, kind: str, pattern: str) -> tuple[Catalog, int]:
    """Return a copy of a real catalog, cut around the first entry that matches, and the place of that entry."""
    for source in sorted(original(language).values(), key=lambda catalog: catalog.domain not in PREFERRED):
        for number, entry in enumerate(source.entries):
            plain = source.domain in {"figures", "sphinx"}
            if not plain and entry.comment == kind and re.search(pattern, entry.msgstr):
                first = max(number - 3, 0)
                return replace(source, entries=deepcopy(source.entries[first : number + 4])), number - first
    raise AssertionError(f"no message of {language} matches {pattern!r}")


ENTRIES = [("en", name, *seed) for name, seed in ENGLISH.items()] + [
    ("zh_CN", name, *seed) for name, seed in CHINESE.items()
]


@pytest.mark.parametrize(
    ("language", "code", "kind", "pattern", "new"),
    [(language, *seed) for language, _, *seed in ENTRIES],
    ids=[f"{language}: {name}" for language, name, *_ in ENTRIES],
)
def test_a_defect_in_a_translation_is_caught(tmp_path, language, code, kind, pattern, new):
    source, number = find(language, kind, pattern)
    assert seeded(tmp_path, source, source.dump()) == []
    entry = source.entries[number]
    told, entry.msgstr = entry.msgstr, re.sub(pattern, new, entry.msgstr, count=1)
    assert told != entry.msgstr
    line = replace(source, entries=source.entries[:number]).dump().count("\n") + 2
    found = seeded(tmp_path, source, source.dump())
    assert (source.path.name, code, line) in found
    assert {line for _, _, line in found} == {line}


def line_of(text: str, piece: str) -> int:
    return text[: text.index(piece)].count("\n") + 1


def chapter() -> Catalog:
    return original("en")["general/transformer_1"]


FIRST = 'msgid "符号"\nmsgstr "Symbols"\n'
TITLE = f"#. title\n{FIRST}"
SYMBOLS = 'msgstr "Symbols"'
PYCON = '#. code: pycon\nmsgid ""\n">>> import math'
# what is done → (code, what is done to the text of the catalog, what stands in the line of the finding)
FILES: dict[str, tuple[str, Callable[[str], str | bytes], str]] = {
    "fuzzy code": ("po-fuzzy", lambda t: t.replace(PYCON, PYCON.replace("\n", "\n#, fuzzy\n", 1)), PYCON),
    "fuzzy text": ("po-fuzzy", lambda t: t.replace(TITLE, f"#. title\n#, fuzzy\n{FIRST}"), TITLE),
    "changed source": ("po-stale", lambda t: t.replace(FIRST, FIRST.replace("符号", "记号")), TITLE),
    "lost entry": ("po-missing", lambda t: t.replace(f"{TITLE}\n", ""), ""),
    "entry twice": ("po-duplicate", lambda t: t.replace(FIRST, f"{FIRST}\n{FIRST}"), FIRST + "\n"),
    "obsolete entry": ("po-obsolete", lambda t: f'{t}\n#~ msgid "旧"\n#~ msgstr "old"\n', "end"),
    "other kind": ("po-order", lambda t: t.replace(PYCON, PYCON.replace("pycon", "text")), PYCON),
    "line numbers": ("po-format", lambda t: t.replace(FIRST, f"#: a.rst:1\n{FIRST}"), FIRST),
    "wrapped line": ("po-format", lambda t: t.replace(SYMBOLS, 'msgstr ""\n"Sym"\n"bols"'), SYMBOLS),
    "time stamp": ("po-header", lambda t: t.replace('"MIME', '"PO-Revision-Date: now\\n"\n"MIME'), '"MIME'),
    "other charset": ("po-header", lambda t: t.replace("charset=UTF-8", "charset=ASCII"), '"Content-Type'),
    "CRLF": ("po-parse", lambda t: t.replace("\n", "\r\n"), ""),
    "BOM": ("po-parse", lambda t: "\ufeff" + t, ""),
    "other encoding": ("po-parse", lambda t: FIRST.encode("gbk").join(map(str.encode, t.split(FIRST))), FIRST),
    "truncated file": ("po-parse", lambda t: t[: t.index('\nmsgstr "Symbols')], 'msgid "符号"'),
    "truncated string": ("po-parse", lambda t: t[: t.index('bols"')], SYMBOLS),
    "unescaped quotation mark": ("po-parse", lambda t: t.replace('"Symbols"', '"Sym"bols"'), SYMBOLS),
}  # fmt: skip


@pytest.mark.parametrize(("code", "change", "where"), FILES.values(), ids=FILES)
def test_a_defect_in_a_file_is_caught(tmp_path, code, change, where):
    source = chapter()
    changed = change(source.text)
    line = source.text.count("\n") + 2 if where == "end" else line_of(source.text, where)
    line += {"entry twice": 3}.get(next(name for name, seed in FILES.items() if seed[1] is change), 0)
    assert changed != source.text
    assert ("transformer_1.po", code, line) in seeded(tmp_path, source, changed)


# what is done → (code, what is replaced in the chapter, by what, how many lines below the place the finding is)
CHAPTER = {
    "section without label": ("rst-label", r"(?<=\n)\.\. _[^:`\n]+:\n\n(?=[^\n]+\n---)", "", 0),
    "label of another page": ("rst-label", r"\n\.\. _(?=[^:`\n]+:\n\n[^\n]+\n---)", r"\n.. _other-", 3),
    "equation of another page": ("rst-equation", r":label: eq-transformer_1-", ":label: eq-other-", 0),
    "inline flag": ("rst-flags", r"(?<=\n)( +>>> [^\n#]+)(?=\n)", r"\1  # doctest: +SKIP", 0),
    "blank line in the output": ("rst-blankline", r"(?<=\n)( +)True\n", r"\1<BLANKLINE>\n\1True\n", 0),
    "bare prompt": ("rst-prompt", r"\n\n(?=\.\. doctest::)", "\n\n>>> 1\n\n", 2),
    "check that may be left out": ("rst-skip", r"(doctest::)\n( +):verifies:", r"\1\n\2:skipif: 1\n\2:verifies:", 1),
    "broken paragraph": ("rst-line", r"\n([\u4e00-\u9fff]{4,}，)(?=[\u4e00-\u9fff]{4,})", r"\n\1\n", 2),
    "no space before Latin": ("rst-space", r"([\u4e00-\u9fff]) (?=[A-Z])", r"\1", 0),
    "no space before markup": ("rst-space", r"([\u4e00-\u9fff]) (?=:math:)", r"\1", 0),
    "half-width comma": ("rst-punctuation", r"([\u4e00-\u9fff])，(?=[\u4e00-\u9fff])", r"\1,", 0),
    "half-width parentheses": ("rst-punctuation", r"([\u4e00-\u9fff])（([a-z -]+)）(?=[\u4e00-\u9fff])", r"\1(\2)", 0),
    "straight quotation marks": ("rst-quotes", r"“([^”\n]*)”", r'"\1"', 0),
    "open quotation": ("rst-quotes", r"”", "", 0),
    "full-width digits": ("rst-width", r"(?<=[\u4e00-\u9fff]，)(?=[\u4e00-\u9fff])", "２", 0),
    "formula in a heading": ("rst-title", r"(?<=\n)([^\n]{4,})(?=\n------)", r"\1 :math:`x`", 0),
}  # fmt: skip


@pytest.mark.parametrize(("code", "pattern", "new", "below"), CHAPTER.values(), ids=CHAPTER)
def test_a_defect_in_a_chapter_is_caught(tmp_path, code, pattern, new, below):
    text = (ROOT / "docs/general/transformer_1.rst").read_text("utf-8")
    place = re.search(pattern, text)
    assert place
    path = tmp_path / "general/transformer_1.rst"
    path.parent.mkdir()
    path.write_text(text[: place.start()] + place.expand(new) + text[place.end() :], "utf-8")
    line = text[: place.start()].count("\n") + 1 + below
    assert (code, line) in [(finding.code, finding.line) for finding in chapters.check(path)]


ONCE = {
    "po-stale",
    "po-missing",
    "po-duplicate",
    "po-obsolete",
    "po-order",
    "po-empty",
    "rst-line",
    "rst-skip",
    "rst-prompt",
}
"""What can be done in one way only."""


def test_there_are_enough_defects_and_each_rule_has_several():
    codes = [seed[0] for table in (ENGLISH, CHINESE, FILES, CHAPTER) for seed in table.values()]
    assert len(codes) >= 40
    several = {code for code in codes if code.startswith(("po-", "rst-l", "rst-s", "rst-p", "rst-q"))} - ONCE
    assert all(codes.count(code) >= 2 for code in several)
