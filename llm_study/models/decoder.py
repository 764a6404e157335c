"""What the decoders after Llama have in common: one skeleton, into which each family puts its parts.

A :class:`Decoder` embeds the ids, passes them through layers that are built alike, and normalizes the sum. In what the
layers differ, how far back they look and how they rotate positions, is not built into them: the decoder works it out
once for a call and hands it to each layer. Names of modules are those of Hugging Face, so that a checkpoint fits as is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_equal
from llm_study.core.config import DecoderConfig, Rope
from llm_study.functional.activations import activation
from llm_study.functional.attention import attention, causal_attention, causal_mask, sliding_window_mask
from llm_study.functional.positions import linear_frequencies, llama3_frequencies, rope_cos_sin, rope_frequencies
from llm_study.models._common import check_mask, draw, seen
from llm_study.models.base import CausalLM
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import GatedFeedForward
from llm_study.nn.cache import Cache

__all__ = [
    "DecoderForCausalLM",
    "Decoder",
    "PreNormLayer",
    "PostNormLayer",
    "SandwichNormLayer",
    "self_attention",
    "gated_feed_forward",
    "rotary_frequencies",
]


# --- the skeleton


class DecoderForCausalLM(CausalLM):
    """A decoder and the head that turns its output into logits of the next token.

    Fresh matrices are normal with standard deviation ``config.initializer_range``, fresh biases 0. Dropout is not
    applied, not even where ``config.attention_dropout`` asks for it in training.

    Args:
        config: the configuration of the family.
        model: the decoder.
        finish: ``(B, T, V) → (B, T, V)``, what happens to the logits last. Default: nothing.

    Attributes:
        model: the decoder.
        lm_head: ``(D → V)``; its matrix is that of the embedding where ``config.tie_word_embeddings`` says so.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> norm = partial(nn.LayerNorm, 32, bias=False)  # a family of our own: Llama with another norm
        >>> layer = lambda: PreNormLayer(self_attention(config), gated_feed_forward(config, "silu"), norm)
        >>> model = DecoderForCausalLM(config, Decoder(config, layer, norm()))
        >>> model(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 97])
    """

    tied: ClassVar[Mapping[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    unused: ClassVar[tuple[str, ...]] = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)  # of old files

    def __init__(
        self, config: DecoderConfig, model: "Decoder", *, finish: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(config)
        self.model, self.finish = model, finish
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(partial(draw, std=config.initializer_range))
        self.tie()

    @property
    def body(self) -> "Decoder":
        """The decoder."""
        return self.model

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""
        return self.model.layers

    @property
    def norm(self) -> nn.Module:
        """The norm after the last layer."""
        return self.model.norm

    def head(self, x: Tensor) -> Tensor:
        """Turn normalized vectors into logits, and finish them.

        Args:
            x: ``(B, T, D)`` what the norm after the last layer gives.

        Returns:
            ``(B, T, V)`` logits.
        """
        logits = super().head(x)
        return logits if self.finish is None else self.finish(logits)


class Decoder(nn.Module):
    """Embedding, layers, norm: from ids to one vector for each position.

    Each layer gets its rotations and its way to attend from here, computed once for each kind of layer in a call. With
    no mask, a layer that sees all keys up to the query calls ``causal``, which needs no mask in memory.

    Args:
        config: sizes, and for each layer its window and its rotation.
        layer: builds one layer, called as ``layer(x, rotary=…, attend=…)``.
        norm: the norm of width ``D`` after the last layer.
        embedding: ``(V, D)`` embedding of the ids. Default: a plain one.
        attend: ``(q, k, v, *, mask, scale) → (B, H, T, Dh)``, attention under a mask.
        causal: ``(q, k, v, *, scale) → (B, H, T, Dh)``, the same, causal. None: ``attend`` with the causal mask.
        cos_sin: ``(positions, frequencies, *, dtype) → (cos, sin)``, tables of the rotations.

    Attributes:
        embed_tokens: the embedding.
        layers: the layers.
        norm: the norm after them.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> norm = partial(nn.RMSNorm, 32)
        >>> layer = lambda: PreNormLayer(self_attention(config), gated_feed_forward(config, "silu"), norm)
        >>> Decoder(config, layer, norm())(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 32])
    """

    bindable = True

    def __init__(
        self,
        config: DecoderConfig,
        layer: Callable[[], nn.Module],
        norm: nn.Module,
        *,
        embedding: nn.Module | None = None,
        attend: Callable[..., Tensor] = attention,
        causal: Callable[..., Tensor] | None = causal_attention,
        cos_sin: Callable[..., tuple[Tensor, Tensor]] = rope_cos_sin,
    ) -> None:
        super().__init__()
        count = config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if embedding is None else embedding
        self.layers = nn.ModuleList(layer() for _ in range(count))
        self.norm = norm
        self.d_head = config.head_dim
        self.windows = [config.window(i) for i in range(count)]
        self.ropes = [config.rope(i) for i in range(count)]
        self.attend, self.causal, self.cos_sin = attend, causal, cos_sin

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return one vector for each position.

        Args:
            ids: ``(B, T)`` token ids; with a cache only those that are new.
            mask: ``(B, T)`` boolean, True where a token is real; or, without a cache, ``(B, T, T)``, True where the
                token of a row may see that of a column, if causality and the window allow it too. Default: all are.
            positions: ``(B, T)`` position of each token. Default: 0, 1, 2, …, or what the cache says.
            cache: keys and values of the tokens before, to which those of ``ids`` are added. Default: none.

        Returns:
            ``(B, T, D)``, normalized.

        Raises:
            ValueError: if ``mask`` or ``positions`` has a shape that does not fit ``ids``, the mask is not boolean, or
                the tokens do not fit into the cache.
        """
        if mask is not None:
            check_mask(mask, ids, cached=cache is not None)
        _check_positions(ids, positions)
        counted = torch.arange(ids.shape[1], device=ids.device) if cache is None else cache.begin(ids, mask)
        x = self.embed_tokens(ids)  # (B, T, D)
        positions = counted if positions is None else positions
        rotary = {rope: self._rotary(rope, positions, x.dtype) for rope in set(self.ropes)}
        for layer, rope, attend in zip(self.layers, self.ropes, self._ways(ids, mask, cache), strict=True):
            x = layer(x, rotary=rotary[rope], attend=attend)
        if cache is not None:
            cache.end()
        y: Tensor = self.norm(x)
        return y

    def _ways(self, ids: Tensor, mask: Tensor | None, cache: Cache | None) -> list[Callable[..., Tensor]]:
        """Return for each layer how it attends."""
        if cache is not None:
            return [partial(cache.attend, i, how=self._meet) for i in range(len(self.layers))]
        attend = {window: self._attend(window, ids, mask) for window in set(self.windows)}
        return [attend[window] for window in self.windows]

    def _meet(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attend to keys from a cache; without a mask being causal says which."""
        T, S = q.shape[2], k.shape[2]
        if mask is None and T > 1:
            if self.causal is not None:
                return self.causal(q, k, v, scale=scale)
            mask = causal_mask(T, S, device=q.device)
        return self.attend(q, k, v, mask=mask, scale=scale)

    def _rotary(self, rope: Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, ``(T, Dh / 2)`` or ``(B, 1, T, Dh / 2)``."""
        frequencies = rotary_frequencies(rope, self.d_head, device=positions.device)
        cos, sin = self.cos_sin(positions, frequencies, dtype=dtype)
        return (cos, sin) if positions.ndim == 1 else (cos[:, None], sin[:, None])

    def _attend(self, window: int | None, ids: Tensor, real: Tensor | None) -> Callable[..., Tensor]:
        """Return how the layers of one window attend."""
        T = ids.shape[1]
        if window is not None and window < T:
            mask = sliding_window_mask(T, window=window, device=ids.device)
        elif real is None and self.causal is not None:
            return self.causal
        else:
            mask = causal_mask(T, device=ids.device)
        return partial(self.attend, mask=mask if real is None else mask & seen(real))


# --- layers: where the norms stand


class PreNormLayer(nn.Module):
    r"""A layer whose norms stand before attention and before the feed-forward part, as in Llama.

    .. math::

        Y = X + \operatorname{attn}(\operatorname{norm}_1 X), \qquad
        Z = Y + \operatorname{ffn}(\operatorname{norm}_2 Y)

    Args:
        self_attn: attention.
        mlp: the feed-forward part.
        norm: builds one norm of width ``D``.

    Attributes:
        self_attn: attention.
        mlp: the feed-forward part.
        input_layernorm: the norm before attention.
        post_attention_layernorm: the norm before the feed-forward part, so called because it comes after attention.

    References:
        Xiong et al. (2020), arXiv:2002.04745; Touvron et al. (2023), arXiv:2302.13971.

    Example:
        >>> layer = PreNormLayer(nn.Identity(), nn.Identity(), nn.Identity)
        >>> layer(torch.ones(1, 1, 2))  # 1 + 1, then 2 + 2
        tensor([[[4., 4.]]])
    """

    bindable = True

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """Add to ``x`` what attention finds, and to that what the feed-forward part makes of it.

        Args:
            x: ``(B, T, D)`` input.
            how: what attention takes beside its input.

        Returns:
            ``(B, T, D)`` output.
        """
        x = x + self.self_attn(self.input_layernorm(x), **how)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class PostNormLayer(nn.Module):
    r"""A layer that normalizes what attention and the feed-forward part add, before it is added, as in OLMo 2.

    .. math::

        Y = X + \operatorname{norm}_1(\operatorname{attn} X), \qquad
        Z = Y + \operatorname{norm}_2(\operatorname{ffn} Y)

    In the Transformer of 2017 the norm comes after the sum; here the sum itself is never normalized.

    Args:
        self_attn: attention.
        mlp: the feed-forward part.
        norm: builds one norm of width ``D``.

    Attributes:
        self_attn: attention.
        mlp: the feed-forward part.
        post_attention_layernorm: the norm after attention.
        post_feedforward_layernorm: the norm after the feed-forward part.

    References:
        OLMo Team (2024), arXiv:2501.00656.

    Example:
        >>> layer = PostNormLayer(nn.Identity(), nn.Identity(), nn.Identity)
        >>> layer(torch.ones(1, 1, 2))
        tensor([[[4., 4.]]])
    """

    bindable = True

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.post_attention_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """Add to ``x`` what attention finds, and to that what the feed-forward part makes of it.

        Args:
            x: ``(B, T, D)`` input.
            how: what attention takes beside its input.

        Returns:
            ``(B, T, D)`` output.
        """
        x = x + self.post_attention_layernorm(self.self_attn(x, **how))
        y: Tensor = x + self.post_feedforward_layernorm(self.mlp(x))
        return y


class SandwichNormLayer(nn.Module):
    r"""A layer with norms before and after attention and the feed-forward part, as in Gemma 2 and 3.

    .. math::

        Y = X + \operatorname{norm}_2(\operatorname{attn}(\operatorname{norm}_1 X)), \qquad
        Z = Y + \operatorname{norm}_4(\operatorname{ffn}(\operatorname{norm}_3 Y))

    Args:
        self_attn: attention.
        mlp: the feed-forward part.
        norm: builds one norm of width ``D``.

    Attributes:
        self_attn: attention.
        mlp: the feed-forward part.
        input_layernorm: the norm before attention.
        post_attention_layernorm: the norm after attention.
        pre_feedforward_layernorm: the norm before the feed-forward part.
        post_feedforward_layernorm: the norm after it.

    References:
        Gemma Team (2024), arXiv:2408.00118.

    Example:
        >>> layer = SandwichNormLayer(nn.Identity(), nn.Identity(), nn.Identity)
        >>> layer(torch.ones(1, 1, 2))
        tensor([[[4., 4.]]])
    """

    bindable = True

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """Add to ``x`` what attention finds, and to that what the feed-forward part makes of it.

        Args:
            x: ``(B, T, D)`` input.
            how: what attention takes beside its input.

        Returns:
            ``(B, T, D)`` output.
        """
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), **how))
        y: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return y


