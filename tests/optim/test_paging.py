"""Paged memory against a second formula, and its laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_study.optim.paging import PagedMemory, lru_reference

law = settings(max_examples=80, derandomize=True, deadline=None)
accesses = st.lists(st.integers(0, 6), max_size=40)


@given(pages=accesses, capacity=st.integers(1, 8))
@law
def test_pages_are_brought_in_as_stack_distances_say(pages: list[int], capacity: int) -> None:
    memory = PagedMemory(capacity)
    memory.touch(pages)
    assert memory.brought_in == lru_reference(pages, capacity=capacity)
    assert memory.brought_in - memory.written_back == len(memory.resident) <= capacity
    recent = list(dict.fromkeys(reversed(pages)))[:capacity]
    assert memory.resident == recent[::-1]


@given(pages=accesses, capacity=st.integers(1, 7))
@law
def test_more_memory_never_moves_more(pages: list[int], capacity: int) -> None:
    assert lru_reference(pages, capacity=capacity) >= lru_reference(pages, capacity=capacity + 1) >= len(set(pages))


@pytest.mark.parametrize("short", [0, 1, 3])
def test_a_peak_moves_exactly_what_is_in_its_way_and_it_comes_back(short: int) -> None:
    state = list("abcdef")
    memory = PagedMemory(capacity=10)
    memory.pin(2)
    memory.touch(state)
    for step in range(1, 4):
        memory.pin(2 + short)  # activations: 2 pages are free
        assert memory.resident == state[short:]
        memory.unpin(2 + short)
        memory.touch(state)
        missing = short if short else 0
        assert memory.written_back == step * missing
        assert memory.brought_in == len(state) + step * missing
    assert memory.pinned == 2


def test_reading_in_turn_more_than_fits_misses_every_page() -> None:
    memory = PagedMemory(capacity=4)
    for _ in range(3):
        memory.touch(range(5))
    assert memory.brought_in == 15


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0, expected at least 1"):
        PagedMemory(0)
    with pytest.raises(ValueError, match="capacity is 0, expected at least 1"):
        lru_reference([], capacity=0)
    memory = PagedMemory(4)
    with pytest.raises(ValueError, match="capacity is 4, expected at least 5: out of memory, even with all paged out"):
        memory.pin(5)
    assert memory.pinned == 0
    memory.pin(4)
    with pytest.raises(ValueError, match="capacity is 4, expected at least 5: out of memory"):
        memory.touch("a")
    with pytest.raises(ValueError, match="pinned pages is 4, expected at least 5"):
        memory.unpin(5)
