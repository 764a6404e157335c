"""Whether terms are rendered as ``locale/terms.tsv`` says."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from catalogs.finding import Finding, excerpt
from catalogs.markup import prose
from catalogs.page import CHINESE, ENGLISH, Page, rule

MEND = "use the term, or waive this message in locale/waivers.toml with the reason"


@rule
def term(page: Page) -> Iterator[Finding]:
    """Each Chinese term is rendered by one of its English forms."""
    terms = page.tables.terms if page.catalog.language == ENGLISH else {}
    known = frozenset(terms), page.tables.words
    for entry in page.texts() if terms else ():
        words = prose(entry.msgstr)
        for zh in sorted(occurring(prose(entry.msgid), *known)):
            if not any(spelled(form).search(words) for form in terms[zh]):
                expected = f"{' or '.join(map(repr, terms[zh]))} for {zh!r}"
                yield page.finding(entry, "po-term", expected, excerpt(words), MEND)


@rule
def compound(page: Page) -> Iterator[Finding]:
    """English terms of several words are rendered by their Chinese term.

    One English word is often no term at all ("attention is allowed", "the value of ``x``"); a compound always is.
    """
    terms = compounds(page.tables.terms) if page.catalog.language == CHINESE else {}
    for entry in page.texts() if terms else ():
        words, text = prose(entry.msgstr), prose(entry.msgid)
        for form in (form for form in sorted(terms, key=len, reverse=True) if spelled(form).search(text)):
            text = spelled(form).sub(" ", text)
            if not any(zh in words for zh in terms[form]):
                expected = f"{' or '.join(map(repr, sorted(terms[form])))} for {form!r}"
                yield page.finding(entry, "po-term", expected, excerpt(words), MEND)


def occurring(text: str, terms: frozenset[str], words: frozenset[str]) -> set[str]:
    """Return the terms of a Chinese text: at each place the longest counts, and ordinary words hide terms."""
    return {found[0] for found in longest(terms | words).finditer(text) if found[0] in terms}


@lru_cache(maxsize=8)
def longest(words: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that finds, from left to right, the longest of these words."""
    return re.compile("|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word)))))


@lru_cache(maxsize=4096)
def spelled(form: str) -> re.Pattern[str]:
    """Return a pattern for an English form in any case, singular or plural; a space may be a hyphen, not conversely.

    Other inflections (``fine-tuned``) are forms of their own in the table.
    """
    stem, last = form[:-1], form[-1]
    plural = rf"{re.escape(form)}(?:e?s)?"
    if last == "y" and stem[-1:] not in set("aeiou"):
        plural = rf"{re.escape(stem)}(?:y|ies)"
    elif form.endswith(("ix", "ex")):
        plural = rf"{re.escape(form[:-2])}(?:{form[-2:]}|ices)"
    elif form.endswith("is"):
        plural = rf"{re.escape(form[:-2])}(?:is|es)"
    return re.compile(rf"(?<![A-Za-z]){plural}(?![A-Za-z])".replace(r"\ ", r"[\s-]+"), re.IGNORECASE)


def compounds(terms: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return the English forms of several words, each with the Chinese terms that it renders."""
    found: dict[str, set[str]] = {}
    for zh, forms in terms.items():
        for form in forms:
            if re.search(r"\w[ -]\w", form):
                found.setdefault(form, set()).add(zh)
    return found
