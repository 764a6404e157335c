"""Scaled dot-product attention: the equation, the fast function, its masks and its gradient.

Tensors are ``(B, H, T, Dh)``: batch, heads, positions, width of a head. Queries have ``H`` heads and ``T`` positions,
keys and values have ``K`` heads and ``S`` positions, where ``K`` divides ``H``: with ``K == H`` this is multi-head
attention, with ``K == 1`` multi-query attention, between them grouped-query attention. A mask is boolean, True where
attention is allowed; masks are combined with ``&`` (both must allow) and ``|`` (one is enough).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import (
    check_at_least,
    check_boolean,
    check_broadcastable,
    check_divides,
    check_equal,
    check_ndim,
)

__all__ = [
    "attention_reference",
    "attention",
    "causal_attention",
    "attention_weights",
    "attention_backward",
    "biased_attention_reference",
    "biased_attention",
    "softcap",
    "softcap_attention",
    "sink_attention_reference",
    "sink_attention",
    "masked_softmax",
    "softmax_jacobian",
    "causal_mask",
    "sliding_window_mask",
    "padding_mask",
    "prefix_mask",
    "split_heads",
    "merge_heads",
]


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Scaled dot-product attention, written as its equation; :func:`attention` is the fast twin.

    .. math:: \operatorname{softmax}\!\left(s\,QK^\top + M\right)V, \qquad s = 1/\sqrt{d_k}

    where :math:`M` is 0 where attention is allowed and :math:`-\infty` elsewhere.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k`` and ``v`` do not fit together, ``K`` does not divide ``H``, or
            the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * S * (Dk + Dv)`` FLOPs, and several tensors of ``B * H * T * S`` numbers in memory.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, equation (1).

    Example:
        >>> q = k = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
        >>> v = torch.tensor([[1.0], [3.0]]).reshape(1, 1, 2, 1)
        >>> attention_reference(q, k, v, mask=causal_mask(2), scale=0.0).flatten()  # alone, then the average of two
        tensor([1., 2.])
    """
    _check_inputs(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]  # query heads that share one key/value head
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, S, ·)
    scores = scale * (q @ k.mT)  # (B, H, T, S)
    return masked_softmax(scores, mask) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    r"""Scaled dot-product attention.

    .. math:: \operatorname{softmax}\!\left(s\,QK^\top + M\right)V, \qquad s = 1/\sqrt{d_k}

    The work is done by PyTorch's fused kernel, which need not keep the weights of all queries in memory at once. Where
    the mask is just causal, :func:`causal_attention` is faster on long sequences.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere, also because ``S`` is 0, gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k`` and ``v`` do not fit together, ``K`` does not divide ``H``, or
            the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * S * (Dk + Dv)`` FLOPs, whatever the mask.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, equation (1). Grouped heads: Ainslie et al. (2023), arXiv:2305.13245.

    Example:
        >>> q = torch.eye(2).reshape(1, 1, 2, 2)
        >>> attention(q, q, q, scale=0.0)[0, 0, 0]  # scale 0: the plain average of v
        tensor([0.5000, 0.5000])
    """
    _check_inputs(q, k, v)
    if mask is not None:
        _check_mask(mask, (*q.shape[:3], k.shape[2]))
    return _fused(q, k, v, mask, scale)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Attention of each query to its own position and the ones before: :func:`attention` with :func:`causal_mask`.

    With as many queries as keys no mask is built and the kernel skips what lies above the diagonal, which takes half of
    the time on long sequences.

    Args:
        q: ``(B, H, T, Dk)`` queries, of the last ``T`` positions.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``, and ``S >= T``.
        v: ``(B, K, S, Dv)`` values.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k`` and ``v`` do not fit together, ``K`` does not divide ``H``, or
            there are fewer keys than queries.

    Cost: ``B * H * T * (T + 1) * (Dk + Dv)`` FLOPs for ``S == T``.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.3.

    Example:
        >>> v = torch.tensor([[1.0], [3.0]]).reshape(1, 1, 2, 1)
        >>> causal_attention(v, v, v, scale=0.0).flatten()  # alone, then the average of two
        tensor([1., 2.])
    """
    _check_inputs(q, k, v)
    T, S = q.shape[2], k.shape[2]
    # torch aligns its causal mask to the first key, we to the last; and it multiplies -inf by the scale
    if T != S or (scale is not None and scale <= 0):
        return attention(q, k, v, mask=causal_mask(T, S, device=q.device), scale=scale)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def attention_weights(q: Tensor, k: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    r"""How much each query takes from each key: the weights that attention averages the values with.

    .. math:: P = \operatorname{softmax}\!\left(s\,QK^\top + M\right)

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, S)`` weights. Each row sums to 1, or to 0 for a query that may attend nowhere.

    Raises:
        ValueError: if shapes or dtypes of ``q`` and ``k`` do not fit together, ``K`` does not divide ``H``, or the mask
            is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * S * Dk`` FLOPs, and ``B * H * T * S`` numbers in memory.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, equation (1) without :math:`V`.

    Example:
        >>> q = torch.zeros(1, 1, 3, 2)  # equal scores: each query spreads evenly over what it may see
        >>> attention_weights(q, q, mask=causal_mask(3))[0, 0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """
    _check_inputs(q, k, k)
    return masked_softmax(_scores(q, k, scale), mask)


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients of attention, derived by hand.

    With the weights :math:`P` of :func:`attention_weights`, the output :math:`O = PV` and the gradient
    :math:`\mathrm{d}O` of the loss with respect to it,

    .. math::

        \begin{aligned}
        \mathrm{d}V &= P^\top\,\mathrm{d}O, & \mathrm{d}P &= \mathrm{d}O\,V^\top, \\
        \mathrm{d}S &= P \circ \bigl(\mathrm{d}P - \operatorname{rowsum}(\mathrm{d}P \circ P)\bigr), & & \\
        \mathrm{d}Q &= s\,\mathrm{d}S\,K, & \mathrm{d}K &= s\,\mathrm{d}S^\top Q.
        \end{aligned}

    A key/value head that several query heads share gets the sum of their gradients.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        grad_out: ``(B, H, T, Dv)`` gradient of the loss with respect to the output.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dk)``, ``(B, K, S, Dk)`` and ``(B, K, S, Dv)``, the gradients of ``q``, ``k`` and ``v``. A query
        that may attend nowhere gets a gradient of zero and adds nothing to the others.

    Raises:
        ValueError: if shapes or dtypes of the tensors do not fit together, ``K`` does not divide ``H``, or the mask is
            not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * S * (3 * Dk + 2 * Dv)`` FLOPs; the weights are computed anew.

    References:
        Dao et al. (2022), arXiv:2205.14135, appendix B.2.

    Example:
        >>> q = torch.zeros(1, 1, 1, 2)
        >>> v = torch.tensor([[1.0], [5.0]]).reshape(1, 1, 2, 1)
        >>> dq, dk, dv = attention_backward(q, torch.eye(2).reshape(1, 1, 2, 2), v, torch.ones(1, 1, 1, 1), scale=1.0)
        >>> dq.flatten(), dv.flatten()  # weights 1/2, 1/2: dS = ±1/2 (5 - 1) / 2
        (tensor([-1.,  1.]), tensor([0.5000, 0.5000]))
    """
    _check_inputs(q, k, v)
    (B, H, T, Dk), (K, S), Dv = q.shape, k.shape[1:3], v.shape[3]
    check_equal("shape of grad_out", tuple(grad_out.shape), "shape of the output (B, H, T, Dv)", (B, H, T, Dv))
    scale = Dk**-0.5 if scale is None else scale
    p = attention_weights(q, k, mask=mask, scale=scale)  # (B, H, T, S)
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)  # (B, H, S, ·)

    dv = p.mT @ grad_out  # (B, H, S, Dv)
    dp = grad_out @ v.mT  # (B, H, T, S)
    ds = p * (dp - (dp * p).sum(dim=-1, keepdim=True))  # softmax's Jacobian diag(p) - p pᵀ, applied to each row
    dq = scale * ds @ k  # (B, H, T, Dk)
    dk = scale * ds.mT @ q  # (B, H, S, Dk)
    return dq, dk.reshape(B, K, H // K, S, Dk).sum(dim=2), dv.reshape(B, K, H // K, S, Dv).sum(dim=2)


def biased_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention with a number added to each score, written as its equation; :func:`biased_attention` is the fast twin.

    .. math:: \operatorname{softmax}\!\left(s\,QK^\top + b + M\right)V

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        bias: ``(T, S)`` or broadcastable to ``(B, H, T, S)``, in the dtype of ``q``; added to the scaled scores.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores, not on the bias. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k``, ``v`` and ``bias`` do not fit together, ``K`` does not divide
            ``H``, or the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 2.1: a learned number for each distance, added to the score.

    Example:
        >>> q, v = torch.zeros(1, 1, 1, 2), torch.tensor([[1.0], [3.0]]).reshape(1, 1, 2, 1)
        >>> bias = torch.tensor([3.0, 1.0]).log()  # weights 3/4 and 1/4
        >>> biased_attention_reference(q, torch.zeros(1, 1, 2, 2), v, bias).item()
        1.5
    """
    _check_inputs(q, k, v)
    _check_bias(bias, q, k)
    scores = _scores(q, k, scale) + bias  # (B, H, T, S)
    return masked_softmax(scores, mask) @ _for_each_query_head(v, q)


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention with a number added to each score, such as a penalty on distance (ALiBi, T5).

    .. math:: \operatorname{softmax}\!\left(s\,QK^\top + b + M\right)V

    The work is done by PyTorch's fused kernel. Where the bias asks for a gradient, PyTorch falls back on a path that
    keeps the weights in memory.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        bias: ``(T, S)`` or broadcastable to ``(B, H, T, S)``, in the dtype of ``q``; added to the scaled scores.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores, not on the bias. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k``, ``v`` and ``bias`` do not fit together, ``K`` does not divide
            ``H``, or the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: as :func:`attention`, and the memory of ``bias`` combined with ``mask``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 2.1. A fixed penalty: Press et al. (2022), arXiv:2108.12409.

    Example:
        >>> q, v = torch.zeros(1, 1, 1, 2), torch.tensor([[1.0], [3.0]]).reshape(1, 1, 2, 1)
        >>> bias = torch.tensor([3.0, 1.0]).log()  # weights 3/4 and 1/4
        >>> biased_attention(q, torch.zeros(1, 1, 2, 2), v, bias).item()
        1.5
    """
    _check_inputs(q, k, v)
    _check_bias(bias, q, k)
    if mask is not None:
        _check_mask(mask, (*q.shape[:3], k.shape[2]))
        bias = torch.where(mask, bias, float("-inf"))
    return _fused(q, k, v, bias, scale)


def softcap(x: Tensor, cap: float) -> Tensor:
    r"""Squeeze numbers smoothly into :math:`(-c, c)`; small ones stay nearly as they are.

    .. math:: \operatorname{softcap}(x) = c\,\tanh(x/c), \qquad \operatorname{softcap}'(x) = 1 - \tanh^2(x/c)

    Args:
        x: ``(…)`` numbers of any shape.
        cap: bound ``c``, above 0.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    Raises:
        ValueError: if ``cap`` is not above 0.

    References:
        Gemma Team (2024), arXiv:2408.00118, section 2: 50 for attention scores, 30 for the logits of the vocabulary.

    Example:
        >>> softcap(torch.tensor([-1000.0, 0.0, 1.0, 1000.0]), 50.0)
        tensor([-50.0000,   0.0000,   0.9999,  50.0000])
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}, expected more than 0: it is the bound that no score passes")
    return cap * torch.tanh(x / cap)


def softcap_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cap: float, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention whose scores cannot exceed a bound, as in Gemma 2.

    .. math:: \operatorname{softmax}\!\bigl(c\,\tanh(s\,QK^\top / c) + M\bigr)V

    The mask comes after the cap: a forbidden score is :math:`-\infty`, not :math:`-c`. PyTorch's fused kernel has no
    place for the hyperbolic tangent between scores and softmax, so this is the equation itself: it keeps several
    tensors of ``B * H * T * S`` numbers in memory.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        cap: bound ``c`` on the absolute value of the scaled scores, above 0.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if ``cap`` is not above 0, shapes or dtypes of ``q``, ``k`` and ``v`` do not fit together, ``K``
            does not divide ``H``, or the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * S * (Dk + Dv)`` FLOPs in matrix products, ``B * H * T * S`` hyperbolic tangents.

    References:
        Gemma Team (2024), arXiv:2408.00118, section 2.

    Example:
        >>> q, k = torch.full((1, 1, 1, 1), 1e4), torch.tensor([[1.0], [-1.0]]).reshape(1, 1, 2, 1)
        >>> v = torch.tensor([[1.0], [0.0]]).reshape(1, 1, 2, 1)
        >>> softcap_attention(q, k, v, cap=0.5).item()  # scores ±1/2 instead of ±10000: sigmoid(1)
        0.7310585975646973
    """
    _check_inputs(q, k, v)
    scores = softcap(_scores(q, k, scale), cap)  # (B, H, T, S)
    return masked_softmax(scores, mask) @ _for_each_query_head(v, q)


def sink_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention with one more logit in the denominator; :func:`sink_attention` is the fast twin.

    .. math:: o_i = \sum_j \frac{e^{z_{ij}}}{e^{\sigma_h} + \sum_l e^{z_{il}}}\, v_j, \qquad Z = s\,QK^\top + M

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        sinks: ``(H,)`` logit of the sink of each query head, in the dtype of ``q``.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores, not on the sinks. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k``, ``v`` and ``sinks`` do not fit together, ``K`` does not divide
            ``H``, or the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    References:
        OpenAI (2025), arXiv:2508.10925, section 2.2: a learned bias in the denominator of the softmax of each head.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> sink_attention_reference(x, x, x, torch.ones(1)).item()  # e / (e + e)
        0.5
    """
    _check_inputs(q, k, v)
    _check_sinks(sinks, q)
    (B, H, T, _), S = q.shape, k.shape[2]
    scores = torch.cat([_scores(q, k, scale), sinks[:, None, None].expand(B, H, T, 1)], dim=-1)  # (B, H, T, S + 1)
    mask = None if mask is None else _with_sink(mask, (B, H, T, S))
    return masked_softmax(scores, mask)[..., :-1] @ _for_each_query_head(v, q)


def sink_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention with a sink: a place for weight that no key deserves, as in GPT-OSS.

    .. math:: o_i = \sum_j \frac{e^{z_{ij}}}{e^{\sigma_h} + \sum_l e^{z_{il}}}\, v_j, \qquad Z = s\,QK^\top + M

    The sink is one more key, whose score is :math:`\sigma_h` for every query and whose value is zero. It is appended in
    just this way, so that PyTorch's fused kernel can do the work: the scaled queries get one more feature
    :math:`\sigma_h`, the keys a feature 0, and the sink is the key :math:`(0, \dots, 0, 1)`.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        sinks: ``(H,)`` logit of the sink of each query head, in the dtype of ``q``. Zeros give the softmax that has
            one more in its denominator ("off by one").
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. The sink always is.
            Default: everywhere.
        scale: factor on the scores, not on the sinks. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``. A query that may attend nowhere gets zeros.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k``, ``v`` and ``sinks`` do not fit together, ``K`` does not divide
            ``H``, or the mask is not boolean or does not broadcast to ``(B, H, T, S)``.

    Cost: ``2 * B * H * T * (S + 1) * (Dk + Dv + 2)`` FLOPs, and a copy of ``q``, ``k`` and ``v``.

    References:
        OpenAI (2025), arXiv:2508.10925, section 2.2. Where sinks were found: Xiao et al. (2024), arXiv:2309.17453.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> sink_attention(x, x, x, torch.ones(1)).item()  # e / (e + e)
        0.5
    """
    _check_inputs(q, k, v)
    _check_sinks(sinks, q)
    (B, H, T, Dk), (K, S), Dv = q.shape, k.shape[1:3], v.shape[3]
    scale = Dk**-0.5 if scale is None else scale
    q = torch.cat([scale * q, sinks[:, None, None].expand(B, H, T, 1)], dim=-1)  # (B, H, T, Dk + 1)
    sink = F.pad(k.new_zeros(B, K, 1, Dk), (0, 1), value=1.0)  # the key (0, …, 0, 1)
    k = torch.cat([F.pad(k, (0, 1)), sink], dim=2)  # (B, K, S + 1, Dk + 1)
    v = F.pad(v, (0, 1, 0, 1))  # (B, K, S + 1, Dv + 1): the fused kernel on CPUs wants values as wide as keys
    mask = None if mask is None else _with_sink(mask, (B, H, T, S))
    return _fused(q, k, v, mask, 1.0)[..., :Dv]


def masked_softmax(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Softmax over the last dimension that gives no weight to what the mask forbids.

    .. math:: p_j = \frac{m_j \exp x_j}{\sum_i m_i \exp x_i}

    with :math:`m_j = 1` where allowed and 0 elsewhere; it equals :math:`\operatorname{softmax}(x + M)` with
    :math:`M = \ln m`, that is 0 or :math:`-\infty`.

    Args:
        scores: ``(…, S)`` scores of any shape.
        mask: ``(…, S)``, broadcastable to ``scores``; True where weight is allowed. Default: everywhere.

    Returns:
        ``(…, S)``, the shape of ``scores``. Rows sum to 1; a row without any allowed entry is zero, as is its gradient.

    Raises:
        ValueError: if the mask is not boolean, or does not broadcast to the shape of ``scores``.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.3: illegal connections are set to :math:`-\infty`.

    Example:
        >>> masked_softmax(torch.zeros(3), torch.tensor([True, True, False]))
        tensor([0.5000, 0.5000, 0.0000])
        >>> masked_softmax(torch.zeros(2), torch.tensor([False, False]))
        tensor([0., 0.])
    """
    if mask is None:
        return scores.softmax(dim=-1)
    _check_mask(mask, tuple(scores.shape))
    lowest = torch.finfo(scores.dtype).min  # -inf would put a NaN, 0/0, on the way of an empty row
    return scores.masked_fill(~mask, lowest).softmax(dim=-1).masked_fill(~mask, 0.0)


def softmax_jacobian(p: Tensor) -> Tensor:
    r"""Derivative of softmax, from its output.

    .. math:: \frac{\partial p_i}{\partial x_j} = p_i\,(\delta_{ij} - p_j), \qquad
        J = \operatorname{diag}(p) - p\,p^\top

    Args:
        p: ``(…, S)`` probabilities, the output of softmax over the last dimension.

    Returns:
        ``(…, S, S)`` Jacobians; row ``i``, column ``j`` is the derivative of ``p[i]`` with respect to score ``j``.

    Raises:
        ValueError: if ``p`` has no dimension.

    Cost: ``S`` times the memory of ``p``: to apply it to a gradient, use :math:`p \circ (g - p^\top g)` instead.

    References:
        Martins and Astudillo (2016), arXiv:1602.02068, section 2.

    Example:
        >>> softmax_jacobian(torch.tensor([0.5, 0.5]))
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
        >>> softmax_jacobian(torch.tensor([1.0, 0.0]))  # saturated: no gradient passes
        tensor([[0., 0.],
                [0., 0.]])
    """
    check_at_least("number of dimensions of p", p.ndim, 1, hint="pass the vector of probabilities")
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def causal_mask(t: int, s: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """Mask that lets a position see itself and what came before.

    The queries are the last ``t`` of ``s`` positions, so query ``i`` may see key ``j`` where ``j <= i + (s - t)``: the
    same function serves when keys of earlier positions come from a cache.

    Args:
        t: number of queries.
        s: number of keys, at least ``t``. Default: ``t``.
        device: where the mask is made. Default: torch's default device.

    Returns:
        ``(T, S)`` boolean mask, True where attention is allowed.

    Raises:
        ValueError: if ``t`` is negative or ``s < t``: the first queries would see nothing.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.3.

    Example:
        >>> causal_mask(2, 3).int()
        tensor([[1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    s = t if s is None else s
    check_at_least("number of queries t", t, 0)
    check_at_least("number of keys s", s, t, hint=f"the t = {t} queries are the last of the s positions")
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)


def sliding_window_mask(
    t: int, s: int | None = None, *, window: int, device: torch.device | str | None = None
) -> Tensor:
    """Causal mask that lets a position see only the last ``window`` positions, itself included.

    As in :func:`causal_mask` the queries are the last ``t`` of ``s`` positions: query ``i`` may see key ``j`` where
    ``i + (s - t) - window < j <= i + (s - t)``.

    Args:
        t: number of queries.
        s: number of keys, at least ``t``. Default: ``t``.
        window: number of keys ``W`` that a query sees, itself included; the first queries see fewer.
        device: where the mask is made. Default: torch's default device.

    Returns:
        ``(T, S)`` boolean mask, True where attention is allowed.

    Raises:
        ValueError: if ``t`` is negative, ``s < t``, or ``window`` is below 1.

    References:
        Beltagy et al. (2020), arXiv:2004.05150, section 3.1; causal as in Jiang et al. (2023), arXiv:2310.06825. The
        window counts as in transformers: a query sees itself and ``window - 1`` before it.

    Example:
        >>> sliding_window_mask(4, window=2).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    check_at_least("window", window, 1, hint="a query sees at least itself")
    mask = causal_mask(t, s, device=device)
    return mask.triu(mask.shape[1] - t - window + 1)


def padding_mask(lengths: Tensor, s: int) -> Tensor:
    """Mask that hides the padding after the end of each sequence of a batch.

    Args:
        lengths: ``(B,)`` integers, the number of real tokens of each sequence, from 0 to ``s``.
        s: number of keys, padding included.

    Returns:
        ``(B, 1, 1, S)`` boolean mask, True where the key is a real token.

    Raises:
        ValueError: if ``lengths`` is no vector, holds anything but integers, or a length is outside 0 … ``s``.

    References:
        ``key_padding_mask`` of ``torch.nn.MultiheadAttention``, with the opposite sign: there True marks padding.

    Example:
        >>> padding_mask(torch.tensor([3, 1]), 3)[:, 0, 0].int()
        tensor([[1, 1, 1],
                [1, 0, 0]], dtype=torch.int32)
    """
    _check_lengths("lengths", lengths, s)
    return (torch.arange(s, device=lengths.device) < lengths[:, None])[:, None, None, :]


def prefix_mask(prefix_lengths: Tensor, t: int) -> Tensor:
    """Mask that lets every position see the whole prefix, and what came before it.

    Inside the prefix attention runs in both directions, after it attention is causal. A prefix of length 0 or 1 is
    plain :func:`causal_mask`, one of length ``t`` allows everything.

    Args:
        prefix_lengths: ``(B,)`` integers, the length of the prefix of each sequence, from 0 to ``t``.
        t: number of positions, the same for queries and keys.

    Returns:
        ``(B, 1, T, T)`` boolean mask, True where attention is allowed.

    Raises:
        ValueError: if ``prefix_lengths`` is no vector, holds anything but integers, or a length is outside 0 … ``t``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.2.1, "causal with prefix".

    Example:
        >>> prefix_mask(torch.tensor([2]), 3)[0, 0].int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    _check_lengths("prefix_lengths", prefix_lengths, t)
    return causal_mask(t, device=prefix_lengths.device) | padding_mask(prefix_lengths, t)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Cut the features of each position into heads.

    Args:
        x: ``(B, T, H * Dh)`` features; the first ``Dh`` belong to head 0.
        n_heads: number of heads ``H``.

    Returns:
        ``(B, H, T, Dh)``, a view of ``x``.

    Raises:
        ValueError: if ``x`` has not three dimensions, or ``n_heads`` does not divide its width.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2.

    Example:
        >>> split_heads(torch.arange(4).reshape(1, 1, 4), 2)[0, :, 0]
        tensor([[0, 1],
                [2, 3]])
    """
    check_ndim("x", x.shape, ("B", "T", "H * Dh"))
    B, T, width = x.shape
    check_divides("n_heads", n_heads, "width of x", width)
    return x.view(B, T, n_heads, width // n_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads of each position side by side again; the inverse of :func:`split_heads`.

    Args:
        x: ``(B, H, T, Dh)`` outputs of the heads.

    Returns:
        ``(B, T, H * Dh)``, the heads side by side.

    Raises:
        ValueError: if ``x`` has not four dimensions.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2 ("Concat").

    Example:
        >>> x = torch.randn(2, 5, 12)
        >>> torch.equal(merge_heads(split_heads(x, 3)), x)
        True
    """
    check_ndim("x", x.shape, ("B", "H", "T", "Dh"))
    return x.transpose(1, 2).flatten(start_dim=2)


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """Return the scaled scores, ``(B, H, T, S)``."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return scale * (q @ _for_each_query_head(k, q).mT)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return attention by PyTorch's kernel, under a mask or with numbers that are added to the scores."""
    if mask is not None and mask.ndim < 2:
        mask = mask.expand(1, k.shape[2])  # the kernel wants at least (T, S)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if mask is None or y.is_cpu:
        return y
    # cuDNN's kernel gives a query that may attend nowhere the average of all values, where the others give zeros
    seen = mask if mask.dtype == torch.bool else mask > -math.inf
    return y.where(seen.any(dim=-1, keepdim=True), 0.0)


def _for_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Repeat the ``K`` shared heads of keys or values ``(B, K, S, ·)`` for the ``H`` query heads."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _with_sink(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the mask ``(…, S)`` with a last column for the sink, which every query may see."""
    _check_mask(mask, shape)
    mask = mask.expand(*mask.shape[:-1], shape[-1]) if mask.ndim > 1 else mask.expand(1, shape[-1])
    return F.pad(mask, (0, 1), value=True)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check what q, k and v must agree in."""
    if _fit(q, k, v):
        return
    check_ndim("q", q.shape, ("B", "H", "T", "Dk"))
    check_ndim("k", k.shape, ("B", "K", "S", "Dk"))
    check_ndim("v", v.shape, ("B", "K", "S", "Dv"))
    check_equal("batch size of k", k.shape[0], "batch size of q", q.shape[0], hint="repeat the shared one with expand")
    check_equal("shape (B, K, S) of v", tuple(v.shape[:3]), "shape (B, K, S) of k", tuple(k.shape[:3]))
    check_equal("width of k", k.shape[3], "width of q", q.shape[3], hint="queries and keys share Dk")
    check_at_least("width Dk of q and k", q.shape[3], 1)
    check_divides("heads of k and v", k.shape[1], "heads of q", q.shape[1], hint="each serves a group of query heads")
    for name, x in (("k", k), ("v", v)):
        check_equal(f"dtype of {name}", x.dtype, "dtype of q", q.dtype, hint="convert one of them with .to")


def _fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether q, k and v agree in everything, asked at once: for a single token, checks with messages take long."""
    a, b, c = q.shape, k.shape, v.shape
    if not (len(a) == len(b) == len(c) == 4 and q.dtype == k.dtype == v.dtype):
        return False
    return a[0] == b[0] and b[:3] == c[:3] and a[3] == b[3] > 0 and b[1] > 0 and a[1] % b[1] == 0


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Check that a mask is boolean and fits the scores."""
    check_boolean("mask", mask.dtype, hint="True means allowed; for an additive mask of 0 and -inf pass mask == 0")
    check_broadcastable("mask", mask.shape, shape, hint="expected (T, S), or (B or 1, H or 1, T or 1, S or 1)")


def _check_lengths(name: str, lengths: Tensor, most: int) -> None:
    """Check that lengths are a vector of integers between 0 and ``most``."""
    check_ndim(name, lengths.shape, ("B",), hint="one length for each sequence")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {lengths.dtype}, expected integers: convert with .long()")
    for length in lengths.tolist():
        if not 0 <= length <= most:
            raise ValueError(f"{name} holds {length}, expected 0 to {most}: every token that is counted must fit")


def _check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    """Check that numbers to add to the scores are of their dtype and fit them."""
    check_equal("dtype of bias", bias.dtype, "dtype of q", q.dtype, hint="convert it with .to; a mask goes into mask")
    check_broadcastable("bias", bias.shape, (*q.shape[:3], k.shape[2]), hint="expected (T, S), or (B or 1, H or 1, …)")


def _check_sinks(sinks: Tensor, q: Tensor) -> None:
    """Check that there is one sink for each query head."""
    check_ndim("sinks", sinks.shape, ("H",), hint="one logit for each query head")
    check_equal("number of sinks", sinks.shape[0], "heads of q", q.shape[1], hint="one logit for each query head")
    check_equal("dtype of sinks", sinks.dtype, "dtype of q", q.dtype, hint="convert them with .to")
