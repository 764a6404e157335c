"""The commands, on the device that they choose by themselves; slower than the other files, for they start processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.__main__ import main
from llm_study.alignment.finetune import FinetuneConfig, Finetuning
from llm_study.core.config import LlamaConfig
from llm_study.data.texts import split_texts
from llm_study.models import from_pretrained
from llm_study.models.llama import LlamaForCausalLM
from llm_study.tokenizers.auto import leading_ids, load_tokenizer
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.training.checkpoint import checkpoints, load_checkpoint
from llm_study.training.distributed import World
from llm_study.training.pretrain import PretrainConfig, Pretraining
from tests.devices.where import DEVICES, assert_near, every_device, moved
from tests.scripts import LLM_STUDY, run, torchrun
from tests.training.test_pretrain import SIZES as ONE_LAYER
from tests.training.test_pretrain import TEXT

DEFAULT = DEVICES[-1]
"""The device that the commands are to take: the GPU where there is one."""
SIZES = {**ONE_LAYER, "num_hidden_layers": 2, "batch_size": 4, "eval_every": 4}
STEPS = 8
ANSWERS = {"red": "stop", "green": "go", "amber": "wait"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a text, conversations, settings, and a model to be fine-tuned."""
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    (tmp_path / "run.toml").write_text("".join(f"{name} = {x}\n" for name, x in SIZES.items()), "utf-8")
    pairs = [list(ANSWERS.items())[i % 3] for i in range(20)]
    chats = [
        {"messages": [{"role": r, "content": x} for r, x in zip(("user", "assistant"), p, strict=True)]} for p in pairs
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), "utf-8")
    more = {"batch_size": 4, "warmup": 2, "learning_rate": 0.01, "eval_every": 4, "save_every": 4, "neftune": 1.0}
    (tmp_path / "tune.toml").write_text("".join(f"{name} = {x}\n" for name, x in more.items()), "utf-8")
    write_base(tmp_path / "base")
    return tmp_path


def write_base(folder: Path) -> None:
    """Write a tiny model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = ByteLevelBPE.train(
        ["User: red green amber Assistant: stop go wait. " * 20], vocab_size=281, special_tokens=["<|endoftext|>"]
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.special_tokens["<|endoftext|>"]}
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")


def command(place: Path, name: str, out: str, **options: object) -> list[str]:
    """Return the arguments of a run."""
    first = ["train", "--text", place / "text.txt", "--config", place / "run.toml"]
    if name == "finetune":
        first = ["finetune", place / "base", "--data", place / "chat.jsonl", "--config", place / "tune.toml"]
    more = [x for option, value in options.items() for x in (f"--{option}", value)]
    return [str(x) for x in [*first, "--out", place / out, "--steps", STEPS, *more]]


def history(folder: Path) -> tuple[list[float], list[Any], dict[str, Tensor], dict[str, Any]]:
    """Return losses, evaluations, tensors and settings of a run that is complete."""
    last = load_checkpoint(checkpoints(folder / "checkpoints")[-1])
    assert last.step == STEPS
    assert ("0.cuda" in last.tensors["random"]) == (DEFAULT == "cuda")
    return (
        last.tensors["history"]["losses"].tolist(),
        last.state["evaluations"],
        last.tensors["model"],
        last.state["run"],
    )


def assert_same(found: Any, expected: Any) -> None:
    assert found[:2] == expected[:2]
    assert found[2].keys() == expected[2].keys()
    assert all(torch.equal(x, expected[2][name]) for name, x in found[2].items())


RUNS = [("train", {}), *(("finetune", {"method": method}) for method in ("full", "lora", "adalora", "pissa"))]


@pytest.mark.parametrize(("name", "options"), RUNS, ids=str)
def test_a_run_goes_on_from_a_checkpoint_to_the_same_losses(
    name: str, options: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a kill after step 5 leaves is the checkpoint of step 4; bit for bit, noise of the embeddings included."""
    assert main(command(place, name, "whole", **options)) == 0
    capsys.readouterr()
    shutil.copytree(place / "whole/checkpoints", place / "out/checkpoints")
    shutil.rmtree(checkpoints(place / "out/checkpoints")[-1])
    torch.rand(3, device=DEFAULT)
    assert main(command(place, name, "out", **options)) == 0
    assert "training goes on after step 4" in capsys.readouterr().err
    expected = history(place / "whole")
    assert_same(history(place / "out"), expected)
    assert expected[3]["precision"] == ("bf16" if DEFAULT == "cuda" else "float32")
    assert (place / "out/model.safetensors").read_bytes() == (place / "whole/model.safetensors").read_bytes()


