"""What the tests of optimizers share: every optimizer with options that matter, and a run with given gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm_study.optim import first_order as F
from llm_study.optim.muon import Muon
from llm_study.optim.second_order import SOAP, Shampoo, Sophia

Make = Callable[[Any], Optimizer]

EVERY: dict[str, Make] = {
    "SGD": lambda p: F.SGD(p, lr=0.1),
    "momentum": lambda p: F.SGD(p, lr=0.1, momentum=0.9),
    "Nesterov": lambda p: F.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adagrad": F.Adagrad,
    "RMSProp": F.RMSProp,
    "Adam": F.Adam,
    "AdamW": F.AdamW,
    "AMSGrad": F.AMSGrad,
    "NAdam": F.NAdam,
    "RAdam": F.RAdam,
    "Adafactor": F.Adafactor,
    "LAMB": F.LAMB,
    "Lion": F.Lion,
    "ScheduleFreeAdamW": F.ScheduleFreeAdamW,
    "Muon": Muon,
    "Sophia": Sophia,
    "Shampoo": lambda p: Shampoo(p, precondition_frequency=3),
    "SOAP": lambda p: SOAP(p, precondition_frequency=3),
}


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """Return the same random parameters each time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def run(
    optimizer: Optimizer, params: Sequence[Tensor], steps: range, *, holes: bool = True, scale: float = 1.0
) -> list[Tensor]:
    """Take steps with gradients that depend on the step and the parameter; with holes, now and then one is missing."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.grad = None if holes and (step + i) % 7 == 3 else scale * (grad + 0.3 * p.detach())
        optimizer.step()
    return [p.detach().clone() for p in params]
