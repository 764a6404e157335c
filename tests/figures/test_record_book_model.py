"""The recorded model of this book: its text, its beginning, and the n-gram models beside it can be repeated."""

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_study.training.pretrain import PretrainConfig, Pretraining
from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
RECORD: dict[str, Any] = json.loads((DOCS / "data/book_model.json").read_text("utf-8"))


SCRIPT = load(DOCS.parent / RECORD["script"])


def test_the_text_is_what_was_recorded() -> None:
    commit, texts = SCRIPT.read_corpus()
    about = RECORD["corpus"]
    assert hashlib.sha256(SCRIPT.CORPUS.read_bytes()).hexdigest() == about["sha256"]
    assert (commit, len(texts)) == (about["commit"], about["pages"])
    corpus, parts = SCRIPT.split(texts)
    assert SCRIPT.held_out_names([*texts]) == about["held out"]
    sizes = [sum(len(text.encode()) for text in part) for part in (corpus.train, corpus.held_out)]
    assert dict(zip(("train", "held out"), sizes, strict=True)) == about["bytes"]
    assert 0.05 < sizes[1] / sum(sizes) < 0.2
    assert sorted(parts["zh"] + parts["en"]) == sorted(corpus.held_out)
    assert not set(corpus.held_out) & set(corpus.train)
    apart = {name.partition("/")[2] for name in about["held out"]}
    assert {name for name in texts if name.partition("/")[2] in apart} == set(about["held out"])  # in both languages


def test_the_run_begins_as_it_was_recorded() -> None:
    run = Pretraining(SCRIPT.split(SCRIPT.read_corpus()[1])[0], SCRIPT.config(RECORD["steps"]))
    assert run.config == PretrainConfig(**RECORD["settings"])
    assert sum(p.numel() for p in run.model.parameters()) == RECORD["parameters"]
    losses = SCRIPT.first_losses(run)
    assert losses == pytest.approx(RECORD["first losses"], rel=1e-4)  # other threads add up in another order
    assert losses[0] == pytest.approx(math.log(run.tokenizer.vocab_size), rel=0.02)
    assert losses[2] < losses[0]


def test_the_record_is_in_itself_consistent() -> None:
    steps = RECORD["steps"]
    assert [step for step, _ in RECORD["loss"]][-1] == steps
    assert RECORD["evaluations"][-1][0] == steps
    first = RECORD["first losses"]
    assert RECORD["loss"][0][1] <= first[0]
    for _, nats, bits in RECORD["evaluations"]:
        _, last_nats, last_bits = RECORD["evaluations"][-1]
        assert bits / nats == pytest.approx(last_bits / last_nats, rel=1e-3)
    for found in RECORD["bits per byte"].values():
        low, high = sorted((found["zh"], found["en"]))
        assert low < found["all"] < high
    assert RECORD["bits per byte"].keys() == {"model", *(f"order {n}" for n in SCRIPT.ORDERS)}
    assert RECORD["steps"] <= RECORD["planned steps"] == SCRIPT.STEPS


def test_the_page_that_shows_the_run_says_what_was_recorded() -> None:
    """Numbers in the prose of general/language_modeling: pages, parameters, passes, minutes, and who is ahead."""
    assert (RECORD["corpus"]["pages"], len(RECORD["corpus"]["held out"])) == (41, 6)
    assert 5.5e6 < RECORD["parameters"] < 6.5e6
    settings, bits = RECORD["settings"], {name: found["all"] for name, found in RECORD["bits per byte"].items()}
    passes = RECORD["steps"] * settings["batch_size"] * settings["length"] / RECORD["tokens"]
    assert passes == pytest.approx(2.5, abs=0.15)
    assert 11 * 60 < RECORD["seconds"] < 19 * 60
    assert RECORD["machine"]["threads"] == 2
    assert RECORD["corpus"]["bytes"]["train"] == pytest.approx(1.4e6, rel=0.03)
    assert bits["model"] / bits["order 6"] == pytest.approx(1.01, abs=0.005)
    assert bits["model"] < 0.7 * bits["order 3"]
    assert [round(bits[name], 2) for name in ("model", "order 3", "order 6")] == [2.04, 2.97, 2.02]
    found = [value for *_, value in RECORD["evaluations"]]
    assert found == sorted(found, reverse=True)  # still falling at the end
    assert [round(found[i], 1) for i in (0, -1)] == [3.4, 2.1]
    assert RECORD["evaluations"][-1][0] == RECORD["steps"] == 600


def test_bits_per_byte_are_counted_over_all_bytes() -> None:
    """A model that knows nothing of 256 bytes needs 8 bits; the n-gram model of one text is right about it."""
    held_out = ["abc文"]
    run = Pretraining(
        SCRIPT.Corpus(["xyz" * 30], held_out),
        PretrainConfig(steps=1, length=4, vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=1),
    )
    with torch.no_grad():
        for p in run.model.parameters():
            p.zero_()
    assert SCRIPT.of_model(run, held_out) == pytest.approx(math.log2(257))
    assert SCRIPT.of_ngrams(SCRIPT.Corpus(["abcabd" * 50], []), 6)(["abcabd" * 50]) < 0.5
    assert SCRIPT.of_ngrams(SCRIPT.Corpus(["abcabd" * 50], []), 3)(["é"]) > 6


def test_the_curve_is_the_mean_of_a_few_steps() -> None:
    history = SimpleNamespace(losses=[float(i) for i in range(25)])
    run = SimpleNamespace(trainer=SimpleNamespace(history=history))
    assert SCRIPT.curve(run) == [[10, 4.5], [20, 14.5], [25, 22.0]]
