r"""Variants of attention that change what is computed or cached, built on :mod:`llm_study.functional.attention`.

Tensors are ``(B, H, T, Dh)`` and masks are boolean, True where attention is allowed, as there. Latent attention has two
widths of its own: ``R`` of the vector that is cached, and ``Dr`` of the part of a query and key that is rotated; the
part without position is ``Dn`` wide.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_broadcastable, check_divides, check_equal, check_ndim
from llm_study.functional.attention import attention, merge_heads, sliding_window_mask, split_heads
from llm_study.functional.norms import rms_norm
from llm_study.functional.positions import apply_rope

__all__ = [
    "LatentCache",
    "LatentWeights",
    "cross_layer_sources",
    "differential_attention",
    "differential_head_norm",
    "differential_lambda",
    "differential_lambda_initial",
    "gated_attention",
    "latent_attention",
    "latent_attention_absorbed",
    "latent_cache",
    "pool_heads",
    "sliding_window_attention",
]


# --- fewer keys and values


def pool_heads(weight: Tensor, *, n_heads: int, n_kv_heads: int) -> Tensor:
    r"""Average the projections of each group of heads: how a trained model becomes a grouped-query model.

    .. math:: \bar W_g = \frac{K}{H} \sum_{h \in g} W_h

    Args:
        weight: ``(H * Dh, …)`` weight or bias of the projection to keys or to values; the first ``Dh`` rows are head 0.
        n_heads: number of heads ``H`` that it has.
        n_kv_heads: number of heads ``K`` to keep, a divisor of ``H``.

    Returns:
        ``(K * Dh, …)``, one projection for each group of ``H / K`` neighboring heads. Some training has to follow.

    Raises:
        ValueError: if ``n_kv_heads`` does not divide ``n_heads``, or ``n_heads`` the rows of the weight.

    References:
        Ainslie et al. (2023), arXiv:2305.13245, section 2.1.

    Example:
        >>> pool_heads(torch.tensor([[1.0], [2.0], [3.0], [6.0]]), n_heads=4, n_kv_heads=2).flatten()
        tensor([1.5000, 4.5000])
    """
    check_divides("n_kv_heads", n_kv_heads, "n_heads", n_heads, hint="each keeps a whole group of heads")
    check_divides("n_heads", n_heads, "rows of weight", weight.shape[0])
    group, d_head = n_heads // n_kv_heads, weight.shape[0] // n_heads
    return weight.view(n_kv_heads, group, d_head, *weight.shape[1:]).mean(dim=1).flatten(0, 1)


def cross_layer_sources(n_layers: int, *, share: int) -> tuple[int, ...]:
    """Say for each layer which layer's keys and values it uses: the first of its group.

    Args:
        n_layers: number of layers ``L``.
        share: number of neighboring layers that use the same keys and values; 1 shares nothing, 2 halves the cache.

    Returns:
        ``L`` layer numbers, from 0. Only the layers that occur here have projections to keys and values, and a cache.

    Raises:
        ValueError: if ``n_layers`` is negative or ``share`` is below 1.

    References:
        Brandon et al. (2024), arXiv:2405.12981, section 2.

    Example:
        >>> cross_layer_sources(5, share=2)
        (0, 0, 2, 2, 4)
    """
    check_at_least("n_layers", n_layers, 0)
    check_at_least("share", share, 1, hint="1 shares nothing")
    return tuple(layer - layer % share for layer in range(n_layers))


# --- keys and values from a latent vector


@dataclass(frozen=True, kw_only=True)
class LatentWeights:
    """Matrices of multi-head latent attention, each as ``torch.nn.Linear`` stores it: ``(output, input)``.

    Args:
        n_heads: number of heads ``H``.
        d_rope: width ``Dr`` of the rotated part of queries and keys.
        kv_down: ``(R + Dr, D)`` makes the latent vector and the rotated key; ``kv_a_proj_with_mqa`` in transformers.
        kv_norm: ``(R,)`` weight of the RMS norm of the latent vector; ``kv_a_layernorm`` there.
        kv_up: ``(H * (Dn + Dv), R)`` makes from it, head by head, key and value; ``kv_b_proj`` there.
        out: ``(D, H * Dv)`` mixes the outputs of the heads; ``o_proj`` there.
        q_up: ``(H * (Dn + Dr), Rq)`` makes the queries; ``q_b_proj`` there, or ``q_proj`` with ``Rq = D``.
        q_down: ``(Rq, D)`` makes the latent vector of the queries; ``q_a_proj``. Default: queries are made directly.
        q_norm: ``(Rq,)`` weight of its RMS norm; ``q_a_layernorm``. Given exactly where ``q_down`` is.

    Raises:
        ValueError: if the shapes do not fit together, or only one of ``q_down`` and ``q_norm`` is given.

    Example:
        >>> w = LatentWeights(n_heads=2, d_rope=2, kv_down=torch.zeros(6, 8), kv_norm=torch.ones(4),
        ...     kv_up=torch.zeros(12, 4), out=torch.zeros(8, 6), q_up=torch.zeros(10, 8))
        >>> w.rank, w.d_nope, w.d_value
        (4, 3, 3)
    """

    n_heads: int
    d_rope: int
    kv_down: Tensor
    kv_norm: Tensor
    kv_up: Tensor
    out: Tensor
    q_up: Tensor
    q_down: Tensor | None = None
    q_norm: Tensor | None = None

    def __post_init__(self) -> None:
        H = self.n_heads
        check_at_least("n_heads", H, 1)
        for name, value in (("rows of q_up", self.q_up.shape[0]), ("columns of out", self.out.shape[1])):
            check_divides("n_heads", H, name, value)
        check_at_least("d_rope", self.d_rope, 1)
        check_equal("rows of kv_down", self.kv_down.shape[0], "R + d_rope", self.rank + self.d_rope)
        rows = H * (self.d_nope + self.d_value)
        check_equal("shape of kv_up", tuple(self.kv_up.shape), "(H * (Dn + Dv), R)", (rows, self.rank))
        if (self.q_down is None) != (self.q_norm is None):
            raise ValueError("only one of q_down and q_norm is given, expected both or none")
        inner = self.kv_down.shape[1] if self.q_down is None else self.q_down.shape[0]
        check_equal("columns of q_up", self.q_up.shape[1], "width of what it is applied to", inner)

    @property
    def rank(self) -> int:
        """Width ``R`` of the latent vector of keys and values."""
        return self.kv_norm.shape[0]

    @property
    def d_nope(self) -> int:
        """Width ``Dn`` of the part of queries and keys without position."""
        return self.q_up.shape[0] // self.n_heads - self.d_rope

    @property
    def d_value(self) -> int:
        """Width ``Dv`` of a value."""
        return self.out.shape[1] // self.n_heads

    @property
    def key_and_value_up(self) -> tuple[Tensor, Tensor]:
        """What makes of the latent vector the key and the value of each head, ``(H, Dn, R)`` and ``(H, Dv, R)``."""
        up = self.kv_up.view(self.n_heads, self.d_nope + self.d_value, self.rank)
        return up[:, : self.d_nope], up[:, self.d_nope :]


@dataclass(frozen=True)
class LatentCache:
    """What latent attention keeps of each token.

    Args:
        latent: ``(B, S, R)`` latent vectors of keys and values, normed.
        k_rope: ``(B, S, Dr)`` rotated keys, one for all heads.

    Example:
        >>> cache = LatentCache(torch.zeros(1, 3, 512), torch.zeros(1, 3, 64))
        >>> cache.latent.shape[-1] + cache.k_rope.shape[-1]
        576
    """

    latent: Tensor
    k_rope: Tensor


def latent_cache(
    x: Tensor, weights: LatentWeights, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> LatentCache:
    r"""Make what is kept of each token: its latent vector and its rotated key.

    .. math:: c_j = \operatorname{RMSNorm}(x_j W_{\downarrow}), \qquad k^R_j = R_j\,(x_j W_{KR})

    Args:
        x: ``(B, S, D)`` input.
        weights: the matrices.
        cos: ``(S, Dr / 2)`` or ``(B, 1, S, Dr / 2)`` from :func:`~llm_study.functional.positions.rope_cos_sin`.
        sin: ``(S, Dr / 2)`` or ``(B, 1, S, Dr / 2)`` from the same function.
        interleaved: how features are paired by the rotation; True for the published weights of DeepSeek.

    Returns:
        Latent vectors and rotated keys; append those of a new token along the dimension of positions.

    Raises:
        ValueError: if ``x`` is not ``(B, S, D)``, or the widths of ``cos`` and ``sin`` are not half of ``Dr``.

    References:
        DeepSeek-AI (2024), DeepSeek-V2, arXiv:2405.04434, section 2.1.2 and 2.1.3.

    Example:
        >>> w = LatentWeights(n_heads=1, d_rope=2, kv_down=torch.eye(4), kv_norm=torch.ones(2),
        ...     kv_up=torch.zeros(4, 2), out=torch.zeros(4, 2), q_up=torch.zeros(4, 4))
        >>> still = torch.ones(1, 1), torch.zeros(1, 1)  # position 0: no rotation
        >>> latent_cache(torch.tensor([[[3.0, 3.0, 1.0, 2.0]]]), w, *still).k_rope.flatten()
        tensor([1., 2.])
    """
    _check_input(x, weights)
    down = F.linear(x, weights.kv_down)
    latent, k_rope = down[..., : weights.rank], down[..., weights.rank :]
    k_rope = apply_rope(k_rope.unsqueeze(1), cos, sin, interleaved=interleaved).squeeze(1)
    return LatentCache(rms_norm(latent, weights.kv_norm), k_rope)


def latent_attention(
    x: Tensor,
    cache: LatentCache,
    weights: LatentWeights,
    cos: Tensor,
    sin: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    interleaved: bool = False,
) -> Tensor:
    r"""Multi-head latent attention, with keys and values of all heads written out.

    .. math:: z_{ij} = s\,\bigl(q^C_i \cdot W_{UK} c_j + q^R_i \cdot k^R_j\bigr), \qquad
        o_i = \sum_j \operatorname{softmax}(z_i)_j\, W_{UV} c_j

    for each head, with its own :math:`W_{UK}` and :math:`W_{UV}`. This is the form for training and for reading a
    prompt; :func:`latent_attention_absorbed` gives the same and is the form for decoding.

    Args:
        x: ``(B, T, D)`` input of the tokens that ask.
        cache: what :func:`latent_cache` made of the ``S`` tokens that are asked.
        weights: the matrices.
        cos: ``(T, Dr / 2)`` or ``(B, 1, T, Dr / 2)`` for the positions of ``x``.
        sin: ``(T, Dr / 2)`` or ``(B, 1, T, Dr / 2)`` for the positions of ``x``.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``(Dn + Dr) ** -0.5``.
        interleaved: how features are paired by the rotation; True for the published weights of DeepSeek.

    Returns:
        ``(B, T, D)``, one vector for each position of ``x``.

    Raises:
        ValueError: if ``x`` is not ``(B, T, D)``, or the mask, ``cos`` or ``sin`` does not fit.

    Cost: besides the projections ``2 * B * H * T * S * (Dn + Dr + Dv)`` FLOPs, and ``2 * B * H * S * R * (Dn + Dv)`` to
    write out keys and values.

    References:
        DeepSeek-AI (2024), DeepSeek-V2, arXiv:2405.04434, section 2.1.

    Example:
        >>> w = LatentWeights(n_heads=1, d_rope=2, kv_down=torch.eye(4), kv_norm=torch.ones(2),
        ...     kv_up=torch.ones(4, 2), out=torch.ones(4, 2), q_up=torch.ones(4, 4))
        >>> still = torch.ones(1, 1), torch.zeros(1, 1)
        >>> x = torch.ones(1, 1, 4)
        >>> latent_attention(x, latent_cache(x, w, *still), w, *still).flatten()  # one key: weight 1, value (2, 2)
        tensor([4.0000, 4.0000, 4.0000, 4.0000])
    """
    q_nope, q_rope = _latent_queries(x, weights, cos, sin, interleaved)
    k_up, v_up = weights.key_and_value_up
    latent = cache.latent.unsqueeze(1)  # (B, 1, S, R)
    k_rope = cache.k_rope.unsqueeze(1).expand(-1, weights.n_heads, -1, -1)  # (B, H, S, Dr)
    k = torch.cat([latent @ k_up.mT, k_rope], dim=-1)  # (B, H, S, Dn + Dr)
    heads = attention(torch.cat([q_nope, q_rope], dim=-1), k, latent @ v_up.mT, mask=mask, scale=scale)
    return F.linear(merge_heads(heads), weights.out)


def latent_attention_absorbed(
    x: Tensor,
    cache: LatentCache,
    weights: LatentWeights,
    cos: Tensor,
    sin: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    interleaved: bool = False,
) -> Tensor:
    r"""Multi-head latent attention on the latent vectors themselves: the same result, without keys and values.

    .. math:: z_{ij} = s\,\bigl(W_{UK}^\top q^C_i \cdot c_j + q^R_i \cdot k^R_j\bigr), \qquad
        o_i = W_{UV} \sum_j \operatorname{softmax}(z_i)_j\, c_j

    The matrices that widen the latent vector are applied to the query and to the output instead, once for each new
    token. What is left is multi-query attention: one key ``(c, k_rope)`` and one value ``c`` for all heads.

    Args:
        x: ``(B, T, D)`` input of the tokens that ask.
        cache: what :func:`latent_cache` made of the ``S`` tokens that are asked.
        weights: the matrices.
        cos: ``(T, Dr / 2)`` or ``(B, 1, T, Dr / 2)`` for the positions of ``x``.
        sin: ``(T, Dr / 2)`` or ``(B, 1, T, Dr / 2)`` for the positions of ``x``.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``(Dn + Dr) ** -0.5``, not that of the wider latent query.
        interleaved: how features are paired by the rotation; True for the published weights of DeepSeek.

    Returns:
        ``(B, T, D)``, one vector for each position of ``x``.

    Raises:
        ValueError: if ``x`` is not ``(B, T, D)``, or the mask, ``cos`` or ``sin`` does not fit.

    Cost: besides the projections ``2 * B * H * T * S * (2 * R + Dr)`` FLOPs, and ``2 * B * H * T * R * (Dn + Dv)`` at
    both ends, which does not grow with ``S``.

    References:
        DeepSeek-AI (2024), DeepSeek-V2, arXiv:2405.04434, section 2.1.2: the matrices can be absorbed.

    Example:
        >>> w = LatentWeights(n_heads=1, d_rope=2, kv_down=torch.eye(4), kv_norm=torch.ones(2),
        ...     kv_up=torch.ones(4, 2), out=torch.ones(4, 2), q_up=torch.ones(4, 4))
        >>> still = torch.ones(1, 1), torch.zeros(1, 1)
        >>> x = torch.ones(1, 1, 4)
        >>> latent_attention_absorbed(x, latent_cache(x, w, *still), w, *still).flatten()
        tensor([4.0000, 4.0000, 4.0000, 4.0000])
    """
    q_nope, q_rope = _latent_queries(x, weights, cos, sin, interleaved)
    k_up, v_up = weights.key_and_value_up
    scale = (weights.d_nope + weights.d_rope) ** -0.5 if scale is None else scale
    q = torch.cat([q_nope @ k_up, q_rope], dim=-1)  # (B, H, T, R + Dr)
    k = torch.cat([cache.latent, cache.k_rope], dim=-1).unsqueeze(1)  # (B, 1, S, R + Dr)
    mixed = attention(q, k, cache.latent.unsqueeze(1), mask=mask, scale=scale)  # (B, H, T, R)
    return F.linear(merge_heads(mixed @ v_up.mT), weights.out)


# --- a window


def sliding_window_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float | None = None) -> Tensor:
    """Causal attention to the last ``window`` positions, in time and memory that grow with ``T``, not its square.

    The same as :func:`~llm_study.functional.attention.attention` with
    :func:`~llm_study.functional.attention.sliding_window_mask`. The sequence is cut into blocks of ``window`` queries;
    whatever a block may see lies in the block itself and the one before, so each needs ``2 * window`` keys only.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, T, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, T, Dv)`` values.
        window: number of keys ``W`` that a query sees, itself included.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``.

    Raises:
        ValueError: if shapes or dtypes of ``q``, ``k`` and ``v`` do not fit together, there are not as many keys as
            queries, or ``window`` is below 1.

    Cost: ``4 * B * H * T * W * (Dk + Dv)`` FLOPs where ``W`` divides ``T``: twice what the window holds.

    References:
        Beltagy et al. (2020), arXiv:2004.05150, section 3.1.

    Example:
        >>> v = torch.tensor([1.0, 3.0, 5.0]).reshape(1, 1, 3, 1)
        >>> sliding_window_attention(v, v, v, window=2, scale=0.0).flatten()  # averages of the last two
        tensor([1., 2., 4.])
    """
    check_at_least("window", window, 1, hint="a query sees at least itself")
    check_ndim("q", q.shape, ("B", "H", "T", "Dk"))
    for name, x in (("k", k), ("v", v)):
        check_ndim(name, x.shape, ("B", "K", "T", "Dh"))
        check_equal(f"length of {name}", x.shape[2], "length of q", q.shape[2], hint="for a cache use a mask")
    B, T = q.shape[0], q.shape[2]
    if window >= T:
        return attention(q, k, v, mask=sliding_window_mask(T, window=window, device=q.device), scale=scale)
    blocks = -(-T // window)
    q, k, v = (_blocks(x, window, blocks) for x in (q, k, v))  # (B, blocks, ·, W, ·)
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1], x], dim=3) for x in (k, v))  # previous and own
    mask = sliding_window_mask(window, 2 * window, window=window, device=q.device).repeat(blocks, 1, 1, 1)
    mask[0, ..., :window] = False  # nothing comes before the first block
    out = attention(*(x.flatten(0, 1) for x in (q, k, v)), mask=mask.repeat(B, 1, 1, 1), scale=scale)
    out = out.reshape(B, blocks, *out.shape[1:]).transpose(1, 2)  # (B, H, blocks, W, Dv)
    return out.flatten(2, 3)[:, :, :T]


# --- gates and differences


def gated_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention whose output passes a sigmoid gate before the heads are mixed.

    .. math:: \operatorname{attention}(Q, K, V) \odot \sigma(G)

    where :math:`G` is a projection of the input of the query.

    Args:
        q: ``(B, H, T, Dk)`` queries.
        k: ``(B, K, S, Dk)`` keys; ``K`` divides ``H``.
        v: ``(B, K, S, Dv)`` values.
        gate: ``(B, H, T, Dv)``, or ``(B, H, T, 1)`` for one gate per head; before the sigmoid.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``.

    Raises:
        ValueError: if shapes or dtypes do not fit together, as in :func:`~llm_study.functional.attention.attention`, or
            the gate does not broadcast to the output.

    References:
        Qiu et al. (2025), arXiv:2505.06708, section 2: the gate after attention is the one that helps most.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gated_attention(x, x, x, torch.zeros(1, 1, 1, 1)).item()  # sigmoid(0)
        0.5
    """
    check_broadcastable("gate", gate.shape, (*q.shape[:3], v.shape[-1]), hint="one for each output, or for each head")
    return attention(q, k, v, mask=mask, scale=scale) * torch.sigmoid(gate)


