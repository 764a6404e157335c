"""What keeps a training run on its way: clipping, averages of the weights, a guard against spikes, the noise scale.

The functions that clip change gradients in place, between ``loss.backward()`` and ``optimizer.step()``. Parameters
without a gradient are passed over.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal

__all__ = [
    "clip_grad_norm",
    "clip_grad_value",
    "adaptive_clip",
    "EMA",
    "debiased_decay",
    "half_life",
    "SpikeGuard",
    "NoiseScale",
    "gradient_noise_scale",
]


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    r"""Shorten the gradient, all parameters taken as one vector, to a length of at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min\!\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

    The norm is computed in float32 for gradients of half precision, whose squares would overflow. Where it is not
    finite the gradients are left as they are: look at the norm, and do not step (:class:`SpikeGuard` does that).

    Args:
        parameters: ``(…)`` any shapes; their ``grad`` is changed in place.
        max_norm: ``c``, the longest gradient allowed.

    Returns:
        ``()``, the norm before clipping.

    Raises:
        ValueError: if ``max_norm`` is not positive.

    Cost: two passes over the gradients, and no wait for the device.

    References:
        Pascanu et al. (2013), arXiv:1211.5063, algorithm 1.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm([w], 1.0), w.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    _check_positive("max_norm", max_norm)
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    groups = _by_kind(grads)
    norms = [norm for group in groups for norm in torch._foreach_norm(group, 2, dtype=_wide(group[0].dtype))]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    factor = torch.where(norm.isfinite(), factor, 1.0)  # no branch: reading the norm would wait for the device
    for group in groups:
        torch._foreach_mul_(group, factor.to(group[0].device))
    return norm


def clip_grad_value(parameters: Iterable[Tensor], max_value: float) -> None:
    r"""Clip every number of the gradients to the range from ``-max_value`` to ``max_value``.

    Unlike :func:`clip_grad_norm` this turns the gradient. An infinite number becomes ``max_value``, a NaN stays.

    Args:
        parameters: ``(…)`` any shapes; their ``grad`` is changed in place.
        max_value: the largest number allowed.

    Raises:
        ValueError: if ``max_value`` is not positive.

    References:
        Pascanu et al. (2013), arXiv:1211.5063, section 3.1, mention it as what Mikolov used.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([0.5, -4.0])
        >>> clip_grad_value([w], 1.0)
        >>> w.grad
        tensor([ 0.5000, -1.0000])
    """
    _check_positive("max_value", max_value)
    for p in parameters:
        if p.grad is not None:
            p.grad.clamp_(min=-max_value, max=max_value)


