"""Training with several processes: who takes part, which rows are whose, and parameters that lie in pieces.

``torchrun --nproc-per-node 2 PROGRAM`` starts the processes and tells them of each other through the environment;
:func:`connect` reads it. Without torchrun there is one process, and nothing here costs anything. Gradients are averaged
by torch's own engine: DistributedDataParallel where each process holds all parameters (:func:`replicate`), FSDP2 where
each holds a piece of every one (:func:`shard_parameters`). CPUs talk through gloo, GPUs through NCCL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from llm_study.core.checks import check_divides

__all__ = [
    "World",
    "connect",
    "rows",
    "replicate",
    "shard_parameters",
    "exchanging",
    "whole",
    "in_pieces",
    "sums",
    "gather",
]


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them.

    Args:
        rank: number of this process, from 0; the first writes checkpoints and progress.
        size: number of processes.
        device: where this process computes.

    Example:
        >>> World()
        World(rank=0, size=1, device=device(type='cpu'))
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@contextmanager
def connect() -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Yields:
        The world of this process, of size 1 if torchrun did not start it. The device is the GPU whose number torchrun
        gives to this process on its machine, the first one without torchrun, and the CPU where there is none.

    Raises:
        ValueError: if torchrun started more processes on this machine than it has GPUs, and it has some.

    Example:
        >>> with connect() as world:
        ...     world.size
        1
    """
    size, rank, local, here = (int(os.environ.get(name, default)) for name, default in _NAMES.items())
    cuda = torch.cuda.is_available()
    if cuda and here > torch.cuda.device_count():
        raise ValueError(
            f"{here} processes run on this machine, which has {torch.cuda.device_count()} of the GPUs that they need: "
            "start as many as there are GPUs, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


_NAMES = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def rows(batch: tuple[Tensor, ...], part: int, parts: int) -> tuple[Tensor, ...]:
    """Take one of several equal parts of a batch.

    Args:
        batch: ``(B, …)`` tensors whose first dimension counts the rows.
        part: number of the part, from 0.
        parts: how many parts there are.

    Returns:
        ``(B / parts, …)`` rows of each tensor.

    Raises:
        ValueError: if ``parts`` does not divide ``B``.

    Example:
        >>> rows((torch.arange(6), torch.arange(12).view(6, 2)), 1, 3)
        (tensor([2, 3]), tensor([[4, 5],
                [6, 7]]))
    """
    B = len(batch[0])
    check_divides("number of parts (processes, or pieces of a step)", parts, "rows of the batch", B)
    return tuple(x[part * B // parts : (part + 1) * B // parts] for x in batch)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """Let gradients be averaged over all processes while they are computed.

    Args:
        model: the model, on the device of the world; the parameters of the first process are copied to all.
        world: the processes.

    Returns:
        The model in a wrapper, which is called as the model; the model itself if there is one process, or a part of it
        lies in pieces.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> replicate(model, World()) is model
        True
    """
    in_parts = any(isinstance(module, FSDPModule) for module in model.modules())
    return model if world.size == 1 or in_parts else DistributedDataParallel(model)


def shard_parameters(model: nn.Module, world: World) -> nn.Module:
    """Let each process hold a piece of every parameter, of its gradient and of the optimizer's state (FSDP2).

    The layers, which are the members of each ``ModuleList``, gather their parameters one after the other when they are
    needed; all other parameters are gathered with the model. Make the optimizer afterwards: the parameters are others.

    Args:
        model: the model, equal in all processes.
        world: the processes.

    Returns:
        The model itself. With one process it stays as it is.

    References:
        Zhao et al. (2023), arXiv:2304.11277; Rajbhandari et al. (2020), arXiv:1910.02054.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> shard_parameters(model, World()) is model
        True
    """
    if world.size == 1:
        return model
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def exchanging(model: nn.Module, now: bool) -> Iterator[None]:
    """Say whether the gradients of what is computed here are averaged at once, or kept until another call does.

    Args:
        model: what :func:`replicate` returned, or a model that has parts in pieces.
        now: whether processes exchange their gradients, those kept from before too.

    Yields:
        Nothing.

    Example:
        >>> with exchanging(nn.Linear(2, 2), True):
        ...     pass
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)
    with nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def whole(x: Tensor) -> Tensor:
    """Return a tensor in one piece; all processes must call this together if it is in several.

    Args:
        x: ``(…)`` a plain tensor, or one of which each process holds a piece.

    Returns:
        ``(…)`` the same numbers.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    return x.full_tensor() if isinstance(x, DTensor) else x


def in_pieces(x: Tensor, like: Tensor) -> Tensor:
    """Cut a tensor as another is cut; the inverse of :func:`whole`.

    Args:
        x: ``(…)`` a whole tensor, equal in all processes.
        like: ``(…)`` a tensor of the same shape, perhaps in pieces.

    Returns:
        ``(…)`` the same numbers, in pieces if ``like`` is.

    Example:
        >>> in_pieces(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not isinstance(like, DTensor) or x.shape != like.shape:
        return x
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def sums(numbers: list[float], world: World) -> list[float]:
    """Add up numbers over all processes.

    Args:
        numbers: those of this process.
        world: the processes.

    Returns:
        The sums, the same in all processes.

    Example:
        >>> sums([1.0, 2.0], World())
        [1.0, 2.0]
    """
    if world.size == 1:
        return numbers
    x = torch.tensor(numbers, dtype=torch.float64, device=world.device)
    dist.all_reduce(x)
    return [float(number) for number in x]


def gather(x: Tensor, world: World) -> list[Tensor]:
    """Collect the tensors of all processes.

    Args:
        x: ``(…)`` that of this process, of the same shape in all.
        world: the processes.

    Returns:
        ``(…)`` that of each process, in order, on the CPU.

    Example:
        >>> gather(torch.ones(2), World())
        [tensor([1., 1.])]
    """
    if world.size == 1:
        return [x.cpu()]
    found = [torch.empty_like(x, device=world.device) for _ in range(world.size)]
    dist.all_gather(found, x.to(world.device))
    return [y.cpu() for y in found]
