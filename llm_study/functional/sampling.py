r"""From logits to the next token: temperature, truncation, penalties, guidance, and the draw itself.

Every function is pure and works on logits ``(B, V)``, one row for each sequence of the batch; filters and draws take
any leading dimensions. A filter sets what it forbids to :math:`-\infty` and leaves the rest as it is, so filters
compose, and softmax of the result is the renormalized distribution. A filter keeps at least one token; all but the
typical filter keep the most probable. Filters look at parameters, not at values: a NaN stays visible, and
:func:`sample` and :func:`gumbel_max` refuse it. Probabilities are computed in float32 or better; what comes back has
the dtype of the logits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal, check_ndim

__all__ = [
    "temperature_scale",
    "top_k_filter",
    "top_p_filter_reference",
    "top_p_filter",
    "min_p_filter",
    "typical_filter_reference",
    "typical_filter",
    "epsilon_filter",
    "eta_filter",
    "top_n_sigma_filter",
    "repetition_penalty",
    "frequency_presence_penalty",
    "no_repeat_ngram_reference",
    "no_repeat_ngram",
    "diversity_penalty",
    "sample",
    "gumbel_max",
    "gumbel_top_k",
    "mirostat_filter",
    "mirostat",
    "classifier_free_guidance",
    "plausible_filter",
    "contrastive_difference",
    "contrastive_scores",
    "contrastive_search_scores",
    "dola_layer",
    "dola_scores",
]


def temperature_scale(logits: Tensor, temperature: float) -> Tensor:
    r"""Divide logits by a temperature.

    .. math:: p_i \propto e^{z_i / T}

    Below 1 the distribution becomes sharper, above 1 flatter; the order of the tokens stays.

    Args:
        logits: ``(B, V)`` logits.
        temperature: :math:`T`, above 0. Greedy decoding is the limit 0: take the argmax instead.

    Returns:
        ``(B, V)`` scaled logits.

    Raises:
        ValueError: if the temperature is not a positive finite number.

    Cost: ``B * V`` divisions.

    References:
        Ackley, Hinton and Sejnowski (1985), A Learning Algorithm for Boltzmann Machines.

    Example:
        >>> temperature_scale(torch.tensor([[2.0, 1.0]]), 0.5)
        tensor([[4., 2.]])
    """
    _check_range("temperature", temperature, 0, math.inf, "(0, inf)", hint="for greedy decoding take the argmax")
    return logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    r"""Keep the ``k`` largest logits; those that equal the smallest of them stay too.

    Args:
        logits: ``(B, V)`` logits.
        k: how many, at least 1. More than ``V`` keeps everything.

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``k`` is below 1.

    Cost: one partial sort of each row.

    References:
        Fan, Lewis and Dauphin (2018), arXiv:1805.04833.

    Example:
        >>> top_k_filter(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 2)
        tensor([[-inf, 3., 2., -inf]])
    """
    check_at_least("k", k, 1, hint="with k = 1 only the largest logit stays")
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def top_p_filter_reference(logits: Tensor, p: float) -> Tensor:
    r"""Keep the nucleus, written as its definition; :func:`top_p_filter` is the fast twin.

    Args:
        logits: ``(B, V)`` logits.
        p: mass of the nucleus, in (0, 1].

    Returns:
        ``(B, V)`` logits, :math:`-\infty` outside the nucleus.

    Raises:
        ValueError: if ``p`` is outside (0, 1].

    Cost: a loop over the tokens in Python.

    References:
        Holtzman et al. (2020), arXiv:1904.09751, section 3.1.

    Example:
        >>> top_p_filter_reference(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("p", p, 0, 1, "(0, 1]")
    kept = torch.full_like(logits, -math.inf)
    for row, probabilities, out in zip(logits, _softmax(logits), kept, strict=True):
        mass = 0.0
        for token in probabilities.argsort(descending=True).tolist():
            if mass >= p:  # the tokens before this one are enough
                break
            mass += probabilities[token].item()
            out[token] = row[token]
    return kept


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    r"""Keep the nucleus: the smallest set of tokens whose probabilities sum to at least ``p``.

    Seen from the other end: drop the least probable tokens as long as what is dropped sums to at most :math:`1 - p`.

    Args:
        logits: ``(B, V)`` logits.
        p: mass of the nucleus, in (0, 1].

    Returns:
        ``(B, V)`` logits, :math:`-\infty` outside the nucleus. Of equally probable tokens some may be dropped.

    Raises:
        ValueError: if ``p`` is outside (0, 1].

    Cost: one sort of each row.

    References:
        Holtzman et al. (2020), arXiv:1904.09751, section 3.1.

    Example:
        >>> top_p_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("p", p, 0, 1, "(0, 1]")
    ascending, order = logits.sort(dim=-1)
    drop = _softmax(ascending).cumsum(dim=-1) <= 1 - p
    drop[..., -1] = False  # rounding must not drop the last one
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    r"""Keep tokens that are at least ``p`` times as probable as the most probable one.

    .. math:: p_i \ge p \max_j p_j

    Args:
        logits: ``(B, V)`` logits.
        p: fraction of the largest probability, in [0, 1].

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``p`` is outside [0, 1].

    Cost: one softmax of each row, no sort.

    References:
        Nguyen et al. (2024), arXiv:2407.01082.

    Example:
        >>> min_p_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("p", p, 0, 1, "[0, 1]")
    probabilities = _softmax(logits)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def typical_filter_reference(logits: Tensor, p: float) -> Tensor:
    r"""Keep the typical tokens, written as their definition; :func:`typical_filter` is the fast twin.

    Args:
        logits: ``(B, V)`` logits.
        p: mass of the typical set, in (0, 1].

    Returns:
        ``(B, V)`` logits, :math:`-\infty` outside the typical set.

    Raises:
        ValueError: if ``p`` is outside (0, 1].

    Cost: a loop over the tokens in Python.

    References:
        Meister et al. (2023), arXiv:2202.00666.

    Example:
        >>> typical_filter_reference(torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log(), 0.5).exp()
        tensor([[0.0000, 0.2000, 0.2000, 0.2000]])
    """
    _check_range("p", p, 0, 1, "(0, 1]")
    kept = torch.full_like(logits, -math.inf)
    for row, probabilities, out in zip(logits, _softmax(logits), kept, strict=True):
        distance = (-probabilities.log() - torch.special.entr(probabilities).sum()).abs()
        mass = 0.0
        for token in distance.argsort().tolist():
            if mass >= p:
                break
            mass += probabilities[token].item()
            out[token] = row[token]
    return kept


def typical_filter(logits: Tensor, p: float) -> Tensor:
    r"""Keep the tokens whose surprise is closest to the entropy, until their probabilities sum to ``p``.

    .. math:: \bigl| -\ln p_i - H(p) \bigr| \quad \text{small first}

    The most probable token may be dropped: this is the one filter here that can. Tokens as far from the entropy as the
    last one kept stay too.

    Args:
        logits: ``(B, V)`` logits.
        p: mass of the typical set, in (0, 1].

    Returns:
        ``(B, V)`` logits, :math:`-\infty` outside the typical set.

    Raises:
        ValueError: if ``p`` is outside (0, 1].

    Cost: one sort of each row.

    References:
        Meister et al. (2023), arXiv:2202.00666.

    Example:
        >>> typical_filter(torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log(), 0.5).exp()
        tensor([[0.0000, 0.2000, 0.2000, 0.2000]])
    """
    _check_range("p", p, 0, 1, "(0, 1]")
    logp = _log_softmax(logits)
    distance = (-logp - _entropy(logp)).abs()
    nearest, order = distance.sort(dim=-1)
    short = (logp.exp().gather(-1, order).cumsum(dim=-1) < p).sum(dim=-1, keepdim=True)  # sets that are too small
    farthest = nearest.gather(-1, short.clamp(max=logits.shape[-1] - 1))
    return logits.masked_fill(distance > farthest, -math.inf)


def epsilon_filter(logits: Tensor, epsilon: float) -> Tensor:
    r"""Keep tokens whose probability is at least ``epsilon``, and always the most probable.

    Args:
        logits: ``(B, V)`` logits.
        epsilon: smallest probability, in (0, 1).

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``epsilon`` is outside (0, 1).

    Cost: one softmax of each row.

    References:
        Hewitt, Manning and Liang (2022), arXiv:2210.15191.

    Example:
        >>> epsilon_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.25).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("epsilon", epsilon, 0, 1, "(0, 1)")
    return _keep_probable(logits, _softmax(logits), epsilon)


def eta_filter(logits: Tensor, epsilon: float) -> Tensor:
    r"""Keep tokens above a threshold that falls where the distribution is flat, and always the most probable.

    .. math:: p_i \ge \eta = \min\bigl(\epsilon, \sqrt{\epsilon}\, e^{-H(p)}\bigr)

    Args:
        logits: ``(B, V)`` logits.
        epsilon: :math:`\epsilon`, in (0, 1).

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``epsilon`` is outside (0, 1).

    Cost: one softmax of each row.

    References:
        Hewitt, Manning and Liang (2022), arXiv:2210.15191.

    Example:
        >>> eta_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()  # the threshold is 0.2525
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("epsilon", epsilon, 0, 1, "(0, 1)")
    threshold = (math.sqrt(epsilon) * (-_entropy(_log_softmax(logits))).exp()).clamp(max=epsilon)
    return _keep_probable(logits, _softmax(logits), threshold)


def top_n_sigma_filter(logits: Tensor, n: float) -> Tensor:
    r"""Keep logits within ``n`` standard deviations of the largest.

    .. math:: z_i \ge \max_j z_j - n \sigma(z)

    Dividing all logits by a temperature divides :math:`\sigma` too: what is kept does not depend on the temperature.
    Tokens that are forbidden already do not count in :math:`\sigma`, which is the square root of the unbiased variance.

    Args:
        logits: ``(B, V)`` logits.
        n: how many standard deviations, above 0.

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``n`` is not a positive finite number.

    Cost: two passes over each row, no softmax and no sort.

    References:
        Tang et al. (2024), arXiv:2411.07641.

    Example:
        >>> top_n_sigma_filter(torch.tensor([[4.0, 3.0, 0.0, 0.0, 0.0]]), 1.0)  # sigma is 1.9494
        tensor([[4., 3., -inf, -inf, -inf]])
    """
    _check_range("n", n, 0, math.inf, "(0, inf)")
    z = logits.to(_dtype(logits))
    allowed = z != -math.inf
    count = allowed.sum(dim=-1, keepdim=True)
    mean = z.where(allowed, 0).sum(dim=-1, keepdim=True) / count
    squares = (z - mean).square().where(allowed, 0).sum(dim=-1, keepdim=True)
    sigma = (squares / (count - 1).clamp(min=1)).sqrt()
    return logits.masked_fill(z < z.amax(dim=-1, keepdim=True) - n * sigma, -math.inf)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of tokens that occurred by ``penalty``, multiply their negative logits by it.

    Args:
        logits: ``(B, V)`` logits.
        ids: ``(B, T)`` tokens so far, the prompt included.
        penalty: above 1 discourages repetition, below 1 encourages it, 1 changes nothing.

    Returns:
        ``(B, V)`` logits.

    Raises:
        ValueError: if ``penalty`` is not a positive finite number, or the shapes or ids do not fit.

    Cost: ``B * T`` numbers are gathered and written back.

    References:
        Keskar et al. (2019), arXiv:1909.05858, section 4.1, where negative logits are not treated apart.

    Example:
        >>> repetition_penalty(torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[0, 1, 0]]), 2.0)
        tensor([[ 1.5000, -2.0000,  2.0000]])
    """
    _check_range("penalty", penalty, 0, math.inf, "(0, inf)")
    _check_ids(logits, ids)
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def frequency_presence_penalty(logits: Tensor, ids: Tensor, *, frequency: float = 0.0, presence: float = 0.0) -> Tensor:
    r"""Subtract from each logit what its token's occurrences cost.

    .. math:: z_i - \alpha_{\text{frequency}} \, c_i - \alpha_{\text{presence}} \, [c_i > 0]

    where :math:`c_i` counts token :math:`i` in ``ids``.

    Args:
        logits: ``(B, V)`` logits.
        ids: ``(B, T)`` tokens so far; the caller decides whether the prompt counts.
        frequency: cost of each occurrence; negative encourages repetition.
        presence: cost of having occurred at all.

    Returns:
        ``(B, V)`` logits.

    Raises:
        ValueError: if a cost is not finite, or the shapes or ids do not fit.

    Cost: one count of ``B * T`` tokens, and two passes over the logits.

    References:
        The parameters frequency_penalty and presence_penalty of OpenAI's API, as its documentation defines them.

    Example:
        >>> frequency_presence_penalty(torch.zeros(1, 3), torch.tensor([[0, 0, 2]]), frequency=0.5, presence=1.0)
        tensor([[-2.0000,  0.0000, -1.5000]])
    """
    _check_range("frequency", frequency, -math.inf, math.inf, "(-inf, inf)")
    _check_range("presence", presence, -math.inf, math.inf, "(-inf, inf)")
    _check_ids(logits, ids)
    count = torch.zeros_like(logits, dtype=_dtype(logits)).scatter_add(
        1, ids, torch.ones_like(ids, dtype=_dtype(logits))
    )
    return (logits - frequency * count - presence * (count > 0)).to(logits.dtype)


def no_repeat_ngram_reference(logits: Tensor, ids: Tensor, n: int) -> Tensor:
    r"""Forbid n-grams that occurred, written as the definition; :func:`no_repeat_ngram` is the fast twin.

    Args:
        logits: ``(B, V)`` logits.
        ids: ``(B, T)`` tokens so far.
        n: length of the n-grams, at least 1.

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token would repeat an n-gram.

    Raises:
        ValueError: if ``n`` is below 1, or the shapes or ids do not fit.

    Cost: a loop over the tokens in Python.

    References:
        Paulus, Xiong and Socher (2017), arXiv:1705.04304, section 2.5, with n = 3.

    Example:
        >>> no_repeat_ngram_reference(torch.zeros(1, 3), torch.tensor([[1, 2, 0, 1]]), 2)  # after 1 came 2
        tensor([[0., 0., -inf]])
    """
    check_at_least("n", n, 1)
    _check_ids(logits, ids)
    out = logits.clone()
    for row, tokens in zip(out, ids.tolist(), strict=True):
        seen = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
        for token in range(logits.shape[1]):
            if (*tokens[len(tokens) - n + 1 :], token) in seen:
                row[token] = -math.inf
    return out


def no_repeat_ngram(logits: Tensor, ids: Tensor, n: int) -> Tensor:
    r"""Forbid every token that would complete an n-gram that occurred before.

    Args:
        logits: ``(B, V)`` logits.
        ids: ``(B, T)`` tokens so far.
        n: length of the n-grams, at least 1; with 1 no token may come twice.

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token would repeat an n-gram; a row may become so throughout.

    Raises:
        ValueError: if ``n`` is below 1, or the shapes or ids do not fit.

    Cost: ``B * T * n`` comparisons.

    References:
        Paulus, Xiong and Socher (2017), arXiv:1705.04304, section 2.5, with n = 3.

    Example:
        >>> no_repeat_ngram(torch.zeros(1, 3), torch.tensor([[1, 2, 0, 1]]), 2)  # after 1 came 2
        tensor([[0., 0., -inf]])
    """
    check_at_least("n", n, 1)
    _check_ids(logits, ids)
    T = ids.shape[1]
    if n > T:
        return logits.clone()
    grams = ids.unfold(1, n, 1)  # (B, T - n + 1, n)
    same = (grams[..., :-1] == ids[:, None, T - n + 1 :]).all(dim=-1)  # they begin as the text ends
    hits = torch.zeros_like(logits, dtype=torch.int64).scatter_add(1, grams[..., -1], same.long())
    return logits.masked_fill(hits > 0, -math.inf)


def diversity_penalty(scores: Tensor, chosen: Tensor, strength: float) -> Tensor:
    r"""Subtract from each token how often other groups of beams chose it in this step.

    .. math:: z_i - \lambda \sum_{g' < g} \sum_b [\,x^{(g')}_b = i\,]

    Args:
        scores: ``(B, V)`` scores of the group whose turn it is, one row for each beam.
        chosen: ``(N,)`` tokens that the groups before it chose in this step; all rows see the same.
        strength: :math:`\lambda`, at least 0.

    Returns:
        ``(B, V)`` scores.

    Raises:
        ValueError: if the strength is negative or not finite, or a token is outside the vocabulary.

    Cost: one count of ``N`` tokens, and one pass over the scores.

    References:
        Vijayakumar et al. (2018), arXiv:1610.02424, the Hamming diversity.

    Example:
        >>> diversity_penalty(torch.zeros(1, 3), torch.tensor([2, 2, 0]), 0.5)
        tensor([[-0.5000,  0.0000, -1.0000]])
    """
    _check_range("strength", strength, 0, math.inf, "[0, inf)")
    check_ndim("chosen", chosen.shape, ("N",))
    _check_ids(scores, chosen.expand(scores.shape[0], -1))
    return scores - strength * torch.bincount(chosen, minlength=scores.shape[-1]).to(scores.dtype)


def sample(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw one token from softmax of the logits.

    Args:
        logits: ``(B, V)`` logits, :math:`-\infty` where a token is forbidden; any leading dimensions.
        generator: source of randomness. Default: PyTorch's global one.

    Returns:
        ``(B,)`` ids.

    Raises:
        ValueError: if a row holds NaN or infinity, or forbids every token.

    Cost: one softmax and one draw for each row.

    References:
        The draw is :func:`torch.multinomial`, as in transformers: the same seed gives the same tokens.

    Example:
        >>> sample(torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]))
        tensor([0, 1])
    """
    _check_drawable(logits)
    rows = _softmax(logits).reshape(-1, logits.shape[-1])
    return torch.multinomial(rows, num_samples=1, generator=generator).reshape(logits.shape[:-1])


