"""Schedules equal those of transformers at every step; clipping and averages of the weights equal torch's."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import optimization as theirs

from llm_study.optim import schedule as ours
from llm_study.optim.stability import EMA, adaptive_clip, clip_grad_norm, clip_grad_value
from tests.parity.closeness import assert_close

TOTAL, WARMUP, DECAY = 57, 7, 19


def rates(
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler], steps: int = TOTAL, lr: float = 1.0
) -> list[float]:
    """Return the learning rate of every step up to ``total`` that a scheduler gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, seen = scheduler(optimizer), []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


PAIRS = {
    "constant": (
        partial(ours.constant, warmup=WARMUP),
        partial(theirs.get_constant_schedule_with_warmup, num_warmup_steps=WARMUP),
    ),
    "linear": (
        partial(ours.linear, total=TOTAL, warmup=WARMUP),
        partial(theirs.get_linear_schedule_with_warmup, num_warmup_steps=WARMUP, num_training_steps=TOTAL),
    ),
    "cosine": (
        partial(ours.cosine, total=TOTAL, warmup=WARMUP),
        partial(theirs.get_cosine_schedule_with_warmup, num_warmup_steps=WARMUP, num_training_steps=TOTAL),
    ),
    "cosine with a floor": (
        partial(ours.cosine, total=TOTAL, warmup=WARMUP, floor=0.1),
        partial(
            theirs.get_cosine_with_min_lr_schedule_with_warmup,
            num_warmup_steps=WARMUP,
            num_training_steps=TOTAL,
            min_lr_rate=0.1,
        ),
    ),
    "cosine with restarts": (
        partial(ours.cosine_restarts, total=TOTAL, warmup=WARMUP, cycles=3),
        partial(
            theirs.get_cosine_with_hard_restarts_schedule_with_warmup,
            num_warmup_steps=WARMUP,
            num_training_steps=TOTAL,
            num_cycles=3,
        ),
    ),
    "inverse square root": (
        partial(ours.inverse_sqrt, warmup=WARMUP),
        partial(theirs.get_inverse_sqrt_schedule, num_warmup_steps=WARMUP),
    ),
    "inverse square root, time scale": (
        partial(ours.inverse_sqrt, warmup=WARMUP, timescale=11),
        partial(theirs.get_inverse_sqrt_schedule, num_warmup_steps=WARMUP, timescale=11),
    ),
    "polynomial": (
        partial(ours.polynomial, total=TOTAL, warmup=WARMUP, power=2.5, floor=0.05),
        partial(
            theirs.get_polynomial_decay_schedule_with_warmup,
            num_warmup_steps=WARMUP,
            num_training_steps=TOTAL,
            power=2.5,
            lr_end=0.05,
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_matches_transformers(name: str) -> None:
    factor, scheduler = PAIRS[name]
    assert rates(lambda optimizer: LambdaLR(optimizer, factor)) == rates(scheduler)


SHAPES = {"linear": ours.linear_decay, "cosine": ours.cosine_decay, "1-sqrt": ours.sqrt_decay}


@pytest.mark.parametrize("name", SHAPES)
def test_wsd_matches_transformers(name: str) -> None:
    factor = partial(ours.wsd, total=TOTAL, warmup=WARMUP, decay=DECAY, shape=SHAPES[name])
    scheduler = partial(
        theirs.get_wsd_schedule,
        num_warmup_steps=WARMUP,
        num_decay_steps=DECAY,
        num_training_steps=TOTAL,
        decay_type=name,
    )
    assert rates(lambda optimizer: LambdaLR(optimizer, factor)) == rates(scheduler)
    # with a floor, theirs begins the warmup at the floor, ours at 0
    with_floor = rates(partial(scheduler, min_lr_ratio=0.2))
    assert rates(lambda optimizer: LambdaLR(optimizer, partial(factor, floor=0.2)))[WARMUP:] == with_floor[WARMUP:]
    assert with_floor[0] == 0.2


@settings(max_examples=50, deadline=None)
@given(total=st.integers(2, 200), share=st.floats(0, 0.99), lr=st.floats(1e-6, 10))
def test_any_length_and_any_learning_rate(total: int, share: float, lr: float) -> None:
    warmup = int(share * total)
    for factor, scheduler in (
        (ours.linear, theirs.get_linear_schedule_with_warmup),
        (ours.cosine, theirs.get_cosine_schedule_with_warmup),
    ):
        mine = partial(factor, total=total, warmup=warmup)
        expected = partial(scheduler, num_warmup_steps=warmup, num_training_steps=total)
        assert rates(lambda o, f=mine: LambdaLR(o, f), total, lr) == rates(expected, total, lr)


@pytest.mark.parametrize("growth", [1, 2, 3])
def test_warm_restarts_match_torch(growth: int) -> None:
    factor = partial(ours.warm_restarts, period=5, growth=growth, floor=0.1)
    expected = rates(lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 5, growth, eta_min=0.1))
    torch.testing.assert_close(
        rates(lambda optimizer: LambdaLR(optimizer, factor)), expected, rtol=0, atol=1e-15, check_dtype=False
    )


def with_gradients(dtype: torch.dtype, scale: float = 1.0) -> list[nn.Parameter]:
    """Return parameters of several shapes with random gradients; one has none."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((4, 3), (5,), (), (2, 2))
    ]
    for p in parameters[:-1]:
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(dtype)
    return parameters


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 100.0])
def test_clipping_by_norm_matches_torch(dtype: torch.dtype, max_norm: float) -> None:
    mine, expected = with_gradients(dtype), with_gradients(dtype)
    norm = clip_grad_norm(iter(mine), max_norm)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(expected, max_norm))
    assert mine[-1].grad is None
    assert all(torch.equal(a, b) for a, b in zip(gradients(mine), gradients(expected), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clipping_in_half_precision_is_that_of_float32_rounded_once(dtype: torch.dtype) -> None:
    mine = with_gradients(dtype)
    expected = [nn.Parameter(p.detach().float()) for p in mine]
    for p, q in zip(mine, expected, strict=True):
        q.grad = None if p.grad is None else p.grad.float()
    norm = clip_grad_norm(mine, 0.5)
    assert_close(norm, torch.nn.utils.clip_grad_norm_(expected, 0.5))
    for a, b in zip(gradients(mine), gradients(expected), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clipping_by_value_matches_torch(dtype: torch.dtype) -> None:
    mine, expected = with_gradients(dtype), with_gradients(dtype)
    clip_grad_value(mine, 0.3)
    torch.nn.utils.clip_grad_value_(expected, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(gradients(mine), gradients(expected), strict=True))


def test_adaptive_clipping_is_torch_renorm_of_each_row() -> None:
    mine = with_gradients(torch.float64, 10.0)
    before = [g.clone() for g in gradients(mine)]
    adaptive_clip(mine, 0.1, eps=1e-3)
    for p, g, old in zip(mine, gradients(mine), before, strict=False):
        rows, norms = (old, p.detach().norm(dim=1)) if p.ndim > 1 else (old.reshape(1, -1), p.detach().norm()[None])
        limits = (0.1 * norms.clamp(min=1e-3)).tolist()
        expected = [torch.renorm(row[None], 2, 0, limit)[0] for row, limit in zip(rows, limits, strict=True)]
        torch.testing.assert_close(g.reshape(rows.shape), torch.stack(expected), rtol=1e-6, atol=0)  # renorm adds 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_ema_matches_torch(dtype: torch.dtype, decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)
    theirs_average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs_average.update_parameters(model)  # the first call copies
    mine = EMA(model, decay)
    for _ in range(5):
        for p in model.parameters():
            nn.init.normal_(p)
        mine.update()
        theirs_average.update_parameters(model)
    for name, p in theirs_average.module.named_parameters():
        assert torch.equal(mine.average[name], p)


def test_the_plain_average_matches_torch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    expected, mine = AveragedModel(model), EMA(model, lambda n: 1 - 1 / n)
    for _ in range(5):
        for p in model.parameters():
            nn.init.normal_(p)
        mine.update()
        expected.update_parameters(model)
    for name, p in expected.module.named_parameters():
        assert_close(mine.average[name], p.detach())
