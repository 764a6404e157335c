"""Byte-level BPE: its fast functions against their definitions, its laws, its files, and what it refuses."""

import base64
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llm_study.tokenizers.base import StreamDecoder
from llm_study.tokenizers.bpe import (
    PATTERNS,
    ByteLevelBPE,
    apply_merges,
    apply_merges_reference,
    bpe_reference,
    byte_alphabet,
    split_words,
    train_bpe,
)

CORPUS = [
    "the theme of these theses is the theory of the other thing",
    "它就在那里，那里有它。它们都在",
    "for i in range(10):\n    print(i, 10 * i)\n" * 3,
]
few_letters = st.text("ab", max_size=12).map(str.encode)
corpora = st.lists(few_letters, max_size=12)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
both_patterns = pytest.mark.parametrize("pattern", PATTERNS)


def small(pattern: str = "gpt4", vocab_size: int = 320) -> ByteLevelBPE:
    """Return a tokenizer with some merges and two special tokens."""
    return ByteLevelBPE.train(CORPUS, vocab_size=vocab_size, pattern=pattern, special_tokens=["<|end|>", "<|结束|>"])


def ranks(merges: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return what :func:`apply_merges` wants."""
    return {pair: (rank, 256 + rank) for rank, pair in enumerate(merges)}


# --- bytes and words


def test_alphabet() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert all(len(c) == 1 and not c.isspace() and c.isprintable() for c in alphabet)
    assert [alphabet[byte] for byte in (0x00, 0x20, 0x21, 0x7F, 0xA0, 0xAD, 0xFF)] == list("ĀĠ!ġłŃÿ")


@both_patterns
@given(any_text)
def test_words_join_to_the_text(pattern: str, text: str) -> None:
    words = split_words(text, pattern)
    assert "".join(words) == text
    assert all(words)


def test_words_of_gpt4() -> None:
    text = "I'LL take 1234567 of\r\n\r\n  them!!\n\n它们 don't\ufb06"
    expected = ["I", "'LL", " take", " ", "123", "456", "7", " of", "\r\n\r\n", " ", " them", "!!\n\n", "它们", " don"]
    assert split_words(text) == [*expected, "'t", "\ufb06"]


def test_words_of_gpt2() -> None:
    text = "I'LL 1234567\n\n  it's!!\n它们"
    expected = ["I", "'", "LL", " 1234567", "\n\n ", " it", "'s", "!!", "\n", "它们"]
    assert split_words(text, "gpt2") == expected


def test_characters_younger_than_unicode_16_are_symbols() -> None:
    new, old = "\ua7ce", "\u1c89"  # letters: of Unicode 17.0, and of 16.0
    assert [regex.match(r"\p{L}", c) is not None for c in (new, old)] == [True, True]
    assert split_words(f"a{old}b{old}c") == [f"a{old}b{old}c"]
    assert split_words(f"a{new}b c", "gpt2") == ["a", new, "b", " c"]
    assert split_words("a\U000323b0b", "gpt2") == ["a", "\U000323b0", "b"]  # an ideograph of 17.0
    assert split_words("a😀b", "gpt2") == ["a", "😀", "b"]  # no letter in any version


# --- training


def count(words: list[bytes]) -> Counter[bytes]:
    """Return how often each word occurs."""
    return Counter(words)


def test_by_hand() -> None:
    """Three merges, each counted on paper; the second is a tie that the smaller ids win."""
    words = [b"abab", b"ab", b"cb", b"cb"]
    a, b, c = 64, 65, 66
    assert bpe_reference(words, 9) == [(a, b), (c, b), (256, 256)]  # ab 3 times; cb 2; then abab 1


@given(corpora, st.integers(0, 30))
def test_fast_training_is_the_definition(words: list[bytes], n_merges: int) -> None:
    assert train_bpe(count(words), n_merges) == bpe_reference(words, n_merges)


def test_fast_training_on_every_small_corpus() -> None:
    """Runs, overlaps and merges side by side: every pair of words of up to four letters."""
    words = [bytes(w) for n in range(5) for w in itertools.product(b"ab", repeat=n)]
    for pair in itertools.product(words, repeat=2):
        assert train_bpe(count(list(pair)), 9) == bpe_reference(list(pair), 9)


def test_fast_training_on_long_random_words() -> None:
    chance = random.Random(0)
    words = [bytes(chance.choices(b"abcd ", k=chance.randrange(60))) for _ in range(50)]
    assert train_bpe(count(words), 200) == bpe_reference(words, 200)


def test_each_merge_shortens_the_corpus_by_its_count() -> None:
    words = [b"abcab", b"bcabc", b"cabab"]
    sequences = [[*word] for word in words]
    merges = bpe_reference(words, 5)
    lengths = [
        sum(len(apply_merges_reference([byte - 33 for byte in ids], merges[:k])) for ids in sequences)
        for k in range(len(merges) + 1)
    ]
    assert lengths == [15, 10, 7, 6, 5, 4]  # ab 5 times, c·ab 3 times, …


def test_training_needs_no_more_words_than_distinct_ones() -> None:
    assert train_bpe({b"ab": 10**12, b"ba": 10**12 - 1}, 2) == [(64, 65), (65, 64)]


# --- merging


@given(corpora, st.lists(st.text("abc", max_size=30).map(str.encode), max_size=5))
def test_fast_merging_is_the_definition(words: list[bytes], others: list[bytes]) -> None:
    merges = bpe_reference(words, 20)
    for word in [*words, *others]:
        ids = [byte - 33 for byte in word]
        assert apply_merges(ids, ranks(merges)) == apply_merges_reference(ids, merges)


@given(corpora)
def test_each_token_is_the_code_of_its_own_bytes(words: list[bytes]) -> None:
    """So neighbors whose bytes together are a token are always its own two halves: tiktoken's rule changes nothing."""
    merges = train_bpe(count(words), 20)
    tokens = [bytes([i + 33]) if i < 94 else b"" for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    assert len(set(tokens[256:])) == len(merges)
    for id, token in enumerate(tokens[256:], 256):
        assert apply_merges([byte - 33 for byte in token], ranks(merges)) == [id]


def test_lowest_rank_first_and_leftmost() -> None:
    assert apply_merges([64, 65, 66], {(65, 66): (0, 256), (64, 65): (1, 257)}) == [64, 256]
    assert apply_merges([64] * 5, {(64, 64): (0, 256)}) == [256, 256, 64]
    assert apply_merges([], {}) == []


def test_a_long_word_takes_no_square_of_its_length() -> None:
    tokenizer = ByteLevelBPE.train(["ab" * 64], vocab_size=256 + 6)
    assert tokenizer.encode("ab" * 64_000) == [tokenizer.encode("ab" * 32)[0]] * 2000


# --- the tokenizer


@both_patterns
@given(any_text)
def test_text_comes_back(pattern: str, text: str) -> None:
    tokenizer = TOKENIZERS[pattern]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@both_patterns
@given(st.binary(max_size=60))
def test_bytes_come_back(pattern: str, data: bytes) -> None:
    tokenizer = TOKENIZERS[pattern]
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@given(any_text)
def test_bytes_of_a_text_have_its_ids(text: str) -> None:
    assert TOKENIZERS["gpt4"].encode_bytes(text.encode()) == TOKENIZERS["gpt4"].encode(text)


@given(st.lists(st.integers(0, 319), max_size=30))
def test_any_ids_decode(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["gpt4"]
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


@given(any_text)
def test_a_cold_cache_gives_the_same_ids(text: str) -> None:
    tokenizer = TOKENIZERS["gpt2"]
    words = split_words(text, "gpt2")
    assert tokenizer.encode(text) == [id for word in words for id in tokenizer.encode_word(word.encode())]
    assert tokenizer.encode(text) == tokenizer.encode(text)


def test_the_cache_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_study.tokenizers.bpe.WORD_CACHE", 3)
    tokenizer, text = small(), "one two three four five one two three " + "x" * 1000
    expected = [id for word in split_words(text) for id in tokenizer.encode_word(word.encode())]
    assert tokenizer.encode(text) == expected
    assert len(tokenizer._words) <= 3
    assert not any(len(word) > 256 for word in tokenizer._words)


def test_single_bytes_have_the_ids_of_gpt2() -> None:
    tokenizer = small()
    assert [tokenizer.decode_bytes([id]) for id in (0, 93, 94, 187, 188, 220, 255)] == [
        b"!",
        b"~",
        b"\xa1",
        b"\xff",
        b"\x00",
        b" ",
        b"\xad",
    ]


def test_sizes() -> None:
    tokenizer = small(vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.special_tokens == {"<|end|>": 298, "<|结束|>": 299}
    assert ByteLevelBPE.train(["a"], vocab_size=256).encode("a") == [64]


def test_special_tokens_are_text_unless_allowed() -> None:
    tokenizer, text = small(), "a<|end|>b<|结束|>"
    end, chinese = tokenizer.special_tokens.values()
    assert {end, chinese}.isdisjoint(tokenizer.encode(text))
    ids = tokenizer.encode(text, allowed_special=["<|end|>"])
    assert (ids.count(end), ids.count(chinese)) == (1, 0)
    assert tokenizer.encode(text, allowed_special=tokenizer.special_tokens) == [64, end, 65, chinese]
    assert tokenizer.decode(ids) == text
    assert {end, chinese}.isdisjoint(tokenizer.encode_bytes(text.encode()))


def test_no_word_reaches_into_the_next_text() -> None:
    apart = ByteLevelBPE.train(["ab", "ab"], vocab_size=257)
    assert apart.encode("abab") == [256, 256]
    with pytest.raises(ValueError, match=r"gives 1 merges, vocab_size 258 asks for 2: use more text, or .*=257"):
        ByteLevelBPE.train(["ab", "ab"], vocab_size=258)


def test_an_iterator_is_read_once() -> None:
    assert ByteLevelBPE.train(iter(CORPUS), vocab_size=300).encode("the") == ByteLevelBPE.train(
        CORPUS, vocab_size=300
    ).encode("the")


# --- files


@both_patterns
def test_tokenizer_json_comes_back(tmp_path: Path, pattern: str) -> None:
    tokenizer, text = small(pattern), "".join(CORPUS) + "1234 <|end|> \n\n x"
    tokenizer.save(tmp_path / "tokenizer.json")
    again = ByteLevelBPE.load(tmp_path)  # the folder will do
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special_tokens == tokenizer.special_tokens
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@both_patterns
def test_rank_file_comes_back(tmp_path: Path, pattern: str) -> None:
    tokenizer, text, file = small(pattern), "".join(CORPUS) + "1234 <|end|> \n\n x", tmp_path / "ranks.tiktoken"
    tokenizer.save(file)
    assert file.read_bytes().splitlines()[0] == b"IQ== 0"
    again = ByteLevelBPE.load(file, pattern=pattern, special_tokens=list(tokenizer.special_tokens))
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special_tokens == tokenizer.special_tokens
    again.save(tmp_path / "again.tiktoken")
    assert (tmp_path / "again.tiktoken").read_bytes() == file.read_bytes()
    again.save(tmp_path / "tokenizer.json")  # from one format into the other
    assert ByteLevelBPE.load(tmp_path).encode(text) == tokenizer.encode(text)


def test_a_file_says_its_pattern_itself(tmp_path: Path) -> None:
    small("gpt2").save(tmp_path / "tokenizer.json")
    assert ByteLevelBPE.load(tmp_path, pattern="gpt4").encode("12345") == small("gpt2").encode("12345")


def raw_file(tmp_path: Path) -> dict[str, Any]:
    """Return what a good file says."""
    small().save(tmp_path / "tokenizer.json")
    raw: dict[str, Any] = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    return raw


def reread(tmp_path: Path, raw: dict[str, Any]) -> ByteLevelBPE:
    """Write a file and load it."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    return ByteLevelBPE.load(tmp_path)


def test_older_files_write_merges_with_a_space(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
    assert reread(tmp_path, raw).encode("the theme") == small().encode("the theme")


SPLIT = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model.type", "WordPiece", "the model is WordPiece, expected BPE"),
        ("model.dropout", 0.1, "the model has dropout 0.1"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix '</w>'"),
        ("model.continuing_subword_prefix", "##", "continuing_subword_prefix '##'"),
        ("model.byte_fallback", True, "byte_fallback True"),
        ("model.vocab", {"!": 0}, "merges name 'Ġ', which is not in the vocabulary"),
        ("model.vocab.▁x", 999, "'▁', which stands for no byte"),
        ("model.vocab.qq", -1, "the id -1, expected at least 0"),
        ("model.vocab.!", "0", "damaged"),
        ("model.vocab", [["!", 0.0]], "damaged"),
        ("model.merges", [["t", "zzz"]], "merges name 'zzz'"),
        ("model.merges", [["q", "q"]], "makes b'qq', which is no token"),
        ("model.merges", ["t h e"], "too many values"),
        ("model.merges", None, "damaged"),
        ("normalizer", {"type": "Lowercase"}, "the normalizer is Lowercase, expected none or NFC"),
        ("pre_tokenizer", None, "does not end in ByteLevel"),
        ("pre_tokenizer", {"type": "Whitespace"}, "does not end in ByteLevel"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "add_prefix_space"),
        ("pre_tokenizer.pretokenizers", [], "does not end in ByteLevel"),
        ("pre_tokenizer.pretokenizers", [{"type": "Punctuation"}, BYTE_LEVEL], "Punctuation is not known"),
        ("pre_tokenizer.pretokenizers", [{**SPLIT, "behavior": "MergedWithNext"}, BYTE_LEVEL], "MergedWithNext"),
        ("pre_tokenizer.pretokenizers", [{**SPLIT, "behavior": "Removed"}, BYTE_LEVEL], "Removed"),
        ("pre_tokenizer.pretokenizers", [{**SPLIT, "pattern": {"Regex": "("}}, BYTE_LEVEL], "no regular expression"),
        ("added_tokens", [{"id": 318, "content": "<s>", "lstrip": True}], "'<s>' has lstrip"),
        ("added_tokens", [{"id": 300, "content": "<s>"}], "special token '<s>' with id 300 is in conflict with"),
        ("added_tokens", [{"id": 318, "content": ""}], "0 characters"),
        ("added_tokens", [{"id": 318}], "damaged"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, where: str, value: object, message: str) -> None:
    raw = raw_file(tmp_path)
    *parents, last = where.split(".")
    place: Any = raw
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match=message) as caught:
        reread(tmp_path, raw)
    assert str(tmp_path) in str(caught.value)


def test_a_vocabulary_without_all_bytes(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    raw["model"].update(vocab={"!": 0}, merges=[])
    with pytest.raises(ValueError, match="lacks 255 of 256 single bytes, the first is 0x00"):
        reread(tmp_path, raw)


def test_digits_and_strings_as_steps(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    dash = {**SPLIT, "pattern": {"String": "."}}  # a string, not a pattern
    steps = [{"type": "Digits", "individual_digits": True}, dash, BYTE_LEVEL]
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = reread(tmp_path, raw)
    assert tokenizer.encode("the.the") == [*tokenizer.encode("the"), *tokenizer.encode("."), *tokenizer.encode("the")]
    assert tokenizer.decode(tokenizer.encode("10 20\n30")) == "10 20\n30"
    parts = ["the", "1", "the", ".", "the", ".", "2"]  # the second step cuts what the first left
    assert tokenizer.encode("".join(parts)) == [id for part in parts for id in tokenizer.encode(part)]


def lines_of(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """Return a good rank file and its lines."""
    small().save(tmp_path / "a.tiktoken")
    return tmp_path / "a.tiktoken", (tmp_path / "a.tiktoken").read_bytes().splitlines()


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (10, b"", "rank 10 is missing, the largest is 317"),
        (10, b"Kw== 9", ":11: rank 9 a second time"),
        (10, b"Kw==", r":11: b'Kw==', expected a token in base64 and its rank"),
        (10, b"K 10", ":11: "),
        (10, b"Kw== ten", ":11: "),
        (10, b"IQ== 10", "lacks 1 of 256 single bytes, the first is 0x2B"),
        (317, base64.b64encode(b"the") + b" 317", "318 ids for 317 different tokens"),
    ],
)
def test_rank_files_that_are_refused(tmp_path: Path, number: int, line: bytes, message: str) -> None:
    file, lines = lines_of(tmp_path)
    lines[number] = line
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=message):
        ByteLevelBPE.load(file)


def test_a_word_that_is_a_token_is_not_merged(tmp_path: Path) -> None:
    """As in tiktoken, even where the merges would not find the token."""
    file, lines = lines_of(tmp_path)
    file.write_bytes(b"\n".join([*lines, base64.b64encode(b"qqzz") + b" 318"]))
    assert ByteLevelBPE.load(file).encode("qqzz qqzz") == [318, *small().encode(" qqzz")]


def test_a_rank_file_that_is_cut_off(tmp_path: Path) -> None:
    file, lines = lines_of(tmp_path)
    file.write_bytes(b"\n".join(lines[:200]))
    with pytest.raises(ValueError, match="lacks 56 of 256 single bytes"):
        ByteLevelBPE.load(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="lacks 256 of 256 single bytes"):
        ByteLevelBPE.load(file)


def test_a_rank_file_needs_ids_without_gaps(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    first = {text: id + 1 for text, id in raw["model"]["vocab"].items()}  # a special token stands first
    raw["model"]["vocab"] = {"<s>": 0, **first}
    raw["added_tokens"] = [{"id": 0, "content": "<s>", "special": True}]
    tokenizer = reread(tmp_path, raw)
    assert tokenizer.encode("<s>the", allowed_special=["<s>"]) == [0, *[id + 1 for id in small().encode("the")]]
    with pytest.raises(ValueError, match="id 0 is no ordinary token"):
        tokenizer.save(tmp_path / "b.tiktoken")


@pytest.mark.parametrize("name", ["tokenizer.json", "ranks.tiktoken"])
def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ByteLevelBPE.train(["low low"], vocab_size=257), ByteLevelBPE.train(["slow slow"], vocab_size=258)
    old.save(tmp_path / name)
    written = Path.write_text

    def full(self: Path, text: str, *args: Any, **options: Any) -> int:
        written(self, text[:50], *args, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        new.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert ByteLevelBPE.load(tmp_path / name).merges == old.merges


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("a.tiktoken", "a.json", "folder"):
        with pytest.raises(FileNotFoundError, match=name):
            ByteLevelBPE.load(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for content in (b"", b"{", b"\xff\xfe", b"[]", b'{"model": {}}'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            ByteLevelBPE.load(file)


def test_special_tokens_are_for_rank_files(tmp_path: Path) -> None:
    raw_file(tmp_path)
    with pytest.raises(ValueError, match="names its special tokens itself"):
        ByteLevelBPE.load(tmp_path, special_tokens=["<s>"])


# --- bad input


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "the corpus has 0 words"),
        (["", ""], {}, "the corpus has 0 words"),
        ("a string", {}, r"texts is one string, expected several: pass \[text\]"),
        (["a"], {"vocab_size": 255}, "vocab_size is 255, expected at least 256"),
        (["a"], {"vocab_size": 257, "special_tokens": ["<a>", "<b>"]}, "expected at least 258: .*2 special tokens"),
        (["ab"], {"vocab_size": 259, "special_tokens": ["<a>", "<a>"]}, "2 names, 1 of them different"),
        (["ab"], {"vocab_size": 258, "special_tokens": [""]}, "0 characters"),
        (["ab"], {"vocab_size": 258, "special_tokens": ["ab"]}, "'ab' with id 257 is in conflict with the token b'ab'"),
        (["a\ud800"], {}, "lone surrogate U\\+D800 at index 1"),
        (["ab"], {"pattern": "gpt5"}, r"no pattern 'gpt5', expected one of \['gpt2', 'gpt4'\]"),
    ],
)
def test_training_that_is_refused(texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ByteLevelBPE.train(texts, **{"vocab_size": 256, **options})


def test_numbers_that_are_refused() -> None:
    with pytest.raises(ValueError, match="n_merges is -1"):
        train_bpe({b"ab": 1}, -1)
    with pytest.raises(ValueError, match="n_merges is -1"):
        bpe_reference([b"ab"], -1)
    with pytest.raises(ValueError, match="n_merges is 1113857, expected at most 1113856"):
        train_bpe({b"ab": 1}, 1_113_857)


def test_text_that_is_refused() -> None:
    with pytest.raises(ValueError, match="lone surrogate U\\+DC80 at index 2"):
        small().encode("ab\udc80")
    with pytest.raises(ValueError, match="'<s>' is no special token, expected some of"):
        small().encode("<s>", allowed_special=["<s>"])


@pytest.mark.parametrize("id", [320, -1, 10**9, "a", None, 1.5])
def test_ids_that_are_refused(id: Any) -> None:
    with pytest.raises(ValueError, match="is no token, expected 0 to 319"):
        small().decode([1, id])


def test_no_torch() -> None:
    code = "import sys, llm_study.tokenizers.bpe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TOKENIZERS = {pattern: small(pattern) for pattern in PATTERNS}