# --- parts, in the sizes of a configuration


def self_attention(config: DecoderConfig, **parts: Any) -> MultiHeadAttention:
    """Return attention in the sizes of a configuration.

    Args:
        config: width, numbers of heads, and width of a head.
        parts: further arguments of :class:`llm_study.nn.attention.MultiHeadAttention`: biases, norms, scale.

    Returns:
        The module, with fresh weights.

    Example:
        >>> from llm_study.core.config import Qwen2Config
        >>> config = Qwen2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2,
        ... )
        >>> self_attention(config, bias=True, out_bias=False).k_proj
        Linear(in_features=32, out_features=16, bias=True)
    """
    return MultiHeadAttention(
        config.hidden_size,
        config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        **parts,
    )


def gated_feed_forward(config: DecoderConfig, name: str, *, bias: bool = False) -> GatedFeedForward:
    """Return a gated feed-forward part in the sizes of a configuration.

    Args:
        config: width of the model and of the feed-forward part.
        name: name of the activation, as :func:`llm_study.functional.activations.activation` knows it.
        bias: whether its layers have a bias.

    Returns:
        The module, with fresh weights.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> gated_feed_forward(config, "silu").down_proj
        Linear(in_features=64, out_features=32, bias=False)
    """
    return GatedFeedForward(config.hidden_size, config.intermediate_size, activation=activation(name), bias=bias)


