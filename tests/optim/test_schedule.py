"""Schedules: what their formulas promise, beyond the parity with transformers."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from llm_study.optim.schedule import (
    constant,
    cosine,
    cosine_decay,
    cosine_restarts,
    inverse_sqrt,
    linear,
    linear_decay,
    noam,
    polynomial,
    slanted_triangular,
    sqrt_decay,
    warm_restarts,
    wsd,
)

FINITE: list[Callable[..., float]] = [
    linear,
    partial(polynomial, power=2.0),
    cosine,
    partial(cosine_restarts, cycles=2),
    partial(wsd, decay=0),
    partial(wsd, decay=3),
    partial(wsd, decay=3, shape=sqrt_decay),
    partial(wsd, decay=3, shape=cosine_decay),
]


@pytest.mark.parametrize("schedule", FINITE)
@given(data=st.data())
def test_every_schedule_rises_in_a_line_ends_at_its_floor_and_stays(
    schedule: Callable[..., float], data: st.DataObject
) -> None:
    total = data.draw(st.integers(3, 100))
    warmup = data.draw(st.integers(0, total - 3))
    floor = data.draw(st.floats(0, 1))
    factors = [schedule(step, total=total, warmup=warmup, floor=floor) for step in range(total + 5)]
    assert factors[:warmup] == [step / warmup for step in range(warmup)]
    assert factors[warmup] == pytest.approx(1)
    assert factors[total:] == [floor] * 5
    assert all(floor - 1e-12 <= factor <= 1 + 1e-12 for factor in factors[warmup:])


@pytest.mark.parametrize("schedule", [linear, partial(polynomial, power=0.5), cosine, partial(wsd, decay=30)])
def test_after_the_warmup_no_decay_ever_rises(schedule: Callable[..., float]) -> None:
    factors = [schedule(step, total=60, warmup=10, floor=0.1) for step in range(10, 65)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("shape", [linear_decay, cosine_decay, sqrt_decay])
def test_shapes_of_decay_go_from_one_to_zero(shape: Callable[[float], float]) -> None:
    assert (shape(0.0), shape(1.0)) == (1.0, 0.0)


def test_polynomial_of_power_one_is_linear_and_a_long_decay_too() -> None:
    for step in range(32):
        line = linear(step, total=29, warmup=5, floor=0.2)
        assert polynomial(step, total=29, warmup=5, floor=0.2, power=1.0) == pytest.approx(line, abs=1e-15)
        assert wsd(step, total=29, warmup=5, decay=24, floor=0.2) == pytest.approx(line, abs=1e-15)


def test_wsd_does_not_know_its_total_before_the_decay() -> None:
    early = [wsd(step, total=100, warmup=10, decay=20) for step in range(80)]
    assert early == [wsd(step, total=1000, warmup=10, decay=20) for step in range(80)]
    assert cosine(50, total=100, warmup=10) != cosine(50, total=1000, warmup=10)


def test_noam_is_the_equation_of_the_paper() -> None:
    for step in range(1, 50):
        expected = 512**-0.5 * min(step**-0.5, step * 8**-1.5)
        assert noam(step, d_model=512, warmup=8) == pytest.approx(expected, rel=1e-14)
    assert noam(0, d_model=512, warmup=8) == 0.0


def test_inverse_sqrt_is_continuous_and_falls_as_the_root() -> None:
    assert inverse_sqrt(8, warmup=8) == 1.0
    assert inverse_sqrt(32, warmup=8) == 0.5
    assert inverse_sqrt(0, warmup=0, timescale=3) == 1.0
    assert inverse_sqrt(9, warmup=0, timescale=3) == 0.5
    assert inverse_sqrt(5 + 9, warmup=5, timescale=3) == 0.5


def test_restarts_jump_back_to_one() -> None:
    assert [cosine_restarts(step, total=10, warmup=1, cycles=3) for step in (1, 4, 7, 10)] == [1.0, 1.0, 1.0, 0.0]
    assert [step for step in range(40) if warm_restarts(step, period=3, growth=2) == 1.0] == [0, 3, 9, 21]
    assert warm_restarts(2, period=3, floor=0.2) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(2 * math.pi / 3)))


def test_a_resumed_run_sees_the_same_learning_rates() -> None:
    def scheduler(last: int = -1) -> LambdaLR:
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 0.5}], lr=0.5)
        return LambdaLR(optimizer, partial(cosine, total=20, warmup=4), last_epoch=last)

    whole, rates = scheduler(), []
    for _ in range(20):
        rates += whole.get_last_lr()
        whole.optimizer.step()
        whole.step()
    resumed = scheduler(last=11)
    assert resumed.get_last_lr() == rates[12:13]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant(-1), "step is -1, expected at least 0: steps count from 0"),
        (lambda: constant(0, warmup=-2), "warmup is -2, expected at least 0"),
        (lambda: linear(0, total=10, warmup=11), "warmup is 11, expected at most total = 10"),
        (lambda: cosine(0, total=0, warmup=1), "warmup is 1, expected at most total = 0"),
        (lambda: cosine(0, total=10, floor=1.5), r"floor is 1.5, expected a factor from 0 to 1"),
        (lambda: cosine(0, total=10, floor=math.nan), "floor is nan"),
        (lambda: polynomial(0, total=10, power=0.0), "power is 0.0, expected more than 0"),
        (lambda: cosine_restarts(0, total=10, cycles=0), "cycles is 0, expected at least 1"),
        (lambda: warm_restarts(0, period=0), "period is 0, expected at least 1"),
        (lambda: warm_restarts(0, period=1, growth=0), "growth is 0, expected at least 1"),
        (lambda: warm_restarts(-3, period=1), "step is -3"),
        (lambda: inverse_sqrt(5, warmup=0), "timescale is 0, expected at least 1: warmup is 0; without a warmup"),
        (lambda: noam(5, d_model=0, warmup=4), "d_model is 0, expected at least 1"),
        (lambda: noam(5, d_model=4, warmup=0), "warmup is 0, expected at least 1"),
        (lambda: wsd(0, total=10, warmup=6, decay=5), r"warmup \+ decay is 6 \+ 5 = 11, expected at most total = 10"),
        (lambda: wsd(0, total=10, warmup=6, decay=-1), "decay is -1, expected at least 0"),
        (lambda: wsd(0, total=-1, warmup=0, decay=0), "warmup is 0, expected at most total = -1"),
    ],
)
def test_wrong_numbers_are_named(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def stlr(step: int, total: int, cut_frac: float, ratio: float) -> float:
    """The equation of the paper, for a total whose share is a whole number of steps."""
    cut = math.floor(total * cut_frac)
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(("total", "cut", "ratio"), [(100, 0.1, 32.0), (40, 0.25, 4.0), (64, 0.5, 1.0)])
def test_slanted_triangular_is_the_equation_of_the_paper(total: int, cut: float, ratio: float) -> None:
    for step in range(total + 1):
        found = slanted_triangular(step, total=total, cut=cut, ratio=ratio)
        assert found == pytest.approx(stlr(step, total, cut, ratio), abs=1e-14)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1, 100))
def test_slanted_triangular_rises_to_its_peak_and_ends_at_its_ratio(total: int, cut: float, ratio: float) -> None:
    factors = [slanted_triangular(step, total=total, cut=cut, ratio=ratio) for step in range(total + 3)]
    peak = math.floor(total * cut)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if peak < total:
        assert factors[peak] == pytest.approx(1)
    assert factors[total:] == [1 / ratio] * 3
    assert all(1 / ratio - 1e-12 <= factor <= 1 + 1e-12 for factor in factors)


def test_the_denominator_of_the_paper_is_too_short_where_the_share_is_no_whole_number() -> None:
    assert stlr(14, 15, 0.1, 32.0) < 0
    assert slanted_triangular(14, total=15) > 1 / 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total": 0}, "total is 0, expected at least 1"),
        ({"total": 9, "cut": 1.5}, "cut is 1.5, expected a share from 0 to 1"),
        ({"total": 9, "cut": -0.1}, "cut is -0.1"),
        ({"total": 9, "ratio": 0.5}, "ratio is 0.5, expected at least 1"),
    ],
)
def test_a_slanted_triangle_without_a_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slanted_triangular(0, **options)
