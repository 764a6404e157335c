"""Arithmetic coding: a language model turned into a compressor, exactly.

A text is an interval inside [0, 1) whose width is the probability of the text; its code is the shortest binary fraction
in it. All arithmetic is on integers of any size, so that nothing is rounded and the length of the code can be proved:
less than two bits above ``-log2`` of the probability. The price is time that grows with the square of the length, which
is no matter for a page of text.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

from llm_study.core.checks import check_at_least

__all__ = ["integer_frequencies", "arithmetic_encode", "arithmetic_decode"]

Predict = Callable[[Sequence[Hashable]], Mapping[Hashable, float]]
"""From what came before to the probability of each symbol, such as ``NGramModel.distribution``."""


def integer_frequencies(probabilities: Sequence[float], *, precision: int = 40) -> list[int]:
    """Round probabilities to whole numbers that sum to a power of two, and none of which is 0.

    Args:
        probabilities: at least one, none negative; they need not sum to 1 exactly.
        precision: the sum is ``2**precision``.

    Returns:
        One number for each probability, at least 1, so that even what the model excludes can be coded, at a price.

    Raises:
        ValueError: if there are no probabilities, one is negative or not a number, they sum to nothing, or there are
            more of them than ``2**precision``.

    Example:
        >>> integer_frequencies([0.5, 0.5, 0.0], precision=4)
        [8, 7, 1]
    """
    n, total = len(probabilities), sum(probabilities)
    check_at_least("number of probabilities", n, 1)
    check_at_least("2**precision", 2**precision, n, hint="each symbol needs at least one part")
    if not min(probabilities) >= 0 or not 0 < total < float("inf"):
        raise ValueError(f"probabilities from {min(probabilities)} that sum to {total}, expected none below 0, sum 1")
    parts = [1 + int(p / total * (2**precision - n)) for p in probabilities]
    parts[parts.index(max(parts))] += 2**precision - sum(parts)  # what rounding left over goes to the likeliest
    return parts


def arithmetic_encode(symbols: Sequence[Hashable], predict: Predict, *, precision: int = 40) -> str:
    r"""Encode a sequence into bits with the predictions of a model.

    The interval :math:`[l, l + w)` of the sequence is cut in proportion to the probabilities, symbol by symbol. Of the
    binary fractions of :math:`\lceil -\log_2 w \rceil + 1` digits at least one has all its continuations inside, so
    that the code has fewer than :math:`-\log_2 w + 2` bits.

    Args:
        symbols: the sequence.
        predict: from what came before to the probability of each symbol; the same call must give the same numbers to
            the decoder.
        precision: binary digits that probabilities are rounded to.

    Returns:
        The code, a string of ``0`` and ``1``; the decoder also needs the number of symbols.

    Raises:
        ValueError: if the model does not know a symbol, or its predictions are no probabilities.

    Cost: one prediction for each symbol, and time that grows with the square of the length.

    References:
        Witten, Neal and Cleary (1987), Arithmetic coding for data compression, whose coder rounds to machine words.

    Example:
        >>> arithmetic_encode("aab", lambda before: {"a": 0.75, "b": 0.25})  # 0.0111… is in [27/64, 36/64)
        '0111'
    """
    low, width, digits = 0, 1, 0  # the interval [low, low + width) / 2**digits
    for t, symbol in enumerate(symbols):
        names, parts = _prediction(predict(symbols[:t]), precision)
        if symbol not in names:
            raise ValueError(f"symbol {t} is {symbol!r}, which is not among the {len(names)} symbols of the model")
        i = names.index(symbol)
        low, width, digits = (low << precision) + width * sum(parts[:i]), width * parts[i], digits + precision
    return _shortest_fraction(low, width, digits)


def arithmetic_decode(code: str, length: int, predict: Predict, *, precision: int = 40) -> list[Hashable]:
    """Decode what :func:`arithmetic_encode` made, with the same model.

    Args:
        code: the bits.
        length: number of symbols.
        predict: the same predictions that the encoder had.
        precision: the same precision.

    Returns:
        The symbols.

    Raises:
        ValueError: if the code has other characters than 0 and 1, or the length is negative.

    Cost: as :func:`arithmetic_encode`.

    References:
        Witten, Neal and Cleary (1987), Arithmetic coding for data compression.

    Example:
        >>> arithmetic_decode("0111", 3, lambda before: {"a": 0.75, "b": 0.25})
        ['a', 'a', 'b']
    """
    check_at_least("length", length, 0)
    if strange := code.strip("01"):
        raise ValueError(f"the code contains {strange[0]!r}, expected 0 and 1 only")
    unit, width = 1 << len(code), 1
    offset = int(code or "0", 2)  # how far the code lies above the lower end of the interval, times unit
    symbols: list[Hashable] = []
    for _ in range(length):
        names, parts = _prediction(predict(symbols), precision)
        offset <<= precision
        target, i, below = offset // (width * unit), 0, 0
        while below + parts[i] <= target:
            below, i = below + parts[i], i + 1
        offset, width = offset - width * unit * below, width * parts[i]
        symbols.append(names[i])
    return symbols


def _prediction(probabilities: Mapping[Hashable, float], precision: int) -> tuple[list[Hashable], list[int]]:
    return list(probabilities), integer_frequencies(list(probabilities.values()), precision=precision)


def _shortest_fraction(low: int, width: int, digits: int) -> str:
    """Return the fewest bits all of whose continuations lie in the interval [low, low + width) / 2**digits."""
    n = digits - width.bit_length() + 1 if width & (width - 1) == 0 else digits - width.bit_length()
    while True:  # n starts at the floor of -log2(width / 2**digits)
        value = -((-low << n) >> digits)  # low * 2**n / 2**digits, rounded up
        if (value + 1) << digits <= (low + width) << n:
            return f"{value:0{n}b}" if n else ""
        n += 1