_SCALINGS: Mapping[str, Callable[..., Tensor]] = {
    "default": lambda frequencies: frequencies,
    "linear": linear_frequencies,
    "llama3": llama3_frequencies,
}


def rotary_frequencies(rope: Rope, d_head: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the frequencies of the rotations that a configuration asks for.

    Args:
        rope: base, kind of scaling, and its numbers.
        d_head: width ``Dh`` of a head.
        device: where the frequencies are made. Default: torch's default device.

    Returns:
        ``(Dh / 2,)`` radians per position, in float32.

    Raises:
        ValueError: if ``d_head`` is odd or below 2.

    Example:
        >>> rotary_frequencies(Rope(rope_type="linear", factor=4.0), 4)
        tensor([0.2500, 0.0025])
    """
    numbers = {name: value for name, value in rope.to_dict().items() if name not in ("rope_theta", "rope_type")}
    return _SCALINGS[rope.rope_type](rope_frequencies(d_head, base=rope.rope_theta, device=device), **numbers)


def _check_positions(ids: Tensor, positions: Tensor | None) -> None:
    """Check that there is one position for each id."""
    if positions is not None:
        name, shape = "shape of positions", tuple(positions.shape)
        check_equal(name, shape, "shape of ids", tuple(ids.shape), hint="or leave them out")
