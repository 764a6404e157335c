"""What the variants of LoRA promise: identity at the start, merging, disabling, files, clear errors. In float64."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llm_study.peft.adalora import AdaLoRA, RankAllocator, orthogonality
from llm_study.peft.auto import METHODS, load_adapter
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
from llm_study.peft.decomposed import DoRA, LoRAGA, OLoRA, PiSSA
from llm_study.peft.lowrank import FourierFT, LoHa, LoKr, MiSS, MoRA
from llm_study.peft.shared import RandLoRA, VBLoRA, VeRA

METHODS_HERE: list[Method] = [
    DoRA(rank=3),
    PiSSA(rank=3),
    OLoRA(rank=3, alpha=5),
    LoRAGA(rank=2, alpha=3),
    AdaLoRA(init_r=4, target_r=2),
    VeRA(rank=9),
    VBLoRA(rank=2, num_vectors=8, vector_length=4),
    RandLoRA(rank=3),
    LoHa(rank=2),
    LoKr(rank=2),
    MoRA(rank=2),
    MiSS(rank=5),
    FourierFT(n_frequency=9),
    FourierFT(n_frequency=9, init_weights=True),
]
every = pytest.mark.parametrize("method", METHODS_HERE, ids=str)
TARGETS = ["0", "2"]


def net() -> nn.Sequential:
    """Return a network of two layers in float64, of which the first is narrow and the second wide, and some inputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12, bias=False), nn.LayerNorm(12)).double()


X = torch.randn(7, 8, generator=torch.Generator().manual_seed(1)).double()


def prepared(method: Method) -> Method:
    """Return the method, with gradients where it asks for them."""
    if not isinstance(method, LoRAGA):
        return method
    base = net()
    base(X)[:, 0].sum().backward()
    gradients = {name: base.get_submodule(name).get_parameter("weight").grad for name in TARGETS}
    return dataclasses.replace(method, gradients={name: g for name, g in gradients.items() if g is not None})


def adapted(method: Method, *, trained: bool = True) -> nn.Sequential:
    """Return the network with adapters, their trained values random unless told otherwise."""
    model = inject(net(), prepared(method), TARGETS, generator=torch.Generator().manual_seed(2))
    for parameter in trainable(model).values() if trained else ():
        nn.init.normal_(parameter, std=0.3)
    return model


def far(a: Tensor, b: Tensor) -> float:
    """Return the largest difference."""
    return (a - b).abs().max().item()


@every
def test_start(method: Method) -> None:
    difference = far(adapted(method, trained=False)(X), net()(X))
    assert difference < 1e-12 if method.identity else difference > 1e-6


@every
def test_merging(method: Method) -> None:
    model = adapted(method)
    before, weights = model(X), {n: p.clone() for n, p in model.named_parameters()}
    assert far(before, net()(X)) > 1e-3
    assert far(merge(model)(X), before) < 1e-12
    merged = unload(copy.deepcopy(model))
    assert [type(module) for module in merged] == [type(module) for module in net()]
    assert far(merged(X), before) < 1e-12
    unmerge(model)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(model(X), before)


@every
def test_disabled_is_the_model_before(method: Method) -> None:
    model = adapted(method)
    with disabled(model):
        assert far(model(X), net()(X)) < 1e-12
    assert far(model(X), net()(X)) > 1e-3
    merge(model)
    with disabled(model):
        assert far(model(X), net()(X)) < 1e-12
    assert far(unload(unmerge(model))(X), net()(X)) < 1e-12


@every
def test_only_the_adapter_is_trained(method: Method) -> None:
    model = adapted(method)
    names = trainable(model)
    assert not any("base_layer" in name or name.startswith("3") for name in names)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X)[:, 0].square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in names), name


