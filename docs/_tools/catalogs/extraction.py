"""What there is to translate: templates of every page, of the figures and of the theme, for one target language."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polib
from languages import BOOK, CJK, Language, load
from marked_strings import strings

TOOLS = Path(__file__).parents[1]
IGNORED = {"node_modules", "_generated", "__pycache__", "_static"}


class ExtractionError(Exception):
    """The sources cannot be read; the text says where and why."""


@dataclass(frozen=True)
class Project:
    """Where things lie below the root of the repository."""

    root: Path

    @property
    def docs(self) -> Path:
        """The sources of the book."""
        return self.root / "docs"

    @property
    def locale(self) -> Path:
        """The catalogs."""
        return self.root / "locale"

    @property
    def build(self) -> Path:
        """Everything that is made."""
        return self.root / "build"

    def languages(self) -> dict[str, Language]:
        """Return the rows of ``docs/languages.toml``."""
        return load(self.docs / "languages.toml")

    def fingerprint(self) -> str:
        """Return a digest of all that messages come from, and of the tools that extract them."""
        digest = hashlib.sha256(sys.version.encode())
        folders = [self.docs, self.root / "llm_study", self.root / "tests/parity", TOOLS, TOOLS.parent / "_ext"]
        files = {
            path for folder in folders for path in folder.rglob("*") if not IGNORED & set(path.parts) and path.is_file()
        }
        for path in sorted([*files, *self.root.glob("constraints.txt")]):
            digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


Templates = dict[str, list[polib.POEntry]]


def templates(project: Project, targets: list[str], *, fresh: bool) -> dict[str, Templates]:
    """Return the messages to be translated into each target, by domain.

    Args:
        project: the book.
        targets: codes of languages; they need not stand in the table of languages.
        fresh: extract even if nothing changed since the last time.
    """
    wanted, stamps = project.fingerprint(), {target: project.build / f"gettext/{target}.json" for target in targets}
    stale = [target for target in targets if fresh or _stamp(stamps[target]) != wanted]
    figures = _figures(project) if stale else []
    running = {target: _start(project, target) for target in stale}  # side by side
    for target, process in running.items():
        _finish(project, target, process)
        if figures and target != BOOK:
            template = polib.POFile(wrapwidth=0)
            template.extend(figures)
            template.save(str(project.build / "gettext" / target / "figures.pot"), newline="\n")
        stamps[target].write_text(json.dumps(wanted), "utf-8")
    return {target: _read(project.build / "gettext" / target) for target in targets}


def _stamp(path: Path) -> str:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return ""


def _start(project: Project, target: str) -> subprocess.Popen[str]:
    """Start Sphinx for one target; the folder of the templates is emptied, so that no removed page survives."""
    out = project.build / "gettext" / target
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable, "-m", "sphinx", "-b", "gettext", "-q", "-E",
        "-d", str(project.build / "doctrees" / f"gettext-{target}"),
        "-D", f"language={target}", "-D", "locale_dirs=", str(project.docs), str(out),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, encoding="utf-8", env=environment
    )


def _finish(project: Project, target: str, process: subprocess.Popen[str]) -> None:
    """Wait for Sphinx; its errors are ours, its warnings are shown when the pages are built."""
    _, errors = process.communicate()
    if process.returncode:
        raise ExtractionError(f"the messages for {target!r} cannot be extracted from {project.docs}:\n{errors}")


def _figures(project: Project) -> list[polib.POEntry]:
    """Return what figures say."""
    found: dict[str, polib.POEntry] = {}
    for path in sorted(project.docs.glob("figures/*.py")):
        for line, text in strings(path.read_text("utf-8")):
            if text is None:
                mend = "fill in values afterwards with .format"
                raise ExtractionError(
                    f'{path}:{line}: expected _("…") around one plain string, found other code; {mend}'
                )
            if CJK.search(text):
                entry = found.setdefault(text, polib.POEntry(msgid=text, comment="figure"))
                entry.occurrences.append((path.name, str(line)))
    return list(found.values())


def _read(folder: Path) -> Templates:
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.pot"))}
    return {domain: list(polib.pofile(str(path), encoding="utf-8")) for domain, path in paths.items()}
