"""Every optimizer that PyTorch has equals it after 20 steps; Adafactor also that of transformers."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llm_study.optim import first_order as F
from llm_study.optim.base import GroupedOptimizer
from llm_study.optim.muon import Muon
from tests.optim.runs import parameters, run
from tests.parity.closeness import assert_close

SHAPES = [(7, 5), (5,), (), (3, 2, 4)]

PAIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SGD": (F.SGD, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (F.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
    "Nesterov": (F.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "Adagrad": (F.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3}),
    "RMSProp": (F.RMSProp, torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.9, "eps": 1e-3}),
    "Adam": (F.Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "AdamW": (F.AdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "AMSGrad": (
        F.AMSGrad,
        lambda p, **options: torch.optim.Adam(p, amsgrad=True, **options),
        {"lr": 0.1, "betas": (0.8, 0.7), "eps": 1e-3},
    ),
    "NAdam": (F.NAdam, torch.optim.NAdam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.1}),
    "RAdam": (F.RAdam, torch.optim.RAdam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "Adafactor": (F.Adafactor, torch.optim.Adafactor, {"lr": 0.5, "beta2_decay": -0.6, "d": 1.1}),
    "Adafactor, eps": (F.Adafactor, torch.optim.Adafactor, {"lr": 0.5, "eps": (0.8, 2.0)}),
}


@pytest.fixture(autouse=True)
def scalars_in_float64() -> Iterator[None]:
    """Torch keeps numbers such as the product of the momenta of NAdam in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("name", PAIRS)
def test_matches_torch_after_20_steps(name: str, weight_decay: float, dtype: torch.dtype) -> None:
    ours, theirs, options = PAIRS[name]
    results = []
    for kind in (ours, theirs):
        params = parameters(SHAPES, dtype)
        groups = [{"params": params[:2], "lr": 0.03, "weight_decay": 0.5 * weight_decay}, {"params": params[2:]}]
        results.append(run(kind(groups, weight_decay=weight_decay, **options), params, range(20)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", PAIRS)
def test_defaults_are_those_of_torch(name: str) -> None:
    ours, theirs, _ = PAIRS[name]
    params = parameters([(2, 2)])
    lr = {"lr": 0.1} if ours is F.SGD else {}
    mine, its = ours(params, **lr).defaults, theirs(params, **lr).defaults
    different = {key for key in mine if mine[key] != its[key]}
    assert different <= ({"weight_decay"} if ours is F.Adafactor else set())


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_muon_matches_torch(monkeypatch: pytest.MonkeyPatch, adjust_lr_fn: Any, nesterov: bool) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", Tensor.clone)  # torch iterates in bfloat16: not here
    options = {"lr": 0.1, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.2, "adjust_lr_fn": adjust_lr_fn}
    options |= {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 4}
    results = []
    for kind in (Muon, torch.optim.Muon):
        params = parameters([(7, 5), (5, 7), (6, 6)])
        results.append(run(kind(params, **options), params, range(20)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_large_parameters_are_worked_on_in_pieces_and_small_ones_together() -> None:
    results = []
    for kind in (F.AdamW, torch.optim.AdamW):
        params = parameters([(5,), (300, 500), (7, 5), (400, 700), (3,)])
        params[1].data = params[1].data.T  # a parameter that cannot be cut
        results.append(run(kind(params, lr=0.1), params, range(5)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_muon_in_bfloat16_stays_close_to_torch() -> None:
    results = []
    for kind in (Muon, torch.optim.Muon):
        params = parameters([(7, 5), (5, 7)], torch.bfloat16)
        results.append(run(kind(params, lr=0.1), params, range(1)))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 2**-7 * b.abs().max()  # bfloat16 keeps 8 binary digits


def test_defaults_of_muon_are_those_of_torch() -> None:
    params = parameters([(2, 2)])
    mine, its = Muon(params).defaults, torch.optim.Muon(params).defaults
    assert {key: mine[key] for key in mine if mine[key] != its[key]} == {"adjust_lr_fn": "original"}  # their None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_adafactor_matches_transformers(dtype: torch.dtype) -> None:
    results = []
    for kind, options in (
        (F.Adafactor, {"eps": (1e-30, 1e-3)}),
        (transformers.Adafactor, {"eps": (1e-30, 1e-3)}),
    ):
        params = parameters([(7, 5), (5,), (3, 2, 4)], dtype)
        results.append(run(kind(params, **options), params, range(20)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", [name for name in PAIRS if "Ada" in name or name in ("NAdam", "RAdam", "AMSGrad")])
def test_goes_on_from_a_state_of_torch(name: str) -> None:
    ours, theirs, options = PAIRS[name]
    if ours is F.Adagrad:
        options = {**options, "weight_decay": 0.1}
    params = parameters(SHAPES[:2])
    optimizer = theirs(params, **options)
    run(optimizer, params, range(5))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed: GroupedOptimizer = ours(copies, **options)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # or both would work on the same tensors
    for a, b in zip(run(resumed, copies, range(5, 10)), run(optimizer, params, range(5, 10)), strict=True):
        assert_close(a, b)
