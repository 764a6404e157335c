r"""Muon: momentum, made orthogonal by a polynomial iteration; steepest descent in the spectral norm.

A matrix :math:`G = U\Sigma V^\top` has its nearest semi-orthogonal matrix :math:`UV^\top`. :func:`newton_schulz` comes
close to it with matrix products alone, which is what accelerators do best.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from llm_study.core.checks import check_at_least
from llm_study.optim.base import GroupedOptimizer, check_range

__all__ = ["COEFFICIENTS", "newton_schulz", "orthogonalize", "muon_reference", "Muon"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
r"""Coefficients of :math:`a\sigma + b\sigma^3 + c\sigma^5` by Jordan et al. (2024), steep at 0, never at rest at 1."""

Scaling = Literal["original", "match_rms_adamw"]


def newton_schulz(
    g: Tensor, *, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS, eps: float = 1e-7
) -> Tensor:
    r"""Bring the singular values of a matrix near 1 with matrix products alone.

    .. math::

        X_0 = \frac{G}{\max(\lVert G \rVert_F, \varepsilon)}, \qquad
        X_{k+1} = aX_k + bX_kX_k^\top X_k + c\,(X_kX_k^\top)^2 X_k

    The singular vectors stay, each singular value goes through :math:`\sigma \mapsto a\sigma + b\sigma^3 + c\sigma^5`.
    With :data:`COEFFICIENTS` the values end between about 0.7 and 1.2, not at 1, after few steps.

    Args:
        g: ``(…, M, N)`` matrices.
        steps: number of iterations.
        coefficients: :math:`a`, :math:`b` and :math:`c`.
        eps: the smallest norm that is divided by.

    Returns:
        ``(…, M, N)``, in the dtype of ``g``, in which all products are computed.

    Raises:
        ValueError: if ``g`` is no matrix, or ``steps`` is negative.

    Cost: ``2 * steps * K * K * (2 * max(M, N) + K)`` FLOPs, with ``K = min(M, N)``.

    References:
        Jordan et al. (2024), the post that introduced Muon.

    Example:
        >>> g = torch.diag(torch.tensor([3.0, 4.0]))
        >>> newton_schulz(g, steps=12, coefficients=(1.5, -0.5, 0.0)).round(decimals=4)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if g.ndim < 2:
        raise ValueError(f"g has shape {tuple(g.shape)}, expected at least 2 dimensions (…, M, N)")
    check_at_least("steps", steps, 0)
    a, b, c = coefficients
    tall = g.shape[-2] > g.shape[-1]
    x: Tensor = g.mT if tall else g  # the smaller square is the cheaper one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(-2, -1) if tall else x


def orthogonalize(g: Tensor) -> Tensor:
    r"""Replace all singular values of a matrix by 1: the limit that :func:`newton_schulz` is an approximation of.

    .. math:: G = U\Sigma V^\top \quad\mapsto\quad UV^\top

    Args:
        g: ``(…, M, N)`` matrices of full rank.

    Returns:
        ``(…, M, N)``, the nearest matrices with orthonormal rows, or columns if ``M > N``.

    Cost: a singular value decomposition.

    References:
        Bernstein and Newhouse (2024), arXiv:2409.20325, proposition 4.

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([3.0, -4.0])))
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    product: Tensor = u @ vt
    return product


def muon_reference(
    p: Tensor,
    grad: Tensor,
    b: Tensor,
    *,
    lr: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
) -> tuple[Tensor, Tensor]:
    r"""One step of Muon, with the exact orthogonal matrix in place of the iteration.

    .. math::

        B \leftarrow \mu B + (1-\mu)\,G, \qquad
        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\sqrt{\max(1, M/N)}\;UV^\top, \qquad
        U\Sigma V^\top = (1-\mu)\,G + \mu B.

    Args:
        p: ``(M, N)`` parameter :math:`\theta`.
        grad: ``(M, N)`` gradient.
        b: ``(M, N)`` momentum, at first 0.
        lr: learning rate.
        momentum: what remains of the momentum, :math:`\mu`.
        nesterov: decompose :math:`(1-\mu)G + \mu B`, otherwise :math:`B`.
        weight_decay: :math:`\lambda`.

    Returns:
        ``(M, N)`` the new parameter, and the new momentum.

    References:
        Jordan et al. (2024), the post that introduced Muon.

    Example:
        >>> g = torch.diag(torch.tensor([3.0, -4.0]))
        >>> muon_reference(torch.zeros(2, 2), g, torch.zeros(2, 2), lr=0.1)[0]
        tensor([[-0.1000,  0.0000],
                [ 0.0000,  0.1000]])
    """
    M, N = p.shape
    b = momentum * b + (1 - momentum) * grad
    direction = orthogonalize((1 - momentum) * grad + momentum * b if nesterov else b)
    return (1 - lr * weight_decay) * p - lr * math.sqrt(max(1, M / N)) * direction, b


class Muon(GroupedOptimizer):
    r"""Muon, for the matrices inside a network; embeddings, norms, biases and the last layer go to AdamW.

    .. math:: \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,s(M, N)\,\operatorname{NS}\bigl((1-\mu)\,G + \mu B\bigr)

    The iteration runs in the dtype of the parameter (PyTorch's in bfloat16).

    Args:
        params: ``(M, N)`` matrices to train, or dictionaries of them with options of their own.
        lr: learning rate.
        momentum: what remains of the momentum, :math:`\mu`.
        nesterov: orthogonalize :math:`(1-\mu)G + \mu B`, otherwise :math:`B`.
        weight_decay: :math:`\lambda`.
        ns_coefficients: of :func:`newton_schulz`.
        ns_steps: of :func:`newton_schulz`.
        eps: of :func:`newton_schulz`.
        adjust_lr_fn: what multiplies the step: ``"original"`` is ``max(1, M / N) ** 0.5``, and ``"match_rms_adamw"``
            is ``0.2 * max(M, N) ** 0.5``, with which the learning rate of AdamW fits.

    Raises:
        ValueError: if a parameter is no matrix, an option is out of its range, or the scaling is unknown.

    References:
        Jordan et al. (2024), the post that introduced Muon; the second scaling: Liu et al. (2025), arXiv:2502.16982.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> w.grad = torch.diag(torch.tensor([30.0, -0.4]))
        >>> Muon([w], lr=0.1, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=20).step()
        >>> w.detach()  # each direction moves by the learning rate, whatever its singular value
        tensor([[-0.1000,  0.0000],
                [ 0.0000,  0.1000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr_fn: Scaling = "original",
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "eps": eps}
        iteration = {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, defaults | iteration)

    def _check(self, options: dict[str, Any]) -> None:
        check_range("momentum", options["momentum"], high=1.0)
        check_at_least("ns_steps", options["ns_steps"], 1)
        if options["adjust_lr_fn"] not in ("original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn is {options['adjust_lr_fn']!r}, expected 'original' or 'match_rms_adamw'")

    def _check_parameter(self, p: Tensor) -> None:
        if p.ndim != 2:
            raise ValueError(f"a parameter has shape {tuple(p.shape)}, expected a matrix (M, N): give it to AdamW")

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        b = self._buffers(state, p, "momentum_buffer")[0].lerp_(grad, 1 - group["momentum"])
        direction = newton_schulz(
            grad.lerp(b, group["momentum"]) if group["nesterov"] else b,
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        M, N = p.shape
        scale = math.sqrt(max(1, M / N)) if group["adjust_lr_fn"] == "original" else 0.2 * math.sqrt(max(M, N))
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)
