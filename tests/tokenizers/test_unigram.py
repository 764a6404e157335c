"""Unigram by its definitions: every sum, maximum and frequency against the list of all cuts."""

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_study.tokenizers import unigram as U
from llm_study.tokenizers.base import StreamDecoder
from llm_study.tokenizers.unigram import Unigram

law = settings(max_examples=150, derandomize=True, deadline=None)


@st.composite
def models(draw: st.DrawFn) -> dict[str, float]:
    """Draw pieces with probabilities; all three characters are among them."""
    pieces = sorted(draw(st.sets(st.text("abc", min_size=2, max_size=4), max_size=10)) | {"a", "b", "c"})
    weights = [draw(st.integers(1, 50)) for _ in pieces]
    return {piece: math.log(w / sum(weights)) for piece, w in zip(pieces, weights, strict=True)}


TEXT = st.text("abc", max_size=8)
WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 4), min_size=1, max_size=5)


def cuts(text: str, logp: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Return the log-probability of each cut."""
    return {cut: sum(logp[piece] for piece in cut) for cut in U.segmentations(text, logp)}


def likelihood(words: dict[str, int], logp: dict[str, float]) -> float:
    return sum(n * math.log(math.fsum(map(math.exp, cuts(word, logp).values()))) for word, n in words.items())


@law
@given(TEXT, models())
def test_best_cut_is_the_best_of_all(text: str, logp: dict[str, float]) -> None:
    every = cuts(text, logp)
    best = U.viterbi(text, logp)
    assert "".join(best) == text
    assert every[tuple(best)] == pytest.approx(max(every.values()), abs=1e-9)


@law
@given(TEXT, models(), st.integers(1, 6))
def test_n_best_cuts_are_the_first_of_the_sorted_list(text: str, logp: dict[str, float], n: int) -> None:
    every = cuts(text, logp)
    found = U.n_best(text, logp, n)
    assert [score for score, _ in found] == pytest.approx(sorted(every.values(), reverse=True)[:n], abs=1e-9)
    assert len({tuple(cut) for _, cut in found}) == len(found) == min(n, len(every))
    assert all(score == pytest.approx(every[tuple(cut)], abs=1e-9) for score, cut in found)


@law
@given(TEXT, models())
def test_sums_are_those_over_all_cuts(text: str, logp: dict[str, float]) -> None:
    every = cuts(text, logp)
    total = math.log(math.fsum(map(math.exp, every.values())))
    assert U.log_likelihood(text, logp) == pytest.approx(total, abs=1e-9)
    expected: Counter[str] = Counter()
    for cut, score in every.items():
        for piece in cut:
            expected[piece] += math.exp(score - total)
    found, counts = U.expected_counts(text, logp)
    assert found == pytest.approx(total, abs=1e-9)
    assert counts == pytest.approx(dict(expected), abs=1e-9)
    assert sum(len(piece) * c for piece, c in counts.items()) == pytest.approx(len(text))


@law
@given(WORDS, models())
def test_a_step_never_lowers_the_likelihood(words: dict[str, int], logp: dict[str, float]) -> None:
    before, better = U.em_step(words, logp)
    assert before == pytest.approx(likelihood(words, logp), abs=1e-9)
    assert math.fsum(map(math.exp, better.values())) == pytest.approx(1)
    assert likelihood(words, better) >= before - 1e-9


@law
@given(WORDS, models())
def test_losses_are_those_of_removing_one_piece(words: dict[str, int], logp: dict[str, float]) -> None:
    losses = U.removal_losses(words, logp)
    assert set(losses) == {piece for piece in logp if len(piece) > 1}
    for piece, loss in losses.items():
        rest = {other: score for other, score in logp.items() if other != piece}
        assert loss == pytest.approx(likelihood(words, logp) - likelihood(words, rest), abs=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0, 2.0])
def test_random_cuts_have_their_probabilities(alpha: float) -> None:
    logp = {"a": -1.0, "b": -1.5, "ab": -1.2, "ba": -2.0, "aba": -2.5}
    every = cuts("ababa", logp)
    weights = {cut: math.exp(alpha * score) for cut, score in every.items()}
    n, rng = 20_000, random.Random(0)
    drawn = Counter(tuple(U.sample_segmentation("ababa", logp, alpha=alpha, rng=rng)) for _ in range(n))
    assert set(drawn) <= set(every)
    expected = {cut: n * w / sum(weights.values()) for cut, w in weights.items()}
    chi = sum((drawn[cut] - e) ** 2 / e for cut, e in expected.items())
    k = len(every) - 1
    assert chi < k + 4 * math.sqrt(2 * k)  # mean and four standard deviations


def test_ties_go_to_the_longest_last_piece() -> None:
    assert U.viterbi("abc", {"a": -1.0, "bc": -1.0, "ab": -1.0, "c": -1.0}) == ["a", "bc"]


def test_unknown_characters() -> None:
    logp = {"a": -1.0, "ab": -1.5}
    assert U.viterbi("xab", logp, unk=-9.0) == ["x", "ab"]
    assert U.log_likelihood("xa", logp, unk=-9.0) == pytest.approx(-10.0)
    assert U.log_likelihood("xa", logp) == -math.inf
    assert [cut for _, cut in U.n_best("ax", logp, 3, unk=-9.0)] == [["a", "x"]]
    assert U.sample_segmentation("ax", logp, rng=random.Random(0), unk=-9.0) == ["a", "x"]
    assert U.sample_segmentation("", logp, rng=random.Random(0)) == U.viterbi("", logp) == []


def test_seeds_are_the_repeated_substrings() -> None:
    seeds = U.seed_pieces({"abcab": 1, "cab": 1, "xyz": 1}, size=10, max_length=2)
    assert set(seeds) == {*"abcxyz", "ab", "ca"}
    assert math.exp(seeds["ab"] - seeds["a"]) == pytest.approx(3 * 2 / 3)


def test_training_keeps_characters_and_reaches_its_size() -> None:
    texts = ["the cat sat on the mat", "the cats sat there", "that hat"] * 3
    characters = {c for text in texts for c in text.replace(" ", "▁")}
    for size in (len(characters) + 1, len(characters) + 6, 40):
        tokenizer = Unigram.train(texts, vocab_size=size)
        pieces = [piece for piece, _ in tokenizer.pieces]
        assert len(pieces) <= size
        assert characters < set(pieces)
        assert pieces[0] == "<unk>"
        assert math.fsum(math.exp(score) for _, score in tokenizer.pieces[1:]) == pytest.approx(1, abs=1e-6)
        for text in texts:
            assert tokenizer.decode(tokenizer.encode(text)) == text
    longer = Unigram.train(texts, vocab_size=len(characters) + 1)
    assert len(tokenizer.encode("the cat sat")) < len(longer.encode("the cat sat"))
    assert len(Unigram.train(texts, vocab_size=25).pieces) == 25


def test_pruning_keeps_the_piece_whose_loss_is_larger() -> None:
    tokenizer = Unigram.train(["ab ab ab ab cd cd"], vocab_size=1 + 5 + 1)
    assert {piece for piece, _ in tokenizer.pieces if len(piece) > 1} == {"<unk>", "▁ab"}


def small(**options: Any) -> Unigram:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("a", -2.0), ("b", -3.0), ("bb", -3.5)]
    return Unigram([*pieces, *options.pop("more", [])], **options)


def test_bytes_and_unknown_tokens() -> None:
    assert small().encode("a xyb") == [2, 1, 0, 4]
    fallback = small(more=[(f"<0x{b:02X}>", 0.0) for b in range(256)], byte_fallback=True)
    ids = fallback.encode("a é")
    assert ids == [2, 1, 6 + 0xC3, 6 + 0xA9]
    assert fallback.decode(ids) == "a é"
    assert fallback.decode(ids[:-1]) == "a \ufffd"
    assert fallback.decode_bytes(ids[:-1]) == b"a \xc3"
    assert fallback.encode("<0x41>") == [1, *(6 + b for b in b"<0x41>")]


@law
@given(st.lists(st.integers(0, 5 + 256), max_size=12))
def test_text_can_be_decoded_while_it_is_made(ids: list[int]) -> None:
    for tokenizer in (
        small(more=[(f"<0x{b:02X}>", 0.0) for b in range(256)], byte_fallback=True),
        small(more=[(f"<0x{b:02X}>", 0.0) for b in range(256)]),
    ):
        decoder = StreamDecoder(tokenizer)
        assert "".join([decoder.push(id) for id in ids] + [decoder.flush()]) == tokenizer.decode(ids)
        assert tokenizer.decode_bytes(ids).decode("utf-8", "replace") == tokenizer.decode(ids)


def test_sampling_gives_other_cuts_of_the_same_text() -> None:
    tokenizer, rng = small(special_tokens=["<unk>"]), random.Random(1)
    seen = {tuple(tokenizer.sample("abb a", rng=rng, alpha=0.2)) for _ in range(200)}
    assert len(seen) > 4
    assert all(tokenizer.decode(ids) == "abb a" for ids in seen)
    assert tokenizer.sample("<unk>", rng=rng, allowed_special=["<unk>"]) == [0]
    assert tokenizer.sample("abb a", rng=rng, alpha=100.0) == tokenizer.encode("abb a")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: Unigram.train([], vocab_size=100), "the corpus has 0 words"),
        (lambda: Unigram.train([""], vocab_size=100), "the corpus has 0 words"),
        (lambda: Unigram.train(["abc"], vocab_size=4), "vocab_size is 4, expected at least 5: 1 special tokens"),
        (lambda: Unigram.train(["abc"], vocab_size=200, byte_fallback=True), "expected at least 261"),
        (lambda: Unigram.train(["a\ud800"], vocab_size=100), "lone surrogate U+D800 at index 1"),
        (lambda: Unigram.train(["a"], vocab_size=9, special_tokens=["<s>"]), "<unk> is not among the 1 special"),
        (lambda: Unigram.train(["a"], vocab_size=9, shrink=1.0), "shrink is 1.0, expected more than 0"),
        (lambda: Unigram.train(["a"], vocab_size=9, n_steps=0), "n_steps is 0, expected at least 1"),
        (lambda: small().encode("a\udfff"), "lone surrogate U+DFFF at index 1"),
        (lambda: small().encode("a", allowed_special=["<s>"]), "'<s>' is no special token, expected some of"),
        (lambda: small(unk_id=None).encode("x"), "'x' is unknown, and there is no unknown token"),
        (lambda: small(unk_id=6), "unk_id is 6, expected an id of the 6 pieces"),
        (lambda: small(byte_fallback=True), "256 tokens are not among the 6 pieces, the first is <0x00>"),
        (lambda: small(special_tokens=["<s>"]), "1 tokens are not among the 6 pieces, the first is <s>"),
        (lambda: small(more=[("a", -1.0)]), "7 pieces but only 6 different"),
        (lambda: small().decode([6]), "id 6 is not in the vocabulary of 6 pieces"),
        (lambda: small().decode([-1]), "id -1 is not in the vocabulary"),
        (lambda: small().sample("a", rng=random.Random(0), alpha=-1.0), "alpha is -1.0, expected at least 0"),
        (lambda: U.viterbi("abx", {"a": -1.0, "b": -1.0}), "beyond index 2 of 3, 'x'"),
        (lambda: U.expected_counts("x", {"a": -1.0}), "beyond index 0 of 1, 'x'"),
        (lambda: U.n_best("a", {"a": -1.0}, 0), "n is 0, expected at least 1"),
        (lambda: U.em_step({}, {"a": -1.0}), "there are 0 words"),
    ],
)
def test_bad_input_is_refused(action: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        action()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "the model is WordPiece, expected Unigram"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "no list of pieces and scores"),
        ({"model": {"type": "Unigram", "vocab": {"a": 1}}}, "no list of pieces and scores"),
        ({"normalizer": {"type": "StripAccents"}}, "the normalizer is StripAccents, expected Sequence, Precompiled"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA=="}}, "precompiled_charsmap"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}},
            "the normalizer replaces 'a+'",
        ),
        (
            {"pre_tokenizer": {"type": "ByteLevel"}},
            "the pre_tokenizer is ByteLevel, expected WhitespaceSplit, Metaspace",
        ),
        ({"pre_tokenizer": {**U.METASPACE, "replacement": "_"}}, "Metaspace with ▁"),
        ({"pre_tokenizer": {**U.METASPACE, "prepend_scheme": "last"}}, "the prepend_scheme of Metaspace is last"),
        ({"decoder": {"type": "BPEDecoder"}}, "the decoder is BPEDecoder, expected Metaspace"),
        ({"added_tokens": [{"id": 9, "content": "new", "special": True}]}, "'new' has id 9, expected 6: a gap"),
        ({"added_tokens": [{"id": 6, "content": "new", "special": False}]}, "'new' is not special"),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "tokenizer.json"
    small().save(file)
    assert Unigram.load(file).encode("a bb") == [2, 1, 5]
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ValueError) as error:
        Unigram.load(file)
    assert message in str(error.value)


def test_an_old_file_says_add_prefix_space(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for add, expected in ((True, [2]), (False, [3])):
        old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": add}
        small(pre_tokenizer=old).save(file)
        assert Unigram.load(file).encode("a") == expected


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Unigram.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Unigram.load(tmp_path)
