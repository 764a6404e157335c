"""Byte-level BPE against the tokenizers library and against its own definition: training, and encoding."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.tokenizers.bpe import PATTERNS, ByteLevelBPE, bpe_reference, split_words
from tests.bench.timing import Row, quartile, row, show

ROOT = Path(__file__).parents[2]


def corpus(size: int) -> str:
    """Return ``size`` bytes: chapters of this book, then the sources of hypothesis and transformers."""
    packages = Path(tokenizers.__file__).parents[1]
    files = sorted((ROOT / "docs").glob("*/*.rst"))
    for package in ("hypothesis", "transformers"):
        files += sorted((packages / package).rglob("*.py"))
    data = b""
    for file in files:
        data += file.read_bytes()
        if len(data) >= size:
            break
    return data[:size].decode("utf-8", "ignore")


def theirs(text: str, vocab_size: int) -> tokenizers.Tokenizer:
    """Train with the library."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS["gpt4"]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def training(size: int, vocab_size: int, *, rounds: int) -> Row:
    """Compare training, splitting into words included."""
    text = corpus(size)
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: ByteLevelBPE.train([text], vocab_size=vocab_size),
        "theirs": lambda: theirs(text, vocab_size),
    }
    best = quartile(candidates, rounds=rounds, warmup=0)
    return row(f"BPE training / tokenizers, {size} B, V {vocab_size}", best["ours"], best["theirs"], 3.0)


def definition(size: int, vocab_size: int) -> Row:
    """Compare training with its definition, which runs once: it takes half a minute."""
    text = corpus(size)
    ours = quartile({"ours": lambda: ByteLevelBPE.train([text], vocab_size=vocab_size)}, rounds=5, warmup=1)["ours"]
    start = time.perf_counter()
    bpe_reference([word.encode() for word in split_words(text)], vocab_size - 256)
    return row(f"BPE training / bpe_reference, V {vocab_size}", ours, 1e3 * (time.perf_counter() - start), 0.01)


def encoding(size: int, vocab_size: int) -> Row:
    """Compare encoding; both remember words that they saw, also from one round to the next."""
    text = corpus(size)
    ours, other = ByteLevelBPE.train([text], vocab_size=vocab_size), theirs(text, vocab_size)
    best = quartile({"ours": lambda: ours.encode(text), "theirs": lambda: other.encode(text)}, rounds=20)
    return row(f"BPE encoding / tokenizers, {size} B, V {vocab_size}", best["ours"], best["theirs"], 1 / 0.95)


def main() -> list[dict[str, str | float]]:
    """Measure, print and return the rows."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rows = [
        definition(186_000, 512),
        training(186_000, 512, rounds=10),
        training(4_700_000, 8192, rounds=2),
        encoding(186_000, 8192),
    ]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
