"""Whether the checks of the book can fail: ``python docs/_tools/mutants.py [PAGE …]``.

Each doctest that verifies an equation is run again and again, after the page up to it, each time with one sign,
operator, comparison or constant of its code changed. A check that never fails proves nothing: it is reported, and the
exit status is 1. Changes that a check did not notice are counted, and written to ``build/mutants.json``: some of them
mean nothing (a size that may be any), others show what a check leaves open.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalogs.finding import Finding, excerpt
from chapters import chapters
from mutation.blocks import promised
from mutation.trials import Broken, Mutant, Trial, trials

ROOT = Path(__file__).parents[2]
MEND = "compare what the equation says with a value that was found in another way"


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="chapters; default: all of docs/")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one change")
    parser.add_argument("--jobs", type=int, default=2, help="changes that are tried at a time")
    parser.add_argument("--survivors", action="store_true", help="print every change that was not noticed")
    parser.add_argument("--report", type=Path, default=ROOT / "build/mutants.json", help="where all is written to")
    return parser.parse_args(arguments)


def findings(path: Path, results: list[Trial | Broken]) -> Iterator[Finding]:
    """Yield what is wrong with the checks of a page."""
    stopped = False
    for result in results:
        if isinstance(result, Broken):
            stopped = True
            mend = "run the doctests of the page and mend it"
            yield Finding(path, result.line, "mut-broken", "a block that passes as it stands", result.where, mend)
        elif result.idle:
            tried = f"{result.proving} changes under which it passes"
            yield Finding(path, result.line, "mut-idle", "a change that makes the check fail", tried, MEND)
    found = sum(isinstance(result, Trial) for result in results)
    wanted = promised(path.read_text("utf-8"))
    if found != wanted and not stopped:
        mend = "put ':verifies:' on a '.. doctest::' or '.. testcode::' outside of other directives' code"
        yield Finding(path, 1, "mut-unread", f"{wanted} checks", f"{found} that run", mend)


def summary(trial: Trial) -> str:
    """Return a line about one check."""
    caught = len(trial.mutants) - len(trial.survivors)
    share = f"{caught / len(trial.mutants):4.0%}" if trial.mutants else "   –"
    notes = []
    if not trial.alert and not trial.idle:
        notes.append("only errors, never another answer")
    elif trial.unmoved:
        notes.append(f"no change alters the output of line {', '.join(map(str, trial.unmoved))}")
    if len(trial.alert) < len(trial.unit.equations):
        notes.append(f"only {len(trial.alert)} outputs for {len(trial.unit.equations)} equations")
    names = ", ".join(trial.unit.equations)
    return f"  line {trial.line:>5} {caught:>4} of {len(trial.mutants):>3} {share}  {'; '.join([names, *notes])}"


def survivor(mutant: Mutant) -> str:
    """Return a line about a change that was not noticed."""
    return f"       {mutant.line:>5}  {mutant.change.kind}: {excerpt(mutant.change.old)} → {excerpt(mutant.change.new)}"


def record(trial: Trial) -> dict[str, Any]:
    """Return what the report says of one check."""
    return {
        "line": trial.line,
        "equations": list(trial.unit.equations),
        "changes": len(trial.mutants),
        "fates": dict(sorted(Counter(mutant.fate for mutant in trial.mutants).items())),
        "unmoved": trial.unmoved,
        "survivors": [
            {"line": m.line, "kind": m.change.kind, "old": m.change.old, "new": m.change.new} for m in trial.survivors
        ],
    }


def pages() -> Iterator[Path]:
    """Yield the pages of the book that have checks, as paths from here."""
    for path in chapters():
        if promised(path.read_text("utf-8")):
            yield Path(os.path.relpath(path))


def examine(path: Path, given: argparse.Namespace) -> tuple[list[Finding], list[Trial]]:
    """Try the checks of one page, and print what comes of each as soon as it is known."""
    print(path.as_posix())
    results: list[Trial | Broken] = []
    for result in trials(path.read_text("utf-8"), given.limit, given.jobs):
        results.append(result)
        if isinstance(result, Trial):
            print(summary(result), *(map(survivor, result.survivors) if given.survivors else ()), sep="\n", flush=True)
    return list(findings(path, results)), [result for result in results if isinstance(result, Trial)]


def main(arguments: list[str] | None = None) -> int:
    """Try the checks of the book and return the exit status: 1 if one of them cannot fail, or cannot be tried."""
    given = options(arguments)
    if not hasattr(os, "fork"):
        raise SystemExit("mutants.py: expected a system that can fork, found none; run it on Linux or macOS")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")  # forks lose all threads
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants.py: ended from outside"))  # and what runs is ended too
    wrong: list[Finding] = []
    report: dict[str, Any] = {}
    totals: Counter[str] = Counter()
    for path in given.pages or pages():
        began = time.monotonic()
        found, checks = examine(path, given)
        seconds = round(time.monotonic() - began, 1)
        counts = Counter(mutant.fate for trial in checks for mutant in trial.mutants)
        print(f"  {tally(len(checks), counts)} in {seconds:.0f} s")
        wrong += found
        totals += counts
        report[path.as_posix()] = {"seconds": seconds, "checks": [record(trial) for trial in checks]}
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("all:", tally(sum(len(page["checks"]) for page in report.values()), totals))
    print(*sorted(wrong), sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


def tally(checks: int, counts: Counter[str]) -> str:
    """Return how many changes came to which end."""
    total = counts.total()
    ends = ", ".join(f"{number} {fate}" for fate, number in sorted(counts.items()))
    return f"{checks} checks, {total} changes, {(total - counts['survived']) / max(total, 1):.0%} noticed ({ends})"


if __name__ == "__main__":
    sys.exit(main())
