"""Adapters on every device: they lie where the model lies, merge, learn, and quantized layers keep their codes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.config import LlamaConfig
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW
from llm_study.peft.adalora import AdaLoRA, RankAllocator, orthogonality
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import (
    Method,
    adapter_state_dict,
    disabled,
    inject,
    merge,
    save_adapter,
    trainable,
    unload,
    unmerge,
)
from llm_study.peft.decomposed import LoRAGA
from llm_study.peft.lora import LoRA, LoRAFA, RSLoRA, batched_lora
from llm_study.peft.qlora import QLoRA, quantize_base
from llm_study.peft.quantized import QuantizedLinear
from tests.devices.where import assert_near, check, every_device, moved, randint, randn
from tests.peft.test_lowrank import METHODS_HERE
from tests.peft.test_qlora import METHODS as QUANTIZED

PLAIN: list[Method] = [LoRA(rank=3, alpha=5), RSLoRA(rank=3, alpha=5), LoRAFA(rank=3, alpha=5), *METHODS_HERE]
every_method = pytest.mark.parametrize("method", [*PLAIN, *QUANTIZED], ids=str)
every_plain_method = pytest.mark.parametrize("method", PLAIN, ids=str)
TARGETS = ["q_proj", "v_proj", "down_proj"]
V = 29
IDS = randint(V, 3, 7)


def base() -> LlamaForCausalLM:
    """Return a tiny model whose matrices are large."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes, initializer_range=0.3)).eval()


def prepared(method: Method, model: nn.Module) -> Method:
    """Return the method, with gradients where it asks for them, from the device of the model."""
    if not isinstance(method, LoRAGA):
        return method
    device = next(model.parameters()).device
    loss(model, device.type).backward()
    names = [name for name, _ in model.named_modules() if name.endswith(tuple(TARGETS))]
    gradients = {name: model.get_submodule(name).get_parameter("weight").grad for name in names}
    model.zero_grad()
    return dataclasses.replace(method, gradients={name: g for name, g in gradients.items() if g is not None})


def loss(model: nn.Module, device: str) -> Tensor:
    ids = IDS.to(device)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def adapted(method: Method, device: str, dtype: torch.dtype = torch.float64, *, trained: bool = True) -> Any:
    """Return a model with adapters, put into it on the device; their tensors are random unless told otherwise."""
    model = moved(base(), device, dtype)
    generator = torch.Generator(device).manual_seed(2)
    inject(model, prepared(method, model), TARGETS, generator=generator)
    with torch.no_grad():
        for i, (name, x) in enumerate(adapter_state_dict(model).items()):
            if trained and not name.endswith(("vera_A", "vera_B", "randlora_A", "randlora_B")):
                x.copy_(0.3 * randn(*x.shape, seed=i + 1, dtype=torch.float64))
    return model


# --- laws


@every_device
@every_method
def test_adapters_lie_on_the_device_and_merged_is_unmerged(method: Method, device: str) -> None:
    model = adapted(method, device)
    everything = [*model.named_parameters(), *model.named_buffers(), *adapter_state_dict(model).items()]
    assert {x.device.type for _, x in everything} == {device}
    with torch.no_grad():
        y = model(IDS.to(device))
        with disabled(model):
            plain = model(IDS.to(device))
        merged = merge(model)(IDS.to(device))
        again = unmerge(model)(IDS.to(device))
    assert_near(merged, y.cpu(), device, 1e-10)
    assert torch.equal(again, y)
    assert (plain - y).abs().max() > 1e-3 * y.abs().max()


@every_device
@pytest.mark.parametrize("method", [method for method in PLAIN if not isinstance(method, LoRAGA)], ids=str)
def test_the_same_tensors_give_the_same_logits_and_gradients(method: Method, device: str) -> None:
    """Singular vectors are known but for signs: PiSSA and OLoRA take products that have none, LoRA-GA does not."""
    expected, found = adapted(method, "cpu"), adapted(method, device)
    for model, where in ((expected, "cpu"), (found, device)):
        if isinstance(method, AdaLoRA):
            (loss(model, where) + 0.1 * orthogonality(model)).backward()
        else:
            loss(model, where).backward()
    with torch.no_grad():
        assert_near(found(IDS.to(device)), expected(IDS), device, 1e-9)
    for name, p in trainable(expected).items():
        q = trainable(found)[name]
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert_near(q.grad, p.grad, device, 1e-8, what=name)