def gumbel_max(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw one token from softmax of the logits, without computing softmax.

    .. math:: \arg\max_i \, (z_i + g_i), \qquad g_i = -\ln(-\ln u_i), \quad u_i \sim U(0, 1)

    Args:
        logits: ``(B, V)`` logits, :math:`-\infty` where a token is forbidden; any leading dimensions.
        generator: source of randomness. Default: PyTorch's global one.

    Returns:
        ``(B,)`` ids, distributed as those of :func:`sample`.

    Raises:
        ValueError: if a row holds NaN or infinity, or forbids every token.

    Cost: ``B * V`` random numbers and one argmax.

    References:
        Gumbel (1954); Maddison, Tarlow and Minka (2014), arXiv:1411.0030.

    Example:
        >>> gumbel_max(torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]))
        tensor([0, 1])
    """
    return gumbel_top_k(logits, 1, generator=generator)[..., 0]


def gumbel_top_k(logits: Tensor, k: int, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw ``k`` different tokens one after the other, each from softmax over those that are left.

    The indices of the ``k`` largest :math:`z_i + g_i`, in descending order, where the :math:`g_i` are independent
    Gumbel noise.

    Args:
        logits: ``(B, V)`` logits, :math:`-\infty` where a token is forbidden; any leading dimensions.
        k: how many, from 1 to ``V``. A row that allows fewer tokens ends with forbidden ones.
        generator: source of randomness. Default: PyTorch's global one.

    Returns:
        ``(B, k)`` ids, in the order of the draws.

    Raises:
        ValueError: if ``k`` is below 1 or above ``V``, or a row holds NaN or infinity, or forbids every token.

    Cost: ``B * V`` random numbers and one partial sort.

    References:
        Kool, van Hoof and Welling (2019), arXiv:1903.06059.

    Example:
        >>> gumbel_top_k(torch.tensor([[100.0, 0.0, 200.0]]), 3)
        tensor([[2, 0, 1]])
    """
    check_at_least("k", k, 1)
    check_at_least("V", logits.shape[-1], k, hint=f"there are not k = {k} different tokens")
    _check_drawable(logits)
    waiting = torch.empty_like(logits, dtype=_dtype(logits)).exponential_(generator=generator)  # -ln u
    return (logits - waiting.log()).topk(k).indices


