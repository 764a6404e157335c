"""A checkpoint is whole or not there; what is wrong with one is told, and the one before it stays."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm_study.training import checkpoint as C


def small(step: int, value: float = 1.0) -> C.Checkpoint:
    tensors = {"model": {"w": torch.full((3,), value)}, "history": {"losses": torch.arange(2.0, dtype=torch.float64)}}
    return C.Checkpoint(step, tensors, {"seed": 0, "evaluations": [[1, 0.1]]})


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3), "b": torch.randn(3, 2).T, "c": torch.zeros(0), "d": torch.randn(2).bfloat16()}
    written = C.Checkpoint(7, {"model": weights, "none": {}}, {"x": [1, None, "y"], "pi": 0.1 + 0.2})
    read = C.load_checkpoint(C.save_checkpoint(tmp_path, written))
    assert (read.step, read.state) == (7, written.state)
    assert read.tensors.keys() == written.tensors.keys()
    for name, x in weights.items():
        assert read.tensors["model"][name].dtype == x.dtype
        assert torch.equal(read.tensors["model"][name], x)


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    path = C.save_checkpoint(tmp_path, small(1))
    assert names(path) == ["history.safetensors", "model.safetensors", "state.json"]


def test_the_newest_are_kept_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 99_999_999, 100_000_000):
        C.save_checkpoint(tmp_path, small(step), keep=3)
    assert [p.name for p in C.checkpoints(tmp_path)] == ["step-00000010", "step-99999999", "step-100000000"]
    assert len(names(tmp_path)) == 3


def test_a_step_is_not_written_over(tmp_path: Path) -> None:
    C.save_checkpoint(tmp_path, small(1))
    with pytest.raises(ValueError, match="step-00000001: there is a checkpoint of this step already"):
        C.save_checkpoint(tmp_path, small(1, 2.0))
    assert C.load_checkpoint(C.checkpoints(tmp_path)[0]).tensors["model"]["w"][0] == 1
    with pytest.raises(ValueError, match="keep is 0"):
        C.save_checkpoint(tmp_path, small(2), keep=0)


@pytest.mark.parametrize("write", [0, 1, 2])
@pytest.mark.parametrize("half", [True, False])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int, half: bool
) -> None:
    good = C.save_checkpoint(tmp_path, small(1))
    real, count = C._write, iter(range(9))

    def failing(file: Path, data: bytes) -> None:
        if next(count) == write:
            if half:
                file.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(C, "_write", failing)
    with pytest.raises(OSError, match="step-00000002: cannot be written: No space left on device; the last good") as e:
        C.save_checkpoint(tmp_path, small(2), keep=1)
    assert e.value.errno == errno.ENOSPC
    assert str(good) in str(e.value)
    assert names(tmp_path) == ["step-00000001"]
    assert C.load_checkpoint(good).step == 1
    monkeypatch.undo()
    C.save_checkpoint(tmp_path, small(2), keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(C, "_write", failing)
    with pytest.raises(OSError, match="there is no checkpoint before it"):
        C.save_checkpoint(tmp_path / "new", small(2))
    assert names(tmp_path / "new") == []


def test_what_a_killed_process_left_is_removed_and_never_read(tmp_path: Path) -> None:
    good = C.save_checkpoint(tmp_path, small(1))
    shutil.copytree(good, tmp_path / ".step-00000002.tmp")
    shutil.copytree(good, tmp_path / ".step-00000000.old")
    (tmp_path / "step-notes").mkdir()
    assert C.checkpoints(tmp_path) == [good]
    C.save_checkpoint(tmp_path, small(2))
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-notes"]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda p: os.truncate(p / "model.safetensors", 20), r"model.safetensors: cut short: has 20 bytes"),
    "empty": (lambda p: os.truncate(p / "history.safetensors", 0), r"history.safetensors: cut short: has 0 bytes"),
    "longer": (
        lambda p: (p / "model.safetensors").open("ab").write(b"x"),
        r"model.safetensors: changed: has \d+ bytes",
    ),
    "a byte": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-1] + b"\x01"),
        r"model.safetensors: changed: its sha256 is",
    ),
    "missing": (lambda p: (p / "model.safetensors").unlink(), r"model.safetensors: there is no such file, which state"),
    "no state": (lambda p: (p / "state.json").unlink(), r"state.json: there is no such file"),
    "half a state": (lambda p: os.truncate(p / "state.json", 30), r"state.json: no JSON"),
    "another state": (lambda p: (p / "state.json").write_text("{}"), r"state.json: damaged: 'step'"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_told_with_the_way_out(tmp_path: Path, how: str) -> None:
    spoil, message = DAMAGE[how]
    before = C.save_checkpoint(tmp_path, small(1))
    bad = C.save_checkpoint(tmp_path, small(2))
    spoil(bad)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        C.load_checkpoint(bad)
    assert str(error.value).endswith(f"; remove the folder {bad} to go on from step-00000001")
    assert C.load_checkpoint(before).step == 1
    shutil.rmtree(before)
    with pytest.raises((ValueError, FileNotFoundError), match=r"to begin again$"):
        C.load_checkpoint(bad)


def test_another_run_is_told_by_name_and_both_values() -> None:
    then = {"seed": 0, "text": "a", "clip": None}
    C.check_same_run(then, dict(reversed(then.items())), source="x")
    for now, message in [
        ({**then, "seed": 1}, "x: seed was 0 and is now 1"),
        ({**then, "clip": 1.0}, "x: clip was None and is now 1.0"),
        ({"seed": 0, "text": "a"}, "x: clip was None and is now not set"),
        ({**then, "new": 3}, "x: new was not set and is now 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            C.check_same_run(then, now, source="x")


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "plain SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
    "NAdam": lambda p: torch.optim.NAdam([{"params": p[:1]}, {"params": p[1:], "lr": 0.02}], 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], numbers: range) -> None:
        for i in numbers:
            for p in parameters:
                p.grad = torch.sin(p.detach() * 3 + i)
            optimizer.step()

    def fresh() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))]

    whole, first = fresh(), fresh()
    steps(OPTIMIZERS[name](whole), whole, range(6))
    optimizer = OPTIMIZERS[name](first)
    steps(optimizer, first, range(3))
    tensors, rest = C.optimizer_to_parts(optimizer)
    rest = json.loads(json.dumps(rest))
    again = [nn.Parameter(p.detach().clone()) for p in first]
    optimizer = OPTIMIZERS[name](again)
    C.optimizer_from_parts(optimizer, {key: x.clone() for key, x in tensors.items()}, rest)
    steps(optimizer, again, range(3, 6))
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a, b)


def test_a_model_is_put_back_whole_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[2].weight
    tensors = {name: x.clone() for name, x in C.model_tensors(model).items()}
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked"} <= tensors.keys()
    with torch.no_grad():
        for x in model.state_dict().values():
            x.zero_()
    bad: list[tuple[dict[str, Any], str]] = [
        ({name: x for name, x in tensors.items() if name != "2.bias"}, r"f: 2.bias is missing, expected shape \(3,\)"),
        ({**tensors, "3.bias": torch.ones(1)}, r"f: has 3.bias of shape \(1,\), which the model has not"),
        ({**tensors, "0.weight": torch.ones(3, 1)}, r"f: 0.weight has shape \(3, 1\), expected \(3, 2\)"),
    ]
    for wrong, message in bad:
        with pytest.raises(ValueError, match=message):
            C.load_model(model, wrong, source="f")
        assert not any(x.any() for x in model.state_dict().values())
    C.load_model(model, tensors)
    assert all(torch.equal(x, tensors[name]) for name, x in model.state_dict().items())


def test_shared_tensors_are_written_once() -> None:
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    b.weight = a.weight
    assert [*C.model_tensors(nn.Sequential(a, b))] == ["0.weight"]
    C.load_model(nn.Sequential(a, b), {"0.weight": torch.eye(3)})
    assert torch.equal(b.weight, torch.eye(3))
