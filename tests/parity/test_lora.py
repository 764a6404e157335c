"""LoRA against peft: values, gradients, merged weights, and adapters that one writes and the other reads."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"
import peft

from llm_study.core.config import config_from_dict
from llm_study.core.hub import read_json
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import Method, adapter_state_dict, inject, merge, save_adapter, trainable, unload
from llm_study.peft.lora import LoRA, RSLoRA
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import oracle, random_ids, tensors_of

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte", "wpe"],
}
UNTIED = {"tie_word_embeddings": False}
every_family = pytest.mark.parametrize("family", ["llama", "gpt2"])
every_scale = pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def models(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Return our model and theirs with the same random weights, before they are adapted."""
    theirs = oracle(family, dtype=dtype, **{**UNTIED, **changes})
    kind = {"llama": LlamaForCausalLM, "gpt2": GPT2ForCausalLM}[family]
    ours = kind(config_from_dict(theirs.config.to_dict())).to(dtype)
    return ours.load_hub(tensors_of(theirs)).eval(), theirs.eval()


def methods(family: str, *, rslora: bool, **options: Any) -> tuple[Method, Any]:
    """Return the same settings for ours and theirs."""
    theirs = peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=rslora, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", **options
    )
    return (RSLoRA if rslora else LoRA)(rank=3, alpha=5), theirs


