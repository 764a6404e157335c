"""Activation functions, gates of the feed-forward network, and their gradients by hand.

An activation acts on each number alone, on tensors of any shape ``(…)``. A gate multiplies two tensors of one shape,
``gate`` and ``up``, the two projections of a gated feed-forward network: the nonlinearity acts on ``gate`` only. The
fast functions call PyTorch's kernels, which round once at the end; a twin whose name ends in ``_reference`` is the
formula. :func:`activation` finds a function by the name that config files of Hugging Face give it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal

__all__ = [
    "activation",
    "relu",
    "leaky_relu",
    "relu_squared",
    "relu_squared_backward",
    "gelu_reference",
    "gelu",
    "gelu_backward",
    "gelu_tanh_reference",
    "gelu_tanh",
    "gelu_tanh_backward",
    "quick_gelu",
    "silu",
    "swish",
    "swish_backward",
    "mish_reference",
    "mish",
    "mish_backward",
    "bilinear",
    "glu",
    "glu_backward",
    "reglu",
    "reglu_backward",
    "geglu",
    "geglu_backward",
    "swiglu",
    "swiglu_backward",
    "clamped_swiglu",
    "swiglu_recomputed",
    "swiglu_feed_forward",
    "swiglu_feed_forward_backward",
    "gated_width",
]

TANH_CUBIC = 0.044715
"""Factor of the cubic term in the tanh approximation of GELU, as published."""

QUICK_BETA = 1.702
"""Slope of the sigmoid that stands for the normal distribution function in quick GELU."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Find an activation function by the name that Hugging Face's config files give it.

    Several names stand for one function: ``gelu_new``, ``gelu_fast``, ``gelu_accurate``, ``gelu_python_tanh`` and
    ``gelu_pytorch_tanh`` are all :func:`gelu_tanh`, and ``swish`` is ``silu``.

    Args:
        name: the value of ``hidden_act``, ``activation_function`` or ``hidden_activation`` in ``config.json``.

    Returns:
        ``(…)`` to ``(…)``: a function of a tensor of any shape, whose result has the same shape and dtype.

    Raises:
        ValueError: if the name is unknown, or stands for an activation with parameters of its own (``prelu``,
            ``xielu``), which is a module and not a function.

    References:
        The names are the keys of ``ACT2FN`` in transformers 5.23.

    Example:
        >>> activation("relu2")(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
        >>> activation("swish") is silu
        True
    """
    if name not in _BY_NAME:
        known = ", ".join(sorted(_BY_NAME))
        raise ValueError(f"activation is {name!r}, expected one of the {len(_BY_NAME)} names {known}")
    return _BY_NAME[name]


def relu(x: Tensor) -> Tensor:
    r"""Rectified linear unit: keep what is positive.

    .. math:: \operatorname{ReLU}(x) = \max(0, x)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``. At 0 autograd takes the derivative to be 0.

    References:
        Nair and Hinton (2010), Rectified linear units improve restricted Boltzmann machines, ICML.

    Example:
        >>> relu(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0., 0., 3.])
    """
    return F.relu(x)


def leaky_relu(x: Tensor, *, slope: float = 0.01) -> Tensor:
    r"""ReLU that lets a little through on the negative side, so that no unit can die.

    .. math:: \max(0, x) + \alpha \min(0, x)

    Args:
        x: ``(…)`` any shape.
        slope: the factor :math:`\alpha` below zero.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        He et al. (2015), arXiv:1502.01852, where the slope is learned.

    Example:
        >>> leaky_relu(torch.tensor([-2.0, 3.0]), slope=0.5)
        tensor([-1.,  3.])
    """
    return F.leaky_relu(x, slope)


def relu_squared(x: Tensor) -> Tensor:
    r"""Square of ReLU, the activation that Primer found by search.

    .. math:: \operatorname{ReLU}^2(x) = \max(0, x)^2

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        So et al. (2021), arXiv:2109.08668.

    Example:
        >>> relu_squared(torch.tensor([-2.0, 0.5, 3.0]))
        tensor([0.0000, 0.2500, 9.0000])
    """
    return F.relu(x).square()


def relu_squared_backward(x: Tensor, grad_out: Tensor) -> Tensor:
    r"""Gradient of :func:`relu_squared`, derived by hand.

    .. math:: \bar x = 2 \max(0, x)\,\bar y

    Args:
        x: ``(…)`` the input of the forward pass.
        grad_out: ``(…)`` gradient of the loss with respect to the output.

    Returns:
        ``(…)`` gradient with respect to ``x``.

    Raises:
        ValueError: if the shapes differ.

    References:
        So et al. (2021), arXiv:2109.08668.

    Example:
        >>> relu_squared_backward(torch.tensor([-2.0, 3.0]), torch.ones(2))
        tensor([0., 6.])
    """
    _check_pair("x", x, "grad_out", grad_out)
    return 2 * F.relu(x) * grad_out


def gelu_reference(x: Tensor) -> Tensor:
    r"""Gaussian error linear unit, written as its equation; :func:`gelu` is the fast twin.

    .. math:: \operatorname{GELU}(x) = x\,\Phi(x), \qquad
        \Phi(x) = \tfrac12\bigl(1 + \operatorname{erf}(x/\sqrt2)\bigr)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2.

    Example:
        >>> gelu_reference(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1587,  0.0000,  0.8413])
    """
    return x * _normal_cdf(x)


def gelu(x: Tensor) -> Tensor:
    r"""Gaussian error linear unit: the input times the probability that a standard normal variable is below it.

    .. math:: \operatorname{GELU}(x) = x\,\Phi(x)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2.

    Example:
        >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1587,  0.0000,  0.8413])
    """
    return F.gelu(x)


def gelu_backward(x: Tensor, grad_out: Tensor) -> Tensor:
    r"""Gradient of :func:`gelu`, derived by hand.

    .. math:: \bar x = \bigl(\Phi(x) + x\,\varphi(x)\bigr)\,\bar y, \qquad \varphi(x) = e^{-x^2/2} / \sqrt{2\pi}

    Args:
        x: ``(…)`` the input of the forward pass.
        grad_out: ``(…)`` gradient of the loss with respect to the output.

    Returns:
        ``(…)`` gradient with respect to ``x``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415; the derivative follows from the product rule.

    Example:
        >>> gelu_backward(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3))
        tensor([-0.0833,  0.5000,  1.0833])
    """
    _check_pair("x", x, "grad_out", grad_out)
    return _gelu_slope(x) * grad_out


def gelu_tanh_reference(x: Tensor) -> Tensor:
    r"""GELU with tanh in the place of erf, written as its equation; :func:`gelu_tanh` is the fast twin.

    .. math:: \tfrac12\,x\,\Bigl(1 + \tanh\bigl[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\bigr]\Bigr)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2.

    Example:
        >>> gelu_tanh_reference(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1588,  0.0000,  0.8412])
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + TANH_CUBIC * x**3)))