def mirostat_filter(logits: Tensor, mu: Tensor) -> Tensor:
    r"""Keep tokens whose surprise is at most ``mu`` bits, and always the most probable.

    .. math:: -\log_2 p_i \le \mu

    Args:
        logits: ``(B, V)`` logits.
        mu: ``(B,)`` largest surprise that is allowed, in bits.

    Returns:
        ``(B, V)`` logits, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``mu`` has another shape than the logits without their last dimension.

    Cost: one log-softmax of each row.

    References:
        Basu et al. (2021), arXiv:2007.14966.

    Example:
        >>> mirostat_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([2.0])).exp()  # 1, 1.737, 2.322 bits
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    check_equal("shape of mu", tuple(mu.shape), "shape of logits without V", tuple(logits.shape[:-1]))
    surprise = -_log_softmax(logits) / math.log(2)
    drop = (surprise > mu[..., None]) & (logits < logits.amax(dim=-1, keepdim=True))
    return logits.masked_fill(drop, -math.inf)


def mirostat(
    logits: Tensor, mu: Tensor, *, target: float, rate: float = 0.1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draw one token, and move the limit of surprise so that the average surprise approaches the target.

    .. math:: \mu' = \mu - \eta \, \bigl( -\log_2 p_x - \tau \bigr)

    where :math:`p_x` is the probability of the drawn token before truncation. Start with ``mu`` at twice the target.

    Args:
        logits: ``(B, V)`` logits.
        mu: ``(B,)`` largest surprise that is allowed, in bits.
        target: :math:`\tau`, the surprise that the text shall have, in bits for each token.
        rate: :math:`\eta`, above 0.
        generator: source of randomness. Default: PyTorch's global one.

    Returns:
        ``(B,)`` ids, and ``(B,)`` the limits for the next step.

    Raises:
        ValueError: if target or rate is not a positive finite number, ``mu`` has the wrong shape, or a row holds NaN or
            infinity, or forbids every token.

    Cost: two softmaxes and one draw for each row.

    References:
        Basu et al. (2021), arXiv:2007.14966, the variant without Zipf's law that is known as Mirostat 2.0.

    Example:
        >>> mirostat(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([6.0]), target=3.0)[1]  # surprise 1, below 3
        tensor([6.2000])
    """
    _check_range("target", target, 0, math.inf, "(0, inf)")
    _check_range("rate", rate, 0, math.inf, "(0, inf)")
    ids = sample(mirostat_filter(logits, mu), generator=generator)
    surprise = -_log_softmax(logits).gather(-1, ids[..., None])[..., 0] / math.log(2)
    return ids, mu - rate * (surprise - target)


