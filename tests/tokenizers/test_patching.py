"""Bytes and patches: round trips on any text and bytes, probabilities and entropies by their definitions."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_study.tokenizers.patching import ByteNgram, ByteTokenizer, cut_patches, jump_patches, threshold_patches

law = settings(max_examples=100, derandomize=True, deadline=None)


@law
@given(st.text(), st.binary())
def test_nothing_is_lost(text: str, data: bytes) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes([3 + byte for byte in data]) == data
    assert tokenizer.decode([3 + byte for byte in data]) == data.decode("utf-8", "replace")


@law
@given(st.binary(min_size=1, max_size=60), st.binary(max_size=8), st.integers(0, 4))
def test_probabilities_are_those_of_the_equation(data: bytes, context: bytes, order: int) -> None:
    model = ByteNgram(data, order=order)
    p = model.probabilities(context)
    assert math.fsum(p) == pytest.approx(1)
    assert min(p) > 0

    def equation(v: int, u: bytes) -> float:
        """Return p(v | u), from the corpus itself."""
        lower = equation(v, u[1:]) if u else 1 / 256
        followers = [data[i + len(u)] for i in range(len(data) - len(u)) if data[i : i + len(u)] == u]
        different = len(set(followers))
        return (followers.count(v) + different * lower) / (len(followers) + different) if followers else lower

    u = context[len(context) - min(order, len(context)) :]
    assert [p[v] for v in {*data, 0, 255}] == pytest.approx([equation(v, u) for v in {*data, 0, 255}])


def test_entropies_are_those_of_the_predictions() -> None:
    data = b"the cat sat on the mat"
    model = ByteNgram(data, order=2)
    found = model.entropies(data)
    for t, h in enumerate(found):
        p = model.probabilities(data[:t])
        assert h == pytest.approx(sum(-x * math.log2(x) for x in p))
    assert len(found) == len(data)


@law
@given(st.lists(st.floats(0, 8), max_size=20), st.floats(0, 8))
def test_patches_begin_where_the_rule_says(entropies: list[float], threshold: float) -> None:
    data = bytes(range(len(entropies)))
    for rule, value in (
        (threshold_patches, lambda t: entropies[t]),
        (jump_patches, lambda t: entropies[t] - entropies[t - 1]),
    ):
        starts = rule(entropies, threshold)
        assert starts == [t for t in range(len(data)) if t == 0 or value(t) > threshold]
        patches = cut_patches(data, starts)
        assert b"".join(patches) == data
        assert all(patches)
        assert len(patches) == len(starts)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: ByteTokenizer().encode("\ud800"), "lone surrogate U+D800 at index 0"),
        (lambda: ByteTokenizer().encode("a", allowed_special=["<x>"]), "'<x>' is no special token, expected some of"),
        (lambda: ByteTokenizer().decode([384]), "id 384 is not in the vocabulary of 384 ids"),
        (lambda: ByteTokenizer(n_extra=-1), "n_extra is -1, expected at least 0"),
        (lambda: ByteNgram(b"a", order=-1), "order is -1, expected at least 0"),
        (lambda: cut_patches(b"abc", [1]), "starts is [1]"),
        (lambda: cut_patches(b"abc", [0, 2, 2]), "starts is [0, 2, 2]"),
        (lambda: cut_patches(b"abc", [0, 3]), "starts is [0, 3]"),
        (lambda: cut_patches(b"abc", []), "starts is []"),
    ],
)
def test_bad_input_is_refused(action: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        action()
    assert message in str(error.value)
