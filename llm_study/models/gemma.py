"""Gemma 2 and the text model of Gemma 3: norms on both sides of each sublayer, sliding windows, scaled embeddings.

Gemma 2 caps scores and logits; Gemma 3 normalizes queries and keys instead, and rotates positions by two bases. A model
is made from its configuration, or read from a folder by :func:`llm_study.models.auto.from_pretrained`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from llm_study.core.config import Gemma2Config, Gemma3TextConfig
from llm_study.functional.attention import attention, causal_attention, softcap, softcap_attention
from llm_study.models.decoder import Decoder, DecoderForCausalLM, SandwichNormLayer, gated_feed_forward, self_attention
from llm_study.nn.basic import GemmaRMSNorm

__all__ = ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "ScaledEmbedding"]


class Gemma2ForCausalLM(DecoderForCausalLM):
    """Gemma 2: sandwich norms, soft caps of the scores and the logits, and a window in every other layer.

    Args:
        config: sizes and options.

    References:
        Gemma Team (2024), arXiv:2408.00118.

    Example:
        >>> config = Gemma2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, head_dim=8,
        ... )
        >>> Gemma2ForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: Gemma2Config) -> None:
        cap = config.attn_logit_softcapping
        attend = attention if cap is None else partial(softcap_attention, cap=cap)
        causal = causal_attention if cap is None else None  # the fused kernel caps no scores: a mask is needed
        norm = partial(GemmaRMSNorm, config.hidden_size, eps=config.rms_norm_eps)

        def layer() -> SandwichNormLayer:
            attn = self_attention(config, bias=config.attention_bias, scale=config.query_pre_attn_scalar**-0.5)
            return SandwichNormLayer(attn, gated_feed_forward(config, config.hidden_activation), norm)

        model = Decoder(config, layer, norm(), embedding=_embedding(config), attend=attend, causal=causal)
        super().__init__(config, model, finish=_cap(config))


class Gemma3ForCausalLM(DecoderForCausalLM):
    """The text model of Gemma 3: Gemma 2 with norms of queries and keys instead of caps of the scores.

    Layers with a window rotate positions by another base than layers that see everything.

    Args:
        config: sizes and options.

    References:
        Gemma Team (2025), arXiv:2503.19786.

    Example:
        >>> config = Gemma3TextConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, head_dim=8,
        ... )
        >>> Gemma3ForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: Gemma3TextConfig) -> None:
        scale = config.query_pre_attn_scalar**-0.5
        norm = partial(GemmaRMSNorm, eps=config.rms_norm_eps)
        wide = partial(norm, config.hidden_size)

        def layer() -> SandwichNormLayer:
            q_norm, k_norm = norm(config.head_dim), norm(config.head_dim)
            attn = self_attention(config, bias=config.attention_bias, scale=scale, q_norm=q_norm, k_norm=k_norm)
            return SandwichNormLayer(attn, gated_feed_forward(config, config.hidden_activation), wide)

        super().__init__(config, Decoder(config, layer, wide(), embedding=_embedding(config)), finish=_cap(config))


class ScaledEmbedding(nn.Embedding):
    r"""Embedding whose vectors are multiplied by a number, :math:`\sqrt D` in Gemma.

    The number is rounded to the dtype of the weights before it is used, as in the code of Gemma: in bfloat16 a width of
    3072 is scaled by 55.5, where :math:`\sqrt{3072} = 55.43`.

    Args:
        vocab_size: number of tokens ``V``.
        d_model: width ``D``.
        scale: the number.

    Example:
        >>> embedding = ScaledEmbedding(5, 2, scale=3.0)
        >>> ids = torch.tensor([4, 0])
        >>> torch.equal(embedding(ids), 3 * embedding.weight[ids])
        True
    """

    def __init__(self, vocab_size: int, d_model: int, *, scale: float) -> None:
        super().__init__(vocab_size, d_model)
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scaled vector of each id.

        Args:
            ids: ``(…)`` token ids.

        Returns:
            ``(…, D)`` vectors, in the dtype of the weights.
        """
        return super().forward(ids) * torch.tensor(self.scale, dtype=self.weight.dtype)


def _embedding(config: Gemma2Config) -> ScaledEmbedding:
    return ScaledEmbedding(config.vocab_size, config.hidden_size, scale=config.hidden_size**0.5)


def _cap(config: Gemma2Config) -> Callable[[Tensor], Tensor] | None:
    cap = config.final_logit_softcapping
    return None if cap is None else partial(softcap, cap=cap)
