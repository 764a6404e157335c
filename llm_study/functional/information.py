r"""Entropy, cross-entropy, divergence and perplexity: how much a probability distribution leaves open.

Everything is measured in nats, the unit of the natural logarithm, as losses are; :func:`nats_to_bits` and
:func:`bits_per_byte` convert. What has probability 0 adds nothing: :math:`0 \ln 0 = 0`, the limit of
:math:`x \ln x`. Where a distribution gives 0 to something that happens, cross-entropy and divergence are infinite.
"""

import math

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal

__all__ = [
    "entropy",
    "cross_entropy",
    "kl_divergence",
    "joint_entropy",
    "conditional_entropy",
    "mutual_information",
    "perplexity",
    "nats_to_bits",
    "bits_per_byte",
]


def entropy(p: Tensor) -> Tensor:
    r"""Entropy of a distribution, in nats: the least that a code for it can cost on average.

    .. math:: H(p) = -\sum_i p_i \ln p_i

    Args:
        p: ``(…, V)`` probabilities; each row sums to 1.

    Returns:
        ``(…)`` entropies, between 0 (one outcome is certain) and ``ln V`` (all are equally likely), in the dtype of
        ``p``.

    Raises:
        ValueError: if a probability is negative or not a number, or a row does not sum to 1.

    References:
        Shannon (1948), A Mathematical Theory of Communication, section 6.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).abs()
        tensor([0.6931, 0.0000])
    """
    _check_distribution("p", p)
    wide = _widen(p)
    return -torch.xlogy(wide, wide).sum(dim=-1).to(p.dtype)


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    r"""Cross-entropy: what a code made for ``q`` costs on average when ``p`` is the truth, in nats.

    .. math:: H(p, q) = -\sum_i p_i \ln q_i = H(p) + D(p \,\|\, q)

    Args:
        p: ``(…, V)`` the true probabilities; each row sums to 1.
        q: ``(…, V)`` the probabilities of the model, in the shape of ``p``; each row sums to 1.

    Returns:
        ``(…)`` cross-entropies, in the dtype of ``p``; infinite where the model excludes what may happen.

    Raises:
        ValueError: if shapes differ, a probability is negative or not a number, or a row does not sum to 1.

    References:
        Shannon (1948), A Mathematical Theory of Communication, section 6; Cover and Thomas, Elements of Information
        Theory, chapter 5, for the cost of the wrong code.

    Example:
        >>> cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])).item()  # (ln 4 + ln 4/3) / 2
        0.836988...
    """
    _check_pair(p, q)
    return -torch.xlogy(_widen(p), _widen(q)).sum(dim=-1).to(p.dtype)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback–Leibler divergence: what is paid in excess of the entropy for believing ``q``, in nats.

    .. math:: D(p \,\|\, q) = \sum_i p_i \ln \frac{p_i}{q_i} \ge 0

    Args:
        p: ``(…, V)`` the true probabilities; each row sums to 1.
        q: ``(…, V)`` the probabilities of the model, in the shape of ``p``; each row sums to 1.

    Returns:
        ``(…)`` divergences, in the dtype of ``p``: 0 exactly where the two are equal, infinite where the model excludes
        what may happen.

    Raises:
        ValueError: if shapes differ, a probability is negative or not a number, or a row does not sum to 1.

    References:
        Kullback and Leibler (1951), On Information and Sufficiency.

    Example:
        >>> p = torch.tensor([0.5, 0.5])
        >>> kl_divergence(p, torch.tensor([0.25, 0.75])).item()  # (ln 2 + ln 2/3) / 2
        0.143841...
    """
    _check_pair(p, q)
    wide, model = _widen(p), _widen(q)
    terms = torch.xlogy(wide, wide) - torch.xlogy(wide, model)  # term by term: equal rows give exactly 0
    return terms.sum(dim=-1).to(p.dtype)


def joint_entropy(joint: Tensor) -> Tensor:
    r"""Entropy of a pair, in nats.

    .. math:: H(X, Y) = -\sum_{x,y} p(x, y) \ln p(x, y) = H(X) + H(Y \mid X)

    Args:
        joint: ``(…, M, N)`` probabilities of the pairs; each matrix sums to 1.

    Returns:
        ``(…)`` entropies, in the dtype of ``joint``.

    Raises:
        ValueError: if a probability is negative or not a number, or a matrix does not sum to 1.

    References:
        Shannon (1948), A Mathematical Theory of Communication, section 6.

    Example:
        >>> joint_entropy(torch.full((2, 2), 0.25)).item()  # ln 4
        1.386294...
    """
    return entropy(joint.flatten(-2))


def conditional_entropy(joint: Tensor) -> Tensor:
    r"""What is still open about the column when the row is known, in nats.

    .. math:: H(Y \mid X) = H(X, Y) - H(X)

    Args:
        joint: ``(…, M, N)`` probabilities of the pairs; each matrix sums to 1.

    Returns:
        ``(…)`` conditional entropies, in the dtype of ``joint``.

    Raises:
        ValueError: if a probability is negative or not a number, or a matrix does not sum to 1.

    References:
        Shannon (1948), A Mathematical Theory of Communication, section 6.

    Example:
        >>> conditional_entropy(torch.tensor([[0.5, 0.0], [0.0, 0.5]])).item()  # the row says it all
        0.0
    """
    _check_distribution("joint", joint.flatten(-2))
    wide = _widen(joint)
    return (entropy(wide.flatten(-2)) - entropy(wide.sum(dim=-1))).to(joint.dtype)


def mutual_information(joint: Tensor) -> Tensor:
    r"""What row and column say about each other, in nats.

    .. math:: I(X; Y) = D\bigl(p(x, y) \,\|\, p(x)\,p(y)\bigr) = H(Y) - H(Y \mid X)

    Args:
        joint: ``(…, M, N)`` probabilities of the pairs; each matrix sums to 1.

    Returns:
        ``(…)`` mutual information, in the dtype of ``joint``; 0 where the two are independent.

    Raises:
        ValueError: if a probability is negative or not a number, or a matrix does not sum to 1.

    References:
        Shannon (1948), A Mathematical Theory of Communication, section 12, where it is the rate of transmission.

    Example:
        >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]])).item()  # one bit: ln 2
        0.693147...
    """
    _check_distribution("joint", joint.flatten(-2))
    wide = _widen(joint)
    product = wide.sum(dim=-1, keepdim=True) * wide.sum(dim=-2, keepdim=True)  # (…, M, N)
    terms = torch.xlogy(wide, wide) - torch.xlogy(wide, product)
    return terms.flatten(-2).sum(dim=-1).to(joint.dtype)


def perplexity(logp: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Perplexity of a text: the number of equally likely choices that would have been as hard to guess.

    .. math:: \operatorname{PPL} = \exp\Bigl(-\frac1T \sum_{t=1}^{T} \ln p(x_t \mid x_{<t})\Bigr)

    Args:
        logp: ``(…, T)`` log-probability of each token, in nats; at most 0.
        mask: ``(…, T)``, True where a token counts, in the shape of ``logp``. Default: all of them.

    Returns:
        ``()`` the perplexity over all tokens that count: they are averaged first, the exponential comes last.

    Raises:
        ValueError: if shapes differ, a log-probability is above 0 or not a number, or no token counts.

    References:
        Jelinek et al. (1977), Perplexity—a measure of the difficulty of speech recognition tasks.

    Example:
        >>> perplexity(torch.tensor([0.5, 0.125]).log()).item()  # 1 / sqrt(1/16)
        4.0
    """
    if mask is not None:
        check_equal("shape of mask", tuple(mask.shape), "shape of logp", tuple(logp.shape))
        logp = logp[mask]
    check_at_least("number of tokens that count", logp.numel(), 1, hint="the perplexity of nothing is not defined")
    wide = _widen(logp)
    largest = wide.max().item()
    if not largest <= 0:  # also where it is not a number
        raise ValueError(f"the largest log-probability is {largest}, expected at most 0: pass log-probabilities")
    return (-wide.mean()).exp().to(logp.dtype)


