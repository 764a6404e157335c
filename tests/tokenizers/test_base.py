"""What tokenizers share: streams of whole characters, special tokens, checked text, and reading tokenizer.json."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_study.tokenizers.base import (
    TOKENIZER,
    StreamDecoder,
    Tokenizer,
    check_text,
    read_tokenizer_json,
    split_special,
)


class Pieces:
    """A tokenizer whose vocabulary is a list of bytes; ids are turned into bytes one after the other."""

    def __init__(self, vocabulary: list[bytes]) -> None:
        self.vocabulary, self.vocab_size = vocabulary, len(vocabulary)

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"id {id} is not of this vocabulary, expected 0 to {self.vocab_size - 1}")
        return self.join([self.vocabulary[id] for id in ids])

    def join(self, tokens: list[bytes]) -> bytes:
        return b"".join(tokens)


class Words(Pieces):
    """Writes a space before each token that does not begin with ##, except the first, as WordPiece does."""

    def join(self, tokens: list[bytes]) -> bytes:
        later = [token.removeprefix(b"##") if token.startswith(b"##") else b" " + token for token in tokens[1:]]
        return b"".join(tokens[:1] + later)


class Stripped(Pieces):
    """Removes the space that the text begins with, as SentencePiece does; tokens may be a lone space, or nothing."""

    def join(self, tokens: list[bytes]) -> bytes:
        return b"".join(tokens).removeprefix(b" ")


class NoFirstSpaces(Pieces):
    """Removes all spaces of the first token, as the decoder Metaspace of the tokenizers library does."""

    def join(self, tokens: list[bytes]) -> bytes:
        return b"".join([*(token.replace(b" ", b"") for token in tokens[:1]), *tokens[1:]])


BYTES = [bytes([i]) for i in range(256)]
CUT = [b"\xe6\x96", b"\x87", b"\xf0\x9f", b"\x99\x82\xf0", b"\x9f\x99\x82", b"\xed\xa0\x80", b"\xff", b"\xc3"]
WORDS = [b"", b" ", b"  ", b"a", b" a", b"##", b"##s", b"a b", "文".encode(), *CUT]
TOKENIZERS = [Pieces(BYTES), Pieces(WORDS), Words(WORDS), Stripped(WORDS), NoFirstSpaces(WORDS)]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(id) for id in ids), decoder.flush()]