@every
def test_saved_and_loaded(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    save_adapter(model, tmp_path)
    loaded = load_adapter(net(), tmp_path)
    assert far(loaded(X), model(X)) < 1e-12
    mine, theirs = adapter_state_dict(model), adapter_state_dict(loaded)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert trainable(loaded).keys() == trainable(model).keys()


@every
def test_the_shorter_way_is_the_weight_difference(method: Method) -> None:
    model = adapted(method)
    layer = model[0]
    expected = nn.functional.linear(X, layer.base_layer.weight + layer.delta(), layer.base_layer.bias)
    assert far(layer(X), expected) < 1e-12


@every
def test_half_precision_is_computed_in_float32(method: Method) -> None:
    exact = adapted(method).float()
    half = inject(net().bfloat16(), prepared(method), TARGETS)
    assert {p.dtype for p in trainable(half).values()} == {torch.float32}
    assert half(X.bfloat16()).dtype == torch.bfloat16
    assert merge(half)[0].base_layer.weight.dtype == torch.bfloat16
    assert exact(X.float()).dtype == torch.float32


@pytest.mark.parametrize("method", [m for m in METHODS_HERE if not isinstance(m, DoRA)], ids=str)
def test_what_is_added_in_half_precision_is_rounded_once(method: Method) -> None:
    layer, x = inject(net().bfloat16(), prepared(method), TARGETS)[0], X.bfloat16()
    for parameter in trainable(layer).values():
        nn.init.normal_(parameter, std=0.3)
    wide = copy.deepcopy(layer).double()
    expected = layer.base_layer(x).double() + wide(x.double()) - wide.base_layer(x.double())
    assert (layer(x) == expected.bfloat16()).double().mean() > 0.97  # but for ties that float32 breaks otherwise


@every
def test_a_copy_shares_nothing_with_the_model_and_random_numbers_come_from_the_generator(method: Method) -> None:
    model = adapted(method, trained=False)
    again = adapted(method, trained=False)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    other = copy.deepcopy(model)
    for p in trainable(other).values():
        nn.init.ones_(p)
    assert torch.equal(model(X), again(X))
    assert not torch.equal(other(X), model(X))


def test_every_method_is_tested_and_read_from_files() -> None:
    known = {kind.__name__ for kind in METHODS}
    assert {type(method).__name__ for method in METHODS_HERE} == known - {
        "LoRA",
        "RSLoRA",
        "LoftQ",
    }  # they have files of their own


# --- errors: nothing is half injected


WRONG: dict[str, tuple[Callable[[], Method], str]] = {
    "rank 0": (lambda: LoHa(rank=0), "rank is 0, expected at least 1"),
    "rank too large": (lambda: PiSSA(rank=9), "0: rank is 9, expected at most 8"),
    "rank too large, DoRA": (lambda: DoRA(rank=13), "0: rank is 13, expected at most 8"),
    "twice the rank": (lambda: prepared(LoRAGA(rank=5)), "0: rank is 10, expected at most 8"),
    "no gradient": (lambda: LoRAGA(rank=2), "0: no gradient for this layer"),
    "shape": (lambda: LoRAGA(rank=2, gradients={"0": torch.ones(8, 16)}), r"\(8, 16\)"),
    "AdaLoRA": (lambda: AdaLoRA(init_r=9, target_r=2), "0: rank is 9"),
    "AdaLoRA grows": (lambda: AdaLoRA(init_r=2, target_r=3), "init_r is 2, expected at least 3"),
    "indivisible": (lambda: VBLoRA(num_vectors=8, vector_length=3), "3.*8"),
    "topk": (lambda: VBLoRA(num_vectors=1, topk=2), "num_vectors is 1, expected at least 2"),
    "RandLoRA": (lambda: RandLoRA(rank=13), "rank is 13"),
    "MiSS": (lambda: MiSS(rank=9), "rank is 9"),
    "MoRA": (lambda: MoRA(rank=0), "rank is 0"),
    "VeRA": (lambda: VeRA(rank=0), "rank is 0"),
    "LoKr": (lambda: LoKr(rank=9), "rank is 9"),
    "FourierFT": (lambda: FourierFT(n_frequency=129), "size of the weight is 128, expected at least 129"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_an_error_and_changes_nothing(case: str) -> None:
    make, text = WRONG[case]
    model = net()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=text):
        inject(model, make(), TARGETS)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear, nn.LayerNorm]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]


def test_a_row_without_direction_has_no_dora() -> None:
    model = net()
    nn.init.zeros_(model[2].weight[3])
    with pytest.raises(ValueError, match="2: row 3 of the weight is 0"):
        inject(model, DoRA(rank=2), TARGETS)
    assert type(model[0]) is nn.Linear


# --- AdaLoRA


def test_penalty_is_that_of_all_layers_and_pulls_towards_orthonormal() -> None:
    model = adapted(AdaLoRA(init_r=3, target_r=2))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.05)
    first = orthogonality(model)
    for _ in range(300):
        optimizer.zero_grad()
        orthogonality(model).backward()
        optimizer.step()
    assert orthogonality(model) < 1e-6 * first
    for layer in (model[0], model[2]):
        assert far(layer.lora_A @ layer.lora_A.mT, torch.eye(3).double()) < 1e-3
        assert far(layer.lora_B.mT @ layer.lora_B, torch.eye(3).double()) < 1e-3


def test_allocator_wants_adapters_and_a_length() -> None:
    with pytest.raises(ValueError, match="total_step of AdaLoRA is None"):
        RankAllocator(adapted(AdaLoRA(init_r=3, target_r=2)))
    for function in (RankAllocator, orthogonality):
        with pytest.raises(ValueError, match="0 adapters of AdaLoRA"):
            function(adapted(MiSS(rank=2)))