def nats_to_bits(nats: float) -> float:
    r"""Convert nats to bits: divide by :math:`\ln 2`.

    Args:
        nats: an amount of information in nats, such as a loss.

    Returns:
        The same amount in bits.

    References:
        Shannon (1948), A Mathematical Theory of Communication, introduction: the base of the logarithm is the unit.

    Example:
        >>> nats_to_bits(math.log(8))  # doctest: +ELLIPSIS
        3.0...
    """
    return nats / math.log(2)


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    r"""Convert the average loss per token to bits per byte, which models with different tokenizers share.

    .. math:: \frac{n_{\text{tokens}}}{n_{\text{bytes}}} \cdot \frac{\ell}{\ln 2}

    Args:
        loss: average loss per token, in nats; at least 0.
        n_tokens: number of tokens that the text was cut into, at least 1.
        n_bytes: number of bytes of the text in UTF-8, at least 1.

    Returns:
        Bits for each byte of text. Plain storage costs 8.

    Raises:
        ValueError: if the loss is negative or not a number, or there are no tokens or no bytes.

    References:
        Gao et al. (2020), arXiv:2101.00027, section 3.1.

    Example:
        >>> bits_per_byte(math.log(256), 1000, 1000)  # every byte equally likely
        8.0
    """
    check_at_least("n_tokens", n_tokens, 1)
    check_at_least("n_bytes", n_bytes, 1)
    if not loss >= 0:
        raise ValueError(f"loss is {loss}, expected at least 0: pass the average of -ln p in nats")
    return nats_to_bits(loss) * n_tokens / n_bytes


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _check_pair(p: Tensor, q: Tensor) -> None:
    check_equal("shape of p", tuple(p.shape), "shape of q", tuple(q.shape))
    _check_distribution("p", p)
    _check_distribution("q", q)


def _check_distribution(name: str, p: Tensor) -> None:
    """Check that rows are distributions, to within the square root of the precision of their dtype."""
    if p.ndim == 0 or p.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(p.shape)}, expected at least one outcome in its last dimension")
    wide, tolerance = _widen(p), torch.finfo(p.dtype).eps ** 0.5
    if p.numel() == 0:
        return
    least = wide.min().item()
    if not least >= 0:  # also where it is not a number
        raise ValueError(f"the smallest entry of {name} is {least}, expected probabilities of at least 0")
    off = (wide.sum(dim=-1) - 1).flatten()
    worst = 1 + off[off.abs().argmax()].item()
    if not abs(worst - 1) <= tolerance:
        raise ValueError(f"a row of {name} sums to {worst:.6g}, expected 1: pass probabilities, not logits or counts")
