"""``po-update`` and ``po-lint`` for the whole book, against the time that a translator is asked to wait at most.

``po-update`` extracts every message anew, in all languages side by side; ``po-lint`` then finds the messages as they
are, as it does whenever only catalogs have changed.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.timing import Row, quartile, row, show

ROOT = Path(__file__).parents[2]
PATIENCE = {"update": 40_000, "lint": 10_000}
"""How many milliseconds each command may take."""


def copy_book(folder: Path) -> None:
    """Copy all that messages come from, and the catalogs."""
    unwanted = shutil.ignore_patterns("node_modules", "_generated", "__pycache__", "*.mo")
    for name in ("docs", "llm_study", "locale", "tests/parity"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    with (folder / "docs/conf.py").open("a", encoding="utf-8") as file:
        file.write(f"\nkatex_dist = {str(ROOT / 'docs/node_modules/katex/dist')!r}\n")


def run(folder: Path, command: str) -> None:
    """Run one command of ``po.py``; what it finds does not matter here, that it ends does."""
    tool = str(ROOT / "docs/_tools/po.py")
    done = subprocess.run([sys.executable, tool, "--root", str(folder), command], capture_output=True, text=True)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr or "cannot be extracted" in done.stderr:
        raise RuntimeError(f"po.py {command} failed:\n{done.stderr}")


def main() -> list[Row]:
    """Measure, print and return the rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_book(folder)
        best = quartile({"update": lambda: run(folder, "update")}, rounds=1, warmup=0)
        best |= quartile({"lint": lambda: run(folder, "lint")}, rounds=3, warmup=0)
    count = len(list((ROOT / "locale").rglob("*.po")))
    rows = [row(f"po-{name}, {count} catalogs / {ms // 1000} s", best[name], ms, 1) for name, ms in PATIENCE.items()]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