@given(data=st.data())
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: type(tokenizer).__name__)
def test_what_is_streamed_is_what_is_decoded(tokenizer: Pieces, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(), data=st.data())
def test_no_half_character_is_shown(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted({0, len(whole), *data.draw(st.lists(st.integers(0, len(whole)), max_size=20))})
    tokenizer = Pieces([whole[i:j] for i, j in zip(cuts, [*cuts[1:], len(whole)], strict=True)])
    shown = ""
    decoder = StreamDecoder(tokenizer)
    for id in range(tokenizer.vocab_size):
        shown += decoder.push(id)
        sent = whole[: cuts[id + 1] if id + 1 < len(cuts) else len(whole)]
        assert shown == sent.decode("utf-8", "ignore")  # all characters that are whole, and nothing else
    assert decoder.flush() == ""
    assert shown == text


def test_characters_are_shown_as_soon_as_they_are_whole() -> None:
    tokenizer = Pieces(BYTES)
    assert streamed(tokenizer, list("né文🙂!".encode())) == [*"n", "", "é", "", "", "文", "", "", "", "🙂", "!", ""]
    assert streamed(tokenizer, [0xE6, 0x41]) == ["", "\ufffdA", ""]  # no character begins so: known with the next byte
    assert streamed(tokenizer, [0xFF, 0x41]) == ["\ufffd", "A", ""]  # no character holds this byte: known at once
    assert streamed(tokenizer, [0xF0, 0x9F]) == ["", "", "\ufffd"]


def test_after_the_end_a_new_text_begins() -> None:
    decoder = StreamDecoder(Words(WORDS))
    first = [decoder.push(WORDS.index(b"a")), decoder.push(WORDS.index(b"a")), decoder.push(WORDS.index(b"\xc3"))]
    assert first == ["a", " a", " "]
    assert decoder.flush() == "\ufffd"
    assert decoder.push(WORDS.index(b"a")) == "a"


def test_a_stream_costs_the_same_at_every_place() -> None:
    calls: list[int] = []

    class Counted(Pieces):
        def join(self, tokens: list[bytes]) -> bytes:
            calls.append(len(tokens))
            return super().join(tokens)

    streamed(Counted(BYTES), [97] * 1000)
    assert max(calls) <= 2


def test_ids_of_another_vocabulary() -> None:
    decoder = StreamDecoder(Pieces(BYTES))
    with pytest.raises(ValueError, match="id 256 is not of this vocabulary, expected 0 to 255"):
        decoder.push(256)
    assert decoder.push(97) == "a"  # it goes on as if nothing had come


# --- text


@given(st.text())
def test_any_text_can_be_checked(text: str) -> None:
    check_text(text)


@given(st.text(max_size=5), st.integers(0xD800, 0xDFFF), st.text(max_size=5))
def test_lone_surrogates_are_refused(before: str, code: int, after: str) -> None:
    with pytest.raises(ValueError, match=f"text has a lone surrogate U\\+{code:04X} at index {len(before)}, which"):
        check_text(before + chr(code) + after)


# --- special tokens


@given(text=st.text("ab<>"), specials=st.sets(st.text("ab<>", min_size=1, max_size=3), max_size=4))
def test_pieces_are_the_text(text: str, specials: set[str]) -> None:
    pieces = split_special(text, specials)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    for i, (piece, special) in enumerate(pieces):
        rest = "".join(piece for piece, _ in pieces[i:])
        if special:
            assert piece == max((s for s in specials if rest.startswith(s)), key=len)
        else:  # plain text: no special token begins in it, and another plain piece does not follow
            assert not any(rest[k:].startswith(s) for k in range(len(piece)) for s in specials)
            assert i + 1 == len(pieces) or pieces[i + 1][1]


def test_special_tokens_are_no_patterns() -> None:
    assert split_special("a.b", ["."]) == [("a", False), (".", True), ("b", False)]
    assert split_special("a|b(", ["|", "(", "a|"]) == [("a|", True), ("b", False), ("(", True)]
    assert split_special("", ["a"]) == []
    assert split_special("abc", []) == [("abc", False)]


def test_an_empty_special_token() -> None:
    with pytest.raises(ValueError, match="a special token has 0 characters, expected at least 1"):
        split_special("abc", ["a", ""])


# --- tokenizer.json


def write(path: Path, raw: Any) -> Path:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw), "utf-8")
    return path


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"type": "Unigram", "vocab": [["a", 0.0]]}, "Unigram"),
        ({"vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": ""}, "BPE"),
        ({"vocab": {"a": 0}, "continuing_subword_prefix": "##"}, "WordPiece"),
        ({"vocab": [["a", 0.0]], "unk_id": 0}, "Unigram"),
        ({"vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
    ],
)
def test_the_type_of_a_model(tmp_path: Path, model: dict[str, Any], kind: str) -> None:
    write(tmp_path / TOKENIZER, {"version": "1.0", "model": model})
    expected = {"version": "1.0", "model": {**model, "type": kind}}
    assert read_tokenizer_json(tmp_path) == read_tokenizer_json(tmp_path / TOKENIZER) == expected


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("{", "no JSON"),
        ("[]", "holds a list, expected an object"),
        ({}, "has no model with a vocab"),
        ({"model": None}, "has no model with a vocab"),
        ({"model": {"type": "BPE"}}, "has no model with a vocab"),
        ({"model": {"type": "BPE", "vocab": 3}}, "has no model with a vocab"),
        ({"model": {"type": 3, "vocab": {}}}, "the type of the model is 3, expected a name"),
    ],
)
def test_bad_files(tmp_path: Path, raw: Any, text: str) -> None:
    file = write(tmp_path / TOKENIZER, raw)
    with pytest.raises(ValueError, match=f"{TOKENIZER}: {text}"):
        read_tokenizer_json(file)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: there is no such file"):
        read_tokenizer_json(tmp_path)
