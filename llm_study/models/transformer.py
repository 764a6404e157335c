"""The Transformer of 2017, complete: an encoder that reads, a decoder that writes, one table of embeddings for all.

It belongs to no family of Hugging Face; parameter names and the fields of its configuration are those of this book.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_boolean, check_divides, check_equal, check_ndim
from llm_study.functional.attention import causal_mask
from llm_study.functional.positions import sinusoidal
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import FeedForward, LayerNorm
from llm_study.nn.block import DecoderBlock, EncoderBlock, PostNormResidual

__all__ = ["Transformer", "TransformerConfig"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a :class:`Transformer`; the defaults are the base model of the paper.

    Args:
        vocab_size: number of tokens ``V`` that source and target share.
        d_model: width ``D`` of the model, an even number.
        n_heads: number of heads ``H`` of each attention, a divisor of ``d_model``.
        d_ff: width ``F`` between the two layers of the feed-forward network.
        n_layers: number of layers ``L`` of the encoder, and as many of the decoder.
        dropout: probability of dropout, on the embeddings and on the output of each sublayer.
        norm_eps: ``eps`` of the layer norms. The paper does not say which; 1e-5 is PyTorch's.

    Raises:
        ValueError: if a size is below 1, ``d_model`` is odd, or ``n_heads`` does not divide ``d_model``.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, table 3.

    Example:
        >>> TransformerConfig(vocab_size=100, d_model=32, n_heads=2, d_ff=64, n_layers=1).d_ff
        64
    """

    vocab_size: int
    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 2048
    n_layers: int = 6
    dropout: float = 0.1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_heads", "d_ff", "n_layers"):
            check_at_least(name, getattr(self, name), 1)
        check_divides("n_heads", self.n_heads, "d_model", self.d_model)
        check_divides("size of a pair", 2, "d_model", self.d_model, hint="each position has sines and cosines in pairs")


