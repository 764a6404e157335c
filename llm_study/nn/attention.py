"""Multi-head attention as a module: four projections around :func:`llm_study.functional.attention.attention`."""

from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_divides, check_equal, check_ndim
from llm_study.functional.attention import attention, merge_heads, split_heads

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    r"""Attention by several heads at once, each in its own projection of the input.

    .. math::

        \begin{aligned}
        \operatorname{head}_i &= \operatorname{attention}\!\left(XW^Q_i,\; CW^K_i,\; CW^V_i\right), \\
        Y &= \left[\operatorname{head}_1, \dots, \operatorname{head}_H\right] W^O,
        \end{aligned}

    where :math:`C = X` in self-attention. The matrices of all heads stand side by side in one linear layer each.

    Args:
        d_model: width ``D`` of the input and the output.
        n_heads: number of query heads ``H``.
        n_kv_heads: number of key/value heads ``K``, a divisor of ``n_heads``. Default: ``n_heads``.
        d_head: width ``Dh`` of a head. Default: ``d_model / n_heads``.
        bias: whether the four projections have a bias.

    Attributes:
        q_proj: ``(D → H * Dh)`` makes the queries.
        k_proj: ``(D → K * Dh)`` makes the keys.
        v_proj: ``(D → K * Dh)`` makes the values.
        o_proj: ``(H * Dh → D)`` mixes the outputs of the heads.

    Raises:
        ValueError: if ``n_kv_heads`` does not divide ``n_heads``, a size is below 1, or ``d_head`` is not given and
            ``n_heads`` does not divide ``d_model``.

    Cost: ``4 * B * D * Dh * (T * H + S * K) + 4 * B * H * T * S * Dh`` FLOPs, without biases.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2. Shared keys and values: Ainslie et al. (2023),
        arXiv:2305.13245.

    Example:
        >>> import torch
        >>> layer = MultiHeadAttention(d_model=8, n_heads=4, n_kv_heads=2)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> sum(p.numel() for p in layer.parameters())  # (8 + 4 + 4 + 8) * 8
        192
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        bias: bool = False,
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
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=bias)

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Let each position of ``x`` gather from ``context``.

        Args:
            x: ``(B, T, D)`` input, which asks.
            context: ``(B, S, D)`` what keys and values are made from. Default: ``x`` itself (self-attention).
            mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.

        Returns:
            ``(B, T, D)``, one vector for each position of ``x``.

        Raises:
            ValueError: if ``x`` or ``context`` is not three-dimensional of width ``D``, their batch sizes differ, or
                the mask is not boolean or does not broadcast to ``(B, H, T, S)``.
        """
        context = x if context is None else context
        self._check("x", x, "T")
        self._check("context", context, "S")
        check_equal(
            "batch size of context", context.shape[0], "batch size of x", x.shape[0], hint="repeat one with expand"
        )
        q = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, Dh)
        k = split_heads(self.k_proj(context), self.n_kv_heads)  # (B, K, S, Dh)
        v = split_heads(self.v_proj(context), self.n_kv_heads)  # (B, K, S, Dh)
        heads = attention(q, k, v, mask=mask)  # (B, H, T, Dh)
        y: Tensor = self.o_proj(merge_heads(heads))  # (B, T, H * Dh) → (B, T, D)
        return y

    def extra_repr(self) -> str:
        """Return the sizes that ``print`` shows beside the projections.

        Returns:
            Number of query heads, of key/value heads, and the width of a head.
        """
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, d_head={self.d_head}"

    def _check(self, name: str, x: Tensor, length: str) -> None:
        check_ndim(name, x.shape, ("B", length, "D"))
        check_equal(f"width of {name}", x.shape[-1], "d_model", self.d_model)