@every_device
@every_method
def test_a_fresh_adapter_changes_what_it_says(method: Method, device: str) -> None:
    model, ids = moved(base(), device), IDS.to(device)
    with torch.no_grad():
        before = model(ids)
        after = inject(model, prepared_here(method, device), TARGETS)(ids)
    far = (after - before).abs().max() / before.abs().max()
    assert (far <= 1e-10) == method.identity


def prepared_here(method: Method, device: str) -> Method:
    with torch.enable_grad():
        return prepared(method, moved(base(), device))


@every_device
@every_method
def test_three_steps_of_training(method: Method, device: str) -> None:
    model = adapted(method, device, torch.float32, trained=False)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer, losses = AdamW(trainable(model).values(), 0.02), []
    for _ in range(3):
        losses.append(loss(model.train(), device))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    losses.append(loss(model, device))
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@every_device
def test_ranks_are_handed_out_as_on_the_cpu(device: str) -> None:
    method = AdaLoRA(init_r=4, target_r=2, tinit=1, tfinal=1, delta_t=1, total_step=6)
    ranks = []
    for where in ("cpu", device):
        model = adapted(method, where)
        allocator = RankAllocator(model)
        for step in range(1, 6):
            model.zero_grad()
            loss(model, where).backward()
            allocator.step(step)
        ranks.append(allocator.ranks())
    assert ranks[0] == ranks[1]
    assert sum(ranks[0].values()) < 4 * len(ranks[0])


@every_device
@every_plain_method
def test_a_folder_from_the_device_is_read_on_both(method: Method, device: str, tmp_path: Path) -> None:
    model = adapted(method, device)
    save_adapter(model, tmp_path)
    with torch.no_grad():
        y = model(IDS.to(device))
        again = load_adapter(moved(base(), device), tmp_path)(IDS.to(device))
        there = load_adapter(moved(base(), "cpu"), tmp_path)(IDS)
    assert_near(again, y.cpu(), device, 1e-9)
    assert_near(there, y.cpu(), "cpu", 1e-9)


@every_device
@every_plain_method
def test_taken_out_the_model_is_what_it_was(method: Method, device: str) -> None:
    model, ids = adapted(method, device), IDS.to(device)
    with torch.no_grad():
        assert_near(unload(model)(ids), base().double()(IDS), device, 1e-9)


@every_device
def test_each_sequence_with_an_adapter_of_its_own(device: str) -> None:
    inputs = [randn(4, 5, 8), randn(3, 2, 8, seed=1), randn(3, 6, 2, seed=2), torch.tensor([2, 0, 0, 1])]
    check(batched_lora, inputs, device)


# --- quantized layers


@every_device
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_quantized_layer(kind: str, double: bool, device: str) -> None:
    """Quantized on the device, or on the CPU and moved: the same codes, product and gradient."""
    torch.manual_seed(0)
    linear = nn.Linear(48, 40)
    ours = QuantizedLinear.of(linear, quant_type=kind, block=16, double_quant=double)
    found = QuantizedLinear.of(moved(linear, device, torch.float32), quant_type=kind, block=16, double_quant=double)
    assert torch.equal(found.codes.cpu(), ours.codes)
    if not double:  # the mean of the factors is a sum, whose order is that of the device
        assert torch.equal(found.weight.cpu(), ours.weight)
    dense = moved(ours.dense(ours.weight), "cpu")
    for layer in (found, ours.to(device)):
        x = randn(5, 48).to(device).requires_grad_()
        y = layer(x)
        assert_near(y, dense(x.detach().cpu().double()).detach(), device, 2e-5)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert_near(grad, dense.weight.detach().sum(0).expand(5, 48), device, 2e-5)


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_quantized_layer_in_half_precision(dtype: torch.dtype, device: str) -> None:
    """Under autocast too, as in mixed training: the product is rounded once, the weight that it is of once."""
    torch.manual_seed(0)
    layer = QuantizedLinear.of(nn.Linear(48, 40)).to(device)
    x = randn(5, 48, dtype=dtype)
    exact = F.linear(x.double(), layer.weight.double().cpu(), layer.bias.detach().double().cpu())
    with torch.autocast(device, dtype):
        y = layer(x.float().to(device).requires_grad_())
    y.sum().backward()
    assert_near(y, exact, device, 4 * torch.finfo(dtype).eps)


@every_device
def test_a_quantized_model(device: str) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    method = QLoRA(block=16, double_quant=False)
    expected, found = (
        quantize_base(moved(base(), where, torch.float32), names, method=method) for where in ("cpu", device)
    )
    with torch.no_grad():
        y = expected.double()(IDS)
        assert_near(found(IDS.to(device)), y, device, 2e-5)
