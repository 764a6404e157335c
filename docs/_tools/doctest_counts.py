"""Say how many examples each language ran, and fail where two languages ran different numbers of them.

A run that is older than some chapter is not compared: that language has yet to run again.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/_ext"))

from languages import load

Runs = dict[str, dict[str, int]]


def current_runs(root: Path) -> Runs:
    """Return examples by page by language, of the runs that are newer than every chapter."""
    changed = max(path.stat().st_mtime for path in (root / "docs").rglob("*.rst") if "node_modules" not in path.parts)
    files = {
        row.path: root / f"build/doctest/{row.path}/counts.json" for row in load(root / "docs/languages.toml").values()
    }
    return {
        path: json.loads(file.read_text("utf-8"))
        for path, file in files.items()
        if file.exists() and file.stat().st_mtime >= changed
    }


def differences(runs: Runs) -> list[str]:
    """Return a line for each page of which two languages ran different numbers of examples."""
    pages = sorted({page for run in runs.values() for page in run})
    lines = []
    for page in pages:
        counts = {path: run.get(page, 0) for path, run in runs.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} in {path}" for path, count in counts.items())
            lines.append(f"docs/{page}.rst: expected the same number of examples in each language, found {found}")
    return lines


def main(root: Path = ROOT) -> int:
    """Print the totals and compare what has run since the last change of a chapter."""
    runs = current_runs(root)
    for path, run in runs.items():
        print(f"doctest({path}): {sum(run.values())} examples on {sum(map(bool, run.values()))} pages")
    found = differences(runs)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
