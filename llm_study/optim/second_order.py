r"""Optimizers that look at curvature: of each number (Sophia), or of rows and columns of a matrix (Shampoo, SOAP).

:func:`hutchinson` and :func:`gauss_newton_bartlett` estimate the diagonal of the Hessian that Sophia divides by.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from llm_study.core.checks import check_at_least, check_equal
from llm_study.optim.base import GroupedOptimizer, check_range

__all__ = [
    "hutchinson",
    "gauss_newton_bartlett",
    "sophia_reference",
    "Sophia",
    "inverse_root",
    "shampoo_reference",
    "Shampoo",
    "soap_reference",
    "SOAP",
]


def hutchinson(
    loss: Tensor, params: Sequence[Tensor], *, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    r"""Estimate the diagonal of the Hessian with random signs.

    .. math:: \hat h = u \circ (Hu), \qquad u_i = \pm 1, \qquad \mathbb{E}[\hat h] = \operatorname{diag} H

    Args:
        loss: ``()`` loss, computed from ``params``.
        params: ``(…)`` tensors to differentiate by.
        generator: source of the signs.

    Returns:
        ``(…)`` estimates, in the shapes of ``params``.

    Cost: two backward passes and the memory of a graph of gradients.

    References:
        Liu et al. (2024), arXiv:2305.14342, section 2.3, with signs in place of normal numbers.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hutchinson((w**3).sum(), [w])  # a diagonal Hessian is found without noise: 6 w
        (tensor([ 6., 12.]),)
    """
    grads = torch.autograd.grad(loss, params, create_graph=True)
    signs = [_random_signs(p, generator) for p in params]
    products = torch.autograd.grad(grads, params, grad_outputs=signs)
    return tuple(u * product for u, product in zip(signs, products, strict=True))


def gauss_newton_bartlett(
    logits: Tensor, params: Sequence[Tensor], *, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    r"""Estimate the diagonal of the Gauss–Newton matrix from targets that the model draws itself.

    .. math::

        \hat h = n\,\hat g \circ \hat g, \qquad
        \hat g = \nabla_\theta\,\frac1n\sum_{i=1}^n -\ln p_\theta(\hat y_i \mid x_i), \qquad
        \hat y_i \sim p_\theta(\cdot \mid x_i)

    Args:
        logits: ``(…, V)`` unnormalized log-probabilities of :math:`n` predictions, computed from ``params``.
        params: ``(…)`` tensors to differentiate by.
        generator: source of the targets.

    Returns:
        ``(…)`` estimates, in the shapes of ``params``; none is negative.

    Cost: one backward pass.

    References:
        Liu et al. (2024), arXiv:2305.14342, algorithm 2.

    Example:
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> gauss_newton_bartlett(z, [z])  # (p - y)² is 1/4 for either target
        (tensor([[0.2500, 0.2500]]),)
    """
    flat = logits.reshape(-1, logits.shape[-1])
    drawn = torch.multinomial(flat.detach().softmax(dim=-1), 1, generator=generator)[:, 0]
    loss = torch.nn.functional.cross_entropy(flat, drawn)
    return tuple(len(flat) * grad.square() for grad in torch.autograd.grad(loss, params))


def sophia_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    h: Tensor,
    *,
    lr: float,
    beta: float = 0.96,
    rho: float = 0.01,
    eps: float = 1e-12,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""One step of Sophia: Newton's method for each number, but never further than the learning rate.

    .. math::

        m \leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad
        \theta \leftarrow (1-\eta\lambda)\,\theta
        - \eta\operatorname{clip}\!\left(\frac{m}{\max(\rho h, \varepsilon)}, 1\right)

    Args:
        p: ``(…)`` parameter :math:`\theta`.
        grad: ``(…)`` gradient.
        m: ``(…)`` running mean of gradients, at first 0.
        h: ``(…)`` running mean of estimates of the diagonal of the Hessian.
        lr: learning rate.
        beta: what remains of the running mean of gradients.
        rho: factor on the curvature (the paper's :math:`\gamma`): the smaller, the more numbers are clipped.
        eps: the smallest curvature that is divided by.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Returns:
        ``(…)`` the new parameter, and the new ``m``.

    References:
        Liu et al. (2024), arXiv:2305.14342, algorithm 3.

    Example:
        >>> grad, h = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 0.5, -1.0])
        >>> sophia_reference(torch.zeros(3), grad, torch.zeros(3), h, lr=0.1, beta=0.0, rho=1.0)[0]
        tensor([-0.0250, -0.1000, -0.1000])
    """
    m = beta * m + (1 - beta) * grad
    direction = (m / (rho * h).clamp(min=eps)).clamp(-1, 1)
    return (1 - lr * weight_decay) * p - lr * direction, m


