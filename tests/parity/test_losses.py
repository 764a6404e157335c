"""Losses against PyTorch's and transformers', in value and gradient, with logits large enough that an error shows."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from llm_study.functional import losses as L
from tests.parity.closeness import assert_close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
seeds = pytest.mark.parametrize("seed", range(10))


def problem(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits of five times the usual size and targets of which a third does not count."""
    torch.manual_seed(seed)
    B, T, V = torch.randint(1, 40, (3,)).tolist()
    targets = torch.randint(V, (B, T))
    targets[torch.rand(B, T) < 1 / 3] = -100
    targets[0, 0] = 0  # one counts: without any, torch gives NaN
    return 5 * torch.randn(B, T, V, dtype=dtype), targets


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Fail unless value and gradients agree."""
    results = []
    for function in (ours, theirs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves, 2 * torch.ones_like(value))))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@both_dtypes
@seeds
def test_matches_torch_cross_entropy(seed: int, dtype: torch.dtype) -> None:
    logits, targets = problem(seed, dtype)

    def theirs(z: Tensor) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), targets.flatten())

    assert_same(lambda z: L.cross_entropy(z, targets), theirs, logits)
    assert_same(lambda z: L.cross_entropy_reference(z, targets), theirs, logits)


@both_dtypes
@seeds
def test_matches_torch_label_smoothing(seed: int, dtype: torch.dtype) -> None:
    logits, targets = problem(seed, dtype)
    epsilon = [0.0, 0.1, 0.5, 1.0][seed % 4]

    def theirs(z: Tensor) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), targets.flatten(), label_smoothing=epsilon)

    assert_same(lambda z: L.label_smoothing_loss(z, targets, epsilon=epsilon), theirs, logits)
    assert_same(lambda z: L.label_smoothing_loss_reference(z, targets, epsilon=epsilon), theirs, logits)


@both_dtypes
@seeds
def test_matches_torch_linear_cross_entropy(seed: int, dtype: torch.dtype) -> None:
    _, targets = problem(seed, dtype)
    x, weight = torch.randn(*targets.shape, 16, dtype=dtype), torch.randn(64, 16, dtype=dtype)

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return F.linear_cross_entropy(x.flatten(0, 1), w, targets.flatten())

    assert_same(lambda x, w: L.linear_cross_entropy(x, w, targets, chunk=1 + 7 * seed), theirs, x, weight)
    assert_same(lambda x, w: L.linear_cross_entropy_reference(x, w, targets), theirs, x, weight)


@both_dtypes
@seeds
def test_matches_selective_log_softmax(seed: int, dtype: torch.dtype) -> None:
    logits, targets = problem(seed, dtype)
    ids = targets.clamp(min=0)

    def theirs(z: Tensor) -> Tensor:  # the formula of trl: gather, then subtract the log-sum row by row
        return z.gather(-1, ids[..., None])[..., 0] - torch.stack([row.logsumexp(-1) for row in z])

    assert_same(lambda z: L.token_logp(z, ids), theirs, logits)
    assert_same(lambda z: L.token_logp(z, ids), lambda z: z.log_softmax(-1).gather(-1, ids[..., None])[..., 0], logits)


@pytest.mark.parametrize("total", [None, 5, 100])
@seeds
def test_matches_transformers_loss_of_a_causal_model(seed: int, total: int | None) -> None:
    logits, targets = problem(seed, torch.float32)
    labels = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)  # they shift to the left themselves
    targets[:, -1] = -100
    counted = targets != -100
    ids = targets.where(counted, 0)

    def ours(z: Tensor) -> Tensor:
        return L.token_mean(-L.token_logp(z, ids), counted, total=total)

    def theirs(z: Tensor) -> Tensor:
        loss: Tensor = ForCausalLMLoss(z, labels, z.shape[-1], num_items_in_batch=total)
        return loss

    assert_same(ours, theirs, logits)