def randomize(tensors: dict[str, Tensor]) -> None:
    """Fill the tensors of an adapter, so that B = 0 hides nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, x in sorted(tensors.items()):
            x.copy_(0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64))


def own_tensors(theirs: Any) -> dict[str, Tensor]:
    """Return the tensors of an adapter of peft by the names of its files, without weights of the model."""
    found = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    own = dict(theirs.state_dict(keep_vars=True))
    return {
        name: own[name.replace(".weight", ".default.weight")] if name.endswith(".weight") else own[f"{name}.default"]
        for name in found
    }


def adapted(family: str, dtype: torch.dtype, *, rslora: bool) -> tuple[nn.Module, Any]:
    """Return both models with the same adapter."""
    ours, theirs = models(family, dtype)
    method, config = methods(family, rslora=rslora)
    theirs = peft.get_peft_model(theirs, config).eval()
    ours = inject(ours, method, targets=TARGETS[family])
    mine, other = adapter_state_dict(ours), own_tensors(theirs)
    assert {name: x.shape for name, x in mine.items()} == {name: x.shape for name, x in other.items()}
    randomize(mine)
    randomize(other)
    return ours, theirs


@every_dtype
@every_scale
@every_family
def test_values_and_gradients(family: str, rslora: bool, dtype: torch.dtype) -> None:
    ours, theirs = adapted(family, dtype, rslora=rslora)
    ids = random_ids(2, 12)
    limit = 1e-5  # they compute rotations and softmax in float32, in float64 too
    y, expected = ours(ids), theirs(input_ids=ids).logits
    assert (y - expected).abs().max() <= limit * expected.abs().max()
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    grads = {name: x.grad for name, x in own_tensors(theirs).items()}
    mine = {f"base_model.model.{name}": x.grad for name, x in trainable(ours).items()}
    assert len(mine) == len(grads)
    for name, grad in mine.items():
        other = grads.get(name, grads.get(f"{name}.weight"))
        assert (grad - other).abs().max() <= 3 * limit * other.abs().max(), name


@every_scale
@pytest.mark.parametrize("kind", ["linear", "embedding", "conv1d", "conv2d"])
def test_layers_in_float64(kind: str, rslora: bool) -> None:
    layer, x = {
        "linear": (nn.Linear(16, 24), torch.randn(2, 3, 16).double()),
        "embedding": (nn.Embedding(16, 24), torch.arange(6).reshape(2, 3)),
        "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9).double()),
        "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1), torch.randn(2, 4, 9, 8).double()),
    }[kind]
    net = nn.Sequential(layer).double()
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, target_modules=["0"])
    theirs = peft.get_peft_model(copy.deepcopy(net), config).double()
    ours = inject(net, (RSLoRA if rslora else LoRA)(rank=3, alpha=5), targets=["0"])
    randomize(adapter_state_dict(ours))
    randomize(own_tensors(theirs))
    y, expected = ours(x), theirs(x)
    assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(trainable(ours).values(), own_tensors(theirs).values(), strict=True):
        assert_close(mine.grad, other.grad)
    merged = theirs.merge_and_unload()
    assert_close(unload(merge(ours))[0].weight.detach(), merged[0].weight.detach())


@every_scale
@every_family
def test_merged_weights(family: str, rslora: bool) -> None:
    ours, theirs = adapted(family, torch.float32, rslora=rslora)
    expected = tensors_of(theirs.merge_and_unload())
    found = type(ours).to_hub(unload(merge(ours)).state_dict())
    assert found.keys() >= expected.keys()
    for name, x in expected.items():
        assert_close(found[name], x)


@every_scale
@every_family
def test_their_folder_loads_here(family: str, rslora: bool, tmp_path: Path) -> None:
    _, theirs = adapted(family, torch.float32, rslora=rslora)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(models(family)[0], tmp_path)
    ids = random_ids(2, 12)
    expected = theirs(input_ids=ids).logits
    assert (ours(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    own = own_tensors(theirs)
    for name, x in adapter_state_dict(ours).items():
        assert torch.equal(x, own[name])


@every_scale
@every_family
def test_our_folder_loads_there(family: str, rslora: bool, tmp_path: Path) -> None:
    ours, _ = adapted(family, torch.float32, rslora=rslora)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(models(family)[1], tmp_path)
    ids = random_ids(2, 12)
    expected = theirs(input_ids=ids).logits
    assert (ours(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    own = own_tensors(theirs)
    for name, x in adapter_state_dict(ours).items():
        assert torch.equal(x, own[name])


def test_an_embedding_of_another_model_is_noticed(tmp_path: Path) -> None:
    _, theirs = adapted("llama", torch.float32, rslora=False)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    other = models("llama")[0]
    with torch.no_grad():
        other.model.embed_tokens.weight[3, 5] += 1
    with pytest.raises(ValueError, match=r"embed_tokens.base_layer.weight is not the weight of this model"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("option", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"bias": "all"}], ids=str)
def test_what_lora_does_not_have_is_not_taken_for_it(option: dict[str, Any], tmp_path: Path) -> None:
    net = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), peft.LoraConfig(r=2, target_modules=["0"], **option))
    net.save_pretrained(tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    if "bias" in option:
        with pytest.raises(ValueError, match="bias = 'all'"):
            LoRA.from_config(config)
    else:
        assert LoRA.from_config(config) is None


def test_a_dilated_convolution_is_adapted_here_only() -> None:
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3, dilation=2)), torch.randn(2, 4, 9, 8)
    theirs = peft.get_peft_model(copy.deepcopy(net), peft.LoraConfig(r=3, target_modules=["0"]))
    with pytest.raises(RuntimeError, match="must match the size"):  # their first convolution is not dilated
        theirs(x)
    expected = net(x)
    assert torch.equal(inject(net, LoRA(rank=3), targets=["0"])(x), expected)


def test_the_start_is_theirs() -> None:
    """A uniform in ±1/√I, B zero: the same law, by its moments over many draws."""
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(400, 300)), peft.LoraConfig(r=100, target_modules=["0"]))
    ours = inject(nn.Sequential(nn.Linear(400, 300)), LoRA(rank=100), targets=["0"])
    (A, B), (mine, up) = own_tensors(theirs).values(), trainable(ours).values()
    assert not B.any()
    assert not up.any()
    assert abs(mine.std().item() / A.std().item() - 1) < 0.02
    assert abs(mine.abs().max().item() / A.abs().max().item() - 1) < 1e-3
