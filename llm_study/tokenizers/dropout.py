"""BPE-dropout: merges that are forgotten at random, so that a word has many cuts under one table of merges."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

__all__ = ["bpe_dropout"]

_Symbol = TypeVar("_Symbol", str, bytes)


def bpe_dropout(
    symbols: Sequence[_Symbol], ranks: Mapping[tuple[_Symbol, _Symbol], int], *, p: float, rng: Random
) -> list[_Symbol]:
    """Merge the symbols of a word by their ranks, each possible merge being left out with probability ``p`` each time.

    In every round each place where a merge is possible is dropped on its own; of those that stay, the one of the lowest
    rank is merged, the leftmost of several. When a round leaves none, the word is done.

    Args:
        symbols: the characters or bytes of the word, one each.
        ranks: the place of each pair in the table of merges; lower is earlier.
        p: probability of leaving out: 0 is BPE itself, 1 makes no merge at all.
        rng: source of random numbers.

    Returns:
        The pieces; joined they are the word.

    Raises:
        ValueError: if ``p`` is no probability.

    References:
        Provilkov et al. (2020), arXiv:1910.13267, algorithm 1.

    Example:
        >>> ranks = {("u", "g"): 0, ("h", "ug"): 1}
        >>> bpe_dropout("hug", ranks, p=0.0, rng=Random(0))
        ['hug']
        >>> bpe_dropout("hug", ranks, p=1.0, rng=Random(0))
        ['h', 'u', 'g']
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, expected a probability, from 0 to 1")
    pieces = list(symbols)
    while True:
        pairs = ((pieces[i], pieces[i + 1]) for i in range(len(pieces) - 1))
        kept = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks and rng.random() >= p]
        if not kept:
            return pieces
        _, i = min(kept)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
