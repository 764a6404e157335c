"""Check what a finished site says: nothing is left in the language of the source, and all languages count alike."""

import re
import sys
from collections.abc import Iterator
from html import unescape
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/_ext"))

from catalogs.rules_text import writes_cjk
from catalogs.tables import load as load_tables
from languages import API, CJK, Language, load, source_language

UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1>", re.DOTALL)
MARKED_CHINESE = re.compile(r"<(\w+)\b[^>]*\slang=\"(?:zh|ja|ko)[^\"]*\"[^>]*>[^<]*</\1>")
"""A word that says itself that it is Chinese, for screen readers: the switch of languages, a headword."""
HINT = re.compile(r"(?<=<span class=\"term-hint\")[^>]*")
"""What a term is called in the other language, on hover and on focus."""
ADDRESS = re.compile(r"\s(?:href|src|srcset|action|data-[\w-]+)=\"[^\"]*\"")
CODE = re.compile(r"<(pre|code|math|svg)\b.*?</\1>|<dt class=\"sig.*?</dt>|<cite>.*?</cite>", re.DOTALL)
BLOCK = re.compile(r"<(p|h[1-6]|figcaption|caption|th|td)\b[^>]*>(.*?)</\1>", re.DOTALL)
NUMBERED = re.compile(
    r"<(?P<tag>figure|table)\b[^>]*\sid=\"(?P<id>[^\"]+)\""
    r"|class=\"(?P<kind>caption-number|eqno|section-number)\">(?P<number>[^<]+)"
)
SENTENCE = re.compile(r"\b[A-Za-z][a-z']*(?:\s+[a-z]{2,}[,;:]?){2,}")
"""Three English words in a row: code and names are not written so."""


def check(site: Path, root: Path = ROOT) -> list[str]:
    """Return one line for each thing that is wrong: page, what was expected, what was found, how to mend it.

    Args:
        site: the finished site, with one folder for each language.
        root: the repository, with the tables of languages and of allowed Chinese.
    """
    languages, allowed = load(root / "docs/languages.toml"), load_tables(root / "locale").allowed
    first, *others = languages.values()
    found: list[str] = []
    for row in languages.values():
        for path in sorted((site / row.path).rglob("*.html")):
            name = path.relative_to(site / row.path).with_suffix("").as_posix()
            if "_static" not in path.parts:
                found += left_over(path.read_text("utf-8"), row, name, allowed.get(f"{row.code}/{name}", ()))
    for row in others:
        for path in sorted((site / row.path).rglob("*.html")):
            twin = site / first.path / path.relative_to(site / row.path)
            if twin.exists() and "_static" not in path.parts:
                found += other_numbers(twin, path, site)
    return found


def left_over(text: str, row: Language, name: str, allowed: tuple[str, ...]) -> Iterator[str]:
    """Yield what a page says in a language that is not its own, if its language has to be complete.

    Args:
        text: the page.
        row: its language.
        name: its name, without the folder of the language.
        allowed: Chinese data that it may show.
    """
    if not row.complete:
        return
    shown, page = UNSEEN.sub("", text), f"{row.path}/{name}.html"
    if not writes_cjk(row.code):
        for run, anchor in chinese(shown, allowed):
            mend = "translate it, or list data in locale/allowed.toml"
            yield f"{page}: expected no Chinese, found {run!r} behind #{anchor}; {mend}"
    elif source_language(name) == API and row.code != API:
        for sentence, anchor in untranslated(shown):
            mend = f"translate it in locale/{row.code}/LC_MESSAGES/{name}.po"
            yield f"{page}: expected {row.label}, found {sentence!r} behind #{anchor}; {mend}"


def chinese(shown: str, allowed: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the Chinese of a page that nothing allows, with the anchor before it."""
    rest = ADDRESS.sub("", HINT.sub("", MARKED_CHINESE.sub("", shown)))
    for text in allowed:
        rest = rest.replace(text, "")
    runs = {found[0]: found.start() for found in reversed([*re.finditer(rf"{CJK.pattern}+", rest)])}
    for run, start in reversed(runs.items()):  # each once, where it comes first
        yield run, anchor(rest, start)


def untranslated(shown: str) -> Iterator[tuple[str, str]]:
    """Yield the English sentences of a page that should be in another language, with the anchor before each."""
    for found in BLOCK.finditer(shown, max(shown.find("<article"), 0), shown.find("</article>") % (len(shown) + 1)):
        text = unescape(re.sub(r"<[^>]*>", "", CODE.sub("", found[2])))
        if not CJK.search(text) and (sentence := SENTENCE.search(text)):
            yield sentence[0], anchor(shown, found.start())


def anchor(text: str, end: int) -> str:
    """Return the last id before a place."""
    start = text.rfind(' id="', 0, end) + 5
    return text[start : text.find('"', start)] if start > 4 else ""


def other_numbers(ours: Path, theirs: Path, site: Path) -> Iterator[str]:
    """Yield the first figure, table, equation or section that has not the same number, or anchor, in two languages."""
    sides = ([*numbered(path.read_text("utf-8"))] for path in (ours, theirs))
    a, b = next(((a, b) for a, b in zip_longest(*sides, fillvalue="nothing") if a != b), ("", ""))
    if a != b:
        names = [path.relative_to(site).as_posix() for path in (theirs, ours)]
        yield f"{names[0]}: expected {a} as in {names[1]}, found {b}; build both languages anew, with -E"


def numbered(text: str) -> Iterator[str]:
    """Yield what a page numbers, in its order, without the words around a number."""
    for found in NUMBERED.finditer(text):
        digits = re.search(r"\d[\d.]*\d|\d", found["number"] or "")
        if found["tag"]:
            yield f"{found['tag']} #{found['id']}"
        elif digits:
            yield f"{found['kind']} {digits[0]}"


if __name__ == "__main__":
    problems = check(ROOT / "build/site")
    print(*problems, sep="\n")
    sys.exit(bool(problems))
