"""Batches as a pure function of the step: a run that is resumed reads what an undisturbed one would have read."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_ndim

__all__ = ["windows", "windows_per_epoch", "evaluation_windows", "seed_of"]


def seed_of(*parts: int | str) -> int:
    """Make one seed of several numbers or names, so that neighbors have nothing to do with each other.

    Args:
        parts: what the seed depends on, such as the seed of a run and a step.

    Returns:
        A number from 0 to ``2**63 - 1``, the same on every machine and in every version of Python.

    Example:
        >>> seed_of(0, 1), seed_of(1, 0)
        (3342184578159923290, 5176494549561833092)
    """
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def windows_per_epoch(n_ids: int, length: int) -> int:
    """Count the windows that one pass over a text gives.

    Args:
        n_ids: number of ids of the text, at least ``length + 1``: the last id of a window is a target only.
        length: number of ids that a window predicts.

    Returns:
        The number of windows, at least 1. Fewer than ``2 * length`` ids are left out of a pass, at the ends, which
        leaves room for another beginning in each pass.

    Raises:
        ValueError: if the text is too short for one window, or ``length`` is below 1.

    Example:
        >>> windows_per_epoch(9, 8), windows_per_epoch(1000, 8)
        (1, 124)
    """
    check_at_least("length", length, 1)
    check_at_least("number of ids", n_ids, length + 1, hint=f"a window of {length} needs one more: use more text")
    return max(1, (n_ids - length) // length)


def windows(ids: Tensor, *, length: int, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Cut the batch of one step out of a text, for a model that predicts the next id.

    The text is read in passes (epochs). Each pass cuts it into windows, side by side, from a beginning of its own, and
    reads them in an order of its own; both depend on seed and pass only. So no id is predicted twice in a pass, and the
    borders of windows are elsewhere in the next.

    Args:
        ids: ``(N,)`` the text.
        length: number ``T`` of ids that a window predicts.
        batch_size: number ``B`` of windows.
        seed: seed of the run.
        step: number of the step, from 0.

    Returns:
        ``(B, T)`` ids, and ``(B, T)`` targets, which are the ids that follow them.

    Raises:
        ValueError: if ``ids`` has more than one dimension or is too short, a size is below 1, or ``step`` is negative.

    Example:
        >>> x, y = windows(torch.arange(100), length=4, batch_size=2, seed=0, step=7)
        >>> x.shape, torch.equal(y, x + 1)
        (torch.Size([2, 4]), True)
    """
    check_ndim("ids", ids.shape, ("N",))
    check_at_least("batch_size", batch_size, 1)
    check_at_least("step", step, 0)
    n, N = windows_per_epoch(len(ids), length), len(ids)
    rows = range(step * batch_size, (step + 1) * batch_size)
    starts = torch.stack([_starts(N, length, seed, row // n)[row % n] for row in rows])
    both = ids[starts[:, None] + torch.arange(length + 1)]
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


@lru_cache(maxsize=4)
def _starts(n_ids: int, length: int, seed: int, epoch: int) -> Tensor:
    """Return where the windows of one pass begin, in the order in which they are read."""
    generator, n = torch.Generator().manual_seed(seed_of(seed, epoch)), windows_per_epoch(n_ids, length)
    first = torch.randint(n_ids - n * length, (1,), generator=generator)
    return first + length * torch.randperm(n, generator=generator)


def evaluation_windows(texts: Sequence[Sequence[int]], *, length: int, stride: int, end: int) -> tuple[Tensor, Tensor]:
    """Cut texts into windows such that each token is predicted once, with what stands before it in its own text.

    Args:
        texts: the ids of each text.
        length: number ``T`` of ids in a window.
        stride: by how much a window begins after the one before; below ``length`` windows overlap, and each token but
            the first ones of a text has ``length - stride`` tokens before it at least.
        end: id of the token that stands before each text, and fills short windows.

    Returns:
        ``(N, T)`` ids, and ``(N, T)`` targets, -100 where a token is predicted in another window or there is none.

    Raises:
        ValueError: if ``stride`` is not 1 to ``length``, or all texts are empty.

    Example:
        >>> ids, targets = evaluation_windows([[1, 2, 3, 4, 5], [6]], length=4, stride=2, end=0)
        >>> ids.tolist()
        [[0, 1, 2, 3], [1, 2, 3, 4], [0, 0, 0, 0]]
        >>> targets.tolist()
        [[1, 2, 3, 4], [-100, -100, -100, 5], [6, -100, -100, -100]]
    """
    if not 1 <= stride <= length:
        raise ValueError(f"stride is {stride}, expected 1 to {length}, the length of a window")
    inputs, targets = [], []
    for text in texts:
        row, done = [end, *text], 0
        while done < len(text):
            stop = min(max(done + stride, length), len(text))
            start, fill = max(stop - length, 0), length - min(length, stop)
            inputs.append([*row[start:stop], *[end] * fill])
            targets.append([*[-100] * (done - start), *text[done:stop], *[-100] * fill])
            done = stop
    if not inputs:
        raise ValueError(f"the {len(texts)} texts to evaluate on have 0 tokens, expected at least 1")
    return torch.tensor(inputs), torch.tensor(targets)
