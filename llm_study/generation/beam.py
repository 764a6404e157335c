"""Beam search: keep the best few texts at each step, all of one kind or in groups that avoid each other."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_divides
from llm_study.generation.session import LanguageModel, Session, check_request, end_ids

__all__ = ["Beams", "beam_search", "diverse_beam_search"]

Stopping = bool | Literal["never"]


class Beams(NamedTuple):
    """What a beam search has found, best first.

    Args:
        ids: ``(B, K, T + new)`` prompts and what follows; after the end a row holds ``eos_id``.
        scores: ``(B, K)`` log-probability of what follows, divided by its length to the power of the length penalty;
            −∞ where there are fewer than ``K`` texts.
        lengths: ``(B, K)`` number of tokens that follow, the end included.

    Example:
        >>> found = Beams(torch.tensor([[[5, 6, 7]]]), torch.tensor([[-0.5]]), torch.tensor([[2]]))
        >>> found.ids[0, 0]
        tensor([5, 6, 7])
    """

    ids: Tensor
    scores: Tensor
    lengths: Tensor


def beam_search(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: Stopping = False,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Beams:
    r"""Search for the most probable continuation with a beam, as transformers does.

    At each step every text of the beam is extended by every token, and the ``K`` best that have not ended go on. Those
    that end among the ``K`` best are kept aside, with the score

    .. math:: \frac{1}{n^\alpha} \sum_{t=1}^{n} \ln p(x_t \mid x_{<t})

    where :math:`n` counts their new tokens and :math:`\alpha` is the length penalty. The search ends when no text of
    the beam can beat the worst of ``K`` finished ones any more, by an estimate that ``early_stopping`` chooses.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        num_beams: number of texts ``K`` that are kept.
        length_penalty: :math:`\alpha`: 0 for the plain sum, 1 for the mean, more for longer texts.
        early_stopping: True stops as soon as ``K`` texts have ended; False also when the best of the beam, scored at
            its present length, is worse than all of them; "never" only when it would be so at its best length.
        adjust: ``(N, V), (N, S) → (N, V)``, changes log-probabilities, given the texts so far. Default: nothing.
        eos_id: id that ends a text, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, K, T + new)`` texts, ``(B, K)`` scores and ``(B, K)`` lengths.

    Raises:
        ValueError: if ``num_beams`` is below 1, ``early_stopping`` is none of the three, or the request is not one that
            :func:`llm_study.generation.session.check_request` accepts.

    Cost: ``K`` times that of greedy decoding.

    References:
        Sutskever et al. (2014), arXiv:1409.3215, section 3.2. Length penalty: Wu et al. (2016), arXiv:1609.08144, has
        another form of it.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> found = beam_search(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=4, num_beams=3)
        >>> found.ids.shape, found.scores[0].sort(descending=True).indices
        (torch.Size([1, 3, 7]), tensor([0, 1, 2]))
    """
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    _check_beams(num_beams, early_stopping)
    rules = _Rules(max_new_tokens, end_ids(eos_id), length_penalty, early_stopping)
    return _search(model, ids, rules, [num_beams], diversity=0.0, adjust=adjust, mask=mask)


def diverse_beam_search(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    num_beams: int,
    num_groups: int,
    diversity: float,
    length_penalty: float = 1.0,
    early_stopping: Stopping = False,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Beams:
    """Search with groups of beams, each of which avoids the tokens that the groups before it have just chosen.

    At each step the groups take turns. A token loses ``diversity`` for each text of an earlier group that goes on
    with it in this step (Hamming diversity); the loss stays in the score. The first group is a plain beam search.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        num_beams: number of texts ``K`` that all groups keep together.
        num_groups: number of groups, a divisor of ``num_beams``.
        diversity: what a token loses, in nats, for each time that it was chosen.
        length_penalty: power of the length by which scores are divided.
        early_stopping: when a group stops, as in :func:`beam_search`.
        adjust: ``(N, V), (N, S) → (N, V)``, changes log-probabilities, given the texts so far. Default: nothing.
        eos_id: id that ends a text, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, K, T + new)`` texts of all groups, ``(B, K)`` scores, best first, and ``(B, K)`` lengths.

    Raises:
        ValueError: if ``num_groups`` does not divide ``num_beams``, ``diversity`` is negative, or for the reasons of
            :func:`beam_search`.

    Cost: that of :func:`beam_search`.

    References:
        Vijayakumar et al. (2016), arXiv:1610.02424, algorithm 1.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model, ids = LlamaForCausalLM(config), torch.tensor([[5, 6, 7]])
        >>> found = diverse_beam_search(model, ids, max_new_tokens=1, num_beams=3, num_groups=3, diversity=100.0)
        >>> len(set(found.ids[0, :, -1].tolist()))  # three groups, three tokens
        3
    """
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    _check_beams(num_beams, early_stopping)
    check_divides("num_groups", num_groups, "num_beams", num_beams)
    if not 0 <= diversity < float("inf"):
        raise ValueError(f"diversity is {diversity}, expected 0 or more, and finite")
    rules = _Rules(max_new_tokens, end_ids(eos_id), length_penalty, early_stopping)
    sizes = [num_beams // num_groups] * num_groups
    return _search(model, ids, rules, sizes, diversity=diversity, adjust=adjust, mask=mask)


class _Rules(NamedTuple):
    """What all groups of a search go by."""

    limit: int
    ends: tuple[int, ...]
    power: float
    stopping: Stopping


class _Group:
    """The beam of one group: ``K`` texts that go on, and the best ``K`` that have ended.

    The first text starts with a score of 0, the others, which are the same, with −∞.
    """

    def __init__(self, ids: Tensor, size: int, rules: _Rules, dtype: torch.dtype) -> None:
        B, T = ids.shape
        self.size, self.rules, self.prompt_length = size, rules, T
        fill = rules.ends[0] if rules.ends else 0
        blank = torch.cat([ids, ids.new_full((B, rules.limit), fill)], dim=1)[:, None].repeat(1, size, 1)
        none = torch.full((B, size), -torch.inf, dtype=dtype, device=ids.device)
        self.live, self.live_scores = blank, none.clone()  # (B, K, T + limit), (B, K)
        self.live_scores[:, 0] = 0
        self.done, self.done_scores = blank, none  # −∞: an empty place
        self.done_lengths = torch.zeros(B, size, dtype=torch.long, device=ids.device)
        self.open = torch.ones(B, dtype=torch.bool, device=ids.device)  # whether a better text may still come

    def step(self, logp: Tensor, n: int) -> Tensor:
        """Extend each text by its ``n``-th token; return ``(B, K)``, which text each has grown from."""
        K, V = logp.shape[1:]
        count = min(max(2, 1 + len(self.rules.ends)) * K, K * V)  # K of them have not ended
        scores, flat = (self.live_scores[..., None] + logp).flatten(1).topk(count)
        parents, tokens = flat // V, flat % V  # (B, count)
        texts = _rows(self.live, parents)
        texts[:, :, self.prompt_length + n - 1] = tokens
        ended = torch.isin(tokens, tokens.new_tensor(self.rules.ends))
        kept = ended | (n == self.rules.limit)
        self._finish(texts[:, :K], scores[:, :K].masked_fill(~kept[:, :K], -torch.inf), n)
        self.live_scores, best = scores.masked_fill(ended, -torch.inf).topk(K)
        self.live = _rows(texts, best)
        self._close(n)
        return parents.gather(1, best)

    @property
    def full(self) -> Tensor:
        """``(B,)`` whether ``K`` texts have ended."""
        return self.done_scores.isfinite().all(1)

    def _finish(self, texts: Tensor, scores: Tensor, n: int) -> None:
        """Keep the best ``K`` of those that had ended before and those that end now."""
        late = ~self.open | (self.full & (self.rules.stopping is True))
        scores = (scores / n**self.rules.power).masked_fill(late[:, None], -torch.inf)
        self.done_scores, best = torch.cat([self.done_scores, scores], dim=1).topk(self.size)
        self.done = _rows(torch.cat([self.done, texts], dim=1), best)
        lengths = torch.cat([self.done_lengths, torch.full_like(best, n)], dim=1).gather(1, best)
        self.done_lengths = lengths.where(self.done_scores.isfinite(), 0)

    def _close(self, n: int) -> None:
        """Close the rows in which no text of the beam can get among the finished ones."""
        at = self.rules.limit if self.rules.stopping == "never" and self.rules.power > 0 else n
        hope = self.live_scores[:, 0] / at**self.rules.power
        self.open = self.open & (hope > self.done_scores[:, -1])


def _search(
    model: LanguageModel,
    ids: Tensor,
    rules: _Rules,
    sizes: list[int],
    *,
    diversity: float,
    adjust: Callable[[Tensor, Tensor], Tensor] | None,
    mask: Tensor | None,
) -> Beams:
    """Let groups of beams search side by side in one batch, whose rows are ordered by prompt, group and beam."""
    with torch.inference_mode():
        groups = _grow(model, ids, rules, sizes, diversity, adjust, mask)
        found = _collect(groups, ids)
    return Beams(*(x.clone() for x in found))  # made outside inference mode: they may be trained on


def _grow(
    model: LanguageModel,
    ids: Tensor,
    rules: _Rules,
    sizes: list[int],
    diversity: float,
    adjust: Callable[[Tensor, Tensor], Tensor] | None,
    mask: Tensor | None,
) -> list[_Group]:
    """Let the groups grow token by token until none of them can find anything better."""
    (B, T), K = ids.shape, sum(sizes)
    session = Session(model, ids, room=rules.limit, mask=mask, copies=K)
    seen = ids if mask is None else torch.where(mask, ids, ids[:, -1:])
    logits = session()
    dtype = torch.promote_types(logits.dtype, torch.float32)
    groups = [_Group(seen, size, rules, dtype) for size in sizes]
    first = torch.arange(B, device=ids.device)[:, None] * K  # (B, 1) row of the first beam of each prompt
    for n in range(1, rules.limit + 1):
        logp = logits.log_softmax(-1, dtype=dtype)
        if adjust is not None:
            logp = adjust(logp, torch.cat([group.live for group in groups], dim=1).flatten(0, 1)[:, : T + n - 1])
        parents = _take_turns(groups, logp.view(B, K, -1), n, diversity)
        if n == rules.limit or not any(_goes_on(group) for group in groups):
            break
        session.reorder((first + parents).flatten())
        logits = session(torch.cat([group.live[:, :, T + n - 1] for group in groups], dim=1).flatten())
    return groups


def _take_turns(groups: list[_Group], logp: Tensor, n: int, diversity: float) -> Tensor:
    """Let the groups step one after the other; return ``(B, K)``, which beam each text has grown from."""
    taken, parents, start = torch.zeros_like(logp[:, 0]), [], 0  # (B, V): how often a token was chosen
    for group in groups:
        part = logp[:, start : start + group.size]
        parents.append(start + group.step(part - diversity * taken[:, None] if diversity else part, n))
        tokens = group.live[:, :, group.prompt_length + n - 1]
        taken.scatter_add_(1, tokens, group.live_scores.isfinite().to(taken.dtype))
        start += group.size
    return torch.cat(parents, dim=1)


def _goes_on(group: _Group) -> bool:
    """Whether a group may still find something better."""
    return bool(group.open.any()) and not (group.rules.stopping is True and bool(group.full.all()))


def _collect(groups: list[_Group], ids: Tensor) -> Beams:
    """Sort what all groups have found, cut off what no text has reached, and put the prompts back as they were."""
    scores, order = torch.cat([group.done_scores for group in groups], dim=1).sort(dim=1, descending=True, stable=True)
    lengths = torch.cat([group.done_lengths for group in groups], dim=1).gather(1, order)
    texts = _rows(torch.cat([group.done for group in groups], dim=1), order)
    texts[:, :, : ids.shape[1]] = ids[:, None]
    return Beams(texts[:, :, : ids.shape[1] + int(lengths.max())], scores, lengths)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Pick texts of each prompt: ``(B, N, L)`` by ``(B, M)`` gives ``(B, M, L)``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _check_beams(num_beams: int, early_stopping: Stopping) -> None:
    check_at_least("num_beams", num_beams, 1)
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping is {early_stopping!r}, expected True, False or 'never'")
