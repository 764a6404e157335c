"""How close is equal: the largest difference against the largest reference value."""

import torch
from torch import Tensor

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Fail unless both tensors agree in shape, dtype and value."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if theirs.numel():
        largest, difference = theirs.abs().max().item(), (ours - theirs).abs().max().item()
        assert difference <= LIMITS[theirs.dtype] * largest, f"differs by {difference:.2e}, largest value {largest:.2e}"
