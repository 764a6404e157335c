"""Paged memory, simulated: pages of a small fast memory are written back to a large slow one when room is needed.

An optimizer whose state is paged gives way where activations peak, and comes back page by page when it takes a step.
Here nothing is moved: the simulation counts what a device would move.
"""

from collections import OrderedDict
from collections.abc import Iterable

from llm_study.core.checks import check_at_least

__all__ = ["PagedMemory", "lru_reference"]


def lru_reference(accesses: Iterable[int], *, capacity: int) -> int:
    """Count how often a page is missing, when the page whose last use is longest ago makes room.

    A page is missing if, since it was last used, at least ``capacity`` different others were used; or if it is new.

    Args:
        accesses: pages in the order of their use.
        capacity: pages that fit.

    Returns:
        The number of pages that had to be brought in.

    Raises:
        ValueError: if ``capacity`` is below 1.

    References:
        Mattson et al. (1970), Evaluation techniques for storage hierarchies, IBM Systems Journal 9: stack distances.

    Example:
        >>> lru_reference([0, 1, 2, 0, 1, 2], capacity=2), lru_reference([0, 1, 2, 0, 1, 2], capacity=3)
        (6, 3)
    """
    check_at_least("capacity", capacity, 1)
    seen: list[int] = []
    missing = 0
    for page in accesses:
        since = set(seen[len(seen) - seen[::-1].index(page) :]) if page in seen else None
        missing += since is None or len(since) >= capacity
        seen.append(page)
    return missing


class PagedMemory:
    """A fast memory of a few pages in front of a slow one, with what is pinned and what may be written back.

    Args:
        capacity: pages that fit into the fast memory.

    Attributes:
        capacity: pages that fit.
        pinned: pages that are taken by what may not move, such as weights and activations.
        brought_in: pages that were copied from the slow memory since the start.
        written_back: pages that were copied to it.

    Raises:
        ValueError: if ``capacity`` is below 1.

    Example:
        >>> memory = PagedMemory(capacity=4)
        >>> memory.touch(["m", "v"])  # the state of an optimizer is brought in …
        >>> memory.pin(3)  # … and one page of it makes room for activations
        >>> memory.resident, memory.brought_in, memory.written_back
        (['v'], 2, 1)
        >>> memory.unpin(3)
        >>> memory.touch(["m", "v"])
        >>> memory.brought_in
        3
    """

    def __init__(self, capacity: int) -> None:
        check_at_least("capacity", capacity, 1)
        self.capacity = capacity
        self.pinned = self.brought_in = self.written_back = 0
        self._pages: OrderedDict[object, None] = OrderedDict()

    @property
    def resident(self) -> list[object]:
        """Pages that are in the fast memory, the one whose use is longest ago first."""
        return list(self._pages)

    def touch(self, pages: Iterable[object]) -> None:
        """Use pages one after the other: bring in those that are missing, each in place of the least recently used.

        Args:
            pages: names of pages.

        Raises:
            ValueError: if all of the fast memory is pinned.
        """
        for page in pages:
            if page not in self._pages:
                self._make_room(1)
                self.brought_in += 1
            self._pages[page] = None
            self._pages.move_to_end(page)

    def pin(self, count: int) -> None:
        """Take room for what may not move; pages that are in the way are written back.

        Args:
            count: how many pages it takes.

        Raises:
            ValueError: if it does not fit even when every page is written back: a device would be out of memory.
        """
        self._make_room(count)
        self.pinned += count

    def unpin(self, count: int) -> None:
        """Give back room that was pinned.

        Args:
            count: how many pages.

        Raises:
            ValueError: if fewer are pinned.
        """
        check_at_least("pinned pages", self.pinned, count)
        self.pinned -= count

    def _make_room(self, count: int) -> None:
        check_at_least("capacity", self.capacity, self.pinned + count, hint="out of memory, even with all paged out")
        while self.pinned + len(self._pages) + count > self.capacity:
            self._pages.popitem(last=False)
            self.written_back += 1
