"""Unigram gives the ids and texts of the tokenizers library, and the pieces and probabilities of SentencePiece."""

import base64
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from llm_study.tokenizers._normalize import normalizer_of
from llm_study.tokenizers.unigram import BYTE_DECODER, METASPACE, Unigram, n_best, sample_segmentation, viterbi

law = settings(max_examples=200, derandomize=True, deadline=None)
ROOT = Path(__file__).parents[2]
CORPUS = [
    line
    for name in ("docs/contributing/writing.rst", "llm_study/core/checks.py")
    for line in (ROOT / name).read_text("utf-8").splitlines()
    if line.strip()
]
WORDS = st.sampled_from(
    ["the ", "字节", "return", " value", "写", "checks ", "é", "🙂", "  ", "▁", "<unk>", "\n", "\u3000"]
)
ODD = " e\u0301\u3099か①ﾊﾟ\u200d\n"
TEXT = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=12).map("".join))


def proto_fields(raw: bytes) -> dict[int, list[bytes]]:
    """Return the fields of one level of a protocol buffer that hold bytes."""
    found: dict[int, list[bytes]] = {}
    stream = io.BytesIO(raw)

    def number() -> int:
        value, shift = 0, 0
        while byte := stream.read(1):
            value |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                break
        return value

    while stream.tell() < len(raw):
        key = number()
        if key & 7 == 2:
            found.setdefault(key >> 3, []).append(stream.read(number()))
        elif key & 7 == 0:
            number()
        else:
            stream.read({1: 8, 5: 4}[key & 7])
    return found


def trained(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train a small model of SentencePiece, in memory."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=900, num_threads=1, minloglevel=2, **options
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def identity() -> sentencepiece.SentencePieceProcessor:
    return trained(normalization_rule_name="identity", remove_extra_whitespaces=False)


@pytest.fixture(scope="module")
def charsmap() -> str:
    """The table of T5 and its relatives, as SentencePiece compiles it."""
    model = proto_fields(trained().serialized_model_proto())
    return base64.b64encode(proto_fields(model[3][0])[2][0]).decode()


def pieces_of(sp: sentencepiece.SentencePieceProcessor) -> list[tuple[str, float]]:
    return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())]


@law
@given(TEXT)
def test_best_cut_is_that_of_sentencepiece(identity: sentencepiece.SentencePieceProcessor, text: str) -> None:
    text = text.replace("\0", "")
    logp = {p: score for i, (p, score) in enumerate(pieces_of(identity)) if not identity.is_control(i) and i}
    tokenizer = Unigram(pieces_of(identity), special_tokens=["<unk>", "<s>", "</s>"])
    prefixed = "▁" + text.replace(" ", "▁") if text else ""  # SentencePiece adds one even before a space
    cut = viterbi(prefixed, logp, unk=min(logp.values()) - 10)
    assert tokenizer._ids(cut) == identity.encode(text)
    if "<unk>" not in text and not text.startswith((" ", "▁")):
        assert tokenizer.encode(text) == identity.encode(text)


def test_n_best_cuts_are_those_of_sentencepiece(identity: sentencepiece.SentencePieceProcessor) -> None:
    logp = {p: score for i, (p, score) in enumerate(pieces_of(identity)) if not identity.is_control(i) and i}
    for word in ("checks", "returns", "字节的次序", "translation"):
        ours, theirs = n_best("▁" + word, logp, 6), identity.nbest_encode_as_pieces(word, 6)
        scores = [sum(logp[piece] for piece in cut) for cut in theirs]
        assert [score for score, _ in ours] == pytest.approx(scores, rel=1e-6)
        assert sorted(cut for _, cut in ours) == sorted(theirs)  # some have the same score


def test_random_cuts_are_as_frequent_as_those_of_sentencepiece(identity: sentencepiece.SentencePieceProcessor) -> None:
    logp = {p: score for i, (p, score) in enumerate(pieces_of(identity)) if not identity.is_control(i) and i}
    n, rng = 4000, random.Random(0)
    ours, theirs = {}, {}
    sentencepiece.set_random_generator_seed(1)
    for _ in range(n):
        a = tuple(sample_segmentation("▁translation", logp, rng=rng, alpha=0.2))
        b = tuple(identity.sample_encode_as_pieces("translation", -1, 0.2))
        ours[a], theirs[b] = ours.get(a, 0) + 1, theirs.get(b, 0) + 1
    common = [cut for cut in {**ours, **theirs} if ours.get(cut, 0) + theirs.get(cut, 0) >= 50]
    assert len(common) >= 5
    # two samples of one size: (a - b)² / (a + b) summed is chi-square, of mean k and variance 2k for k cells
    chi = sum((ours.get(c, 0) - theirs.get(c, 0)) ** 2 / (ours.get(c, 0) + theirs.get(c, 0)) for c in common)
    assert chi < len(common) + 4 * math.sqrt(2 * len(common))


# --- the tokenizers library

SETTINGS = [
    METASPACE,
    {**METASPACE, "prepend_scheme": "first"},
    {**METASPACE, "prepend_scheme": "never", "split": False},
    {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]},
    {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {**METASPACE, "prepend_scheme": "first"}]},
    {"type": "WhitespaceSplit"},
    None,
]


