"""Train a small language model on the text of this book, beside n-gram models, and record how it learns.

Run it as a script from the root of the project, with all changes committed; it writes docs/data/book_model.json and
takes about a quarter of an hour on two cores. A run that was stopped goes on when the script is started again; its
checkpoints lie in build/book_model. ``--steps 20`` tries everything out; the record then says so.

The text is stored in docs/data/book_corpus.json.xz, so that nobody needs the history of the repository: the pages in
Chinese, and the messages of the English catalogs, each page a text of its own. ``--corpus COMMIT`` makes it anew. Every
tenth page is held out, in both languages: code and formulas are the same in both.
"""

import argparse
import hashlib
import json
import lzma
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import llm_study
from llm_study.data.batches import evaluation_windows
from llm_study.data.texts import Corpus
from llm_study.functional.information import bits_per_byte
from llm_study.models.ngram import modified_kneser_ney
from llm_study.training.pretrain import END, PretrainConfig, Pretraining, evaluate
from llm_study.training.progress import Progress, ProgressBar

ROOT = Path(__file__).parents[2]
TARGET, CORPUS = ROOT / "docs/data/book_model.json", ROOT / "docs/data/book_corpus.json.xz"
SEED, STEPS, FIRST, EVERY = 0, 600, 3, 10
ORDERS = (3, 6)
LANGUAGES = ("zh", "en")
SHORTEST = 1000
"""Bytes; shorter pages, which only announce or list others, are left out."""


# --- the text


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def pages(commit: str) -> dict[str, str]:
    """Return the text of every page of a commit, by language and name."""
    import polib

    found = {}
    for name in git("ls-tree", "-r", "--name-only", commit).splitlines():
        parts = Path(name).parts
        if name.endswith(".rst") and parts[0] == "docs" and parts[1] != "api":
            found["zh/" + "/".join(parts[1:])[:-4]] = git("show", f"{commit}:{name}")
        elif name.endswith(".po") and parts[:3] == ("locale", "en", "LC_MESSAGES"):
            catalog = polib.pofile(git("show", f"{commit}:{name}"))
            found["en/" + "/".join(parts[3:])[:-3]] = "\n\n".join(entry.msgstr for entry in catalog) + "\n"
    return {name: text for name, text in sorted(found.items()) if len(text.encode()) >= SHORTEST}


def make_corpus(commit: str) -> None:
    """Store the pages of a commit."""
    commit = git("rev-parse", commit).strip()
    raw = json.dumps({"commit": commit, "pages": pages(commit)}, ensure_ascii=False, indent=0).encode()
    CORPUS.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def read_corpus() -> tuple[str, dict[str, str]]:
    """Return the commit of the stored text, and its pages."""
    raw = json.loads(lzma.decompress(CORPUS.read_bytes()))
    return raw["commit"], raw["pages"]


def held_out_names(names: Sequence[str]) -> list[str]:
    """Return every tenth page, in both languages."""
    apart = sorted({name.partition("/")[2] for name in names})[::10]
    return [name for name in names if name.partition("/")[2] in apart]


def split(texts: Mapping[str, str]) -> tuple[Corpus, dict[str, list[str]]]:
    """Return what is trained on and what is held out, and the latter by language too."""
    out = held_out_names([*texts])
    corpus = Corpus([text for name, text in texts.items() if name not in out], [texts[name] for name in out])
    return corpus, {lang: [texts[name] for name in out if name.startswith(lang)] for lang in LANGUAGES}


# --- the models


def config(steps: int = STEPS) -> PretrainConfig:
    """Return the settings of the run; the schedule of the learning rate depends on how long it is."""
    return PretrainConfig(
        steps=steps, seed=SEED, batch_size=8, learning_rate=2e-3, warmup=30, eval_every=min(50, steps), save_every=25
    )


def first_losses(run: Pretraining) -> list[float]:
    """Take the first steps and return their losses."""
    return [run.trainer.step() for _ in range(FIRST)]


