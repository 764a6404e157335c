"""μP keeps what it promises: activations and their changes do not depend on the width, for both optimizers."""

import pytest
import torch
from torch import Tensor

from llm_study.functional.mup import Scales, mup_scales, standard_scales

WIDTHS = (64, 256, 1024)
ROLES = ("input", "hidden", "output")


def changes(width: int, *, mup: bool, optimizer: str, steps: int = 3) -> list[float]:
    """Train a linear chain of three weights and return how much its two activations and the output have changed."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"input": (8, width), "hidden": (width, width), "output": (width, 4)}
    scales = {
        role: mup_scales(role, width=width, base_width=64, optimizer=optimizer)
        if mup
        else standard_scales(role, width=width, base_width=64)
        for role in ROLES
    }
    base = {"input": 8**-0.5, "hidden": 64**-0.5, "output": 0.1 * 64**-0.5}
    weights = {
        role: (base[role] * scales[role].std * torch.randn(*shapes[role], generator=generator)).requires_grad_()
        for role in ROLES
    }
    rate = 0.01 if optimizer == "adam" else 0.1
    groups = [{"params": [weights[role]], "lr": rate * scales[role].lr} for role in ROLES]
    kind = torch.optim.Adam(groups) if optimizer == "adam" else torch.optim.SGD(groups)
    x, y = torch.randn(16, 8, generator=generator), torch.randn(16, 4, generator=generator)

    def forward() -> list[Tensor]:
        h = x
        out = []
        for role in ROLES:
            h = scales[role].multiplier * (h @ weights[role])
            out.append(h)
        return out

    start = [h.detach() for h in forward()]
    for _ in range(steps):
        kind.zero_grad()
        (forward()[-1] - y).square().mean().backward()
        kind.step()
    return [(h.detach() - h0).square().mean().sqrt().item() for h, h0 in zip(forward(), start, strict=True)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_changes_do_not_depend_on_the_width(optimizer: str) -> None:
    moved = torch.tensor([changes(width, mup=True, optimizer=optimizer) for width in WIDTHS])
    ratios = moved[-1] / moved[0]
    assert ((ratios > 0.5) & (ratios < 2)).all(), ratios


def test_changes_explode_in_the_standard_parametrization() -> None:
    moved = torch.tensor([changes(width, mup=False, optimizer="adam") for width in WIDTHS])
    assert (moved[-1, 1:] / moved[0, 1:] > 3).all()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_base_width_is_left_alone(role: str, optimizer: str) -> None:
    assert mup_scales(role, width=96, base_width=96, optimizer=optimizer) == Scales(1, 1, 1)
    assert standard_scales(role, width=96, base_width=96) == Scales(1, 1, 1)


def test_factors_are_the_table() -> None:
    table = {"input": (1, 1, 4, 1), "hidden": (0.5, 0.25, 1, 1), "output": (1, 1, 4, 0.25)}
    for role, (std, adam, sgd, multiplier) in table.items():
        assert mup_scales(role, width=256, base_width=64) == Scales(std, adam, multiplier)
        assert mup_scales(role, width=256, base_width=64, optimizer="sgd") == Scales(std, sgd, multiplier)
    standard = [standard_scales(role, width=256, base_width=64) for role in ROLES]
    assert standard == [Scales(1, 1, 1), Scales(0.5, 1, 1), Scales(0.5, 1, 1)]


def test_errors() -> None:
    with pytest.raises(ValueError, match='role is "head", expected "input", "hidden" or "output"'):
        mup_scales("head", width=1, base_width=1)
    with pytest.raises(ValueError, match='role is "head"'):
        standard_scales("head", width=1, base_width=1)
    with pytest.raises(ValueError, match='optimizer is "lion", expected "adam" or "sgd"'):
        mup_scales("input", width=1, base_width=1, optimizer="lion")
    with pytest.raises(ValueError, match="base_width is 0, expected at least 1"):
        mup_scales("input", width=1, base_width=0)
    with pytest.raises(ValueError, match="width is 0, expected at least 1"):
        standard_scales("input", width=0, base_width=1)
