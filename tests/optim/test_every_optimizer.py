"""What holds for every optimizer: the equation of its reference, plain state, resuming, groups, missing gradients."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from llm_study.optim import first_order as F
from llm_study.optim.base import GroupedOptimizer
from llm_study.optim.muon import Muon, muon_reference
from llm_study.optim.second_order import SOAP, Shampoo, Sophia, shampoo_reference, soap_reference, sophia_reference
from tests.optim.runs import EVERY, parameters, run
from tests.parity.closeness import assert_close

MATRICES = [(7, 5), (5, 7)]
SHAPES: dict[str, list[tuple[int, ...]]] = {"Muon": MATRICES}
MOMENTS = {"betas": (0.8, 0.95), "eps": 1e-3}
ROW = {"lr": 0.1, "weight_decay": 0.2}
EXACT = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 60}
Start = Callable[[Tensor], tuple[Any, ...]]


def zeros(n: int) -> Start:
    return lambda p: (torch.zeros_like(p),) * n


# optimizer, its options, its reference, the state of the reference at first, whether it wants the number of the step
REFERENCES: dict[str, tuple[Any, dict[str, Any], Any, Start, bool]] = {
    "SGD": (F.SGD, {**ROW, "momentum": 0.8}, F.sgd_reference, zeros(1), False),
    "Nesterov": (F.SGD, {**ROW, "momentum": 0.8, "nesterov": True}, F.sgd_reference, zeros(1), False),
    "Adagrad": (F.Adagrad, {**ROW, "eps": 1e-3}, F.adagrad_reference, zeros(1), False),
    "RMSProp": (F.RMSProp, {**ROW, "alpha": 0.8, "eps": 1e-3}, F.rmsprop_reference, zeros(1), False),
    "Adam": (F.Adam, {**ROW, **MOMENTS}, F.adam_reference, zeros(2), True),
    "AdamW": (F.AdamW, {**ROW, **MOMENTS}, F.adamw_reference, zeros(2), True),
    "AMSGrad": (F.AMSGrad, {**ROW, **MOMENTS, "betas": (0.8, 0.6)}, F.amsgrad_reference, zeros(3), True),
    "NAdam": (
        F.NAdam,
        {**ROW, **MOMENTS, "momentum_decay": 0.1},
        F.nadam_reference,
        lambda p: (torch.zeros_like(p), torch.zeros_like(p), 1.0),
        True,
    ),
    "RAdam": (F.RAdam, {**ROW, **MOMENTS}, F.radam_reference, zeros(2), True),
    "Adafactor": (
        F.Adafactor,
        {**ROW, "lr": 0.5, "beta2_decay": -0.6, "eps": (0.3, 0.5), "d": 1.1},
        F.adafactor_reference,
        lambda p: (torch.zeros_like(p[:, :1]), torch.zeros_like(p[:1])),
        True,
    ),
    "LAMB": (F.LAMB, {**ROW, **MOMENTS}, F.lamb_reference, zeros(2), True),
    "Lion": (F.Lion, {**ROW, "betas": (0.6, 0.9)}, F.lion_reference, zeros(1), False),
    "Muon": (Muon, {**ROW, "momentum": 0.8, **EXACT}, muon_reference, zeros(1), False),
    "Shampoo": (
        Shampoo,
        {"lr": 0.1, "eps": 0.1},
        shampoo_reference,
        lambda p: tuple(0.1 * torch.eye(n, dtype=p.dtype) for n in p.shape),
        False,
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_its_reference(name: str) -> None:
    kind, options, reference, start, counts = REFERENCES[name]
    params = parameters(MATRICES)
    values = [(p.detach().clone(), *start(p)) for p in params]
    optimizer = kind(params, **options)
    known = {
        key: x for key, x in options.items() if not key.startswith("ns_") and not (name == "Shampoo" and key == "eps")
    }
    for step in range(1, 21):
        run(optimizer, params, range(step, step + 1), holes=False)
        for i, p in enumerate(params):
            count = {"step": step} if counts else {}
            values[i] = reference(values[i][0], p.grad, *values[i][1:], **count, **known)
    for p, (value, *_) in zip(params, values, strict=True):
        assert (p - value).abs().max() <= 1e-9 * value.abs().max()


# one step, worked out by hand, of those that no library at hand has: reference, arguments, options, results
BY_HAND: dict[str, tuple[Any, list[Any], dict[str, Any], list[Any]]] = {
    "LAMB": (  # u = [1, -1] + 0.5 p = [4, 3], of length 5; p has the length 10
        F.lamb_reference,
        [[6.0, 8.0], [3.0, -0.2], [0.0, 0.0], [0.0, 0.0]],
        {"step": 1, "lr": 0.1, "eps": 0.0, "weight_decay": 0.5},
        [[5.2, 7.4]],
    ),
    "Lion": (  # 0.9 m + 0.1 g = [0.5, -0.7], of other signs than 0.5 m + 0.5 g
        F.lion_reference,
        [[1.0, 1.0], [-4.0, 2.0], [1.0, -1.0]],
        {"lr": 0.1, "betas": (0.9, 0.5), "weight_decay": 0.5},
        [[0.85, 1.05], [-1.5, 0.5]],
    ),
    "schedule-free": (  # y = 3, v = 1/4, γ = 0.4 · 1/2 · 1/2, c = 0.01 / 0.04
        F.schedule_free_reference,
        [[2.0], [4.0], [1.0], [0.0], 0.03],
        {"step": 1, "lr": 0.4, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 1.0, "warmup_steps": 2},
        [[2.375], [3.5], [0.25], 0.04],
    ),
    "Sophia": (  # m = 1; m / (0.5 h) = 0.5, 8 and negative, of which the last two become 1
        sophia_reference,
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [4.0, 0.25, -1.0]],
        {"lr": 0.1, "beta": 0.5, "rho": 0.5, "weight_decay": 0.5},
        [[0.9, 0.85, 0.85], [1.0, 1.0, 1.0]],
    ),
    "SOAP": (  # rotated, the gradient is [5, -0.1], and Adam goes along [1, -1]; rotated back, that is [1.4, 0.2]
        soap_reference,
        [[[1.0], [1.0]], [[3.08], [3.94]], [[0.0], [0.0]], [[0.0], [0.0]], [[0.6, -0.8], [0.8, 0.6]], [[1.0]]],
        {"step": 1, "lr": 0.1, "eps": 0.0, "weight_decay": 0.5},
        [[[0.81], [0.93]]],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_one_step_by_hand(name: str) -> None:
    reference, arguments, options, expected = BY_HAND[name]
    results = reference(*(torch.tensor(x, dtype=torch.float64) for x in arguments), **options)
    for result, value in zip(results, expected, strict=False):
        assert_close(torch.as_tensor(result), torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize(("start", "grad", "end"), [(0.0, 2.0, -0.1), (3.0, 0.0, 3.0)])
def test_lamb_has_no_ratio_where_a_length_is_zero(start: float, grad: float, end: float) -> None:
    p, g, expected = (torch.full((2, 3), x, dtype=torch.float64) for x in (start, grad, end))
    options = {"lr": 0.1, "eps": 1e-300, "weight_decay": 0.0}
    w = torch.nn.Parameter(p.clone())
    w.grad = g
    F.LAMB([w], **options).step()
    assert_close(w.detach(), expected)
    assert_close(F.lamb_reference(p, g, 0 * p, 0 * p, step=1, **options)[0], expected)


@pytest.mark.parametrize("warmup_steps", [0, 6])
def test_schedule_free_equals_its_reference(warmup_steps: int) -> None:
    options: dict[str, Any] = {**ROW, **MOMENTS, "warmup_steps": warmup_steps}
    (p,) = params = parameters([(7, 5)])
    optimizer = F.ScheduleFreeAdamW(params, **options)
    x, z, v, total = p.detach().clone(), p.detach().clone(), torch.zeros_like(p), 0.0
    for step in range(1, 21):
        run(optimizer, params, range(step, step + 1), holes=False)
        x, z, v, total = F.schedule_free_reference(x, z, p.grad, v, total, step=step, **options)
        assert_close(p.detach(), 0.2 * z + 0.8 * x)
    optimizer.eval()
    optimizer.eval()  # a second time is without effect
    assert_close(p.detach(), x)
    with pytest.raises(ValueError, match=r"train_mode is False, expected True"):
        optimizer.step()
    optimizer.train()
    optimizer.train()
    assert_close(p.detach(), 0.2 * z + 0.8 * x)


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_is_resumed_from_plain_files_goes_on_identically(name: str) -> None:
    shapes = SHAPES.get(name, [(7, 5), (5,), (3, 2, 4)])
    params = parameters(shapes)
    optimizer = EVERY[name](params)
    run(optimizer, params, range(11))
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for i, entries in state["state"].items():
        for key, x in entries.items():
            assert isinstance(x, Tensor | int | float), f"{key} is {type(x)}"
            (tensors if isinstance(x, Tensor) else numbers)[f"{i}.{key}"] = x
    blob, text = save(tensors), json.dumps({"numbers": numbers, "groups": state["param_groups"]})

    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    read = json.loads(text)
    again: dict[int, dict[str, Any]] = {i: {} for i in state["state"]}
    for key, x in [*load(blob).items(), *read["numbers"].items()]:
        again[int(key.split(".")[0])][key.split(".")[1]] = x
    resumed = EVERY[name](copies)
    resumed.load_state_dict({"state": again, "param_groups": read["groups"]})
    for a, b in zip(run(resumed, copies, range(11, 20)), run(optimizer, params, range(11, 20)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", EVERY)
def test_a_parameter_without_gradient_is_left_alone(name: str) -> None:
    params = parameters(MATRICES)
    optimizer = EVERY[name](params)
    run(optimizer, params, range(5), holes=False)
    before, state = params[0].detach().clone(), json.dumps({k: str(x) for k, x in optimizer.state[params[0]].items()})
    other = params[1].detach().clone()
    params[0].grad = None
    optimizer.step()
    assert torch.equal(params[0], before)
    assert json.dumps({k: str(x) for k, x in optimizer.state[params[0]].items()}) == state
    assert not torch.equal(params[1], other)


@pytest.mark.parametrize("name", EVERY)
def test_groups_have_their_own_options(name: str) -> None:
    params = parameters(MATRICES)
    run(EVERY[name]([{"params": params[:1], "lr": 0.0, "weight_decay": 0.5}, {"params": params[1:]}]), params, range(3))
    first, second = parameters(MATRICES)
    assert torch.equal(params[0], first)
    assert not torch.equal(params[1], second)


@pytest.mark.parametrize("name", EVERY)
def test_finds_a_minimum(name: str) -> None:
    params = parameters(MATRICES)
    start = sum(float(p.detach().square().sum()) for p in params)
    optimizer = EVERY[name](params)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 if name not in ("Adagrad", "Shampoo") else 0.3
    for _ in range(200):
        for p in params:
            p.grad = 2 * p.detach()
        optimizer.step()
    assert sum(float(p.detach().square().sum()) for p in params) < 0.5 * start


@pytest.mark.parametrize("name", EVERY)
def test_empty_parameters_and_closures(name: str) -> None:
    params = [*parameters(MATRICES), torch.nn.Parameter(torch.zeros(0, 3))]
    optimizer = EVERY[name](params)

    def closure() -> Tensor:
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    assert optimizer.step(closure) == sum(p.square().sum() for p in parameters(MATRICES))
    assert all(bool(p.isfinite().all()) for p in params)
    assert optimizer.step() is None


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("Shampoo", "SOAP")])
def test_half_precision_stays_half_precision(name: str) -> None:
    params = parameters(MATRICES, torch.bfloat16)
    for p in run(EVERY[name](params), params, range(3)):
        assert p.dtype == torch.bfloat16
        assert bool(p.isfinite().all())


BAD: list[tuple[Any, dict[str, Any], str]] = [
    *(
        (kind, {"lr": -0.1}, r"lr is -0.1, expected at least 0")
        for kind in (F.SGD, F.AdamW, Muon, Sophia, Shampoo, SOAP)
    ),
    (F.AdamW, {"lr": float("nan")}, r"lr is nan"),
    (F.AdamW, {"betas": (1.0, 0.9)}, r"betas\[0\] is 1.0, expected at least 0 and below 1"),
    (F.Lion, {"betas": (0.9, -0.5)}, r"betas\[1\] is -0.5"),
    (F.Adam, {"eps": -1e-8}, r"eps is -1e-08"),
    (F.AdamW, {"weight_decay": -1.0}, r"weight_decay is -1.0"),
    (F.SGD, {"momentum": 1.0}, r"momentum is 1.0, expected at least 0 and below 1"),
    (F.SGD, {"nesterov": True}, r"nesterov is True and momentum is 0.0"),
    (F.RMSProp, {"alpha": 1.5}, r"alpha is 1.5"),
    (F.NAdam, {"momentum_decay": -1.0}, r"momentum_decay is -1.0"),
    (F.Adafactor, {"eps": (-1.0, 1e-3)}, r"eps\[0\] is -1.0"),
    (F.Adafactor, {"d": 0.5}, r"d is 0.5, expected at least 1"),
    (F.Adafactor, {"beta2_decay": 0.8}, r"beta2_decay is 0.8, expected at most 0"),
    (F.ScheduleFreeAdamW, {"betas": (0.0, 0.9)}, r"betas\[0\] is 0.0, expected above 0"),
    (F.ScheduleFreeAdamW, {"warmup_steps": -1}, r"warmup_steps is -1"),
    (Muon, {"momentum": -0.1}, r"momentum is -0.1"),
    (Muon, {"ns_steps": 0}, r"ns_steps is 0"),
    (Muon, {"adjust_lr_fn": "none"}, r"adjust_lr_fn is 'none', expected 'original' or"),
    (Sophia, {"rho": -1.0}, r"rho is -1.0"),
    (Sophia, {"eps": 0.0}, r"eps is 0.0, expected above 0"),
    (Shampoo, {"eps": 0.0}, r"eps is 0.0, expected above 0"),
    (Shampoo, {"precondition_frequency": 0}, r"precondition_frequency is 0"),
    (SOAP, {"precondition_frequency": 0}, r"precondition_frequency is 0"),
    (SOAP, {"max_dim": -1}, r"max_dim is -1"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_bad_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(parameters(MATRICES), **options)
    optimizer = kind(parameters(MATRICES), lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters(MATRICES), **options})
    assert len(optimizer.param_groups) == 1


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"complex64, expected real numbers"):
        F.AdamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match=r"shape \(5,\), expected a matrix"):
        Muon(parameters([(5,)]))
    optimizer = SOAP(parameters(MATRICES))
    with pytest.raises(ValueError, match=r"bfloat16, expected float32 or float64"):
        optimizer.add_param_group({"params": parameters(MATRICES, torch.bfloat16)})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"sparse=False"):
        F.AdamW(table.parameters()).step()


def test_the_base_says_what_is_missing() -> None:
    params = parameters(MATRICES)
    with pytest.raises(NotImplementedError, match=r"GroupedOptimizer defines neither"):
        run(GroupedOptimizer(params, {"lr": 0.1}), params, range(1))


def test_sophia_equals_its_reference() -> None:
    (p,) = params = parameters([(7, 5)])
    optimizer = Sophia(params, lr=0.1, betas=(0.8, 0.6), rho=0.5, weight_decay=0.2)
    value, m, h = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    for step in range(20):
        if step % 3 == 1:
            estimate = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            optimizer.update_curvature([estimate])
            h = 0.6 * h + 0.4 * estimate
        run(optimizer, params, range(step, step + 1), holes=False)
        value, m = sophia_reference(value, p.grad, m, h, lr=0.1, beta=0.8, rho=0.5, weight_decay=0.2)
    assert_close(p.detach(), value)
    with pytest.raises(ValueError, match=r"number of estimates is 2, number of parameters is 1"):
        optimizer.update_curvature([estimate, estimate])
    with pytest.raises(ValueError, match=r"shape of an estimate is \(5,\)"):
        optimizer.update_curvature([estimate[0]])


def test_soap_equals_its_reference() -> None:
    (p,) = params = parameters([(7, 5)])
    optimizer = SOAP(params, lr=0.1, betas=(0.8, 0.9), weight_decay=0.2, precondition_frequency=4)
    run(optimizer, params, range(1), holes=False)
    value, m, v = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    assert torch.equal(value, parameters([(7, 5)])[0])  # the first gradient only fixes the basis
    left, right = p.grad @ p.grad.mT / 10, p.grad.mT @ p.grad / 10
    bases = [optimizer.state[p][f"basis_{i}"].clone() for i in range(2)]
    for x, q in zip((left, right), bases, strict=True):
        assert_close(q @ torch.diag((q.mT @ x @ q).diagonal()) @ q.mT, x)
    for step in range(1, 21):
        run(optimizer, params, range(step, step + 1), holes=False)
        g = p.grad
        value, m, v = soap_reference(value, g, m, v, *bases, step=step, lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
        left, right = 0.9 * left + 0.1 * g @ g.mT, 0.9 * right + 0.1 * g.mT @ g
        if step % 4 == 0:
            bases = [torch.linalg.qr(x @ q)[0] for x, q in zip((left, right), bases, strict=True)]
    assert (p - value).abs().max() <= 1e-9
