"""Record how long the code of each chapter takes: ``python docs/figures/record_running_time.py``.

The examples of a chapter run in a process of their own, as those who copy them would run them: the time includes the
start of Python and the import of torch. The least of several rounds counts, and goes to docs/data/running_time.json.
"""

import doctest
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import llm_study

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS / "_ext"))

TARGET = DOCS / "data" / "running_time.json"
SEED, ROUNDS, THREADS = 0, 3, 1  # one thread: several would wait for each other on a busy machine


def examples(page: Path) -> int:
    """Return how many examples a page has.

    Raises:
        ValueError: if it has code that is not written as examples, which would not be timed.
    """
    text = page.read_text("utf-8")
    if ".. testcode::" in text:
        raise ValueError(f"{page}: expected '.. doctest::' only, found '.. testcode::', which would not be timed")
    return len(doctest.DocTestParser().get_examples(text, str(page)))


def seconds(page: Path) -> float:
    """Return how long one run of all examples of a page takes.

    Raises:
        ValueError: if an example fails.
    """
    start = time.perf_counter()
    environ = {**os.environ, "PYTHONHASHSEED": str(SEED), "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-X", "utf8", "-m", "doctest", str(page)]
    done = subprocess.run(command, cwd=DOCS.parent, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"{page}: expected examples that pass, found a failure; run doctest\n{done.stdout}{done.stderr}"
        )
    return time.perf_counter() - start


def measure(page: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the number of examples of a page, and the seconds of the fastest round."""
    return {"examples": examples(page), "seconds": round(min(seconds(page) for _ in range(rounds)), 1)}


def main() -> None:
    """Measure every chapter that is written, and write the record."""
    from roadmap import plan, written

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "what": "all examples of a chapter in one new process, the import of torch included",
        "script": f"docs/figures/{Path(__file__).name}",
        "seed": SEED,
        "rounds": ROUNDS,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": THREADS},
        "chapters": {name: measure(DOCS / f"{name}.rst") for name in written(DOCS, plan(DOCS))},
    }
    TARGET.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
