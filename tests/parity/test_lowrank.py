"""Variants of LoRA against peft: values, gradients of every trained tensor, merged weights, files in both ways."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from llm_study.functional.lowrank import factor_pair, gradient_factors
from llm_study.peft.adalora import AdaLoRA, RankAllocator
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import (
    Adapter,
    Method,
    adapter_state_dict,
    inject,
    load_adapter_state_dict,
    merge,
    save_adapter,
    trainable,
    unload,
)
from llm_study.peft.decomposed import DoRA, OLoRA, PiSSA
from llm_study.peft.lowrank import FourierFT, LoHa, LoKr, MiSS
from llm_study.peft.shared import RandLoRA, VBLoRA, VeRA
from tests.parity.closeness import assert_close

# [pair]
BANK = {"num_vectors": 16, "vector_length": 8, "topk": 3}
PAIRS: dict[str, tuple[Method, str, dict[str, Any]]] = {
    "DoRA": (DoRA(rank=4, alpha=6), "LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "AdaLoRA": (AdaLoRA(init_r=6, target_r=4, alpha=5, total_step=10), "AdaLoraConfig",
                {"init_r": 6, "target_r": 4, "lora_alpha": 5, "total_step": 10}),
    "VeRA": (VeRA(rank=4), "VeraConfig", {"r": 4}),
    "VB-LoRA": (VBLoRA(rank=4, **BANK), "VBLoRAConfig", {"r": 4, **BANK}),
    "LoHa": (LoHa(rank=4, alpha=6), "LoHaConfig", {"r": 4, "alpha": 6}),
    "LoKr": (LoKr(rank=2, alpha=6), "LoKrConfig", {"r": 2, "alpha": 6}),
    "LoKr, whole": (LoKr(rank=4, alpha=6), "LoKrConfig", {"r": 4, "alpha": 6}),
    "LoKr, both": (LoKr(rank=1, decompose_both=True, decompose_factor=2), "LoKrConfig",
                   {"r": 1, "decompose_both": True, "decompose_factor": 2}),
    "RandLoRA": (RandLoRA(rank=4), "RandLoraConfig", {"r": 4}),
    "RandLoRA, uneven": (RandLoRA(rank=5, alpha=9), "RandLoraConfig", {"r": 5, "randlora_alpha": 9}),
    "MiSS": (MiSS(rank=4), "MissConfig", {"r": 4}),
    "MiSS, uneven": (MiSS(rank=5), "MissConfig", {"r": 5}),
    "FourierFT": (FourierFT(n_frequency=20), "FourierFTConfig", {"n_frequency": 20}),
}  # fmt: skip
each = pytest.mark.parametrize("case", PAIRS)


def net(*widths: int) -> nn.Sequential:
    """Return a small network; module ``0`` is the one to adapt."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(*widths), nn.LayerNorm(widths[1]))
    nn.init.normal_(layers[0].weight)
    return layers


def pair(case: str, *widths: int) -> tuple[nn.Sequential, peft.PeftModel]:
    """Return our model and peft's, with the same trained values, of standard deviation 0.1."""
    method, config, settings = PAIRS[case]
    ours, base = inject(net(*widths), method, ["0"]), net(*widths)
    theirs = peft.get_peft_model(base, getattr(peft, config)(target_modules=["0"], **settings)).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    load_adapter_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    return ours, theirs


