"""BPE-dropout: none is BPE, full gives characters, and between them the probabilities are those of a list."""

import itertools
import math
import random
from collections import Counter

import pytest

from llm_study.tokenizers.dropout import bpe_dropout

RANKS = {("a", "b"): 0, ("b", "a"): 1, ("ab", "a"): 2, ("ab", "ab"): 3, ("aba", "b"): 4}


def probabilities(pieces: tuple[str, ...], p: float) -> Counter[tuple[str, ...]]:
    """Return the probability of each result, from all patterns of merges that are left out in each round."""
    places = [i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) in RANKS]
    out: Counter[tuple[str, ...]] = Counter()
    for kept in itertools.product([True, False], repeat=len(places)):
        weight = math.prod(1 - p if k else p for k in kept)
        alive = [(RANKS[pieces[i], pieces[i + 1]], i) for i, k in zip(places, kept, strict=True) if k]
        if not alive:
            out[pieces] += weight
            continue
        i = min(alive)[1]
        for result, q in probabilities((*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]), p).items():
            out[result] += weight * q
    return out


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_cuts_have_their_probabilities(p: float) -> None:
    expected = probabilities(tuple("abab"), p)
    assert sum(expected.values()) == pytest.approx(1)
    n, rng = 20_000, random.Random(0)
    drawn = Counter(tuple(bpe_dropout("abab", RANKS, p=p, rng=rng)) for _ in range(n))
    assert set(drawn) <= set(expected)
    chi = sum((drawn[cut] - n * q) ** 2 / (n * q) for cut, q in expected.items())
    k = len(expected) - 1
    assert chi < k + 4 * math.sqrt(2 * k)


def test_no_and_full_dropout() -> None:
    assert bpe_dropout("ababa", RANKS, p=0.0, rng=random.Random(0)) == ["ab", "aba"]
    assert bpe_dropout("ababa", RANKS, p=1.0, rng=random.Random(0)) == list("ababa")
    assert bpe_dropout([b"a", b"b"], {(b"a", b"b"): 0}, p=0.0, rng=random.Random(0)) == [b"ab"]
    assert bpe_dropout("", RANKS, p=0.5, rng=random.Random(0)) == []


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_probability_is_asked_for(p: float) -> None:
    with pytest.raises(ValueError, match="expected a probability"):
        bpe_dropout("ab", RANKS, p=p, rng=random.Random(0))