def gelu_tanh(x: Tensor) -> Tensor:
    r"""GELU with tanh in the place of erf, as GPT-2 and Gemma use it.

    .. math:: \tfrac12\,x\,\Bigl(1 + \tanh\bigl[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\bigr]\Bigr)

    It is a different function from :func:`gelu`, if only by less than 0.0005: use the one that the model was trained
    with.

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    Cost: one pass of PyTorch's kernel. Where a gradient is wanted on a CPU, in float32 or float64, it is computed as
    :math:`x \, \sigma(2u)` instead, :math:`u` being the argument of tanh: that is faster in both directions, and keeps
    the gate :math:`\sigma(2u)` beside ``x``.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2.

    Example:
        >>> gelu_tanh(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1588,  0.0000,  0.8412])
    """
    trains = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if trains and x.is_cpu and x.dtype in (torch.float32, torch.float64):
        apply: Callable[[Tensor], tuple[Tensor, Tensor]] = _GatedGELU.apply
        return apply(x)[0]
    return F.gelu(x, approximate="tanh")


def gelu_tanh_backward(x: Tensor, grad_out: Tensor) -> Tensor:
    r"""Gradient of :func:`gelu_tanh`, derived by hand.

    With :math:`t = \tanh u` and :math:`u = \sqrt{2/\pi}\,(x + a x^3)`,

    .. math:: \bar x = \Bigl(\tfrac12 (1 + t) + \tfrac12\,x\,(1 - t^2)\,\sqrt{2/\pi}\,(1 + 3 a x^2)\Bigr)\,\bar y

    Args:
        x: ``(…)`` the input of the forward pass.
        grad_out: ``(…)`` gradient of the loss with respect to the output.

    Returns:
        ``(…)`` gradient with respect to ``x``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415; the derivative follows from product and chain rule.

    Example:
        >>> gelu_tanh_backward(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3))
        tensor([-0.0830,  0.5000,  1.0830])
    """
    _check_pair("x", x, "grad_out", grad_out)
    rate = math.sqrt(2 / math.pi)
    t = torch.tanh(rate * (x + TANH_CUBIC * x**3))
    return (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rate * (1 + 3 * TANH_CUBIC * x * x)) * grad_out


