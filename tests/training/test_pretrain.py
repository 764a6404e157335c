"""``python -m llm_study train``: killed at any moment it goes on to the same losses, and says what is wrong."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llm_study.__main__ import main
from llm_study.data.texts import Corpus
from llm_study.functional.information import bits_per_byte
from llm_study.models import from_pretrained
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.training import checkpoint
from llm_study.training.checkpoint import checkpoints, load_checkpoint
from llm_study.training.pretrain import END, PretrainConfig, Pretraining, evaluate, train_tokenizer
from tests.scripts import LLM_STUDY, run, start, torchrun

TEXT = "".join(f"The cat number {i} sat on mat {i * i % 17}, and so did dog {i % 5}.\n" for i in range(150))
SIZES = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "length": 16, "batch_size": 2, "warmup": 2, "learning_rate": 0.01, "eval_every": 5,
    "eval_windows": 4, "save_every": 4,
}  # fmt: skip
TINY = PretrainConfig(**{**SIZES, "steps": 12})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a text and settings."""
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    (tmp_path / "run.toml").write_text("".join(f"{name} = {x}\n" for name, x in SIZES.items()), "utf-8")
    return tmp_path


def arguments(place: Path, out: str = "out", **changes: object) -> list[str]:
    options = {"text": place / "text.txt", "out": place / out, "steps": 12, "config": place / "run.toml", **changes}
    return ["train", *(str(x) for name, value in options.items() for x in (f"--{name}", value))]


def history(place: Path, out: str = "out") -> tuple[list[float], list[Any], dict[str, torch.Tensor]]:
    """Return losses, evaluations and weights of a run that is complete."""
    last = load_checkpoint(checkpoints(place / out / "checkpoints")[-1])
    assert last.step == 12
    return last.tensors["history"]["losses"].tolist(), last.state["evaluations"], last.tensors["model"]


# --- killed


KILLER = """
import os, shutil, signal, sys
from llm_study.training import checkpoint
from llm_study.__main__ import main

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def half(file, data):
    if file.name == sys.argv[2]:
        with file.open("wb") as opened:
            opened.write(data[: len(data) // 2])
            opened.flush()
            die()
    write(file, data)

write, rename, rmtree = checkpoint._write, os.rename, shutil.rmtree
if sys.argv[1] == "write":
    checkpoint._write = half
elif sys.argv[1] == "before rename":
    os.rename = lambda a, b: die()
elif sys.argv[1] == "after rename":
    os.rename = lambda a, b: (rename(a, b), die())
elif sys.argv[1] == "remove":
    shutil.rmtree = lambda path, **options: (os.unlink(path / "state.json"), die())
sys.exit(main(sys.argv[3:]))
"""


def undisturbed(place: Path) -> tuple[list[float], list[Any], dict[str, torch.Tensor]]:
    """Return what a run gives that nobody kills, in a process of its own as the others."""
    run(*LLM_STUDY, *arguments(place, "whole"))
    return history(place, "whole")


def assert_same(found: tuple[list[float], list[Any], dict[str, torch.Tensor]], expected: Any) -> None:
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    assert all(torch.equal(x, expected[2][name]) for name, x in found[2].items())


def test_a_run_killed_while_it_saves_goes_on_to_the_same_losses(place: Path) -> None:
    """Each process is killed at another place of a save; together they train."""
    whole = undisturbed(place)
    places = [
        ("write", "model.safetensors"),  # nothing is saved yet
        ("write", "state.json"),
        ("before rename", ""),
        ("after rename", ""),  # step 4 is there
        ("write", "optimizer.safetensors"),
        ("after rename", ""),  # step 8 is there
        ("remove", ""),  # step 12 is there, step 4 half gone
    ]
    steps = []
    for how, file in places:
        program = start("-c", KILLER, how, file, *arguments(place))
        _, error = program.communicate()
        assert program.returncode == -signal.SIGKILL, error
        found = checkpoints(place / "out/checkpoints")
        steps.append(load_checkpoint(found[-1]).step if found else 0)  # every checkpoint that shows is whole
        assert not (place / "out/model.safetensors").exists()
    assert steps == [0, 0, 0, 4, 4, 8, 12]
    program = start(*LLM_STUDY, *arguments(place))
    assert "goes on after step 12" in program.communicate()[1]
    assert program.returncode == 0
    assert_same(history(place), whole)
    left = sorted(path.name for path in (place / "out/checkpoints").glob("step-*"))
    assert left == ["step-00000008", "step-00000012"]


def test_a_run_killed_from_outside_goes_on_to_the_same_losses(place: Path) -> None:
    whole = undisturbed(place)
    folder = place / "out/checkpoints"
    for step in (4, 8):
        program = start(*LLM_STUDY, *arguments(place))
        while not (folder / f"step-{step:08}").exists() and program.poll() is None:
            time.sleep(0.0005)
        program.send_signal(signal.SIGKILL)
        program.communicate()
    program = start(*LLM_STUDY, *arguments(place))
    assert program.communicate()[0].count("\n") == 2
    assert program.returncode == 0
    assert_same(history(place), whole)


