r"""Low-rank and other parameter-efficient weight differences: what each variant of LoRA adds to a frozen matrix.

A frozen matrix is ``(O, I)``, as :class:`torch.nn.Linear` stores it: ``O`` outputs, ``I`` inputs, ``y = x @ weight.T``.
Most functions here return a difference :math:`\Delta W` of that shape; ``R`` is the rank. The factors of a low-rank
difference are ``a`` of shape ``(R, I)`` and ``b`` of shape ``(O, R)``, so that :math:`\Delta W = BA`. Functions whose
name ends in ``_factors`` compute such a pair from a matrix. Shapes of everything trainable are the ones that the
library peft stores.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal, check_ndim

__all__ = [
    "dora_weight",
    "dora_weight_detached",
    "dora_backward",
    "principal_factors",
    "orthonormal_factors",
    "gradient_factors",
    "loftq_factors",
    "svd_delta",
    "orthogonality_penalty",
    "rank_budget",
    "smoothed_importance",
    "triplet_importance",
    "keep_most_important",
    "vera_delta",
    "topk_mixture",
    "vblora_factors",
    "vblora_delta",
    "loha_delta",
    "lokr_delta",
    "kron_linear",
    "factor_pair",
    "mora_size",
    "mora_delta",
    "mora_linear",
    "randlora_factors",
    "randlora_delta",
    "miss_delta",
    "miss_linear",
    "fourier_delta_reference",
    "fourier_delta",
]


def dora_weight(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    r"""The whole weight of DoRA: direction from ``weight + delta``, length of each row from ``magnitude``.

    .. math:: w'_i = m_i\, \frac{v_i}{\lVert v_i \rVert}, \qquad V = W + \Delta W

    The gradient runs through the norm; :func:`dora_weight_detached` holds it fixed, which is what one trains with.

    Args:
        weight: ``(O, I)`` frozen weight.
        delta: ``(O, I)`` low-rank difference.
        magnitude: ``(O,)`` length of each row.

    Returns:
        ``(O, I)`` weight whose row ``i`` has the length ``abs(magnitude[i])``.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``4 * O * I`` FLOPs.

    References:
        Liu et al. (2024), arXiv:2402.09353, equation (5).

    Example:
        >>> dora_weight(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([10.0]))
        tensor([[6., 8.]])
    """
    _check_dora(weight, delta, magnitude)
    direction = weight + delta
    norm: Tensor = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return magnitude[:, None] / norm * direction


def dora_weight_detached(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    r"""The weight of :func:`dora_weight` with the norm held constant in the backward pass.

    The value is the same; the gradient of ``delta`` takes the quotient :math:`m_i / \lVert v_i \rVert` for a constant,
    so it keeps its component along the direction and no graph of the norm is stored.

    Args:
        weight: ``(O, I)`` frozen weight.
        delta: ``(O, I)`` low-rank difference.
        magnitude: ``(O,)`` length of each row.

    Returns:
        ``(O, I)`` weight whose row ``i`` has the length ``abs(magnitude[i])``.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``4 * O * I`` FLOPs.

    References:
        Liu et al. (2024), arXiv:2402.09353, section 4.3.

    Example:
        >>> delta = torch.zeros(1, 2, requires_grad=True)
        >>> dora_weight_detached(torch.tensor([[3.0, 4.0]]), delta, torch.tensor([10.0])).sum().backward()
        >>> delta.grad  # 10 / 5, in every direction
        tensor([[2., 2.]])
    """
    _check_dora(weight, delta, magnitude)
    direction = weight + delta
    norm: Tensor = torch.linalg.vector_norm(direction.detach(), dim=1, keepdim=True)
    return magnitude[:, None] / norm * direction


def dora_backward(direction: Tensor, magnitude: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`dora_weight`, derived by hand, row by row.

    With :math:`\hat v = v / \lVert v \rVert` and the gradient :math:`g` of the row :math:`w' = m \hat v`,

    .. math:: \bar v = \frac{m}{\lVert v \rVert} \left(I - \hat v \hat v^\top\right) g, \qquad \bar m = g \cdot \hat v .

    Args:
        direction: ``(O, I)`` the sum ``weight + delta``.
        magnitude: ``(O,)`` length of each row.
        grad: ``(O, I)`` gradient of the loss with respect to the weight.

    Returns:
        ``(O, I)`` and ``(O,)``, the gradients of ``direction`` and ``magnitude``; each row of the first is
        orthogonal to the same row of ``direction``.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``8 * O * I`` FLOPs.

    References:
        Liu et al. (2024), arXiv:2402.09353, section 4.2.

    Example:
        >>> dora_backward(torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]), torch.tensor([[1.0, 1.0]]))
        (tensor([[ 0.1600, -0.1200]]), tensor([1.4000]))
    """
    _check_dora(direction, grad, magnitude)
    norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    unit = direction / norm
    along = (grad * unit).sum(1, keepdim=True)
    return (magnitude[:, None] / norm) * (grad - along * unit), along[:, 0]


