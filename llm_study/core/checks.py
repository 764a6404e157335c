"""Checks of arguments at public edges: what was expected, what came, and how to mend it.

Every check returns ``None`` or raises :exc:`ValueError`. Checks look at numbers, shapes and names only, so this module
does not need torch.
"""

from collections.abc import Sequence

__all__ = ["check_at_least", "check_boolean", "check_broadcastable", "check_divides", "check_equal", "check_ndim"]


def check_at_least(name: str, value: int, least: int, *, hint: str = "") -> None:
    """Check that a number is not too small.

    Args:
        name: what the number is, as the caller knows it.
        value: the number.
        least: the smallest value that makes sense.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if ``value < least``.

    Example:
        >>> check_at_least("n_heads", 0, 1)
        Traceback (most recent call last):
        ValueError: n_heads is 0, expected at least 1
    """
    if value < least:
        raise ValueError(_message(f"{name} is {value}, expected at least {least}", hint))


def check_boolean(name: str, dtype: object, *, hint: str = "") -> None:
    """Check that a tensor or an array holds True and False, not numbers.

    Args:
        name: name of the tensor.
        dtype: its dtype, of torch or of numpy.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if the dtype is not boolean.

    Example:
        >>> check_boolean("mask", "torch.float32", hint="pass mask == 0")
        Traceback (most recent call last):
        ValueError: mask has dtype torch.float32, expected torch.bool: pass mask == 0
    """
    if str(dtype) not in ("torch.bool", "bool"):
        raise ValueError(_message(f"{name} has dtype {dtype}, expected torch.bool", hint))


def check_broadcastable(name: str, shape: Sequence[int], target: Sequence[int], *, hint: str = "") -> None:
    """Check that a tensor broadcasts to a shape without making it larger.

    Args:
        name: name of the tensor.
        shape: its shape.
        target: the shape that the result must have.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if the shape has more dimensions than the target, or a size that is neither 1 nor the target's.

    Example:
        >>> check_broadcastable("mask", (3, 5), (2, 4, 3, 5))
        >>> check_broadcastable("mask", (5, 3), (2, 4, 3, 5))
        Traceback (most recent call last):
        ValueError: mask has shape (5, 3), which does not broadcast to (2, 4, 3, 5)
    """
    tail = target[max(len(target) - len(shape), 0) :]
    if len(shape) > len(target) or any(n not in (1, m) for n, m in zip(shape, tail, strict=True)):
        text = f"{name} has shape {tuple(shape)}, which does not broadcast to {tuple(target)}"
        raise ValueError(_message(text, hint))


def check_divides(divisor_name: str, divisor: int, name: str, value: int, *, hint: str = "") -> None:
    """Check that one number divides another.

    Args:
        divisor_name: what the divisor is.
        divisor: the divisor, at least 1.
        name: what is divided.
        value: the number that is divided.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if ``divisor`` is below 1, or leaves a remainder.

    Example:
        >>> check_divides("n_heads", 3, "d_model", 8)
        Traceback (most recent call last):
        ValueError: n_heads = 3 does not divide d_model = 8 (remainder 2)
    """
    check_at_least(divisor_name, divisor, 1, hint=hint)
    if value % divisor:
        text = f"{divisor_name} = {divisor} does not divide {name} = {value} (remainder {value % divisor})"
        raise ValueError(_message(text, hint))


def check_equal(name: str, value: object, other_name: str, other: object, *, hint: str = "") -> None:
    """Check that two things that must agree do: sizes, dtypes, devices.

    Args:
        name: what the first is.
        value: the first.
        other_name: what it must agree with.
        other: the second.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if they differ.

    Example:
        >>> check_equal("width of k", 8, "width of q", 16, hint="both are Dk")
        Traceback (most recent call last):
        ValueError: width of k is 8, width of q is 16, expected the same: both are Dk
    """
    if value != other:
        raise ValueError(_message(f"{name} is {value}, {other_name} is {other}, expected the same", hint))


def check_ndim(name: str, shape: Sequence[int], legend: Sequence[str], *, hint: str = "") -> None:
    """Check that a tensor has one dimension for each letter of its legend.

    Args:
        name: name of the tensor.
        shape: its shape.
        legend: what its dimensions are called, for example ``("B", "T", "D")``.
        hint: what to do about it, added to the message.

    Raises:
        ValueError: if the number of dimensions differs.

    Example:
        >>> check_ndim("x", (5, 8), ("B", "T", "D"), hint="use x[None] for a batch of one")
        Traceback (most recent call last):
        ValueError: x has shape (5, 8), expected 3 dimensions (B, T, D): use x[None] for a batch of one
    """
    if len(shape) != len(legend):
        text = f"{name} has shape {tuple(shape)}, expected {len(legend)} dimensions ({', '.join(legend)})"
        raise ValueError(_message(text, hint))


def _message(text: str, hint: str) -> str:
    return f"{text}: {hint}" if hint else text