def adaptive_clip(parameters: Iterable[Tensor], ratio: float = 0.01, *, eps: float = 1e-3) -> None:
    r"""Clip the gradient of each output unit in proportion to the size of its weights (AGC).

    .. math::

        g_i \leftarrow g_i \cdot \min\!\left(1, \lambda\, \frac{\max(\lVert w_i \rVert, \varepsilon)}{\lVert g_i
        \rVert}\right)

    where ``i`` is a row of a matrix; a vector, such as a bias, is one unit.

    Args:
        parameters: ``(…)`` any shapes, rows first; their ``grad`` is changed in place.
        ratio: ``λ``, the largest ratio of the two norms.
        eps: least norm that weights are taken to have, so that weights that start at 0 may move.

    Raises:
        ValueError: if ``ratio`` or ``eps`` is not positive.

    References:
        Brock et al. (2021), arXiv:2102.06171, section 4.

    Example:
        >>> w = torch.tensor([[3.0, 4.0], [3.0, 4.0]], requires_grad=True)
        >>> w.grad = torch.tensor([[10.0, 0.0], [0.5, 0.0]])
        >>> adaptive_clip([w], 0.2)  # rows of length 5 may have a gradient of length 1
        >>> w.grad
        tensor([[1.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    _check_positive("ratio", ratio)
    _check_positive("eps", eps)
    for p in parameters:
        if p.grad is not None:
            longest = ratio * _unit_norms(p.detach()).clamp_min(eps)
            length = _unit_norms(p.grad)
            p.grad.mul_(torch.where(length > longest, longest / length, 1.0))


class EMA:
    r"""An exponential moving average of the weights of a model, kept beside it.

    .. math:: \bar w_n = \beta\, \bar w_{n-1} + (1 - \beta)\, w_n, \qquad \bar w_0 = w_0

    Call :meth:`update` after each step of the optimizer, and evaluate inside :meth:`applied`. Averages of weights in
    half precision are kept in float32, where small changes are not rounded away. Buffers are not averaged.

    Args:
        model: the model; its parameters are read, and changed only inside :meth:`applied`.
        decay: ``β``, or a function from the number of the update, from 1, to it: ``partial(debiased_decay,
            decay=0.999)`` forgets the start, ``lambda n: 1 - 1 / n`` is the plain average of all updates.

    Raises:
        ValueError: if ``decay`` is a number outside [0, 1].

    References:
        Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4), for the plain average.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> ema = EMA(model, 0.75)
        >>> _ = nn.init.ones_(model.weight)
        >>> ema.update()
        >>> with ema.applied():
        ...     model.weight.item()
        0.25
        >>> model.weight.item()
        1.0
    """

    def __init__(self, model: nn.Module, decay: float | Callable[[int], float]) -> None:
        if not callable(decay) and not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}, expected a number from 0 to 1")
        self.model, self.decay, self.updates = model, decay, 0
        self.average = {name: p.detach().to(_wide(p.dtype), copy=True) for name, p in self._parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights that the model has now into the average."""
        self.updates += 1
        decay = self.decay(self.updates) if callable(self.decay) else self.decay
        for name, p in self._parameters():
            self.average[name].lerp_(p.to(self.average[name].dtype), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Give the model the averaged weights, and its own again at the end, also after an error.

        Yields:
            The model.
        """
        own = {name: p.detach().clone() for name, p in self._parameters()}
        try:
            self._fill(self.average)
            yield self.model
        finally:
            self._fill(own)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.is_floating_point())

    @torch.no_grad()
    def _fill(self, weights: dict[str, Tensor]) -> None:
        for name, p in self._parameters():
            p.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs.

        Returns:
            The averages by the name of their parameter, and the number of updates.
        """
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ValueError: if it belongs to a model with other names or shapes.
        """
        for what, mine, theirs in (
            ("names", sorted(self.average), sorted(state["average"])),
            ("shapes", _shapes(self.average), _shapes(state["average"])),
        ):
            check_equal(f"{what} of the averages", theirs, f"{what} of the parameters", mine)
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.updates = state["updates"]


def debiased_decay(n: int, *, decay: float) -> float:
    r"""The decay with which an average forgets its start, as Adam's correction of the bias does.

    .. math:: \beta_n = \frac{\beta - \beta^n}{1 - \beta^n}

    Args:
        n: number of the update, from 1; its decay is 0.
        decay: ``β``, which it grows to.

    Returns:
        The decay of update ``n``.

    Raises:
        ValueError: if ``n`` is below 1, or ``decay`` is not in [0, 1).

    References:
        Kingma and Ba (2015), arXiv:1412.6980, section 3, divide the average by :math:`1 - \beta^n`; this is the same
        as a recursion.

    Example:
        >>> [round(debiased_decay(n, decay=0.5), 4) for n in (1, 2, 3, 10)]
        [0.0, 0.3333, 0.4286, 0.4995]
    """
    check_at_least("n", n, 1, hint="updates count from 1")
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}, expected at least 0 and less than 1")
    return (decay - decay**n) / (1 - decay**n)


def half_life(decay: float) -> float:
    r"""After how many updates a weight counts half: :math:`\ln \tfrac12 / \ln \beta`.

    Args:
        decay: ``β`` of the average.

    Returns:
        The number of updates.

    Raises:
        ValueError: if ``decay`` is not between 0 and 1.

    References:
        The solution of :math:`\beta^n = 1/2`.

    Example:
        >>> round(half_life(0.999), 1)
        692.8
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay is {decay}, expected more than 0 and less than 1")
    return math.log(0.5) / math.log(decay)


class SpikeGuard:
    r"""Says whether to take a step, from the loss and the norm of the gradient: neither may be out of line.

    A value is out of line if it is not finite, or exceeds the mean of the last accepted values by more than
    ``threshold`` of their standard deviations. Values of refused steps do not enter the mean. After ``patience``
    refusals in a row the guard takes finite values for a new level and begins anew.

    Args:
        window: how many accepted steps are remembered.
        threshold: how many standard deviations are allowed.
        patience: how many steps in a row may be refused.
        least: how many steps must have been accepted before any finite value is refused.

    Raises:
        ValueError: if ``window``, ``patience`` or ``least`` is too small, ``least`` is above ``window``, or
            ``threshold`` is not positive.

    References:
        Skipping steps by standard deviations of loss and norm is what OLMo-core's ``SkipStepOptimizer`` does.

    Example:
        >>> guard = SpikeGuard(window=8, least=4)
        >>> [guard.accept(loss) for loss in (2.0, 2.1, 1.9, 2.0, 50.0, float("nan"), 1.9)]
        [True, True, True, True, False, False, True]
        >>> guard.skipped
        2
    """

    def __init__(self, *, window: int = 128, threshold: float = 6.0, patience: int = 16, least: int = 32) -> None:
        check_at_least("patience", patience, 1)
        check_at_least("least", least, 2, hint="a standard deviation needs two values")
        check_at_least("window", window, least, hint=f"least is {least}: so many are needed before a step is refused")
        _check_positive("threshold", threshold)
        self.window, self.threshold, self.patience, self.least = window, threshold, patience, least
        self.history: list[deque[float]] = []
        self.skipped = self.in_a_row = 0

    def accept(self, *values: float | Tensor) -> bool:
        """Whether to take the step; accepted values are remembered.

        Args:
            values: ``()`` the loss, and if wanted the norm of the gradient; the same quantities in every call.

        Returns:
            False if any value is out of line.

        Raises:
            ValueError: if there are more or fewer values than in the calls before.
        """
        numbers = [float(value) for value in values]
        self.history = self.history or [deque(maxlen=self.window) for _ in numbers]
        check_equal("number of values", len(numbers), "number in the calls before", len(self.history))
        finite = all(math.isfinite(x) for x in numbers)
        if finite and self.in_a_row >= self.patience:
            for past in self.history:
                past.clear()
        if not finite or any(self._stands_out(x, past) for x, past in zip(numbers, self.history, strict=True)):
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return False
        self.in_a_row = 0
        for x, past in zip(numbers, self.history, strict=True):
            past.append(x)
        return True

    def _stands_out(self, x: float, past: deque[float]) -> bool:
        """Whether a value lies too far above the past ones."""
        return len(past) >= self.least and x > statistics.fmean(past) + self.threshold * statistics.stdev(past)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs.

        Returns:
            The remembered values and the two counts.
        """
        return {"history": [list(past) for past in self.history], "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: what :meth:`state_dict` returned.
        """
        self.history = [deque(past, maxlen=self.window) for past in state["history"]]
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


class NoiseScale(NamedTuple):
    r"""What a gradient is made of, estimated from its size at two batch sizes.

    Both numbers are unbiased, their ratio is not: average each over many steps before you divide.

    Args:
        signal: estimate of :math:`\lVert G \rVert^2`, the square of the true gradient; may come out negative.
        noise: estimate of :math:`\operatorname{tr} \Sigma`, the variance of the gradient of one example.

    Example:
        >>> NoiseScale(signal=2.0, noise=64.0).batch_size
        32.0
    """

    signal: float
    noise: float

    @property
    def batch_size(self) -> float:
        """The batch size at which noise and signal are equal, infinite where no signal is seen."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def gradient_noise_scale(small_square: float, large_square: float, *, small: int, large: int) -> NoiseScale:
    r"""Signal and noise of a gradient, from its squared norm at a small and at a large batch size.

    Since :math:`\mathbb{E} \lVert g_B \rVert^2 = \lVert G \rVert^2 + \operatorname{tr}\Sigma / B`, two batch sizes give
    two equations for two unknowns:

    .. math::

        \lVert G \rVert^2 \approx \frac{B\, \lVert g_B \rVert^2 - b\, \lVert g_b \rVert^2}{B - b}, \qquad
        \operatorname{tr}\Sigma \approx \frac{\lVert g_b \rVert^2 - \lVert g_B \rVert^2}{1/b - 1/B}

    With gradient accumulation or data parallelism both are at hand: the mean square over the parts, and the square of
    their mean.

    Args:
        small_square: :math:`\lVert g_b \rVert^2`, or its mean over several batches.
        large_square: :math:`\lVert g_B \rVert^2`, of a batch that may contain the small ones.
        small: ``b``, examples in the small batch.
        large: ``B``, examples in the large one.

    Returns:
        The two estimates.

    Raises:
        ValueError: if ``small`` is below 1, or ``large`` is not above ``small``.

    References:
        McCandlish et al. (2018), arXiv:1812.06162, appendix A.1.

    Example:
        >>> gradient_noise_scale(3.0, 1.5, small=8, large=32)
        NoiseScale(signal=1.0, noise=16.0)
    """
    check_at_least("small", small, 1)
    if large <= small:
        raise ValueError(f"large is {large}, expected more than small = {small}: two batch sizes give two equations")
    signal = (large * large_square - small * small_square) / (large - small)
    noise = (small_square - large_square) / (1 / small - 1 / large)
    return NoiseScale(signal, noise)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision, everything else as it is."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in lists of one device and dtype each, which one kernel can treat at once."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for x in tensors:
        groups.setdefault((x.device, x.dtype), []).append(x)
    return list(groups.values())


def _unit_norms(x: Tensor) -> Tensor:
    """Return the norm of each row, of a vector as a whole, in a shape that broadcasts to ``x``."""
    dim = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=_wide(x.dtype))
    return norms


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}, expected more than 0")
