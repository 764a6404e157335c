r"""Which keys and values to forget when a cache is full: scores from attention weights, and rules that select.

Attention weights are ``(B, H, T, S)``: of ``T`` queries over ``S`` keys. What is selected is ``(B, K, n)``, the indices
of the slots to keep, in ascending order, for each of the ``K`` key/value heads on its own. A mask ``real``, ``(B, S)``
or of each head ``(B, K, S)``, says which slots hold real tokens; padding is forgotten first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_boolean, check_divides, check_equal, check_ndim

__all__ = [
    "accumulated_attention",
    "evicted_mass",
    "heavy_hitters",
    "largest",
    "observation_votes",
    "sinks_and_recent",
    "snapkv_select",
]


def accumulated_attention(weights: Tensor, *, n_kv_heads: int) -> Tensor:
    r"""Add up how much attention each key has received: the score of H2O.

    .. math:: a_j = \sum_{h \in g} \sum_i P^{(h)}_{ij}

    Query heads :math:`h` that share one key/value head :math:`g` vote together. Scores of more queries are added.

    Args:
        weights: ``(B, H, T, S)`` attention weights.
        n_kv_heads: number of key/value heads ``K``, a divisor of ``H``.

    Returns:
        ``(B, K, S)`` scores, at least in float32.

    Raises:
        ValueError: if ``weights`` has not four dimensions, or ``n_kv_heads`` does not divide ``H``.

    References:
        Zhang et al. (2023), arXiv:2306.14048: the sum of the attention weights that a token received.

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]]).reshape(1, 1, 2, 2)
        >>> accumulated_attention(weights, n_kv_heads=1).flatten()
        tensor([1.2500, 0.7500])
    """
    check_ndim("weights", weights.shape, ("B", "H", "T", "S"))
    B, H, T, S = weights.shape
    check_divides("n_kv_heads", n_kv_heads, "heads of weights", H)
    grouped = weights.reshape(B, n_kv_heads, H // n_kv_heads, T, S)
    return grouped.to(torch.promote_types(weights.dtype, torch.float32)).sum(dim=(2, 3))


def largest(priority: Tensor, n: int) -> Tensor:
    """Select the ``n`` slots of the highest priority; of equal ones the earlier.

    Args:
        priority: ``(…, S)`` numbers.
        n: how many to keep; all of them if there are no more.

    Returns:
        ``(…, min(n, S))`` indices in ascending order.

    Raises:
        ValueError: if ``n`` is below 1.

    References:
        The greedy step that Zhang et al. (2023), arXiv:2306.14048, and Li et al. (2024), arXiv:2404.14469, share.

    Example:
        >>> largest(torch.tensor([0.3, 0.9, 0.3, 0.1]), 2)
        tensor([0, 1])
    """
    check_at_least("number of slots to keep", n, 1)
    order = priority.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :n].sort(dim=-1).values


def heavy_hitters(scores: Tensor, *, budget: int, recent: int, real: Tensor | None = None) -> Tensor:
    """Keep the latest slots, and of the others those that received the most attention: the rule of H2O.

    Args:
        scores: ``(B, K, S)`` scores from :func:`accumulated_attention`, in the order of the tokens.
        budget: slots to keep.
        recent: how many of them are the latest; the other ``budget - recent`` are the heavy hitters.
        real: ``(B, S)`` or ``(B, K, S)`` boolean, True where the slot holds a real token. Default: everywhere.

    Returns:
        ``(B, K, min(budget, S))`` indices in ascending order.

    Raises:
        ValueError: if ``recent`` is negative, ``budget`` is below 1 or below ``recent``, or shapes do not fit.

    References:
        Zhang et al. (2023), arXiv:2306.14048.

    Example:
        >>> heavy_hitters(torch.tensor([[[5.0, 1.0, 3.0, 0.1, 0.2]]]), budget=3, recent=1)  # two hitters, one recent
        tensor([[[0, 2, 4]]])
    """
    check_at_least("recent", recent, 0)
    check_at_least("budget", budget, max(recent, 1), hint=f"it includes the {recent} latest")
    priority = _hide_padding(scores, real)
    priority[..., scores.shape[-1] - recent :] = float("inf")
    return largest(priority, budget)


def sinks_and_recent(real: Tensor, *, budget: int, sinks: int) -> Tensor:
    """Keep the first real tokens and the latest: the rule of StreamingLLM.

    Args:
        real: ``(B, S)`` or ``(B, K, S)`` boolean, True where the slot holds a real token, in the order of the tokens.
        budget: slots to keep.
        sinks: how many of them are the first; the other ``budget - sinks`` are the latest.

    Returns:
        ``(B, min(budget, S))`` or ``(B, K, min(budget, S))`` indices in ascending order.

    Raises:
        ValueError: if ``sinks`` is negative, ``budget`` is below ``sinks + 1``, or ``real`` is not boolean.

    References:
        Xiao et al. (2024), arXiv:2309.17453.

    Example:
        >>> sinks_and_recent(torch.ones(1, 8, dtype=torch.bool), budget=4, sinks=1)
        tensor([[0, 5, 6, 7]])
        >>> sinks_and_recent(torch.tensor([[False, False, True, True, True, True]]), budget=3, sinks=1)  # left padding
        tensor([[2, 4, 5]])
    """
    check_boolean("real", real.dtype, hint="True where the token is real")
    check_at_least("sinks", sinks, 0)
    check_at_least("budget", budget, sinks + 1, hint=f"the {sinks} sinks and at least the latest token")
    S = real.shape[-1]
    late = torch.arange(S, device=real.device).expand(real.shape)  # the later, the more important
    priority = torch.where(real & (real.cumsum(dim=-1) <= sinks), S + late, late)
    return largest(priority, budget)


def observation_votes(weights: Tensor, *, n_kv_heads: int, window: int, kernel: int = 1) -> Tensor:
    r"""Let the last queries of a prompt vote for the keys before them: the score of SnapKV.

    .. math:: c_j = \sum_{h \in g} \sum_{i = T - w}^{T - 1} P^{(h)}_{ij}, \qquad
        \tilde c_j = \max_{|l - j| \le (k - 1) / 2} c_l

    The pooling over ``kernel`` neighbors keeps tokens around a voted one, so that a phrase survives as a whole.

    Args:
        weights: ``(B, H, T, S)`` attention weights of the prompt's queries, or of its last ones only.
        n_kv_heads: number of key/value heads ``K``, a divisor of ``H``.
        window: number of last queries ``w`` that vote, and of last keys that are not voted on.
        kernel: width ``k`` of the pooling, odd; 1 does not pool.

    Returns:
        ``(B, K, S - window)`` votes, at least in float32.

    Raises:
        ValueError: if ``window`` is not from 1 to ``T`` and to ``S``, ``kernel`` is not odd and positive, or
            ``n_kv_heads`` does not divide ``H``.

    References:
        Li et al. (2024), arXiv:2404.14469. There the query heads vote separately, each for keys of its own.

    Example:
        >>> weights = torch.tensor([[0.1, 0.5, 0.1, 0.1, 0.2]]).reshape(1, 1, 1, 5)
        >>> observation_votes(weights, n_kv_heads=1, window=1, kernel=3).flatten()  # the neighbors of 1 rise with it
        tensor([0.5000, 0.5000, 0.5000, 0.1000])
    """
    check_ndim("weights", weights.shape, ("B", "H", "T", "S"))
    check_at_least("window", window, 1)
    check_at_least("number of queries T", weights.shape[2], window, hint=f"{window} queries vote")
    check_at_least("number of keys S", weights.shape[3], window, hint=f"the last {window} keys are not voted on")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}, expected an odd number of at least 1: it is centered on a key")
    votes = accumulated_attention(weights[:, :, -window:], n_kv_heads=n_kv_heads)[..., : weights.shape[3] - window]
    if votes.shape[-1] == 0:
        return votes
    return F.max_pool1d(votes, kernel, stride=1, padding=kernel // 2)


def snapkv_select(votes: Tensor, *, budget: int, window: int, real: Tensor | None = None) -> Tensor:
    """Keep the observation window, and of the keys before it those with the most votes: the rule of SnapKV.

    Args:
        votes: ``(B, K, S - window)`` votes from :func:`observation_votes`.
        budget: slots to keep.
        window: how many of them are the last ones, which voted.
        real: ``(B, S)`` or ``(B, K, S)`` boolean, True where the slot holds a real token. Default: everywhere.

    Returns:
        ``(B, K, min(budget, S))`` indices in ascending order.

    Raises:
        ValueError: if ``window`` is below 1, ``budget`` is below ``window``, or shapes do not fit.

    References:
        Li et al. (2024), arXiv:2404.14469.

    Example:
        >>> snapkv_select(torch.tensor([[[0.5, 0.1, 0.4, 0.0]]]), budget=4, window=2)
        tensor([[[0, 2, 4, 5]]])
    """
    check_at_least("window", window, 1)
    check_at_least("budget", budget, window, hint=f"it includes the window of {window}")
    scores = F.pad(votes, (0, window), value=float("inf"))
    return largest(_hide_padding(scores, real), budget)


def evicted_mass(weights: Tensor, kept: Tensor) -> Tensor:
    r"""Measure how much of each query's attention lay on slots that are gone.

    .. math:: \varepsilon_i = \sum_{j \notin \text{kept}} P_{ij}

    After the remaining weights are renormalized the output differs by
    :math:`\varepsilon_i(\bar v_{\text{gone}} - \bar v_{\text{kept}})`, the weighted means of the values on either side,
    which is at most :math:`2 \varepsilon_i \max_j \lVert v_j \rVert`.

    Args:
        weights: ``(B, H, T, S)`` attention weights over all keys; each row sums to 1.
        kept: ``(B, K, n)`` indices of the slots that are kept; ``K`` divides ``H``.

    Returns:
        ``(B, H, T)`` mass, from 0 to 1.

    Raises:
        ValueError: if the batch sizes differ, or ``K`` does not divide ``H``.

    References:
        The bound is derived in this book; the sum is what Zhang et al. (2023), arXiv:2306.14048, keep small.

    Example:
        >>> weights = torch.tensor([0.5, 0.2, 0.3]).reshape(1, 1, 1, 3)
        >>> round(evicted_mass(weights, torch.tensor([[[0, 2]]])).item(), 4)
        0.2
    """
    check_ndim("weights", weights.shape, ("B", "H", "T", "S"))
    check_ndim("kept", kept.shape, ("B", "K", "n"))
    (B, H, _, S), (rows, K, _) = weights.shape, kept.shape
    check_equal("batch size of kept", rows, "batch size of weights", B)
    check_divides("heads of kept", K, "heads of weights", H)
    gone = torch.ones(B, K, S, dtype=torch.bool, device=weights.device).scatter(2, kept, False)
    return (weights * gone.repeat_interleave(H // K, dim=1)[:, :, None]).sum(dim=-1)


def _hide_padding(scores: Tensor, real: Tensor | None) -> Tensor:
    """Return a copy of the scores in which padding comes last."""
    check_ndim("scores", scores.shape, ("B", "K", "S"))
    if real is None:
        return scores.clone()
    check_boolean("real", real.dtype, hint="True where the token is real")
    real = real[:, None].expand(-1, scores.shape[1], -1) if real.ndim == 2 else real
    check_equal("shape of real", tuple(real.shape), "shape (B, K, S)", tuple(scores.shape))
    return scores.masked_fill(~real, -1.0)
