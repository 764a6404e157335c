r"""Training losses on logits: cross-entropy in its stable and its memory-saving forms, and what is added to it.

Logits are ``(…, V)``: any leading shape, one number for each token of the vocabulary. Targets are ids ``(…)``; a target
equal to ``ignore_index`` counts neither in the sum nor in the number that it is divided by, and where no target counts
the loss is 0, not NaN. Softmax and sums are computed in float32 where the logits are bfloat16 or float16, and the
result is returned in the dtype of the logits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_boolean, check_equal, check_ndim

__all__ = [
    "token_logp_reference",
    "token_logp",
    "cross_entropy_reference",
    "cross_entropy",
    "linear_cross_entropy_reference",
    "linear_cross_entropy",
    "label_smoothing_loss_reference",
    "label_smoothing_loss",
    "z_loss_reference",
    "z_loss",
    "focal_loss_reference",
    "focal_loss",
    "unlikelihood_loss_reference",
    "unlikelihood_loss",
    "repeated_tokens",
    "multi_token_prediction_loss_reference",
    "multi_token_prediction_loss",
    "token_mean",
    "sequence_mean",
]

IGNORE_INDEX = -100
BLOCK = {"cpu": 2**17, "other": 2**26}  # logits worked on at a time: a core's cache holds 512 KiB; a GPU wants many
ROWS = 256  # of logits: enough products for each number of the gradient that is read and written


def token_logp_reference(logits: Tensor, ids: Tensor) -> Tensor:
    r"""Log-probability of each id, written as its equation; :func:`token_logp` is the fast twin.

    .. math:: \ln p_y = z_y - \ln \sum_v e^{z_v}

    Args:
        logits: ``(…, V)`` logits.
        ids: ``(…)`` the id whose log-probability is asked, at each place.

    Returns:
        ``(…)`` log-probabilities in nats, in the dtype of ``logits``.

    Raises:
        ValueError: if the shapes do not fit together, or ``ids`` are no integers from 0 to ``V - 1``.

    Cost: several tensors of the size of the logits.

    References:
        Bridle (1990), Training Stochastic Model Recognition Algorithms as Networks: the softmax.

    Example:
        >>> token_logp_reference(torch.tensor([0.0, 0.0]), torch.tensor(1)).item()  # ln 1/2
        -0.693147...
    """
    _check_ids(logits, "ids", ids)
    logp = _widen(logits).log_softmax(dim=-1)  # (…, V)
    return logp.gather(-1, ids.long()[..., None])[..., 0].to(logits.dtype)


def token_logp(logits: Tensor, ids: Tensor) -> Tensor:
    r"""Log-probability of each id, without a second copy of the logits.

    .. math:: \ln p_y = z_y - \ln \sum_v e^{z_v}

    The logarithm of the sum is taken over a few rows at a time, which stay in the cache; so is the gradient, which is
    written where it belongs, row by row. Slices such as ``logits[:, :-1]`` are not copied either.

    Args:
        logits: ``(…, V)`` logits.
        ids: ``(…)`` the id whose log-probability is asked, at each place.

    Returns:
        ``(…)`` log-probabilities in nats, in the dtype of ``logits``.

    Raises:
        ValueError: if the shapes do not fit together, or ``ids`` are no integers from 0 to ``V - 1``.

    Cost: one pass over the logits; beside them, memory for a few rows. The gradient has the size of the logits.

    References:
        Bridle (1990), Training Stochastic Model Recognition Algorithms as Networks: the softmax.

    Example:
        >>> token_logp(torch.tensor([0.0, 0.0]), torch.tensor(1)).item()  # ln 1/2
        -0.693147...
    """
    _check_ids(logits, "ids", ids)
    return _select(logits, ids)[0].to(logits.dtype)


def cross_entropy_reference(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Average of :math:`-\ln p` of the targets, written as its equation; :func:`cross_entropy` is the fast twin.

    .. math:: \ell = -\frac1N \sum_{t \,:\, y_t \ne \text{ignore}} \ln p_t(y_t)

    where :math:`N` is the number of targets that count.

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0 where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    References:
        Goodfellow, Bengio and Courville (2016), Deep Learning, section 6.2.2.3.

    Example:
        >>> cross_entropy_reference(torch.zeros(2, 4), torch.tensor([3, -100])).item()  # ln 4
        1.386294...
    """
    counted = _counted(logits, targets, ignore_index)
    logp = _widen(logits)[counted].log_softmax(dim=-1)  # (N, V)
    nll = -logp.gather(-1, targets[counted].long()[:, None])
    return (nll.sum() / max(1, nll.numel())).to(logits.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Cross-entropy from logits: the average of :math:`-\ln p` of the targets.

    .. math:: \ell = -\frac1N \sum_{t \,:\, y_t \ne \text{ignore}} \ln p_t(y_t)

    where :math:`N` is the number of targets that count. :func:`linear_cross_entropy` does without the logits.

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0, with a gradient of 0, where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    Cost: as :func:`token_logp`.

    References:
        Goodfellow, Bengio and Courville (2016), Deep Learning, section 6.2.2.3.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100])).item()  # ln 4
        1.386294...
    """
    counted = _counted(logits, targets, ignore_index)
    logp, _ = _select(logits, targets.where(counted, 0))
    return _mean(-logp, counted).to(logits.dtype)


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy of the logits :math:`xW^\top`; :func:`linear_cross_entropy` is the twin that saves memory.

    Args:
        x: ``(…, D)`` the last hidden states.
        weight: ``(V, D)`` the output matrix, in the dtype of ``x``.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``x``; 0 where no target counts.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    Cost: ``6 * N * D * V`` FLOPs with the gradients, and several tensors of ``N * V`` numbers.

    References:
        Wijmans et al. (2024), arXiv:2411.09009.

    Example:
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [3.0, 5.0]])
        >>> linear_cross_entropy_reference(x, weight, torch.tensor([0])).item()  # equal logits: ln 2
        0.693147...
    """
    _check_linear(x, weight)
    return cross_entropy_reference(x @ weight.T, targets, ignore_index=ignore_index)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, chunk: int | None = None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy of the logits :math:`xW^\top`, of which only ``chunk`` rows exist at a time.

    For each chunk :math:`C` of the rows that count, with probabilities :math:`P_C` and one-hot targets :math:`Y_C`,

    .. math::

        G_C = \tfrac1N (P_C - Y_C), \qquad \bar x_C = G_C W, \qquad \bar W = \sum_C G_C^\top x_C .

    Both gradients are computed on the way forward, while the logits of the chunk are there, and scaled on the way
    back. Rows that do not count cost nothing.

    Args:
        x: ``(…, D)`` the last hidden states.
        weight: ``(V, D)`` the output matrix, in the dtype of ``x``.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        chunk: number of rows of logits that exist at a time; at least 1. Default: 256 on a CPU; elsewhere ``D`` if that
            is more, when a chunk is as large as the gradient of the matrix.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``x``; 0, with gradients of 0, where no target counts. It can be
        differentiated once.

    Raises:
        ValueError: if shapes or dtypes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``chunk`` is below 1.

    Cost: ``6 * N * D * V`` FLOPs with the gradients, ``2 * N * D * V`` without; memory for ``chunk * V`` logits and the
    gradients.

    References:
        Wijmans et al. (2024), arXiv:2411.09009; Hsu et al. (2024), arXiv:2410.10989, for gradients on the way forward.

    Example:
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [3.0, 5.0]])
        >>> linear_cross_entropy(x, weight, torch.tensor([0])).item()  # equal logits: ln 2
        0.693147...
    """
    _check_linear(x, weight)
    if chunk is None:
        chunk = ROWS if x.is_cpu else max(ROWS, x.shape[-1])
    check_at_least("chunk", chunk, 1, hint="it is the number of rows of logits that exist at a time")
    counted = _counted(x, targets, ignore_index, vocabulary=weight.shape[0])
    all_count = bool(counted.all())  # then no row need be copied
    rows, ids = (x.reshape(-1, x.shape[-1]), targets.reshape(-1)) if all_count else (x[counted], targets[counted])
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor] = _LinearCrossEntropy.apply
    return apply(rows, weight, ids.long(), chunk).to(x.dtype)


def label_smoothing_loss_reference(
    logits: Tensor, targets: Tensor, *, epsilon: float = 0.1, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy against smoothed targets, written as its equation; :func:`label_smoothing_loss` is the fast twin.

    .. math:: \ell = -\sum_v q_v \ln p_v, \qquad q = (1 - \varepsilon)\, e_y + \tfrac{\varepsilon}{V} \mathbf{1}

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        epsilon: the share of the probability that is spread evenly over the vocabulary, from 0 to 1.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0 where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``epsilon`` is not from 0 to 1.

    References:
        Szegedy et al. (2015), arXiv:1512.00567, section 7.

    Example:
        >>> label_smoothing_loss_reference(torch.zeros(1, 4), torch.tensor([2]), epsilon=0.3).item()  # always ln 4
        1.386294...
    """
    _check_share("epsilon", epsilon)
    counted = _counted(logits, targets, ignore_index)
    logp, V = _widen(logits)[counted].log_softmax(dim=-1), logits.shape[-1]  # (N, V)
    q = torch.full_like(logp, epsilon / V)
    q.scatter_(-1, targets[counted].long()[:, None], 1 - epsilon + epsilon / V)
    return (-(q * logp).sum() / max(1, len(logp))).to(logits.dtype)


