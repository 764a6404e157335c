r"""Groups of parameters that learn differently: each block of a model at its own rate, norms and biases without decay.

A *block* is what is treated alike: the embeddings, one layer, the head. Blocks are listed from the bottom of a model,
next to its input, to the top; :func:`layer_blocks` lists those of a model that has its layers in a ``ModuleList``. What
comes out are the dictionaries that any optimizer of torch takes in place of parameters.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from llm_study.core.checks import check_at_least
from llm_study.optim.base import check_range

__all__ = ["assign_blocks", "decay_groups", "discriminative_groups", "layer_blocks"]

SHOWN = 5  # how many names a message lists


def layer_blocks(model: nn.Module, layers: str) -> list[list[str]]:
    """List the blocks of a model: what stands before its layers, each layer, what stands after them.

    Before and after is the order in which the model was put together, which for the models of this package is that of
    the computation. A head that shares the matrix of the embeddings belongs to these.

    Args:
        model: the model.
        layers: name of the ``ModuleList``, such as ``"model.layers"`` or ``"bert.encoder.layer"``.

    Returns:
        Names of parameters, one list for each block, from bottom to top; no list is empty.

    Raises:
        ValueError: if there is no such module, or it is no ``ModuleList`` with a layer in it.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "layers": nn.ModuleList([nn.Linear(4, 4)] * 1)})
        >>> _ = model.update({"head": nn.Linear(4, 2)})
        >>> layer_blocks(model, "layers")
        [['embed.weight'], ['layers.0.weight', 'layers.0.bias'], ['head.weight', 'head.bias']]
    """
    found = dict(model.named_modules()).get(layers)
    if not isinstance(found, nn.ModuleList) or not len(found):
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        raise ValueError(f"layers is {layers!r}, expected a ModuleList that is not empty, such as {_listed(lists)}")
    blocks: list[list[str]] = [[] for _ in range(len(found) + 2)]
    number = 0
    for name, _ in model.named_parameters():
        if name.startswith(f"{layers}."):
            number = int(name.removeprefix(f"{layers}.").split(".")[0]) + 1
        elif number:
            number = len(found) + 1
        blocks[number].append(name)
    return [block for block in blocks if block]


def assign_blocks(model: nn.Module, blocks: Sequence[str | Iterable[str]]) -> list[dict[str, nn.Parameter]]:
    """Find the parameters of each block; every parameter of the model must be in exactly one.

    Args:
        model: the model.
        blocks: what each block holds: a name or several, of parameters or of modules, whose parameters are all meant. A
            ``*`` in a name stands for anything.

    Returns:
        ``(…)`` the parameters of each block, by name, in the order of the model.

    Raises:
        ValueError: if a parameter is in no block or in two, or a name fits no parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> [list(block) for block in assign_blocks(model, ["0", "2"])]
        [['0.weight', '0.bias'], ['2.weight', '2.bias']]
        >>> assign_blocks(model, ["0"])
        Traceback (most recent call last):
        ValueError: in no block: 2.weight, 2.bias
    """
    named = dict(model.named_parameters())
    wanted = [[block] if isinstance(block, str) else list(block) for block in blocks]
    places: dict[str, list[int]] = {
        name: [i for i, block in enumerate(wanted) if any(_fits(name, what) for what in block)] for name in named
    }
    idle = [what for block in wanted for what in block if not any(_fits(name, what) for name in named)]
    lost = [name for name, place in places.items() if not place]
    twice = [f"{name} ({' and '.join(map(str, place))})" for name, place in places.items() if len(place) > 1]
    told = (("no parameter has the name", idle), ("in no block", lost), ("in several blocks", twice))
    if any(names for _, names in told):
        raise ValueError("; ".join(f"{what}: {_listed(names)}" for what, names in told if names))
    return [{name: named[name] for name, place in places.items() if place == [i]} for i in range(len(wanted))]


def decay_groups(
    model: nn.Module, *, weight_decay: float, blocks: Sequence[str | Iterable[str]] | None = None
) -> list[dict[str, Any]]:
    """Group parameters into those that decay, the matrices, and those that do not: weights of norms, and biases.

    A bias or the gain of a norm has one dimension; shrinking it does not make a function simpler, only different.

    Args:
        model: the model. Frozen parameters are in the groups too; an optimizer passes over what has no gradient.
        weight_decay: weight decay of the matrices.
        blocks: blocks that get two groups each. Default: the whole model is one.

    Returns:
        Groups for an optimizer of torch; an empty one is left out.

    Raises:
        ValueError: if ``weight_decay`` is negative, or as :func:`assign_blocks`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> [(len(group["params"]), group["weight_decay"]) for group in decay_groups(model, weight_decay=0.1)]
        [(1, 0.1), (3, 0.0)]
    """
    check_range("weight_decay", weight_decay)
    wanted = [list(dict(model.named_parameters()))] if blocks is None else blocks
    groups = []
    for number, block in enumerate(assign_blocks(model, wanted)):
        for decay, chosen in ((weight_decay, _matrices(block)), (0.0, _vectors(block))):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "block": number})
    return groups


def discriminative_groups(
    model: nn.Module,
    blocks: Sequence[str | Iterable[str]],
    *,
    lr: float,
    factor: float = 2.6,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    r"""Give each block a learning rate of its own, the smaller the deeper it lies.

    .. math:: \eta^{(l-1)} = \eta^{(l)} / \rho

    Args:
        model: the model.
        blocks: the blocks, from bottom to top, as :func:`layer_blocks` lists them.
        lr: learning rate of the top block.
        factor: what divides the learning rate from one block to the next below, ``ρ``; 1 is the same for all. Others
            write a decay of :math:`1/\rho`, such as 0.8 or 0.9.
        weight_decay: weight decay of matrices; norms and biases have none.

    Returns:
        Groups for an optimizer of torch, from bottom to top, each with ``lr``, ``weight_decay`` and the number of its
        ``block``. A schedule such as ``LambdaLR`` multiplies all rates alike.

    Raises:
        ValueError: if a number makes no sense, or as :func:`assign_blocks`.

    References:
        Howard and Ruder (2018), arXiv:1801.06146, section 3.2.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> groups = discriminative_groups(model, ["0", "1", "2"], lr=0.4, factor=2.0)
        >>> [(group["block"], group["lr"], len(group["params"])) for group in groups]
        [(0, 0.1, 1), (0, 0.1, 1), (1, 0.2, 1), (1, 0.2, 1), (2, 0.4, 1), (2, 0.4, 1)]
    """
    check_at_least("the number of blocks", len(blocks), 1)
    check_range("lr", lr)
    if not factor > 0:
        raise ValueError(f"factor is {factor}, expected a number above 0: 1 gives all blocks the same rate")
    top = len(blocks) - 1
    groups = decay_groups(model, weight_decay=weight_decay, blocks=blocks)
    return [{**group, "lr": lr / factor ** (top - group["block"])} for group in groups]


def _matrices(block: dict[str, nn.Parameter]) -> list[Tensor]:
    return [p for p in block.values() if p.ndim > 1]


def _vectors(block: dict[str, nn.Parameter]) -> list[Tensor]:
    return [p for p in block.values() if p.ndim <= 1]


def _fits(name: str, what: str) -> bool:
    """Whether a parameter is the one that is named, lies in the module that is named, or fits a pattern."""
    if "*" in what:
        return fnmatch.fnmatchcase(name, what) or fnmatch.fnmatchcase(name, f"{what}.*")
    return name == what or name.startswith(f"{what}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}" if names else "none"
