"""``python -m llm_study generate`` against transformers: the same text from the same folder, for every tokenizer."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM as TheirLlama
from transformers import PreTrainedTokenizerFast

from llm_study import __main__ as command_line
from llm_study.core.config import LlamaConfig
from llm_study.models.llama import LlamaForCausalLM
from llm_study.tokenizers.auto import leading_ids, load_tokenizer
from llm_study.tokenizers.base import TOKENIZER, StreamDecoder
from llm_study.tokenizers.chat import TEMPLATES
from tests.parity.tiny_models import scramble

TEXTS = [
    "Low, lower, lowest: the model's words.",
    "大语言模型从文本中学习，文本由词元组成。",
    "naïve café 🙂🙃 für Elise",
    "x = x + 1\n",
] * 3
PROMPTS = ["Lower", "大语言", "café 🙂", "x = x +"]
SPECIAL = ["<s>", "</s>", "[UNK]", "[CLS]", "[SEP]"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level_with_start() -> Tokenizer:
    tokenizer = byte_level()
    start = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), start])
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    around = [("[CLS]", 3), ("[SEP]", 4)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


KINDS: dict[str, tuple[Callable[[], Tokenizer], int]] = {
    "byte-level BPE": (byte_level, 0),
    "byte-level BPE after <s>": (byte_level_with_start, 0),
    "WordPiece": (wordpiece, 1),
    "Unigram": (unigram, 0),
}
"""Name → tokenizer, and how many ids its file puts after a text; the command leaves those out."""


def model_folder(folder: Path, tokenizer: Tokenizer, *, seed: int = 0, spare: int = 0, **changes: Any) -> Path:
    """Write a tiny random model whose vocabulary is that of a tokenizer, with ``spare`` rows more."""
    size = tokenizer.get_vocab_size() + spare
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, **sizes, **{"eos_token_id": None, **changes}))
    scramble(model, seed)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / TOKENIZER))
    return folder


def expected(folder: Path, prompt: list[int], n: int, ends: list[int] | None = None) -> list[int]:
    """Return the ids that transformers adds, greedily, without the one that ends the text."""
    model = TheirLlama.from_pretrained(folder).eval()
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)  # else transformers takes <s>, whose id is 0, for padding
    options = {"max_new_tokens": n, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, **options)[0, len(prompt) :].tolist()
    return found[:-1] if ends and found[-1] in ends else found


def lively(path: Path, tokenizer: Tokenizer, prompt: list[int]) -> tuple[Path, list[int]]:
    """Return a folder whose model does not say the same all the time, and the 24 ids that it says.

    Trained vocabularies differ from one process to the next, since the library goes through them in no fixed order.
    """
    for seed in range(20):
        folder = model_folder(path / str(seed), tokenizer, seed=seed)
        new = expected(folder, prompt, 24)
        if len(set(new)) > 2:
            return folder, new
    raise AssertionError("20 models say the same all the time")


def text_after(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    before, whole = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (prompt, prompt + new))
    assert whole.startswith(before)
    return whole[len(before) :]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_that_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, prompt: str
) -> None:
    make, after = KINDS[kind]
    tokenizer = make()
    ids = tokenizer.encode(prompt).ids
    ids = ids[: len(ids) - after]
    folder, new = lively(tmp_path, tokenizer, ids)
    capsys.readouterr()  # transformers shows how it reads a folder
    assert command_line.main(["generate", str(folder), prompt, "--max-new-tokens", "24"]) == 0
    out, error = capsys.readouterr()
    assert (out, error) == (text_after(tokenizer, ids, new) + "\n", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_any_ids_is_what_the_library_decodes(tmp_path: Path, kind: str) -> None:
    tokenizer = KINDS[kind][0]()
    tokenizer.save(str(tmp_path / TOKENIZER))
    ours, generator = load_tokenizer(tmp_path), torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(len(SPECIAL), tokenizer.get_vocab_size(), (12,), generator=generator).tolist()
        decoder = StreamDecoder(ours)
        streamed = "".join(decoder.push(id) for id in ids) + decoder.flush()
        assert streamed == ours.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_leading_ids_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    make, after = KINDS[kind]
    tokenizer = make()
    tokenizer.save(str(tmp_path / TOKENIZER))
    around = tokenizer.encode("").ids
    assert leading_ids(tmp_path) == around[: len(around) - after]


# --- a model that says what it is told to


def telling(folder: Path, tokenizer: Tokenizer, ids: list[int], **changes: Any) -> Path:
    """Write a model that follows ``ids[i]`` with ``ids[i + 1]``, whatever else it has read."""
    size = tokenizer.get_vocab_size()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, **sizes, **{"eos_token_id": None, **changes}))
    assert len(set(ids)) == len(ids)  # each id has one that follows it
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()  # layers add nothing to the embedding
        embedding = parameters["model.embed_tokens.weight"].normal_()
        parameters["lm_head.weight"][ids[1:]] = embedding[ids[:-1]]
    model.save_pretrained(folder)
    tokenizer.save(str(folder / TOKENIZER))
    return folder


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a token for each byte of a text."""
    [(written, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(letter) for letter in written]


def shown(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> list[str]:
    """Return what the command writes, in the pieces in which it does."""
    pieces: list[str] = []
    monkeypatch.setattr(command_line, "show_piece", pieces.append)
    assert command_line.main(["generate", str(folder), *options]) == 0
    return pieces


def test_characters_are_shown_when_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    ids = letters(tokenizer, "aé文🙂!")
    folder = telling(tmp_path, tokenizer, ids)
    pieces = shown(monkeypatch, folder, "a", "--max-new-tokens", str(len(ids) - 1))
    assert pieces == ["", "é", "", "", "文", "", "", "", "🙂", "!", "\n"]
    assert tokenizer.decode(ids[:1] + expected(folder, ids[:1], len(ids) - 1)) == "aé文🙂!"
    pieces = shown(monkeypatch, folder, "a", "--max-new-tokens", "4")
    assert pieces == ["", "é", "", "", "\ufffd\n"]  # the text ends within a character


def test_the_text_ends_where_the_folder_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level()
    end = tokenizer.token_to_id("</s>")
    ids = [*letters(tokenizer, "abc"), end, *letters(tokenizer, "xy")]
    for in_config, in_generation, text in [
        (None, None, "bc</s>xy"),
        (end, None, "bc"),
        ([ids[1], end], None, ""),
        (9999, None, "bc</s>xy"),  # an id that the model does not have
        (end, {"eos_token_id": [ids[2]]}, "b"),
        (end, {"eos_token_id": None}, "bc</s>xy"),
        (ids[2], {"temperature": 0.6}, "b"),
    ]:
        folder = telling(tmp_path, tokenizer, ids, eos_token_id=in_config)
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        if in_generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(in_generation))
        assert command_line.main(["generate", str(folder), "a", "--max-new-tokens", "5"]) == 0
        assert capsys.readouterr().out == text + "\n"


def test_rows_that_pad_the_vocabulary_spell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    small = tokenizer.get_vocab_size()
    with_more = byte_level()
    with_more.add_tokens(["one more"])
    folder = telling(tmp_path, with_more, [*letters(tokenizer, "a"), small, *letters(tokenizer, "b")])
    tokenizer.save(str(folder / TOKENIZER))
    assert shown(monkeypatch, folder, "a", "--max-new-tokens", "2") == ["b", "\n"]
    assert tokenizer.decode([small, *letters(tokenizer, "b")]) == "b"  # so does the library


def chat_tokenizer() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(TEMPLATES["qwen2"].control))
    return tokenizer


