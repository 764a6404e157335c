"""Whether a translation is written as its language is written: script, punctuation, quotation marks, numbers."""

import re
from collections.abc import Iterator

from languages import CJK

from catalogs.finding import Finding, excerpt
from catalogs.markup import LEFT_OUT, named, prose
from catalogs.numbers import has_unit, numbers, units
from catalogs.page import CHINESE, ENGLISH, Page, rule

IDEOGRAPH = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


def writes_cjk(language: str) -> bool:
    """Whether a language is written with Chinese characters."""
    return language.partition("_")[0] in {"zh", "ja", "ko"}


@rule
def script(page: Page) -> Iterator[Finding]:
    """No Chinese character or full-width mark is left, except data that ``locale/allowed.toml`` lists with a reason."""
    for entry, about in page.pairs() if not writes_cjk(page.catalog.language) else ():
        text = entry.msgstr if "code: " in about or "formula" in about else visible(entry.msgstr)
        for allowed in page.tables.allowed.get(page.name, ()):
            text = text.replace(allowed, "")
        if found := re.search(rf"{CJK.pattern}+", text):
            mend = "translate it, or list data in locale/allowed.toml with the reason"
            yield page.finding(entry, "po-script", "no Chinese and no full-width marks", repr(found[0]), mend)


def visible(text: str) -> str:
    """Return what a reader sees of a message."""
    return " ".join([prose(text), *named(text, "literal", "math", "uri")])


@rule
def typography(page: Page) -> Iterator[Finding]:
    """Neither language uses the other's dashes, ellipses, spacing or punctuation."""
    chinese = re.compile(
        rf"{IDEOGRAPH}\s*[,;?!:](?!:)|{IDEOGRAPH}\.(?=\s|$)|{IDEOGRAPH}\(|\){IDEOGRAPH}|[,;?!:]\s*{IDEOGRAPH}"
        rf"|{IDEOGRAPH}[A-Za-z0-9{LEFT_OUT}]|[A-Za-z0-9{LEFT_OUT}]{IDEOGRAPH}|[「」『』﹁﹂]|。。|\.\.\."
    )
    english = re.compile(r"——|……|·(?=\s)|\s[,.;:?!](?=\s|$)|[,;](?=[A-Za-z])|’")
    pattern = {CHINESE: chinese, ENGLISH: english}.get(page.catalog.language)
    for entry in page.texts() if pattern else ():
        if found := pattern.search(prose(entry.msgstr)):
            mend = {
                CHINESE: "write ，；：？！（）。…… and a space between Chinese and Latin letters, digits or markup",
                ENGLISH: "write , ; : — … with English spacing, and ' as apostrophe",
            }[page.catalog.language]
            shown = repr(found[0].replace(LEFT_OUT, "`…`"))
            yield page.finding(entry, "po-typography", "the typography of the language", shown, mend)


@rule
def quotes(page: Page) -> Iterator[Finding]:
    """Quotation marks are curly and come in pairs."""
    for entry in page.texts() if page.catalog.language in {CHINESE, ENGLISH} else ():
        text = prose(entry.msgstr)
        if '"' in text:
            yield page.finding(entry, "po-quotes", "“…”", "a straight quotation mark", "write “ and ”")
        elif re.sub(r"[^“”]", "", text).replace("“”", ""):
            yield page.finding(entry, "po-quotes", "“ and ” in pairs", excerpt(text), "close what is open")


@rule
def number(page: Page) -> Iterator[Finding]:
    """The translation has the numbers and units of its source, as digits or as words, and no digits of its own."""
    source, target = sides(page)
    for entry in page.texts() if target else ():
        a, b = prose(entry.msgid), prose(entry.msgstr)
        ours, theirs = list(numbers(a, source)), list(numbers(b, target))
        known = frozenset().union(*(n.values for n in theirs))
        for n in ours:
            if n.certain and not n.values & known:
                mend = "write the number of the source, in digits or in words"
                yield page.finding(entry, "po-number", f"{n.text!r}", f"no such number in {excerpt(b)}", mend)
        known = frozenset().union(*(n.values for n in ours))
        for n in theirs:
            if n.arabic and not n.values & known:
                yield page.finding(entry, "po-number", f"no {n.text!r}", excerpt(b), "write the number of the source")
        for unit in sorted(units(a, source)):
            if not has_unit(b, unit, target):
                yield page.finding(entry, "po-number", f"the unit {unit!r}", excerpt(b), "write the unit of the source")


def sides(page: Page) -> tuple[str, str]:
    """Return the languages of a page and of its catalog, if both are Chinese and English."""
    target = page.catalog.language
    return {CHINESE: (ENGLISH, CHINESE), ENGLISH: (CHINESE, ENGLISH)}.get(target, ("", ""))