def principal_factors(weight: Tensor, rank: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Factors whose product is the best approximation of a matrix by one of rank ``R``: the initialization of PiSSA.

    .. math::

        A = \sqrt{\Sigma_R / s}\; V_R^\top, \qquad B = U_R \sqrt{\Sigma_R / s}, \qquad s\,BA = U_R \Sigma_R V_R^\top

    Args:
        weight: ``(O, I)`` matrix.
        rank: how many singular values to take, at most the smaller side.
        scale: the factor :math:`s` that the product will be multiplied with.

    Returns:
        ``(R, I)`` and ``(O, R)``, the factors ``a`` and ``b``.

    Raises:
        ValueError: if the rank is below 1 or above the smaller side of the matrix.

    Cost: a singular value decomposition, ``O(O * I * min(O, I))`` FLOPs.

    References:
        Meng et al. (2024), arXiv:2404.02948.

    Example:
        >>> a, b = principal_factors(torch.diag(torch.tensor([1.0, 4.0])), 1)
        >>> b @ a
        tensor([[0., 0.],
                [0., 4.]])
    """
    _check_rank(rank, weight)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def orthonormal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""The first ``R`` columns and rows of a QR decomposition: the initialization of OLoRA.

    .. math:: W = QR, \qquad B = Q_{:, :r}, \quad A = R_{:r, :}, \qquad B^\top B = I

    Args:
        weight: ``(O, I)`` matrix.
        rank: how many columns of ``Q`` to take, at most the smaller side.

    Returns:
        ``(R, I)`` and ``(O, R)``, the factors ``a`` and ``b``; the columns of ``b`` are orthonormal.

    Raises:
        ValueError: if the rank is below 1 or above the smaller side of the matrix.

    Cost: a QR decomposition, ``O(O * I * min(O, I))`` FLOPs.

    References:
        Büyükakyüz (2024), arXiv:2406.01775.

    Example:
        >>> a, b = orthonormal_factors(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), 1)
        >>> (b @ a).abs()  # the first column is reproduced
        tensor([[2., 1.],
                [0., 0.]])
    """
    _check_rank(rank, weight)
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def gradient_factors(gradient: Tensor, rank: int, *, gamma: float = 16.0) -> tuple[Tensor, Tensor]:
    r"""Factors whose first step of training follows the full gradient as well as rank ``2 * R`` can: LoRA-GA.

    .. math:: A = O^{1/4} \gamma^{-1/2}\, V_{1 \dots r}^\top, \qquad B = O^{1/4} \gamma^{-1/2}\, U_{r+1 \dots 2r}

    with the singular vectors of the gradient :math:`G = U \Sigma V^\top` of the frozen weight.

    Args:
        gradient: ``(O, I)`` gradient of the loss with respect to the weight.
        rank: rank of the factors; ``2 * rank`` at most the smaller side.
        gamma: the constant :math:`\gamma` that keeps the start small.

    Returns:
        ``(R, I)`` and ``(O, R)``, the factors ``a`` and ``b``.

    Raises:
        ValueError: if the rank is below 1 or twice the rank is above the smaller side of the matrix.

    Cost: a singular value decomposition, ``O(O * I * min(O, I))`` FLOPs.

    References:
        Wang et al. (2024), arXiv:2407.05000.

    Example:
        >>> a, b = gradient_factors(torch.diag(torch.tensor([3.0, 2.0])), 1, gamma=2**0.5)
        >>> a.abs(), b.abs()
        (tensor([[1., 0.]]), tensor([[0.],
                [1.]]))
    """
    check_at_least("rank", rank, 1)
    _check_rank(2 * rank, gradient, name="twice the rank")
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    factor = gradient.shape[0] ** 0.25 / gamma**0.5
    return factor * vh[:rank], factor * u[:, rank : 2 * rank]


def loftq_factors(
    weight: Tensor, rank: int, *, quantize: Callable[[Tensor], Tensor], scale: float = 1.0, steps: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    r"""A quantized matrix, and the factors that make up best for what it lost: the initialization of LoftQ.

    Starting from :math:`BA = 0`, each step quantizes what the factors leave, and takes new factors from what the
    quantization leaves:

    .. math::

        Q_t = q(W - s\,B_{t-1}A_{t-1}), \qquad
        B_t, A_t = \operatorname*{arg\,min}_{B, A} \lVert W - Q_t - s\,BA \rVert_F

    The second half of a step is the best there is. The first is not, so the error need not fall from step to step.

    Args:
        weight: ``(O, I)`` matrix.
        rank: rank of the factors, at most the smaller side.
        quantize: ``(O, I)`` in and out: returns what is left of a matrix when it is quantized.
        scale: the factor :math:`s` that the product will be multiplied with.
        steps: how many steps to take.

    Returns:
        ``(O, I)``, ``(R, I)`` and ``(O, R)``: the matrix that :math:`q` returned last, and the factors ``a`` and ``b``.

    Raises:
        ValueError: if the rank is below 1 or above the smaller side of the matrix, or ``steps`` is below 1.

    Cost: ``steps`` singular value decompositions, ``O(O * I * min(O, I))`` FLOPs each.

    References:
        Li et al. (2023), arXiv:2310.08659, algorithm 1.

    Example:
        >>> weight = torch.tensor([[1.25, 2.5], [0.5, 1.0]])
        >>> q, a, b = loftq_factors(weight, 1, quantize=torch.floor)
        >>> torch.allclose(q + b @ a, weight)  # what floor leaves, [[0.25, 0.5], [0.5, 0.0]], has rank 2
        False
        >>> (weight - q - b @ a).norm() < (weight - q).norm()
        tensor(True)
    """
    _check_rank(rank, weight)
    check_at_least("steps", steps, 1)
    a, b = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
    for _ in range(steps):
        quantized = quantize(weight - scale * b @ a)
        a, b = principal_factors(weight - quantized, rank, scale=scale)
    return quantized, a, b


def svd_delta(a: Tensor, e: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""The difference of AdaLoRA: :math:`s\,P \Lambda Q`, in the form of a singular value decomposition.

    Args:
        a: ``(R, I)`` right factor :math:`Q`; its rows are kept near orthonormal by :func:`orthogonality_penalty`.
        e: ``(R, 1)`` diagonal of :math:`\Lambda`; a zero switches a triplet off, and the sign is free.
        b: ``(O, R)`` left factor :math:`P`.
        scale: the factor :math:`s`.

    Returns:
        ``(O, I)`` difference, of rank at most the number of non-zero entries of ``e``.

    Raises:
        ValueError: if the ranks of the factors differ.

    Cost: ``2 * O * I * R`` FLOPs.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.1.

    Example:
        >>> svd_delta(torch.eye(2), torch.tensor([[5.0], [0.0]]), torch.eye(2))
        tensor([[5., 0.],
                [0., 0.]])
    """
    _check_factors(a, b)
    check_equal("shape of e", tuple(e.shape), "(R, 1)", (a.shape[0], 1))
    return scale * (b @ (e * a))


def orthogonality_penalty(a: Tensor, b: Tensor) -> Tensor:
    r"""How far the factors of AdaLoRA are from orthonormal.

    .. math:: \lVert P^\top P - I\rVert_F^2 + \lVert QQ^\top - I\rVert_F^2

    Args:
        a: ``(R, I)`` right factor :math:`Q`.
        b: ``(O, R)`` left factor :math:`P`.

    Returns:
        ``()`` the penalty, 0 for orthonormal factors.

    Raises:
        ValueError: if the ranks of the factors differ.

    Cost: ``2 * R * R * (O + I)`` FLOPs.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.1.

    Example:
        >>> orthogonality_penalty(torch.eye(2), 2 * torch.eye(2))  # each diagonal entry is off by 3
        tensor(18.)
    """
    _check_factors(a, b)
    eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    return (b.mT @ b - eye).square().sum() + (a @ a.mT - eye).square().sum()


def rank_budget(step: int, *, total: int, initial: int, final: int, warmup: int = 0, cooldown: int = 0) -> int:
    r"""How many triplets AdaLoRA may keep at a step: constant, then falling with the third power, then constant.

    .. math:: b(t) = b_T + (b_0 - b_T)\left(1 - \frac{t - t_i}{T - t_i - t_f}\right)^{3}

    Args:
        step: the step, from 0.
        total: number of steps of the whole training.
        initial: the budget at the start, the sum of all initial ranks.
        final: the budget at the end.
        warmup: steps at the start with the initial budget.
        cooldown: steps at the end with the final budget.

    Returns:
        The budget, rounded down.

    Raises:
        ValueError: if warmup and cooldown leave no step between, or the final budget is above the initial.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.3 and appendix A, whose numerator :math:`t - t_i - t_f` would
        start above :math:`b_0`; this is the budget of peft.

    Example:
        >>> [rank_budget(step, total=10, initial=12, final=4, warmup=2, cooldown=2) for step in range(0, 11, 2)]
        [12, 12, 6, 4, 4, 4]
    """
    check_at_least("total", total, warmup + cooldown + 1, hint="leave steps between warmup and cooldown")
    check_at_least("initial", initial, final, hint="the budget only falls")
    if step <= warmup:
        return initial
    if step > total - cooldown:
        return final
    left = 1 - (step - warmup) / (total - cooldown - warmup)
    return int((initial - final) * left**3 + final)


def smoothed_importance(
    parameter: Tensor, gradient: Tensor, mean: Tensor, spread: Tensor, *, beta1: float = 0.85, beta2: float = 0.85
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of AdaLoRA's importance of single numbers: sensitivity, smoothed, times its uncertainty.

    .. math::

        I = \lvert w\, \bar w \rvert, \qquad \bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \qquad
        \bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) \lvert I - \bar I \rvert, \qquad s = \bar I\, \bar U

    Args:
        parameter: ``(…)`` parameter.
        gradient: ``(…)`` its gradient.
        mean: ``(…)`` the smoothed sensitivity :math:`\bar I` so far, zeros at the start.
        spread: ``(…)`` the smoothed uncertainty :math:`\bar U` so far, zeros at the start.
        beta1: how slowly the sensitivity follows.
        beta2: how slowly the uncertainty follows.

    Returns:
        ``(…)`` three times, the importance ``s``, and ``mean`` and ``spread`` for the next step.

    Cost: a few operations per number.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.2.

    Example:
        >>> zero = torch.zeros(1)
        >>> smoothed_importance(torch.tensor([2.0]), torch.tensor([-3.0]), zero, zero, beta1=0.5, beta2=0.5)
        (tensor([4.5000]), tensor([3.]), tensor([1.5000]))
    """
    sensitivity = (parameter * gradient).abs()
    mean = beta1 * mean + (1 - beta1) * sensitivity
    spread = beta2 * spread + (1 - beta2) * (sensitivity - mean).abs()
    return mean * spread, mean, spread


def triplet_importance(a: Tensor, e: Tensor, b: Tensor) -> Tensor:
    r"""The importance of each triplet of AdaLoRA: that of its singular value plus the means over its two vectors.

    Args:
        a: ``(R, I)`` importance of the entries of the right factor.
        e: ``(R, 1)`` importance of the diagonal.
        b: ``(O, R)`` importance of the entries of the left factor.

    Returns:
        ``(R,)`` importance of the triplets.

    Raises:
        ValueError: if the ranks differ.

    Cost: ``R * (O + I)`` FLOPs.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.2.

    Example:
        >>> triplet_importance(torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0]]), torch.tensor([[4.0], [6.0]]))
        tensor([17.])
    """
    _check_factors(a, b)
    return e[:, 0] + a.mean(1) + b.mean(0)


def keep_most_important(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Choose the triplets to keep, over all matrices together.

    Args:
        scores: ``(R,)`` importance of the triplets, one tensor for each matrix.
        budget: how many triplets to keep in all.

    Returns:
        ``(R,)`` boolean masks, one for each matrix, True for what is kept. Triplets as important as the best of
        those that must go go too, so that fewer than the budget may stay.

    Raises:
        ValueError: if the budget is negative.

    Cost: selecting one number of all scores.

    References:
        Zhang et al. (2023), arXiv:2303.10512, section 3.2.

    Example:
        >>> keep_most_important([torch.tensor([1.0, 5.0]), torch.tensor([4.0, 2.0])], 2)
        [tensor([False,  True]), tensor([ True, False])]
    """
    check_at_least("budget", budget, 0)
    every = torch.cat(list(scores))
    if budget >= len(every):
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    threshold = every.kthvalue(len(every) - budget).values
    return [score > threshold for score in scores]


def vera_delta(a: Tensor, b: Tensor, lambda_d: Tensor, lambda_b: Tensor) -> Tensor:
    r"""The difference of VeRA: two frozen random matrices that all layers share, and two trained vectors.

    .. math:: \Delta W = \Lambda_b\, B\, \Lambda_d\, A

    Args:
        a: ``(R, I)`` frozen random matrix.
        b: ``(O, R)`` frozen random matrix.
        lambda_d: ``(R,)`` trained scale of each rank-one term.
        lambda_b: ``(O,)`` trained scale of each output; zeros at the start.

    Returns:
        ``(O, I)`` difference.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``2 * O * I * R`` FLOPs.

    References:
        Kopiczko et al. (2024), arXiv:2310.11454.

    Example:
        >>> vera_delta(torch.ones(1, 2), torch.ones(2, 1), torch.tensor([3.0]), torch.tensor([1.0, 2.0]))
        tensor([[3., 3.],
                [6., 6.]])
    """
    _check_factors(a, b)
    check_equal("shape of lambda_d", tuple(lambda_d.shape), "(R,)", (a.shape[0],))
    check_equal("shape of lambda_b", tuple(lambda_b.shape), "(O,)", (b.shape[0],))
    return (lambda_b[:, None] * b) @ (lambda_d[:, None] * a)


def topk_mixture(logits: Tensor, bank: Tensor, *, topk: int) -> Tensor:
    r"""A mixture of the ``topk`` vectors of a bank with the largest logits, weighted by their softmax.

    Args:
        logits: ``(…, N)`` one logit for each vector of the bank.
        bank: ``(N, C)`` shared vectors.
        topk: how many vectors to mix.

    Returns:
        ``(…, C)`` mixtures. Where the choice of vectors does not change, the mixture is differentiable.

    Raises:
        ValueError: if there are not as many logits as vectors, or ``topk`` is not between 1 and ``N``.

    Cost: ``2 * topk * C`` FLOPs for each mixture.

    References:
        Li et al. (2024), arXiv:2405.15179.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
        >>> topk_mixture(torch.tensor([0.0, 0.0, -5.0]), bank, topk=2)
        tensor([0.5000, 0.5000])
    """
    check_equal("number of logits", logits.shape[-1], "number of vectors", bank.shape[0])
    check_at_least("topk", topk, 1)
    check_at_least("number of vectors", bank.shape[0], topk, hint="a mixture takes each vector once")
    values, chosen = logits.topk(topk, dim=-1)
    return (values.softmax(-1)[..., None] * bank[chosen]).sum(-2)


def vblora_factors(logits_a: Tensor, logits_b: Tensor, bank: Tensor, *, topk: int) -> tuple[Tensor, Tensor]:
    r"""The factors of VB-LoRA, pieced together from mixtures of the vectors of one bank.

    Args:
        logits_a: ``(R, I / C, N)`` which vectors make up each piece of each row of ``A``.
        logits_b: ``(O / C, R, N)`` which vectors make up each piece of each column of ``B``.
        bank: ``(N, C)`` vectors that all layers share.
        topk: how many vectors each piece mixes.

    Returns:
        ``(R, I)`` and ``(O, R)``, the factors ``a`` and ``b``.

    Raises:
        ValueError: if the ranks differ, or :func:`topk_mixture` cannot mix.

    Cost: ``2 * topk * R * (O + I)`` FLOPs.

    References:
        Li et al. (2024), arXiv:2405.15179.

    Example:
        >>> a, b = vblora_factors(torch.zeros(1, 2, 1), torch.zeros(1, 1, 1), torch.tensor([[1.0, 2.0]]), topk=1)
        >>> a, b
        (tensor([[1., 2., 1., 2.]]), tensor([[1.],
                [2.]]))
    """
    check_equal("rank of logits_a", logits_a.shape[0], "rank of logits_b", logits_b.shape[1])
    a = topk_mixture(logits_a, bank, topk=topk).flatten(1)  # (R, I/C, C) → (R, I)
    b = topk_mixture(logits_b, bank, topk=topk).mT.flatten(0, 1)  # (O/C, R, C) → (O, R)
    return a, b


def vblora_delta(logits_a: Tensor, logits_b: Tensor, bank: Tensor, *, topk: int) -> Tensor:
    r"""The difference of VB-LoRA: low-rank factors pieced together from mixtures of the vectors of one bank.

    Args:
        logits_a: ``(R, I / C, N)`` which vectors make up each piece of each row of ``A``.
        logits_b: ``(O / C, R, N)`` which vectors make up each piece of each column of ``B``.
        bank: ``(N, C)`` vectors that all layers share.
        topk: how many vectors each piece mixes.

    Returns:
        ``(O, I)`` difference :math:`BA`.

    Cost: ``2 * O * I * R`` FLOPs.

    References:
        Li et al. (2024), arXiv:2405.15179.

    Example:
        >>> bank = torch.tensor([[1.0, 2.0]])
        >>> vblora_delta(torch.zeros(1, 2, 1), torch.zeros(1, 1, 1), bank, topk=1)
        tensor([[1., 2., 1., 2.],
                [2., 4., 2., 4.]])
    """
    a, b = vblora_factors(logits_a, logits_b, bank, topk=topk)
    return b @ a


def loha_delta(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""The difference of LoHa: the elementwise product of two low-rank matrices, of rank at most ``R * R``.

    .. math:: \Delta W = s\,(A_1 B_1) \circ (A_2 B_2)

    Args:
        w1_a: ``(O, R)`` left factor of the first matrix.
        w1_b: ``(R, I)`` right factor of the first matrix.
        w2_a: ``(O, R)`` left factor of the second matrix.
        w2_b: ``(R, I)`` right factor of the second matrix; zeros at the start.
        scale: the factor :math:`s`.

    Returns:
        ``(O, I)`` difference.

    Raises:
        ValueError: if the ranks of a pair of factors differ, or the two products have different shapes.

    Cost: ``4 * O * I * R`` FLOPs; the whole difference has to be written out.

    References:
        Hyeon-Woo et al. (2022), arXiv:2108.06098 (FedPara); Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> one, two = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 3.0]])
        >>> loha_delta(one, two, one, two)
        tensor([[ 1.,  9.],
                [ 4., 36.]])
    """
    _check_factors(w1_b, w1_a)
    _check_factors(w2_b, w2_a)
    first, second = w1_a @ w1_b, w2_a @ w2_b
    check_equal("shape of the first product", tuple(first.shape), "shape of the second", tuple(second.shape))
    return scale * first * second


def lokr_delta(w1: Tensor, w2: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""The difference of LoKr: a Kronecker product, whose rank is the product of the ranks of its factors.

    .. math:: \Delta W = s\; W_1 \otimes W_2

    Args:
        w1: ``(O1, I1)`` first factor.
        w2: ``(O2, I2)`` second factor, often itself a product of rank ``R``.
        scale: the factor :math:`s`.

    Returns:
        ``(O1 * O2, I1 * I2)`` difference.

    Raises:
        ValueError: if a factor is not a matrix.

    Cost: ``O1 * I1 * O2 * I2`` FLOPs; :func:`kron_linear` applies it without writing it out.

    References:
        Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> lokr_delta(torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[ 1.,  2., 10., 20.],
                [ 3.,  4., 30., 40.]])
    """
    check_ndim("w1", w1.shape, ("O1", "I1"))
    check_ndim("w2", w2.shape, ("O2", "I2"))
    return scale * torch.kron(w1, w2)


def kron_linear(x: Tensor, w1: Tensor, w2: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""Apply a Kronecker product to vectors without writing it out: :math:`(W_1 \otimes W_2)\,x = W_1 X W_2^\top`.

    Here :math:`X` is the vector laid out row by row as an ``(I1, I2)`` matrix.

    Args:
        x: ``(…, I1 * I2)`` input.
        w1: ``(O1, I1)`` first factor.
        w2: ``(O2, I2)`` second factor.
        scale: factor on the result.

    Returns:
        ``(…, O1 * O2)``, the same as ``x @ lokr_delta(w1, w2, scale=scale).T``.

    Raises:
        ValueError: if the width of ``x`` is not the product of the widths of the factors.

    Cost: ``2 * I1 * I2 * O2 + 2 * O1 * I1 * O2`` FLOPs for each vector, instead of ``2 * O1 * O2 * I1 * I2``.

    References:
        Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> kron_linear(torch.ones(4), torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([33., 77.])
    """
    check_equal("width of x", x.shape[-1], "product of the widths of w1 and w2", w1.shape[1] * w2.shape[1])
    matrix = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])
    return scale * (w1 @ (matrix @ w2.mT)).flatten(-2)


def factor_pair(number: int, *, near: int = -1) -> tuple[int, int]:
    """Split a width into two factors for :func:`lokr_delta`, the smaller first.

    Args:
        number: the width.
        near: the wanted first factor; if it does not divide, the largest divisor below it that keeps the pair balanced.
            −1 asks for the pair nearest to the square root.

    Returns:
        Two numbers whose product is the width. If ``near`` divides it, the first is ``near``.

    Raises:
        ValueError: if the width is below 1, or ``near`` is neither −1 nor at least 1.

    References:
        The rule that LyCORIS and peft use: Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> factor_pair(24), factor_pair(127), factor_pair(128, near=4), factor_pair(128, near=6)
        ((4, 6), (1, 127), (4, 32), (4, 32))
    """
    check_at_least("number", number, 1)
    if near != -1:
        check_at_least("near", near, 1, hint="or -1 for the most balanced pair")
        if number % near == 0:
            return near, number // near
    limit = math.isqrt(number) if near == -1 else min(near, math.isqrt(number))
    first = max(divisor for divisor in range(1, limit + 1) if number % divisor == 0)
    return first, number // first


def mora_size(in_features: int, out_features: int, rank: int) -> int:
    r"""The side of MoRA's square matrix that has as many numbers as LoRA's two factors, rounded down.

    .. math:: \hat r = \left\lfloor \sqrt{(O + I)\,r} \right\rfloor

    Args:
        in_features: width of the input, ``I``.
        out_features: width of the output, ``O``.
        rank: rank of the LoRA to compare with.

    Returns:
        The side of the square matrix.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Jiang et al. (2024), arXiv:2405.12130; the code of its authors rounds to the nearest number instead.

    Example:
        >>> mora_size(4096, 4096, 8)
        256
    """
    check_at_least("rank", rank, 1)
    return math.isqrt((in_features + out_features) * rank)


def mora_delta(matrix: Tensor, in_features: int, out_features: int) -> Tensor:
    r"""The difference of MoRA with shared rows and columns: a square matrix between fixed compression and expansion.

    .. math:: \Delta W_{pq} = M_{\,p \bmod \hat r,\; q \bmod \hat r}

    Args:
        matrix: ``(Q, Q)`` trained square matrix; zeros at the start.
        in_features: width of the input, ``I``, at least ``Q``.
        out_features: width of the output, ``O``, at least ``Q``.

    Returns:
        ``(O, I)`` difference, of the same rank as ``matrix``.

    Raises:
        ValueError: if the matrix is not square or larger than a side of the weight.

    Cost: ``O * I`` copies; :func:`mora_linear` applies it without writing it out.

    References:
        Jiang et al. (2024), arXiv:2405.12130, the variant that shares rows and columns.

    Example:
        >>> mora_delta(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 3, 2)
        tensor([[1., 2., 1.],
                [3., 4., 3.]])
    """
    _check_square(matrix, in_features, out_features)
    size = matrix.shape[0]
    rows = torch.arange(out_features, device=matrix.device) % size
    columns = torch.arange(in_features, device=matrix.device) % size
    return matrix[rows[:, None], columns]


def mora_linear(x: Tensor, matrix: Tensor, out_features: int) -> Tensor:
    """Apply :func:`mora_delta` without writing it out: add up the inputs in groups, multiply, repeat the outputs.

    Args:
        x: ``(…, I)`` input.
        matrix: ``(Q, Q)`` square matrix.
        out_features: width of the output, ``O``.

    Returns:
        ``(…, O)``, the same as ``x @ mora_delta(matrix, I, O).T``.

    Raises:
        ValueError: if the matrix is not square or larger than a side of the weight.

    Cost: ``I + 2 * Q * Q`` FLOPs for each vector.

    References:
        Jiang et al. (2024), arXiv:2405.12130, the variant that shares rows and columns.

    Example:
        >>> mora_linear(torch.ones(3), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2)
        tensor([ 4., 10.])
    """
    _check_square(matrix, x.shape[-1], out_features)
    return _repeat(_sum_shards(x, matrix.shape[0]) @ matrix.mT, out_features)


def randlora_factors(a: Tensor, b: Tensor, lambda_: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two factors of RandLoRA's sum, written side by side: a product of them is the sum of :func:`randlora_delta`.

    Args:
        a: ``(R, 1, M)`` frozen random matrix; ``M`` is the smaller side of the weight.
        b: ``(L, N, R)`` frozen random matrices; ``L`` is the larger side.
        lambda_: ``(R, N)`` trained scales.
        gamma: ``(N, M)`` trained scales.

    Returns:
        ``(R * N, M)`` scaled copies of ``a``, and ``(L, R * N)``.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``2 * R * N * M`` FLOPs.

    References:
        Albert et al. (2025), arXiv:2502.00987.

    Example:
        >>> a, b = torch.ones(1, 1, 2), torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
        >>> randlora_factors(a, b, torch.tensor([[2.0, 3.0]]), torch.eye(2))[0]
        tensor([[2., 0.],
                [0., 3.]])
    """
    (R, _, M), N = a.shape, b.shape[1]
    check_equal("shape of lambda", tuple(lambda_.shape), "(R, N)", (R, N))
    check_equal("shape of gamma", tuple(gamma.shape), "(N, M)", (N, M))
    check_equal("rank of b", b.shape[2], "rank of a", R)
    return (lambda_[..., None] * a * gamma).flatten(0, 1), b.flatten(1)


def randlora_delta(a: Tensor, b: Tensor, lambda_: Tensor, gamma: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""The difference of RandLoRA: a weighted sum of random low-rank matrices, of full rank.

    .. math:: \Delta W = s \sum_{n=1}^{N} B_n\, \operatorname{diag}(\lambda_n)\, A\, \operatorname{diag}(\gamma_n)

    Args:
        a: ``(R, 1, M)`` frozen random matrix; ``M`` is the smaller side of the weight.
        b: ``(L, N, R)`` frozen random matrices; ``L`` is the larger side. Column ``r * N + n`` of ``b.flatten(1)``
            is column ``r`` of :math:`B_n`: the order that peft multiplies in.
        lambda_: ``(R, N)`` trained scales, zeros at the start.
        gamma: ``(N, M)`` trained scales.
        scale: the factor :math:`s`.

    Returns:
        ``(L, M)`` difference; the caller transposes it if the weight has fewer outputs than inputs.

    Cost: ``2 * L * M * N * R`` FLOPs, that is about ``2 * L * M * M``.

    References:
        Albert et al. (2025), arXiv:2502.00987.

    Example:
        >>> a, b = torch.ones(1, 1, 2), torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
        >>> randlora_delta(a, b, torch.tensor([[2.0, 3.0]]), torch.eye(2))  # a diagonal, of full rank
        tensor([[2., 0.],
                [0., 3.]])
    """
    small, large = randlora_factors(a, b, lambda_, gamma)
    return scale * (large @ small)


def miss_delta(block: Tensor, in_features: int) -> Tensor:
    r"""The difference of MiSS: ``R`` trained columns, repeated until the width of the input is filled.

    .. math:: \Delta W_{pq} = D_{\,q \bmod R,\; p}

    Args:
        block: ``(R, O)`` trained matrix :math:`D`; zeros at the start.
        in_features: width of the input, ``I``, at least ``R``.

    Returns:
        ``(O, I)`` difference, of rank at most ``R``.

    Raises:
        ValueError: if ``R`` is above the width of the input.

    Cost: ``O * I`` copies; :func:`miss_linear` applies it without writing it out.

    References:
        Kang and Yin (2024), arXiv:2409.15371.

    Example:
        >>> miss_delta(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 5)
        tensor([[1., 3., 1., 3., 1.],
                [2., 4., 2., 4., 2.]])
    """
    check_at_least("in_features", in_features, block.shape[0], hint="choose a smaller rank")
    return block.mT[:, torch.arange(in_features, device=block.device) % block.shape[0]]


def miss_linear(x: Tensor, block: Tensor) -> Tensor:
    """Apply :func:`miss_delta` without writing it out: add up the inputs in groups, then one small product.

    Args:
        x: ``(…, I)`` input.
        block: ``(R, O)`` trained matrix.

    Returns:
        ``(…, O)``, the same as ``x @ miss_delta(block, I).T``.

    Raises:
        ValueError: if ``R`` is above the width of the input.

    Cost: ``I + 2 * R * O`` FLOPs for each vector, about half of LoRA's.

    References:
        Kang and Yin (2024), arXiv:2409.15371.

    Example:
        >>> miss_linear(torch.ones(5), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([ 9., 14.])
    """
    check_at_least("in_features", x.shape[-1], block.shape[0], hint="choose a smaller rank")
    return _sum_shards(x, block.shape[0]) @ block


def fourier_delta_reference(spectrum: Tensor, indices: Tensor, shape: tuple[int, int], *, scale: float = 1.0) -> Tensor:
    r"""The difference of FourierFT, written as its sum of plane waves; :func:`fourier_delta` is the fast twin.

    .. math:: \Delta W_{pq} = \frac{\alpha}{OI} \sum_l c_l \cos 2\pi\!\left(\frac{u_l\,p}{O} + \frac{v_l\,q}{I}\right)

    Args:
        spectrum: ``(N,)`` trained coefficients.
        indices: ``(2, N)`` frozen frequencies, row and column of the spectrum.
        shape: ``O`` and ``I`` of the weight.
        scale: the factor :math:`\alpha`.

    Returns:
        ``(O, I)`` difference. A wave is the sum of two rank-one matrices, so the rank is at most ``2 * N``.

    Raises:
        ValueError: if there are not as many frequencies as coefficients.

    Cost: ``4 * N * O * I`` FLOPs.

    References:
        Gao et al. (2024), arXiv:2405.03003.

    Example:
        >>> fourier_delta_reference(torch.tensor([4.0]), torch.tensor([[1], [0]]), (2, 2))  # one wave down the rows
        tensor([[ 1.,  1.],
                [-1., -1.]])
    """
    check_equal("number of frequencies", indices.shape[1], "number of coefficients", len(spectrum))
    u, v = indices.to(spectrum.dtype)
    rows, columns = (torch.arange(n, dtype=spectrum.dtype, device=spectrum.device) / n for n in shape)
    phase = u * rows[:, None, None] + v * columns[:, None]  # (O, I, N)
    return scale / (shape[0] * shape[1]) * (torch.cos(2 * torch.pi * phase) @ spectrum)


def fourier_delta(spectrum: Tensor, indices: Tensor, shape: tuple[int, int], *, scale: float = 1.0) -> Tensor:
    r"""The difference of FourierFT: a few trained coefficients of a spectrum, and its inverse Fourier transform.

    .. math:: \Delta W = \alpha \operatorname{Re}\operatorname{ifft2}(F), \qquad F_{u_l v_l} = c_l, \text{ else } 0

    Args:
        spectrum: ``(N,)`` trained coefficients.
        indices: ``(2, N)`` frozen frequencies, row and column of the spectrum, each pair once.
        shape: ``O`` and ``I`` of the weight.
        scale: the factor :math:`\alpha`.

    Returns:
        ``(O, I)`` difference, in the dtype of ``spectrum``; half precision is transformed in float32.

    Raises:
        ValueError: if there are not as many frequencies as coefficients.

    Cost: about ``5 * O * I * log2(O * I)`` FLOPs, whatever the number of coefficients.

    References:
        Gao et al. (2024), arXiv:2405.03003.

    Example:
        >>> fourier_delta(torch.tensor([4.0]), torch.tensor([[1], [0]]), (2, 2))
        tensor([[ 1.,  1.],
                [-1., -1.]])
    """
    check_equal("number of frequencies", indices.shape[1], "number of coefficients", len(spectrum))
    wide = spectrum if spectrum.dtype == torch.float64 else spectrum.float()
    dense = torch.zeros(shape, dtype=wide.dtype, device=wide.device).index_put((indices[0], indices[1]), wide)
    delta: Tensor = torch.fft.ifft2(dense).real
    return (scale * delta).to(spectrum.dtype)


def _sum_shards(x: Tensor, size: int) -> Tensor:
    """Add up the entries of the last dimension whose index leaves the same remainder modulo ``size``."""
    missing = -x.shape[-1] % size
    return F.pad(x, (0, missing)).reshape(*x.shape[:-1], -1, size).sum(-2)


def _repeat(y: Tensor, width: int) -> Tensor:
    """Repeat the last dimension until it has a width."""
    return y[..., torch.arange(width, device=y.device) % y.shape[-1]]


def _check_factors(a: Tensor, b: Tensor) -> None:
    check_ndim("a", a.shape, ("R", "I"))
    check_ndim("b", b.shape, ("O", "R"))
    check_equal("rank of a", a.shape[0], "rank of b", b.shape[1])


def _check_dora(weight: Tensor, delta: Tensor, magnitude: Tensor) -> None:
    check_equal("shape of weight", tuple(weight.shape), "shape of delta", tuple(delta.shape))
    check_equal("shape of magnitude", tuple(magnitude.shape), "(O,)", (weight.shape[0],))


def _check_rank(rank: int, weight: Tensor, *, name: str = "rank") -> None:
    check_ndim("weight", weight.shape, ("O", "I"))
    check_at_least(name, rank, 1)
    check_at_least("smaller side of the matrix", min(weight.shape), rank, hint=f"{name} is at most the smaller side")


def _check_square(matrix: Tensor, in_features: int, out_features: int) -> None:
    check_equal("rows of the matrix", matrix.shape[0], "columns", matrix.shape[1])
    check_at_least("smaller side of the weight", min(in_features, out_features), matrix.shape[0])
