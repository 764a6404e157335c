"""What the captions of the chapter on caches say about its figures is what the figures draw."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return load(ROOT / "docs/figures/kv_cache.py")


def test_errors_of_eviction_fall_and_knowing_the_future_is_best(figures: ModuleType) -> None:
    errors = figures._eviction_errors([16, 64, 192])
    for policy in errors.values():
        assert policy == sorted(policy, reverse=True)
    for i in range(3):
        assert errors["StreamingLLM"][i] == max(row[i] for row in errors.values())
        assert errors[""][i] == min(row[i] for row in errors.values())


def test_keys_by_token_are_more_than_twice_as_wrong(figures: ModuleType) -> None:
    errors = figures._rounding_errors([2, 4, 8])
    for token, channel, values in zip(errors["token"], errors["channel"], errors["values"], strict=True):
        assert token > 2 * channel
        assert channel > values


def test_the_schedule_is_that_of_the_scheduler(figures: ModuleType) -> None:
    lengths, seats = [2, 9, 3, 2, 8, 1, 4, 3, 2], 3
    steps = figures._trace(lengths, seats)
    assert len(steps) == 12
    bars = figures._seats(steps, seats)
    assert [n for _name, _seat, _first, n in bars] == lengths
    taken = [(seat, t) for _name, seat, first, n in bars for t in range(first, first + n)]
    assert len(taken) == len(set(taken)) == sum(lengths)  # nobody sits on another's lap
