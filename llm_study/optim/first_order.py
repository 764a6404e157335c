r"""First-order optimizers: what a gradient, its running averages and nothing else can do.

Each class is a :class:`torch.optim.Optimizer`, with groups of parameters and the names of PyTorch's arguments where
PyTorch has the optimizer; the function beside it, whose name ends in ``_reference``, is one update written as its
equations, for one tensor, without changing anything in place. In the equations :math:`g` is the gradient, :math:`\eta`
the learning rate, :math:`\lambda` the weight decay and :math:`t` the number of the step, from 1.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from llm_study.optim.base import GroupedOptimizer, check_range

__all__ = [
    "sgd_reference",
    "SGD",
    "adamw_reference",
    "AdamW",
]

CACHED = 2**17  # numbers of each tensor that are worked on at once: what a core keeps close by


def sgd_reference(
    p: Tensor,
    grad: Tensor,
    b: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""One step of gradient descent with momentum; :class:`SGD` does it in place.

    .. math:: b \leftarrow \mu b + (g + \lambda\theta), \qquad \theta \leftarrow \theta - \eta\,b

    With Nesterov's momentum the step goes along :math:`g + \lambda\theta + \mu b` instead.

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        b: ``(…)`` momentum buffer, at first 0.
        lr: learning rate.
        momentum: what remains of the buffer, :math:`\mu`.
        nesterov: whether to look one step of the buffer ahead.
        weight_decay: :math:`\lambda`, added to the gradient as :math:`\lambda\theta`.

    Returns:
        ``(…)`` the new parameter, and the new buffer.

    References:
        Polyak (1964), doi:10.1016/0041-5553(64)90137-5; Sutskever et al. (2013), section 2.

    Example:
        >>> p, b = torch.tensor([1.0]), torch.tensor([0.5])
        >>> sgd_reference(p, torch.tensor([2.0]), b, lr=0.1, momentum=0.8)  # b = 0.4 + 2
        (tensor([0.7600]), tensor([2.4000]))
    """
    grad = grad + weight_decay * p
    b = momentum * b + grad
    return p - lr * (grad + momentum * b if nesterov else b), b


class SGD(GroupedOptimizer):
    r"""Gradient descent, with momentum if wanted.

    .. math:: b \leftarrow \mu b + (g + \lambda\theta), \qquad \theta \leftarrow \theta - \eta\,b

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        momentum: what remains of the buffer. 0: no buffer is kept.
        nesterov: step along :math:`g + \lambda\theta + \mu b` instead.
        weight_decay: :math:`\lambda`; its gradient is added to ``grad``.

    Raises:
        ValueError: if an option is out of its range, or ``nesterov`` is asked for without momentum.

    References:
        Polyak (1964), doi:10.1016/0041-5553(64)90137-5; Sutskever et al. (2013), section 2.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.detach()  # 1 - 0.1 - 0.1 (0.9 + 1)
        tensor([0.7100])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        check_range("momentum", options["momentum"], high=1.0)
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov is True and momentum is 0.0, expected momentum above 0: there is nothing ahead")

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        if momentum:
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(grad)
            else:
                state["momentum_buffer"] = grad.clone()
            b = state["momentum_buffer"]
            grad = grad.add(b, alpha=momentum) if group["nesterov"] else b
        p.add_(grad, alpha=-group["lr"])


def adamw_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of AdamW: Adam, and a decay of the weights that does not pass through its averages.

    .. math::

        \begin{aligned}
        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, & v &\leftarrow \beta_2 v + (1-\beta_2)\,g^2, \\
        \theta &\leftarrow (1-\eta\lambda)\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}, &
        \hat m &= \frac{m}{1-\beta_1^t}, \quad \hat v = \frac{v}{1-\beta_2^t}.
        \end{aligned}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of ``m`` and of ``v``.
        eps: added to the root.
        weight_decay: :math:`\lambda`.

    Returns:
        ``(…)`` the new parameter, the new ``m`` and the new ``v``.

    References:
        Loshchilov and Hutter (2019), arXiv:1711.05101, algorithm 2.

    Example:
        >>> zero = torch.zeros(2)
        >>> adamw_reference(torch.ones(2), torch.tensor([5.0, -0.1]), zero, zero, step=1, lr=0.1, weight_decay=0.5)[0]
        tensor([0.8500, 1.0500])
    """
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    return (1 - lr * weight_decay) * p - lr * m_hat / (v_hat.sqrt() + eps), m, v


class AdamW(GroupedOptimizer):
    r"""AdamW: Adam with decoupled weight decay, the usual optimizer of language models.

    .. math:: \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}

    On a CPU parameters are worked on in pieces that stay in the cache of a core, and small ones together.

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Loshchilov and Hutter (2019), arXiv:1711.05101, algorithm 2.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = torch.tensor([5.0, -0.1])
        >>> AdamW([w], lr=0.1, weight_decay=0.5).step()
        >>> w.detach()  # whatever the gradient's size, the first step has the size of the learning rate
        tensor([0.8500, 1.0500])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for step, tensors in _by_step(self, params, grads, "exp_avg", "exp_avg_sq"):
            for p, g, m, v in _batches(tensors):
                torch._foreach_mul_(p, 1 - group["lr"] * group["weight_decay"])
                _adam_(p, g, m, v, step=step, lr=group["lr"], betas=group["betas"], eps=group["eps"])


def _adam_(
    p: list[Tensor],
    g: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Do a step of Adam in place; the root of the correction of ``v`` goes into the learning rate and into eps."""
    root = math.sqrt(1 - betas[1] ** step)
    torch._foreach_lerp_(m, g, 1 - betas[0])
    torch._foreach_mul_(v, betas[1])
    torch._foreach_addcmul_(v, g, g, 1 - betas[1])
    denominators = torch._foreach_sqrt(v)
    torch._foreach_add_(denominators, eps * root)
    torch._foreach_addcdiv_(p, m, denominators, -lr * root / (1 - betas[0] ** step))


def _by_step(
    optimizer: GroupedOptimizer, params: list[Tensor], grads: list[Tensor], *names: str
) -> Iterator[tuple[int, list[tuple[Tensor, ...]]]]:
    """Yield each number of steps, and (parameter, gradient, state, …) of those that have taken so many."""
    found: defaultdict[int, list[tuple[Tensor, ...]]] = defaultdict(list)
    for p, grad in zip(params, grads, strict=True):
        state = optimizer.state[p]
        if not state:
            state.update({name: torch.zeros_like(p) for name in names})
        found[optimizer._count(state)].append((p, grad, *(state[name] for name in names)))
    yield from found.items()


def _batches(tensors: list[tuple[Tensor, ...]]) -> Iterator[list[list[Tensor]]]:
    """Yield lists of parameters, of gradients, …; on a CPU cut up and put together so that a batch fits in a cache."""
    if any(part.device.type != "cpu" for parts in tensors for part in parts):
        yield [list(column) for column in zip(*tensors, strict=True)]
        return
    batch: list[tuple[Tensor, ...]] = []
    size = 0
    for parts in tensors:
        whole = parts[0].numel() <= CACHED or not all(part.is_contiguous() for part in parts)
        for piece in [parts] if whole else zip(*(torch.split(part.view(-1), CACHED) for part in parts), strict=True):
            if batch and size + piece[0].numel() > CACHED:
                yield [list(column) for column in zip(*batch, strict=True)]
                batch, size = [], 0
            batch.append(piece)
            size += piece[0].numel()
    yield [list(column) for column in zip(*batch, strict=True)]