def classifier_free_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    r"""Move log-probabilities away from those without the condition.

    .. math:: \ln p(x) + \gamma \bigl( \ln p(x \mid c) - \ln p(x) \bigr)

    With :math:`\gamma = 1` only the conditional remains, above 1 the condition counts more.

    Args:
        conditional: ``(B, V)`` logits given the whole context.
        unconditional: ``(B, V)`` logits without the condition.
        scale: :math:`\gamma`, at least 0.

    Returns:
        ``(B, V)`` scores, not normalized; a token that the conditional forbids stays forbidden.

    Raises:
        ValueError: if the scale is negative or not finite, or the shapes differ.

    Cost: two log-softmaxes of each row; the second forward pass costs far more.

    References:
        Sanchez et al. (2023), arXiv:2306.17806; Ho and Salimans (2022), arXiv:2207.12598.

    Example:
        >>> p, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> classifier_free_guidance(p, q, 2.0).softmax(dim=-1)
        tensor([[0.9412, 0.0588]])
    """
    _check_range("scale", scale, 0, math.inf, "[0, inf)")
    _check_same(conditional, unconditional, "unconditional")
    with_c, without = _log_softmax(conditional), _log_softmax(unconditional)
    scores = without + scale * (with_c - without)
    return scores.masked_fill(conditional == -math.inf, -math.inf).to(conditional.dtype)


