"""Catalogs on disk: one canonical form, written whole or not at all."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import polib

HEADER = """\
# This translation has the license of the text: CC BY-SA 4.0.
msgid ""
msgstr ""
"Language: {language}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"""


class BrokenCatalogError(Exception):
    """A file that is no catalog: where, what was found, and how to mend it."""

    def __init__(self, path: Path, line: int, found: str, mend: str) -> None:
        super().__init__(f"{path}:{line}: found {found}; {mend}")
        self.path, self.line, self.found, self.mend = path, line, found, mend


@dataclass
class Catalog:
    """One parsed ``.po`` file."""

    path: Path
    language: str
    domain: str
    text: str = ""
    entries: list[polib.POEntry] = field(default_factory=list)

    @property
    def active(self) -> dict[str, polib.POEntry]:
        """The entries that are not obsolete, by message."""
        return {entry.msgid: entry for entry in self.entries if not entry.obsolete}

    def dump(self) -> str:
        """Return the canonical text: no wrapping, no line numbers, no dates."""
        return "\n".join([HEADER.format(language=self.language), *map(entry_text, self.entries)])


def entry_text(entry: polib.POEntry) -> str:
    """Return one entry in canonical form, ending with a line break."""
    entry.occurrences = []
    return entry.__unicode__(wrapwidth=0).rstrip("\n") + "\n"


def read(path: Path, language: str, domain: str) -> Catalog:
    """Parse a catalog.

    Raises:
        BrokenCatalogError: if the file is not UTF-8, has a byte order mark or carriage returns, or cannot be parsed.
    """
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise BrokenCatalogError(path, 1, "a byte order mark", "save the file as UTF-8 without one")
    if b"\r" in data:
        line = data[: data.index(b"\r")].count(b"\n") + 1
        raise BrokenCatalogError(path, line, "a carriage return", "save the file with LF line ends")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BrokenCatalogError(
            path, line, f"a byte that is not UTF-8 ({data[error.start]:#04x})", "save the file as UTF-8"
        ) from None
    check_lines(path, text)
    try:
        entries = list(polib.pofile(str(path), encoding="utf-8", wrapwidth=0))
    except (OSError, ValueError, UnicodeError) as error:  # polib reports syntax errors as OSError
        found = re.search(r"\(line (\d+)\)(?:: (.*))?", str(error))
        where, what = (int(found[1]), found[2] or "a syntax error") if found else (1, str(error))
        raise BrokenCatalogError(path, where, what, "mend the quotes and keywords around this line") from None
    return Catalog(path, language, domain, text, entries)


def check_lines(path: Path, text: str) -> None:
    """Refuse what polib lets pass: an unterminated string, or a file that ends within an entry."""
    line = r'(?:#.*|\s*|(?:#~ ?)?(?:msgctxt|msgid|msgid_plural|msgstr(?:\[\d+\])?) ".*"|(?:#~ ?)?".*")'
    last = ""
    for number, content in enumerate(text.split("\n"), 1):
        if not re.fullmatch(line, content) or re.search(r'(?<!\\)(?:\\\\)*\\"$', content):
            raise BrokenCatalogError(
                path, number, repr(content[:60]), "end the string with a quotation mark, on the same line"
            )
        last = keyword[0] if (keyword := re.match(r"msg\w+", content)) else last
    if last in {"", "msgid"} or not text.endswith("\n"):
        end = text.rstrip("\n").count("\n") + 1
        raise BrokenCatalogError(path, end, "the end of the file within an entry", "restore the rest of the file")


def catalogs(locale: Path, language: str) -> dict[str, Path]:
    """Return the catalogs of one language on disk by their domain."""
    folder = locale / language / "LC_MESSAGES"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.po"))}


def write(path: Path, text: str) -> bool:
    """Replace a file by ``text`` in one step; return whether it changed."""
    data = text.encode("utf-8")
    if path.exists() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def remove(path: Path, top: Path) -> None:
    """Remove a catalog, what Sphinx compiled from it, and folders left empty below ``top``."""
    path.with_suffix(".mo").unlink(missing_ok=True)
    path.unlink()
    for folder in path.parents:
        if folder == top or top not in folder.parents or any(folder.iterdir()):
            break
        folder.rmdir()
