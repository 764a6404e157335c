"""The laws of low-rank differences: values by second formulas, ranks, orthogonality, gradients. In float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import lowrank as L

law = settings(max_examples=40, derandomize=True, deadline=None)
sizes = st.integers(2, 9)
seeds = st.integers(0, 2**32)


def randn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw tensors in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs().max())).all())


def rank(x: Tensor) -> int:
    """Return the numerical rank."""
    return int(torch.linalg.matrix_rank(x, rtol=1e-9))


# --- direction and magnitude


@given(rows=sizes, columns=sizes, seed=seeds)
@law
def test_dora_gradient_is_a_projection(rows: int, columns: int, seed: int) -> None:
    weight, delta, magnitude, grad = randn(seed, (rows, columns), (rows, columns), (rows,), (rows, columns))
    delta.requires_grad_()
    magnitude.requires_grad_()
    out = L.dora_weight(weight, delta, magnitude)
    assert close(out.detach().norm(dim=1), magnitude.detach().abs())
    expected = torch.autograd.grad(out, (delta, magnitude), grad)
    direction = (weight + delta).detach()
    found = L.dora_backward(direction, magnitude.detach(), grad)
    assert close(found[0], expected[0])
    assert close(found[1], expected[1])
    assert close((found[0] * direction).sum(1), torch.zeros(rows, dtype=torch.float64))
    fixed = L.dora_weight_detached(weight, delta, magnitude)
    assert close(fixed, out)
    held = torch.autograd.grad(fixed, (delta, magnitude), grad)
    assert close(held[0], (magnitude.detach() / direction.norm(dim=1))[:, None] * grad)
    assert close(held[1], expected[1])


# --- factors taken from a matrix


@given(rows=sizes, columns=sizes, seed=seeds, data=st.data())
@law
def test_principal_factors_are_the_best(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    r, scale = data.draw(st.integers(1, min(rows, columns))), data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    (weight,) = randn(seed, (rows, columns))
    a, b = L.principal_factors(weight, r, scale=scale)
    assert (a.shape, b.shape) == ((r, columns), (rows, r))
    rest = weight - scale * b @ a
    singular = torch.linalg.svdvals(weight)
    assert math.isclose(rest.square().sum().item(), singular[r:].square().sum().item(), rel_tol=1e-9, abs_tol=1e-18)
    assert close(a @ a.mT, torch.diag(singular[:r] / scale))
    assert close(b.mT @ b, torch.diag(singular[:r] / scale))


@given(rows=sizes, columns=sizes, seed=seeds, data=st.data())
@law
def test_orthonormal_factors(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(rows, columns)))
    (weight,) = randn(seed, (rows, columns))
    a, b = L.orthonormal_factors(weight, r)
    assert close(b.mT @ b, torch.eye(r, dtype=torch.float64))
    assert close(a, b.mT @ weight)  # B A is the projection of the weight on the columns of B
    assert close((b @ a)[:, :r], weight[:, :r])


@given(rows=st.integers(4, 9), columns=st.integers(4, 9), seed=seeds, data=st.data())
@law
def test_first_step_of_lora_ga_is_the_best_of_rank_2r(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(rows, columns) // 2))
    (gradient,) = randn(seed, (rows, columns))
    a, b = L.gradient_factors(gradient, r, gamma=4.0)
    step = b @ b.mT @ gradient + gradient @ a.mT @ a  # first order in the learning rate
    u, s, vh = torch.linalg.svd(gradient)
    k = 2 * r
    assert close(step, rows**0.5 / 4.0 * (u[:, :k] * s[:k]) @ vh[:k])


# --- AdaLoRA


def test_budget_falls_from_the_initial_to_the_final() -> None:
    budgets = [L.rank_budget(t, total=100, initial=96, final=32, warmup=10, cooldown=20) for t in range(101)]
    assert budgets[:11] == [96] * 11
    assert budgets[80:] == [32] * 21
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[45] == int(32 + 64 / 8)  # half of the way: an eighth of what is to go


@given(seed=seeds, budget=st.integers(0, 12))
@law
def test_the_most_important_are_kept(seed: int, budget: int) -> None:
    scores = randn(seed, (4,), (5,), (3,))
    masks = L.keep_most_important(scores, budget)
    kept, gone = (torch.cat([s[m == on] for s, m in zip(scores, masks, strict=True)]) for on in (True, False))
    assert len(kept) == budget
    assert budget in (0, 12) or kept.min() > gone.max()


@given(seed=seeds, steps=st.integers(1, 5))
@law
def test_importance_is_an_average_of_averages(seed: int, steps: int) -> None:
    parameters, gradients = randn(seed, (steps, 3), (steps, 3))
    mean = spread = torch.zeros(3, dtype=torch.float64)
    means = []
    for p, g in zip(parameters, gradients, strict=True):
        importance, mean, spread = L.smoothed_importance(p, g, mean, spread, beta1=0.7, beta2=0.6)
        means.append(mean)
    sensitivity = (parameters * gradients).abs()
    weights = 0.3 * 0.7 ** torch.arange(steps - 1, -1, -1).double()
    assert close(mean, weights @ sensitivity)
    deviations = (sensitivity - torch.stack(means)).abs()
    assert close(spread, 0.4 * 0.6 ** torch.arange(steps - 1, -1, -1).double() @ deviations)
    assert close(importance, mean * spread)


def test_svd_form_and_penalty() -> None:
    a, e, b = randn(0, (3, 8), (3, 1), (6, 3))
    assert close(
        L.svd_delta(a, e, b, scale=2.0), 2 * torch.stack([e[i] * torch.outer(b[:, i], a[i]) for i in range(3)]).sum(0)
    )
    q, _ = torch.linalg.qr(a.mT)
    p, _ = torch.linalg.qr(b)
    assert L.orthogonality_penalty(q.mT, p) < 1e-24
    gram = a @ a.mT - torch.eye(3)
    other = b.mT @ b - torch.eye(3)
    assert math.isclose(L.orthogonality_penalty(a, b).item(), (gram**2).sum().item() + (other**2).sum().item())


# --- sharing


@given(rows=sizes, columns=sizes, r=sizes, seed=seeds)
@law
def test_vera_is_two_diagonals(rows: int, columns: int, r: int, seed: int) -> None:
    a, b, d, e = randn(seed, (r, columns), (rows, r), (r,), (rows,))
    assert close(L.vera_delta(a, b, d, e), torch.diag(e) @ b @ torch.diag(d) @ a)


@given(seed=seeds, topk=st.integers(1, 5))
@law
def test_mixtures_and_pieces(seed: int, topk: int) -> None:
    logits_a, logits_b, bank = randn(seed, (2, 3, 5), (4, 2, 5), (5, 6))
    a, b = L.vblora_factors(logits_a, logits_b, bank, topk=topk)
    for (i, j), mixture in {(0, 0): a[0, :6], (1, 2): a[1, 12:], (1, 0): a[1, :6]}.items():
        best = sorted(range(5), key=lambda n: -logits_a[i, j, n].item())[:topk]
        weights = torch.softmax(logits_a[i, j, best], 0)
        assert close(mixture, weights @ bank[best])
    best = sorted(range(5), key=lambda n: -logits_b[3, 1, n].item())[:topk]
    assert close(b[18:, 1], torch.softmax(logits_b[3, 1, best], 0) @ bank[best])
    assert close(L.vblora_delta(logits_a, logits_b, bank, topk=topk), b @ a)


@given(small=st.integers(2, 8), more=st.integers(0, 3), r=st.integers(1, 3), seed=seeds)
@law
def test_randlora_is_its_sum_and_of_full_rank(small: int, more: int, r: int, seed: int) -> None:
    r = min(r, small)
    N = -(-small // r)
    a, b, lam, gamma = randn(seed, (r, 1, small), (small + more, N, r), (r, N), (N, small))
    bases = b.flatten(1).reshape(small + more, r, N)  # B_n[:, r] is column r · N + n
    terms = [bases[:, :, n] @ torch.diag(lam[:, n]) @ a[:, 0] @ torch.diag(gamma[n]) for n in range(N)]
    delta = L.randlora_delta(a, b, lam, gamma, scale=0.5)
    assert close(delta, 0.5 * torch.stack(terms).sum(0))
    assert rank(delta) == small


# --- structure


@given(rows=sizes, columns=sizes, r=st.integers(1, 3), seed=seeds)
@law
def test_loha_rank_is_up_to_the_square(rows: int, columns: int, r: int, seed: int) -> None:
    w1_a, w1_b, w2_a, w2_b = randn(seed, (rows, r), (r, columns), (rows, r), (r, columns))
    delta = L.loha_delta(w1_a, w1_b, w2_a, w2_b, scale=2.0)
    terms = [
        torch.outer(w1_a[:, i] * w2_a[:, j], w1_b[i] * w2_b[j]) for i in range(r) for j in range(r)
    ]  # r · r outer products
    assert close(delta, 2 * torch.stack(terms).sum(0))
    assert rank(delta) == min(r * r, rows, columns)


@given(seed=seeds, data=st.data())
@law
def test_kronecker(seed: int, data: st.DataObject) -> None:
    O1, I1, O2, I2, batch = (data.draw(st.integers(1, 4)) for _ in range(5))
    w1, w2, x = randn(seed, (O1, I1), (O2, I2), (batch, 2, I1 * I2))
    delta = L.lokr_delta(w1, w2, scale=3.0)
    for p, q in ((0, 0), (O1 * O2 - 1, I1 * I2 - 1), (O1 * O2 // 2, I1 * I2 // 2)):
        assert math.isclose(delta[p, q], 3 * w1[p // O2, q // I2] * w2[p % O2, q % I2], abs_tol=1e-15)
    assert close(L.kron_linear(x, w1, w2, scale=3.0), x @ delta.mT)
    assert rank(delta) == rank(w1) * rank(w2)


@given(number=st.integers(1, 400))
@law
def test_the_balanced_pair_is_nearest_to_the_root(number: int) -> None:
    first, second = L.factor_pair(number)
    assert first * second == number
    assert first <= second
    assert not any(number % n == 0 for n in range(first + 1, math.isqrt(number) + 1))


@given(columns=sizes, rows=sizes, seed=seeds, data=st.data())
@law
def test_mora(columns: int, rows: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(columns, rows)))
    matrix, x = randn(seed, (size, size), (3, columns))
    delta = L.mora_delta(matrix, columns, rows)
    assert all(delta[p, q] == matrix[p % size, q % size] for p in range(rows) for q in range(columns))
    assert close(L.mora_linear(x, matrix, rows), x @ delta.mT)
    assert rank(delta) == rank(matrix) == size


@given(columns=sizes, rows=sizes, seed=seeds, data=st.data())
@law
def test_miss(columns: int, rows: int, seed: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, columns))
    block, x = randn(seed, (r, rows), (3, columns))
    delta = L.miss_delta(block, columns)
    assert all(torch.equal(delta[:, q], block[q % r]) for q in range(columns))
    assert close(L.miss_linear(x, block), x @ delta.mT)
    assert rank(delta) == min(r, rows)


@given(rows=sizes, columns=sizes, seed=seeds, data=st.data())
@law
def test_fourier(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, min(6, rows * columns)))
    flat = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))[:n]
    indices, (spectrum,) = torch.stack([flat // columns, flat % columns]), randn(seed, (n,))
    fast = L.fourier_delta(spectrum, indices, (rows, columns), scale=7.0)
    assert close(fast, L.fourier_delta_reference(spectrum, indices, (rows, columns), scale=7.0))
    assert rank(fast) <= min(2 * n, rows, columns)
    half = L.fourier_delta(spectrum.bfloat16(), indices, (rows, columns), scale=7.0)
    assert half.dtype == torch.bfloat16
    assert (half.double() - fast).abs().max() <= 0.05 * fast.abs().max() + 1e-6


# --- gradients and errors


def factors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return tensors that want gradients."""
    return tuple(x.requires_grad_() for x in randn(3, *shapes))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (L.dora_weight, ((4, 3), (4, 3), (4,))),
        (L.svd_delta, ((2, 3), (2, 1), (4, 2))),
        (L.orthogonality_penalty, ((2, 3), (4, 2))),
        (L.vera_delta, ((2, 3), (4, 2), (2,), (4,))),
        (lambda a, b, bank: L.vblora_delta(a, b, bank, topk=2), ((2, 2, 4), (1, 2, 4), (4, 3))),
        (L.loha_delta, ((4, 2), (2, 3), (4, 2), (2, 3))),
        (L.lokr_delta, ((2, 3), (2, 2))),
        (L.kron_linear, ((2, 6), (2, 3), (2, 2))),
        (lambda m: L.mora_delta(m, 5, 4), ((3, 3),)),
        (lambda x, m: L.mora_linear(x, m, 4), ((2, 5), (3, 3))),
        (L.randlora_delta, ((2, 1, 3), (4, 2, 2), (2, 2), (2, 3))),
        (L.miss_linear, ((2, 5), (3, 4))),
        (lambda c: L.fourier_delta(c, torch.tensor([[0, 1], [2, 0]]), (3, 4)), ((2,),)),
    ],
)
def test_gradients(function: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]) -> None:
    assert torch.autograd.gradcheck(function, factors(*shapes))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: L.principal_factors(torch.ones(3, 4), 0), "rank is 0, expected at least 1"),
        (lambda: L.orthonormal_factors(torch.ones(3, 4), 4), "3, expected at least 4"),
        (lambda: L.gradient_factors(torch.ones(3, 4), 2), "3, expected at least 4: twice the rank"),
        (lambda: L.dora_weight(torch.ones(3, 4), torch.ones(4, 3), torch.ones(3)), r"\(3, 4\).*\(4, 3\)"),
        (lambda: L.svd_delta(torch.ones(2, 4), torch.ones(3, 1), torch.ones(3, 2)), r"\(3, 1\).*\(2, 1\)"),
        (lambda: L.svd_delta(torch.ones(2, 4), torch.ones(2, 1), torch.ones(3, 3)), "2.*3"),
        (
            lambda: L.rank_budget(0, total=5, initial=4, final=2, warmup=3, cooldown=2),
            "total is 5, expected at least 6",
        ),
        (lambda: L.rank_budget(0, total=5, initial=2, final=4), "initial is 2, expected at least 4"),
        (lambda: L.keep_most_important([torch.ones(2)], -1), "budget is -1"),
        (lambda: L.vera_delta(torch.ones(2, 4), torch.ones(3, 2), torch.ones(3), torch.ones(3)), r"\(3,\).*\(2,\)"),
        (lambda: L.topk_mixture(torch.ones(4), torch.ones(3, 2), topk=1), "4.*3"),
        (lambda: L.topk_mixture(torch.ones(3), torch.ones(3, 2), topk=4), "3, expected at least 4"),
        (lambda: L.vblora_factors(torch.ones(2, 1, 3), torch.ones(1, 4, 3), torch.ones(3, 2), topk=1), "2.*4"),
        (
            lambda: L.loha_delta(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 3)),
            r"\(2, 2\).*\(2, 3\)",
        ),
        (lambda: L.kron_linear(torch.ones(5), torch.ones(2, 2), torch.ones(2, 3)), "5.*6"),
        (lambda: L.factor_pair(0), "number is 0"),
        (lambda: L.factor_pair(4, near=0), "near is 0"),
        (lambda: L.mora_delta(torch.ones(2, 3), 4, 4), "2.*3"),
        (lambda: L.mora_linear(torch.ones(4), torch.ones(3, 3), 2), "2, expected at least 3"),
        (lambda: L.miss_delta(torch.ones(5, 2), 4), "4, expected at least 5"),
        (lambda: L.miss_linear(torch.ones(4), torch.ones(5, 2)), "4, expected at least 5"),
        (lambda: L.randlora_factors(*map(torch.ones, ((2, 1, 3), (4, 2, 2), (2, 3), (2, 3)))), r"\(2, 3\).*\(2, 2\)"),
        (lambda: L.fourier_delta(torch.ones(2), torch.ones(2, 3).long(), (2, 2)), "3.*2"),
    ],
)
def test_errors_name_both_numbers(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