def plausible_filter(logits: Tensor, alpha: float) -> Tensor:
    r"""Keep tokens that are at least ``alpha`` times as probable as the best, in log space.

    .. math:: \ln p_i \ge \ln \alpha + \max_j \ln p_j

    This is :func:`min_p_filter` again, found two years earlier for another purpose: it keeps contrasts away from tokens
    that the expert finds implausible.

    Args:
        logits: ``(B, V)`` logits of the expert.
        alpha: fraction of the largest probability, in (0, 1].

    Returns:
        ``(B, V)`` log-probabilities, :math:`-\infty` where a token is dropped.

    Raises:
        ValueError: if ``alpha`` is outside (0, 1].

    Cost: one log-softmax of each row.

    References:
        Li et al. (2023), arXiv:2210.15097, section 3.3.

    Example:
        >>> plausible_filter(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_range("alpha", alpha, 0, 1, "(0, 1]")
    logp = _log_softmax(logits)
    least = logp.amax(dim=-1, keepdim=True) + math.log(alpha)
    return logp.masked_fill(logp < least, -math.inf).to(logits.dtype)


def contrastive_difference(expert: Tensor, amateur: Tensor, *, alpha: float = 0.1) -> Tensor:
    r"""Contrastive decoding: what the expert finds probable and the amateur does not.

    .. math:: \ln p_{\text{expert}}(x) - \ln p_{\text{amateur}}(x) \quad \text{where } p_{\text{expert}}(x) \ge
        \alpha \max_w p_{\text{expert}}(w)

    Args:
        expert: ``(B, V)`` logits of the large model.
        amateur: ``(B, V)`` logits of the small model; divide them by a temperature first if wanted.
        alpha: how plausible a token must be for the expert, in (0, 1].

    Returns:
        ``(B, V)`` scores, :math:`-\infty` where the expert finds a token implausible.

    Raises:
        ValueError: if ``alpha`` is outside (0, 1], or the shapes differ.

    Cost: two log-softmaxes of each row.

    References:
        Li et al. (2023), arXiv:2210.15097, section 3.

    Example:
        >>> e, a = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.6, 0.1, 0.3]]).log()
        >>> contrastive_difference(e, a, alpha=0.5)  # ln 1, ln 3, implausible
        tensor([[0.0000, 1.0986,   -inf]])
    """
    _check_same(expert, amateur, "amateur")
    plausible = plausible_filter(expert, alpha)
    return _above_floor(plausible, plausible - _log_softmax(amateur))


def contrastive_scores(expert: Tensor, amateur: Tensor, *, alpha: float = 0.1, beta: float = 0.5) -> Tensor:
    r"""Contrastive decoding with a strength: the expert, pushed away from the amateur.

    .. math:: (1 + \beta) \ln p_{\text{expert}}(x) - \beta \ln p_{\text{amateur}}(x) \quad \text{where }
        p_{\text{expert}}(x) \ge \alpha \max_w p_{\text{expert}}(w)

    With :math:`\beta = 0` only the truncated expert remains; as :math:`\beta` grows, the order of the tokens
    approaches that of :func:`contrastive_difference`. It is :func:`classifier_free_guidance` with
    :math:`\gamma = 1 + \beta`, truncated.

    Args:
        expert: ``(B, V)`` logits of the large model.
        amateur: ``(B, V)`` logits of the small model.
        alpha: how plausible a token must be for the expert, in (0, 1].
        beta: :math:`\beta`, at least 0.

    Returns:
        ``(B, V)`` scores, :math:`-\infty` where the expert finds a token implausible.

    Raises:
        ValueError: if ``alpha`` is outside (0, 1], ``beta`` is negative or not finite, or the shapes differ.

    Cost: two log-softmaxes of each row.

    References:
        O'Brien and Lewis (2023), arXiv:2309.09117, on logits; log-probabilities differ by a constant for each row.

    Example:
        >>> e, a = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.6, 0.1, 0.3]]).log()
        >>> contrastive_scores(e, a, alpha=0.5, beta=1.0).softmax(dim=-1)  # as 0.36/0.6 to 0.09/0.1
        tensor([[0.4000, 0.6000, 0.0000]])
    """
    _check_range("beta", beta, 0, math.inf, "[0, inf)")
    _check_same(expert, amateur, "amateur")
    plausible = plausible_filter(expert, alpha)
    return _above_floor(plausible, (1 + beta) * plausible - beta * _log_softmax(amateur))


def contrastive_search_scores(
    probabilities: Tensor, candidates: Tensor, past: Tensor, *, alpha: float = 0.6, mask: Tensor | None = None
) -> Tensor:
    r"""Contrastive search: confidence of the model, less the similarity to what has been written.

    .. math:: (1 - \alpha) \, p(v) - \alpha \max_{j} \cos(h_v, h_j)

    Args:
        probabilities: ``(B, k)`` of the candidates, usually the top ``k``.
        candidates: ``(B, k, D)`` hidden states of the last layer after each candidate.
        past: ``(B, T, D)`` hidden states of the tokens so far.
        alpha: weight of the penalty, in [0, 1]; 0 is greedy.
        mask: ``(B, T)`` True where a token of the past is real. Default: everywhere.

    Returns:
        ``(B, k)`` scores of the candidates.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], or the past is empty or has the wrong shape.

    Cost: ``2 * B * k * T * D`` FLOPs, after a forward pass over ``B * k`` candidates.

    References:
        Su et al. (2022), arXiv:2202.06417, equation (5).

    Example:
        >>> h = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> contrastive_search_scores(torch.tensor([[0.6, 0.4]]), h, h[:, :1], alpha=0.5)  # the first repeats the past
        tensor([[-0.2000,  0.2000]])
    """
    _check_range("alpha", alpha, 0, 1, "[0, 1]")
    check_equal(
        "shape of candidates", tuple(candidates.shape[:2]), "shape of probabilities", tuple(probabilities.shape)
    )
    check_at_least("length of past", past.shape[1], 1, hint="give the hidden states of the prompt")
    cosine = F.normalize(candidates, dim=-1) @ F.normalize(past, dim=-1).mT  # (B, k, T)
    if mask is not None:
        cosine = cosine.masked_fill(~mask[:, None], -math.inf)
    return (1 - alpha) * probabilities - alpha * cosine.amax(dim=-1)


def dola_layer(logits: Tensor, early: Tensor) -> Tensor:
    r"""Choose for each row the early layer whose prediction differs most from that of the last layer.

    The distance is the Jensen–Shannon divergence :math:`\tfrac12 \operatorname{KL}(p \Vert m) + \tfrac12
    \operatorname{KL}(q \Vert m)`, where :math:`m` is the average of :math:`p` and :math:`q`.

    Args:
        logits: ``(B, V)`` logits of the last layer.
        early: ``(B, J, V)`` logits of ``J`` earlier layers, through the same final norm and head.

    Returns:
        ``(B,)`` index of the chosen layer among the ``J``.

    Raises:
        ValueError: if the shapes do not fit.

    Cost: ``J + 1`` softmaxes of each row.

    References:
        Chuang et al. (2024), arXiv:2309.03883, section 2.2.

    Example:
        >>> p = torch.tensor([[0.9, 0.1]]).log()
        >>> dola_layer(p, torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]).log())
        tensor([1])
    """
    check_ndim("early", early.shape, ("B", "J", "V"))
    check_equal("shape of early without J", (early.shape[0], early.shape[2]), "shape of logits", tuple(logits.shape))
    p, q = _softmax(logits)[:, None], _softmax(early)
    middle = (p + q) / 2
    divergence: Tensor = torch.special.entr(middle) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return divergence.sum(dim=-1).argmax(dim=-1)


def dola_scores(logits: Tensor, early: Tensor, *, alpha: float = 0.1) -> Tensor:
    r"""Decoding by contrasting layers: the amateur is an early layer of the same model.

    .. math:: \ln p_N(x) - \ln p_M(x) \quad \text{where } p_N(x) \ge \alpha \max_w p_N(w), \qquad
        M = \arg\max_j \operatorname{JSD}(p_N \Vert p_j)

    Args:
        logits: ``(B, V)`` logits of the last layer.
        early: ``(B, J, V)`` logits of ``J`` earlier layers, through the same final norm and head.
        alpha: how plausible a token must be for the last layer, in (0, 1].

    Returns:
        ``(B, V)`` scores, :math:`-\infty` where a token is implausible.

    Raises:
        ValueError: if ``alpha`` is outside (0, 1], or the shapes do not fit.

    Cost: ``J + 2`` softmaxes of each row, and ``J`` more products with the output matrix.

    References:
        Chuang et al. (2024), arXiv:2309.03883, section 2.

    Example:
        >>> p = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> dola_scores(p, torch.tensor([[[0.6, 0.1, 0.3]]]).log(), alpha=0.5)
        tensor([[0.0000, 1.0986,   -inf]])
    """
    premature = early[torch.arange(early.shape[0], device=early.device), dola_layer(logits, early)]
    return contrastive_difference(logits, premature, alpha=alpha)


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1, dtype=_dtype(logits))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=_dtype(logits))


def _entropy(logp: Tensor) -> Tensor:
    """Return the entropy in nats, where a forbidden token counts nothing."""
    return -(logp * logp.exp()).where(logp != -math.inf, 0).sum(dim=-1, keepdim=True)


def _keep_probable(logits: Tensor, probabilities: Tensor, threshold: Tensor | float) -> Tensor:
    drop = (probabilities < threshold) & (logits < logits.amax(dim=-1, keepdim=True))
    return logits.masked_fill(drop, -math.inf)


def _above_floor(plausible: Tensor, scores: Tensor) -> Tensor:
    return scores.masked_fill(plausible == -math.inf, -math.inf).to(plausible.dtype)


def _check_range(name: str, value: float, low: float, high: float, interval: str, *, hint: str = "") -> None:
    """Check that a number lies in an interval, whose brackets say whether its ends belong to it."""
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):  # also where value is NaN
        raise ValueError(f"{name} is {value}, expected a number in {interval}" + (f": {hint}" if hint else ""))


def _check_ids(logits: Tensor, ids: Tensor) -> None:
    check_ndim("logits", logits.shape, ("B", "V"))
    check_ndim("ids", ids.shape, ("B", "T"))
    check_equal("batch size of ids", ids.shape[0], "batch size of logits", logits.shape[0])
    if ids.numel() and not 0 <= ids.min() <= ids.max() < logits.shape[1]:
        raise ValueError(f"ids are from {ids.min()} to {ids.max()}, expected 0 to {logits.shape[1] - 1}")


def _check_same(first: Tensor, second: Tensor, name: str) -> None:
    check_equal(f"shape of {name}", tuple(second.shape), "shape of the other logits", tuple(first.shape))


def _check_drawable(logits: Tensor) -> None:
    largest = logits.amax(dim=-1)  # NaN if the row holds one
    if not largest.isfinite().all():
        row = int(largest.reshape(-1).isfinite().logical_not().nonzero()[0])
        what = largest.reshape(-1)[row].item()
        raise ValueError(f"row {row} of the logits has the maximum {what}: it holds NaN or inf, or forbids every token")
