"""Which blocks of a model train at which step: the head alone at first, then more and more of what lies below.

A plan is a pure function of the step, as a schedule is: how many blocks train, counted from the top. A run that goes on
from a checkpoint asks it for its step and freezes what was frozen. :class:`Unfreezing` carries a plan out, and is what
:class:`~llm_study.training.loop.Trainer` takes as ``prepare``.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from llm_study.core.checks import check_at_least
from llm_study.optim.groups import assign_blocks

__all__ = ["Unfreezing", "gradual", "probe_then_all"]


def gradual(step: int, *, blocks: int, every: int) -> int:
    r"""Gradual unfreezing: the top block first, and one more after each ``every`` steps.

    .. math:: \min(1 + \lfloor t / E \rfloor,\; L)

    Args:
        step: the step, from 0.
        blocks: number of blocks ``L``.
        every: steps ``E`` until the next block joins; the paper takes an epoch.

    Returns:
        How many blocks train, counted from the top.

    Raises:
        ValueError: if ``step`` is negative, or ``blocks`` or ``every`` is below 1.

    References:
        Howard and Ruder (2018), arXiv:1801.06146, section 3.3.

    Example:
        >>> [gradual(step, blocks=3, every=2) for step in range(8)]
        [1, 1, 2, 2, 3, 3, 3, 3]
    """
    check_at_least("step", step, 0, hint="steps count from 0")
    check_at_least("blocks", blocks, 1)
    check_at_least("every", every, 1)
    return min(1 + step // every, blocks)


def probe_then_all(step: int, *, blocks: int, probe: int) -> int:
    """LP-FT: a linear probe, which trains the top block alone, then fine-tuning of all blocks.

    Args:
        step: the step, from 0.
        blocks: number of blocks.
        probe: steps of the linear probe; 0 is plain fine-tuning.

    Returns:
        How many blocks train, counted from the top, which is 1 or all.

    Raises:
        ValueError: if ``step`` or ``probe`` is negative, or ``blocks`` is below 1.

    References:
        Kumar et al. (2022), arXiv:2202.10054.

    Example:
        >>> [probe_then_all(step, blocks=3, probe=2) for step in range(4)]
        [1, 1, 3, 3]
    """
    check_at_least("step", step, 0, hint="steps count from 0")
    check_at_least("blocks", blocks, 1)
    check_at_least("probe", probe, 0)
    return 1 if step < probe else blocks


class Unfreezing:
    """Lets the top blocks of a model train, as many as a plan says, and freezes those below.

    Called with the number of a step, it sets ``requires_grad`` of all parameters. What is frozen gets no gradient, and
    its backward pass is not computed below the lowest block that trains; an optimizer passes over it, and begins its
    moments when it joins. So the optimizer is made once, of all parameters. Give the plan in the ``identity`` of a run
    that is to be resumed: then one with another plan is refused.

    Args:
        model: the model.
        blocks: its blocks, from bottom to top, as :func:`llm_study.optim.groups.layer_blocks` lists them; every
            parameter is in exactly one.
        plan: step → how many blocks train, counted from the top, from 0 to all.

    Raises:
        ValueError: as :func:`llm_study.optim.groups.assign_blocks`.

    Example:
        >>> from functools import partial
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> unfreezing = Unfreezing(model, ["0", "1", "2"], partial(gradual, blocks=3, every=10))
        >>> unfreezing(10)
        2
        >>> [layer.weight.requires_grad for layer in model]
        [False, True, True]
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str | Iterable[str]], plan: Callable[[int], int]) -> None:
        self.blocks, self.plan = assign_blocks(model, blocks), plan

    def __call__(self, step: int) -> int:
        """Freeze and unfreeze the blocks as they are to be at a step.

        Args:
            step: the step, from 0.

        Returns:
            How many blocks train.

        Raises:
            ValueError: if the plan asks for more blocks than there are, or fewer than 0; or if several processes train
                together: these agree at the start on which gradients they exchange.
        """
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ValueError(
                f"{torch.distributed.get_world_size()} processes, expected 1: freeze before you distribute"
            )
        count, all_of_them = self.plan(step), len(self.blocks)
        if not 0 <= count <= all_of_them:
            raise ValueError(f"the plan asks for {count} blocks at step {step}, expected 0 to {all_of_them}")
        for number, block in enumerate(self.blocks):
            for parameter in block.values():
                parameter.requires_grad_(number >= all_of_them - count)
        return count
