"""Two processes train to the losses of one, each with all parameters (DDP) or with pieces of them (FSDP2)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_study.training.distributed import World, connect, gather, in_pieces, rows, sums, whole
from tests.scripts import load, run, torchrun

HERE = Path(__file__).parent
TWO = load(HERE / "two_processes.py")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what two processes found."""
    folder = tmp_path_factory.mktemp("two")
    run(*torchrun(2), HERE / "two_processes.py", folder)
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone() -> Any:
    """Return the same run in one process."""
    run = TWO.trainer(World())
    run.run()
    return run


@pytest.mark.parametrize("how", ["ddp", "ddp in pieces", "fsdp", "fsdp in pieces"])
def test_two_processes_train_to_the_losses_of_one(outcome: dict[str, Any], alone: Any, how: str) -> None:
    assert outcome["size"] == 2
    assert outcome[how]["losses"] == pytest.approx(alone.history.losses, rel=1e-6)
    assert alone.history.losses[0] - alone.history.losses[-1] > 0.1
    found, expected = outcome[how]["evaluations"], alone.history.evaluations
    assert [step for step, _ in found] == [step for step, _ in expected] == [3, 6]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    weights = {name: x.double().sum().item() for name, x in alone.model.named_parameters()}
    assert outcome[how]["weights"] == pytest.approx(weights, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_go_on_to_the_same_losses(outcome: dict[str, Any], how: str) -> None:
    assert outcome[how]["resumed"]
    assert outcome[how]["again"] == outcome[how]["losses"]


def test_each_process_holds_half_of_the_parameters(outcome: dict[str, Any]) -> None:
    assert outcome["share of a process"] == pytest.approx(0.5, abs=0.02)


def test_the_rows_of_a_batch_are_shared_out() -> None:
    x, y = torch.arange(12), torch.arange(24).view(12, 2)
    parts = [rows((x, y), i, 4) for i in range(4)]
    assert torch.equal(torch.cat([a for a, _ in parts]), x)
    assert torch.equal(torch.cat([b for _, b in parts]), y)
    with pytest.raises(ValueError, match="= 5 does not divide rows of the batch = 12"):
        rows((x, y), 0, 5)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes run on this machine, which has 1 of the GPUs.*CUDA_VISIBLE"):
        connect().__enter__()


def test_one_process_alone_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connect() as world:
        assert (world.rank, world.size) == (0, 1)
        assert not torch.distributed.is_initialized()
    x = torch.arange(3.0)
    assert sums([1.5, 2.0], world) == [1.5, 2.0]
    assert torch.equal(gather(x, world)[0], x)
    assert whole(x) is x
    assert in_pieces(x, x) is x
