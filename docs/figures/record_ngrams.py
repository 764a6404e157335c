"""Train n-gram models of all orders on the text of this book, and record what they give to pages held out.

Run it as a script from the root of the project, with all changes committed; it writes docs/data/ngrams.json and takes
about two minutes. The text are the Chinese pages of the commit, as bytes, one sequence for each page; every tenth page
is held out.
"""

import json
import math
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import llm_study
from llm_study.models import ngram as N

TARGET = Path(__file__).parents[1] / "data" / "ngrams.json"
SEED = 0  # nothing is random; every record has one
ORDERS = [1, 2, 3, 4, 5, 6, 7]
TOKEN = re.compile(r"[一-鿿]|[A-Za-z]+")
"""What counts as a word of the two laws: a Chinese character, or a run of letters."""
PROBE = [b"to be or not to be", b"the cat sat on the mat", b"not the cat"]
"""Text that never changes: what the models give to its last line tells whether they still are what was recorded."""

Build = Callable[[Sequence[bytes], int], N.NGramModel]


def interpolated(pages: Sequence[bytes], order: int) -> N.NGramModel:
    """Fit the weights on every tenth page, then count all of them."""
    rest, held_out = [p for i, p in enumerate(pages) if i % 10 != 1], [p for i, p in enumerate(pages) if i % 10 == 1]
    weights, _ = N.interpolation_weights(rest, held_out, order, vocabulary=range(256))
    return N.jelinek_mercer(pages, order, weights=weights, vocabulary=range(256))


METHODS: dict[str, Build] = {
    "add-k": lambda pages, order: N.add_k(pages, order, k=0.01, vocabulary=range(256)),
    "Jelinek–Mercer": interpolated,
    "Witten–Bell": lambda pages, order: N.witten_bell(pages, order, vocabulary=range(256)),
    "absolute": lambda pages, order: N.absolute_discounting(pages, order, vocabulary=range(256)),
    "Kneser–Ney": lambda pages, order: N.kneser_ney(pages, order, vocabulary=range(256)),
    "modified Kneser–Ney": lambda pages, order: N.modified_kneser_ney(pages, order, vocabulary=range(256)),
}


def bits_per_byte(model: N.NGramModel, pages: Sequence[bytes]) -> float:
    """Return the bits for each byte of all pages together."""
    return -sum(map(model.log_likelihood, pages)) / math.log(2) / sum(map(len, pages))


def probe() -> dict[str, float]:
    """Return what models of order 3 give to the last line of a text that never changes."""
    return {name: round(bits_per_byte(build(PROBE[:2], 3), PROBE[2:]), 6) for name, build in METHODS.items()}


def unseen(train: Sequence[bytes], held_out: Sequence[bytes]) -> tuple[list[float], list[int]]:
    """Return the share of held-out n-grams that the text lacks, and how many different ones it has, for each order."""
    seen, other = N.ngram_counts(train, ORDERS[-1]), N.ngram_counts(held_out, ORDERS[-1])
    shares = [
        sum(n for gram, n in level.items() if gram not in known) / level.total()
        for known, level in zip(seen, other, strict=True)
    ]
    return [round(share, 4) for share in shares], [len(level) for level in seen]


def laws(text: str) -> dict[str, list[list[int]]]:
    """Return frequency by rank, and number of different words by length of text, at ranks and lengths far apart."""
    words = TOKEN.findall(text)
    frequencies = sorted(Counter(words).values(), reverse=True)
    ranks = sorted({min(round(1.25**i), len(frequencies)) for i in range(60)})
    lengths, known, growth = {round(10 * 1.25**i) for i in range(60)}, set(), []
    for n, word in enumerate(words, start=1):
        known.add(word)
        if n in lengths or n == len(words):
            growth.append([n, len(known)])
    return {"ranks": [[rank, frequencies[rank - 1]] for rank in ranks], "growth": growth}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure, and write the record."""
    paths = sorted(git("ls-files", "docs/*.rst").splitlines())
    pages = [Path(path).read_bytes() for path in paths if not path.startswith("docs/api/")]
    train, held_out = [p for i, p in enumerate(pages) if i % 10], [p for i, p in enumerate(pages) if i % 10 == 0]
    bits: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for name, build in METHODS.items():
        for order in ORDERS:
            start = time.perf_counter()
            model = build(train, order)
            seconds[name].append(round(time.perf_counter() - start, 2))
            bits[name].append(round(bits_per_byte(model, held_out), 4))
    shares, distinct = unseen(train, held_out)
    record: dict[str, Any] = {
        "what": "bits per byte of n-gram models on held-out pages of this book, in Chinese",
        "script": "docs/figures/record_ngrams.py",
        "seed": SEED,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": git("rev-parse", "HEAD"),
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": 1},
        "bytes": {"train": sum(map(len, train)), "held out": sum(map(len, held_out))},
        "orders": ORDERS,
        "bits per byte": bits,
        "seconds": seconds,
        "unseen": shares,
        "distinct": distinct,
        "probe": probe(),
        **laws(b"\n".join(pages).decode()),
    }
    TARGET.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
