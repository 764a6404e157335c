"""LoRA: the fast functions against the equations, the gradients, and what the variants change."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.peft.base import adapter_state_dict, inject, merge, trainable
from llm_study.peft.lora import (
    LoRA,
    LoRAFA,
    LoRALinear,
    RSLoRA,
    batched_lora,
    batched_lora_reference,
    lora_delta,
    lora_linear,
    lora_linear_reference,
    lora_plus_groups,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model: nn.Module) -> nn.Module:
    """Fill the tensors of the adapters, so that B = 0 hides nothing."""
    for i, tensor in enumerate(adapter_state_dict(model).values()):
        tensor.copy_(random(*tensor.shape, seed=i))
    return model


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3)], ids=str)
def test_fast_is_the_equation(lead: tuple[int, ...]) -> None:
    x, W, A, B, b = random(*lead, 7), random(5, 7, seed=1), random(3, 7, seed=2), random(5, 3, seed=3), random(5)
    expected = lora_linear_reference(x, W, A, B, scale=0.7, bias=b)
    found = lora_linear(F.linear(x, W, b), x, A, B, scale=0.7)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_gradients() -> None:
    inputs = [random(4, 5, seed=4), random(4, 7), random(3, 7, seed=2), random(5, 3, seed=3)]
    assert torch.autograd.gradcheck(
        lambda y, x, A, B: lora_linear(y, x, A, B, scale=0.7), [t.requires_grad_() for t in inputs]
    )


def test_the_output_of_the_layer_is_not_written_over() -> None:
    y = random(4, 5)
    kept = y.clone()
    lora_linear(y, random(4, 7), random(3, 7), random(5, 3), scale=1.0)
    assert torch.equal(y, kept)


def test_gradients_by_hand() -> None:
    r"""With G = ∂ℓ/∂W of the merged weight: ∂ℓ/∂A = s Bᵀ G and ∂ℓ/∂B = s G Aᵀ."""
    layer = nn.Linear(7, 5).double()
    adapter = LoRALinear(layer, random(3, 7, seed=2), random(5, 3, seed=3), scale=0.7)
    x, target = random(4, 7), random(4, 5, seed=5)
    W = (layer.weight + adapter.delta()).detach().requires_grad_()
    (F.linear(x, W, layer.bias) - target).square().sum().backward()
    (adapter(x) - target).square().sum().backward()
    G = W.grad
    assert torch.allclose(adapter.lora_A.grad, 0.7 * adapter.lora_B.detach().mT @ G, rtol=1e-12)
    assert torch.allclose(adapter.lora_B.grad, 0.7 * G @ adapter.lora_A.detach().mT, rtol=1e-12)


@pytest.mark.parametrize("size", [(6, 1), (6, 4)], ids=str)
def test_a_batch_of_adapters_is_one_after_the_other(size: tuple[int, int]) -> None:
    x, A, B = random(*size, 7), random(4, 3, 7, seed=1), random(4, 5, 3, seed=2)
    index = torch.tensor([3, -1, 0, 3, 1, -1])
    expected = batched_lora_reference(x, A, B, index)
    found = batched_lora(x, A, B, index)
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert torch.equal(found[1], torch.zeros(size[1], 5, dtype=torch.float64))
    for b, i in enumerate(index.tolist()):
        if i >= 0:
            assert torch.allclose(found[b], x[b] @ lora_delta(A[i], B[i], scale=1.0).mT, rtol=1e-11)


@pytest.mark.parametrize(
    ("x", "A", "B", "index", "message"),
    [
        ((2, 7), (4, 3, 7), (4, 5, 3), [0, 1], "expected 3 dimensions"),
        ((2, 1, 7), (3, 7), (4, 5, 3), [0, 1], "expected 3 dimensions"),
        ((2, 1, 7), (4, 3, 7), (5, 3), [0, 1], "expected 3 dimensions"),
        ((2, 1, 6), (4, 3, 7), (4, 5, 3), [0, 1], "width of x is 6, width of A is 7"),
        ((2, 1, 7), (4, 3, 7), (3, 5, 3), [0, 1], r"\(N, R\) of A is \(4, 3\)"),
        ((2, 1, 7), (4, 3, 7), (4, 5, 3), [0], "shape of index"),
        ((2, 1, 7), (4, 3, 7), (4, 5, 3), [0, 4], r"index has \[0, 4\], expected -1 to 3"),
        ((2, 1, 7), (4, 3, 7), (4, 5, 3), [0, -2], r"expected -1 to 3: there are 4 adapters"),
    ],
    ids=str,
)
def test_a_bad_batch(
    x: tuple[int, ...], A: tuple[int, ...], B: tuple[int, ...], index: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        batched_lora(random(*x), random(*A), random(*B), torch.tensor(index))


def test_the_start() -> None:
    """A is uniform with variance 1 / (3 I), B is 0; embeddings are the other way around."""
    model = inject(
        nn.Sequential(nn.Linear(400, 300), nn.Embedding(300, 200)),
        LoRA(rank=100),
        targets=["0", "1"],
        generator=torch.Generator().manual_seed(0),
    )
    linear, embedding = model
    assert linear.lora_A.abs().max() <= 1 / math.sqrt(400)
    assert abs(linear.lora_A.var().item() * 3 * 400 - 1) < 0.02
    assert not linear.lora_B.any()
    assert not embedding.lora_embedding_A.any()
    assert abs(embedding.lora_embedding_B.std().item() - 1) < 0.02


def test_the_generator_decides() -> None:
    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return inject(nn.Sequential(nn.Linear(8, 8)), LoRA(rank=2), ["0"], generator=generator)[0].lora_A

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_dropout_acts_on_the_adapter_when_training_only() -> None:
    layer = nn.Linear(2000, 3, bias=False)
    adapter = LoRALinear(layer, torch.ones(1, 2000), torch.ones(3, 1), scale=1.0, dropout=0.25)
    x = torch.ones(1, 2000)
    added = (adapter(x) - layer(x)).detach()
    assert (added - added.mean()).abs().max() < 1e-2  # one mask for all outputs
    assert 1 < (added.mean() - 2000).abs() < 200  # of 2000 numbers 500 ± 19 are dropped, the others grow by 4/3
    assert torch.allclose(adapter.eval()(x) - layer(x), torch.tensor(2000.0), rtol=1e-5)


def test_scales() -> None:
    assert [LoRA(rank=r, alpha=8).scale for r in (1, 4, 16)] == [8.0, 2.0, 0.5]
    assert [RSLoRA(rank=r, alpha=8).scale for r in (1, 4, 16)] == [8.0, 4.0, 2.0]


def test_lora_fa_is_descent_by_a_projected_gradient() -> None:
    r"""One step of B moves the weight by −η s² G AᵀA."""
    model = inject(nn.Sequential(nn.Linear(7, 5)).double(), LoRAFA(rank=3, alpha=2), targets=["0"])
    layer, x = model[0], random(4, 7)
    W = layer.base_layer.weight.detach().clone().requires_grad_()
    F.linear(x, W, layer.base_layer.bias).square().sum().backward()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    A = layer.lora_A
    assert A.grad is None
    assert torch.allclose(layer.delta(), -0.01 * layer.scale**2 * W.grad @ A.mT @ A, rtol=1e-10)


def test_lora_plus_groups() -> None:
    model = inject(nn.Sequential(nn.Linear(8, 6), nn.Embedding(9, 8)), LoRA(rank=2), targets=["0", "1"])
    low, high = lora_plus_groups(model, lr=1e-3, ratio=4.0)
    assert (low["lr"], high["lr"]) == (1e-3, 4e-3)
    assert [tuple(x.shape) for x in low["params"]] == [(2, 8), (2, 9), (8, 2)]
    assert [tuple(x.shape) for x in high["params"]] == [(6, 2)]
    frozen = inject(nn.Sequential(nn.Linear(8, 6)), LoRAFA(rank=2), targets=["0"])
    assert len(lora_plus_groups(frozen, lr=1e-3)) == 1
    with pytest.raises(ValueError, match="no trainable tensor is called lora_B"):
        lora_plus_groups(inject(nn.Sequential(nn.Embedding(9, 8)), LoRA(rank=2), targets=["0"]), lr=1e-3)


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), dilation=2, padding_mode="circular", padding=1), (2, 4, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=["1d", "2d"])
def test_convolutions_merge(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = filled(inject(nn.Sequential(copy.deepcopy(layer)).double(), LoRA(rank=3, alpha=5), targets=["0"]))
    x = random(*shape)
    y, base = model(x), model[0].base_layer(x)
    assert (y - base).abs().max() > 1
    assert (merge(model)(x) - y).abs().max() <= 1e-12 * y.abs().max()


LAYERS = [(nn.Linear(16, 24), (32, 16)), *CONVOLUTIONS]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "conv1d", "conv2d"])
def test_dropout_is_at_the_entrance_of_the_narrow_path(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """With the same random numbers: the layer on the input, and its weight difference on what is left of the input."""
    method = LoRA(rank=3, alpha=5, lora_dropout=0.5)
    model = filled(inject(nn.Sequential(copy.deepcopy(layer)).double(), method, targets=["0"]))
    adapter, x = model[0], random(*shape)
    narrow = copy.deepcopy(adapter.base_layer)
    narrow.weight.data = adapter.delta().detach()
    nn.init.zeros_(narrow.bias)
    for training in (True, False):
        torch.manual_seed(0)
        y = model.train(training)(x)
        torch.manual_seed(0)
        expected = adapter.base_layer(x) + narrow(F.dropout(x, 0.5, training=training))
        assert (y - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    ("layer", "x"),
    [(layer, random(*shape).bfloat16()) for layer, shape in LAYERS] + [(nn.Embedding(50, 16), torch.arange(50))],
    ids=["linear", "conv1d", "conv2d", "embedding"],
)
def test_half_precision_is_rounded_once(layer: nn.Module, x: Tensor) -> None:
    """What the adapter adds is not rounded before it is added."""
    torch.manual_seed(0)
    layer.reset_parameters()
    model = filled(inject(nn.Sequential(copy.deepcopy(layer)).bfloat16(), LoRA(rank=3, alpha=5), targets=["0"]))
    wide, exact = copy.deepcopy(model[0]).double(), x.double() if x.is_floating_point() else x
    expected = model[0].base_layer(x).double() + wide(exact) - wide.base_layer(exact)
    assert model(x).dtype == torch.bfloat16
    assert (model(x) == expected.bfloat16()).double().mean() > 0.97  # but for ties that float32 breaks otherwise


def test_subclasses_and_groups_are_refused() -> None:
    class Special(nn.Linear):
        pass

    for layer in (nn.Conv1d(4, 6, 3, groups=2), nn.Conv3d(4, 6, 3), Special(4, 6), nn.Bilinear(4, 6, 3)):
        with pytest.raises(ValueError, match=f"a {type(layer).__name__}, which LoRA does not adapt"):
            inject(nn.Sequential(layer), LoRA(rank=2), targets=["0"])


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"rank": -1}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}], ids=str
)
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LoRA(**settings)