class Sophia(GroupedOptimizer):
    r"""Sophia: gradients divided by estimated curvature, each number clipped.

    .. math::

        \theta \leftarrow (1-\eta\lambda)\,\theta
        - \eta\operatorname{clip}\!\left(\frac{m}{\max(\rho h, \varepsilon)}, 1\right)

    Every few steps, tell it the curvature: ``optimizer.update_curvature(hutchinson(loss, params))``. Before the first
    time every number moves by the learning rate. The defaults are the paper's for :func:`hutchinson`; with
    :func:`gauss_newton_bartlett` it takes ``rho=0.05``.

    Args:
        params: ``(…)`` tensors to train, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of curvature.
        rho: factor on the curvature (the paper's :math:`\gamma`): the smaller, the more numbers are clipped.
        eps: the smallest curvature that is divided by.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Raises:
        ValueError: if an option is out of its range.

    References:
        Liu et al. (2024), arXiv:2305.14342, algorithm 3.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Sophia([w], lr=1.0, betas=(0.0, 0.0), rho=1.0, weight_decay=0.0)
        >>> loss = (torch.tensor([1.0, 50.0]) * w.square()).sum() / 2
        >>> optimizer.update_curvature(hutchinson(loss, [w]))
        >>> w.grad = torch.tensor([1.0, 50.0])
        >>> optimizer.step()
        >>> w.detach()  # steep or flat: the minimum in one step
        tensor([0., 0.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.96, 0.99),
        rho: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        check_range("rho", options["rho"])
        if not options["eps"] > 0:
            raise ValueError(f"eps is {options['eps']}, expected above 0: curvature may be 0")

    @torch.no_grad()
    def update_curvature(self, estimates: Iterable[Tensor]) -> None:
        """Take new estimates of the diagonal of the Hessian into their running mean.

        Args:
            estimates: ``(…)`` one for each parameter, in the order of the parameters.

        Raises:
            ValueError: if there are more or fewer estimates than parameters, or a shape differs.
        """
        pairs = [(p, group["betas"][1]) for group in self.param_groups for p in group["params"]]
        estimates = list(estimates)
        check_equal("number of estimates", len(estimates), "number of parameters", len(pairs))
        for (p, _), estimate in zip(pairs, estimates, strict=True):
            check_equal("shape of an estimate", tuple(estimate.shape), "shape of its parameter", tuple(p.shape))
        for (p, beta), estimate in zip(pairs, estimates, strict=True):
            self._buffers(self.state[p], p, "hessian")[0].lerp_(estimate, 1 - beta)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        m, h = self._buffers(state, p, "exp_avg", "hessian")
        m.lerp_(grad, 1 - group["betas"][0])
        direction = (m / (group["rho"] * h).clamp_(min=group["eps"])).clamp_(-1, 1)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def inverse_root(matrix: Tensor, root: int) -> Tensor:
    r"""Return the inverse root of a symmetric positive definite matrix.

    .. math:: A = Q\Lambda Q^\top \quad\mapsto\quad A^{-1/r} = Q\Lambda^{-1/r}Q^\top

    Args:
        matrix: ``(…, N, N)`` symmetric, all eigenvalues positive.
        root: :math:`r`.

    Returns:
        ``(…, N, N)`` the inverse root.

    Raises:
        ValueError: if ``root`` is below 1.

    Cost: an eigendecomposition.

    Example:
        >>> inverse_root(torch.diag(torch.tensor([16.0, 81.0])), 4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.3333]])
    """
    check_at_least("root", root, 1)
    values, vectors = torch.linalg.eigh(matrix)
    least = values[..., -1:] * torch.finfo(matrix.dtype).eps  # what rounding may have made of a small eigenvalue
    product: Tensor = (vectors * values.clamp(min=least).pow(-1 / root).unsqueeze(-2)) @ vectors.mT
    return product


def shampoo_reference(
    p: Tensor, grad: Tensor, left: Tensor, right: Tensor, *, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of Shampoo for a matrix: what rows and what columns have in common is divided out.

    .. math::

        L \leftarrow L + GG^\top, \qquad R \leftarrow R + G^\top G, \qquad
        \theta \leftarrow \theta - \eta\,L^{-1/4}\,G\,R^{-1/4}

    Args:
        p: ``(M, N)`` parameter :math:`\theta`.
        grad: ``(M, N)`` gradient.
        left: ``(M, M)`` at first :math:`\varepsilon I`.
        right: ``(N, N)`` at first :math:`\varepsilon I`.
        lr: learning rate.

    Returns:
        ``(M, N)`` the new parameter, ``(M, M)`` the new ``left`` and ``(N, N)`` the new ``right``.

    References:
        Gupta, Koren and Singer (2018), arXiv:1802.09568, algorithm 1.

    Example:
        >>> g, small = torch.diag(torch.tensor([3.0, -4.0])), 1e-6 * torch.eye(2)
        >>> shampoo_reference(torch.zeros(2, 2), g, small, small, lr=0.1)[0]  # the first step: -0.1 U Vᵀ
        tensor([[-0.1000,  0.0000],
                [ 0.0000,  0.1000]])
    """
    left, right = left + grad @ grad.mT, right + grad.mT @ grad
    return p - lr * inverse_root(left, 4) @ grad @ inverse_root(right, 4), left, right


