"""``python -m llm_study finetune``: it answers as taught, goes on after a kill, and says what is wrong."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_study.__main__ import main
from llm_study.alignment.finetune import METHODS, FinetuneConfig, Finetuning, chat_format
from llm_study.alignment.sft import pad_examples, sft_loss
from llm_study.core.config import BertConfig, GPT2Config, LlamaConfig
from llm_study.models import from_pretrained
from llm_study.models.bert import BertForMaskedLM
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import merge, trainable, unload
from llm_study.tokenizers.auto import end_of_text
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.chat import TEMPLATES
from llm_study.training.checkpoint import checkpoints, load_checkpoint
from tests.scripts import LLM_STUDY, run, start, torchrun

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
    batch = pad_examples(run.held_out)
    best = min(value for _, value in run.trainer.history.evaluations)
    merged = from_pretrained(place / "out")
    with torch.no_grad():
        total, count = sft_loss(merged, batch)
    assert float(total / count) == pytest.approx(best, rel=1e-4)
    if method != "full":
        again = load_adapter(from_pretrained(place / "base"), place / "out/adapter")
        with torch.no_grad():
            torch.testing.assert_close(again(batch[0]), merged(batch[0]), rtol=1e-4, atol=1e-4)
        assert sum(p.numel() for p in trainable(run.model).values()) < 0.5 * run.n_base


def test_a_larger_learning_rate_for_b_and_no_gradient_for_a(place: Path) -> None:
    runs = {
        name: Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**{**RUN, "method": name}))
        for name in ("lora", "lora+", "lora_fa")
    }
    rates = [group["lr"] for group in runs["lora+"].trainer.optimizer.param_groups]
    assert rates[1] == pytest.approx(16 * rates[0])
    n = {name: sum(p.numel() for p in run._trained.parameters()) for name, run in runs.items()}
    assert n["lora"] == n["lora+"] > n["lora_fa"]
    assert not any(p.requires_grad for name, p in runs["lora_fa"].model.named_parameters() if name.endswith("lora_A"))


def test_adalora_hands_out_its_ranks_and_keeps_its_factors_near_orthonormal(place: Path) -> None:
    run = Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**{**RUN, "method": "adalora", "rank": 2}))
    ranks = []
    run.trainer.report = lambda _: ranks.append(sum(run._allocator.ranks().values()))
    run.trainer.run()
    n_layers = 2 * 7
    assert ranks[0] == 3 * n_layers
    assert ranks[-1] <= 2 * n_layers
    assert ranks == sorted(ranks, reverse=True)
    batch = run.batch(0)
    run.model.train()
    with torch.no_grad():
        total, count = run._loss(run._trained, batch)
        plain, _ = sft_loss(run._trained, batch)
        run.model.eval()
        assert torch.equal(run._loss(run._trained, batch)[0], plain)
    assert float(total - plain) > 0.1 * float(count) * 14  # factors of standard deviation 0.02: far from orthonormal


def test_shared_rows_and_empty_rows_change_nothing(place: Path) -> None:
    losses = []
    for accumulate in (1, 4):
        config = FinetuneConfig(**{**RUN, "accumulate": accumulate})
        run = Finetuning(place / "base", place / "chat.jsonl", config)
        assert len(run.batch(0)[0]) % accumulate == 0
        losses.append(run.trainer.run().losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_loss_is_the_mean_over_the_words_of_the_assistant(place: Path) -> None:
    run = Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**RUN))
    total, n = 0.0, 0
    with torch.no_grad():
        for example in run.held_out:
            logp = from_pretrained(place / "base")(example.ids[None])[0].log_softmax(-1)
            for t, target in enumerate(example.targets.tolist()):
                total, n = total - (logp[t, target].item() if target >= 0 else 0), n + (target >= 0)
    assert run.evaluate() == pytest.approx(total / n, rel=1e-4)
    assert len(run.held_out) == 2
    assert len(run.train) == 18


def test_noise_on_the_embeddings_is_in_the_training_only(place: Path) -> None:
    quiet, noisy = (
        Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**{**RUN, "neftune": alpha}))
        for alpha in (0.0, 20.0)
    )
    assert quiet.evaluate() == noisy.evaluate()
    assert quiet.trainer.step() != noisy.trainer.step()


# --- it goes on


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_run_killed_from_outside_goes_on_to_the_same_losses(place: Path, method: str) -> None:
    (place / "run.toml").write_text((place / "run.toml").read_text() + "neftune = 1.0\n")
    run(*LLM_STUDY, *arguments(place, "whole", method=method))
    program = start(*LLM_STUDY, *arguments(place, method=method))
    while not (place / "out/checkpoints/step-00000004").exists() and program.poll() is None:
        time.sleep(0.0005)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    assert not (place / "out/config.json").exists()
    _, error = run(*LLM_STUDY, *arguments(place, method=method))
    assert "training goes on after step" in error
    assert_same(history(place), history(place, "whole"))
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (place / "out" / file).read_bytes() == (place / "whole" / file).read_bytes()


def test_checkpoints_hold_the_adapter_only_and_the_best_of_it(place: Path) -> None:
    config = FinetuneConfig(**{**RUN, "learning_rate": 0.02, "steps": 30, "eval_every": 2, "floor": 0.99})
    run = Finetuning(place / "base", place / "chat.jsonl", config, folder=place / "out")
    run.trainer.run()
    tensors = load_checkpoint(checkpoints(place / "out/checkpoints")[-1]).tensors["model"]
    names = {name.replace(".", "/") for name in trainable(run.model)}
    assert tensors.keys() == names | {f"best/{name}" for name in names}
    best = min(value for _, value in run.trainer.history.evaluations)
    now = run.evaluate()
    with run._trained.best():
        assert run.evaluate() == pytest.approx(best)
    assert run.evaluate() == now
    again = Finetuning(place / "base", place / "chat.jsonl", config, folder=place / "out")
    assert again.trainer.resume()
    with again._trained.best():
        assert again.evaluate() == pytest.approx(best)


def test_several_processes_give_the_same_losses(place: Path) -> None:
    run(*LLM_STUDY, *arguments(place, "one"))
    out, _ = run(*torchrun(2), *LLM_STUDY, *arguments(place))
    assert out.count("nats per token") == 1
    assert history(place)[0] == pytest.approx(history(place, "one")[0], rel=1e-4)


def test_it_does_nothing_the_second_time_and_refuses_another_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place)) == 0
    out, _ = capsys.readouterr()
    model = (place / "out/model.safetensors").read_bytes()
    assert main(arguments(place)) == 0
    again, error = capsys.readouterr()
    assert again == out
    assert "training goes on after step 12" in error
    write_data(place / "other.jsonl", chats(21))
    write_base(place / "wide", ["<|endoftext|>"], intermediate_size=40)
    last = checkpoints(place / "out/checkpoints")[-1]
    for changes, message in [
        ({"steps": 13}, "steps was 12 and is now 13"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"rank": 5}, "rank was 4 and is now 5"),
        ({"method": "dora"}, "method was 'lora' and is now 'dora'"),
        ({"learning-rate": 0.5}, "learning_rate was 0.01 and is now 0.5"),
        ({"data": place / "other.jsonl"}, "data was 'sha256 "),
        ({"base": place / "wide"}, "base was 'sha256 "),
    ]:
        assert main(arguments(place, **changes)) == 2
        error = capsys.readouterr().err
        assert f"{last}: {message}" in error
        assert "resume with what it was, or begin again in another folder" in error
    assert (place / "out/model.safetensors").read_bytes() == model


# --- what is wrong


def encoder(place: Path) -> None:
    shutil.rmtree(place / "base")
    BertForMaskedLM(BertConfig(vocab_size=290, **{**SIZES, "num_hidden_layers": 1})).save_pretrained(place / "base")


def fewer_rows(place: Path) -> None:
    tokenizer = (place / "base/tokenizer.json").read_bytes()
    write_base(place / "base", [])
    (place / "base/tokenizer.json").write_bytes(tokenizer)
    config = json.loads((place / "base/config.json").read_text())
    (place / "base/config.json").write_text(json.dumps({**config, "eos_token_id": 280}))


def line(text: str) -> Callable[[Path], object]:
    """Return what makes a text the third line of the data, after an empty one."""
    good = json.dumps(chats(1)[0])
    return lambda place: (place / "chat.jsonl").write_text(f"{good}\n\n{text}\n{good}\n", "utf-8")


def turns(*roles_and_words: str) -> str:
    messages = [dict(zip(("role", "content"), x.split(": ", 1), strict=True)) for x in roles_and_words]
    return json.dumps({"messages": messages})


def toml(text: str) -> Callable[[Path], object]:
    return lambda place: (place / "run.toml").write_text(text)


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "nowhere: there is no such folder": (lambda p: None, {"base": "nowhere"}),
    "base: has no config.json": (lambda p: (p / "base/config.json").unlink(), {}),
    "base: has neither tokenizer.json nor": (lambda p: (p / "base/tokenizer.json").unlink(), {}),
    "base: model_type is 'bert', expected that of a decoder": (encoder, {}),
    "method is 'laro', expected one of lora, rslora": (lambda p: None, {"method": "laro"}),
    "rank is 0, expected at least 1": (lambda p: None, {"rank": 0}),
    "q_proj: rank is 33, expected at most 32": (lambda p: None, {"rank": 33}),
    "target 'made_up' matches no module that can be adapted: LoRA adapts": (toml("targets = ['made_up']"), {}),
    "run.toml: targets is 'q_proj', expected list of str": (toml("targets = 'q_proj'"), {}),
    "run.toml: targets is [1], expected list of str": (toml("targets = [1]"), {}),
    "run.toml: options is 1, expected table": (toml("options = 1"), {}),
    "options: lora has no gamma, expected some of rank, alpha": (toml("options = {gamma = 1}"), {}),
    "lm_head.weight are one tensor": (toml("targets = ['lm_head']"), {"base": "tied"}),
    "run.toml: there is no setting 'lenght'": (toml("lenght = 1"), {}),
    "length is 65, expected at most 64": (toml("length = 65"), {}),
    "patience is 1 and eval_every 0": (toml("patience = 1\nheld_out = 0.0"), {}),
    "the chat format is 'made up', expected one of chatml": (lambda p: None, {"chat": "made up"}),
    "the tokenizer has no token <|im_start|>, <|im_end|>, which chatml needs": (lambda p: None, {"chat": "chatml"}),
    "the tokenizer gives id 280, expected at most 279": (fewer_rows, {}),
    "chat.jsonl: there is no such file": (lambda p: (p / "chat.jsonl").unlink(), {}),
    "chat.jsonl: number of conversations is 0": (lambda p: (p / "chat.jsonl").write_text("\n"), {}),
    "chat.jsonl: has 1 conversation, expected at least 2": (lambda p: write_data(p / "chat.jsonl", chats(1)), {}),
    "chat.jsonl:3: is no JSON": (line("{"), {}),
    "chat.jsonl:3: message 1 is of role 'tool'": (line(turns("user: a", "tool: b")), {}),
    "chat.jsonl:3: message 1 is a system message": (line(turns("system: a", "system: b", "user: c")), {}),
    "chat.jsonl:3: message 1, of the assistant, has no words": (line(turns("user: a", "assistant:  ")), {}),
    "chat.jsonl:3: message 0 spells the control token": (line(turns("user: <|endoftext|>", "assistant: b")), {}),
    "chat.jsonl:3: the first 64 of": (line(turns(f"user: {'a b ' * 99}", "assistant: b")), {}),
    "base: is the folder of the model itself": (lambda p: None, {"out": "base"}),
    "out: is a file, expected a folder": (lambda p: (p / "out").write_text("x"), {}),
    "out: holds something, but no checkpoints of a run": (
        lambda p: ((p / "out").mkdir(), (p / "out/notes.txt").write_text("x")),
        {},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_told_in_one_line(place: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    spoil, changes = BAD[message]
    if changes.get("base") == "tied":
        write_base(place / "tied", ["<|endoftext|>"], tie_word_embeddings=True)
    spoil(place)
    here = {name: place / x if name in ("base", "out") else x for name, x in changes.items()}
    out = here.pop("out", place / "out")
    before = sorted(path for path in place.rglob("*"))
    assert main(arguments(place, out, **here)) == 2
    text, error = capsys.readouterr()
    assert text == ""
    assert message in error
    assert error.startswith("python -m llm_study: error: ")
    assert error.count("\n") == 1
    assert sorted(path for path in place.rglob("*")) == before  # nothing was written


# --- formats


def test_formats_are_found_by_what_the_folder_says_or_the_tokenizer_has(place: Path, bases: Path) -> None:
    plain, chatml = (ByteLevelBPE.load(bases / kind / "tokenizer.json") for kind in ("plain", "chatml"))
    assert chat_format(bases / "plain", plain)[0] == "plain"
    name, template, end = chat_format(bases / "chatml", chatml)
    assert (name, template, end) == ("chatml", TEMPLATES["chatml"], chatml.special_tokens["<|im_end|>"])
    assert chat_format(bases / "chatml", chatml, "plain")[2] == chatml.special_tokens["<|endoftext|>"]
    shutil.copytree(bases / "chatml", place / "said")
    said = place / "said/tokenizer_config.json"
    said.write_text(json.dumps({"chat_template": TEMPLATES["qwen2"].jinja()}))
    assert chat_format(place / "said", chatml)[0] == "qwen2"
    said.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert chat_format(place / "said", chatml)[0] == "chatml"


def test_plain_ends_with_the_token_of_the_model(tmp_path: Path) -> None:
    write_base(tmp_path, ["</s>"])
    tokenizer = ByteLevelBPE.load(tmp_path / "tokenizer.json")
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="the tokenizer has the control tokens of no format: chatml, "):
        chat_format(tmp_path, tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": tokenizer.special_tokens["</s>"]}))
    name, template, end = chat_format(tmp_path, tokenizer)
    assert (name, template.answer, end) == ("plain", (" ", "</s>"), tokenizer.special_tokens["</s>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [65, 66]}))
    assert end_of_text(tmp_path, tokenizer) == tokenizer.decode([65])


def test_gpt2_and_half_precision(place: Path, bases: Path) -> None:
    """Another family, positions that are learned, and a base in bf16, whose adapter is kept in float32."""
    config = GPT2Config(vocab_size=281, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=280)
    GPT2ForCausalLM(config).to(torch.bfloat16).save_pretrained(place / "base")
    run = Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**RUN), folder=place / "out")
    run.trainer.run()
    run.save()
    assert {p.dtype for p in trainable(run.model).values()} == {torch.float32}
    merged = from_pretrained(place / "out")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    again = unload(merge(load_adapter(from_pretrained(place / "base"), place / "out/adapter")))
    ids = run.held_out[0].ids[None]
    assert torch.equal(again(ids), merged(ids))


def test_a_long_conversation_loses_its_end(place: Path) -> None:
    config = FinetuneConfig(**{**RUN, "length": 20})
    whole = Finetuning(place / "base", place / "chat.jsonl", FinetuneConfig(**RUN))
    run = Finetuning(place / "base", place / "chat.jsonl", config)
    longer = [x for x in whole.train + whole.held_out if len(x) > 20]
    assert run.n_cut == len(longer) > 0
    assert f"{len(longer)} of them cut" in run.describe(resumed=False)
    assert max(len(x) for x in run.train + run.held_out) == 20
