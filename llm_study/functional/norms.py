"""Normalization of a vector of activations: LayerNorm, RMSNorm in the cast orders that models use, their gradients.

Every function works on the last dimension, of width ``D``; whatever stands before it is kept. Half-precision inputs
(bfloat16, float16) are normalized in float32, as the models do, and come back in their own dtype; float32 and float64
stay what they are. The weight and bias are vectors ``(D,)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal

__all__ = [
    "layer_norm_reference",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm_reference",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_late_cast",
    "gemma_rms_norm",
    "dynamic_tanh",
]


def layer_norm_reference(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    r"""Layer normalization, written as its equation; :func:`layer_norm` is the fast twin.

    .. math:: y = \gamma \circ \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta, \qquad
        \mu = \frac{1}{D}\sum_i x_i, \quad \sigma^2 = \frac{1}{D}\sum_i (x_i - \mu)^2

    The variance divides by ``D``, not by ``D - 1``, and ε stands inside the root.

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)`` factor :math:`\gamma`. Default: 1.
        bias: ``(D,)`` term :math:`\beta`. Default: 0.
        eps: added to the variance, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``. A constant vector, whose variance is 0, gives the bias.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight or bias is
            not a vector of that size.

    Cost: about ``7 * D`` FLOPs for a vector, in several passes over memory.

    References:
        Ba, Kiros and Hinton (2016), arXiv:1607.06450.

    Example:
        >>> layer_norm_reference(torch.tensor([1.0, 3.0]), eps=0.0)  # mean 2, standard deviation 1
        tensor([-1.,  1.])
    """
    _check_inputs(x, weight, bias)
    z = x.to(_wide(x))
    centered = z - z.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    y = centered * torch.rsqrt(variance + eps)
    y = y if weight is None else weight * y
    y = y if bias is None else y + bias
    return y.to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    r"""Layer normalization: mean 0 and variance 1 over the last dimension, then a factor and a term per coordinate.

    .. math:: y = \gamma \circ \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta, \qquad
        \mu = \frac{1}{D}\sum_i x_i, \quad \sigma^2 = \frac{1}{D}\sum_i (x_i - \mu)^2

    The work is done by PyTorch's fused kernel, which reads ``x`` once and keeps only the mean and the inverse standard
    deviation of each vector for the backward pass.

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)`` factor :math:`\gamma`. Default: 1.
        bias: ``(D,)`` term :math:`\beta`. Default: 0.
        eps: added to the variance, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``. A constant vector, whose variance is 0, gives the bias.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight or bias is
            not a vector of that size.

    Cost: about ``7 * D`` FLOPs for a vector; the time is that of reading ``x`` and writing ``y``.

    References:
        Ba, Kiros and Hinton (2016), arXiv:1607.06450.

    Example:
        >>> layer_norm(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), eps=0.0)
        tensor([-1.,  7.])
    """
    _check_inputs(x, weight, bias)
    weight, bias = (p if p is None else p.to(x.dtype) for p in (weight, bias))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def layer_norm_backward(
    x: Tensor, weight: Tensor, grad_out: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients of layer normalization, derived by hand.

    With :math:`\hat{x} = (x - \mu)/s`, :math:`s = \sqrt{\sigma^2 + \varepsilon}` and :math:`g = \gamma \circ
    \mathrm{d}y`,

    .. math::

        \mathrm{d}x = \frac{1}{s}\Bigl(g - \overline{g} - \hat{x}\,\overline{g \circ \hat{x}}\Bigr), \qquad
        \mathrm{d}\gamma = \sum \mathrm{d}y \circ \hat{x}, \qquad \mathrm{d}\beta = \sum \mathrm{d}y,

    where the bar is the mean over the ``D`` coordinates and the sums run over all vectors.

    Args:
        x: ``(…, D)`` activations that went in.
        weight: ``(D,)`` factor :math:`\gamma`.
        grad_out: ``(…, D)`` gradient of the loss with respect to the output.
        eps: added to the variance, at least 0.

    Returns:
        ``(…, D)``, ``(D,)`` and ``(D,)``, the gradients of ``x``, the weight and the bias, each in its dtype (the
        bias's is that of the weight).

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, the weight is not a vector
            of that size, or the shape of ``grad_out`` is not that of ``x``.

    Cost: about ``16 * D`` FLOPs for a vector.

    References:
        Ba, Kiros and Hinton (2016), arXiv:1607.06450, whose formula is differentiated here.

    Example:
        >>> dx, dweight, dbias = layer_norm_backward(torch.tensor([1.0, 3.0]), torch.ones(2), torch.ones(2), eps=0.0)
        >>> dx, dweight, dbias  # adding the same to all coordinates changes nothing, so dx is 0
        (tensor([0., 0.]), tensor([-1.,  1.]), tensor([1., 1.]))
    """
    _check_inputs(x, weight, None, grad_out)
    z, dy = x.to(_wide(x)), grad_out.to(_wide(x))
    centered = z - z.mean(dim=-1, keepdim=True)
    inverse = torch.rsqrt(centered.square().mean(dim=-1, keepdim=True) + eps)
    normal, g = centered * inverse, weight * dy
    dx = inverse * (g - g.mean(dim=-1, keepdim=True) - normal * (g * normal).mean(dim=-1, keepdim=True))
    dweight, dbias = _sum_leading(dy * normal), _sum_leading(dy)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def rms_norm_reference(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    r"""Root-mean-square normalization, written as its equation; :func:`rms_norm` is the fast twin.

    .. math:: y = \gamma \circ \frac{x}{r}, \qquad r = \sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)`` factor :math:`\gamma`. Default: 1.
        eps: added to the mean of the squares, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``. Half precision is normalized in float32 and cast *before* the factor.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight is not a
            vector of that size.

    Cost: about ``4 * D`` FLOPs for a vector, in several passes over memory.

    References:
        Zhang and Sennrich (2019), arXiv:1910.07467, where there is no ε.

    Example:
        >>> rms_norm_reference(torch.tensor([1.0, 7.0]), eps=0.0)  # mean square 25
        tensor([0.2000, 1.4000])
    """
    _check_inputs(x, weight)
    z = x.to(_wide(x))
    mean_square = z.square().mean(dim=-1, keepdim=True)
    y = (z * torch.rsqrt(mean_square + eps)).to(x.dtype)
    return y if weight is None else (weight * y).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    r"""Root-mean-square normalization, with the cast order of Llama.

    .. math:: y = \gamma \circ \frac{x}{r}, \qquad r = \sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}

    Half precision is normalized in float32, cast back, *then* multiplied by the weight: two roundings. The other orders
    are :func:`rms_norm_late_cast` and :func:`gemma_rms_norm`; in float32 and float64 there is no difference.

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)`` factor :math:`\gamma`. Default: 1.
        eps: added to the mean of the squares, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``. The zero vector gives zeros, for ``eps`` above 0.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight is not a
            vector of that size.

    Cost: about ``4 * D`` FLOPs for a vector; the time is that of reading ``x`` and writing ``y``.

    References:
        Zhang and Sennrich (2019), arXiv:1910.07467, where there is no ε.

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0]), torch.tensor([5.0, 10.0]), eps=0.0)
        tensor([ 1., 14.])
    """
    _check_inputs(x, weight)
    width, wide = (x.shape[-1],), _wide(x)
    if x.dtype == wide:
        if weight is not None and weight.dtype != wide:  # even a cast that does nothing takes its microsecond
            weight = weight.to(wide)
        if torch.is_grad_enabled() or not x.is_cpu:
            return F.rms_norm(x, width, weight, eps)
        return _rms_norm_on_cpu(x, weight, eps)
    y = F.rms_norm(x.to(wide), width, None, eps).to(x.dtype)
    return y if weight is None else (weight * y).to(x.dtype)


def rms_norm_backward(x: Tensor, weight: Tensor, grad_out: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    r"""Gradients of root-mean-square normalization, derived by hand.

    With :math:`\hat{x} = x/r` and :math:`g = \gamma \circ \mathrm{d}y`,

    .. math::

        \mathrm{d}x = \frac{1}{r}\Bigl(g - \hat{x}\,\overline{g \circ \hat{x}}\Bigr), \qquad
        \mathrm{d}\gamma = \sum \mathrm{d}y \circ \hat{x},

    where the bar is the mean over the ``D`` coordinates and the sum runs over all vectors.

    Args:
        x: ``(…, D)`` activations that went in.
        weight: ``(D,)`` factor :math:`\gamma`.
        grad_out: ``(…, D)`` gradient of the loss with respect to the output.
        eps: added to the mean of the squares, at least 0.

    Returns:
        ``(…, D)`` and ``(D,)``, the gradients of ``x`` and the weight, each in its dtype.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, the weight is not a vector
            of that size, or the shape of ``grad_out`` is not that of ``x``.

    Cost: about ``11 * D`` FLOPs for a vector.

    References:
        Zhang and Sennrich (2019), arXiv:1910.07467, where it is derived in matrix form, without ε.

    Example:
        >>> x = torch.tensor([1.0, 7.0])
        >>> rms_norm_backward(x, torch.ones(2), x, eps=0.0)  # along x nothing changes, so dx is 0
        (tensor([0., 0.]), tensor([0.2000, 9.8000]))
    """
    _check_inputs(x, weight, None, grad_out)
    z, dy = x.to(_wide(x)), grad_out.to(_wide(x))
    inverse = torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + eps)
    normal, g = z * inverse, weight * dy
    dx = inverse * (g - normal * (g * normal).mean(dim=-1, keepdim=True))
    return dx.to(x.dtype), _sum_leading(dy * normal).to(weight.dtype)


def rms_norm_late_cast(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    r"""Root-mean-square normalization with the cast order of OLMo 2: multiplied by the weight in float32, then cast.

    .. math:: y = \operatorname{cast}\Bigl(\gamma \circ \frac{x}{r}\Bigr), \qquad
        r = \sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}

    One rounding to half precision instead of the two of :func:`rms_norm`. This is also the order of
    ``torch.nn.RMSNorm``.

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)`` factor :math:`\gamma`.
        eps: added to the mean of the squares, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight is not a
            vector of that size.

    Cost: about ``4 * D`` FLOPs for a vector; the time is that of reading ``x`` and writing ``y``.

    References:
        OLMo Team (2025), arXiv:2501.00656; the order is that of ``Olmo2RMSNorm`` in transformers 5.23.

    Example:
        >>> x, weight = torch.tensor([1.0, 1.5]).bfloat16(), torch.tensor([1.0, 1.25]).bfloat16()
        >>> rms_norm_late_cast(x, weight)[1].item()  # 1.5 / sqrt(1.625) * 1.25 = 1.47087, rounded once
        1.46875
        >>> rms_norm(x, weight)[1].item()  # rounded twice
        1.4765625
    """
    _check_inputs(x, weight)
    return (weight * _normalized(x, eps)).to(x.dtype)


def gemma_rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    r"""Root-mean-square normalization as Gemma has it: times one plus the weight, in float32, then cast.

    .. math:: y = \operatorname{cast}\Bigl((1 + w) \circ \frac{x}{r}\Bigr), \qquad
        r = \sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}

    Weight decay pulls the weight to 0, which is the norm without a factor; it also starts there.

    Args:
        x: ``(…, D)`` activations.
        weight: ``(D,)``, what is added to a factor of 1.
        eps: added to the mean of the squares, at least 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, or the weight is not a
            vector of that size.

    Cost: about ``4 * D`` FLOPs for a vector; the time is that of reading ``x`` and writing ``y``.

    References:
        Gemma Team (2024), arXiv:2408.00118; the order is that of ``Gemma2RMSNorm`` in transformers 5.23.

    Example:
        >>> gemma_rms_norm(torch.tensor([1.0, 7.0]), torch.tensor([0.0, 1.0]), eps=0.0)
        tensor([0.2000, 2.8000])
    """
    _check_inputs(x, weight)
    return (_normalized(x, eps) * (1.0 + weight.to(_wide(x)))).to(x.dtype)


def dynamic_tanh(x: Tensor, alpha: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    r"""Dynamic tanh: a squashing of each coordinate in the place of a norm, without any statistic.

    .. math:: y = \gamma \circ \tanh(\alpha x) + \beta

    Args:
        x: ``(…, D)`` activations.
        alpha: ``()``, one learned number; 0.5 at the start.
        weight: ``(D,)`` factor :math:`\gamma`. Default: 1.
        bias: ``(D,)`` term :math:`\beta`. Default: 0.

    Returns:
        ``(…, D)``, in the dtype of ``x``.

    Raises:
        ValueError: if ``x`` is no floating-point tensor with a last dimension of at least 1, ``alpha`` is not one
            number, or the weight or bias is not a vector of that size.

    Cost: a ``tanh`` for each coordinate and ``3 * D`` FLOPs for a vector.

    References:
        Zhu et al. (2025), arXiv:2503.10622.

    Example:
        >>> dynamic_tanh(torch.tensor([0.0, 1e6]), torch.tensor(0.5), torch.tensor([1.0, 3.0]))
        tensor([0., 3.])
    """
    _check_inputs(x, weight, bias)
    check_equal("number of elements of alpha", alpha.numel(), "what is expected", 1, hint="one number for the layer")
    y = torch.tanh(alpha.reshape(()) * x)
    y = y if weight is None else weight * y
    y = y if bias is None else y + bias
    return y.to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype that a norm is computed in: at least float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _normalized(x: Tensor, eps: float) -> Tensor:
    """Return x over its root mean square, in at least float32."""
    z = x.to(_wide(x))
    return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + eps)


def _rms_norm_on_cpu(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return the normalized and scaled x by half as many operations as F.rms_norm takes there, without gradients."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    y = x * torch.addcmul(length.new_full((), eps), length, length, value=1 / x.shape[-1]).rsqrt_()
    return y if weight is None else y.mul_(weight)


def _sum_leading(x: Tensor) -> Tensor:
    """Sum over all dimensions but the last."""
    return x.reshape(-1, x.shape[-1]).sum(dim=0)


def _check_inputs(x: Tensor, weight: Tensor | None, bias: Tensor | None = None, grad_out: Tensor | None = None) -> None:
    """Check that x has a last dimension to normalize and that the parameters fit it."""
    if not x.ndim or not x.shape[-1]:  # asked first: a message takes its microseconds
        check_at_least("number of dimensions of x", x.ndim, 1, hint="the last dimension is normalized")
        check_at_least("size D of the last dimension of x", x.shape[-1], 1)
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, expected a floating-point dtype: convert it with .float()")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            shape = tuple(parameter.shape)
            check_equal(f"shape of {name}", shape, "shape (D,) of the last dimension of x", (x.shape[-1],))
    if grad_out is not None:
        check_equal("shape of grad_out", tuple(grad_out.shape), "shape of x", tuple(x.shape))
