"""Batches are a function of seed and step, a pass reads nothing twice, and evaluation predicts every token once."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_study.data.batches import evaluation_windows, seed_of, windows, windows_per_epoch


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 3), st.integers(0, 2))
def test_a_pass_predicts_no_id_twice_and_leaves_out_less_than_two_windows(
    n: int, length: int, seed: int, epoch: int
) -> None:
    n = max(n, length + 1)
    per_epoch = windows_per_epoch(n, length)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    batches = [windows(torch.arange(n), length=length, batch_size=1, seed=seed, step=step) for step in steps]
    targets = torch.cat([y.flatten() for _, y in batches]).tolist()
    assert len(set(targets)) == len(targets)
    assert len(targets) > n - 1 - 2 * length
    for x, y in batches:
        assert torch.equal(x + 1, y)


def test_batches_are_rows_of_the_same_order_whatever_their_size() -> None:
    ids = torch.arange(1000)
    single = torch.cat([windows(ids, length=7, batch_size=1, seed=5, step=step)[0] for step in range(300)])
    for size in (2, 3, 50):  # 142 windows in a pass: batches reach from one into the next
        rows = [windows(ids, length=7, batch_size=size, seed=5, step=step)[0] for step in range(300 // size)]
        assert torch.equal(torch.cat(rows), single)


def test_seeds_and_passes_differ_in_order_and_in_borders() -> None:
    ids, n = torch.arange(1000), windows_per_epoch(1000, 7)

    def order(seed: int, epoch: int) -> list[int]:
        return windows(ids, length=7, batch_size=n, seed=seed, step=epoch)[0][:, 0].tolist()

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    assert len({min(o) for o in orders}) > 3  # passes begin elsewhere
    assert order(0, 1) != order(1, 0)
    assert all(o != sorted(o) for o in orders)


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, "rank", 1) == 7697478171810825748
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900


def test_bad_sizes_are_told() -> None:
    ids = torch.arange(8)
    with pytest.raises(ValueError, match="number of ids is 8, expected at least 9: a window of 8 needs one more"):
        windows(ids, length=8, batch_size=1, seed=0, step=0)
    with pytest.raises(ValueError, match="length is 0"):
        windows(ids, length=0, batch_size=1, seed=0, step=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        windows(ids, length=2, batch_size=0, seed=0, step=0)
    with pytest.raises(ValueError, match="step is -1"):
        windows(ids, length=2, batch_size=1, seed=0, step=-1)
    with pytest.raises(ValueError, match="expected 1 dimensions"):
        windows(ids[None], length=2, batch_size=1, seed=0, step=0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_evaluation_predicts_each_token_once_after_what_stands_before_it(
    sizes: list[int], length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    if not sum(sizes):
        sizes = [1]
    first = [1 + sum(sizes[:i]) for i in range(len(sizes))]
    texts = [list(range(a, a + n)) for a, n in zip(first, sizes, strict=True)]  # all ids differ
    ids, targets = evaluation_windows(texts, length=length, stride=stride, end=0)
    assert ids.shape == targets.shape == (len(ids), length)
    assert len(ids) == sum(1 + -(-max(n - length, 0) // stride) for n in sizes if n)  # no more than are needed
    counted = Counter(targets[targets >= 0].tolist())
    assert counted == Counter(id for text in texts for id in text)
    for row, y in zip(ids.tolist(), targets.tolist(), strict=True):
        for t, target in enumerate(y):
            if target >= 0:
                begins = target in first
                assert row[t] == (0 if begins else target - 1)
                context = row[: t + 1]
                before = target - next(a for a in reversed(first) if a <= target)
                assert len(context) >= min(before + 1, length - stride + 1)


def test_evaluation_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match="stride is 5, expected 1 to 4"):
        evaluation_windows([[1]], length=4, stride=5, end=0)
    with pytest.raises(ValueError, match="the 2 texts to evaluate on have 0 tokens"):
        evaluation_windows([[], []], length=4, stride=4, end=0)
