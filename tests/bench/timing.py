"""Ratios of running times: candidates take turns within each round, and the lower quartile of each counts."""

import random
import time
from collections.abc import Callable, Mapping

Row = dict[str, str | float]


def quartile(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 20, warmup: int = 2) -> dict[str, float]:
    """Return for each candidate the time, in milliseconds, that a quarter of its rounds stay below.

    Taking turns spreads what else the machine does over all candidates. Each round has its own order, since a candidate
    leaves caches and memory behind for the next. A virtual machine is disturbed often, which slows down most rounds a
    little, and lent a faster clock now and then, which makes the fastest round a matter of luck: of 50 training steps,
    three runs gave ratios of 0.76 to 0.94 by the fastest round, and 0.871 to 0.877 by the lower quartile.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffle = list(candidates.items()), random.Random(0).shuffle
    for turn in range(warmup + rounds):
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(found)[rounds // 4] for name, found in times.items()}


def row(name: str, ours_ms: float, peer_ms: float, budget: float) -> Row:
    """Return one line of the report: our time against the peer's, and the ratio that it may reach."""
    return {
        "name": name,
        "ours_ms": round(ours_ms, 3),
        "peer_ms": round(peer_ms, 3),
        "ratio": round(ours_ms / peer_ms, 3),
        "budget": budget,
    }


def show(rows: list[Row]) -> None:
    """Print a report."""
    for r in rows:
        verdict = "ok" if float(r["ratio"]) <= float(r["budget"]) else "TOO SLOW"
        print(
            f"{r['name']:<55} {r['ours_ms']:>9} ms {r['peer_ms']:>9} ms  ratio {r['ratio']} (≤ {r['budget']}) {verdict}"
        )