def test_what_was_trained_is_generated_from(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "train", "out")) == 0
    capsys.readouterr()
    assert main(["generate", str(place / "out"), "The cat", "--max-new-tokens", "8"]) == 0
    text = capsys.readouterr().out
    tokenizer, model = load_tokenizer(place / "out"), moved(from_pretrained(place / "out"), DEFAULT, torch.float32)
    ids = leading_ids(place / "out") + tokenizer.encode("The cat")
    n = len(ids)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids], device=DEFAULT))[0, -1].argmax()))
    assert text.removesuffix("\n") == tokenizer.decode(ids[n:])
    drawn = ["generate", str(place / "out"), "The cat", "--max-new-tokens", "8", "--temperature", "1", "--seed", "3"]
    texts = []
    for _ in range(2):
        assert main(drawn) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@every_device
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_in_float32_is_that_of_the_cpu(accumulate: int, device: str) -> None:
    corpus, found = split_texts([TEXT], 0.1), []
    for where in ("cpu", device):
        config = PretrainConfig(**SIZES, steps=STEPS, precision="float32", accumulate=accumulate if found else 1)
        run = Pretraining(corpus, config, world=World(device=torch.device(where)))
        history = run.trainer.run()
        found.append((history.losses, [value for _, value in history.evaluations]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


@every_device
def test_fine_tuning_in_float32_is_that_of_the_cpu(device: str, place: Path) -> None:
    """All parameters: an adapter would begin with numbers that each device draws by itself."""
    found = []
    for where in ("cpu", device):
        config = FinetuneConfig(method="full", steps=STEPS, batch_size=4, warmup=2, eval_every=4, precision="float32")
        run = Finetuning(place / "base", place / "chat.jsonl", config, world=World(device=torch.device(where)))
        found.append(run.trainer.run().losses)
        with torch.no_grad():
            x = run.model(torch.tensor([[5, 6, 7]], device=where))
        found.append(x)
    assert found[2] == pytest.approx(found[0], rel=1e-4)
    assert_near(
        found[3], found[1].double(), device, 1e-3
    )  # Adam's first steps are of one size, however small a gradient


# --- torchrun


def test_torchrun_with_one_process_trains_as_without_it(place: Path) -> None:
    """The setting for FSDP has no effect then."""
    assert main(command(place, "train", "out")) == 0
    with (place / "run.toml").open("a") as file:
        file.write("fsdp = true\n")
    run(*torchrun(1), *LLM_STUDY, *command(place, "train", "run"), gpu=True)
    assert_same(history(place / "run"), history(place / "out"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a process found that has a group of its own."""
    folder = tmp_path_factory.mktemp("one")
    run(*torchrun(1), Path(__file__).with_name("one_process.py"), folder, gpu=True)
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def test_the_process_is_where_it_should_be(outcome: dict[str, Any]) -> None:
    assert outcome["device"] == DEFAULT
    assert outcome["backend"] == ("nccl" if DEFAULT == "cuda" else "gloo")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_wrapped_for_several_processes_one_trains_to_the_same_losses(outcome: dict[str, Any], how: str) -> None:
    assert outcome[how]["losses"] == pytest.approx(outcome["alone"]["losses"], rel=1e-5)
    assert outcome["alone"]["losses"][-1] < 0.8 * outcome["alone"]["losses"][0]
    assert outcome[how]["weights"] == pytest.approx(outcome["alone"]["weights"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("how", ["alone", "ddp", "fsdp"])
def test_a_wrapped_run_goes_on_to_the_same_losses(outcome: dict[str, Any], how: str) -> None:
    assert outcome[how]["resumed"]
    assert outcome[how]["again"] == outcome[how]["losses"]
