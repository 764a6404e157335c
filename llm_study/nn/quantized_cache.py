"""A cache of keys and values in few bits, as in KIVI: keys by channel, values by token, the latest tokens unchanged."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_divides, check_equal
from llm_study.core.config import ModelConfig
from llm_study.functional.quantize import AffineQuantized, dequantize_affine, quantize_affine
from llm_study.nn._slots import check_new_keys, check_new_tokens, check_room, visible

__all__ = ["QuantizedKVCache"]


class QuantizedKVCache:
    """Keys and values of a batch of sequences, all but the latest of them quantized.

    Keys share a step along the tokens, each channel for itself, because some channels of keys are large in every token;
    values share a step along the channels of one token. A group of keys can be quantized only when its last token is
    there: keys wait, unchanged, until ``residual`` of them have gathered, and are then quantized together. Of the
    values the latest ``residual`` stay unchanged. So a cache of fewer than ``residual`` tokens is exact.

    New tokens always meet each other unchanged: a prompt that is given in one call is computed exactly, and only what
    comes later reads quantized keys and values. Layers with a window keep all tokens and hide the old ones.

    Args:
        config: of the model; it says what each layer stores.
        batch_size: number of sequences ``B``.
        max_length: number of tokens of a sequence, padding included, that there is room for.
        bits: bits of a number: 2, 4 or 8.
        group: numbers ``G`` that share a step and a smallest value.
        residual: number of tokens ``R`` that wait unchanged, a multiple of ``group``.
        dtype: of keys and values, steps and smallest values; that of the model.
        device: where they are kept. Default: torch's default device.

    Attributes:
        batch_size: number of sequences.
        max_length: number of tokens that there is room for.
        length: number of tokens that are stored, padding included; the position of the next one.

    Raises:
        ValueError: if a size is below 1, ``bits`` is not 2, 4 or 8, ``group`` does not divide ``residual`` or the width
            of a head or does not fill whole bytes, or the configuration is not that of a decoder.

    Cost: ``bits / 8 + 2 * p / group`` bytes for each quantized number, ``p`` for each that is not, where ``p`` is the
    size of ``dtype``.

    References:
        Liu et al. (2024), arXiv:2402.02750.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.functional.attention import causal_attention
        >>> config = GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_layer=1, n_head=4)
        >>> cache = QuantizedKVCache(config, batch_size=1, max_length=32, bits=4, group=8, residual=8)
        >>> def how(q, k, v, *, mask, scale):  # as a model would attend
        ...     return causal_attention(q, k, v, scale=scale)
        >>> x = torch.randn(1, 4, 27, 8)
        >>> _ = cache.begin(torch.arange(27)[None]), cache.attend(0, x, x, x, how=how), cache.end()
        >>> cache.nbytes, 2 * 27 * 32 * 4  # 24 keys and 19 values quantized; all of them in 32 bits
        (3472, 6912)
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        bits: int,
        group: int,
        residual: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        check_at_least("max_length", max_length, 1)
        check_divides("group", group, "residual", residual, hint="keys are quantized in whole groups of tokens")
        check_at_least("residual", residual, 1)
        self.batch_size, self.max_length, self.length = batch_size, max_length, 0
        self._bits, self._group, self._residual = bits, group, residual
        self._windows = [layer.window for layer in config.kv_layers()]
        empty = torch.empty
        shapes = [(batch_size, layer.n_kv_heads, 0, layer.d_head) for layer in config.kv_layers()]
        self._empty = [
            _Layer(
                keys=self._quantized(empty(shape, dtype=dtype, device=device), dim=-2),
                values=self._quantized(empty(shape, dtype=dtype, device=device), dim=-1),
                late_keys=empty(shape, dtype=dtype, device=device),
                late_values=empty(shape, dtype=dtype, device=device),
            )
            for shape in shapes
        ]
        self._layers, self._staged = list(self._empty), dict[int, _Layer]()
        self._real = torch.ones(batch_size, 0, dtype=torch.bool, device=device)
        self._new = 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes, steps, smallest values, and of keys and values that are not quantized."""
        return sum(part.nbytes for layer in self._layers for part in layer)

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Prepare for new tokens.

        Args:
            ids: ``(B, T)`` ids of the new tokens.
            mask: ``(B, T)`` boolean, True where a token is real. Default: all are.

        Returns:
            ``(T,)`` their positions, which continue those of the tokens before; padding counts.

        Raises:
            ValueError: if the batch has another size than the cache, the cache has no room for ``T`` more tokens, or
                the mask is not boolean or not of the shape of ``ids``.
        """
        n, T = self.length, ids.shape[1]
        real = check_new_tokens(ids, mask, self.batch_size)
        check_room(n, T, self.max_length)
        self._real = torch.cat([self._real[:, :n].to(real.device), real], dim=1)
        self._new, self._staged = T, {}
        return torch.arange(n, n + T, device=ids.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, how: Callable[..., Tensor], scale: float | None = None
    ) -> Tensor:
        """Let the queries meet the past keys, as far as they are left, and the new; then quantize what is due.

        Args:
            layer: number of the layer, from 0.
            q: ``(B, H, T, Dh)`` queries of the new tokens.
            k: ``(B, K, T, Dh)`` their keys, rotated already.
            v: ``(B, K, T, Dh)`` their values.
            how: ``(q, k, v, *, mask, scale) → (B, H, T, Dh)``, attention as the model means it.
            scale: factor on the scores, handed to ``how``.

        Returns:
            ``(B, H, T, Dh)`` what the queries gather.

        Raises:
            ValueError: if there are not as many new keys as :meth:`begin` was told, or their dtype is not the cache's.
        """
        past = self._layers[layer]
        check_new_keys(k, self._new, past.late_keys.dtype)
        late_keys = torch.cat([past.late_keys, k.detach()], dim=2)
        late_values = torch.cat([past.late_values, v.detach()], dim=2)
        keys = torch.cat([dequantize_affine(past.keys), late_keys], dim=2)
        values = torch.cat([dequantize_affine(past.values), late_values], dim=2)
        due = late_keys.shape[2] - late_keys.shape[2] % self._residual  # whole runs of R tokens
        old = max(0, late_values.shape[2] - self._residual)  # all but the latest R
        self._staged[layer] = _Layer(
            keys=_joined(past.keys, self._quantized(late_keys[:, :, :due], dim=-2), dim=-1),
            values=_joined(past.values, self._quantized(late_values[:, :, :old], dim=-1), dim=-2),
            late_keys=late_keys[:, :, due:],
            late_values=late_values[:, :, old:],
        )
        shape = keys.shape[:3]
        slots, real = torch.arange(shape[2], device=k.device).expand(shape), self._real[:, None].expand(shape)
        mask = visible(slots, real, self._new, window=self._windows[layer], n_heads=q.shape[1])
        return how(q, keys, values, mask=mask, scale=scale)

    def end(self) -> None:
        """Count the new tokens among the past ones."""
        for layer, state in self._staged.items():
            self._layers[layer] = state
        self.length += self._new
        self._new, self._staged = 0, {}

    def reorder(self, rows: Tensor) -> None:
        """Let each sequence go on from another one, as beams do.

        Args:
            rows: ``(B,)`` integers; sequence ``i`` becomes what sequence ``rows[i]`` was.

        Raises:
            ValueError: if there is not one entry for each sequence.
        """
        check_equal("shape of rows", tuple(rows.shape), "expected shape", (self.batch_size,))
        self._layers = [layer.of_rows(rows) for layer in self._layers]
        self._real = self._real[rows]

    def clear(self) -> None:
        """Forget all tokens."""
        self._layers, self._staged, self.length = list(self._empty), {}, 0

    def _quantized(self, x: Tensor, *, dim: int) -> AffineQuantized:
        return quantize_affine(x, bits=self._bits, group=self._group, dim=dim)


class _Layer(NamedTuple):
    """What one layer keeps: quantized keys and values, and the later ones ``(B, K, n, Dh)`` as they are."""

    keys: AffineQuantized
    values: AffineQuantized
    late_keys: Tensor
    late_values: Tensor

    def of_rows(self, rows: Tensor) -> "_Layer":
        """Return the same of other sequences."""
        keys, values = (
            replace(x, codes=x.codes[rows], scale=x.scale[rows], minimum=x.minimum[rows])
            for x in (self.keys, self.values)
        )
        return _Layer(keys, values, self.late_keys[rows], self.late_values[rows])


def _joined(a: AffineQuantized, b: AffineQuantized, *, dim: int) -> AffineQuantized:
    """Put the tokens of ``b`` after those of ``a``."""
    codes, scale, minimum = (
        torch.cat([x, y], dim=dim) for x, y in ((a.codes, b.codes), (a.scale, b.scale), (a.minimum, b.minimum))
    )
    return replace(a, codes=codes, scale=scale, minimum=minimum)