class Transformer(nn.Module):
    r"""The encoder–decoder of "Attention Is All You Need".

    .. math::

        \begin{aligned}
        M &= \operatorname{encoder}\bigl(\sqrt{D}\,E_{\text{source}} + \mathrm{PE}\bigr), \\
        \text{logits} &= \operatorname{decoder}\bigl(\sqrt{D}\,E_{\text{target}} + \mathrm{PE},\; M\bigr)\,E^\top,
        \end{aligned}

    with one table :math:`E` of ``(V, D)`` embeddings for source, target and output, sinusoidal positions, the norm
    behind each residual sum, ReLU in the feed-forward networks, and dropout where the paper has it.

    Args:
        config: the sizes.

    Attributes:
        config: the sizes.
        embedding: the table of embeddings, also the output projection.
        encoder: the layers of the encoder, :class:`~llm_study.nn.block.EncoderBlock`.
        decoder: the layers of the decoder, :class:`~llm_study.nn.block.DecoderBlock`.

    Cost: for ``S`` source and ``T`` target tokens, ``2 * B * (S * L * (4 * D**2 + 2 * D * F) + T * L * (6 * D**2 +
    2 * D * F) + S * L * 2 * D**2 + T * D * V) + 4 * B * D * L * (S**2 + T**2 + T * S)`` FLOPs, without biases.

    References:
        Vaswani et al. (2017), arXiv:1706.03762.

    Example:
        >>> config = TransformerConfig(vocab_size=100, d_model=32, n_heads=2, d_ff=64, n_layers=1)
        >>> model = Transformer(config)
        >>> source, target = torch.randint(100, (2, 7)), torch.randint(100, (2, 5))
        >>> model(source, target).shape
        torch.Size([2, 5, 100])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)  # of length 1; √D makes them of size 1
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(self._encoder_block() for _ in range(config.n_layers))
        self.decoder = nn.ModuleList(self._decoder_block() for _ in range(config.n_layers))

    def forward(
        self,
        source_ids: Tensor,
        target_ids: Tensor,
        *,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict, after each token of the target, the next one.

        Args:
            source_ids: ``(B, S)`` token ids of the source.
            target_ids: ``(B, T)`` token ids of the target, shifted right: it begins with the token that means "begin".
            source_mask: ``(B, S)``, True where a source token is real. Default: everywhere.
            target_mask: ``(B, T)``, True where a target token is real. Default: everywhere.

        Returns:
            ``(B, T, V)`` logits; those at position ``t`` see the target up to ``t``.

        Raises:
            ValueError: if ids are not ``(B, T)`` or outside the vocabulary, batch sizes differ, or a mask is not
                boolean of the shape of its ids.
        """
        memory = self.encode(source_ids, source_mask=source_mask)
        return self.decode(target_ids, memory, source_mask=source_mask, target_mask=target_mask)

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Tensor:
        """Read the source.

        Args:
            source_ids: ``(B, S)`` token ids of the source.
            source_mask: ``(B, S)``, True where a source token is real. Default: everywhere.

        Returns:
            ``(B, S, D)`` memory, one vector for each source token, which :meth:`decode` looks at.

        Raises:
            ValueError: if ids are not ``(B, S)`` or outside the vocabulary, or the mask is not boolean of their shape.
        """
        x = self._embed("source_ids", source_ids)
        mask = _key_mask("source_mask", source_mask, source_ids.shape)
        for block in self.encoder:
            x = block(x, mask=mask)
        return x

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor,
        *,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the next token after each token of the target, given what was read.

        Args:
            target_ids: ``(B, T)`` token ids of the target, shifted right.
            memory: ``(B, S, D)`` from :meth:`encode`.
            source_mask: ``(B, S)``, True where a source token is real. Default: everywhere.
            target_mask: ``(B, T)``, True where a target token is real. Default: everywhere.

        Returns:
            ``(B, T, V)`` logits.

        Raises:
            ValueError: if ids are not ``(B, T)`` or outside the vocabulary, ``memory`` does not fit, or a mask is not
                boolean of the shape that it belongs to.
        """
        x = self._embed("target_ids", target_ids)
        mask = causal_mask(x.shape[1], device=x.device)
        real = _key_mask("target_mask", target_mask, target_ids.shape)
        mask = mask if real is None else mask & real
        memory_mask = _key_mask("source_mask", source_mask, memory.shape[:2])
        for block in self.decoder:
            x = block(x, memory, mask=mask, memory_mask=memory_mask)
        return F.linear(x, self.embedding.weight)

    def _embed(self, name: str, ids: Tensor) -> Tensor:
        """Look up the embeddings, scale them, add the positions."""
        check_ndim(name, ids.shape, ("B", "T"), hint="use ids[None] for a batch of one")
        if ids.numel():
            check_at_least(f"smallest of {name}", int(ids.min()), 0)
            largest, V = int(ids.max()), self.config.vocab_size
            check_at_least("vocab_size", V, largest + 1, hint=f"the largest of {name} is {largest}")
        D = self.config.d_model
        x = self.embedding(ids) * D**0.5
        positions = sinusoidal(torch.arange(ids.shape[1], device=ids.device), D)
        y: Tensor = self.dropout(x + positions.to(x.dtype))
        return y

    def _attention(self) -> MultiHeadAttention:
        return MultiHeadAttention(self.config.d_model, self.config.n_heads)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.config.d_model, self.config.d_ff, activation=F.relu)

    def _wrap(self, sublayer: nn.Module) -> PostNormResidual:
        norm = LayerNorm(self.config.d_model, eps=self.config.norm_eps)
        return PostNormResidual(sublayer, norm, dropout=self.config.dropout)

    def _encoder_block(self) -> EncoderBlock:
        return EncoderBlock(self._attention(), self._feed_forward(), wrap=self._wrap)

    def _decoder_block(self) -> DecoderBlock:
        return DecoderBlock(self._attention(), self._attention(), self._feed_forward(), wrap=self._wrap)


def _key_mask(name: str, mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Turn a mask of real tokens ``(B, S)`` into one of keys ``(B, 1, 1, S)``."""
    if mask is None:
        return None
    check_boolean(name, mask.dtype, hint="True where a token is real")
    check_equal(f"shape of {name}", tuple(mask.shape), "shape of its ids (B, T)", tuple(shape))
    return mask[:, None, None, :]