class Shampoo(GroupedOptimizer):
    r"""Shampoo: for each dimension of a tensor a matrix that says which slices have moved together.

    .. math:: \theta \leftarrow \theta - \eta\,L^{-1/4}\,(G + \lambda\theta)\,R^{-1/4}

    A tensor of :math:`k` dimensions has :math:`k` matrices, each taken to the power :math:`-1/2k`. A dimension longer
    than ``max_dim`` keeps the diagonal of its matrix only.

    Args:
        params: ``(…)`` tensors to train, in float32 or float64, or dictionaries of them with options of their own.
        lr: learning rate.
        eps: what the matrices are at first, times the identity.
        weight_decay: :math:`\lambda`; :math:`\lambda\theta` is added to the gradient.
        precondition_frequency: steps between two computations of the roots.
        max_dim: the longest dimension that gets a whole matrix.

    Raises:
        ValueError: if an option is out of its range, or a parameter is of a half precision.

    References:
        Gupta, Koren and Singer (2018), arXiv:1802.09568, algorithms 1 and 2.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> w.grad = torch.diag(torch.tensor([3.0, -4.0]))
        >>> Shampoo([w], lr=0.1, eps=1e-6).step()
        >>> w.detach()
        tensor([[-0.1000,  0.0000],
                [ 0.0000,  0.1000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-1,
        *,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        precondition_frequency: int = 1,
        max_dim: int = 1024,
    ) -> None:
        frequency = {"precondition_frequency": precondition_frequency, "max_dim": max_dim}
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay} | frequency)

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least("precondition_frequency", options["precondition_frequency"], 1)
        check_at_least("max_dim", options["max_dim"], 0)
        if not options["eps"] > 0:
            raise ValueError(f"eps is {options['eps']}, expected above 0: the first matrices have few directions")

    def _check_parameter(self, p: Tensor) -> None:
        _check_full_precision(p)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = self._with_l2(p, grad, group["weight_decay"])
        renew = (self._count(state) - 1) % group["precondition_frequency"] == 0
        direction = grad
        for i, n in enumerate(grad.shape):
            slices = grad.movedim(i, 0).reshape(n, -1)
            whole = n <= group["max_dim"]
            new = slices @ slices.mT if whole else slices.square().sum(dim=1)
            if f"total_{i}" not in state:
                start = torch.eye(n, dtype=p.dtype, device=p.device) if whole else torch.ones_like(new)
                state[f"total_{i}"] = group["eps"] * start
            total = state[f"total_{i}"].add_(new)
            if renew:
                state[f"root_{i}"] = inverse_root(total, 2 * p.ndim) if whole else total.pow(-1 / (2 * p.ndim))
            direction = _along(direction, state[f"root_{i}"], i)
        p.add_(direction, alpha=-group["lr"])


def soap_reference(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of SOAP for a matrix: Adam, in the basis of the eigenvectors of Shampoo's matrices.

    .. math::

        \begin{aligned}
        m &\leftarrow \beta_1 m + (1-\beta_1)\,G, & v &\leftarrow \beta_2 v + (1-\beta_2)\,(Q_L^\top G\,Q_R)^2, \\
        \theta &\leftarrow (1-\eta\lambda)\,\theta
            - \eta\,Q_L\,\frac{Q_L^\top\hat m\,Q_R}{\sqrt{\hat v} + \varepsilon}\,Q_R^\top. & &
        \end{aligned}

    Args:
        p: ``(M, N)`` parameter :math:`\theta`.
        grad: ``(M, N)`` gradient.
        m: ``(M, N)`` running mean of gradients, at first 0.
        v: ``(M, N)`` running mean of squared rotated gradients, at first 0.
        left: ``(M, M)`` orthogonal :math:`Q_L`.
        right: ``(N, N)`` orthogonal :math:`Q_R`.
        step: number of this step, from 1.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients.
        eps: added to the root.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.

    Returns:
        ``(M, N)`` the new parameter, the new ``m`` and the new ``v``.

    References:
        Vyas et al. (2025), arXiv:2409.11321, algorithm 3, with Adam's corrections.

    Example:
        >>> g, zero, eye = torch.tensor([[5.0, -0.1]]), torch.zeros(1, 2), torch.eye(2)
        >>> soap_reference(zero, g, zero, zero, eye[:1, :1], eye, step=1, lr=0.1)[0]  # not rotated: Adam
        tensor([[-0.1000,  0.1000]])
    """
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * (left.mT @ grad @ right).square()
    m_hat = left.mT @ m @ right / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    direction = left @ (m_hat / (v_hat.sqrt() + eps)) @ right.mT
    return (1 - lr * weight_decay) * p - lr * direction, m, v