def quick_gelu(x: Tensor) -> Tensor:
    r"""GELU with a sigmoid in the place of the normal distribution function, as CLIP uses it.

    .. math:: x\,\sigma(1.702\,x)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2.

    Example:
        >>> quick_gelu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1542,  0.0000,  0.8458])
    """
    return swish(x, beta=QUICK_BETA)


def silu(x: Tensor) -> Tensor:
    r"""Sigmoid linear unit, also called Swish: :func:`swish` with ``beta=1``, by PyTorch's kernel.

    .. math:: \operatorname{SiLU}(x) = x\,\sigma(x)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Elfwing et al. (2017), arXiv:1702.03118.

    Example:
        >>> silu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.2689,  0.0000,  0.7311])
    """
    return F.silu(x)


def swish(x: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Swish: the input times a sigmoid of it, written as its equation; for ``beta=1`` :func:`silu` is the fast twin.

    .. math:: x\,\sigma(\beta x)

    Args:
        x: ``(…)`` any shape.
        beta: slope of the sigmoid; 0 gives :math:`x/2`, and ReLU is the limit of large values.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Ramachandran et al. (2017), arXiv:1710.05941.

    Example:
        >>> swish(torch.tensor([-1.0, 2.0]), beta=0.0)
        tensor([-0.5000,  1.0000])
    """
    return x * torch.sigmoid(beta * x)


def swish_backward(x: Tensor, grad_out: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Gradient of :func:`swish` (and of :func:`silu` for ``beta=1``, :func:`quick_gelu` for 1.702), by hand.

    .. math:: \bar x = \sigma\,\bigl(1 + \beta x\,(1 - \sigma)\bigr)\,\bar y, \qquad \sigma = \sigma(\beta x)

    Args:
        x: ``(…)`` the input of the forward pass.
        grad_out: ``(…)`` gradient of the loss with respect to the output.
        beta: slope of the sigmoid.

    Returns:
        ``(…)`` gradient with respect to ``x``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Elfwing et al. (2017), arXiv:1702.03118; Ramachandran et al. (2017), arXiv:1710.05941.

    Example:
        >>> swish_backward(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3))
        tensor([0.0723, 0.5000, 0.9277])
    """
    _check_pair("x", x, "grad_out", grad_out)
    gate = torch.sigmoid(beta * x)
    return gate * (1 + beta * x * (1 - gate)) * grad_out


def mish_reference(x: Tensor) -> Tensor:
    r"""Mish, written as its equation; :func:`mish` is the fast twin.

    .. math:: x \tanh\bigl(\ln(1 + e^x)\bigr)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Misra (2019), arXiv:1908.08681.

    Example:
        >>> mish_reference(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.3034,  0.0000,  0.8651])
    """
    return x * torch.tanh(F.softplus(x))


def mish(x: Tensor) -> Tensor:
    r"""Mish, a smooth activation near Swish.

    .. math:: x \tanh\bigl(\ln(1 + e^x)\bigr)

    Args:
        x: ``(…)`` any shape.

    Returns:
        ``(…)``, the shape and dtype of ``x``.

    References:
        Misra (2019), arXiv:1908.08681.

    Example:
        >>> mish(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.3034,  0.0000,  0.8651])
    """
    return F.mish(x)


def mish_backward(x: Tensor, grad_out: Tensor) -> Tensor:
    r"""Gradient of :func:`mish`, derived by hand.

    .. math:: \bar x = \bigl(t + x\,(1 - t^2)\,\sigma(x)\bigr)\,\bar y, \qquad t = \tanh\ln(1 + e^x)

    Args:
        x: ``(…)`` the input of the forward pass.
        grad_out: ``(…)`` gradient of the loss with respect to the output.

    Returns:
        ``(…)`` gradient with respect to ``x``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Misra (2019), arXiv:1908.08681; the derivative follows from product and chain rule.

    Example:
        >>> mish_backward(torch.tensor([0.0]), torch.ones(1))
        tensor([0.6000])
    """
    _check_pair("x", x, "grad_out", grad_out)
    t = torch.tanh(F.softplus(x))
    return (t + x * (1 - t * t) * torch.sigmoid(x)) * grad_out


def bilinear(gate: Tensor, up: Tensor) -> Tensor:
    r"""Gate without a nonlinearity: the product of the two projections.

    .. math:: g \circ u

    Args:
        gate: ``(…, F)`` the gate :math:`g`.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the product.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (4).

    Example:
        >>> bilinear(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 3.0]))
        tensor([-3.,  6.])
    """
    _check_pair("gate", gate, "up", up)
    return gate * up


def glu(gate: Tensor, up: Tensor) -> Tensor:
    r"""Gated linear unit.

    .. math:: \sigma(g) \circ u

    ``torch.nn.functional.glu`` takes both in one tensor, ``up`` first: ``F.glu(torch.cat([up, gate], dim=-1))``.

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its sigmoid.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the gated values.

    Raises:
        ValueError: if the shapes differ.

    References:
        Dauphin et al. (2016), arXiv:1612.08083, equation (1).

    Example:
        >>> glu(torch.tensor([0.0, 100.0]), torch.tensor([3.0, 3.0]))
        tensor([1.5000, 3.0000])
    """
    _check_pair("gate", gate, "up", up)
    return torch.sigmoid(gate) * up


def glu_backward(gate: Tensor, up: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`glu`, derived by hand.

    .. math:: \bar g = \bar y \circ u \circ \sigma(g)\,(1 - \sigma(g)), \qquad \bar u = \bar y \circ \sigma(g)

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its sigmoid.
        up: ``(…, F)`` what passes through it, :math:`u`.
        grad_out: ``(…, F)`` gradient of the loss with respect to the output.

    Returns:
        ``(…, F)`` twice, the gradients of ``gate`` and ``up``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Dauphin et al. (2016), arXiv:1612.08083, equation (3).

    Example:
        >>> glu_backward(torch.tensor([0.0]), torch.tensor([4.0]), torch.ones(1))
        (tensor([1.]), tensor([0.5000]))
    """
    _check_gradient(gate, up, grad_out)
    opening = torch.sigmoid(gate)
    return grad_out * up * opening * (1 - opening), grad_out * opening


def reglu(gate: Tensor, up: Tensor) -> Tensor:
    r"""Gate with ReLU.

    .. math:: \max(0, g) \circ u

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its ReLU.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the gated values.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5).

    Example:
        >>> reglu(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 3.0]))
        tensor([0., 6.])
    """
    _check_pair("gate", gate, "up", up)
    return F.relu(gate) * up


def reglu_backward(gate: Tensor, up: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`reglu`, derived by hand.

    .. math:: \bar g = \bar y \circ u \circ [g > 0], \qquad \bar u = \bar y \circ \max(0, g)

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its ReLU.
        up: ``(…, F)`` what passes through it, :math:`u`.
        grad_out: ``(…, F)`` gradient of the loss with respect to the output.

    Returns:
        ``(…, F)`` twice, the gradients of ``gate`` and ``up``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5); the derivative follows from the product rule.

    Example:
        >>> reglu_backward(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 3.0]), torch.ones(2))
        (tensor([0., 3.]), tensor([0., 2.]))
    """
    _check_gradient(gate, up, grad_out)
    return grad_out * up * (gate > 0), grad_out * F.relu(gate)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    r"""Gate with GELU.

    .. math:: \operatorname{GELU}(g) \circ u

    Gemma gates with :func:`gelu_tanh` in its place: ``gelu_tanh(gate) * up``.

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its GELU.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the gated values.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5).

    Example:
        >>> geglu(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 2.0]))
        tensor([-0.3173,  1.6827])
    """
    _check_pair("gate", gate, "up", up)
    return gelu(gate) * up