def file_of(pieces: list[tuple[str, float]], **parts: Any) -> dict[str, Any]:
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    none = dict.fromkeys(["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
    return {"version": "1.0", "added_tokens": [], **none, "model": model, **parts}


def both(folder: Path, raw: dict[str, Any]) -> tuple[Unigram, Tokenizer]:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(raw), "utf-8")
    return Unigram.load(file), Tokenizer.from_file(str(file))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda entry: json.dumps(entry)[:60])
def test_ids_and_texts_are_those_of_the_library(
    identity: sentencepiece.SentencePieceProcessor, tmp_path: Path, setting: dict[str, Any] | None
) -> None:
    decoder = setting if setting and setting["type"] == "Metaspace" else METASPACE
    ours, theirs = both(tmp_path, file_of(pieces_of(identity), pre_tokenizer=setting, decoder=decoder))

    @law
    @given(TEXT.filter(lambda text: "<unk>" not in text))
    @example(" a  b ")
    @example("")
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)

    check()


def test_bytes_stand_for_what_is_unknown_as_in_the_library(
    identity: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    pieces = [*pieces_of(identity), *((f"<0x{b:02X}>", 0.0) for b in range(256))]
    raw = file_of(pieces, pre_tokenizer=METASPACE, decoder=BYTE_DECODER)
    raw["model"]["byte_fallback"] = True
    ours, theirs = both(tmp_path, raw)

    @law
    @given(TEXT.filter(lambda text: "<unk>" not in text))
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert (
            ours.decode(ids)
            == theirs.decode(ids, skip_special_tokens=False)
            == text.replace("▁", " ").removeprefix(" " if text.startswith(("▁", " ")) else "")
        )

    check()


@law
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(-12, -1), min_size=1),
    st.text("abcd", max_size=20),
)
def test_small_vocabularies_with_many_ties_give_the_ids_of_the_library(scores: dict[str, int], text: str) -> None:
    pieces = [("<unk>", 0.0), *((piece, score / 2) for piece, score in scores.items())]
    ours = Unigram(pieces, pre_tokenizer=None)
    assert ours.encode(text) == Tokenizer(models.Unigram(pieces, 0, False)).encode(text).ids


def test_special_tokens_are_those_of_the_library(
    identity: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 1, "content": "<s>", **plain}, {"id": 900, "content": "<extra>", **plain}]
    for scheme in ("always", "first"):
        parts = {"pre_tokenizer": {**METASPACE, "prepend_scheme": scheme}, "added_tokens": added}
        ours, theirs = both(tmp_path, file_of(pieces_of(identity), **parts))
        for text in ("<s>the checks<extra>the <s> return", "the<s>the", " <extra>"):
            assert ours.encode(text, allowed_special=["<s>", "<extra>"]) == theirs.encode(text).ids


def test_every_character_is_normalized_as_in_the_library(charsmap: str) -> None:
    every = [chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000]
    texts = [" ".join(every[i : i + 256]) for i in range(0, len(every), 256)]
    for ours, theirs in [
        (
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            normalizers.Precompiled(base64.b64decode(charsmap)),
        ),
        ({"type": "Lowercase"}, normalizers.Lowercase()),
        *(({"type": form}, getattr(normalizers, form)()) for form in ("NFC", "NFD", "NFKC", "NFKD")),
    ]:
        normalize = normalizer_of(ours)
        assert [text for text in texts if normalize(text) != theirs.normalize_str(text)] == []


@law
@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" e\u0301\u3099か①ﾊﾟ\u200d\n")), max_size=20
    )
)
@example("か\u3099")  # six bytes: looked up one by one
@example("e\u0301\u0300")
def test_normalizers_are_those_of_the_library(charsmap: str, text: str) -> None:
    # what the converter of transformers writes for T5, and its relatives
    parts = [
        {"type": "Precompiled", "precompiled_charsmap": charsmap},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    theirs = normalizers.Sequence(
        [
            normalizers.Precompiled(base64.b64decode(charsmap)),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    assert normalizer_of({"type": "Sequence", "normalizers": parts})(text) == theirs.normalize_str(text)
    both_sides = {"type": "Strip", "strip_left": True, "strip_right": True}
    assert normalizer_of(both_sides)(text) == normalizers.Strip().normalize_str(text)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    for fallback in (False, True):
        ours = Unigram.train(CORPUS[:50], vocab_size=900, byte_fallback=fallback, special_tokens=["<pad>", "<unk>"])
        ours.save(tmp_path / "tokenizer.json")
        oracle, again = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Unigram.load(tmp_path)
        for text in [*CORPUS[:40], "unknown ☃🙂 things", ""]:
            ids = ours.encode(text)
            assert ids == oracle.encode(text).ids == again.encode(text)
            assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=False) == again.decode(ids)
        assert isinstance(oracle.decoder, decoders.Sequence if fallback else decoders.Metaspace)
        assert isinstance(oracle.pre_tokenizer, pre_tokenizers.Metaspace)


@pytest.mark.parametrize(("low", "ids"), [(-10.0, [1, 2]), (-11.0, [0, 3])])
def test_the_penalty_of_an_unknown_character_is_that_of_the_library(low: float, ids: list[int]) -> None:
    # unknown a + bcd costs 10.5 more than the least probable piece, which is ab or cd
    pieces = [("<unk>", 0.0), ("ab", low), ("cd", low), ("bcd", -0.5)]
    assert Tokenizer(models.Unigram(pieces, 0, False)).encode("abcd").ids == ids
    assert Unigram(pieces, pre_tokenizer=None).encode("abcd") == ids