class SOAP(GroupedOptimizer):
    r"""SOAP: Adam in the eigenbasis of Shampoo; what is no matrix, and a side longer than ``max_dim``, is not rotated.

    .. math::

        \theta \leftarrow (1-\eta\lambda)\,\theta
        - \eta\,Q_L\,\frac{Q_L^\top\hat m\,Q_R}{\sqrt{\hat v} + \varepsilon}\,Q_R^\top

    The first gradient of a matrix only fixes the basis, as in the authors' code: rotated into its own eigenbasis it is
    diagonal, and Adam would blow the rounding errors beside the diagonal up to full size. Later the basis follows by
    one step of orthogonal iteration at a time.

    Args:
        params: ``(…)`` tensors to train, in float32 or float64, or dictionaries of them with options of their own.
        lr: learning rate.
        betas: what remains of the running means of gradients and of squared gradients; the second also of the matrices.
        eps: added to the root.
        weight_decay: :math:`\lambda`; each step shrinks the parameters by ``lr * weight_decay``.
        precondition_frequency: steps between two turns of the basis.
        max_dim: the longest dimension that is rotated.

    Raises:
        ValueError: if an option is out of its range, or a parameter is of a half precision.

    References:
        Vyas et al. (2025), arXiv:2409.11321, algorithms 3 and 4.

    Example:
        >>> w = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = SOAP([w], lr=0.1, weight_decay=0.0)
        >>> for _ in range(2):
        ...     w.grad = torch.ones(2, 2)
        ...     optimizer.step()
        >>> w.detach()  # one direction of the gradient, one step of 0.1 along u vᵀ
        tensor([[ 0.9500, -0.0500],
                [-0.0500,  0.9500]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_dim: int = 4096,
    ) -> None:
        frequency = {"precondition_frequency": precondition_frequency, "max_dim": max_dim}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay} | frequency)

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least("precondition_frequency", options["precondition_frequency"], 1)
        check_at_least("max_dim", options["max_dim"], 0)

    def _check_parameter(self, p: Tensor) -> None:
        _check_full_precision(p)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        sides = [i for i in range(2) if p.ndim == 2 and p.shape[i] <= group["max_dim"]]
        if not state:
            self._buffers(state, p, "exp_avg", "exp_avg_sq")
            if sides:
                self._begin(grad, state, sides, group["betas"][1])
                return
        beta1, beta2 = group["betas"]
        step = self._count(state)
        rotated = self._rotate(grad, state, sides)
        m, v = state["exp_avg"].lerp_(grad, 1 - beta1), state["exp_avg_sq"]
        v.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
        denominator = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
        direction = self._rotate(m, state, sides).div_(1 - beta1**step) / denominator
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(self._rotate(direction, state, sides, back=True), alpha=-group["lr"])
        for i in sides:
            slices = grad.mT if i else grad
            state[f"total_{i}"].lerp_(slices @ slices.mT, 1 - beta2)
            if step % group["precondition_frequency"] == 0:
                turned = torch.linalg.qr(state[f"total_{i}"] @ state[f"basis_{i}"])[0]
                state[f"basis_{i}"] = turned.contiguous()  # safetensors takes no other

    @staticmethod
    def _begin(grad: Tensor, state: dict[str, Any], sides: list[int], beta: float) -> None:
        for i in sides:
            slices = grad.mT if i else grad
            state[f"total_{i}"] = (1 - beta) * slices @ slices.mT
            # orthogonal iteration keeps the largest eigenvalue in front
            state[f"basis_{i}"] = torch.linalg.eigh(state[f"total_{i}"])[1].flip(-1).contiguous()

    @staticmethod
    def _rotate(x: Tensor, state: dict[str, Any], sides: list[int], *, back: bool = False) -> Tensor:
        for i in sides:
            basis = state[f"basis_{i}"]
            x = _along(x, basis if back else basis.mT, i)
        return x if sides else x.clone()


def _along(x: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiply one dimension of a tensor by a matrix, or by a vector that stands for a diagonal one."""
    moved = x.movedim(dim, -1)
    moved = moved @ factor.mT if factor.ndim == 2 else moved * factor
    return moved.movedim(-1, dim)


def _random_signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    bits = torch.randint(2, like.shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def _check_full_precision(p: Tensor) -> None:
    if p.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a parameter has dtype {p.dtype}, expected float32 or float64: eigenvectors need the digits")
