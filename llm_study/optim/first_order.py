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

from llm_study.core.checks import check_at_least
from llm_study.optim.base import GroupedOptimizer, check_range

__all__ = [
    "sgd_reference",
    "SGD",
    "adagrad_reference",
    "Adagrad",
    "rmsprop_reference",
    "RMSProp",
    "adam_reference",
    "Adam",
    "adamw_reference",
    "AdamW",
    "amsgrad_reference",
    "AMSGrad",
    "nadam_reference",
    "NAdam",
    "radam_reference",
    "RAdam",
    "adafactor_reference",
    "Adafactor",
    "lamb_reference",
    "LAMB",
    "lion_reference",
    "Lion",
    "schedule_free_reference",
    "ScheduleFreeAdamW",
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
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

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
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

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
        grad = self._with_l2(p, grad, group["weight_decay"])
        if momentum:
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(grad)
            else:
                state["momentum_buffer"] = grad.clone()
            b = state["momentum_buffer"]
            grad = grad.add(b, alpha=momentum) if group["nesterov"] else b
        p.add_(grad, alpha=-group["lr"])


def adagrad_reference(
    p: Tensor, grad: Tensor, s: Tensor, *, lr: float, eps: float = 1e-10, weight_decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""One step of Adagrad: each number is divided by the root of the sum of its squared gradients.

    .. math:: s \leftarrow s + g^2, \qquad \theta \leftarrow \theta - \eta\,\frac{g}{\sqrt{s} + \varepsilon}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        s: ``(…)`` sum of squared gradients, at first 0.
        lr: learning rate.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Returns:
        ``(…)`` the new parameter, and the new sum.

    References:
        Duchi, Hazan and Singer (2011), JMLR 12, pages 2121–2159.

    Example:
        >>> adagrad_reference(torch.ones(1), torch.tensor([3.0]), torch.tensor([16.0]), lr=0.5)  # 1 - 0.5 · 3 / 5
        (tensor([0.7000]), tensor([25.]))
    """
    grad = grad + weight_decay * p
    s = s + grad.square()
    return p - lr * grad / (s.sqrt() + eps), s


class Adagrad(GroupedOptimizer):
    r"""Adagrad: where gradients have been large or frequent, steps become small, for ever.

    .. math:: s \leftarrow s + g^2, \qquad \theta \leftarrow \theta - \eta\,\frac{g}{\sqrt{s} + \varepsilon}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Duchi, Hazan and Singer (2011), JMLR 12, pages 2121–2159.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Adagrad([w], lr=1.0)
        >>> for _ in range(4):
        ...     w.grad = torch.tensor([1.0, 100.0])
        ...     optimizer.step()
        >>> w.detach()  # 1 + 1/√2 + 1/√3 + 1/√4, whatever the size of the gradient
        tensor([-2.7845, -2.7845])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        (total,) = self._buffers(state, p, "sum")
        total.addcmul_(grad, grad)
        p.addcdiv_(grad, total.sqrt().add_(group["eps"]), value=-group["lr"])


def rmsprop_reference(
    p: Tensor,
    grad: Tensor,
    v: Tensor,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""One step of RMSProp: Adagrad that forgets.

    .. math::

        v \leftarrow \alpha v + (1-\alpha)\,g^2,\qquad
        \theta \leftarrow \theta - \eta\,\frac{g}{\sqrt{v} + \varepsilon}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        v: ``(…)`` running mean of squared gradients, at first 0.
        lr: learning rate.
        alpha: what remains of the running mean of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Returns:
        ``(…)`` the new parameter, and the new ``v``.

    References:
        Tieleman and Hinton (2012), lecture 6.5 of their course.

    Example:
        >>> rmsprop_reference(torch.ones(1), torch.tensor([4.0]), torch.zeros(1), lr=0.5, alpha=0.75)  # 1 - 0.5 · 4 / 2
        (tensor([0.]), tensor([4.]))
    """
    grad = grad + weight_decay * p
    v = alpha * v + (1 - alpha) * grad.square()
    return p - lr * grad / (v.sqrt() + eps), v


class RMSProp(GroupedOptimizer):
    r"""RMSProp: each number is divided by the root of the mean of its recent squared gradients.

    .. math::

        v \leftarrow \alpha v + (1-\alpha)\,g^2,\qquad
        \theta \leftarrow \theta - \eta\,\frac{g}{\sqrt{v} + \varepsilon}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        alpha: what remains of the running mean of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Tieleman and Hinton (2012), lecture 6.5 of their course.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> w.grad = torch.tensor([4.0])
        >>> RMSProp([w], lr=0.5, alpha=0.75).step()
        >>> w.detach()
        tensor([0.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        check_range("alpha", options["alpha"], high=1.0)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        (v,) = self._buffers(state, p, "square_avg")
        v.mul_(group["alpha"]).addcmul_(grad, grad, value=1 - group["alpha"])
        p.addcdiv_(grad, v.sqrt().add_(group["eps"]), value=-group["lr"])


def adam_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of Adam: running means of gradients and of their squares, both freed of their start at 0.

    .. math::

        \begin{aligned}
        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, & v &\leftarrow \beta_2 v + (1-\beta_2)\,g^2, \\
        \theta &\leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}, &
        \hat m &= \frac{m}{1-\beta_1^t}, \quad \hat v = \frac{v}{1-\beta_2^t}.
        \end{aligned}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Returns:
        ``(…)`` the new parameter, the new ``m`` and the new ``v``.

    References:
        Kingma and Ba (2015), arXiv:1412.6980, algorithm 1.

    Example:
        >>> zero = torch.zeros(2)
        >>> adam_reference(zero, torch.tensor([5.0, -0.1]), zero, zero, step=1, lr=0.1)[0]
        tensor([-0.1000,  0.1000])
    """
    grad = grad + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    return p - lr * m_hat / (v_hat.sqrt() + eps), m, v


class Adam(GroupedOptimizer):
    r"""Adam; its weight decay passes through the averages, that of :class:`AdamW` does not.

    .. math:: \theta \leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Kingma and Ba (2015), arXiv:1412.6980, algorithm 1.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> w.grad = torch.tensor([5.0, -0.1])
        >>> Adam([w], lr=0.1).step()
        >>> w.detach()
        tensor([-0.1000,  0.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        grads = [self._with_l2(p, grad, group["weight_decay"]) for p, grad in zip(params, grads, strict=True)]
        for step, tensors in _by_step(self, params, grads, "exp_avg", "exp_avg_sq"):
            for p, g, m, v in _batches(tensors):
                _adam_(p, g, m, v, step=step, lr=group["lr"], betas=group["betas"], eps=group["eps"])


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
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

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


def amsgrad_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    u: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One step of AMSGrad: Adam that never forgets the largest mean of squares.

    .. math::

        \begin{aligned}
        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, & v &\leftarrow \beta_2 v + (1-\beta_2)\,g^2, \\
        u &\leftarrow \max(u, v), & \theta &\leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat u} + \varepsilon}.
        \end{aligned}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        u: ``(…)`` largest ``v`` so far, at first 0.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Returns:
        ``(…)`` the new parameter, the new ``m``, the new ``v`` and the new ``u``.

    References:
        Reddi, Kale and Kumar (2018), arXiv:1904.09237, algorithm 2; with the corrections of Adam, as PyTorch has it.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> amsgrad_reference(zero, one, zero, zero, one, step=1, lr=1.0, betas=(0.0, 0.75))[0]  # û = 1 / (1 - 0.75)
        tensor([-0.5000])
    """
    grad = grad + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    u = torch.maximum(u, v)
    m_hat = m / (1 - betas[0] ** step)
    u_hat = u / (1 - betas[1] ** step)
    return p - lr * m_hat / (u_hat.sqrt() + eps), m, v, u


class AMSGrad(GroupedOptimizer):
    r"""AMSGrad: Adam whose denominator never becomes smaller.

    .. math::

        u \leftarrow \max(u, v),\qquad
        \theta \leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat u} + \varepsilon}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Reddi, Kale and Kumar (2018), arXiv:1904.09237, algorithm 2; with the corrections of Adam, as PyTorch has it.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> w.grad = torch.tensor([5.0])
        >>> AMSGrad([w], lr=0.1).step()
        >>> w.detach()
        tensor([-0.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        m, v, step = _moments(self, p, grad, state, group["betas"])
        (u,) = self._buffers(state, p, "max_exp_avg_sq")
        torch.maximum(u, v, out=u)
        beta1, beta2 = group["betas"]
        denominator = (u / (1 - beta2**step)).sqrt_().add_(group["eps"])
        p.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**step))


def nadam_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    product: float,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""One step of NAdam: Adam with Nesterov's look ahead.

    .. math::

        \begin{aligned}
        \mu_t &= \beta_1\bigl(1 - \tfrac12 \cdot 0.96^{\,t\psi}\bigr), \qquad \Pi_t = \mu_1\mu_2\cdots\mu_t, \\
        \theta &\leftarrow \theta - \eta\left(\frac{(1-\mu_t)\,g}{1-\Pi_t} + \frac{\mu_{t+1}\,m}{1-\Pi_{t+1}}\right)
            \frac{1}{\sqrt{\hat v} + \varepsilon}.
        \end{aligned}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        product: :math:`\Pi_{t-1}`, at first 1.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.
        momentum_decay: :math:`\psi`, how fast the momentum grows to its full size.

    Returns:
        ``(…)`` the new parameter, the new ``m`` and ``v``, and the new product.

    References:
        Dozat (2016), Incorporating Nesterov momentum into Adam; the schedule of :math:`\mu_t` as PyTorch has it.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> nadam_reference(zero, one, zero, zero, 1.0, step=1, lr=0.1, betas=(0.0, 0.9))[0]  # no momentum: Adam
        tensor([-0.1000])
    """
    grad = grad + weight_decay * p
    mu, ahead = (betas[0] * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    product *= mu
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    v_hat = v / (1 - betas[1] ** step)
    direction = (1 - mu) / (1 - product) * grad + ahead / (1 - product * ahead) * m
    return p - lr * direction / (v_hat.sqrt() + eps), m, v, product


class NAdam(GroupedOptimizer):
    r"""NAdam: Adam with Nesterov's look ahead, and a momentum that grows at the start.

    .. math::

        \theta \leftarrow \theta - \eta\left(\frac{(1-\mu_t)\,g}{1-\Pi_t} + \frac{\mu_{t+1}\,m}{1-\Pi_{t+1}}\right)
        \frac{1}{\sqrt{\hat v} + \varepsilon}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.
        momentum_decay: :math:`\psi`, how fast the momentum grows to its full size.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Dozat (2016), Incorporating Nesterov momentum into Adam; the schedule of :math:`\mu_t` as PyTorch has it.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> w.grad = torch.ones(1)
        >>> NAdam([w], lr=0.1, betas=(0.0, 0.9)).step()
        >>> w.detach()
        tensor([-0.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay},
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_range("momentum_decay", options["momentum_decay"])

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        m, v, step = _moments(self, p, grad, state, group["betas"])
        beta1, beta2 = group["betas"]
        mu, ahead = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        product = state["mu_product"] = float(state.get("mu_product", 1.0)) * mu
        denominator = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
        p.addcdiv_(grad, denominator, value=-group["lr"] * (1 - mu) / (1 - product))
        p.addcdiv_(m, denominator, value=-group["lr"] * ahead / (1 - product * ahead))


def radam_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of RAdam: plain momentum until the mean of squares can be trusted, then Adam times :math:`r_t`.

    .. math::

        \rho_\infty = \frac{2}{1-\beta_2} - 1, \qquad \rho_t = \rho_\infty - \frac{2t\beta_2^t}{1-\beta_2^t}, \qquad
        r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\,\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\,\rho_t}}

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Returns:
        ``(…)`` the new parameter, the new ``m`` and the new ``v``.

    References:
        Liu et al. (2020), arXiv:1908.03265, algorithm 2; with the limit 5, where the paper has 4, and with
        :math:`\varepsilon` beside :math:`\sqrt v`, as PyTorch has them.

    Example:
        >>> zero = torch.zeros(1)
        >>> radam_reference(zero, torch.tensor([5.0]), zero, zero, step=1, lr=0.1)[0]  # at first the gradient itself
        tensor([-0.5000])
    """
    grad = grad + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    m_hat = m / (1 - betas[0] ** step)
    limit = 2 / (1 - betas[1]) - 1
    rho = limit - 2 * step * betas[1] ** step / (1 - betas[1] ** step)
    if rho <= 5:
        return p - lr * m_hat, m, v
    r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    return p - lr * r * m_hat * math.sqrt(1 - betas[1] ** step) / (v.sqrt() + eps), m, v


class RAdam(GroupedOptimizer):
    r"""RAdam: Adam that warms itself up.

    .. math::

        \theta \leftarrow \theta - \eta\,\hat m \quad (\rho_t \le 5),\qquad
        \theta \leftarrow \theta
        - \eta\,r_t\,\hat m\,\frac{\sqrt{1-\beta_2^t}}{\sqrt{v} + \varepsilon} \quad (\rho_t > 5)

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Liu et al. (2020), arXiv:1908.03265, algorithm 2; with the limit 5, where the paper has 4, and with
        :math:`\varepsilon` beside :math:`\sqrt v`, as PyTorch has them.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> w.grad = torch.tensor([5.0])
        >>> RAdam([w], lr=0.1).step()
        >>> w.detach()
        tensor([-0.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        m, v, step = _moments(self, p, grad, state, group["betas"])
        beta1, beta2 = group["betas"]
        size = group["lr"] / (1 - beta1**step)
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * step * beta2**step / (1 - beta2**step)
        if rho <= 5:
            p.add_(m, alpha=-size)
        else:
            r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-size * r * math.sqrt(1 - beta2**step))


def adafactor_reference(
    p: Tensor,
    grad: Tensor,
    r: Tensor,
    c: Tensor,
    *,
    step: int,
    lr: float,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of Adafactor for a matrix: the mean of squares is kept as a row and a column.

    .. math::

        \begin{aligned}
        R &\leftarrow \beta_t R + (1-\beta_t)\operatorname{mean}_j G_{ij}^2, &
        C &\leftarrow \beta_t C + (1-\beta_t)\operatorname{mean}_i G_{ij}^2, \qquad \beta_t = 1 - t^{\,\kappa}, \\
        V &= \frac{RC}{\operatorname{mean} R}, & U &= \frac{G}{\sqrt V}, \\
        \theta &\leftarrow (1-\eta\lambda)\,\theta - \alpha_t\,\frac{U}{\max(1, \operatorname{rms}(U)/d)}, &
        \alpha_t &= \max(\varepsilon_2, \operatorname{rms}\theta)\,\min(\eta, 1/\sqrt t).
        \end{aligned}

    Args:
        p: ``(M, N)`` parameter :math:`\theta`.
        grad: ``(M, N)`` gradient.
        r: ``(M, 1)`` running means of rows, at first 0.
        c: ``(1, N)`` running means of columns, at first 0.
        step: number of this step, from 1.
        lr: largest relative size of a step.
        beta2_decay: :math:`\kappa`; the averages remember more and more.
        eps: :math:`\varepsilon_1`, the least :math:`\sqrt V` (None: the rounding of the dtype) and
            :math:`\varepsilon_2`, the least size of a parameter.
        d: the largest root mean square of :math:`U`.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Returns:
        ``(M, N)`` the new parameter, ``(M, 1)`` the new ``r`` and ``(1, N)`` the new ``c``.

    References:
        Shazeer and Stern (2018), arXiv:1804.04235, algorithms 4 and 5; means in place of sums and the role of
        :math:`\varepsilon_1`, as PyTorch has it.

    Example:
        >>> g, zero = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])), torch.zeros(2, 2)
        >>> adafactor_reference(torch.ones(2, 2), g, zero[:, :1], zero[:1], step=1, lr=0.01, weight_decay=0.0)[0]
        tensor([[0.9900, 0.9900],
                [1.0100, 1.0100]])
    """
    least = torch.finfo(p.dtype).eps if eps[0] is None else eps[0]
    new = step**beta2_decay
    r = (1 - new) * r + new * grad.square().mean(dim=-1, keepdim=True)
    c = (1 - new) * c + new * grad.square().mean(dim=-2, keepdim=True)
    v = r @ c / r.mean(dim=-2, keepdim=True).clamp(min=least)
    u = grad / v.sqrt().clamp(min=least)
    u = u / (u.square().mean().sqrt() / d).clamp(min=1)
    alpha = p.square().mean().sqrt().clamp(min=eps[1]) * min(lr, step**-0.5)
    return (1 - lr * weight_decay) * p - alpha * u, r, c


class Adafactor(GroupedOptimizer):
    r"""Adafactor: no momentum, and for a matrix a row and a column in place of the mean of squares.

    .. math::

        V = \frac{RC}{\operatorname{mean} R},\qquad
        \theta \leftarrow (1-\eta\lambda)\,\theta - \alpha_t\,\frac{G/\sqrt V}{\max(1, \operatorname{rms}(G/\sqrt V)/d)}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: largest relative size of a step.
        beta2_decay: :math:`\kappa`; the averages remember more and more.
        eps: :math:`\varepsilon_1`, the least :math:`\sqrt V` (None: the rounding of the dtype) and
            :math:`\varepsilon_2`, the least size of a parameter.
        d: the largest root mean square of :math:`U`.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Shazeer and Stern (2018), arXiv:1804.04235, algorithms 4 and 5; means in place of sums and the role of
        :math:`\varepsilon_1`, as PyTorch has it.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(100, 200))
        >>> w.grad = torch.ones(100, 200)
        >>> optimizer = Adafactor([w])
        >>> optimizer.step()
        >>> {name: tuple(x.shape) for name, x in optimizer.state[w].items() if name != "step"}
        {'row_var': (100, 1), 'col_var': (1, 200)}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        )

    def _check(self, options: dict[str, Any]) -> None:
        for i, eps in enumerate(options["eps"]):
            check_range(f"eps[{i}]", 0.0 if eps is None else eps)
        check_range("d", options["d"], low=1.0)
        if not options["beta2_decay"] <= 0:
            raise ValueError(f"beta2_decay is {options['beta2_decay']}, expected at most 0: memory has to grow")

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        step, new = self._count(state), float(state["step"]) ** group["beta2_decay"]
        least = torch.finfo(p.dtype).eps if group["eps"][0] is None else group["eps"][0]
        if p.ndim > 1:
            (row,) = self._buffers(state, p[..., :1], "row_var")
            (column,) = self._buffers(state, p[..., :1, :], "col_var")
            row.lerp_(grad.square().mean(dim=-1, keepdim=True), new)
            column.lerp_(grad.square().mean(dim=-2, keepdim=True), new)
            v = row @ column / row.mean(dim=-2, keepdim=True).clamp_(min=least)
        else:
            v = self._buffers(state, p, "variance")[0].lerp_(grad.square(), new)
        u = grad / v.sqrt().clamp_(min=least)
        clipped = max(1.0, _rms(u) / group["d"])
        alpha = max(group["eps"][1], _rms(p)) * min(group["lr"], step**-0.5)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-alpha / clipped)