def geglu_backward(gate: Tensor, up: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`geglu` (with erf), derived by hand.

    .. math:: \bar g = \bar y \circ u \circ \bigl(\Phi(g) + g\,\varphi(g)\bigr), \qquad
        \bar u = \bar y \circ g\,\Phi(g)

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its GELU.
        up: ``(…, F)`` what passes through it, :math:`u`.
        grad_out: ``(…, F)`` gradient of the loss with respect to the output.

    Returns:
        ``(…, F)`` twice, the gradients of ``gate`` and ``up``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5); the derivative follows from the product rule.

    Example:
        >>> geglu_backward(torch.tensor([1.0]), torch.tensor([2.0]), torch.ones(1))
        (tensor([2.1666]), tensor([0.8413]))
    """
    _check_gradient(gate, up, grad_out)
    return grad_out * up * _gelu_slope(gate), grad_out * gelu(gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    r"""Gate with SiLU, as Llama uses it.

    .. math:: \operatorname{SiLU}(g) \circ u = g \circ \sigma(g) \circ u

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its SiLU.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the gated values.

    Raises:
        ValueError: if the shapes differ.

    Cost: for the backward pass autograd keeps three tensors of the size of ``gate``; :func:`swiglu_recomputed` two.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5) with :math:`\beta = 1`.

    Example:
        >>> swiglu(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 2.0]))
        tensor([-0.5379,  1.4621])
    """
    _check_pair("gate", gate, "up", up)
    return F.silu(gate) * up


def swiglu_backward(gate: Tensor, up: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`swiglu`, derived by hand.

    .. math:: \bar g = \bar y \circ u \circ \sigma(g)\,\bigl(1 + g\,(1 - \sigma(g))\bigr), \qquad
        \bar u = \bar y \circ g\,\sigma(g)

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its SiLU.
        up: ``(…, F)`` what passes through it, :math:`u`.
        grad_out: ``(…, F)`` gradient of the loss with respect to the output.

    Returns:
        ``(…, F)`` twice, the gradients of ``gate`` and ``up``.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5); the derivative follows from the product rule.

    Example:
        >>> swiglu_backward(torch.tensor([0.0]), torch.tensor([4.0]), torch.ones(1))
        (tensor([2.]), tensor([0.]))
    """
    _check_gradient(gate, up, grad_out)
    return swish_backward(gate, grad_out * up), grad_out * F.silu(gate)


