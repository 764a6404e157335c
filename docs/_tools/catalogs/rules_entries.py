"""Whether a catalog is well formed, complete and up to date."""

from collections.abc import Iterator
from itertools import zip_longest

import polib

from catalogs.finding import Finding, excerpt
from catalogs.page import UPDATE, Page, rule
from catalogs.storage import HEADER


@rule
def header(page: Page) -> Iterator[Finding]:
    """The header says the language and UTF-8, and nothing that changes from day to day."""
    wanted = HEADER.format(language=page.catalog.language)
    if page.catalog.text and not f"{page.catalog.text}\n".startswith(f"{wanted}\n"):
        lines = zip_longest(wanted.split("\n"), page.catalog.text.split("\n"), fillvalue="")
        number, (a, b) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
        yield Finding(page.catalog.path, number, "po-header", repr(a), repr(b), UPDATE)


@rule
def canonical(page: Page) -> Iterator[Finding]:
    """Every entry is written in the one canonical form; the first line that is not is reported."""
    head, _, body = page.catalog.text.partition("\n\n")
    wanted, found = page.catalog.dump().partition("\n\n")[2].split("\n"), body.split("\n")
    if page.catalog.text and wanted != found:
        lines = zip_longest(wanted, found, fillvalue="the end of the file")
        number, (a, b) = next((n, pair) for n, pair in enumerate(lines, head.count("\n") + 3) if pair[0] != pair[1])
        yield Finding(page.catalog.path, number, "po-format", repr(a), repr(b), UPDATE)


@rule
def duplicate(page: Page) -> Iterator[Finding]:
    """No message stands twice."""
    seen: dict[tuple[str | None, str], polib.POEntry] = {}
    for entry in page.catalog.entries:
        first = seen.setdefault((entry.msgctxt, entry.msgid), entry)
        if first is not entry and not entry.obsolete:
            found = f"{excerpt(entry.msgid)} again (first in line {first.linenum})"
            yield page.finding(entry, "po-duplicate", "each message once", found, "merge the two entries")


@rule
def plain(page: Page) -> Iterator[Finding]:
    """Entries have neither contexts nor plurals: Sphinx ignores both."""
    for entry in page.catalog.entries:
        if entry.msgctxt is not None or entry.msgid_plural:
            found = f"a context or a plural at {excerpt(entry.msgid)}"
            yield page.finding(entry, "po-plain", "only msgid and msgstr", found, UPDATE)


@rule
def fuzzy(page: Page) -> Iterator[Finding]:
    """Nothing waits to be checked by a person."""
    for entry in page.catalog.entries if page.complete else ():
        if entry.fuzzy and not entry.obsolete:
            mend = "compare it with the source, correct it and remove 'fuzzy' and the '#|' lines"
            yield page.finding(
                entry, "po-fuzzy", "a checked translation", f"a fuzzy one of {excerpt(entry.msgid)}", mend
            )


@rule
def leftover(page: Page) -> Iterator[Finding]:
    """The text of an earlier source goes when its entry is no longer fuzzy."""
    for entry in page.catalog.entries:
        if entry.previous_msgid is not None and not entry.fuzzy:
            yield page.finding(
                entry, "po-previous", "no '#|' lines at a checked entry", excerpt(entry.previous_msgid), "remove them"
            )


@rule
def empty(page: Page) -> Iterator[Finding]:
    """Nothing is left untranslated."""
    for entry in page.catalog.entries if page.complete else ():
        if not entry.obsolete and not entry.msgstr.strip():
            yield page.finding(entry, "po-empty", "a translation", f"none of {excerpt(entry.msgid)}", "translate it")


@rule
def obsolete(page: Page) -> Iterator[Finding]:
    """Nothing is kept that no page says."""
    for entry in page.catalog.entries:
        if entry.obsolete:
            yield page.finding(entry, "po-obsolete", "no '#~' entries", excerpt(entry.msgid), UPDATE)


@rule
def orphan(page: Page) -> Iterator[Finding]:
    """Every catalog belongs to a page that has something to translate."""
    if page.catalog.text and not page.template:
        found = f"no page {page.catalog.domain!r} with anything to translate"
        yield page.finding(None, "po-orphan", "a catalog of a page", found, UPDATE)


@rule
def stale(page: Page) -> Iterator[Finding]:
    """Every message of the catalog is in the sources."""
    for entry in page.catalog.entries if page.template else ():
        if entry.msgid not in page.template and not entry.obsolete:
            yield page.finding(entry, "po-stale", "a message of the page", excerpt(entry.msgid), UPDATE)


@rule
def missing(page: Page) -> Iterator[Finding]:
    """Every message of the sources is in the catalog."""
    known = page.catalog.active
    for message in page.template.values() if page.complete else ():
        if message.msgid not in known:
            place = ":".join(message.occurrences[0]) if message.occurrences else "the page"
            yield page.finding(None, "po-missing", f"an entry for {excerpt(message.msgid)} of {place}", "none", UPDATE)


@rule
def order(page: Page) -> Iterator[Finding]:
    """Entries stand in the order of the page, with what the extraction says about each."""
    entries = [entry for entry in page.catalog.entries if not entry.obsolete and entry.msgid in page.template]
    known = {entry.msgid for entry in entries}
    for entry, wanted in zip(
        entries, (message for message in page.template.values() if message.msgid in known), strict=False
    ):
        if entry.msgid != wanted.msgid:
            yield page.finding(
                entry, "po-order", f"{excerpt(wanted.msgid)}, as on the page", excerpt(entry.msgid), UPDATE
            )
            return
        if entry.comment != wanted.comment:
            yield page.finding(entry, "po-order", f"the comment {wanted.comment!r}", f"{entry.comment!r}", UPDATE)
