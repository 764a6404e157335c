"""Learning-rate schedules: pure functions of the step whose value multiplies the learning rate.

Steps count from 0, as PyTorch's :class:`~torch.optim.lr_scheduler.LambdaLR` counts them, and a schedule is made with
``functools.partial``: ``LambdaLR(optimizer, partial(cosine, total=1000, warmup=100))``. During a warmup of ``warmup``
steps every factor rises in a straight line from 0, so that the update of step 0 changes nothing; step ``total`` is the
first one after training, where the factor has reached ``floor`` and stays. A schedule has no state: to resume a run,
ask it for the step.

A decay has a shape, a function from progress in [0, 1] to what is left, from 1 down to 0:
:func:`linear_decay`, :func:`cosine_decay`, :func:`sqrt_decay`.
"""

import math
from collections.abc import Callable

from llm_study.core.checks import check_at_least

__all__ = [
    "constant",
    "linear",
    "polynomial",
    "cosine",
    "cosine_restarts",
    "warm_restarts",
    "inverse_sqrt",
    "noam",
    "wsd",
    "slanted_triangular",
    "linear_decay",
    "cosine_decay",
    "sqrt_decay",
]


def linear_decay(progress: float) -> float:
    r"""A straight line down, :math:`1 - p`.

    Args:
        progress: share of the decay that is behind, from 0 to 1.

    Returns:
        What is left, from 1 to 0.

    Example:
        >>> linear_decay(0.25)
        0.75
    """
    return 1.0 - progress


