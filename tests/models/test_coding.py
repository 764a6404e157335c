"""Arithmetic coding: any bytes come back, and the code is within two bits of what the model says."""

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_study.models import coding as C
from llm_study.models.ngram import NGramModel, add_k, kneser_ney, maximum_likelihood, witten_bell

law = settings(max_examples=40, derandomize=True, deadline=None)
PRECISION = 40


def ideal(symbols: Sequence[Hashable], predict: C.Predict) -> Fraction:
    """Probability of a sequence under the rounded predictions, exactly."""
    p = Fraction(1)
    for t, symbol in enumerate(symbols):
        row = predict(symbols[:t])
        parts = C.integer_frequencies(list(row.values()), precision=PRECISION)
        p *= Fraction(parts[list(row).index(symbol)], 2**PRECISION)
    return p


@given(data=st.binary(max_size=24), train=st.binary(min_size=1, max_size=60), order=st.integers(1, 3))
@law
def test_any_bytes_come_back_and_the_length_is_right(data: bytes, train: bytes, order: int) -> None:
    model = kneser_ney([train], order, vocabulary=range(256))
    code = C.arithmetic_encode(data, model.distribution)
    assert bytes(C.arithmetic_decode(code, len(data), model.distribution)) == data
    assert len(code) < -math.log2(ideal(data, model.distribution)) + 2 + 1e-9


@given(text=st.text("ab.", max_size=40), rest=st.text("01", max_size=12))
@law
def test_what_follows_the_code_does_not_matter(text: str, rest: str) -> None:
    model = witten_bell(["ab.ab.aab."], 2)
    code = C.arithmetic_encode(text, model.distribution)
    assert "".join(map(str, C.arithmetic_decode(code + rest, len(text), model.distribution))) == text


@given(text=st.text("abc", max_size=12))
@law
def test_no_shorter_code_lies_in_the_interval(text: str) -> None:
    model = add_k(["abcab"], 2)
    code, p = C.arithmetic_encode(text, model.distribution), ideal(text, model.distribution)
    assert len(code) >= math.floor(-math.log2(p))
    for length in range(len(code)):
        for start in {code[:length], format(min(int(code[:length] or "0", 2) + 1, 2**length - 1), f"0{length}b")}:
            start = start if length else ""
            decoded = [
                "".join(map(str, C.arithmetic_decode(start + end * 80, len(text), model.distribution))) for end in "01"
            ]
            assert decoded != [text, text]


def test_codes_of_all_short_texts_are_the_leaves_of_a_tree() -> None:
    model: NGramModel = kneser_ney(["ab.", "aab.", "b."], 2)
    texts = ["a.", "b.", "aa.", "ab.", "ba.", "bb.", "."]
    codes = [C.arithmetic_encode(text, model.distribution) for text in texts]
    for i, one in enumerate(codes):
        assert not any(other.startswith(one) for j, other in enumerate(codes) if i != j)
    assert sum(2.0 ** -len(code) for code in codes) <= 1  # Kraft's inequality


def test_a_page_is_coded_near_its_likelihood() -> None:
    text = (C.__doc__ or "") + (C.arithmetic_encode.__doc__ or "")
    model = kneser_ney([text[::-1], text[:300]], 3, vocabulary=sorted(set(text)))
    bits = -model.log_likelihood(text) / math.log(2)
    code = C.arithmetic_encode(text, model.distribution)
    assert bits - 1 < len(code) < bits + 2
    assert "".join(map(str, C.arithmetic_decode(code, len(text), model.distribution))) == text


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=16).filter(lambda p: sum(p) > 1e-3))
@law
def test_frequencies_are_whole_and_near(p: list[float]) -> None:
    parts = C.integer_frequencies(p, precision=20)
    assert sum(parts) == 2**20
    assert min(parts) >= 1
    assert all(abs(n / 2**20 - q / sum(p)) <= len(p) * 2.0**-18 for n, q in zip(parts, p, strict=True))


def test_the_impossible_can_be_coded_at_a_price() -> None:
    model = maximum_likelihood(["aaaa"], 1, vocabulary="ab")
    code = C.arithmetic_encode("ab", model.distribution, precision=16)
    assert C.arithmetic_decode(code, 2, model.distribution, precision=16) == ["a", "b"]
    assert 16 <= len(code) <= 18
    assert C.arithmetic_encode("aaaa", lambda _: {"a": 1.0}) == ""


def test_errors_name_what_is_wrong() -> None:
    model = add_k(["ab"], 1)
    with pytest.raises(ValueError, match="symbol 1 is 'z', which is not among the 2 symbols"):
        C.arithmetic_encode("az", model.distribution)
    with pytest.raises(ValueError, match="the code contains '2', expected 0 and 1 only"):
        C.arithmetic_decode("0121", 1, model.distribution)
    with pytest.raises(ValueError, match="length is -1, expected at least 0"):
        C.arithmetic_decode("01", -1, model.distribution)
    with pytest.raises(ValueError, match="number of probabilities is 0"):
        C.integer_frequencies([])
    with pytest.raises(ValueError, match=r"probabilities from -0\.5"):
        C.integer_frequencies([1.5, -0.5])
    with pytest.raises(ValueError, match="sum to 0"):
        C.integer_frequencies([0.0, 0.0])
    with pytest.raises(ValueError, match=r"2\*\*precision is 2, expected at least 3"):
        C.integer_frequencies([0.2, 0.3, 0.5], precision=1)
