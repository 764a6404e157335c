"""Ratios of running times: candidates take turns within each round, and the fastest round of each counts."""

import random
import time
from collections.abc import Callable, Mapping

Row = dict[str, str | float]


def fastest(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 20, warmup: int = 2) -> dict[str, float]:
    """Return the shortest time of each candidate in milliseconds.

    Taking turns spreads what else the machine does over all candidates. Each round has its own order, since a candidate
    leaves caches and memory behind for the next. The minimum is the run that was disturbed least.
    """
    best = dict.fromkeys(candidates, float("inf"))
    order, shuffle = list(candidates.items()), random.Random(0).shuffle
    for turn in range(warmup + rounds):
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            if turn >= warmup:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


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
