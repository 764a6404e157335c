r"""Affine quantization in groups: numbers become small integers, a step and a smallest value for each group.

A group of :math:`G` neighboring numbers keeps its smallest value :math:`m` and the step
:math:`\Delta = (\max - m) / (2^b - 1)`; each number becomes the nearest of the :math:`2^b` levels
:math:`m, m + \Delta, m + 2\Delta, \dots` and is stored as ``b`` bits. Along which dimension numbers are neighbors
decides what shares a step: the channels of one token, or one channel of several tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_divides

__all__ = [
    "AffineQuantized",
    "affine_bits_per_number",
    "dequantize_affine",
    "pack_bits",
    "quantize_affine",
    "quantize_affine_reference",
    "unpack_bits",
]


@dataclass(frozen=True, kw_only=True)
class AffineQuantized:
    """Numbers that :func:`quantize_affine` made small; :func:`dequantize_affine` makes them numbers again.

    Args:
        codes: ``(…, N * bits / 8)`` bytes, several codes in each; the dimension that was quantized is the last.
        scale: ``(…, N / G)`` step of each group.
        minimum: ``(…, N / G)`` smallest value of each group.
        bits: bits of a code ``b``.
        dim: where the last dimension goes when it is made numbers again, counted from the end: -1 or less.

    Example:
        >>> x = quantize_affine(torch.tensor([0.0, 1.0, 2.0, 9.0]), bits=2, group=4)
        >>> x.codes, x.scale, x.minimum, x.nbytes
        (tensor([208], dtype=torch.uint8), tensor([3.]), tensor([0.]), 9)
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor
    bits: int
    dim: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the steps and the smallest values."""
        return self.codes.nbytes + self.scale.nbytes + self.minimum.nbytes


def quantize_affine_reference(x: Tensor, *, bits: int) -> Tensor:
    r"""Round each number to the nearest of :math:`2^b` levels between the ends of its group, written as the equation.

    .. math::

        \hat x = m + \Delta \operatorname{round}\frac{x - m}{\Delta}, \qquad
        m = \min_j x_j, \quad \Delta = \frac{\max_j x_j - m}{2^b - 1}

    Args:
        x: ``(…, G)`` numbers; each row is one group.
        bits: bits of a code ``b``: 2, 4 or 8.

    Returns:
        ``(…, G)`` what is left of the numbers, none further than half a step from what it was.

    Raises:
        ValueError: if ``bits`` is not 2, 4 or 8.

    References:
        Liu et al. (2024), arXiv:2402.02750.

    Example:
        >>> quantize_affine_reference(torch.tensor([0.0, 1.0, 2.0, 9.0]), bits=2)  # levels 0, 3, 6, 9
        tensor([0., 0., 3., 9.])
    """
    _check_bits(bits)
    minimum, maximum = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = (maximum - minimum) / (2**bits - 1)
    level = torch.where(step > 0, (x - minimum) / step, 0.0).round()
    rounded: Tensor = minimum + step * level
    return rounded


def quantize_affine(x: Tensor, *, bits: int, group: int, dim: int = -1) -> AffineQuantized:
    r"""Quantize numbers in groups of neighbors along one dimension, and pack the codes into bytes.

    The error of a number is at most half a step, :math:`\Delta / 2`; in 16-bit formats what step, smallest value and
    result lose when they are rounded to the format comes on top. A group of equal numbers is exact.

    Args:
        x: ``(…, N, …)`` numbers, finite.
        bits: bits of a code ``b``: 2, 4 or 8.
        group: numbers ``G`` that share a step, a divisor of ``N``; ``group * bits`` must fill whole bytes.
        dim: the dimension of size ``N`` along which neighbors share; for keys ``(B, K, S, Dh)`` -2 is per channel,
            -1 is per token.

    Returns:
        Codes, steps and smallest values; the latter two in the dtype of ``x``.

    Raises:
        ValueError: if ``bits`` is not 2, 4 or 8, ``group`` does not divide ``N`` or does not fill whole bytes, or ``x``
            is not of floating point or has no dimension ``dim``.

    Cost: reads ``x`` twice; keeps ``bits + 2 * p / group`` bits of each number, where a number of ``x`` has ``p``.

    References:
        Liu et al. (2024), arXiv:2402.02750.

    Example:
        >>> x = torch.tensor([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0], [3.0, 103.0]])  # (tokens, channels)
        >>> dequantize_affine(quantize_affine(x, bits=2, group=4, dim=-2)).equal(x)  # each channel its own step
        True
    """
    _check_bits(bits)
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, expected a floating-point dtype: convert it with .to")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim is {dim}, expected {-x.ndim} to {x.ndim - 1}: x has shape {tuple(x.shape)}")
    dim = dim - x.ndim if dim >= 0 else dim
    check_divides("group", group, f"size of x along dim {dim}", x.shape[dim], hint="every group must be full")
    check_divides("codes in a byte", 8 // bits, "group", group, hint="a group must fill whole bytes")
    last = x.movedim(dim, -1)
    groups = last.reshape(*last.shape[:-1], last.shape[-1] // group, group)  # (…, N / G, G)
    minimum = groups.amin(-1)
    scale = ((groups.amax(-1).to(_wide(x)) - minimum.to(_wide(x))) / (2**bits - 1)).to(x.dtype)
    codes = _nearest(groups, minimum, scale, bits)
    return AffineQuantized(
        codes=pack_bits(codes.flatten(-2), bits=bits), scale=scale, minimum=minimum, bits=bits, dim=dim
    )


def dequantize_affine(x: AffineQuantized) -> Tensor:
    r"""Turn codes into numbers again: :math:`\hat x = m + \Delta c`.

    Args:
        x: what :func:`quantize_affine` returned.

    Returns:
        ``(…, N, …)`` numbers in the shape and dtype that were quantized.

    References:
        Liu et al. (2024), arXiv:2402.02750.

    Example:
        >>> dequantize_affine(quantize_affine(torch.tensor([0.0, 1.0, 2.0, 9.0]), bits=2, group=4))
        tensor([0., 0., 3., 9.])
    """
    codes, groups = unpack_bits(x.codes, bits=x.bits), x.scale.shape[-1]
    codes = codes.reshape(*x.scale.shape, codes.shape[-1] // max(groups, 1))  # (…, N / G, G)
    scale, minimum = (part.to(_wide(part)).unsqueeze(-1) for part in (x.scale, x.minimum))
    numbers: Tensor = minimum + scale * codes.to(scale.dtype)
    return numbers.flatten(-2).to(x.scale.dtype).movedim(-1, x.dim)


def pack_bits(codes: Tensor, *, bits: int) -> Tensor:
    """Put several small integers into each byte, the first into the lowest bits.

    Args:
        codes: ``(…, N)`` integers from 0 to ``2 ** bits - 1``.
        bits: bits of a code: 2, 4 or 8.

    Returns:
        ``(…, N * bits / 8)`` bytes, dtype ``uint8``.

    Raises:
        ValueError: if ``bits`` is not 2, 4 or 8, or the codes do not fill whole bytes.

    References:
        Liu et al. (2024), arXiv:2402.02750: codes of 2 bits stored densely.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3, 0]), bits=2)  # 1 + 2 * 4 + 3 * 16
        tensor([57], dtype=torch.uint8)
    """
    _check_bits(bits)
    per_byte = 8 // bits
    check_divides("codes in a byte", per_byte, "number of codes", codes.shape[-1])
    places = torch.arange(per_byte, device=codes.device) * bits
    bytes_of_codes = codes.reshape(*codes.shape[:-1], codes.shape[-1] // per_byte, per_byte).long()
    return (bytes_of_codes << places).sum(-1).to(torch.uint8)


def unpack_bits(packed: Tensor, *, bits: int) -> Tensor:
    """Take the small integers out of the bytes again; the inverse of :func:`pack_bits`.

    Args:
        packed: ``(…, M)`` bytes, dtype ``uint8``.
        bits: bits of a code: 2, 4 or 8.

    Returns:
        ``(…, M * 8 / bits)`` integers from 0 to ``2 ** bits - 1``, dtype ``uint8``.

    Raises:
        ValueError: if ``bits`` is not 2, 4 or 8.

    References:
        Liu et al. (2024), arXiv:2402.02750: codes of 2 bits stored densely.

    Example:
        >>> unpack_bits(torch.tensor([57], dtype=torch.uint8), bits=2)
        tensor([1, 2, 3, 0], dtype=torch.uint8)
    """
    _check_bits(bits)
    places = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    codes: Tensor = (packed.unsqueeze(-1) >> places) & (2**bits - 1)
    return codes.flatten(-2)


def affine_bits_per_number(*, bits: int, group: int, parameter_bits: int = 16) -> float:
    """Count the bits that a number takes, with its share of the step and the smallest value of its group.

    Args:
        bits: bits of a code ``b``: 2, 4 or 8.
        group: numbers ``G`` that share a step.
        parameter_bits: bits of a step, and of a smallest value.

    Returns:
        ``bits + 2 * parameter_bits / group``.

    Raises:
        ValueError: if ``bits`` is not 2, 4 or 8, or ``group`` or ``parameter_bits`` is below 1.

    References:
        Liu et al. (2024), arXiv:2402.02750: a step and a zero point for each group.

    Example:
        >>> affine_bits_per_number(bits=2, group=32)
        3.0
    """
    _check_bits(bits)
    check_at_least("group", group, 1)
    check_at_least("parameter_bits", parameter_bits, 1)
    return bits + 2 * parameter_bits / group


def _nearest(groups: Tensor, minimum: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest level ``(…, G)`` of each number, by the step and smallest value as they are stored."""
    wide = _wide(groups)
    step, least = scale.to(wide).unsqueeze(-1), minimum.to(wide).unsqueeze(-1)
    level: Tensor = torch.where(step > 0, (groups.to(wide) - least) / step, 0.0)
    return level.round().clamp(0, 2**bits - 1).to(torch.uint8)


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_bits(bits: int) -> None:
    if bits not in (2, 4, 8):
        raise ValueError(f"bits is {bits}, expected 2, 4 or 8: they fill a byte evenly")
