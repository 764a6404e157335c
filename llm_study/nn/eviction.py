"""A cache that forgets: of all past keys and values it keeps as many as its policy allows, and which the policy says.

A policy is an object with a budget and two methods, :class:`EvictionPolicy`. The three here are those of H2O
(:class:`HeavyHitters`), StreamingLLM (:class:`SinksAndRecent`) and SnapKV (:class:`ObservationWindow`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal
from llm_study.core.config import ModelConfig
from llm_study.functional.eviction import (
    accumulated_attention,
    heavy_hitters,
    observation_votes,
    sinks_and_recent,
    snapkv_select,
)
from llm_study.nn._slots import check_new_keys, check_new_tokens, visible

__all__ = ["EvictingKVCache", "EvictionPolicy", "HeavyHitters", "ObservationWindow", "SinksAndRecent"]


class EvictionPolicy(Protocol):
    """What :class:`EvictingKVCache` asks of a policy, for each layer and in each call.

    Args:
        budget: number of slots above which slots are given up.

    Example:
        >>> class Recent:  # a policy of our own: the latest tokens
        ...     budget = 2
        ...     def score(self, past, new, weights):
        ...         return F.pad(past, (0, new))
        ...     def keep(self, scores, real, new):
        ...         return torch.arange(scores.shape[-1])[-2:].expand(*scores.shape[:2], 2)
        >>> isinstance(Recent().budget, int)
        True
    """

    @property
    def budget(self) -> int:
        """Number of slots above which slots are given up."""

    def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
        """Give every slot a score.

        Args:
            past: ``(B, K, n)`` scores of the past slots.
            new: number ``T`` of new slots, which are the last.
            weights: ``() → (B, H, T, n + T)``, returns the attention of the new queries; costs a second pass of
                attention, so it is called only where it is needed.

        Returns:
            ``(B, K, n + T)`` scores.
        """

    def keep(self, scores: Tensor, real: Tensor, new: int) -> Tensor | None:
        """Choose the slots that stay, once there are more than the budget.

        Args:
            scores: ``(B, K, S)`` scores.
            real: ``(B, K, S)`` boolean, False where the slot holds padding.
            new: number of slots that came with this call, which are the last.

        Returns:
            ``(B, K, n)`` their indices in ascending order, or None if all of them stay.
        """


@dataclass(frozen=True, kw_only=True)
class HeavyHitters:
    """Keep the latest tokens, and those that have received the most attention so far (H2O).

    Args:
        budget: number of slots of a layer.
        recent: how many of them are the latest tokens.

    Raises:
        ValueError: if ``recent`` is below 1 or ``budget`` below ``recent``.

    References:
        Zhang et al. (2023), arXiv:2306.14048.

    Example:
        >>> HeavyHitters(budget=3, recent=1).keep(torch.tensor([[[5.0, 1.0, 3.0, 0.1]]]), torch.ones(1, 1, 4) > 0, 1)
        tensor([[[0, 2, 3]]])
    """

    budget: int
    recent: int

    def __post_init__(self) -> None:
        check_at_least("recent", self.recent, 1, hint="a new token must be able to see itself again")
        check_at_least("budget", self.budget, self.recent, hint=f"it includes the {self.recent} latest")

    def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
        """Add the attention of the new queries to that of all before.

        Args:
            past: ``(B, K, n)`` scores of the past slots.
            new: number of new slots.
            weights: ``() → (B, H, T, n + T)``, returns the attention of the new queries.

        Returns:
            ``(B, K, n + T)`` scores.
        """
        return F.pad(past, (0, new)) + accumulated_attention(weights(), n_kv_heads=past.shape[1])

    def keep(self, scores: Tensor, real: Tensor, new: int) -> Tensor:
        """Choose the slots that stay.

        Args:
            scores: ``(B, K, S)`` scores.
            real: ``(B, K, S)`` boolean, False where the slot holds padding.
            new: number of new slots; it does not matter.

        Returns:
            ``(B, K, budget)`` indices in ascending order.
        """
        return heavy_hitters(scores, budget=self.budget, recent=self.recent, real=real)


@dataclass(frozen=True, kw_only=True)
class SinksAndRecent:
    """Keep the first tokens and the latest (StreamingLLM); keys keep the positions they were rotated by.

    The paper counts positions inside the cache instead, so that they never exceed those of training.

    Args:
        budget: number of slots of a layer.
        sinks: how many of them are the first tokens.

    Raises:
        ValueError: if ``sinks`` is negative or ``budget`` below ``sinks + 1``.

    References:
        Xiao et al. (2024), arXiv:2309.17453.

    Example:
        >>> SinksAndRecent(budget=3, sinks=1).keep(torch.zeros(1, 1, 6), torch.ones(1, 1, 6) > 0, 1)
        tensor([[[0, 4, 5]]])
    """

    budget: int
    sinks: int

    def __post_init__(self) -> None:
        check_at_least("sinks", self.sinks, 0)
        check_at_least("budget", self.budget, self.sinks + 1, hint=f"the {self.sinks} sinks and the latest token")

    def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
        """Give nothing a score: only the place matters.

        Args:
            past: ``(B, K, n)`` scores of the past slots.
            new: number of new slots.
            weights: ``() → (B, H, T, n + T)``, is not called.

        Returns:
            ``(B, K, n + T)`` zeros.
        """
        return F.pad(past, (0, new))

    def keep(self, scores: Tensor, real: Tensor, new: int) -> Tensor:
        """Choose the slots that stay.

        Args:
            scores: ``(B, K, S)`` scores, which do not matter.
            real: ``(B, K, S)`` boolean, False where the slot holds padding.
            new: number of new slots; it does not matter.

        Returns:
            ``(B, K, budget)`` indices in ascending order.
        """
        return sinks_and_recent(real, budget=self.budget, sinks=self.sinks)


@dataclass(frozen=True, kw_only=True)
class ObservationWindow:
    """Let the last queries of a prompt choose what stays of it; what is generated later stays too (SnapKV).

    A call of fewer new tokens than the window gives nothing up. Give the prompt in one call: each long call is
    compressed anew.

    Args:
        budget: number of slots that a prompt is compressed to.
        window: how many of the last queries vote; their keys stay.
        kernel: width of the pooling of votes over neighbors, odd.

    Raises:
        ValueError: if ``window`` is below 1, ``budget`` below ``window``, or ``kernel`` is not odd and positive.

    References:
        Li et al. (2024), arXiv:2404.14469.

    Example:
        >>> policy = ObservationWindow(budget=4, window=2)
        >>> policy.keep(torch.tensor([[[0.5, 0.1, 0.4, 0.0, 0.0, 0.0]]]), torch.ones(1, 1, 6) > 0, 6)
        tensor([[[0, 2, 4, 5]]])
    """

    budget: int
    window: int
    kernel: int = 1

    def __post_init__(self) -> None:
        check_at_least("window", self.window, 1)
        check_at_least("budget", self.budget, self.window, hint=f"it includes the window of {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}, expected an odd number of at least 1: it is centered on a key")

    def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
        """Count the votes of the last queries, if there are enough of them.

        Args:
            past: ``(B, K, n)`` scores of the past slots.
            new: number of new slots.
            weights: ``() → (B, H, T, n + T)``, returns the attention of the new queries.

        Returns:
            ``(B, K, n + T)`` votes.
        """
        if new < self.window:
            return F.pad(past, (0, new))
        votes = observation_votes(weights(), n_kv_heads=past.shape[1], window=self.window, kernel=self.kernel)
        return F.pad(votes.to(past.dtype), (0, self.window))

    def keep(self, scores: Tensor, real: Tensor, new: int) -> Tensor | None:
        """Choose the slots that stay.

        Args:
            scores: ``(B, K, S)`` votes.
            real: ``(B, K, S)`` boolean, False where the slot holds padding.
            new: number of new slots.

        Returns:
            ``(B, K, budget)`` indices in ascending order, or None if there were too few queries to vote.
        """
        if new < self.window:
            return None
        votes = scores[..., : scores.shape[-1] - self.window]
        return snapkv_select(votes, budget=self.budget, window=self.window, real=real)


class EvictingKVCache:
    """Keys and values of the tokens that a policy keeps, for each key/value head on its own.

    The queries of a call see all slots and all new tokens; after that the policy gives slots up. Until there are more
    tokens than the budget, the cache is exact. There is no end to what it can be given: it never fills up.

    A policy that scores by attention asks for the weights. The model's own attention is run once more for them, on unit
    vectors in place of the values, which are mixed into the weights themselves.

    Args:
        config: of the model; it says what each layer stores.
        batch_size: number of sequences ``B``.
        policy: what to keep.
        dtype: of the keys and values, that of the model.
        device: where they are kept. Default: torch's default device.

    Attributes:
        batch_size: number of sequences.
        policy: what to keep.
        length: number of tokens that were given, padding included; the position of the next one.

    Raises:
        ValueError: if ``batch_size`` is below 1, or the configuration is not that of a decoder.

    Cost: ``2 * B * K * Dh`` numbers for each slot of a layer, of which the policy's budget is the most that stay.

    References:
        Zhang et al. (2023), arXiv:2306.14048; Xiao et al. (2024), arXiv:2309.17453; Li et al. (2024), arXiv:2404.14469.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.functional.attention import causal_attention
        >>> config = GPT2Config(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=1)
        >>> cache = EvictingKVCache(config, batch_size=1, policy=SinksAndRecent(budget=4, sinks=1))
        >>> def how(q, k, v, *, mask, scale):  # as a model would attend
        ...     return causal_attention(q, k, v, scale=scale)
        >>> x = torch.randn(1, 1, 9, 8)
        >>> _ = cache.begin(torch.arange(9)[None]), cache.attend(0, x, x, x, how=how), cache.end()
        >>> cache.positions(0)[0, 0], cache.length
        (tensor([0, 6, 7, 8]), 9)
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        policy: EvictionPolicy,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        self.batch_size, self.policy, self.length = batch_size, policy, 0
        self._windows = [layer.window for layer in config.kv_layers()]
        self._empty = [
            _Slots(
                keys=torch.empty(batch_size, layer.n_kv_heads, 0, layer.d_head, dtype=dtype, device=device),
                values=torch.empty(batch_size, layer.n_kv_heads, 0, layer.d_head, dtype=dtype, device=device),
                tokens=torch.empty(batch_size, layer.n_kv_heads, 0, dtype=torch.long, device=device),
                real=torch.empty(batch_size, layer.n_kv_heads, 0, dtype=torch.bool, device=device),
                scores=torch.empty(batch_size, layer.n_kv_heads, 0, device=device),
            )
            for layer in config.kv_layers()
        ]
        self._layers = list(self._empty)
        self._staged: dict[int, _Slots] = {}
        self._real = torch.empty(batch_size, 0, dtype=torch.bool, device=device)  # of the new tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that are kept; their positions and scores come on top."""
        return sum(slots.keys.nbytes + slots.values.nbytes for slots in self._layers)

    def positions(self, layer: int) -> Tensor:
        """Say which tokens a layer still has.

        Args:
            layer: number of the layer, from 0.

        Returns:
            ``(B, K, n)`` their positions in ascending order.
        """
        return self._layers[layer].tokens

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Prepare for new tokens.

        Args:
            ids: ``(B, T)`` ids of the new tokens.
            mask: ``(B, T)`` boolean, True where a token is real. Default: all are.

        Returns:
            ``(T,)`` their positions, which continue those of the tokens before; padding counts.

        Raises:
            ValueError: if the batch has another size than the cache, or the mask is not boolean or not of the shape of
                ``ids``.
        """
        self._real = check_new_tokens(ids, mask, self.batch_size)
        self._staged = {}
        return torch.arange(self.length, self.length + ids.shape[1], device=ids.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, how: Callable[..., Tensor], scale: float | None = None
    ) -> Tensor:
        """Let the queries meet the slots and the new keys, then give up slots.

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
        past, new = self._layers[layer], self._real.shape[1]
        check_new_keys(k, new, past.keys.dtype)
        slots = past.extended(k.detach(), v.detach(), self._real, self.length)
        mask = visible(slots.tokens, slots.real, new, window=self._windows[layer], n_heads=q.shape[1])

        def weights() -> Tensor:
            units = torch.eye(slots.tokens.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
            mixed = how(q, slots.keys, units, mask=mask, scale=scale).detach()  # mixed units are the weights
            return mixed * self._real[:, None, :, None]  # padding does not vote

        slots = slots._replace(scores=self.policy.score(past.scores, new, weights))
        self._staged[layer] = self._evicted(slots, new)
        return how(q, slots.keys, slots.values, mask=mask, scale=scale)

    def end(self) -> None:
        """Count the new tokens among the past ones."""
        for layer, slots in self._staged.items():
            self._layers[layer] = slots
        self.length += self._real.shape[1]
        self._staged = {}

    def reorder(self, rows: Tensor) -> None:
        """Let each sequence go on from another one, as beams do.

        Args:
            rows: ``(B,)`` integers; sequence ``i`` becomes what sequence ``rows[i]`` was.

        Raises:
            ValueError: if there is not one entry for each sequence.
        """
        check_equal("shape of rows", tuple(rows.shape), "expected shape", (self.batch_size,))
        self._layers = [_Slots(*(x[rows] for x in slots)) for slots in self._layers]

    def clear(self) -> None:
        """Forget all tokens."""
        self._layers, self._staged, self.length = list(self._empty), {}, 0

    def _evicted(self, slots: "_Slots", new: int) -> "_Slots":
        """Return the slots that the policy keeps."""
        if slots.tokens.shape[2] <= self.policy.budget:
            return slots
        kept = self.policy.keep(slots.scores, slots.real, new)
        return slots if kept is None else slots.chosen(kept)


class _Slots(NamedTuple):
    """What one layer keeps: ``(B, K, n, Dh)`` keys and values; ``(B, K, n)`` index of the token, real or not, score."""

    keys: Tensor
    values: Tensor
    tokens: Tensor
    real: Tensor
    scores: Tensor

    def extended(self, k: Tensor, v: Tensor, real: Tensor, first: int) -> "_Slots":
        """Return these slots and those of new tokens, whose scores are still missing."""
        shape = k.shape[:3]
        tokens = torch.arange(first, first + shape[2], device=k.device).expand(shape)
        return self._replace(
            keys=torch.cat([self.keys, k], dim=2),
            values=torch.cat([self.values, v], dim=2),
            tokens=torch.cat([self.tokens, tokens], dim=2),
            real=torch.cat([self.real, real[:, None].expand(shape)], dim=2),
        )

    def chosen(self, kept: Tensor) -> "_Slots":
        """Return the slots of the indices ``(B, K, n)``."""
        wide = kept[..., None].expand(-1, -1, -1, self.keys.shape[-1])
        flat = (x.gather(2, kept) for x in (self.tokens, self.real, self.scores))
        return _Slots(self.keys.gather(2, wide), self.values.gather(2, wide), *flat)