def cosine_decay(progress: float) -> float:
    r"""Half a wave of the cosine, :math:`\tfrac12 (1 + \cos \pi p)`: flat at both ends.

    Args:
        progress: share of the decay that is behind, from 0 to 1.

    Returns:
        What is left, from 1 to 0.

    Example:
        >>> round(cosine_decay(0.25), 4)
        0.8536
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def sqrt_decay(progress: float) -> float:
    r"""One minus the root, :math:`1 - \sqrt p`: steep first, then ever flatter.

    Args:
        progress: share of the decay that is behind, from 0 to 1.

    Returns:
        What is left, from 1 to 0.

    Example:
        >>> sqrt_decay(0.25)
        0.5
    """
    return 1.0 - math.sqrt(progress)


def constant(step: int, *, warmup: int = 0) -> float:
    r"""Warm up, then stay: :math:`\min(t / T_w, 1)`.

    Args:
        step: the step, from 0.
        warmup: steps of warmup.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative.

    References:
        Warmup for large batches: Goyal et al. (2017), arXiv:1706.02677, section 2.2.

    Example:
        >>> [constant(step, warmup=4) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _check(step, warmup)
    return step / warmup if step < warmup else 1.0


def linear(step: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    r"""Warm up, then go down in a straight line that ends at step ``total``.

    .. math:: f + (1 - f)\,\frac{T - t}{T - T_w} \qquad (T_w \le t \le T)

    Args:
        step: the step, from 0.
        total: steps of the whole training, warmup included.
        warmup: steps of warmup.
        floor: factor at the end and after it. 0 is "linear to zero", D2Z.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative, ``warmup`` is above ``total``, or ``floor`` is not in [0, 1].

    References:
        Bergsma et al. (2025), arXiv:2502.15938.

    Example:
        >>> [linear(step, total=6, warmup=2) for step in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    _check(step, warmup, total=total, floor=floor)
    if step < warmup:
        return step / warmup
    return floor if step >= total else _above(floor, (total - step) / (total - warmup))


def polynomial(step: int, *, total: int, power: float, warmup: int = 0, floor: float = 0.0) -> float:
    r"""Warm up, then go down as a power of what is left of the training.

    .. math:: f + (1 - f) \left(1 - \frac{t - T_w}{T - T_w}\right)^{k} \qquad (T_w \le t \le T)

    Args:
        step: the step, from 0.
        total: steps of the whole training, warmup included.
        power: the exponent ``k``, positive; 1 is a straight line.
        warmup: steps of warmup.
        floor: factor at the end and after it.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative, ``warmup`` is above ``total``, ``floor`` is not in [0, 1], or
            ``power`` is not positive.

    References:
        With power 1 it is the decay of BERT: Devlin et al. (2019), arXiv:1810.04805, appendix A.2.

    Example:
        >>> [polynomial(step, total=4, power=2.0) for step in range(5)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    _check(step, warmup, total=total, floor=floor)
    if not power > 0:
        raise ValueError(f"power is {power}, expected more than 0: 1 is a straight line")
    if step < warmup:
        return step / warmup
    return floor if step >= total else _above(floor, (1 - (step - warmup) / (total - warmup)) ** power)


def cosine(step: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    r"""Warm up, then go down along half a wave of the cosine that ends at step ``total``.

    .. math:: f + (1 - f)\,\tfrac12 \left(1 + \cos \pi \frac{t - T_w}{T - T_w}\right) \qquad (T_w \le t \le T)

    Args:
        step: the step, from 0.
        total: steps of the whole training, warmup included.
        warmup: steps of warmup.
        floor: factor at the end and after it.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative, ``warmup`` is above ``total``, or ``floor`` is not in [0, 1].

    References:
        Loshchilov and Hutter (2017), arXiv:1608.03983, equation (5), without restarts.

    Example:
        >>> [round(cosine(step, total=6, warmup=2, floor=0.1), 4) for step in range(8)]
        [0.0, 0.5, 1.0, 0.8682, 0.55, 0.2318, 0.1, 0.1]
    """
    _check(step, warmup, total=total, floor=floor)
    if step < warmup:
        return step / warmup
    return floor if step >= total else _above(floor, cosine_decay((step - warmup) / (total - warmup)))


def cosine_restarts(step: int, *, total: int, cycles: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm up, then go down along half a wave of the cosine several times, jumping back to 1 in between.

    Args:
        step: the step, from 0.
        total: steps of the whole training, warmup included.
        cycles: how often it goes down; all cycles have the same length.
        warmup: steps of warmup.
        floor: factor at the end of each cycle and after the last.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative, ``warmup`` is above ``total``, ``floor`` is not in [0, 1], or
            ``cycles`` is below 1.

    References:
        Loshchilov and Hutter (2017), arXiv:1608.03983.

    Example:
        >>> [round(cosine_restarts(step, total=8, cycles=2), 4) for step in range(9)]
        [1.0, 0.8536, 0.5, 0.1464, 1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    _check(step, warmup, total=total, floor=floor)
    check_at_least("cycles", cycles, 1)
    if step < warmup:
        return step / warmup
    if step >= total:
        return floor
    return _above(floor, cosine_decay(cycles * ((step - warmup) / (total - warmup)) % 1.0))


def warm_restarts(step: int, *, period: int, growth: int = 1, floor: float = 0.0) -> float:
    r"""SGDR: the cosine goes down within a period and starts again; each period is ``growth`` times the one before.

    .. math:: f + (1 - f)\,\tfrac12 \left(1 + \cos \pi \frac{t_i}{T_i}\right), \qquad T_{i+1} = m\, T_i

    where :math:`t_i` counts the steps since the last restart.

    Args:
        step: the step, from 0.
        period: steps of the first period.
        growth: the factor ``m`` from one period to the next.
        floor: what the factor approaches at the end of a period.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` is negative, ``period`` or ``growth`` is below 1, or ``floor`` is not in [0, 1].

    References:
        Loshchilov and Hutter (2017), arXiv:1608.03983, equation (5).

    Example:
        >>> [round(warm_restarts(step, period=2, growth=2), 4) for step in range(7)]
        [1.0, 0.5, 1.0, 0.8536, 0.5, 0.1464, 1.0]
    """
    _check(step, 0, floor=floor)
    check_at_least("period", period, 1)
    check_at_least("growth", growth, 1)
    while step >= period:
        step, period = step - period, period * growth
    return _above(floor, cosine_decay(step / period))


def inverse_sqrt(step: int, *, warmup: int, timescale: int | None = None) -> float:
    r"""Warm up, then fall as one over the root of the step; no total is needed.

    .. math:: \sqrt{\frac{\tau}{t - T_w + \tau}} \qquad (t \ge T_w)

    Args:
        step: the step, from 0.
        warmup: steps of warmup.
        timescale: ``τ``, how many steps after the warmup the factor takes to reach :math:`1/\sqrt 2`. Default:
            ``warmup``, which gives :math:`\sqrt{T_w / t}`.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step`` or ``warmup`` is negative, or the time scale is below 1, also because there is no
            warmup to take it from.

    References:
        The shape is that of Vaswani et al. (2017), arXiv:1706.03762, equation (3), with its peak at 1.

    Example:
        >>> [inverse_sqrt(step, warmup=4) for step in (0, 2, 4, 16, 64)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    _check(step, warmup)
    timescale = warmup if timescale is None else timescale
    check_at_least("timescale", timescale, 1, hint=f"warmup is {warmup}; without a warmup give a timescale")
    if step < warmup:
        return step / warmup
    return 1.0 / math.sqrt((step - warmup + timescale) / timescale)


def noam(step: int, *, d_model: int, warmup: int) -> float:
    r"""The schedule of the first Transformer, to be used with a learning rate of 1.

    .. math:: D^{-1/2} \min\!\left(t^{-1/2},\; t\, T_w^{-3/2}\right)

    Args:
        step: the step; 0 at step 0, where the paper begins with 1.
        d_model: width of the model.
        warmup: steps of warmup.

    Returns:
        The learning rate.

    Raises:
        ValueError: if ``step`` is negative, or ``d_model`` or ``warmup`` is below 1.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, equation (3).

    Example:
        >>> [noam(step, d_model=4, warmup=4) for step in (0, 2, 4, 16)]
        [0.0, 0.125, 0.25, 0.125]
    """
    _check(step, warmup)
    check_at_least("warmup", warmup, 1)
    check_at_least("d_model", d_model, 1)
    return inverse_sqrt(step, warmup=warmup) / math.sqrt(d_model * warmup)


def wsd(
    step: int,
    *,
    total: int,
    warmup: int,
    decay: int,
    floor: float = 0.0,
    shape: Callable[[float], float] = linear_decay,
) -> float:
    r"""Warmup, stable, decay: up, then 1 for as long as one likes, then down during the last ``decay`` steps.

    .. math:: f + (1 - f)\, s\!\left(\frac{t - (T - T_d)}{T_d}\right) \qquad (T - T_d \le t \le T)

    Until the decay begins the factor does not depend on ``total``: a run may be continued from its last stable
    checkpoint with a larger one.

    Args:
        step: the step, from 0.
        total: steps of the whole training.
        warmup: steps of warmup, at the beginning.
        decay: steps of decay, at the end.
        floor: factor at the end and after it.
        shape: form of the decay, from progress in [0, 1] to what is left.

    Returns:
        The factor on the learning rate.

    Raises:
        ValueError: if ``step``, ``warmup`` or ``decay`` is negative, ``warmup`` and ``decay`` together are above
            ``total``, or ``floor`` is not in [0, 1].

    References:
        Hu et al. (2024), arXiv:2404.06395, section 4; the shapes are compared by Hägele et al. (2024),
        arXiv:2405.18392.

    Example:
        >>> [wsd(step, total=8, warmup=2, decay=4) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check(step, warmup, total=total, floor=floor)
    check_at_least("decay", decay, 0)
    if warmup + decay > total:
        raise ValueError(f"warmup + decay is {warmup} + {decay} = {warmup + decay}, expected at most total = {total}")
    if step < warmup:
        return step / warmup
    if step >= total:
        return floor
    begin = total - decay
    return 1.0 if step < begin else _above(floor, shape((step - begin) / decay))


def slanted_triangular(step: int, *, total: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    r"""ULMFiT's schedule: a short straight rise, then a long straight fall, both to and from ``1 / ratio``.

    .. math:: \frac{1 + p\,(R - 1)}{R}, \qquad
        p = \begin{cases} t / T_c & t < T_c \\ 1 - (t - T_c) / (T - T_c) & \text{else} \end{cases}, \qquad
        T_c = \lfloor c\,T \rfloor

    The paper divides by :math:`T_c (1/c - 1)`, which is :math:`T - T_c` where :math:`c\,T` is a whole number; where it
    is none that is too short, and the last factors would fall below :math:`1/R`, even below 0.

    Args:
        step: the step, from 0.
        total: steps ``T`` of the whole training, at least 1.
        cut: share ``c`` of the steps in which the factor rises, from 0 to 1.
        ratio: how many times the peak is above the lowest factor, at least 1.

    Returns:
        The factor on the learning rate, from ``1 / ratio`` to 1; after the last step it stays at ``1 / ratio``.

    Raises:
        ValueError: if ``step`` is negative, ``total`` or ``ratio`` is below 1, or ``cut`` is not in [0, 1].

    References:
        Howard and Ruder (2018), arXiv:1801.06146, section 3.2, with the same defaults.

    Example:
        >>> [slanted_triangular(step, total=8, cut=0.25, ratio=4) for step in range(10)]
        [0.25, 0.625, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.25]
    """
    _check(step, 0, total=total)
    check_at_least("total", total, 1)
    if not 0 <= cut <= 1:
        raise ValueError(f"cut is {cut}, expected a share from 0 to 1 of the steps")
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio}, expected at least 1: the peak over the lowest factor")
    peak = math.floor(total * cut)
    if step < peak:
        return _above(1.0 / ratio, step / peak)
    return 1.0 / ratio if step >= total else _above(1.0 / ratio, 1.0 - (step - peak) / (total - peak))


def _above(floor: float, left: float) -> float:
    """Return ``left``, a number from 0 to 1, moved into the range from the floor to 1."""
    return left * (1.0 - floor) + floor


def _check(step: int, warmup: int, *, total: int | None = None, floor: float = 0.0) -> None:
    """Check what all schedules share."""
    check_at_least("step", step, 0, hint="steps count from 0")
    check_at_least("warmup", warmup, 0)
    if total is not None and warmup > total:
        raise ValueError(f"warmup is {warmup}, expected at most total = {total}: total counts the warmup too")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}, expected a factor from 0 to 1: divide the last learning rate by the first")