def of_model(run: Pretraining, texts: Sequence[str]) -> float:
    """Return the bits per byte that the model gives to whole pages, each token after half a window at least."""
    ids = [run.tokenizer.encode(text) for text in texts]
    length, end = run.config.length, run.tokenizer.special_tokens[END]
    windows = evaluation_windows(ids, length=length, stride=length // 2, end=end)
    run.model.eval()
    return bits_per_byte(evaluate(run.model, *windows), sum(map(len, ids)), sum(len(t.encode()) for t in texts))


def of_ngrams(corpus: Corpus, order: int) -> Callable[[Sequence[str]], float]:
    """Return the bits per byte that an n-gram model of bytes gives to texts."""
    model = modified_kneser_ney([text.encode() for text in corpus.train], order, vocabulary=range(256))

    def bits(texts: Sequence[str]) -> float:
        found = -sum(model.log_likelihood(text.encode()) for text in texts) / math.log(2)
        return found / sum(len(text.encode()) for text in texts)

    return bits


def compared(run: Pretraining, corpus: Corpus, parts: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
    """Return bits per byte of all models on the held-out pages, together and by language."""
    texts = {"all": corpus.held_out, **parts}
    found = {"model": {name: round(of_model(run, part), 4) for name, part in texts.items()}}
    for order in ORDERS:
        bits = of_ngrams(corpus, order)
        found[f"order {order}"] = {name: round(bits(part), 4) for name, part in texts.items()}
    return found


# --- the record


def curve(run: Pretraining) -> list[list[float]]:
    """Return steps and the mean of the losses up to each since the one before, in nats per token."""
    losses = run.trainer.history.losses
    return [
        [i + len(part), round(sum(part) / len(part), 4)]
        for i in range(0, len(losses), EVERY)
        if (part := losses[i : i + EVERY])
    ]


def record(run: Pretraining, commit: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that is to be known of a run."""
    corpus, parts = split(texts)
    history = run.trainer.history
    n_bytes = {
        "train": sum(len(t.encode()) for t in corpus.train),
        "held out": sum(len(t.encode()) for t in corpus.held_out),
    }
    tokens = len(run.ids) - len(corpus.train) - 1
    return {
        "what": "a small language model trained on the text of this book, in both languages",
        "script": f"docs/figures/{Path(__file__).name}",
        "seed": SEED,
        "steps": run.config.steps,
        "planned steps": STEPS,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": git("rev-parse", "HEAD").strip(),
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": torch.get_num_threads()},
        "corpus": {
            "commit": commit,
            "sha256": hashlib.sha256(CORPUS.read_bytes()).hexdigest(),
            "pages": len(texts),
            "held out": held_out_names([*texts]),
            "bytes": n_bytes,
        },
        "settings": asdict(run.config),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens": tokens,
        "bytes per token": round(n_bytes["train"] / tokens, 4),
        "seconds": round(history.seconds, 1),
        "first losses": history.losses[:FIRST],
        "loss": curve(run),
        "evaluations": [[step, round(x, 4), round(run.bits_per_byte(x), 4)] for step, x in history.evaluations],
        "bits per byte": compared(run, corpus, parts),
    }


def main() -> None:
    """Train, or go on with training; compare; write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer, to try it out (default: %(default)s)")
    parser.add_argument("--corpus", metavar="COMMIT", help="store the pages of a commit, and do nothing else")
    arguments = parser.parse_args()
    if arguments.corpus:
        make_corpus(arguments.corpus)
        return
    commit, texts = read_corpus()
    folder = ROOT / "build/book_model" / f"{arguments.steps}-steps"
    shown: Callable[[Progress], None] = ProgressBar()
    run = Pretraining(split(texts)[0], config(arguments.steps), folder=folder, report=shown)
    print(run.describe(resumed=run.trainer.resume()), file=sys.stderr)
    run.trainer.run()
    run.save()
    TARGET.write_text(json.dumps(record(run, commit, texts), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