def label_smoothing_loss(
    logits: Tensor, targets: Tensor, *, epsilon: float = 0.1, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy against targets that keep a share for the whole vocabulary.

    .. math::

        \ell = -\sum_v q_v \ln p_v = \operatorname{lse}(z) - (1 - \varepsilon)\, z_y - \frac{\varepsilon}{V} \sum_v z_v,
        \qquad q = (1 - \varepsilon)\, e_y + \tfrac{\varepsilon}{V} \mathbf{1}

    The right side needs the smoothed targets no more than the log-probabilities.

    Args:
        logits: ``(…, V)`` logits; where one is infinite, so is the loss.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        epsilon: the share of the probability that is spread evenly over the vocabulary, from 0 to 1.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0, with a gradient of 0, where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``epsilon`` is not from 0 to 1.

    Cost: two passes over the logits; memory as :func:`token_logp`.

    References:
        Szegedy et al. (2015), arXiv:1512.00567, section 7.

    Example:
        >>> label_smoothing_loss(torch.zeros(1, 4), torch.tensor([2]), epsilon=0.3).item()  # ln 4, whatever epsilon
        1.386294...
    """
    _check_share("epsilon", epsilon)
    counted = _counted(logits, targets, ignore_index)
    logp, lse = _select(logits, targets.where(counted, 0))
    average = logits.mean(dim=-1, dtype=lse.dtype) - lse  # of all log-probabilities of a row
    return _mean(-(1 - epsilon) * logp - epsilon * average, counted).to(logits.dtype)


def z_loss_reference(logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Average of :math:`(\ln Z)^2`, written as its equation; :func:`z_loss` is the fast twin.

    .. math:: \ell = \frac1N \sum_t \Bigl(\ln \sum_v e^{z_{tv}}\Bigr)^2

    Args:
        logits: ``(…, V)`` logits.
        mask: ``(…)``, True where a place counts. Default: everywhere.

    Returns:
        ``()`` the average, in the dtype of ``logits``, to be multiplied by a small coefficient; 0 where nothing counts.

    Raises:
        ValueError: if the shapes do not fit together, or the mask is not boolean.

    References:
        Chowdhery et al. (2022), arXiv:2204.02311, section 5.

    Example:
        >>> z_loss_reference(torch.tensor([[0.5, 0.5]]).log()).item()  # normalized: ln 1
        0.0
    """
    counted = _mask(logits, mask)
    log_z = _widen(logits)[counted].logsumexp(dim=-1)  # (N,)
    return (log_z.square().sum() / max(1, len(log_z))).to(logits.dtype)


def z_loss(logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Average of :math:`(\ln Z)^2`, which keeps the softmax near its normalized form.

    .. math:: \ell = \frac1N \sum_t (\ln Z_t)^2, \qquad \frac{\partial\, (\ln Z)^2}{\partial z} = 2 \ln Z \cdot p

    Args:
        logits: ``(…, V)`` logits.
        mask: ``(…)``, True where a place counts, such as ``targets != -100``. Default: everywhere.

    Returns:
        ``()`` the average, in the dtype of ``logits``, to be multiplied by a small coefficient such as 1e-4; 0, with a
        gradient of 0, where nothing counts.

    Raises:
        ValueError: if the shapes do not fit together, or the mask is not boolean.

    Cost: as :func:`token_logp`.

    References:
        Chowdhery et al. (2022), arXiv:2204.02311, section 5; Zoph et al. (2022), arXiv:2202.08906, for routers.

    Example:
        >>> z_loss(torch.zeros(1, 1)).item(), z_loss(torch.full((1, 1), 3.0)).item()
        (0.0, 9.0)
    """
    counted = _mask(logits, mask)
    _, log_z = _select(logits, torch.zeros_like(counted, dtype=torch.long))
    return _mean(log_z.square(), counted).to(logits.dtype)


def focal_loss_reference(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy that turns from what is known, written as its equation; :func:`focal_loss` is the fast twin.

    .. math:: \ell = -\frac1N \sum_t (1 - p_t)^\gamma \ln p_t

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        gamma: how strongly tokens that are known lose weight; at least 0.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0 where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``gamma`` is negative.

    References:
        Lin et al. (2017), arXiv:1708.02002, equation (4).

    Example:
        >>> focal_loss_reference(torch.zeros(1, 2), torch.tensor([0])).item()  # ln 2 / 4
        0.173286...
    """
    _check_gamma(gamma)
    counted = _counted(logits, targets, ignore_index)
    p = _widen(logits)[counted].softmax(dim=-1).gather(-1, targets[counted].long()[:, None])
    return (-((1 - p) ** gamma * p.log()).sum() / max(1, len(p))).to(logits.dtype)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Cross-entropy in which a token counts less, the better it is known.

    .. math:: \ell = -\frac1N \sum_t (1 - p_t)^\gamma \ln p_t

    Computed from :math:`\ln p`, so that neither a :math:`p` that underflows nor one that rounds to 1 does harm.

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        gamma: how strongly tokens that are known lose weight; at least 0, which is cross-entropy.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0, with a gradient of 0, where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``gamma`` is negative.

    Cost: as :func:`token_logp`.

    References:
        Lin et al. (2017), arXiv:1708.02002, equation (4).

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0])).item()  # ln 2 / 4
        0.173286...
    """
    _check_gamma(gamma)
    counted = _counted(logits, targets, ignore_index)
    logp, _ = _select(logits, targets.where(counted, 0))
    logp = logp.clamp(max=-torch.finfo(logp.dtype).tiny)  # at p = 1 the power has no slope for gamma < 1, the loss has
    return _mean(-((-torch.expm1(logp)) ** gamma) * logp, counted).to(logits.dtype)


def unlikelihood_loss_reference(logits: Tensor, negatives: Tensor) -> Tensor:
    r"""What the probability of unwanted tokens costs, written as its equation; :func:`unlikelihood_loss` is the twin.

    .. math:: \ell = -\frac1N \sum_t \sum_{c \in C_t} \ln\bigl(1 - p_t(c)\bigr)

    Args:
        logits: ``(…, V)`` logits.
        negatives: ``(…, V)``, True for the tokens that should not come at a place.

    Returns:
        ``()`` the sum over unwanted tokens, averaged over all places, in the dtype of ``logits``; 0 without places.

    Raises:
        ValueError: if the shapes differ, or ``negatives`` is not boolean.

    References:
        Welleck et al. (2019), arXiv:1908.04319.

    Example:
        >>> unlikelihood_loss_reference(torch.zeros(1, 2), torch.tensor([[True, False]])).item()  # -ln(1 - 1/2)
        0.693147...
    """
    _check_negatives(logits, negatives)
    p = _widen(logits).softmax(dim=-1)
    places = max(1, negatives[..., 0].numel())
    return (-torch.log(1 - p[negatives]).sum() / places).to(logits.dtype)


def unlikelihood_loss(logits: Tensor, negatives: Tensor) -> Tensor:
    r"""What the probability of unwanted tokens costs, also where one of them has almost all of it.

    .. math:: \ell = -\frac1N \sum_t \sum_{c \in C_t} \ln\bigl(1 - p_t(c)\bigr)

    Only the most probable token of a place can have more than one half; for it, :math:`1 - p` is taken as the sum of
    the others, which does not cancel.

    Args:
        logits: ``(…, V)`` logits.
        negatives: ``(…, V)``, True for the tokens that should not come at a place; :func:`repeated_tokens` makes them.

    Returns:
        ``()`` the sum over unwanted tokens, averaged over all places, in the dtype of ``logits``; 0 without places.

    Raises:
        ValueError: if the shapes differ, or ``negatives`` is not boolean.

    Cost: several tensors of the size of the logits.

    References:
        Welleck et al. (2019), arXiv:1908.04319.

    Example:
        >>> sure = torch.tensor([[40.0, 0.0]])  # 1 - p = 1 / (1 + e^40), far below what 1 - p can resolve
        >>> unlikelihood_loss(sure, torch.tensor([[True, False]])).item()
        40.0
    """
    _check_negatives(logits, negatives)
    wide = _widen(logits)
    logp = wide.log_softmax(dim=-1)
    first = wide.argmax(dim=-1, keepdim=True)
    others = logp.scatter(-1, first, float("-inf")).logsumexp(dim=-1, keepdim=True)  # ln(1 - p) of the first
    is_first = torch.zeros_like(negatives).scatter(-1, first, True)
    rest = torch.log1p(-logp.masked_fill(is_first, float("-inf")).exp())
    log_not = torch.where(is_first, others, rest).where(negatives, 0)
    return (-log_not.sum() / max(1, negatives[..., 0].numel())).to(logits.dtype)


def repeated_tokens(targets: Tensor, vocab_size: int, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Mark, at each place, the earlier targets of the row, unless one is the target of this place.

    .. math:: C_t = \{y_1, \dots, y_{t-1}\} \setminus \{y_t\}

    Args:
        targets: ``(B, T)`` ids, or ``ignore_index``, which adds nothing; such a place itself gets no tokens.
        vocab_size: size ``V`` of the vocabulary.
        ignore_index: the target that does not count.

    Returns:
        ``(B, T, V)`` boolean, for :func:`unlikelihood_loss`.

    Raises:
        ValueError: if ``targets`` is not ``(B, T)``, or a target that counts is no integer from 0 to ``V - 1``.

    References:
        Welleck et al. (2019), arXiv:1908.04319: the candidates of the token-level objective.

    Example:
        >>> repeated_tokens(torch.tensor([[2, 0, 2]]), 3)[0].int()
        tensor([[0, 0, 0],
                [0, 0, 1],
                [1, 0, 0]], dtype=torch.int32)
    """
    check_ndim("targets", targets.shape, ("B", "T"))
    counted = targets != ignore_index
    _check_range("targets", targets[counted], vocab_size)
    here = torch.zeros(*targets.shape, vocab_size, dtype=torch.bool, device=targets.device)
    here.scatter_(-1, targets.where(counted, 0).long()[..., None], counted[..., None])
    before = (here.cumsum(dim=1) > here.int()) & ~here  # counted more often up to here than here
    return before & counted[..., None]


