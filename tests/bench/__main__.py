"""Every benchmark, or those named: ``python -m tests.bench [attention] [build]``; a ratio above its budget fails."""

import importlib
import json
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(*names: str) -> int:
    """Run the benchmarks, record their rows in build/bench.json, and return 1 if one is over its budget."""
    names = names or tuple(
        sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    )
    rows = [row for name in names for row in importlib.import_module(f"tests.bench.bench_{name}").main()]
    record = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "rows": rows}
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/bench.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    slow = [row["name"] for row in rows if row["ratio"] > row["budget"]]
    print(f"{len(rows)} ratios, {len(slow)} over budget" + "".join(f"\n  {name}" for name in slow))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
