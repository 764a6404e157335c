"""The laws of rotations from free parameters, in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import rotations as R

law = settings(max_examples=40, derandomize=True, deadline=None)


def randn(seed: int, *shape: int) -> Tensor:
    """Draw a tensor in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@given(size=st.integers(1, 7), seed=st.integers(0, 2**32))
@law
def test_cayley_makes_rotations_and_reaches_all_but_half_turns(size: int, seed: int) -> None:
    skew = R.skew_symmetric(randn(seed, 3, size * (size - 1) // 2), size)
    assert torch.equal(skew, -skew.mT)
    q = R.cayley(skew)
    eye = torch.eye(size, dtype=torch.float64)
    assert same(q @ q.mT, eye.expand(3, size, size))
    assert same(torch.linalg.det(q), torch.ones(3, dtype=torch.float64))
    assert same((q - eye) @ torch.linalg.inv(q + eye), skew)  # the way back
    assert torch.equal(R.cayley(0 * skew), eye.expand(3, size, size))


def test_the_angle_is_twice_that_of_the_tangent() -> None:
    angle = torch.tensor(0.7, dtype=torch.float64)
    q = R.cayley(R.skew_symmetric(-torch.tan(angle / 2)[None], 2))
    expected = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    assert same(q, expected)


@given(size=st.integers(2, 3), levels=st.integers(1, 3), seed=st.integers(0, 2**32))
@law
def test_a_butterfly_is_a_dense_rotation(size: int, levels: int, seed: int) -> None:
    entries = randn(seed, levels, size ** (levels - 1), size * (size - 1) // 2)
    q = R.butterfly_rotation(R.cayley(R.skew_symmetric(entries, size)))
    assert same(q @ q.mT, torch.eye(size**levels, dtype=torch.float64))
    assert (q.abs() > 1e-14).all()
    if levels == 2:  # by hand: first the blocks of digit 0, then those of digit 1
        blocks = R.cayley(R.skew_symmetric(entries, size))
        order = torch.arange(size * size).reshape(size, size).T.flatten()
        first = R.block_rotation(blocks[0])[order][:, order]
        assert same(q, R.block_rotation(blocks[1]) @ first)


@given(seed=st.integers(0, 2**32))
@law
def test_loreft_sets_the_coordinates_of_a_subspace_and_nothing_else(seed: int) -> None:
    basis, _ = torch.linalg.qr(randn(seed, 6, 6))
    rotation, rest = basis.T[:2], basis.T[2:]
    h, weight, bias = randn(seed + 1, 5, 6), randn(seed + 2, 2, 6), randn(seed + 3, 2)
    out = R.loreft(h, rotation, weight, bias)
    assert same(out @ rotation.T, h @ weight.T + bias)
    assert same(out @ rest.T, h @ rest.T)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: R.skew_symmetric(torch.ones(4), 3), "4.*3"),
        (lambda: R.cayley(torch.ones(2, 3)), "2.*3"),
        (lambda: R.block_rotation(torch.ones(2, 3)), "K"),
        (lambda: R.butterfly_rotation(torch.ones(2, 3, 2, 2)), "3.*2"),
        (lambda: R.loreft(torch.ones(4), torch.ones(2, 4), torch.ones(3, 4), torch.ones(3)), r"\(2, 4\).*\(3, 4\)"),
        (lambda: R.loreft(torch.ones(4), torch.ones(2, 4), torch.ones(2, 4), torch.ones(3)), r"\(3,\).*\(2,\)"),
    ],
)
def test_errors_name_both_numbers(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_gradients() -> None:
    entries = randn(0, 2, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: R.butterfly_rotation(R.cayley(R.skew_symmetric(x, 2))), entries)
