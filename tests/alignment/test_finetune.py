"""``python -m llm_study finetune``: it answers as taught, goes on after a kill, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_study.__main__ import main
from llm_study.alignment.finetune import METHODS, FinetuneConfig, Finetuning, chat_format, end_of_text
from llm_study.alignment.sft import pad_examples, sft_loss
from llm_study.core.config import BertConfig, GPT2Config, LlamaConfig
from llm_study.models import from_pretrained
from llm_study.models.bert import BertForMaskedLM
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import merge, trainable, unload
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.chat import TEMPLATES
from llm_study.training.checkpoint import checkpoints, load_checkpoint

ROOT = Path(__file__).parents[2]
ANSWERS = {"red": "stop", "green": "go", "amber": "wait"}
TEXT = "User: red green amber Assistant: stop go wait. " * 20
CHATML = ["<|im_start|>", "<|im_end|>"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
RUN = {"steps": 12, "batch_size": 4, "warmup": 2, "learning_rate": 0.01, "eval_every": 5, "save_every": 4, "rank": 4}


def chats(n: int) -> list[dict[str, Any]]:
    """Return conversations of one or two questions."""
    asked = [list(ANSWERS.items())[i % 3] for i in range(n + 1)]
    both = [[*zip(("user", "assistant"), pair, strict=True)] for pair in asked]
    turns = [both[i] + both[i + 1] * (i % 2) for i in range(n)]
    return [{"messages": [{"role": role, "content": words} for role, words in turn]} for turn in turns]


def write_data(file: Path, conversations: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(x) + "\n" for x in conversations), "utf-8")


def write_base(folder: Path, special: list[str], **sizes: Any) -> Path:
    """Write a tiny random model, larger in its weights than a fresh one, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = ByteLevelBPE.train([TEXT], vocab_size=280 + len(special), special_tokens=special)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.special_tokens.get("<|endoftext|>")}
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **{**SIZES, **sizes}, **ends)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.ndim > 1 else 1
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models: one that knows the end of a text only, and one that knows ChatML."""
    folder = tmp_path_factory.mktemp("bases")
    write_base(folder / "plain", ["<|endoftext|>"])
    write_base(folder / "chatml", ["<|endoftext|>", *CHATML])
    return folder


@pytest.fixture
def place(tmp_path: Path, bases: Path) -> Path:
    """Return a folder with a model, conversations and settings."""
    shutil.copytree(bases / "plain", tmp_path / "base")
    write_data(tmp_path / "chat.jsonl", chats(20))
    (tmp_path / "run.toml").write_text("".join(f"{name} = {x}\n" for name, x in RUN.items()), "utf-8")
    return tmp_path


def arguments(place: Path, out: str = "out", **changes: object) -> list[str]:
    options = {"data": place / "chat.jsonl", "out": place / out, "config": place / "run.toml", **changes}
    base = options.pop("base", place / "base")
    return ["finetune", str(base), *(str(x) for name, value in options.items() for x in (f"--{name}", value))]


def history(place: Path, out: str = "out") -> tuple[list[float], list[Any], dict[str, torch.Tensor]]:
    """Return losses, evaluations and tensors of a run that is complete."""
    last = load_checkpoint(checkpoints(place / out / "checkpoints")[-1])
    assert last.step == 12
    return last.tensors["history"]["losses"].tolist(), last.state["evaluations"], last.tensors["model"]


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    assert all(torch.equal(x, expected[2][name]) for name, x in found[2].items())


# --- it learns


@pytest.mark.parametrize(("kind", "method"), [("plain", "lora"), ("chatml", "full"), ("chatml", "dora")])
def test_the_merged_model_answers_as_taught(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, method: str
) -> None:
    write_data(tmp_path / "chat.jsonl", chats(20))
    (tmp_path / "run.toml").write_text("learning_rate = 0.01\nwarmup = 5\nbatch_size = 8\n", "utf-8")
    command = arguments(tmp_path, base=bases / kind, method=method, steps=80)
    assert main(command) == 0
    out, error = capsys.readouterr()
    assert f"format {kind}" in error
    assert f"answer with --chat {kind}" in out
    for question, answer in ANSWERS.items():
        assert main(["generate", str(tmp_path / "out"), question, "--chat", kind, "--max-new-tokens", "20"]) == 0
        assert capsys.readouterr().out.strip() == answer
    assert (tmp_path / "out/adapter").is_dir() == (method != "full")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_what_is_saved_is_what_was_trained(place: Path, method: str) -> None:
    options = {"vector_length": 16, "num_vectors": 8} if method == "vb_lora" else {}
    config = FinetuneConfig(**{**RUN, "method": method, "options": options, "learning_rate": 0.003})
    run = Finetuning(place / "base", place / "chat.jsonl", config, folder=place / "out")
    before = run.evaluate()
    assert run.trainer.run().evaluations[-1][1] < before
    run.save()
    ids, _, positions, segments = batch = pad_examples(run.held_out)
    best = min(value for _, value in run.trainer.history.evaluations)
    merged = from_pretrained(place / "out")
    with torch.no_grad():
        total, count = sft_loss(merged, batch)
    assert float(total / count) == pytest.approx(best, rel=1e-4)
    if method != "full":
        again = load_adapter(from_pretrained(place / "base"), place / "out/adapter")
        with torch.no_grad():
            torch.testing.assert_close(again(ids), merged(ids), rtol=1e-4, atol=1e-4)
        assert sum(p.numel() for p in trainable(run.model).values()) < 0.5 * run.n_base
