"""The devices there are, and the law of all tests here: what a device computes is what float64 on the CPU says.

Inputs are rounded to the dtype of the test, which float64 holds exactly: only what is done with them can differ.
TF32 is off, as it is by default: it would round the factors of each product to 10 bits.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
every_device = pytest.mark.parametrize("device", DEVICES)

SINGLE = 1e-5
"""Largest error in float32, as a part of the largest value: 80 units, for sums of a hundred terms."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the same normal numbers each time, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randint(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Return the same integers below ``high`` each time, on the CPU."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def there(x: Any, device: str, dtype: torch.dtype) -> Any:
    """Return a copy on a device; what is not of floating point keeps its dtype."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().to(device, dtype if x.is_floating_point() else x.dtype, copy=True)


def moved(model: nn.Module, device: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a copy of a model on a device."""
    return copy.deepcopy(model).to(device, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a part of the largest value that is expected."""
    assert found.shape == expected.shape
    wide = found.detach().double().cpu()
    assert torch.equal(wide.isfinite(), expected.isfinite())
    if not expected.numel():
        return 0.0
    same = wide == expected  # infinities of the same sign
    difference = torch.where(same, 0.0, wide - expected).abs().max().item()
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max().item()
    return difference / largest if largest else difference


def assert_near(found: Tensor, expected: Tensor, device: str, bound: float = SINGLE, *, what: object = "") -> None:
    """Fail unless a tensor lies on the device and holds the numbers that float64 on the CPU gave."""
    assert found.device.type == device, what
    assert expected.dtype == torch.float64 or not expected.is_floating_point()
    if expected.is_floating_point():
        far = error(found, expected.detach())
        assert far <= bound, f"{what} differs by {far:.2e} of the largest value, allowed {bound:.2e}"
    else:
        assert torch.equal(found.cpu(), expected), what


def results(function: Callable[..., Any], inputs: Sequence[Any], *, gradients: bool = True) -> dict[str, Tensor]:
    """Return what a function gives, and the gradient that each input of floating point gets from a fixed cotangent."""
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    for x in leaves:
        x.requires_grad_(gradients)
    y = function(*inputs)
    outputs: Iterable[Tensor] = (y,) if isinstance(y, Tensor) else y
    found = {f"output {i}": x for i, x in enumerate(outputs)}
    if not gradients:
        return found
    smooth = [x for x in found.values() if x.requires_grad]
    cotangents = [
        there(randn(*x.shape, seed=100 + i, dtype=x.dtype), x.device.type, x.dtype) for i, x in enumerate(smooth)
    ]
    grads = torch.autograd.grad(smooth, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return {**found, **{f"gradient {i}": x for i, x in enumerate(grads)}}


def check(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    bound: float = SINGLE,
    gradients: bool = True,
) -> None:
    """Fail unless a function on the device gives what it gives in float64 on the CPU, gradients too."""
    rounded = [there(x, "cpu", dtype) for x in inputs]
    expected = results(function, [there(x, "cpu", torch.float64) for x in rounded], gradients=gradients)
    found = results(function, [there(x, device, dtype) for x in rounded], gradients=gradients)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        reference = x.detach().double() if x.is_floating_point() else x
        assert_near(found[name], reference, device, bound, what=name)