def multi_token_prediction_loss_reference(
    logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy for each distance, written as its equation; :func:`multi_token_prediction_loss` is the fast twin.

    .. math:: \ell_k = -\frac{1}{N_k} \sum_t \ln p_{t,k}(y_{t+k}), \qquad k = 0, \dots, n - 1

    Args:
        logits: ``(B, T, n, V)`` logits: those of place ``t`` and head ``k`` predict ``targets[:, t + k]``.
        targets: ``(B, T)`` the id that should come after each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``(n,)`` the average in nats of each head, in the dtype of ``logits``; 0 where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    References:
        Gloeckle et al. (2024), arXiv:2404.19737, section 2.

    Example:
        >>> multi_token_prediction_loss_reference(torch.zeros(1, 3, 2, 4), torch.tensor([[0, 1, 2]]))  # ln 4, twice
        tensor([1.3863, 1.3863])
    """
    _check_multi(logits, targets)
    T, n = logits.shape[1:3]
    beyond = targets.new_full((len(targets), n), ignore_index)
    ahead = torch.cat([targets, beyond], dim=1)  # what lies behind the end does not count
    heads = [ahead[:, k : k + T] for k in range(n)]
    return torch.stack(
        [cross_entropy_reference(logits[:, :, k], y, ignore_index=ignore_index) for k, y in enumerate(heads)]
    )


def multi_token_prediction_loss(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Cross-entropy of heads that each predict one token further ahead.

    .. math:: \ell_k = -\frac{1}{N_k} \sum_t \ln p_{t,k}(y_{t+k}), \qquad k = 0, \dots, n - 1

    Head 0 is the usual one. The sum of all is the loss of Gloeckle et al.; DeepSeek-V3 adds to the first a small
    multiple of the average of the others.

    Args:
        logits: ``(B, T, n, V)`` logits: those of place ``t`` and head ``k`` predict ``targets[:, t + k]``.
        targets: ``(B, T)`` the id that should come after each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``(n,)`` the average in nats of each head, in the dtype of ``logits``; 0 where no target counts, as for a head
        that looks beyond the end from everywhere.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    Cost: as :func:`token_logp`; no logits are copied.

    References:
        Gloeckle et al. (2024), arXiv:2404.19737, section 2; DeepSeek-AI (2024), arXiv:2412.19437, section 2.2.

    Example:
        >>> multi_token_prediction_loss(torch.zeros(1, 3, 2, 4), torch.tensor([[0, 1, 2]]))  # ln 4, twice
        tensor([1.3863, 1.3863])
    """
    _check_multi(logits, targets)
    T, n = logits.shape[1:3]
    reach = [max(0, T - k) for k in range(n)]  # the places from which head k sees a target
    losses = [
        cross_entropy(logits[:, :last, k], targets[:, T - last :], ignore_index=ignore_index)
        for k, last in enumerate(reach)
    ]
    return torch.stack(losses) if losses else logits.new_zeros(0)


def token_mean(values: Tensor, mask: Tensor, *, total: int | None = None) -> Tensor:
    r"""Average over the tokens that count: every token weighs the same.

    .. math:: \frac{\sum_{b,t} m_{bt}\, v_{bt}}{\sum_{b,t} m_{bt}}

    Args:
        values: ``(…)`` a number for each token, such as its loss; where the mask is False it may be anything.
        mask: ``(…)``, True where a token counts, in the shape of ``values``.
        total: what the sum is divided by instead: where gradients of several batches are added up before a step, the
            number of tokens that count in all of them. Default: the number in this batch.

    Returns:
        ``()`` the average, in the dtype of ``values``; 0 where nothing counts.

    Raises:
        ValueError: if the shapes differ, the mask is not boolean, or ``total`` is below 1.

    References:
        Yu et al. (2025), arXiv:2503.14476, section 3.3, where it is compared with :func:`sequence_mean`.

    Example:
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> token_mean(torch.tensor([[6.0, 9.0], [3.0, 3.0]]), mask).item()
        4.0
    """
    _check_mask(values, mask)
    if total is None:
        return _mean(values, mask)
    check_at_least("total", total, 1, hint="count the tokens of all batches of the step")
    return values.where(mask, 0).sum() / total


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    r"""Average over rows of their averages: every row weighs the same, a token of a long row less.

    .. math:: \frac1{B'} \sum_{b \,:\, n_b > 0} \frac{1}{n_b} \sum_t m_{bt}\, v_{bt}, \qquad n_b = \sum_t m_{bt}

    Args:
        values: ``(B, T)`` a number for each token, such as its loss; where the mask is False it may be anything.
        mask: ``(B, T)``, True where a token counts.

    Returns:
        ``()`` the average over the :math:`B'` rows in which something counts, in the dtype of ``values``; 0 without
        any.

    Raises:
        ValueError: if the shapes differ, or the mask is not boolean.

    References:
        Yu et al. (2025), arXiv:2503.14476, section 3.3, where it is compared with :func:`token_mean`.

    Example:
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> sequence_mean(torch.tensor([[6.0, 9.0], [3.0, 3.0]]), mask).item()
        4.5
    """
    _check_mask(values, mask)
    lengths = mask.sum(dim=-1)
    rows = values.where(mask, 0).sum(dim=-1) / lengths.clamp(min=1)
    return rows.sum() / (lengths > 0).sum().clamp(min=1)


class _Select(torch.autograd.Function):
    """Log-probabilities of ids and log-sums of all logits, with one pass over the logits in each direction."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logp, lse = torch.empty((2, *ids.shape), dtype=_wide_dtype(logits), device=logits.device).unbind()
        for z, i, logp_out, lse_out in _blocks(logits, ids[..., None], logp[..., None], lse[..., None]):
            z, top = _widen(z), _widen(z.amax(dim=-1, keepdim=True))
            log_sum = (z - top).exp_().sum(dim=-1, keepdim=True).log_()
            torch.add(top, log_sum, out=lse_out)
            torch.sub(z.gather(-1, i) - top, log_sum, out=logp_out)  # not z - lse, whose large parts would cancel
        ctx.save_for_backward(logits, ids)
        return logp, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, ids = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: all of it in operations that autograd records
            return _select_gradient(logits, ids, *grads), None
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for out, *block in _blocks(grad, logits, ids, *grads):
            out.copy_(_select_gradient(*block))
        return grad, None


def _select_gradient(logits: Tensor, ids: Tensor, grad_logp: Tensor, grad_lse: Tensor) -> Tensor:
    """Return what the logits get: softmax times the one gradient, one-hot minus softmax times the other."""
    grad = _widen(logits).softmax(dim=-1) * (grad_lse - grad_logp)[..., None]
    return grad.scatter_add_(-1, ids[..., None], grad_logp[..., None]).to(logits.dtype)


def _select(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability of ids that were checked, and the log-sum of all logits, both at least float32."""
    if logits.ndim == 1:
        logp, lse = _select(logits[None], ids[None])
        return logp[0], lse[0]
    apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _Select.apply
    return apply(logits, ids.long())


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of the same leading shape, the first of them ``(…, V)``, into views of a few rows."""
    if tensors[0].ndim > 2:  # not flattened, because that would copy a slice such as logits[:, :-1]
        for parts in zip(*tensors, strict=True):
            yield from _blocks(*parts)
    else:
        on_cpu = tensors[0].device.type == "cpu"
        size = BLOCK["cpu"] * torch.get_num_threads() if on_cpu else BLOCK["other"]
        rows = max(1, size // max(1, tensors[0].shape[-1]))
        yield from zip(*(torch.split(x, rows) for x in tensors), strict=True)


class _LinearCrossEntropy(torch.autograd.Function):
    """Average cross-entropy over all rows; the gradients are computed on the way forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = None
        loss, share = torch.zeros((), dtype=_wide_dtype(x), device=x.device), 1 / max(1, len(x))
        for i in range(0, len(x), chunk):
            rows, ids = x[i : i + chunk], targets[None, i : i + chunk]
            z = _widen(weight @ rows.T)  # (V, C): long and narrow is what a product writes faster
            z -= z.amax(dim=0)
            chosen = z.gather(0, ids)
            total = z.exp_().sum(dim=0)  # from here on z holds e^z
            loss += (total.log() - chosen).sum() * share
            if wants_x or wants_weight:
                z *= total.reciprocal()  # the probabilities; their share 1/N, too small for float16, waits for the sums
                g = z.scatter_add_(0, ids, z.new_tensor(-1.0).expand(ids.shape)).to(x.dtype)  # (V, C)
                if grad_x is not None:
                    grad_x[i : i + chunk] = g.T @ weight
                if wants_weight:
                    grad_weight = _add_product(grad_weight, g, rows, share)
                del g
            del z  # or it would be there still while the next chunk is made
        if wants_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)  # no row counts
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.dtype, ctx.share = weight.dtype, share
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_x is not None:
            grad_x = (_widen(grad_x) * (grad * ctx.share)).to(grad_x.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight if _is_one(grad) else grad_weight * grad).to(ctx.dtype)
        return grad_x, grad_weight, None, None


