"""Newton–Schulz acts on singular values, and on nothing else."""

import pytest
import torch

from llm_study.optim.muon import COEFFICIENTS, newton_schulz, orthogonalize
from tests.parity.closeness import assert_close


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (3, 4, 6)])
def test_each_singular_value_goes_through_the_polynomial(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    g = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert_close(newton_schulz(g), u @ (s[..., None] * vt))


def test_converges_to_the_orthogonal_factor_where_one_is_a_fixed_point() -> None:
    torch.manual_seed(0)
    g = torch.randn(6, 4, dtype=torch.float64)
    for coefficients in ((1.5, -0.5, 0.0), (15 / 8, -10 / 8, 3 / 8)):
        assert_close(newton_schulz(g, steps=40, coefficients=coefficients), orthogonalize(g))


def test_size_does_not_matter_and_zero_stays_zero() -> None:
    torch.manual_seed(0)
    g = torch.randn(3, 4, dtype=torch.float64)
    assert_close(newton_schulz(1e6 * g), newton_schulz(g))
    assert newton_schulz(torch.zeros(3, 4)).abs().sum() == 0
    assert newton_schulz(g.bfloat16()).dtype == torch.bfloat16


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), expected at least 2 dimensions"):
        newton_schulz(torch.zeros(3))
    with pytest.raises(ValueError, match=r"steps is -1"):
        newton_schulz(torch.zeros(3, 3), steps=-1)