def lamb_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of LAMB: the direction of AdamW, with the length of the parameter itself.

    .. math::

        u = \frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \lambda\theta,\qquad
        \theta \leftarrow \theta - \eta\,\frac{\lVert\theta\rVert}{\lVert u\rVert}\,u

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        v: ``(…)`` running mean of squared gradients, at first 0.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the direction before its length is taken.

    Returns:
        ``(…)`` the new parameter, the new ``m`` and the new ``v``.

    References:
        You et al. (2020), arXiv:1904.00962, algorithm 2, with :math:`\phi(z) = z`.

    Example:
        >>> p, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
        >>> new = lamb_reference(p, torch.tensor([1.0, 9.0]), zero, zero, step=1, lr=0.1, weight_decay=0.0)[0]
        >>> (new - p).norm()  # a tenth of the length 5
        tensor(0.5000)
    """
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    u = m_hat / (v_hat.sqrt() + eps) + weight_decay * p
    trust = p.norm() / u.norm() if p.any() and u.any() else 1.0
    return p - lr * trust * u, m, v


class LAMB(GroupedOptimizer):
    r"""LAMB: each tensor moves by a share of its own length, so that very large batches can be used.

    .. math::

        u = \frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \lambda\theta,\qquad
        \theta \leftarrow \theta - \eta\,\frac{\lVert\theta\rVert}{\lVert u\rVert}\,u

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the direction before its length is taken.

    Raises:
        ValueError: if an option is out of its range.

    References:
        You et al. (2020), arXiv:1904.00962, algorithm 2, with :math:`\phi(z) = z`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> w.grad = torch.tensor([1.0, 9.0])
        >>> LAMB([w], lr=0.1, weight_decay=0.0).step()
        >>> (w.detach() - torch.tensor([3.0, 4.0])).norm()
        tensor(0.5000)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        m, v, step = _moments(self, p, grad, state, group["betas"])
        beta1, beta2 = group["betas"]
        u = (v / (1 - beta2**step)).sqrt_().add_(group["eps"]).reciprocal_().mul_(m).div_(1 - beta1**step)
        u.add_(p, alpha=group["weight_decay"])
        size, length = float(p.norm()), float(u.norm())
        p.add_(u, alpha=-group["lr"] * (size / length if size and length else 1.0))


