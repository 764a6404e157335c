"""Llama and its relatives: Mistral, Qwen2, Qwen3 and OLMo 2, each as what it changes in Llama.

All are decoders with rotary positions, RMSNorm, gated feed-forward parts and grouped heads. A model is made from its
configuration, or read from a folder by :func:`llm_study.models.auto.from_pretrained`.
"""

from functools import partial

import torch
from torch import Tensor

from llm_study.core.config import LlamaConfig, MistralConfig, Olmo2Config, Qwen2Config, Qwen3Config
from llm_study.functional.attention import merge_heads, split_heads
from llm_study.functional.positions import rope_cos_sin
from llm_study.models.decoder import (
    Decoder,
    DecoderForCausalLM,
    PostNormLayer,
    PreNormLayer,
    gated_feed_forward,
    self_attention,
)
from llm_study.nn.basic import LateCastRMSNorm, RMSNorm

__all__ = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Olmo2ForCausalLM"]


class LlamaForCausalLM(DecoderForCausalLM):
    """Llama, from the first to the third generation: norms before the sublayers, no biases unless asked for.

    Args:
        config: sizes and options.

    References:
        Touvron et al. (2023), arXiv:2302.13971 and arXiv:2307.09288; Grattafiori et al. (2024), arXiv:2407.21783.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> LlamaForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: LlamaConfig) -> None:
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attn = self_attention(config, bias=config.attention_bias)
            return PreNormLayer(attn, gated_feed_forward(config, config.hidden_act, bias=config.mlp_bias), norm)

        super().__init__(config, Decoder(config, layer, norm()))


class MistralForCausalLM(DecoderForCausalLM):
    """Mistral: Llama in which a query sees a sliding window of keys only.

    Layers stack the windows: after ``L`` layers of window ``W`` a position knows of the ``L * (W - 1)`` before it.

    Args:
        config: sizes and options.

    References:
        Jiang et al. (2023), arXiv:2310.06825.

    Example:
        >>> config = MistralConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, sliding_window=2,
        ... )
        >>> MistralForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: MistralConfig) -> None:
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)

        def layer() -> PreNormLayer:
            return PreNormLayer(self_attention(config), gated_feed_forward(config, config.hidden_act), norm)

        super().__init__(config, Decoder(config, layer, norm()))


class Qwen2ForCausalLM(DecoderForCausalLM):
    """Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and with windows in the upper layers if asked.

    Args:
        config: sizes and options.

    References:
        Yang et al. (2024), arXiv:2407.10671.

    Example:
        >>> config = Qwen2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2,
        ... )
        >>> Qwen2ForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: Qwen2Config) -> None:
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attn = self_attention(config, bias=True, out_bias=False)
            return PreNormLayer(attn, gated_feed_forward(config, config.hidden_act), norm)

        super().__init__(config, Decoder(config, layer, norm()))


class Qwen3ForCausalLM(DecoderForCausalLM):
    """Qwen3: Llama in which the queries and the keys of each head are normalized before they are rotated.

    Args:
        config: sizes and options.

    References:
        Qwen Team (2025), arXiv:2505.09388.

    Example:
        >>> config = Qwen3Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, head_dim=16,
        ... )
        >>> Qwen3ForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: Qwen3Config) -> None:
        norm = partial(RMSNorm, eps=config.rms_norm_eps)
        wide = partial(norm, config.hidden_size)

        def layer() -> PreNormLayer:
            q_norm, k_norm = norm(config.head_dim), norm(config.head_dim)
            attn = self_attention(config, bias=config.attention_bias, q_norm=q_norm, k_norm=k_norm)
            return PreNormLayer(attn, gated_feed_forward(config, config.hidden_act), wide)

        super().__init__(config, Decoder(config, layer, wide()))


class Olmo2ForCausalLM(DecoderForCausalLM):
    """OLMo 2: norms after the sublayers instead of before, and one norm over the queries, and the keys, of all heads.

    Args:
        config: sizes and options.

    References:
        OLMo Team (2024), arXiv:2501.00656.

    Example:
        >>> config = Olmo2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> Olmo2ForCausalLM(config)(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    def __init__(self, config: Olmo2Config) -> None:
        Dh, eps = config.head_dim, config.rms_norm_eps
        norm = partial(LateCastRMSNorm, config.hidden_size, eps=eps)

        def layer() -> PostNormLayer:
            q_norm = _AllHeadsRMSNorm(config.num_attention_heads * Dh, eps=eps)
            k_norm = _AllHeadsRMSNorm(config.num_key_value_heads * Dh, eps=eps)
            attn = self_attention(config, bias=config.attention_bias, q_norm=q_norm, k_norm=k_norm)
            return PostNormLayer(attn, gated_feed_forward(config, config.hidden_act), norm)

        super().__init__(config, Decoder(config, layer, norm(), cos_sin=_wide_cos_sin))


class _AllHeadsRMSNorm(LateCastRMSNorm):
    """A norm of ``(B, H, T, Dh)`` queries or keys over the features of all heads together."""

    def forward(self, x: Tensor) -> Tensor:
        return split_heads(super().forward(merge_heads(x)), x.shape[1])


def _wide_cos_sin(positions: Tensor, frequencies: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the tables in float32 at least: OLMo 2 rotates in that, the others in the dtype of the model."""
    return rope_cos_sin(positions, frequencies, dtype=torch.promote_types(dtype, torch.float32))