def test_a_chat_reads_what_transformers_gives_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer()
    oracle = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATES["qwen2"].jinja())
    read: list[list[int]] = []
    monkeypatch.setattr(command_line, "new_ids", lambda arguments, ids, ends: read.append(ids) or iter([]))
    folder = model_folder(tmp_path, tokenizer)
    for system in ([], ["Be brief."]):
        messages = [{"role": "system", "content": text} for text in system]
        messages.append({"role": "user", "content": "1 + 1?\n你好"})
        options = ["--system", *system] if system else []
        shown(monkeypatch, folder, "1 + 1?\n你好", "--chat", "qwen2", *options)
        assert read.pop() == oracle.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_an_answer_ends_with_the_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although config.json names no end, or another one."""
    tokenizer = chat_tokenizer()
    ids = [*letters(tokenizer, "\nok"), tokenizer.token_to_id("<|im_end|>"), *letters(tokenizer, "x")]
    for end in (None, tokenizer.token_to_id("x")):
        folder = telling(tmp_path, tokenizer, ids, eos_token_id=end)
        assert shown(monkeypatch, folder, "1 + 1?", "--chat", "chatml") == ["o", "k", "\n"]


def test_a_seed_repeats_what_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path, byte_level())
    command = ["Low", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--max-new-tokens", "16"]
    first, again, other = ("".join(shown(monkeypatch, folder, *command, "--seed", seed)) for seed in "001")
    assert first == again != other
    assert "".join(shown(monkeypatch, folder, *command)) != "".join(shown(monkeypatch, folder, *command))


# --- as a program


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llm_study", "generate", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_program_writes_utf8(tmp_path: Path) -> None:
    tokenizer = byte_level()
    ids = letters(tokenizer, "aé文🙂!")
    out, error = start(telling(tmp_path, tokenizer, ids), "a", "--max-new-tokens", str(len(ids) - 1)).communicate()
    assert (out.decode().splitlines(), error) == (["é文🙂!"], b"")


@pytest.mark.parametrize("how", ["nobody reads any more", "Ctrl-C"])
def test_the_program_ends_quietly(tmp_path: Path, how: str) -> None:
    program = start(model_folder(tmp_path, byte_level()), "Low", "--max-new-tokens", "20000")
    assert program.stdout
    assert program.stderr
    assert program.stdout.read(1)  # text comes long before the end
    if how == "Ctrl-C":
        program.send_signal(signal.SIGINT)
        program.stdout.read()
    else:
        program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait(60) == (130 if how == "Ctrl-C" else 141)
    program.stderr.close()
    program.stdout.close()
