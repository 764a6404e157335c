"""Recorded runs say how they were made, and their beginning can be repeated."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {"model_atlas", "model_growth", "timeline"}
"""Published facts, not runs of our own: test_lm_basics.py and test_model_atlas.py ask for the source of each."""
RECORDS = sorted(path for path in (DOCS / "data").glob("*.json") if path.stem not in TABLES)


def script_of(record: dict) -> ModuleType:
    return load(DOCS.parent / record["script"])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_it_was_made(path):
    record = json.loads(path.read_text("utf-8"))
    assert record.keys() >= {"script", "seed", "versions", "commit", "machine"}
    assert record["versions"].keys() >= {"llm_study", "torch", "python"}
    assert len(record["commit"]) == 40
    assert record["seed"] == script_of(record).SEED


def test_attention_time_was_measured_on_the_functions_of_today():
    record = json.loads((DOCS / "data/attention_time.json").read_text("utf-8"))
    script = script_of(record)
    assert record["sizes"] == script.SIZES
    assert record["lengths"] == script.LENGTHS
    for length, checksum in record["checksums"].items():
        outputs = script.outputs(int(length))
        assert outputs.keys() == record["milliseconds"].keys()
        reference = outputs["attention_reference"]
        assert reference.abs().sum().item() == pytest.approx(checksum, rel=1e-5)
        for output in outputs.values():
            torch.testing.assert_close(output, reference, rtol=1e-5, atol=1e-5)


def test_measuring_times_every_function_once_per_length():
    script = script_of({"script": "docs/figures/record_attention_time.py"})
    times = script.measure(16)
    assert times.keys() == script.functions(16).keys()
    assert all(milliseconds > 0 for milliseconds in times.values())


def test_ngram_models_still_give_what_was_recorded():
    record = json.loads((DOCS / "data/ngrams.json").read_text("utf-8"))
    script = script_of(record)
    assert record["orders"] == script.ORDERS
    assert record["bits per byte"].keys() == script.METHODS.keys()
    assert script.probe() == record["probe"]
    assert record["bytes"].keys() == {"train", "held out"}


def test_the_two_laws_are_counted_by_word():
    script = script_of({"script": "docs/figures/record_ngrams.py"})
    counted = script.laws("猫 追 猫，cat 猫 3 dog")
    assert counted["ranks"] == [[1, 3], [2, 1], [3, 1], [4, 1]]
    assert counted["growth"] == [[6, 4]]
    shares, distinct = script.unseen([b"abab"], [b"abc"])
    assert (shares[:3], distinct[:3]) == ([round(1 / 3, 4)] * 3, [2, 3, 4])