def clamped_swiglu(gate: Tensor, up: Tensor, *, beta: float = QUICK_BETA, limit: float = 7.0) -> Tensor:
    r"""Gate with Swish, both sides clamped and 1 added to what passes, as the experts of GPT-OSS do.

    .. math:: \tilde g\,\sigma(\beta \tilde g) \circ (\tilde u + 1), \qquad
        \tilde g = \min(g, \ell), \quad \tilde u = \max\bigl(-\ell, \min(u, \ell)\bigr)

    No value is larger than :math:`\ell\,(\ell + 1)`, whatever comes in.

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its Swish.
        up: ``(…, F)`` what passes through it, :math:`u`.
        beta: slope :math:`\beta` of the sigmoid.
        limit: the bound :math:`\ell`, positive.

    Returns:
        ``(…, F)`` the gated values.

    Raises:
        ValueError: if the shapes differ, or the limit is not positive.

    References:
        OpenAI (2025), arXiv:2508.10925; the formula is that of the published code.

    Example:
        >>> clamped_swiglu(torch.tensor([1.0, 1e9]), torch.tensor([0.0, 1e9]))  # 7 * 8, less a little
        tensor([ 0.8458, 55.9996])
    """
    _check_pair("gate", gate, "up", up)
    if not limit > 0:
        raise ValueError(f"limit is {limit}, expected a positive number")
    return swish(gate.clamp(max=limit), beta=beta) * (up.clamp(-limit, limit) + 1)


