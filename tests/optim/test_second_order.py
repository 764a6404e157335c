"""Curvature: estimators are unbiased, and the factors of Shampoo and SOAP are Kronecker products."""

import itertools

import pytest
import torch
from torch import Tensor

from llm_study.optim.second_order import SOAP, Shampoo, gauss_newton_bartlett, hutchinson, inverse_root
from tests.optim.runs import parameters, run
from tests.parity.closeness import assert_close


def test_hutchinson_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    a = torch.randn(4, 4, dtype=torch.float64)
    hessian, w = a @ a.T, torch.randn(4, dtype=torch.float64, requires_grad=True)
    found = []
    for bits in itertools.product([0, 1], repeat=4):  # all signs there are
        monkeypatch.setattr(torch, "randint", lambda *_, bits=bits, **__: torch.tensor(bits))
        found.append(hutchinson(w @ hessian @ w / 2, [w])[0])
    assert_close(torch.stack(found).mean(0), hessian.diagonal())


def test_gauss_newton_bartlett_is_unbiased() -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, dtype=torch.float64)
    logits = x @ w
    p = logits.detach().softmax(-1)
    expected = (x.square()[:, :, None] * (p * (1 - p))[:, None]).mean(0)  # diagonal of the Hessian of the mean loss
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([gauss_newton_bartlett(x @ w, [w], generator=generator)[0] for _ in range(2000)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4.5 * error).all()


def kronecker(left: Tensor, right: Tensor, grad: Tensor) -> Tensor:
    return (torch.kron(left, right) @ grad.flatten()).reshape(grad.shape)


def test_shampoo_is_a_kronecker_product() -> None:
    (p,) = params = parameters([(4, 3)])
    optimizer = Shampoo(params, lr=0.1, eps=0.01, precondition_frequency=2, weight_decay=0.3)
    value = p.detach().clone()
    left, right = 0.01 * torch.eye(4, dtype=torch.float64), 0.01 * torch.eye(3, dtype=torch.float64)
    for step in range(10):
        run(optimizer, params, range(step, step + 1), holes=False)
        grad = p.grad + 0.3 * value
        left, right = left + grad @ grad.T, right + grad.T @ grad
        if step % 2 == 0:
            whole = torch.kron(left, right)
            values, vectors = torch.linalg.eigh(whole)
            root = vectors @ torch.diag(values**-0.25) @ vectors.T
        value = value - 0.1 * (root @ grad.flatten()).reshape(4, 3)
    assert (p - value).abs().max() <= 1e-10


def test_long_dimensions_keep_the_diagonal() -> None:
    (p,) = params = parameters([(6, 3)])
    optimizer = Shampoo(params, lr=0.1, eps=0.01, max_dim=4)
    start = p.detach().clone()
    run(optimizer, params, range(1), holes=False)
    left = 0.01 + p.grad.square().sum(1)
    right = inverse_root(0.01 * torch.eye(3, dtype=torch.float64) + p.grad.T @ p.grad, 4)
    assert_close(p.detach(), start - 0.1 * left[:, None] ** -0.25 * (p.grad @ right))
    assert optimizer.state[p]["total_0"].shape == (6,)


def test_shampoo_of_a_vector_is_the_inverse_square_root() -> None:
    (p,) = params = parameters([(5,)])
    start = p.detach().clone()
    run(Shampoo(params, lr=0.1, eps=0.01), params, range(1), holes=False)
    g = p.grad
    assert_close(p.detach(), start - 0.1 * g / (0.01 + g @ g).sqrt())  # an eigenvector of ε I + g gᵀ


@pytest.mark.parametrize(("shape", "max_dim"), [((5,), 9), ((4, 3), 0), ((3, 2, 2), 9)])
def test_soap_without_rotation_is_adamw(shape: tuple[int, ...], max_dim: int) -> None:
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2}
    ours, theirs = parameters([shape]), parameters([shape])
    run(SOAP(ours, max_dim=max_dim, **options), ours, range(9))
    run(torch.optim.AdamW(theirs, **options), theirs, range(9))
    assert_close(ours[0].detach(), theirs[0].detach())


def test_the_basis_of_soap_stays_orthogonal_and_becomes_the_eigenbasis() -> None:
    (p,) = params = parameters([(4, 3)])
    optimizer = SOAP(params, lr=0.0, betas=(0.9, 0.9), precondition_frequency=1)
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in range(120):  # gradients that change at first, then stay
        p.grad = (
            g if step > 3 else torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        )
        optimizer.step()
    basis, total = optimizer.state[p]["basis_1"], optimizer.state[p]["total_1"]
    assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    turned = basis.T @ total @ basis
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-6 * turned.abs().max()
    assert (turned.diagonal().diff() < 0).all()  # the largest in front
