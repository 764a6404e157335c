"""The rules for chapters: labels, doctests that run everywhere, and Chinese typography.

``python docs/_tools/chapters.py [PATH …]`` prints ``path:line: CODE expected …, found …; how to mend it``.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "_ext"))

from catalogs.finding import Finding, excerpt
from rst_lines import CODE, Line, read

DOCS = Path(__file__).parents[1]
IDEOGRAPH = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
CHINESE = re.compile(IDEOGRAPH)
INLINE = re.compile(
    r":[\w:+-]+:`[^`]*`|``.+?``|`[^`]+`_{0,2}|\*\*(?! ).+?\*\*|(?<!\*)\*(?![ *]).+?\*|\|[^| ]+\||https?://\S+"
)
MARK = "\ufffc"
"""Stands for inline markup in a line of prose."""


@dataclass(frozen=True)
class Chapter:
    """What a rule looks at."""

    path: Path
    lines: list[Line]

    @property
    def prefixes(self) -> list[str]:
        """What a label of the page may begin with: its name, or its folder and its name."""
        folder, name = ("" if self.path.parent == DOCS else self.path.parent.name), self.path.stem
        names = [folder or name] if name == "index" else [name, f"{folder}-{name}"]
        return [prefix.replace("_", "-") for prefix in names]

    def owns(self, label: str, before: str = "") -> bool:
        """Whether a label begins with a prefix of the page; underscores count as hyphens, as in anchors."""
        plain = label.lower().replace("_", "-")
        return plain.isascii() and any(f"{plain}-".startswith(f"{before}{prefix}-") for prefix in self.prefixes)

    def finding(self, line: Line, code: str, expected: str, found: str, mend: str) -> Finding:
        """Return a finding at a line."""
        return Finding(self.path, line.number, code, expected, found, mend)

    def prose(self) -> Iterator[tuple[Line, str]]:
        """Yield the lines with Chinese prose, inline markup replaced by ``MARK``."""
        for line in self.lines:
            if CHINESE.search(line.spoken):
                yield line, INLINE.sub(MARK, line.spoken)


Rule = Callable[[Chapter], Iterator[Finding]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Add a function to the rules."""
    RULES.append(function)
    return function


@rule
def section_label(chapter: Chapter) -> Iterator[Finding]:
    """Each section has an explicit label with the prefix of the page, so that both languages share anchors."""
    pending = ""
    for line in chapter.lines:
        if line.kind == "label" and (found := re.match(r"\.\. _([^:`]+):\s*$", line.text)):
            pending = found[1]
        elif line.kind == "title":
            if not chapter.owns(pending):
                prefix, found_text = chapter.prefixes[0], f"the label {pending!r}" if pending else "none"
                mend = f"write '.. _{prefix}-…:' and an empty line above {line.text.strip()!r}"
                yield chapter.finding(line, "rst-label", f"a label '{prefix}-…' above the section", found_text, mend)
            pending = ""
        elif line.kind not in {"blank", "label"}:
            pending = ""


@rule
def equation_label(chapter: Chapter) -> Iterator[Finding]:
    """The label of an equation begins with ``eq-`` and the prefix of the page."""
    for line in chapter.lines:
        found = re.match(r"\s*:label:\s*(\S*)", line.text) if line.kind == "option" else None
        if found and not chapter.owns(found[1], "eq-"):
            expected = f"a label 'eq-{chapter.prefixes[0]}-…'"
            yield chapter.finding(line, "rst-equation", expected, repr(found[1]), "rename the label")


@rule
def doctest_flags(chapter: Chapter) -> Iterator[Finding]:
    """Options stand on the directive: Sphinx hides inline flags from readers and from translators."""
    for line in chapter.lines:
        if line.kind in CODE and (found := re.search(r"#\s*doctest:.*", line.text)):
            yield chapter.finding(
                line, "rst-flags", "options on the directive", repr(found[0]), "move them to ':options:'"
            )


@rule
def blank_line(chapter: Chapter) -> Iterator[Finding]:
    """Expected output has no ``<BLANKLINE>``: what is shown would not be what is compared."""
    for line in chapter.lines:
        if line.kind in CODE and "<BLANKLINE>" in line.text:
            yield chapter.finding(
                line, "rst-blankline", "output without empty lines", "'<BLANKLINE>'", "print something else"
            )


@rule
def bare_prompt(chapter: Chapter) -> Iterator[Finding]:
    """Examples stand in a directive: a bare ``>>>`` is neither run nor translated."""
    for line in chapter.lines:
        if line.kind in {"prose", "literal"} and re.match(r"\s*(?:[-*] +)?>>> ", line.text):
            yield chapter.finding(
                line, "rst-prompt", "'.. doctest::'", excerpt(line.text), "write the directive above the example"
            )


