r"""Caches of keys and values: what a decoder has worked out about past tokens, kept for those to come.

A model is given the new tokens and a cache. It asks the cache for three things only, those of :class:`Cache`, and knows
nothing of where keys and values are kept. :class:`KVCache` is the plain one: a buffer for each layer, made once, and a
ring where a layer looks back no further than a window.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal
from llm_study.core.config import KVLayer, ModelConfig
from llm_study.nn._slots import check_new_keys, check_new_tokens, check_room

__all__ = ["Cache", "KVCache"]


class Cache(Protocol):
    """What a model asks of a cache: :meth:`begin`, then :meth:`attend` once for each layer, then :meth:`end`.

    A call that fails between :meth:`begin` and :meth:`end` leaves the length as it was: the tokens can be given again.
    """

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Prepare for new tokens.

        Args:
            ids: ``(B, T)`` ids of the new tokens.
            mask: ``(B, T)`` boolean, True where a token is real. Default: all are.

        Returns:
            ``(T,)`` or ``(B, T)`` the positions that the new tokens have if the caller names none.

        Raises:
            ValueError: if the tokens do not fit; nothing is changed then.
        """

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, how: Callable[..., Tensor], scale: float | None = None
    ) -> Tensor:
        """Keep the new keys and values of a layer, and let the queries meet the past ones and the new.

        Args:
            layer: number of the layer, from 0.
            q: ``(B, H, T, Dh)`` queries of the new tokens.
            k: ``(B, K, T, Dh)`` their keys, rotated already.
            v: ``(B, K, T, Dh)`` their values.
            how: ``(q, k, v, *, mask, scale) → (B, H, T, Dh)``, attention as the model means it. ``mask`` is boolean and
                broadcasts to ``(B, H, T, S)``, or is None where being causal says it all: a single query sees every
                key, or there are as many queries as keys.
            scale: factor on the scores, handed to ``how``.

        Returns:
            ``(B, H, T, Dh)`` what the queries gather.
        """

    def end(self) -> None:
        """Count the new tokens among the past ones."""