def _is_one(grad: Tensor) -> bool:
    """Whether a scalar gradient is 1, as that of ``loss.backward()`` is; only asked where the answer costs nothing."""
    return grad.is_cpu and not torch.compiler.is_compiling() and grad.item() == 1


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return a sum, kept in at least float32, with a multiple of a product added to it; None is an empty sum."""
    if _wide_dtype(a) != a.dtype:
        product = a @ b
        return factor * _widen(product) if total is None else total.add_(product, alpha=factor)
    if total is None:
        return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=factor)  # what is there is not read
    return total.addmm_(a, b, alpha=factor)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the average of what counts, 0 where nothing does; what does not count may be infinite."""
    return values.where(counted, 0).sum() / counted.sum().clamp(min=1)


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))


def _counted(x: Tensor, targets: Tensor, ignore_index: int, *, vocabulary: int | None = None) -> Tensor:
    """Return where targets count, after checking those that do against the logits or the size of the vocabulary."""
    counted = targets != ignore_index
    check_equal("shape of targets", tuple(targets.shape), "shape before the last dimension", tuple(x.shape[:-1]))
    _check_range("targets", targets[counted], x.shape[-1] if vocabulary is None else vocabulary)
    return counted


def _check_ids(logits: Tensor, name: str, ids: Tensor) -> None:
    check_equal(f"shape of {name}", tuple(ids.shape), "shape before the last dimension", tuple(logits.shape[:-1]))
    _check_range(name, ids, logits.shape[-1])