@rule
def conditional_check(chapter: Chapter) -> Iterator[Finding]:
    """A check that may be left out proves nothing."""
    for line in chapter.lines:
        if line.kind == "option" and (found := re.match(r"\s*(:(?:skipif|pyversion):)", line.text)):
            yield chapter.finding(line, "rst-skip", "code that runs everywhere", repr(found[1]), "remove the option")


@rule
def one_line(chapter: Chapter) -> Iterator[Finding]:
    """A paragraph is one line: a line break between Chinese characters would be shown as a space."""
    for line, following in zip(chapter.lines, chapter.lines[1:], strict=False):
        both = line.kind == following.kind == "prose"
        starts = re.match(r"\s*(?:(?:[-*+]|\d+\.|#\.) |\|)", following.text)
        if both and not starts and line.indent == following.indent and CHINESE.search(line.text + following.text):
            yield chapter.finding(
                following, "rst-line", "one paragraph per line", excerpt(following.text), "join it with the line above"
            )


@rule
def spacing(chapter: Chapter) -> Iterator[Finding]:
    """A space stands between Chinese and Latin letters, digits or inline markup."""
    pattern = re.compile(rf"{IDEOGRAPH}[A-Za-z0-9{MARK}]|[A-Za-z0-9{MARK}%]{IDEOGRAPH}")
    for line, text in chapter.prose():
        if found := pattern.search(text):
            shown = found[0].replace(MARK, "`…`")
            yield chapter.finding(
                line, "rst-space", "a space beside Chinese", repr(shown), "put a space between the two"
            )


@rule
def punctuation(chapter: Chapter) -> Iterator[Finding]:
    """Chinese text has full-width punctuation."""
    pattern = re.compile(rf"{IDEOGRAPH}(?:[,;?!()]|:(?!:)|\.(?=\s|$))|[,;?!()]{IDEOGRAPH}")
    for line, text in chapter.prose():
        if found := pattern.search(text):
            mend = "write ，；：？！（）。"
            yield chapter.finding(
                line, "rst-punctuation", "full-width punctuation beside Chinese", repr(found[0]), mend
            )


@rule
def quotes(chapter: Chapter) -> Iterator[Finding]:
    """Quotation marks are curly and come in pairs."""
    for line, text in chapter.prose():
        if found := re.search(r"[\"＂「」『』]", text):
            yield chapter.finding(line, "rst-quotes", "“…”", repr(found[0]), "write “ and ”")
        elif re.sub(r"[^“”]", "", text).replace("“”", ""):
            yield chapter.finding(line, "rst-quotes", "“ and ” in pairs", excerpt(text), "close what is open")


@rule
def full_width(chapter: Chapter) -> Iterator[Finding]:
    """Letters and digits are half-width; dashes and ellipses are Chinese."""
    pattern = re.compile(rf"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\u3000]|{IDEOGRAPH}(?:\.\.\.|--+|…)|。。")
    for line, text in chapter.prose():
        if found := pattern.search(text.replace("……", "")):
            mend = "write A, 1, —— and ……"
            yield chapter.finding(
                line, "rst-width", "half-width letters, Chinese dashes and ellipses", repr(found[0]), mend
            )


@rule
def plain_title(chapter: Chapter) -> Iterator[Finding]:
    """A heading holds no formula: it also stands in the sidebar, in links and in the title of the window."""
    for line in chapter.lines:
        if line.kind == "title" and ":math:" in line.text:
            mend = "say it in words or with characters such as √"
            yield chapter.finding(line, "rst-title", "a heading without a formula", excerpt(line.text), mend)


def check(path: Path) -> list[Finding]:
    """Return the findings of every rule in one chapter."""
    chapter = Chapter(path, read(path.read_text("utf-8")))
    return sorted(finding for rule in RULES for finding in rule(chapter))


def chapters(docs: Path = DOCS) -> list[Path]:
    """Return the Chinese pages of the book."""
    pages = [path.relative_to(docs) for path in sorted(docs.rglob("*.rst"))]
    return [
        docs / page
        for page in pages
        if page.parts[0] not in {"api", "node_modules"} and not page.parts[0].startswith("_")
    ]


def main(arguments: list[str] | None = None) -> int:
    """Check chapters and return the exit status: 1 if there is anything to mend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="chapters; default: all of docs/")
    findings = [finding for path in parser.parse_args(arguments).paths or chapters() for finding in check(path)]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
