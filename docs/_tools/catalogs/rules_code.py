"""Whether a translation brings in anything that could run, load or lead elsewhere."""

import re
from collections.abc import Iterator

from code_gate import difference
from docutils.utils import escape2null

from catalogs.finding import Finding
from catalogs.page import Page, rule


@rule
def code(page: Page) -> Iterator[Finding]:
    """Translated code is the code of its source; only comments and words may differ."""
    for entry, about in page.pairs():
        for kind in re.findall(r"^code: (\S+)$", about, re.MULTILINE):
            if text := difference(entry.msgid, entry.msgstr, kind):
                expected, _, found = text.partition(", found ")
                mend = "translate comments and Chinese strings only"
                yield page.finding(
                    entry, "po-code", expected.replace("expected ", "", 1), found or "something else", mend
                )


@rule
def directive(page: Page) -> Iterator[Finding]:
    """No translation brings a directive, a raw role or a mark for Sphinx: those run code, load files, hide warnings."""
    pattern = re.compile(r"^\s*\.\. [\w:+|. -]*::|:raw[\w-]*:|#noqa", re.MULTILINE)
    for entry, about in page.pairs():
        if "code: " not in about and (extra := set(pattern.findall(entry.msgstr)) - set(pattern.findall(entry.msgid))):
            yield page.finding(
                entry, "po-directive", "text only", sorted(extra)[0].strip(), "remove the directive or role"
            )


@rule
def link(page: Page) -> Iterator[Finding]:
    """No translation leads anywhere that its source does not lead, and none runs a script."""
    for entry, about in page.pairs():
        if "code: " in about:
            continue
        ours, theirs = (addresses(text) for text in (entry.msgid, entry.msgstr))
        scripts = {address for address in theirs if re.match(r"(?:javascript|data|vbscript):", address)}
        if extra := sorted(scripts | (theirs - ours)):
            yield page.finding(entry, "po-link", "the addresses of the source only", repr(extra[0]), "remove the link")


def addresses(text: str) -> set[str]:
    """Return where a message leads, whatever markup it is written in; backslashes do not hide an address."""
    plain = re.sub(r"\x00\s?", "", escape2null(text)).lower()
    bare = r"(?<![\w:`])(?:javascript|vbscript|data|file|mailto|(?:ht|f)tps?):(?=[^\s`])[!-;=?-_a-~]*(?<![.,;:!?)])"
    embedded = r"<[\w./#?&=-]*[/#][\w./#?&=-]*>(?=`_)|<[a-z]+:[^>]*>(?=`_)"
    return {found.strip("<>") for found in re.findall(rf"{embedded}|{bare}|^\s*\.\. _[^:]*:.*", plain)}
