"""Unfreezing: what is frozen does not move, what joins begins afresh, and a resumed run is a run that never stopped."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_study.optim.first_order import AdamW
from llm_study.optim.groups import discriminative_groups
from llm_study.training.loop import Settings, Trainer
from llm_study.training.unfreezing import Unfreezing, gradual, probe_then_all

BLOCKS = ["0", "2", "4"]
EVERY = 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x.prod(-1, keepdim=True)


def loss(model: nn.Module, rows: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    return (model(rows[0]) - rows[1]).square().sum(), len(rows[0])


def trainer(
    model: nn.Sequential, plan: Callable[[int], int], steps: int, folder: Path | None = None, save_every: int = 0
) -> Trainer:
    optimizer = AdamW(discriminative_groups(model, BLOCKS, lr=0.02, weight_decay=0.1))
    settings = Settings(steps=steps, clip=None, save_every=save_every)
    prepare = Unfreezing(model, BLOCKS, plan)
    return Trainer(model, loss, batch, optimizer, settings=settings, prepare=prepare, folder=folder)


def by_hand(model: nn.Sequential, plan: Callable[[int], int], steps: int) -> None:
    """Train with an optimizer for each block, which knows only that block and begins when it joins."""
    optimizers: dict[int, torch.optim.Optimizer] = {}
    for step in range(steps):
        count = plan(step)
        for number in range(3 - count, 3):
            if number not in optimizers:
                block = model[2 * number]
                groups = [
                    {"params": [block.weight], "weight_decay": 0.1},
                    {"params": [block.bias], "weight_decay": 0.0},
                ]
                optimizers[number] = AdamW(groups, lr=0.02 / 2.6 ** (2 - number))
        x, y = batch(step)
        model.zero_grad()
        (model(x) - y).square().mean().backward()
        for number in range(3 - count, 3):
            optimizers[number].step()


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("plan", [partial(gradual, blocks=3, every=EVERY), partial(probe_then_all, blocks=3, probe=4)])
def test_the_loop_does_what_optimizers_of_their_own_do(plan: Callable[[int], int]) -> None:
    ours, hand = net(), net()
    trainer(ours, plan, 8).run()
    by_hand(hand, plan, 8)
    for a, b in zip(parameters(ours), parameters(hand), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_frozen_blocks_do_not_move_by_a_bit() -> None:
    model, start = net(), net()
    run = trainer(model, partial(gradual, blocks=3, every=EVERY), 9)
    for step in range(9):
        run.step()
        for number in range(3):
            same = torch.equal(model[2 * number].weight, start[2 * number].weight)
            assert same == (number < 2 - step // EVERY), (step, number)


def test_what_joins_has_taken_no_steps_before() -> None:
    model = net()
    run = trainer(model, partial(gradual, blocks=3, every=EVERY), 5)
    run.run()
    states = [run.optimizer.state.get(model[2 * number].weight, {}).get("step", 0) for number in range(3)]
    assert states == [0, 2, 5]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, stop: int) -> None:
    plan = partial(gradual, blocks=3, every=EVERY)
    whole = net()
    losses = trainer(whole, plan, 8).run().losses
    first = trainer(net(), plan, 8, tmp_path)
    for _ in range(stop):
        first.step()
    first.save()
    again = net()
    second = trainer(again, plan, 8, tmp_path)
    assert second.resume()
    assert second.run().losses == losses
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(again), strict=True))


@given(st.integers(0, 200), st.integers(1, 12), st.integers(1, 20))
def test_the_top_trains_first_and_one_block_joins_at_a_time(step: int, blocks: int, every: int) -> None:
    now, next_one = (gradual(s, blocks=blocks, every=every) for s in (step, step + 1))
    assert 1 <= now <= blocks
    assert next_one - now == (now < blocks and (step + 1) % every == 0)
    assert gradual(every * (blocks - 1), blocks=blocks, every=every) == blocks


def test_no_probe_is_plain_fine_tuning() -> None:
    assert [probe_then_all(step, blocks=5, probe=0) for step in range(3)] == [5, 5, 5]
    assert [probe_then_all(step, blocks=5, probe=2) for step in range(4)] == [1, 1, 5, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(gradual, -1, blocks=2, every=1), "step is -1, expected at least 0"),
        (partial(gradual, 0, blocks=0, every=1), "blocks is 0, expected at least 1"),
        (partial(gradual, 0, blocks=2, every=0), "every is 0, expected at least 1"),
        (partial(probe_then_all, 0, blocks=2, probe=-1), "probe is -1, expected at least 0"),
        (partial(probe_then_all, -1, blocks=2, probe=1), "step is -1, expected at least 0"),
        (partial(probe_then_all, 0, blocks=0, probe=1), "blocks is 0, expected at least 1"),
    ],
)
def test_numbers_without_a_sense(call: Callable[[], int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count", [-1, 4])
def test_a_plan_for_more_blocks_than_there_are(count: int) -> None:
    model = net()
    with pytest.raises(ValueError, match=f"the plan asks for {count} blocks at step 7, expected 0 to 3"):
        Unfreezing(model, BLOCKS, lambda step: count)(7)
    assert all(p.requires_grad for p in model.parameters())


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes, expected 1"):
        Unfreezing(net(), BLOCKS, lambda step: 1)(0)
