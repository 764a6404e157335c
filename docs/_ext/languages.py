"""The table of languages, and the one rule that decides which language a page is written in."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
BOOK, API = "zh_CN", "en"
"""What chapters are written in, and what docstrings are written in."""

CJK = re.compile(r"[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
"""A Chinese character, or a full-width form or punctuation mark."""


@dataclass(frozen=True)
class Language:
    """One row of ``docs/languages.toml``."""

    code: str
    path: str
    tag: str
    label: str
    title: str
    complete: bool


def load(path: Path = DOCS / "languages.toml") -> dict[str, Language]:
    """Return the languages of the site by their code, in the order of the switch."""
    rows = tomllib.loads(path.read_text("utf-8"))["language"]
    return {row["code"]: Language(**row) for row in rows}


def source_language(docname: str) -> str:
    """Return the code of the language in which a page, or the catalog of the same name, is written."""
    return API if docname.startswith("api/") or docname == "sphinx" else BOOK