class KVCache:
    """Keys and values in buffers that are made once, for a batch of sequences that grow together.

    A layer that sees all keys has a slot for each position. A layer with a sliding window has as many slots as the
    window is wide, and the token at position ``p`` takes slot ``p mod S``: it overwrites the one that has just left the
    window. The slots of such a ring are not in the order of positions, which attention does not notice.

    Nothing flows back through a cache: keys and values are stored without gradients.

    Args:
        config: of the model; it says what each layer stores.
        batch_size: number of sequences ``B``.
        max_length: number of tokens of a sequence, padding included, that there is room for.
        dtype: of the keys and values, that of the model.
        device: where they are kept. Default: torch's default device.

    Attributes:
        batch_size: number of sequences.
        max_length: number of tokens that there is room for.
        length: number of tokens that are stored, padding included; the position of the next one.
        keys: for each layer ``(B, K, S, Dh)``.
        values: for each layer ``(B, K, S, Dh)``.

    Raises:
        ValueError: if a size is below 1, or the configuration is not that of a decoder.

    Cost: ``2 * B * K * S * Dh`` numbers for each layer, where ``S`` is ``max_length`` or, if smaller, the window.

    References:
        Pope et al. (2022), arXiv:2211.05102. The ring, called rolling buffer there: Jiang et al. (2023),
        arXiv:2310.06825.

    Example:
        >>> from llm_study.core.config import MistralConfig
        >>> config = MistralConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, sliding_window=3,
        ... )
        >>> cache = KVCache(config, batch_size=1, max_length=8)
        >>> cache.keys[0].shape, cache.nbytes
        (torch.Size([1, 2, 3, 8]), 768)
        >>> cache.begin(torch.tensor([[5, 6, 7, 8]]))  # positions of four new tokens
        tensor([0, 1, 2, 3])
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        check_at_least("max_length", max_length, 1)
        self.batch_size, self.max_length, self.length = batch_size, max_length, 0
        self._windows = [layer.window for layer in config.kv_layers()]
        shapes = [_shape(layer, batch_size, max_length) for layer in config.kv_layers()]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._real = torch.ones(batch_size, max_length, dtype=torch.bool, device=self.keys[0].device)
        self._padded = False  # whether any token so far was padding
        self._new = 0  # tokens between begin and end
        self._masks: dict[tuple[int | None, int], Tensor | None] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, used or not."""
        return sum(x.nbytes for x in (*self.keys, *self.values))

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
        self._real[:, n : n + T] = real
        self._padded = not bool(self._real[:, : n + T].all()) if self._padded or mask is not None else False
        self._new, self._masks = T, {}
        return torch.arange(n, n + T, device=ids.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, how: Callable[..., Tensor], scale: float | None = None
    ) -> Tensor:
        """Keep the new keys and values of a layer, and let the queries meet the past ones and the new.

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
        keys, values, n = self.keys[layer], self.values[layer], self.length
        check_new_keys(k, self._new, keys.dtype)
        end, slots, window = n + self._new, keys.shape[2], self._windows[layer]
        if end <= slots:  # no slot is taken twice
            keys[:, :, n:end], values[:, :, n:end] = k.detach(), v.detach()
            seen = (keys[:, :, :end], values[:, :, :end])
        elif self._new == 1:
            keys[:, :, n % slots], values[:, :, n % slots] = k[:, :, 0].detach(), v[:, :, 0].detach()
            seen = (keys, values)
        else:  # the first new queries still see what the last new keys are about to overwrite
            past = torch.arange(max(0, n - slots), n, device=k.device)
            seen = (torch.cat([keys[:, :, past % slots], k], dim=2), torch.cat([values[:, :, past % slots], v], dim=2))
            last = torch.arange(max(n, end - slots), end, device=k.device)
            keys[:, :, last % slots] = k[:, :, last - n].detach()
            values[:, :, last % slots] = v[:, :, last - n].detach()
        return how(q, *seen, mask=self._mask(window, slots), scale=scale)

    def end(self) -> None:
        """Count the new tokens among the past ones."""
        self.length += self._new
        self._new = 0

    def reorder(self, rows: Tensor) -> None:
        """Let each sequence go on from another one, as beams do.

        Args:
            rows: ``(B,)`` integers; sequence ``i`` becomes what sequence ``rows[i]`` was.

        Raises:
            ValueError: if there is not one entry for each sequence.
        """
        check_equal("shape of rows", tuple(rows.shape), "expected shape", (self.batch_size,))
        for x in (*self.keys, *self.values):
            used = x[:, :, : self.length]
            used.copy_(used[rows])
        self._real = self._real[rows]

    def truncate(self, length: int) -> None:
        """Forget the last tokens.

        Args:
            length: number of tokens that stay.

        Raises:
            ValueError: if fewer are stored, or a ring has overwritten keys that the next token would have to see.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}, expected 0 to {self.length}, the number of stored tokens")
        for slots in {x.shape[2] for x in self.keys}:
            oldest = self.length - slots  # position of the oldest key that is left
            if oldest > max(0, length - slots + 1):
                text = f"length is {length}, expected {self.length - 1} or more: a window of {slots} tokens"
                raise ValueError(f"{text} has overwritten what came before; clear the cache and begin again")
        self.length, self._padded = length, self._padded and not bool(self._real[:, :length].all())

    def clear(self) -> None:
        """Forget all tokens."""
        self.length, self._padded = 0, False

    def _mask(self, window: int | None, slots: int) -> Tensor | None:
        """Return the mask for layers of one kind, worked out once in a call."""
        if (window, slots) not in self._masks:
            self._masks[window, slots] = self._new_mask(window, slots)
        return self._masks[window, slots]

    def _new_mask(self, window: int | None, slots: int) -> Tensor | None:
        """Return ``(T, S)`` or ``(B, 1, T, S)``: which keys each new query may see; None if being causal says it."""
        n, T = self.length, self._new
        end, device = n + T, self._real.device
        whole = window is None or window >= end
        if not self._padded and (T == 1 or (n == 0 and whole)):
            return None
        if end <= slots:
            key = torch.arange(end, device=device)
        elif T == 1:
            slot = torch.arange(slots, device=device)
            key = n - (n - slot) % slots  # position of what lies in each slot
        else:
            key = torch.arange(max(0, n - slots), end, device=device)
        query = torch.arange(n, end, device=device)[:, None]
        mask = key <= query if window is None else (key <= query) & (key > query - window)  # (T, S)
        return mask & self._real[:, None, None, key] if self._padded else mask


def _shape(layer: KVLayer, batch_size: int, max_length: int) -> tuple[int, int, int, int]:
    slots = max_length if layer.window is None else min(layer.window, max_length)
    return batch_size, layer.n_kv_heads, slots, layer.d_head
