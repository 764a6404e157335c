"""What caches share: checks of new tokens, and, where slots are given up or coded, who sees which of them."""

import torch
from torch import Tensor

from llm_study.core.checks import check_boolean, check_equal


def check_new_tokens(ids: Tensor, mask: Tensor | None, batch_size: int) -> Tensor:
    """Check that new tokens belong to this batch; return ``(B, T)``, True where they are real."""
    check_equal("batch size of ids", ids.shape[0], "batch size of the cache", batch_size, hint="make another cache")
    if mask is None:
        return torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
    check_boolean("mask", mask.dtype, hint="True where a token is real: convert with .bool()")
    check_equal("shape of mask", tuple(mask.shape), "shape of ids", tuple(ids.shape))
    return mask


def check_room(length: int, new: int, max_length: int) -> None:
    """Check that new tokens still fit into a cache of limited length."""
    if length + new > max_length:
        text = f"the cache holds {length} tokens and has room for {max_length}, expected room for {length + new}"
        raise ValueError(f"{text}: make it with a larger max_length")


def check_new_keys(k: Tensor, new: int, dtype: torch.dtype) -> None:
    """Check that a layer stores what :meth:`begin` was told, in the dtype of the cache."""
    if k.shape[2] == new and k.dtype == dtype:
        return
    check_equal("number of new keys", k.shape[2], "number of tokens that begin was told", new)
    check_equal("dtype of the keys", k.dtype, "dtype of the cache", dtype, hint="make the cache with dtype=…")


def visible(slots: Tensor, real: Tensor, new: int, *, window: int | None, n_heads: int) -> Tensor | None:
    """Return which slots the queries of the ``new`` last slots see; None where being causal says it all.

    ``slots`` is ``(B, K, S)``, the index of the token in each slot, ``real`` as large; the result is ``(B, H, T, S)``.
    """
    first = slots[..., -new:].amin() if new else slots.new_zeros(())
    whole = window is None or bool((slots[..., -1:] - slots < window).all())
    if new in (1, slots.shape[-1]) and whole and bool(real.all()):
        return None
    query = torch.arange(new, device=slots.device)[:, None] + first  # (T, 1)
    keys = slots[:, :, None]  # (B, K, 1, S)
    seen = (keys <= query) & real[:, :, None]
    seen = seen if window is None else seen & (keys > query - window)
    return seen.repeat_interleave(n_heads // slots.shape[1], dim=1)
