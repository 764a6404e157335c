"""The lines of a chapter, each with what it is: prose, code, a formula, an option of a directive, other markup."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

CODE = {"doctest", "testcode", "testoutput", "testsetup", "testcleanup", "code-block", "code", "raw", "parsed-literal"}
OPAQUE = {
    "math",
    "toctree",
    "bibliography",
    "literalinclude",
    "source",
    "plot-figure",
    "image",
    "include",
    "index",
    "only",
}
TITLED = {
    "admonition",
    "dropdown",
    "tab-item",
    "list-table",
    "table",
    "csv-table",
    "rubric",
    "topic",
    "card",
    "grid-item-card",
}
SPOKEN_OPTIONS = {"alt", "caption", "title"}
DIRECTIVE = re.compile(r"(?P<indent>\s*)(?:[-*] +)*\.\. (?:\|[^|]+\| )?(?P<name>[\w:-]+)::(?: +(?P<argument>.*))?$")
OPTION = re.compile(r"\s*:(?P<name>[\w-]+):(?: +(?P<value>.*))?$")
BORDER = re.compile(r"\s*(?:[=-]+(?: +[=-]+)+|\+[-=+]+\+)\s*$")
UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}$")
MARKER = re.compile(r"\s*(?:(?:[-*+]|\d+\.|#\.) +)+")


@dataclass(frozen=True)
class Line:
    """One line of a chapter."""

    number: int
    text: str
    kind: str
    """``prose``, ``title``, ``blank``, ``table``, ``label``, ``option``, ``markup``, ``comment``, or its directive."""
    spoken: str = ""
    """The part of the line that is prose."""

    @property
    def indent(self) -> int:
        """Where the text of the line begins, behind the markers of lists."""
        return len(found[0]) if (found := MARKER.match(self.text)) else len(self.text) - len(self.text.lstrip())


def read(source: str) -> list[Line]:
    """Return the lines of a chapter."""
    lines = source.split("\n")
    found: list[Line] = []
    number = 0
    while number < len(lines):
        text = lines[number]
        if not text.strip():
            found.append(Line(number + 1, text, "blank"))
        elif (
            number + 1 < len(lines)
            and not text[0].isspace()
            and UNDERLINE.fullmatch(lines[number + 1])
            and not UNDERLINE.fullmatch(text)
        ):
            found += [Line(number + 1, text, "title", text), Line(number + 2, lines[number + 1], "markup")]
            number += 1
        elif directive := DIRECTIVE.match(text):
            body = list(_directive(lines, number, directive))
            found += body
            number += len(body) - 1
        elif re.match(r"\s*\.\.(?: (?![_[|])|$)", text):
            body = list(_block(lines, number + 1, len(text) - len(text.lstrip()), "comment"))
            found += [Line(number + 1, text, "comment"), *body]
            number += len(body)
        else:
            found.append(_plain(number + 1, text))
            if text.rstrip().endswith("::") and not text.lstrip().startswith(".. "):
                body = list(_block(lines, number + 1, len(text) - len(text.lstrip()), "literal"))
                found += body
                number += len(body)
        number += 1
    return found


def _plain(number: int, text: str) -> Line:
    """Classify a line outside directives."""
    if BORDER.match(text) or UNDERLINE.fullmatch(text.strip()):
        return Line(number, text, "table")
    if re.match(r"\s*\.\. _[^:]+:", text):
        return Line(number, text, "label")
    if note := re.match(r"\s*\.\. \[[^]]+\] ", text):
        return Line(number, text, "prose", text[note.end() :])
    if re.match(r"\s*\.\.(?: |$)", text):
        return Line(number, text, "markup")
    if option := OPTION.match(text):
        return Line(number, text, "option", (option["value"] or "") if option["name"] in SPOKEN_OPTIONS else "")
    return Line(number, text, "prose", text.strip())


def _directive(lines: list[str], start: int, directive: re.Match[str]) -> Iterator[Line]:
    """Yield the line of a directive with its options, and its content where that is no prose."""
    name = directive["name"]
    yield Line(start + 1, lines[start], "markup", (directive["argument"] or "") if name in TITLED else "")
    indent = len(directive["indent"])
    if name in CODE | OPAQUE:
        yield from _block(lines, start + 1, indent, name)
        return
    for number in range(start + 1, len(lines)):
        option = OPTION.match(lines[number])
        if not option or len(lines[number]) - len(lines[number].lstrip()) <= indent:
            return
        yield _plain(number + 1, lines[number])


def _block(lines: list[str], start: int, indent: int, name: str) -> Iterator[Line]:
    """Yield the lines that belong to a block because they are indented more; the first ones may be options."""
    options = name not in {"literal", "comment"}
    for number in range(start, len(lines)):
        text = lines[number]
        if text.strip() and len(text) - len(text.lstrip()) <= indent:
            return
        options = options and bool(OPTION.match(text))
        if not text.strip():
            yield Line(number + 1, text, "blank")
        else:
            yield _plain(number + 1, text) if options else Line(number + 1, text, name)