def test_several_processes_train_from_the_command_line(place: Path) -> None:
    losses, evaluations, _ = undisturbed(place)
    (place / "pieces.toml").write_text((place / "run.toml").read_text() + "fsdp = true\n")
    out, _ = run(*torchrun(2), *LLM_STUDY, *arguments(place, config=place / "pieces.toml"))
    assert out.count("bits per byte") == 1  # the first process speaks
    found = history(place)
    assert found[0] == pytest.approx(losses, rel=1e-6)
    assert [x for _, x in found[1]] == pytest.approx([x for _, x in evaluations], rel=1e-6)
    assert main(["generate", str(place / "out"), "The cat", "--max-new-tokens", "3"]) == 0


# --- in this process


def test_it_learns_says_so_and_does_nothing_the_second_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place)) == 0
    out, error = capsys.readouterr()
    losses, evaluations, _ = history(place)
    assert losses[-1] < losses[0] - 0.1
    assert [step for step, _ in evaluations] == [5, 10, 12]
    assert f"{evaluations[-1][1]:.4f} nats per token" in out
    assert "training begins: 12 steps of 32 tokens" in error
    assert "step 12 of 12, loss" in error
    before = (place / "out/model.safetensors").read_bytes()
    assert main(arguments(place)) == 0
    again, error = capsys.readouterr()
    assert again == out
    assert "training goes on after step 12" in error
    assert (place / "out/model.safetensors").read_bytes() == before


def test_the_model_speaks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, steps=60, out="talk")) == 0
    capsys.readouterr()
    command = ["generate", str(place / "talk"), "The", "--max-new-tokens", "8"]
    assert main([*command, "--temperature", "1", "--seed", "0"]) == 0
    assert len(capsys.readouterr().out) > 8