def differential_attention(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    lam: Tensor | float,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Difference of two attentions over the same values: what both see alike cancels.

    .. math::

        \bigl(\operatorname{softmax}(s\,Q_1K_1^\top + M) - \lambda \operatorname{softmax}(s\,Q_2K_2^\top + M)\bigr)V

    Args:
        q1: ``(B, H, T, Dk)`` queries of the first map.
        k1: ``(B, K, S, Dk)`` keys of the first map; ``K`` divides ``H``.
        q2: ``(B, H, T, Dk)`` queries of the second map.
        k2: ``(B, K, S, Dk)`` keys of the second map.
        v: ``(B, K, S, Dv)`` values, in the paper with ``Dv = 2 * Dk``.
        lam: ``()`` or broadcastable to ``(B, H, T, 1)``, the weight of the second map.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
        scale: factor on the scores. Default: ``Dk ** -0.5``.

    Returns:
        ``(B, H, T, Dv)``, in the dtype of ``v``; :func:`differential_head_norm` comes next.

    Raises:
        ValueError: if shapes or dtypes do not fit together, as in :func:`~llm_study.functional.attention.attention`.

    Cost: two calls of :func:`~llm_study.functional.attention.attention`.

    References:
        Ye et al. (2024), arXiv:2410.05258, equation (1).

    Example:
        >>> x, v = torch.ones(1, 1, 2, 1), torch.tensor([[1.0], [3.0]]).reshape(1, 1, 2, 1)
        >>> differential_attention(x, x, x, x, v, 1.0).flatten()  # two equal maps: nothing is left
        tensor([0., 0.])
    """
    check_equal("shape of q2", tuple(q2.shape), "shape of q1", tuple(q1.shape), hint="the two maps are of one size")
    first = attention(q1, k1, v, mask=mask, scale=scale)
    return first - lam * attention(q2, k2, v, mask=mask, scale=scale)


def differential_lambda(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, *, initial: float) -> Tensor:
    r"""Weight of the second map, from four learned vectors.

    .. math:: \lambda = e^{\lambda_{q_1} \cdot \lambda_{k_1}} - e^{\lambda_{q_2} \cdot \lambda_{k_2}}
        + \lambda_{\text{init}}

    Args:
        q1: ``(Dk,)`` vector :math:`\lambda_{q_1}`.
        k1: ``(Dk,)`` vector :math:`\lambda_{k_1}`.
        q2: ``(Dk,)`` vector :math:`\lambda_{q_2}`.
        k2: ``(Dk,)`` vector :math:`\lambda_{k_2}`.
        initial: :math:`\lambda_{\text{init}}` of the layer, from :func:`differential_lambda_initial`.

    Returns:
        ``()``, one number for all heads of a layer; computed in at least float32.

    References:
        Ye et al. (2024), arXiv:2410.05258, equation (2).

    Example:
        >>> zeros = torch.zeros(4)
        >>> differential_lambda(zeros, zeros, zeros, zeros, initial=0.2)
        tensor(0.2000)
    """
    wide = torch.promote_types(q1.dtype, torch.float32)
    first, second = ((q.to(wide) * k.to(wide)).sum().exp() for q, k in ((q1, k1), (q2, k2)))
    return first - second + initial


def differential_lambda_initial(layer: int) -> float:
    r"""Where the weight of the second map starts, layer by layer.

    .. math:: \lambda_{\text{init}} = 0.8 - 0.6\,e^{-0.3\,l}

    Args:
        layer: number ``l`` of the layer, from 0; the paper counts from 1 and writes ``l - 1``.

    Returns:
        0.2 in the first layer, nearly 0.8 in deep ones.

    Raises:
        ValueError: if ``layer`` is negative.

    References:
        Ye et al. (2024), arXiv:2410.05258, section 2.1.

    Example:
        >>> [round(differential_lambda_initial(layer), 3) for layer in (0, 1, 11)]
        [0.2, 0.356, 0.778]
    """
    check_at_least("layer", layer, 0, hint="layers are counted from 0")
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def differential_head_norm(x: Tensor, *, initial: float, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    r"""Norm of each head by itself after the difference, scaled so that gradients are those of plain attention.

    .. math:: (1 - \lambda_{\text{init}}) \operatorname{RMSNorm}(o)

    Args:
        x: ``(B, H, T, Dv)`` output of :func:`differential_attention`.
        initial: :math:`\lambda_{\text{init}}` of the layer.
        weight: ``(Dv,)`` weight of the norm. Default: none.
        eps: what is added to the mean square.

    Returns:
        ``(B, H, T, Dv)``, ready for :func:`~llm_study.functional.attention.merge_heads`.

    References:
        Ye et al. (2024), arXiv:2410.05258, equation (3).

    Example:
        >>> differential_head_norm(torch.tensor([3.0, 3.0]).reshape(1, 1, 1, 2), initial=0.2).flatten()
        tensor([0.8000, 0.8000])
    """
    return (1 - initial) * rms_norm(x, weight, eps=eps)


# --- helpers


def _latent_queries(
    x: Tensor, weights: LatentWeights, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Return the parts of the queries without and with rotation, ``(B, H, T, Dn)`` and ``(B, H, T, Dr)``."""
    _check_input(x, weights)
    if weights.q_down is not None:
        x = rms_norm(F.linear(x, weights.q_down), weights.q_norm)
    q = split_heads(F.linear(x, weights.q_up), weights.n_heads)
    q_nope, q_rope = q[..., : weights.d_nope], q[..., weights.d_nope :]
    return q_nope, apply_rope(q_rope, cos, sin, interleaved=interleaved)


def _check_input(x: Tensor, weights: LatentWeights) -> None:
    """Check that an input is of the width that the matrices take."""
    check_ndim("x", x.shape, ("B", "T", "D"))
    check_equal("width of x", x.shape[-1], "columns of kv_down", weights.kv_down.shape[1])


def _blocks(x: Tensor, window: int, blocks: int) -> Tensor:
    """Cut ``(B, ·, T, Dh)`` into blocks of ``window`` positions, ``(B, blocks, ·, W, Dh)``; zeros fill the last."""
    x = F.pad(x, (0, 0, 0, blocks * window - x.shape[2]))
    return x.reshape(*x.shape[:2], blocks, window, x.shape[3]).transpose(1, 2)
