"""Train three tokenizers on some of the text of this book, and record how long other text of it becomes.

Run it as a script from the root of the project; it writes docs/data/subword.json and takes some minutes.
"""

import json
import math
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llm_study
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.patching import ByteNgram, ByteTokenizer, threshold_patches
from llm_study.tokenizers.unigram import Unigram
from llm_study.tokenizers.wordpiece import WordPiece

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs/data/subword.json"
SEED = 0  # nothing is drawn
VOCAB, ALPHA, ORDER = 4096, 2.5, 4
PAGES = [
    ("general/transformer_1", "general/transformer_2"),
    ("algorithms/attention_variants", "algorithms/activations"),
]
CODE = (["attention", "positions"], ["attention_variants", "activations"])


def chinese(page: str) -> list[str]:
    """Return the prose of a page."""
    lines = (ROOT / f"docs/{page}.rst").read_text("utf-8").splitlines()
    return [line for line in lines if re.match(r"[\u4e00-\u9fff“*]", line)]


def english(page: str) -> list[str]:
    """Return the translations of a page that read as prose."""
    text = (ROOT / f"locale/en/LC_MESSAGES/{page}.po").read_text("utf-8")
    found = [json.loads(f'"{line}"') for line in re.findall(r'^msgstr "(.+)"$', text, re.MULTILINE)]
    return [line for line in found if len(line) > 60 and ">>>" not in line]


def code(names: list[str]) -> list[str]:
    """Return the lines of modules of the package."""
    return [
        line for name in names for line in (ROOT / f"llm_study/functional/{name}.py").read_text("utf-8").splitlines()
    ]


def corpus() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return lines to train on and lines to measure, of each kind."""
    train = {
        "zh": [line for page, _ in PAGES for line in chinese(page)],
        "en": [line for page, _ in PAGES for line in english(page)],
        "code": code(CODE[0]),
    }
    held = {
        "zh": [line for _, page in PAGES for line in chinese(page)],
        "en": [line for _, page in PAGES for line in english(page)],
        "code": code(CODE[1]),
    }
    return train, held


def efficiency(counts: Counter[int], size: int) -> float:
    """Return the Rényi entropy of the frequencies, over its largest value."""
    total = counts.total()
    return math.log(sum((n / total) ** ALPHA for n in counts.values())) / (1 - ALPHA) / math.log(size)


def measure(encode: Callable[[str], list[int]], held: dict[str, list[str]], size: int) -> dict[str, Any]:
    """Return tokens per byte of each kind, and the efficiency of all together."""
    row: dict[str, Any] = {}
    counts: Counter[int] = Counter()
    for kind, lines in held.items():
        ids = [i for line in lines for i in encode(line)]
        counts.update(ids)
        row[kind] = round(sum(len(line.encode()) for line in lines) / len(ids), 3)
    row["efficiency"], row["used"] = round(efficiency(counts, size), 4), len(counts)
    return row


def main() -> None:
    train, held = corpus()
    lines = [line for part in train.values() for line in part]
    rows: dict[str, Any] = {"bytes": measure(ByteTokenizer(n_extra=0).encode, held, 256)}
    alphabet = sorted(
        {character for part in (train, held) for some in part.values() for line in some for character in line}
    )
    rows["characters"] = measure(lambda line: [alphabet.index(c) for c in line], held, len(alphabet))
    for name, make in {
        "BPE": lambda: ByteLevelBPE.train(lines, vocab_size=VOCAB),
        "WordPiece": lambda: WordPiece.train(lines, vocab_size=VOCAB),
        "Unigram": lambda: Unigram.train(lines, vocab_size=VOCAB, byte_fallback=True),
    }.items():
        start = time.perf_counter()
        tokenizer: Any = make()
        seconds = time.perf_counter() - start
        rows[name] = {**measure(tokenizer.encode, held, tokenizer.vocab_size), "vocab": tokenizer.vocab_size}
        rows[name]["seconds"] = round(seconds, 1)
        if name == "WordPiece":
            ids = [i for part in held.values() for line in part for i in tokenizer.encode(line)]
            rows[name]["unknown"] = round(ids.count(tokenizer.vocab["[UNK]"]) / len(ids), 4)
        print(name, rows[name], flush=True)
    model, sizes = ByteNgram("\n".join(lines).encode(), order=ORDER), {}
    for kind, part in held.items():
        data = "\n".join(part)[:20000].encode()
        entropies = model.entropies(data)
        sizes[kind] = {
            str(h): round(len(data) / len(threshold_patches(entropies, h)), 3) for h in (1.0, 1.5, 2.0, 2.5, 3.0)
        }
    record = {
        "what": "bytes per token on text of this book that no tokenizer was trained on",
        "script": "docs/figures/record_subword.py",
        "seed": SEED,
        "bytes": {kind: sum(len(line.encode()) for line in part) for kind, part in train.items()},
        "held_bytes": {kind: sum(len(line.encode()) for line in part) for kind, part in held.items()},
        "alpha": ALPHA,
        "order": ORDER,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": 1},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "tokenizers": rows,
        "patches": sizes,
    }
    TARGET.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
