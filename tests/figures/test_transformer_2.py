"""The recorded training can be repeated, and the figures show what the chapter says of them."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from llm_study.nn.block import PostNormResidual, PreNormResidual
from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    return load(DOCS / "figures" / f"{name}.py")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((DOCS / "data/transformer_training.json").read_text("utf-8"))


@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_training_begins_as_recorded(record: dict, task: str) -> None:
    module = script("record_transformer_training")
    steps = module.EVERY
    losses, accuracies = module.train(task, steps)
    assert losses[0] == pytest.approx(record["runs"][task]["loss"][0], abs=2e-4)
    assert losses == pytest.approx(record["runs"][task]["loss"][:steps], rel=0.02)
    assert accuracies == pytest.approx(record["runs"][task]["accuracy"][:1], abs=0.02)


def test_the_record_is_of_the_script_of_today(record: dict) -> None:
    module = script("record_transformer_training")
    assert record["sizes"] == module.SIZES
    assert [record["steps"], record["every"], record["batch"], record["held_out"]] == [
        module.STEPS,
        module.EVERY,
        module.BATCH,
        module.HELD_OUT,
    ]
    assert record["runs"].keys() == set(module.TASKS)
    for run in record["runs"].values():
        assert len(run["loss"]) == module.STEPS
        assert len(run["accuracy"]) == module.STEPS // module.EVERY


def test_both_tasks_are_learned(record: dict) -> None:
    for run in record["runs"].values():
        assert run["accuracy"][-1] > 0.99
        assert run["loss"][-1] < 0.01 < 3 < run["loss"][0]


def test_reversing_is_reversing_and_held_out_is_held_out() -> None:
    module = script("record_transformer_training")
    for task in module.TASKS:
        seen = {}
        for held_out in (False, True):
            generator = module.torch.Generator().manual_seed(0)
            source, real, target = module.batch(task, 200, generator, held_out=held_out)
            seen[held_out] = {tuple(row) for row in source.tolist()}
            for row, mask, answer in zip(source, real, target, strict=True):
                digits = row[mask].tolist()
                expected = [*(digits if task == "copy" else digits[::-1]), module.END]
                assert answer.tolist() == expected + [module.PAD] * (len(answer) - len(expected))
        assert not seen[False] & seen[True]


def test_gradient_of_the_last_layer_falls_with_depth_in_pre_norm_only() -> None:
    module = script("transformer_2")

    def last(residual: module.Residual, depth: int) -> float:
        return sum(module.gradient_norms(residual, depth, seed)[-1] for seed in range(4)) / 4

    assert last(PostNormResidual, 16) > last(PostNormResidual, 2)
    assert last(PreNormResidual, 16) / last(PreNormResidual, 2) == pytest.approx((3 / 17) ** 0.5, abs=0.12)