def swiglu_recomputed(gate: Tensor, up: Tensor) -> Tensor:
    r"""The value and gradients of :func:`swiglu`, with two tensors kept for the backward pass and not three.

    SiLU of the gate is cheap, so it is computed again on the way back by :func:`swiglu_backward`.

    Args:
        gate: ``(…, F)`` the gate :math:`g`, before its SiLU.
        up: ``(…, F)`` what passes through it, :math:`u`.

    Returns:
        ``(…, F)`` the gated values. They can be differentiated once, not twice.

    Raises:
        ValueError: if the shapes differ.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (5). Recomputation: Chen et al. (2016), arXiv:1604.06174.

    Example:
        >>> swiglu_recomputed(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 2.0]))
        tensor([-0.5379,  1.4621])
    """
    _check_pair("gate", gate, "up", up)
    apply: Callable[[Tensor, Tensor], Tensor] = _RecomputedSwiGLU.apply
    return apply(gate, up)


def swiglu_feed_forward(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    r"""Gated feed-forward network with SwiGLU and without biases, as Llama has it.

    .. math:: y = \bigl(\operatorname{SiLU}(x W_g^\top) \circ x W_u^\top\bigr)\,W_d^\top

    Args:
        x: ``(…, D)`` input.
        w_gate: ``(F, D)`` weight of the gate, laid out as in ``torch.nn.Linear``.
        w_up: ``(F, D)`` weight of what passes through the gate.
        w_down: ``(D, F)`` weight of the way back.

    Returns:
        ``(…, D)`` output.

    Raises:
        ValueError: if the shapes of the weights do not fit together.

    Cost: ``6 * N * D * F`` FLOPs for ``N`` positions.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (6).

    Example:
        >>> one = torch.ones(1, 1)
        >>> swiglu_feed_forward(torch.tensor([[1.0], [2.0]]), one, one, one)  # x² σ(x)
        tensor([[0.7311],
                [3.5232]])
    """
    _check_weights(x, w_gate, w_up, w_down)
    return swiglu(x @ w_gate.mT, x @ w_up.mT) @ w_down.mT


def swiglu_feed_forward_backward(
    x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Gradients of :func:`swiglu_feed_forward`, derived by hand; the hidden layer is computed anew from ``x``.

    With :math:`G = XW_g^\top`, :math:`U = XW_u^\top`, :math:`H = \operatorname{SiLU}(G) \circ U`, one row a position,

    .. math::

        \begin{aligned}
        \bar W_d &= \bar Y^\top H, & \bar H &= \bar Y W_d, \\
        \bar G &= \bar H \circ U \circ \operatorname{SiLU}'(G), & \bar U &= \bar H \circ \operatorname{SiLU}(G), \\
        \bar W_g &= \bar G^\top X, & \bar W_u &= \bar U^\top X, \\
        \bar X &= \bar G W_g + \bar U W_u. & &
        \end{aligned}

    Args:
        x: ``(…, D)`` input.
        w_gate: ``(F, D)`` weight of the gate.
        w_up: ``(F, D)`` weight of what passes through the gate.
        w_down: ``(D, F)`` weight of the way back.
        grad_out: ``(…, D)`` gradient of the loss with respect to the output.

    Returns:
        ``(…, D)``, ``(F, D)``, ``(F, D)`` and ``(D, F)``, the gradients of ``x`` and the three weights.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``12 * N * D * F`` FLOPs for ``N`` positions, and ``4 * N * D * F`` for the hidden layer.

    References:
        Shazeer (2020), arXiv:2002.05202, equation (6); the derivative follows from the chain rule.

    Example:
        >>> one = torch.ones(1, 1)
        >>> swiglu_feed_forward_backward(torch.zeros(1, 1), one, one, one, one)[0]  # x² σ(x) is flat at 0
        tensor([[0.]])
    """
    _check_weights(x, w_gate, w_up, w_down)
    _check_pair("x", x, "grad_out", grad_out)
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_out.reshape(-1, x.shape[-1])  # (N, D)
    gate, up = rows @ w_gate.mT, rows @ w_up.mT  # (N, F)
    d_gate, d_up = swiglu_backward(gate, up, grad_rows @ w_down)
    dx = d_gate @ w_gate + d_up @ w_up
    return dx.reshape(x.shape), d_gate.mT @ rows, d_up.mT @ rows, grad_rows.mT @ swiglu(gate, up)


def gated_width(d_model: int, *, multiplier: float = 1.0, multiple_of: int = 256) -> int:
    r"""Width of a gated feed-forward network with the parameters of a plain one of width ``4 * d_model``.

    Three matrices and not two: :math:`3DF = 2D \cdot 4D` gives :math:`F = \tfrac83 D`. It is rounded down, times the
    multiplier rounded down again, then rounded up to a multiple that suits the hardware.

    Args:
        d_model: width ``D`` of the model.
        multiplier: a factor, for a network that is wider on purpose.
        multiple_of: the width is a multiple of this.

    Returns:
        The width ``F``.

    Raises:
        ValueError: if ``d_model`` or ``multiple_of`` is below 1.

    References:
        Shazeer (2020), arXiv:2002.05202 (the factor 2/3); Touvron et al. (2023), arXiv:2302.13971, section 2.2.

    Example:
        >>> gated_width(4096)  # Llama-2-7B
        11008
        >>> gated_width(4096, multiplier=1.3, multiple_of=1024)  # Llama-3-8B
        14336
    """
    check_at_least("d_model", d_model, 1)
    check_at_least("multiple_of", multiple_of, 1, hint="1 rounds to no multiple")
    width = int(multiplier * (8 * d_model // 3))
    return multiple_of * -(-width // multiple_of)


class _GatedGELU(torch.autograd.Function):
    r"""GELU with tanh as :math:`x\sigma(v)`, :math:`v = 2\sqrt{2/\pi}\,(x + a x^3)`, and its gate, which is kept.

    The slope is :math:`\sigma(v) + x\sigma'(v)v'`, with :math:`\sigma' = \sigma(1 - \sigma)`.
    """

    generate_vmap_rule = True
    rate = 2 * math.sqrt(2 / math.pi)

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = _GatedGELU.polynomial(x, 1).sigmoid_()
        return x * gate, gate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (x,), (_, gate) = inputs, output
        ctx.mark_non_differentiable(gate)
        ctx.set_materialize_grads(False)  # of the gate: a tensor of zeros for nothing
        ctx.save_for_backward(x, gate)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> Tensor | None:
        if grad_out is None:
            return None
        x, gate = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            return gelu_tanh_backward(x, grad_out)
        slope = _GatedGELU.polynomial(x, 3)  # x v'
        slope.addcmul_(slope, gate, value=-1)  # x v' (1 - gate)
        return torch.addcmul(gate, slope, gate, out=slope).mul_(grad_out)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_for_forward
        return gelu_tanh_backward(x, tangent), None

    @staticmethod
    def polynomial(x: Tensor, power: int) -> Tensor:
        """Return ``x * (1 + power * a * x**2)`` times the rate: v, or x v' for a power of 3, in a tensor of its own."""
        rate = _GatedGELU.rate
        return torch.addcmul(x.new_tensor(rate), x, x, value=power * rate * TANH_CUBIC).mul_(x)


class _RecomputedSwiGLU(torch.autograd.Function):
    """Keep the two inputs, and nothing that can be computed from them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return swiglu_backward(gate, up, grad_out)


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the probability that a standard normal variable is at most ``x``."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of GELU: distribution function plus ``x`` times the density."""
    return _normal_cdf(x) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _check_pair(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check_equal(f"shape of {name}", tuple(x.shape), f"shape of {other_name}", tuple(other.shape))


def _check_gradient(gate: Tensor, up: Tensor, grad_out: Tensor) -> None:
    _check_pair("gate", gate, "up", up)
    _check_pair("gate", gate, "grad_out", grad_out)


def _check_weights(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> None:
    check_equal("width of w_gate", w_gate.shape[-1], "width of x", x.shape[-1], hint="w_gate is (F, D), x is (…, D)")
    _check_pair("w_gate", w_gate, "w_up", w_up)
    _check_pair("w_down", w_down, "transposed w_up", w_up.mT)


def _identity(x: Tensor) -> Tensor:
    return x


def _clipped_gelu(x: Tensor) -> Tensor:
    return gelu(x).clamp(-10, 10)


def _laplace(x: Tensor) -> Tensor:
    return _normal_cdf((x - 0.707107) / 0.282095)


def _sqrt_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": F.hardswish,
    "laplace": _laplace,
    "leaky_relu": leaky_relu,
    "linear": _identity,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu_squared,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": silu,
    "tanh": torch.tanh,
}