def _check_range(name: str, ids: Tensor, vocabulary: int) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} have dtype {ids.dtype}, expected integers: pass ids, not probabilities or a mask")
    check_at_least("size of the vocabulary", vocabulary, 1)
    if ids.numel():
        least, most = (bound.item() for bound in ids.aminmax())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise ValueError(
                f"{name} contain {wrong}, expected ids from 0 to {vocabulary - 1}: the vocabulary has {vocabulary}; "
                f"mark what does not count with ignore_index"
            )


def _check_linear(x: Tensor, weight: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected 2 dimensions (V, D)")
    if x.ndim == 0:
        raise ValueError("x has no dimensions, expected (…, D)")
    check_equal("width of x", x.shape[-1], "width of weight", weight.shape[1], hint="weight is (V, D), as in nn.Linear")
    check_equal("dtype of x", x.dtype, "dtype of weight", weight.dtype)


def _mask(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return where places count."""
    if mask is None:
        return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    check_equal("shape of mask", tuple(mask.shape), "shape before the last dimension", tuple(logits.shape[:-1]))
    check_boolean("mask", mask.dtype)
    return mask


def _check_mask(values: Tensor, mask: Tensor) -> None:
    check_equal("shape of mask", tuple(mask.shape), "shape of values", tuple(values.shape))
    check_boolean("mask", mask.dtype, hint="pass targets != ignore_index")


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}, expected a share from 0 to 1")


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}, expected at least 0: 0 is cross-entropy")


def _check_negatives(logits: Tensor, negatives: Tensor) -> None:
    check_equal("shape of negatives", tuple(negatives.shape), "shape of logits", tuple(logits.shape))
    check_boolean("negatives", negatives.dtype, hint="mark unwanted tokens, do not list them")


def _check_multi(logits: Tensor, targets: Tensor) -> None:
    check_ndim("logits", logits.shape, ("B", "T", "n", "V"))
    check_equal("shape of targets", tuple(targets.shape), "(B, T) of logits", tuple(logits.shape[:2]))
