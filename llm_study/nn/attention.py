"""Multi-head attention as a module: four projections around :func:`llm_study.functional.attention.attention`.

What models vary is handed in. Norms of queries and keys are modules given to the constructor; rotations of the
positions, and how queries meet keys (causal, windowed, with soft-capped scores, against a cache), come with each call.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_divides, check_equal, check_ndim
from llm_study.functional.attention import attention, merge_heads, split_heads
from llm_study.functional.positions import apply_rope
from llm_study.nn._side_by_side import SideBySide

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    r"""Attention by several heads at once, each in its own projection of the input.

    .. math::

        \begin{aligned}
        \operatorname{head}_i &= \operatorname{attention}\!\left(XW^Q_i,\; CW^K_i,\; CW^V_i\right), \\
        Y &= \left[\operatorname{head}_1, \dots, \operatorname{head}_H\right] W^O,
        \end{aligned}

    where :math:`C = X` in self-attention. The matrices of all heads stand side by side in one linear layer each.
    Queries and keys may be normalized, and after that rotated by their positions, before they meet.

    Args:
        d_model: width ``D`` of the input and the output.
        n_heads: number of query heads ``H``.
        n_kv_heads: number of key/value heads ``K``, a divisor of ``n_heads``. Default: ``n_heads``.
        d_head: width ``Dh`` of a head. Default: ``d_model / n_heads``.
        bias: whether the four projections have a bias.
        out_bias: whether ``o_proj`` has a bias, where it differs from the other three. Default: as ``bias`` says.
        q_norm: module applied to the queries ``(B, H, T, Dh)`` after they are split into heads. Default: none.
        k_norm: module applied to the keys ``(B, K, S, Dh)``. Default: none.
        scale: factor on the scores. Default: ``Dh ** -0.5``.

    Attributes:
        q_proj: ``(D → H * Dh)`` makes the queries.
        k_proj: ``(D → K * Dh)`` makes the keys.
        v_proj: ``(D → K * Dh)`` makes the values.
        o_proj: ``(H * Dh → D)`` mixes the outputs of the heads.
        q_norm: the norm of the queries, or None.
        k_norm: the norm of the keys, or None.
        scale: factor on the scores, or None for ``Dh ** -0.5``.

    Raises:
        ValueError: if ``n_kv_heads`` does not divide ``n_heads``, a size is below 1, or ``d_head`` is not given and
            ``n_heads`` does not divide ``d_model``.

    Cost: ``4 * B * D * Dh * (T * H + S * K) + 4 * B * H * T * S * Dh`` FLOPs, without biases.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2. Shared keys and values: Ainslie et al. (2023),
        arXiv:2305.13245. Norms of queries and keys: Henry et al. (2020), arXiv:2010.04245.

    Example:
        >>> import torch
        >>> layer = MultiHeadAttention(d_model=8, n_heads=4, n_kv_heads=2)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> sum(p.numel() for p in layer.parameters())  # (8 + 4 + 4 + 8) * 8
        192
    """

    bindable = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_at_least("d_model", d_model, 1)
        check_at_least("n_heads", n_heads, 1)
        check_divides("n_kv_heads", n_kv_heads, "n_heads", n_heads, hint="each serves a group of query heads")
        if d_head is None:
            check_divides("n_heads", n_heads, "d_model", d_model, hint="or say the width of a head with d_head")
            d_head = d_model // n_heads
        check_at_least("d_head", d_head, 1)
        self.d_model, self.n_heads, self.n_kv_heads, self.d_head = d_model, n_heads, n_kv_heads, d_head
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=bias if out_bias is None else out_bias)
        self.q_norm, self.k_norm, self.scale = q_norm, k_norm, scale
        self._side_by_side = SideBySide("q_proj", "k_proj", "v_proj")

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        attend: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Let each position of ``x`` gather from ``context``.

        Args:
            x: ``(B, T, D)`` input, which asks.
            context: ``(B, S, D)`` what keys and values are made from. Default: ``x`` itself (self-attention).
            mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.
            rotary: ``(T, Dh / 2)`` or ``(B, 1, T, Dh / 2)`` each, cosines and sines of the angles by which queries and
                keys are rotated, for self-attention. Default: no rotation.
            attend: ``(q, k, v, *, scale) → (B, H, T, Dh)``, how queries meet keys, such as
                :func:`llm_study.functional.attention.causal_attention`, or another function of that module with its
                mask and options filled in by :func:`functools.partial`. Default: plain attention with ``mask``.

        Returns:
            ``(B, T, D)``, one vector for each position of ``x``.

        Raises:
            ValueError: if ``x`` or ``context`` is not three-dimensional of width ``D``, their batch sizes differ, the
                mask is not boolean or does not broadcast to ``(B, H, T, S)``, or a mask comes together with ``attend``,
                or ``rotary`` together with ``context``.
        """
        if attend is not None and mask is not None:
            raise ValueError("mask and attend are both given, expected one: put the mask into attend with partial")
        if rotary is not None and context is not None:
            raise ValueError("rotary and context are both given, expected one: positions are those of x alone")
        self._check("x", x, "T")
        if context is not None:
            self._check("context", context, "S")
            check_equal(
                "batch size of context", context.shape[0], "batch size of x", x.shape[0], hint="repeat one with expand"
            )
        q, k, v = self._project(x, x if context is None else context)
        if rotary is not None:  # of all heads at once: for a single token the number of calls is what takes time
            both = apply_rope(torch.cat([q, k], dim=1), *rotary)
            q, k = both[:, : self.n_heads], both[:, self.n_heads :]
        attend = partial(attention, mask=mask) if attend is None else attend
        heads = attend(q, k, v, scale=self.scale)  # (B, H, T, Dh)
        y: Tensor = self.o_proj(merge_heads(heads))  # (B, T, H * Dh) → (B, T, D)
        return y

    def put_side_by_side(self) -> None:
        """Store the matrices of queries, keys and values in one, column by column, so that one product reads all three.

        The three layers keep their names, shapes and values, and are trained, saved and loaded as before; where no
        gradient is asked for, :meth:`forward` makes one product instead of three. Moving the module to another device
        or dtype takes the three apart again.

        References:
            Radford et al. (2019): GPT-2 holds one matrix for the three from the start, ``c_attn`` in its code.
        """
        self._side_by_side.put(self)

    def extra_repr(self) -> str:
        """Return the sizes that ``print`` shows beside the projections.

        Returns:
            Number of query heads, of key/value heads, and the width of a head.
        """
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, d_head={self.d_head}"

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        H, K = self.n_heads, self.n_kv_heads
        heads = self._side_by_side.product(self, x) if x is context else None
        if heads is not None:
            q, k, v = split_heads(heads, H + 2 * K).split_with_sizes((H, K, K), dim=1)
        else:
            q = split_heads(self.q_proj(x), H)  # (B, H, T, Dh)
            k = split_heads(self.k_proj(context), K)  # (B, K, S, Dh)
            v = split_heads(self.v_proj(context), K)  # (B, K, S, Dh)
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        return q, k, v

    def _check(self, name: str, x: Tensor, length: str) -> None:
        check_ndim(name, x.shape, ("B", length, "D"))
        check_equal(f"width of {name}", x.shape[-1], "d_model", self.d_model)
