"""WordPiece by its definitions: scores by counting, gains by two likelihoods, and what bad input is told."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_study.tokenizers.base import StreamDecoder
from llm_study.tokenizers.wordpiece import BertNormalizer, WordPiece, likelihood_gain, longest_match, pair_scores

law = settings(max_examples=150, derandomize=True, deadline=None)
WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 5), min_size=1, max_size=8)


def characters(word: str) -> tuple[str, ...]:
    return (word[0], *("##" + c for c in word[1:]))


def slow_merges(words: dict[str, int], n: int, least: int) -> list[str]:
    """Training as its definition: count everything again before each merge."""
    split = {word: list(characters(word)) for word in words}
    made: list[str] = []
    for _ in range(n):
        scores = pair_scores({tuple(split[word]): 0 for word in words} | merged_counts(split, words))
        often = Counter(pair for word, count in words.items() for pair in pairwise(split[word]) for _ in range(count))
        allowed = [pair for pair in scores if often[pair] >= least]
        if not allowed:
            break
        a, b = min(allowed, key=lambda pair: (-scores[pair], pair))
        new = a + b[2:]
        made.append(new)
        for pieces in split.values():
            i = 0
            while i < len(pieces) - 1:
                if pieces[i] == a and pieces[i + 1] == b:
                    pieces[i : i + 2] = [new]
                i += 1
    return made


def merged_counts(split: dict[str, list[str]], words: dict[str, int]) -> dict[tuple[str, ...], int]:
    counts: Counter[tuple[str, ...]] = Counter()
    for word, pieces in split.items():
        counts[tuple(pieces)] += words[word]
    return dict(counts)


@law
@given(WORDS, st.integers(1, 6), st.integers(1, 4))
def test_training_merges_the_pair_of_the_highest_score(words: dict[str, int], n: int, least: int) -> None:
    texts = [word for word, count in words.items() for _ in range(count)]
    alphabet = {piece for word in words for piece in characters(word)}
    expected = list(dict.fromkeys(slow_merges(words, 20, least)))[:n]
    trained = WordPiece.train(
        texts, vocab_size=len(alphabet) + 1 + n, special_tokens=["[UNK]"], min_frequency=least, normalizer=None
    )
    assert list(trained.vocab) == ["[UNK]", *sorted(alphabet), *expected]
    assert list(trained.vocab.values()) == list(range(len(trained.vocab)))


@law
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 9))
def test_gain_is_the_difference_of_two_likelihoods(ab: int, a: int, b: int, rest: int) -> None:
    def likelihood(counts: list[int]) -> float:
        total = sum(counts)
        return sum(n * math.log(n / total) for n in counts if n)

    before = likelihood([a + ab, b + ab, rest])
    gain = likelihood_gain(a + ab, b + ab, ab, a + b + 2 * ab + rest)
    assert gain == pytest.approx(likelihood([a, b, ab, rest]) - before, abs=1e-9)
    N = a + b + 2 * ab + rest
    information = math.log(ab * N / ((a + ab) * (b + ab)))
    assert ab * (information - 1) - ab**2 / (N - ab) - 1e-9 <= gain <= ab * (information + 1) + 1e-9


@law
@given(
    st.text("ab", min_size=1, max_size=8),
    st.sets(st.builds("".join, st.tuples(st.sampled_from(["", "##"]), st.text("ab", min_size=1, max_size=3)))),
)
@example("aaa", {"a", "aa", "##a", "##aa"})
def test_longest_match_takes_the_longest_piece_each_time(word: str, vocab: set[str]) -> None:
    pieces = longest_match(word, vocab)
    start = 0
    for piece in pieces:
        text = piece.removeprefix("##") if start else piece
        assert word.startswith(text, start)
        assert piece in vocab
        prefix = "##" if start else ""
        assert not any(prefix + word[start:end] in vocab for end in range(start + len(text) + 1, len(word) + 1))
        start += len(text)
    assert start in (0, len(word))


@law
@given(st.lists(st.sampled_from(["[UNK]", "hug", "##s", "!", "'", "s", "it", "not", "do"]), max_size=12))
def test_text_can_be_decoded_while_it_is_made(pieces: list[str]) -> None:
    vocab = {piece: id for id, piece in enumerate(["[UNK]", "hug", "##s", "!", "'", "s", "it", "not", "do"])}
    tokenizer = WordPiece(vocab)
    ids = [vocab[piece] for piece in pieces]
    decoder = StreamDecoder(tokenizer)
    assert "".join([decoder.push(id) for id in ids] + [decoder.flush()]) == tokenizer.decode(ids)
    assert tokenizer.decode_bytes(ids) == tokenizer.decode(ids).encode()


def test_options_of_the_normalizer() -> None:
    assert BertNormalizer(strip_accents=False)("ÉÀ") == "éà"
    assert BertNormalizer(handle_chinese_chars=False)("好") == "好"
    assert BertNormalizer(clean_text=False)("a\x00\tb") == "a\x00\tb"


def test_training_stops_when_no_pair_is_left() -> None:
    assert WordPiece.train(["ab ab"], vocab_size=1000, special_tokens=["[UNK]"]).vocab == {
        "[UNK]": 0,
        "##b": 1,
        "a": 2,
        "ab": 3,
    }


def test_special_tokens_are_plain_text_unless_allowed() -> None:
    tokenizer = WordPiece({"[UNK]": 0, "a": 1, "pad": 2}, special_tokens=["[UNK]", "pad"])
    assert tokenizer.encode("a pad") == [1, 0]
    assert tokenizer.encode("a pad", allowed_special=["pad"]) == [1, 2]
    assert tokenizer.vocab_size == 3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: WordPiece.train([], vocab_size=100), "the corpus has 0 words"),
        (lambda: WordPiece.train([" \n"], vocab_size=100), "the corpus has 0 words"),
        (lambda: WordPiece.train(["abc"], vocab_size=7), "vocab_size is 7, expected at least 8: there are 5 special"),
        (lambda: WordPiece.train(["a\ud800"], vocab_size=100), "lone surrogate U+D800 at index 1"),
        (lambda: WordPiece.train(["a"], vocab_size=9, special_tokens=[]), "lacks [UNK]"),
        (lambda: WordPiece({"[UNK]": 0}).encode("a\udfff"), "lone surrogate U+DFFF at index 1"),
        (
            lambda: WordPiece({"[UNK]": 0}).encode("a", allowed_special=["[X]"]),
            "'[X]' is no special token, expected some of",
        ),
        (lambda: WordPiece({"[UNK]": 0}).decode([1]), "id 1 is not in the vocabulary, whose largest is 0"),
        (lambda: WordPiece({"[UNK]": 0}).decode([-1]), "id -1 is not in the vocabulary"),
        (lambda: WordPiece({"[UNK]": 0, "a": 0}), "2 pieces but 1 different ids"),
        (lambda: WordPiece({"a": 0}), "lacks [UNK]"),
        (lambda: likelihood_gain(2, 3, 3, 9), "count_ab is 3, expected at least 1 and at most 2"),
        (lambda: likelihood_gain(2, 3, 2, 4), "total is 4, expected at least 2 + 3"),
    ],
)
def test_bad_input_is_refused(action: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        action()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "the model is BPE, expected WordPiece"),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer is NFKC, expected BertNormalizer or none"),
        ({"pre_tokenizer": None}, "the pre_tokenizer is none, expected BertPreTokenizer"),
        ({"decoder": {"type": "ByteLevel"}}, "the decoder is ByteLevel, expected WordPiece or none"),
        ({"decoder": {"type": "WordPiece", "prefix": "@@"}}, "the decoder removes '@@', but the model writes '##'"),
        ({"added_tokens": [{"id": 9, "content": "new", "special": False}]}, "'new' is not special"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": "0"}}}, "no object of pieces and ids"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "lacks [UNK]"),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "tokenizer.json"
    WordPiece({"[UNK]": 0, "a": 1}).save(file)
    assert WordPiece.load(file).encode("a") == [1]
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ValueError) as error:
        WordPiece.load(file)
    assert message in str(error.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WordPiece.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        WordPiece.load(tmp_path)