def lion_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""One step of Lion: only the sign of the momentum.

    .. math::

        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\operatorname{sign}\bigl(\beta_1 m + (1-\beta_1)\,g\bigr),\qquad
        m \leftarrow \beta_2 m + (1-\beta_2)\,g

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        lr: learning rate.
        betas: what remains of the mean in the direction, and in what is kept.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Returns:
        ``(…)`` the new parameter, and the new ``m``.

    References:
        Chen et al. (2023), arXiv:2302.06675, algorithm 2.

    Example:
        >>> zero = torch.zeros(3)
        >>> lion_reference(zero, torch.tensor([5.0, -0.1, 0.0]), zero, lr=0.5)[0]
        tensor([-0.5000,  0.5000,  0.0000])
    """
    direction = (betas[0] * m + (1 - betas[0]) * grad).sign()
    return (1 - lr * weight_decay) * p - lr * direction, betas[1] * m + (1 - betas[1]) * grad


class Lion(GroupedOptimizer):
    r"""Lion: every number moves by the learning rate, in the direction of a momentum; half the memory of Adam.

    .. math::

        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\operatorname{sign}\bigl(\beta_1 m + (1-\beta_1)\,g\bigr),\qquad
        m \leftarrow \beta_2 m + (1-\beta_2)\,g

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the mean in the direction, and in what is kept.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Chen et al. (2023), arXiv:2302.06675, algorithm 2.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> w.grad = torch.tensor([5.0, -0.1, 0.0])
        >>> Lion([w], lr=0.5).step()
        >>> w.detach()
        tensor([-0.5000,  0.5000,  0.0000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (m,) = self._buffers(state, p, "exp_avg")
        direction = m.lerp(grad, 1 - group["betas"][0]).sign_()
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        m.lerp_(grad, 1 - group["betas"][1])


def schedule_free_reference(
    x: Tensor,
    z: Tensor,
    grad: Tensor,
    v: Tensor,
    total: float,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""One step of schedule-free AdamW: fast iterates, and the average of them that is the result.

    .. math::

        \begin{aligned}
        y &= (1-\beta_1)\,z + \beta_1 x, & v &\leftarrow \beta_2 v + (1-\beta_2)\,g(y)^2, \\
        z &\leftarrow z - \gamma_t\left(\frac{g(y)}{\sqrt v + \varepsilon} + \lambda y\right), &
        \gamma_t &= \eta\sqrt{1-\beta_2^t}\,\min(1, t/t_w), \\
        x &\leftarrow (1-c)\,x + c\,z, & c &= \gamma_t^2 \Big/ \sum_{i \le t} \gamma_i^2.
        \end{aligned}

    Args:
        x: ``(…)`` average, at first the parameter.
        z: ``(…)`` fast iterate, at first the parameter.
        grad: ``(…)`` gradient at :math:`y`.
        v: ``(…)`` running mean of squared gradients, at first 0.
        total: sum of the squared :math:`\gamma_i` so far.
        step: number of this step, from 1.
        lr: learning rate.
        betas: :math:`\beta_1`, the share of the average in the point where gradients are taken, and :math:`\beta_2`.
        eps: added to the root.
        weight_decay: :math:`\lambda`; the decay acts at the point where gradients are taken.
        warmup_steps: :math:`t_w`, number of steps in which the learning rate grows to its full size.

    Returns:
        ``(…)`` the new ``x``, the new ``z`` and the new ``v``, and the new sum.

    References:
        Defazio et al. (2024), arXiv:2405.15682, algorithm 1.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> x, z, v, total = schedule_free_reference(one, one, one, zero, 0.0, step=1, lr=0.1, betas=(0.9, 0.0))
        >>> x, z  # the average of one iterate is this iterate
        (tensor([0.9000]), tensor([0.9000]))
    """
    y = (1 - betas[0]) * z + betas[0] * x
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    gamma = lr * math.sqrt(1 - betas[1] ** step) * min(1.0, step / max(1, warmup_steps))
    total += gamma**2
    c = gamma**2 / total if total else 1.0
    z = z - gamma * (grad / (v.sqrt() + eps) + weight_decay * y)
    return (1 - c) * x + c * z, z, v, total


class ScheduleFreeAdamW(GroupedOptimizer):
    r"""AdamW without a schedule: the average of the iterates does what a decaying learning rate would.

    While training, the parameters are the point :math:`y` where gradients are taken. Call :meth:`eval` before the model
    is measured or saved for use, and :meth:`train` before training goes on: they move the parameters to the average
    :math:`x` and back. A checkpoint is taken while training.

    .. math::

        \begin{aligned}
        y &= (1-\beta_1)\,z + \beta_1 x, & v &\leftarrow \beta_2 v + (1-\beta_2)\,g(y)^2, \\
        z &\leftarrow z - \gamma_t\left(\frac{g(y)}{\sqrt v + \varepsilon} + \lambda y\right), &
        \gamma_t &= \eta\sqrt{1-\beta_2^t}\,\min(1, t/t_w), \\
        x &\leftarrow (1-c)\,x + c\,z, & c &= \gamma_t^2 \Big/ \sum_{i \le t} \gamma_i^2.
        \end{aligned}

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: :math:`\beta_1`, the share of the average in the point where gradients are taken, and :math:`\beta_2`.
        eps: added to the root.
        weight_decay: :math:`\lambda`; the decay acts at the point where gradients are taken.
        warmup_steps: :math:`t_w`, number of steps in which the learning rate grows to its full size.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Defazio et al. (2024), arXiv:2405.15682, algorithm 1.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = ScheduleFreeAdamW([w], lr=0.1)
        >>> for _ in range(100):
        ...     w.grad = w.detach().clone()
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> bool(w.abs() < 0.1)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "warmup_steps": warmup_steps,
                "train_mode": True,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least("warmup_steps", options["warmup_steps"], 0)
        if not options["betas"][0]:
            raise ValueError("betas[0] is 0.0, expected above 0: the average could not be found again from y")

    @torch.no_grad()
    def eval(self) -> None:
        """Move the parameters to the average; without effect if they are there."""
        for group in self.param_groups:
            if group["train_mode"]:
                self._move(group, 1 - 1 / group["betas"][0])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Move the parameters to the point where gradients are taken; without effect if they are there."""
        for group in self.param_groups:
            if not group["train_mode"]:
                self._move(group, 1 - group["betas"][0])
            group["train_mode"] = True

    def _move(self, group: dict[str, Any], weight: float) -> None:
        for p in group["params"]:
            if "z" in self.state[p]:
                p.lerp_(self.state[p]["z"], weight)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not group["train_mode"]:
            raise ValueError("train_mode is False, expected True: the parameters hold the average, call train() first")
        if not state:
            state.update(z=p.clone(), exp_avg_sq=torch.zeros_like(p), total=0.0)
        beta1, beta2 = group["betas"]
        z, v, step = state["z"], state["exp_avg_sq"], self._count(state)
        gamma = group["lr"] * math.sqrt(1 - beta2**step) * min(1.0, step / max(1, group["warmup_steps"]))
        state["total"] += gamma**2
        c = gamma**2 / state["total"] if state["total"] else 1.0
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        direction = (grad / v.sqrt().add_(group["eps"])).add_(p, alpha=group["weight_decay"])
        p.lerp_(z, c).add_(direction, alpha=gamma * (beta1 * (1 - c) - 1))  # y of the new x and the new z
        z.add_(direction, alpha=-gamma)


def _moments(
    optimizer: GroupedOptimizer, p: Tensor, grad: Tensor, state: dict[str, Any], betas: tuple[float, float]
) -> tuple[Tensor, Tensor, int]:
    """Update the running means of one parameter; return them and the number of the step."""
    m, v = optimizer._buffers(state, p, "exp_avg", "exp_avg_sq")
    m.lerp_(grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    return m, v, optimizer._count(state)


def _rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.norm()) / math.sqrt(x.numel())


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
        buffers = optimizer._buffers(state, p, *names)
        found[optimizer._count(state)].append((p, grad, *buffers))
    yield from found.items()


def _batches(tensors: list[tuple[Tensor, ...]]) -> Iterator[list[list[Tensor]]]:
    """Yield lists of parameters, of gradients, …; on a CPU cut up and put together so that a batch fits in a cache."""
    plain = (Tensor, torch.nn.Parameter)  # a tensor of which each process holds a piece cannot be cut up further
    if any(part.device.type != "cpu" or type(part) not in plain for parts in tensors for part in parts):
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
