"""from_pretrained: which class reads a folder, and that every bad folder is told by name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_study.core.config import GPT2Config, LlamaConfig, ModelConfig, model_types
from llm_study.core.hub import CONFIG, INDEX, WEIGHTS
from llm_study.models import from_pretrained
from llm_study.models.auto import architectures, model_class
from llm_study.models.llama import LlamaForCausalLM

IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama, in three shards or more."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    folder = tmp_path_factory.mktemp("good")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_bytes=2000)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def change_config(folder: Path, **more: Any) -> None:
    said = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps({**said, **more}), "utf-8")


def shard_of(folder: Path, tensor: str) -> Path:
    place: dict[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    return folder / place[tensor]


def change_tensors(folder: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the shard that holds a tensor, and the index with it."""
    shard, index = shard_of(folder, tensor), json.loads((folder / INDEX).read_text("utf-8"))
    found = load_file(shard)
    change(found)
    save_file(found, shard)
    place = {name: file for name, file in index["weight_map"].items() if file != shard.name}
    (folder / INDEX).write_text(json.dumps({"weight_map": {**place, **dict.fromkeys(found, shard.name)}}), "utf-8")


# --- what is read


def test_a_good_folder(folder: Path) -> None:
    model = from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert model(IDS).shape == (1, 3, 97)
    assert torch.equal(from_pretrained(str(folder))(IDS), model(IDS))


def test_the_model_can_be_trained(folder: Path) -> None:
    model = from_pretrained(folder).train()
    model(IDS).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mixed_dtypes_take_the_one_that_loses_nothing(folder: Path) -> None:
    change_tensors(folder, "model.norm.weight", lambda x: x.update({"model.norm.weight": torch.ones(8).bfloat16()}))
    assert {p.dtype for p in from_pretrained(folder).parameters()} == {torch.float32}
    assert {p.dtype for p in from_pretrained(folder, dtype=torch.float16).parameters()} == {torch.float16}


def test_every_configuration_has_its_model() -> None:
    for name in model_types():
        config = type("Config", (ModelConfig,), {"model_type": name})(vocab_size=3)
        assert model_class(config).__module__.startswith("llm_study.models.")


def test_a_folder_that_does_not_say_its_architecture(folder: Path) -> None:
    change_config(folder, architectures=None)
    assert type(from_pretrained(folder)) is LlamaForCausalLM


def test_importing_the_package_of_models_does_not_import_torch() -> None:
    code = "import sys, llm_study.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_has_nothing_else() -> None:
    import llm_study.models

    with pytest.raises(AttributeError, match="has no attribute 'from_scratch'"):
        _ = llm_study.models.from_scratch


# --- what is refused


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        from_pretrained(folder, **options)
    return str(caught.value)


def test_no_folder_and_no_config(folder: Path) -> None:
    assert refused(folder / "no") == f"{folder / 'no'}: there is no such folder"
    (folder / CONFIG).unlink()
    assert refused(folder) == f"{folder}: has no {CONFIG}"


def test_unknown_architectures(folder: Path) -> None:
    change_config(folder, architectures=["LlamaForSequenceClassification"])
    known = ", ".join(architectures())
    text = f"architectures is LlamaForSequenceClassification, expected one of {known}"
    assert refused(folder) == f"{folder / CONFIG}: {text}"
    change_config(folder, architectures=["MistralForCausalLM"])  # known, but not for this model_type
    assert refused(folder).startswith(f"{folder / CONFIG}: architectures is MistralForCausalLM, expected one of")
    change_config(folder, model_type="mamba")
    assert refused(folder) == f"{folder / CONFIG}: model_type is 'mamba', expected one of {', '.join(model_types())}"


def test_a_configuration_without_model() -> None:
    with pytest.raises(ValueError, match=r"^config\.json: model_type is '', expected one of bert, "):
        model_class(ModelConfig(vocab_size=3))
    assert model_class(GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=2)).__name__ == "GPT2ForCausalLM"


def test_a_dtype_that_is_none_of_weights(folder: Path) -> None:
    assert refused(folder, dtype=torch.int8) == "dtype is torch.int8, expected a floating one such as torch.bfloat16"


def test_a_missing_tensor(folder: Path) -> None:
    change_tensors(folder, "model.norm.weight", lambda x: x.pop("model.norm.weight"))
    assert refused(folder) == f"{folder}: lacks model.norm.weight of shape (8,)"


def test_a_missing_head(folder: Path) -> None:
    change_tensors(folder, "lm_head.weight", lambda x: (x.pop("lm_head.weight"), x.update(extra=torch.ones(1))))
    assert refused(folder).startswith(
        f"{folder}: lacks lm_head.weight of shape (97, 8); has, beyond what the model has"
    )


def test_a_superfluous_tensor(folder: Path) -> None:
    change_tensors(folder, "model.norm.weight", lambda x: x.update(extra=torch.ones(2, 3)))
    assert refused(folder) == f"{folder}: has, beyond what the model has, extra of shape (2, 3)"


def test_a_wrong_shape(folder: Path) -> None:
    change_tensors(folder, "model.norm.weight", lambda x: x.update({"model.norm.weight": torch.ones(7)}))
    assert refused(folder) == f"{folder}: model.norm.weight has shape (7,), expected (8,)"


def test_another_width_than_the_config_says(folder: Path) -> None:
    change_config(folder, intermediate_size=20)
    said = refused(folder)
    for name, old, new in [("gate_proj", (16, 8), (20, 8)), ("down_proj", (8, 16), (8, 20))]:
        assert f"model.layers.0.mlp.{name}.weight has shape {old}, expected {new}" in said


def test_tied_weights_that_differ(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    text = "lm_head.weight and model.embed_tokens.weight differ, but tie_word_embeddings is true"
    assert refused(folder) == f"{folder}: {text}"


def test_a_shard_that_is_cut_off(folder: Path) -> None:
    shard = shard_of(folder, "lm_head.weight")
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-5])
    assert refused(folder) == f"{shard}: cut off: has {size - 5} bytes, expected {size}"


def test_an_index_that_leads_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text("utf-8"))
    index["weight_map"]["lm_head.weight"] = "../model.safetensors"
    (folder / INDEX).write_text(json.dumps(index), "utf-8")
    assert "tensor lm_head.weight is said to be in '../model.safetensors', outside the folder" in refused(folder)


def test_a_pickle(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert refused(folder).startswith(f"{folder / 'pytorch_model.bin'}: weights in a pickle")
    (folder / "pytorch_model.bin").unlink()
    assert refused(folder) == f"{folder}: has neither {WEIGHTS} nor {INDEX}"
