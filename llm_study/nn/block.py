"""Blocks of a Transformer: a sublayer in its residual and its norm, and the layers that are built of these.

A sublayer is any module that keeps the shape of its first argument: attention, a feed-forward network. What it is made
of, where the norm stands and which norm it is are passed in, so that the same two blocks serve the model of 2017 and
most of its successors.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["DecoderBlock", "EncoderBlock", "PostNormResidual", "PreNormResidual"]


class PreNormResidual(nn.Module):
    r"""A sublayer with its norm in front, added to its input (pre-LN).

    .. math:: Y = X + \operatorname{dropout}\bigl(f(\operatorname{norm}(X))\bigr)

    The input reaches the output untouched, so gradients have a way around every sublayer. The sum is not normalized:
    a stack of these needs a norm behind its last block.

    Args:
        sublayer: the function ``f``, called with the normalized input and whatever else the block is called with.
        norm: the norm of width ``D``.
        dropout: probability with which a number of the sublayer's output becomes 0 in training.

    Attributes:
        sublayer: the function ``f``.
        norm: the norm in front of it.

    References:
        Xiong et al. (2020), arXiv:2002.04745, figure 1 (b).

    Example:
        >>> import torch
        >>> block = PreNormResidual(nn.Identity(), nn.LayerNorm(2, eps=0.0))
        >>> block(torch.tensor([3.0, 5.0]))  # 3 - 1 and 5 + 1
        tensor([2., 6.], grad_fn=<AddBackward0>)
    """

    def __init__(self, sublayer: nn.Module, norm: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.sublayer, self.norm, self.dropout = sublayer, norm, nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add to ``x`` what the sublayer makes of its normalized form.

        Args:
            x: ``(B, T, D)`` input.
            args: further arguments of the sublayer; they are not normalized.
            kwargs: keyword arguments of the sublayer.

        Returns:
            ``(B, T, D)``, the sum.
        """
        y: Tensor = x + self.dropout(self.sublayer(self.norm(x), *args, **kwargs))
        return y


class PostNormResidual(nn.Module):
    r"""A sublayer added to its input, with the norm behind the sum (post-LN), as in the paper of 2017.

    .. math:: Y = \operatorname{norm}\bigl(X + \operatorname{dropout}(f(X))\bigr)

    Args:
        sublayer: the function ``f``, called with whatever the block is called with.
        norm: the norm of width ``D``.
        dropout: probability with which a number of the sublayer's output becomes 0 in training.

    Attributes:
        sublayer: the function ``f``.
        norm: the norm behind the sum.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, sections 3.1 and 5.4.

    Example:
        >>> import torch
        >>> block = PostNormResidual(nn.Identity(), nn.LayerNorm(2, eps=0.0))
        >>> block(torch.tensor([3.0, 5.0]))  # 6 and 10, normalized
        tensor([-1.,  1.], grad_fn=<NativeLayerNormBackward0>)
    """

    def __init__(self, sublayer: nn.Module, norm: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.sublayer, self.norm, self.dropout = sublayer, norm, nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalize the sum of ``x`` and what the sublayer makes of it.

        Args:
            x: ``(B, T, D)`` input.
            args: further arguments of the sublayer.
            kwargs: keyword arguments of the sublayer.

        Returns:
            ``(B, T, D)``, the normalized sum.
        """
        y: Tensor = self.norm(x + self.dropout(self.sublayer(x, *args, **kwargs)))
        return y


class EncoderBlock(nn.Module):
    """One layer of an encoder: self-attention, then a feed-forward network.

    With a causal mask it is also the layer of a decoder-only model, which has no second sequence to look at.

    Args:
        attention: self-attention, called as ``attention(x, mask=mask)``.
        feed_forward: what each position does on its own, called as ``feed_forward(x)``.
        wrap: puts a sublayer into its residual and its norm, for example
            ``lambda f: PreNormResidual(f, nn.LayerNorm(d_model))``; called once for each sublayer.

    Attributes:
        attention: the wrapped self-attention.
        feed_forward: the wrapped feed-forward network.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.1.

    Example:
        >>> import torch
        >>> from llm_study.nn.attention import MultiHeadAttention
        >>> ffn = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> block = EncoderBlock(MultiHeadAttention(8, 2), ffn, wrap=lambda f: PostNormResidual(f, nn.LayerNorm(8)))
        >>> block(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, attention: nn.Module, feed_forward: nn.Module, *, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        self.attention = wrap(attention)
        self.feed_forward = wrap(feed_forward)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Let the positions exchange, then think on their own.

        Args:
            x: ``(B, T, D)`` input.
            mask: ``(T, T)`` or broadcastable to ``(B, H, T, T)``; True where attention is allowed. Default: everywhere.

        Returns:
            ``(B, T, D)`` output.
        """
        y: Tensor = self.feed_forward(self.attention(x, mask=mask))
        return y


class DecoderBlock(nn.Module):
    """One layer of the decoder of an encoder–decoder: self-attention, attention to the encoder, feed-forward network.

    Args:
        attention: self-attention, called as ``attention(x, mask=mask)``.
        cross_attention: attention to the encoder's output, called as ``cross_attention(x, memory, mask=memory_mask)``.
        feed_forward: what each position does on its own, called as ``feed_forward(x)``.
        wrap: puts a sublayer into its residual and its norm, for example
            ``lambda f: PreNormResidual(f, nn.LayerNorm(d_model))``; called once for each sublayer.

    Attributes:
        attention: the wrapped self-attention.
        cross_attention: the wrapped attention to the encoder.
        feed_forward: the wrapped feed-forward network.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.1.

    Example:
        >>> import torch
        >>> from llm_study.functional.attention import causal_mask
        >>> from llm_study.nn.attention import MultiHeadAttention
        >>> parts = MultiHeadAttention(8, 2), MultiHeadAttention(8, 2), nn.Linear(8, 8)
        >>> block = DecoderBlock(*parts, wrap=lambda f: PostNormResidual(f, nn.LayerNorm(8)))
        >>> memory = torch.randn(2, 7, 8)  # the source may be longer than the target
        >>> block(torch.randn(2, 5, 8), memory, mask=causal_mask(5)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        attention: nn.Module,
        cross_attention: nn.Module,
        feed_forward: nn.Module,
        *,
        wrap: Callable[[nn.Module], nn.Module],
    ) -> None:
        super().__init__()
        self.attention = wrap(attention)
        self.cross_attention = wrap(cross_attention)
        self.feed_forward = wrap(feed_forward)

    def forward(
        self, x: Tensor, memory: Tensor, *, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Look at what was written, look at the source, then think.

        Args:
            x: ``(B, T, D)`` input.
            memory: ``(B, S, D)`` output of the encoder.
            mask: ``(T, T)`` or broadcastable to ``(B, H, T, T)``; True where self-attention is allowed. To write from
                left to right takes :func:`~llm_study.functional.attention.causal_mask`. Default: everywhere.
            memory_mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention to the memory is allowed.
                Default: everywhere.

        Returns:
            ``(B, T, D)`` output.
        """
        x = self.cross_attention(self.attention(x, mask=mask), memory, mask=memory_mask)
        y: Tensor = self.feed_forward(x)
        return y
