"""The recorded comparison of methods of fine-tuning: its beginning can be repeated, and the page says what it found."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_study.alignment.finetune import METHODS
from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
RECORD: dict[str, Any] = json.loads((DOCS / "data/finetuning.json").read_text("utf-8"))


SCRIPT = load(DOCS.parent / RECORD["script"])
FIGURE = load(DOCS / "figures/finetuning_methods.py")


def test_the_base_and_every_method_begin_as_they_were_recorded(tmp_path: Path) -> None:
    found = SCRIPT.first_losses(tmp_path)
    assert found.keys() == RECORD["first losses"].keys() == {"base", *METHODS}
    for name, losses in found.items():
        assert losses == pytest.approx(RECORD["first losses"][name], rel=1e-3)  # other threads add up in another order
    starts = [losses[0] for name, losses in found.items() if name not in ("base", "adalora")]  # AdaLoRA adds a penalty
    assert max(starts) == pytest.approx(min(starts), rel=1e-2)  # the same conversations first, and nearly the identity
    assert found["base"][0] == pytest.approx(math.log(508), rel=0.02)


def test_the_conversations_ask_for_facts_that_the_sentences_state_and_the_parts_share_none() -> None:
    parts = {part: [x[0]["content"] for x in SCRIPT.chats(part)] for part in ("train", "validation", "test")}
    assert {part: len(x) for part, x in parts.items()} == RECORD["conversations"]
    asked = [question for part in parts.values() for question in part]
    assert len(set(asked)) == len(asked) == len(SCRIPT.facts()) == 240
    corpus = SCRIPT.corpus()
    text = "".join(corpus.train)
    for part in parts:
        for question, answer in SCRIPT.chats(part):
            name, animal = question["content"].split()
            assert f"The {name} of the {animal} is {answer['content']}." in text
    assert "User" not in text
    assert not any(f"{name} {animal}" in text for name, animal in (x.split() for x in asked))  # in no such wording


def test_the_record_is_in_itself_consistent() -> None:
    assert RECORD["steps"] == RECORD["planned steps"] == SCRIPT.STEPS
    assert RECORD["methods"].keys() == METHODS.keys() == {*FIGURE.NAMES, "full"}
    assert sorted(name for group in FIGURE.GROUPS for name in group) == sorted(FIGURE.NAMES)
    for name, found in RECORD["methods"].items():
        assert {key: found[key] for key in SCRIPT.METHODS[name]} == SCRIPT.METHODS[name]
        rates, values = zip(*((run["learning rate"], run["validation"]) for run in found["runs"]), strict=True)
        first = rates.index(SCRIPT.rate(name, -1))
        assert list(rates) == [SCRIPT.rate(name, place - first - 1) for place in range(len(rates))]
        assert values[found["best"]] == min(values)
        assert 0 < found["best"] < len(rates) - 1 or len(rates) == SCRIPT.MOST
        for run in found["runs"]:
            assert [step for step, _ in run["test"]] == [*range(0, SCRIPT.STEPS + 1, SCRIPT.EVERY)]
        assert found["share"] == pytest.approx(found["trained"] / RECORD["base"]["parameters"], abs=1e-6)
        if name != "full":
            assert 0.008 <= found["share"] <= 0.012
    assert RECORD["methods"]["full"]["share"] == 1


def exact(part: str) -> dict[str, float]:
    return {name: found["exact"][part] for name, found in RECORD["methods"].items()}


def last(name: str) -> float:
    """Return the test loss at the end, at the learning rate that was chosen."""
    return FIGURE.curve(RECORD["methods"][name])[1][-1]


def test_the_page_that_shows_the_comparison_says_what_was_recorded() -> None:
    """Numbers in the prose of finetuning/lora_variants."""
    base, methods = RECORD["base"], RECORD["methods"]
    assert 1.0e6 < base["parameters"] < 1.1e6
    assert base["sentences"] == 1
    assert base["exact"] == {"train": 0, "test": 0}
    assert RECORD["conversations"] == {"train": 160, "validation": 40, "test": 40}
    assert (RECORD["steps"], RECORD["settings"]["batch_size"]) == (40, 16)
    assert RECORD["settings"]["targets"] == ["q_proj", "v_proj"]
    assert (methods["lora"]["rank"], methods["vera"]["rank"]) == (4, 1024)
    assert 1024 // base["settings"]["hidden_size"] == 7
    test, train = exact("test"), exact("train")
    best = {"adalora": 0.85, "pissa": 0.825, "lora": 0.8, "olora": 0.75, "dora": 0.725, "rslora": 0.725}
    assert {name: value for name, value in test.items() if value > 0.7} == best
    assert (round(train["full"], 2), test["full"]) == (0.99, 0.625)
    assert {name: value for name, value in test.items() if value < 0.45} == {"lora_fa": 0.425, "miss": 0.4}
    assert math.sqrt(0.8 * 0.2 / 40) == pytest.approx(0.06, abs=0.005)
    assert len(methods) == 17
    adapters = {name: found for name, found in methods.items() if name != "full"}
    assert sum(len(found["runs"]) > 3 for found in adapters.values()) == 11
    first = {name: min(run["validation"] for run in found["runs"][:3]) for name, found in adapters.items()}
    final = {name: found["runs"][found["best"]]["validation"] for name, found in adapters.items()}
    assert (round(first["pissa"], 2), sorted(first, key=first.__getitem__).index("pissa")) == (1.06, 14)
    assert (round(final["pissa"], 2), sorted(final, key=final.__getitem__).index("pissa")) == (0.47, 4)
    assert all(6.5 < FIGURE.curve(found)[1][0] < 7.5 for found in methods.values())
    assert sum(test[name] < train[name] for name in methods) == 16
    assert last("adalora") < last("lora") < last("full") < last("lokr")