# [/pair]
def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a fixed functional of the outputs, by the name that the tensor has with us."""
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(7)))
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {
        name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight"): g
        for name, g in found.items()
        if g is not None
    }


@each
@pytest.mark.parametrize("widths", [(16, 24), (24, 16), (16, 16)], ids=str)
def test_values_gradients_and_merged_weights(case: str, widths: tuple[int, int]) -> None:
    ours, theirs = pair(case, *widths)
    x = torch.randn(5, widths[0])
    assert_close(ours(x), theirs(x))
    expected = gradients(theirs, x)
    found = gradients(ours, x)
    assert found.keys() == expected.keys() == trainable(ours).keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert_close(found[name], gradient)
    merged = unload(merge(ours))[0].weight
    assert_close(merged, theirs.merge_and_unload()[0].weight)
    assert (merged - net(*widths)[0].weight).abs().max() > 1e-3


@each
def test_files_go_both_ways(case: str, tmp_path: Path) -> None:
    ours, theirs = pair(case, 16, 24)
    x = torch.randn(5, 16)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(load_adapter(net(16, 24), tmp_path / "theirs")(x), theirs(x))
    save_adapter(ours, tmp_path / "ours")
    assert_close(ours(x), peft.PeftModel.from_pretrained(net(16, 24), tmp_path / "ours").eval()(x))


@each
def test_fresh_adapters_have_the_tensors_of_peft(case: str) -> None:
    method, config, settings = PAIRS[case]
    ours = inject(net(16, 24), method, ["0"])
    theirs = peft.get_peft_model(net(16, 24), getattr(peft, config)(target_modules=["0"], **settings))
    expected, found = peft.get_peft_model_state_dict(theirs), adapter_state_dict(ours)
    assert {n: tuple(x.shape) for n, x in found.items()} == {n: tuple(x.shape) for n, x in expected.items()}
    for name, x in expected.items():
        constant = bool((x == x.flatten()[0]).all())
        assert constant == bool((found[name] == found[name].flatten()[0]).all()), name
        if constant or "vera_" in name or "magnitude" in name:  # not drawn, or drawn from the seed of the method
            torch.testing.assert_close(found[name], x)


def test_shared_tensors_are_as_large_as_the_largest_layer() -> None:
    for case in ("VeRA", "RandLoRA", "VB-LoRA"):
        method, config, settings = PAIRS[case]
        base = nn.Sequential(nn.Linear(16, 40), nn.Linear(40, 24), nn.Linear(24, 8))
        ours = inject(copy.deepcopy(base), method, ["0", "1", "2"])
        theirs = peft.get_peft_model(base, getattr(peft, config)(target_modules=["0", "1", "2"], **settings)).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        load_adapter_state_dict(ours, peft.get_peft_model_state_dict(theirs))
        x = torch.randn(5, 16)
        assert_close(ours(x), theirs(x))


# --- starts taken from the weight


@pytest.mark.parametrize(("kind", "start"), [(PiSSA, "pissa"), (OLoRA, "olora")])
@pytest.mark.parametrize("widths", [(16, 24), (24, 16)], ids=str)
def test_starts_from_the_weight(kind: type[PiSSA], start: str, widths: tuple[int, int], tmp_path: Path) -> None:
    ours = inject(net(*widths), kind(rank=4, alpha=6), ["0"])
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=start, target_modules=["0"])
    theirs = peft.get_peft_model(net(*widths), config).eval()
    adapter, layer = ours[0], theirs.base_model.model[0]
    assert isinstance(adapter, Adapter)
    assert_close(adapter.delta(), layer.get_delta_weight("default"))
    assert_close(adapter.base_layer.weight, layer.base_layer.weight)
    x = torch.randn(5, widths[0])
    for parameter in trainable(ours).values():
        nn.init.normal_(parameter, std=0.1)
    save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(net(*widths), tmp_path / "ours").eval()
    assert_close(back(x), ours(x))
    back.save_pretrained(tmp_path / "theirs")
    assert_close(load_adapter(net(*widths), tmp_path / "theirs")(x), ours(x))


def test_lora_ga_takes_the_singular_vectors_that_peft_takes() -> None:
    base = net(16, 24)
    gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    base[0]._peft_loraga_grad = gradient
    config = peft.LoraConfig(r=4, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig(), target_modules=["0"])
    layer = peft.get_peft_model(base, config).base_model.model[0]
    a, b = gradient_factors(gradient, 4)
    theirs_a, theirs_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    factor = (24**0.25) / 16**0.5
    singular = torch.linalg.svdvals(gradient)
    torch.testing.assert_close(
        (a @ theirs_a.mT).abs(), factor * torch.eye(4), atol=1e-4, rtol=0
    )  # theirs is not scaled
    expected = torch.diag(factor * factor * singular[4:8])  # and B carries the singular values
    torch.testing.assert_close((b.mT @ theirs_b).abs(), expected, atol=1e-4, rtol=0)


# --- the budget of AdaLoRA


def test_budget_is_spent_as_peft_spends_it() -> None:
    settings = {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 3, "total_step": 14, "beta1": 0.7, "beta2": 0.8}
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
    ours = inject(copy.deepcopy(base), AdaLoRA(**settings, delta_t=2), ["0", "2"])
    theirs = peft.get_peft_model(base, peft.AdaLoraConfig(**settings, deltaT=2, target_modules=["0", "2"]))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    load_adapter_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    allocator, seen = RankAllocator(ours), []
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (ours, theirs)]
    for step in range(1, 15):
        x, target = torch.randn(7, 16), torch.randn(7, 8)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            (model(x) - target).square().sum().backward()
            optimizer.step()
        allocator.step(step)
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        zeros = [
            [
                (m.lora_E["default"] if isinstance(m.lora_E, nn.ParameterDict) else m.lora_E).flatten() == 0
                for m in layers
            ]
            for layers in ((ours[0], ours[2]), (theirs.base_model.model[0], theirs.base_model.model[2]))
        ]
        assert all(torch.equal(mine, other) for mine, other in zip(*zeros, strict=True)), step
        seen.append(12 - int(sum(z.sum() for z in zeros[0])))
        torch.testing.assert_close(ours(x), theirs(x))
    assert seen[:2] == [12, 12]
    assert seen[-4:] == [4, 4, 4, 4]
    assert 4 < seen[3] < 12


@pytest.mark.parametrize("near", [-1, 1, 2, 3, 4, 7, 16])
def test_widths_are_split_as_peft_splits_them(near: int) -> None:
    from peft.tuners.lokr.layer import factorization

    numbers = range(1, 130)
    assert [factor_pair(n, near=near) for n in numbers] == [factorization(n, near) for n in numbers]


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    for config, settings, text in (
        ("MissConfig", {"r": 4, "init_weights": "bat"}, "init_weights"),
        ("VeraConfig", {"r": 4, "save_projection": False}, "save_projection"),
        ("LoHaConfig", {"r": 4, "rank_dropout": 0.5}, "rank_dropout"),
    ):
        theirs = peft.get_peft_model(net(16, 24), getattr(peft, config)(target_modules=["0"], **settings))
        theirs.save_pretrained(tmp_path / config)
        with pytest.raises(ValueError, match=text):
            load_adapter(net(16, 24), tmp_path / config)
        assert json.loads((tmp_path / config / "adapter_config.json").read_text())["r"] == 4
