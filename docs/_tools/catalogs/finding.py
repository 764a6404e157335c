"""One thing that is wrong, in the one form in which every tool reports it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Finding:
    """``path:line: CODE expected …, found …; how to mend it``."""

    path: Path
    line: int
    code: str
    expected: str
    found: str
    mend: str

    def __str__(self) -> str:
        return (
            f"{self.path.as_posix()}:{self.line}: {self.code} expected {self.expected}, found {self.found}; {self.mend}"
        )


def excerpt(text: str, width: int = 60) -> str:
    """Return a text on one line, in quotes, cut where it is long."""
    text = " ".join(text.split())
    return repr(text if len(text) <= width else text[: width - 1] + "…")