def test_a_seed_gives_another_run(place: Path) -> None:
    for seed in (0, 1):
        assert main(arguments(place, out=f"seed{seed}", seed=seed)) == 0
    assert history(place, "seed0")[0] != history(place, "seed1")[0]


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "text.txt: there is no such file or folder": (lambda p: (p / "text.txt").unlink(), {}),
    "text.txt: holds no text: 1 file, all empty": (lambda p: (p / "text.txt").write_text(" \n"), {}),
    "text.txt: byte 0xFF at 3 is no UTF-8": (lambda p: (p / "text.txt").write_bytes(b"abc\xff"), {}),
    "tokens, expected at least 17, length and one more: use": (
        lambda p: (p / "text.txt").write_text("abc\ndef\nghi\njkl\n"),
        {},
    ),
    "run.toml: there is no setting 'lenght', expected some of accumulate, batch_size": (
        lambda p: (p / "run.toml").write_text("lenght = 3"),
        {},
    ),
    "run.toml: no TOML": (lambda p: (p / "run.toml").write_text("length = = 3"), {}),
    "run.toml: hidden_size is '3', expected int": (lambda p: (p / "run.toml").write_text("hidden_size = '3'"), {}),
    "run.toml: seed is True, expected int": (lambda p: (p / "run.toml").write_text("seed = true"), {}),
    "run.toml: num_attention_heads = 4 does not divide hidden_size = 30": (
        lambda p: ((p / "run.toml").write_text("hidden_size = 30"), (p / "text.txt").write_text("x")),  # told first
        {},
    ),
    "run.toml: there is no setting 'model'": (lambda p: (p / "run.toml").write_text("[model]\nlength = 3"), {}),
    "run.toml: held_out is 1.5": (lambda p: (p / "run.toml").write_text("held_out = 1.5"), {}),
    "run.toml: there is no such file": (lambda p: (p / "run.toml").unlink(), {}),
    "steps is 0, expected at least 1": (lambda p: None, {"steps": 0}),
    "out: is a file, expected a folder: choose another path for --out": (lambda p: (p / "out").write_text("x"), {}),
    "out: holds a model but no checkpoint of a run: choose another folder": (
        lambda p: ((p / "out").mkdir(), (p / "out/config.json").write_text("{}")),
        {},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_told_in_one_line(place: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    spoil, changes = BAD[message]
    spoil(place)
    assert main(arguments(place, **changes)) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert error.startswith("python -m llm_study: error: ")
    assert error.count("\n") == 1
    assert not checkpoints(place / "out/checkpoints")


def test_a_folder_without_text_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "code").mkdir()
    (place / "code/a.py").write_text("1")
    assert main(arguments(place, text=place / "code")) == 2
    assert "code: has 0 files whose names end in .txt, .md, .rst, expected at least 1" in capsys.readouterr().err


def test_another_run_and_a_damaged_checkpoint_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place)) == 0
    model = (place / "out/model.safetensors").read_bytes()
    last = checkpoints(place / "out/checkpoints")[-1]
    (place / "other.txt").write_text(TEXT + "more\n")
    (place / "wide.toml").write_text((place / "run.toml").read_text().replace("size = 16", "size = 32"))
    for changes, message in [
        ({"steps": 13}, "steps was 12 and is now 13"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"text": place / "other.txt"}, "text was 'sha256 "),
        ({"config": place / "wide.toml"}, "hidden_size was 16 and is now 32"),
    ]:
        capsys.readouterr()
        assert main(arguments(place, **changes)) == 2
        error = capsys.readouterr().err
        assert f"{last}: {message}" in error
        assert "resume with what it was, or begin again in another folder" in error
    os.truncate(last / "optimizer.safetensors", 100)
    assert main(arguments(place)) == 2
    error = capsys.readouterr().err
    assert "optimizer.safetensors: cut short: has 100 bytes" in error
    assert "to go on from step-00000008" in error
    assert (place / "out/model.safetensors").read_bytes() == model
    assert load_checkpoint(checkpoints(place / "out/checkpoints")[0]).step == 8


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, "whole")) == 0
    real = checkpoint._write

    def failing(file: Path, data: bytes) -> None:
        if "step-00000008" in str(file) and file.name == "random.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(checkpoint, "_write", failing)
    assert main(arguments(place)) == 2
    error = capsys.readouterr().err
    assert "step-00000008: cannot be written: No space left on device; the last good checkpoint is " in error
    assert error.rstrip().endswith("step-00000004")
    assert [path.name for path in (place / "out/checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    assert main(arguments(place)) == 0
    assert_same(history(place), history(place, "whole"))


# --- its parts


def test_the_tokenizer_is_that_of_byte_level_bpe() -> None:
    for size in (257, 300):
        ours, same = train_tokenizer([TEXT], size), ByteLevelBPE.train([TEXT], vocab_size=size, special_tokens=[END])
        assert ours.merges == same.merges
        assert ours.encode(TEXT) == same.encode(TEXT)
        assert (ours.vocab_size, ours.special_tokens) == (size, {END: size - 1})
        assert ours.decode(ours.encode(TEXT)) == TEXT
    assert train_tokenizer(["ab"], 4096).vocab_size == 258
    with pytest.raises(ValueError, match="vocab_size is 256, expected at least 257"):
        train_tokenizer(["ab"], 256)


def test_texts_are_joined_with_an_end_before_between_and_after() -> None:
    config = PretrainConfig(**{**SIZES, "steps": 1, "length": 4})
    run = Pretraining(Corpus(["one two three four", "five six seven eight"], ["nine"]), config)
    end = run.tokenizer.special_tokens[END]
    assert (run.ids == end).nonzero().flatten().tolist() == [
        0,
        1 + len(run.tokenizer.encode("one two three four")),
        len(run.ids) - 1,
    ]
    assert run.tokenizer.decode(run.ids.tolist()) == f"{END}one two three four{END}five six seven eight{END}"


def test_bits_per_byte_are_those_of_the_held_out_bytes() -> None:
    held_out = ["The cat éè", "文本 and dogs"]
    run = Pretraining(Corpus([TEXT], held_out), PretrainConfig(**{**SIZES, "steps": 1, "eval_windows": 999}))
    n_bytes = sum(len(text.encode()) for text in held_out)
    n_tokens = sum(len(run.tokenizer.encode(text)) for text in held_out)
    assert run.bits_per_byte(2.0) == pytest.approx(bits_per_byte(2.0, n_tokens, n_bytes))
    ids, targets = run._windows
    with torch.no_grad():
        expected = F.cross_entropy(run.model(ids).flatten(0, 1), targets.flatten()).item()
    for size in (1, 2, 16):
        assert evaluate(run.model, ids, targets, batch_size=size) == pytest.approx(expected)


def test_a_run_without_a_folder_is_saved_where_one_says(tmp_path: Path) -> None:
    run = Pretraining(Corpus([TEXT], ["cat"]), TINY)
    with pytest.raises(ValueError, match="folder is None, expected where the model is to lie"):
        run.save()
    run.save(tmp_path / "new" / "model")
    ids = run.ids[None, :9]
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "new" / "model")(ids), run.model(ids))


def test_norms_have_no_weight_decay_and_the_rate_rises_and_falls() -> None:
    run = Pretraining(Corpus([TEXT], ["cat"]), TINY)
    matrices, vectors = run.trainer.optimizer.param_groups
    assert matrices["weight_decay"] == 0.1
    assert vectors["weight_decay"] == 0
    assert matrices["betas"] == vectors["betas"] == (TINY.beta1, TINY.beta2) == (0.9, 0.95)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(run.model.parameters()))
    rates = []
    while not run.trainer.finished:
        rates.append(matrices["lr"])
        run.trainer.step()
    assert rates[0] == pytest.approx(0.005)
    assert rates[1] == max(rates) == pytest.approx(0.01)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0.001 < rates[-1] < 0.0015


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, "vocab_size is 256"),
        ({"held_out": 0.0}, "held_out is 0.0, expected a number above 0"),
        ({"floor": 1.0}, "floor is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"accumulate": 3}, "accumulate = 3 does not divide batch_size = 16"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"save_every": 0}, "save_every is 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808, expected a number of 64 bits"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"patience": -1}, "patience is -1"),
    ],
)
def test_settings_that_make_no_sense_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)
