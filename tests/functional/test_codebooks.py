"""The laws of codebooks: quantiles, nearest values, error bounds, bytes as counted, factors quantized too."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import codebooks as C
from llm_study.functional.quantize import unpack_bits

law = settings(max_examples=60, derandomize=True, deadline=None)
BOOKS = {
    "nf4": C.nf4_codebook(),
    "nf2": C.normal_float_codebook(bits=2),
    "fp4": C.fp4_codebook(),
    "fp8": C.fp8_codebook(),
    "signs": torch.tensor([-1.0, 1.0]),
}
every_book = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exactly(block: list[float], book: list[float]) -> list[int]:
    """Second formula, in rational numbers: the code of the nearest multiple, of two equally near ones the lower."""
    from fractions import Fraction

    absmax = max(map(abs, block))
    values = [Fraction(absmax) * Fraction(value) for value in book]
    return [min(range(len(values)), key=lambda i: (abs(Fraction(x) - values[i]), i)) for x in block]


# --- codebooks


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_normal_float_has_equal_shares_on_either_side_of_0(bits: int) -> None:
    book, normal = C.normal_float_codebook(bits=bits).double(), NormalDist()
    zero = 2 ** (bits - 1) - 1
    assert len(book) == 2**bits
    assert book[zero] == 0
    assert (book[0], book[-1]) == (-1, 1)
    end = normal.inv_cdf(1 - (1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2)
    shares = torch.tensor([normal.cdf(value * end) for value in book.tolist()], dtype=torch.float64).diff()
    for side in (shares[:zero], shares[zero:]):
        assert (side - side.mean()).abs().max() < 2e-7
    assert shares[0] > shares[-1]  # one step fewer below 0


def test_the_offset_of_4_bits_is_929_of_960() -> None:
    assert torch.equal(C.nf4_codebook(), C.normal_float_codebook(bits=4, offset=929 / 960))
    assert not torch.equal(C.nf4_codebook(), C.normal_float_codebook(bits=4, offset=0.967))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_midpoints_are_symmetric_and_of_two_quantiles(bits: int) -> None:
    book, normal, levels = C.midpoint_codebook(bits=bits).double(), NormalDist(), 2**bits
    assert torch.allclose(book, -book.flip(0))
    assert len(book) == levels - 1
    by_hand = [
        (normal.inv_cdf(i / (levels + 1)) + normal.inv_cdf((i + 1) / (levels + 1))) / 2 for i in range(1, levels)
    ]
    assert torch.allclose(book, torch.tensor(by_hand, dtype=torch.float64) / by_hand[-1], atol=1e-7)
    if bits == 4:
        assert (book[-2] - C.nf4_codebook()[-2].double()).abs() > 0.01  # not the table


def test_floats_are_signs_exponents_and_mantissas() -> None:
    def values(exponents: int, mantissas: int, bias: int, largest: float) -> Tensor:
        low, steps = 2.0 ** (1 - bias), 2**mantissas
        positive = {low * m / steps for m in range(steps)}  # subnormal
        positive |= {2.0 ** (e - bias) * (1 + m / steps) for e in range(1, 2**exponents) for m in range(steps)}
        kept = sorted(x for x in positive if x <= largest)
        return torch.tensor([-x for x in kept[:0:-1]] + kept) / largest

    assert torch.equal(C.fp4_codebook(), values(2, 1, 1, 6.0))
    assert torch.equal(C.fp8_codebook(), values(4, 3, 7, 448.0))
    assert len(C.fp8_codebook()) == 253


# --- blocks


@every_book
@pytest.mark.parametrize("seed", range(3))
def test_each_number_gets_the_code_of_the_nearest_value(book: Tensor, seed: int) -> None:
    x = numbers(3, 16, seed=seed)
    x[1, :4] = 0.0
    expected = [exactly(row, book.tolist()) for row in x.tolist()]
    quantized = C.quantize_blockwise(x, codebook=book, block=16)
    assert unpack_bits(quantized.codes, bits=quantized.bits).view(3, 16).tolist() == expected


def test_a_number_in_the_middle_gets_the_lower_code() -> None:
    book = torch.tensor([-1.0, -0.25, 0.5, 1.0])
    x = torch.tensor([8.0, -5.0, 1.0, 6.0])  # middles of 8 * book: -5, 1, 6
    for y in (
        C.dequantize_blockwise(C.quantize_blockwise(x, codebook=book, block=4)),
        C.quantize_blockwise_reference(x, codebook=book),
    ):
        assert y.tolist() == [8.0, -8.0, -2.0, 4.0]
    near = torch.nextafter(x, torch.tensor(9.0))
    near[0] = 8.0
    assert C.dequantize_blockwise(C.quantize_blockwise(near, codebook=book, block=4)).tolist() == [8.0, -2.0, 4.0, 8.0]


@given(
    name=st.sampled_from(list(BOOKS)),
    seed=st.integers(0, 2**32),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    block=st.integers(1, 9),
)
@law
def test_fast_equals_reference_in_every_shape(name: str, seed: int, shape: list[int], block: int) -> None:
    x, book = numbers(*shape, seed=seed, dtype=torch.float64), BOOKS[name]
    rows = [C.quantize_blockwise_reference(row, codebook=book) for row in x.flatten().split(block)]
    quantized = C.quantize_blockwise(x, codebook=book, block=block)
    y = C.dequantize_blockwise(quantized)
    assert y.shape == x.shape
    assert torch.allclose(y, torch.cat(rows).view(shape), rtol=1e-12, atol=0)
    assert len(quantized.absmax) == math.ceil(x.numel() / block)
    assert len(quantized.codes) == math.ceil(x.numel() * quantized.bits / 8)  # no byte of padding is kept


@given(name=st.sampled_from(["nf4", "fp4", "fp8"]), seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@law
def test_no_error_is_larger_than_half_the_gap_around_the_number(name: str, seed: int, scale: float) -> None:
    x, book = scale * numbers(4, 64, seed=seed, dtype=torch.float64), BOOKS[name].double()
    y = C.dequantize_blockwise(C.quantize_blockwise(x, codebook=BOOKS[name]))
    absmax = x.abs().amax(-1, keepdim=True)
    right = torch.bucketize(x / absmax, book).clamp(1, len(book) - 1)
    gap = book[right] - book[right - 1]
    assert ((y - x).abs() <= absmax * gap / 2 * (1 + 1e-6)).all()
    assert ((y - x).abs() <= absmax * book.diff().max() / 2 * (1 + 1e-6)).all()


@every_book
def test_zeros_ends_and_values_are_exact(book: Tensor) -> None:
    x = numbers(4, 64)
    x[0] = 0.0
    once = C.dequantize_blockwise(C.quantize_blockwise(x, codebook=book))
    assert (once[0] == 0).all()
    assert 0 not in book or not once[0].signbit().any()  # the code of 0, not -1 times 0
    ends = x.abs() == x.abs().amax(-1, keepdim=True)
    assert torch.equal(once[ends], x[ends])
    assert torch.equal(C.dequantize_blockwise(C.quantize_blockwise(once, codebook=book)), once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_come_back_and_factors_are_wide(dtype: torch.dtype) -> None:
    x = numbers(2, 64, dtype=dtype)
    quantized = C.quantize_blockwise(x, codebook=C.nf4_codebook())
    assert quantized.absmax.dtype == torch.promote_types(dtype, torch.float32)
    assert C.dequantize_blockwise(quantized).dtype == dtype
    assert C.dequantize_blockwise(C.double_quantize(quantized)).dtype == dtype
    assert torch.equal(quantized.absmax.to(dtype), x.abs().amax(-1))


# --- factors


def test_factors_lose_their_mean_and_come_back() -> None:
    x = numbers(256, 256)
    plain = C.quantize_blockwise(x, codebook=C.nf4_codebook())
    double = C.double_quantize(plain)
    assert torch.equal(double.mean, plain.absmax.mean())
    centered = plain.absmax - plain.absmax.mean()
    rows = [C.quantize_blockwise_reference(row, codebook=C.fp8_codebook()) for row in centered.split(256)]
    assert torch.allclose(C.undo_double(double).absmax, torch.cat(rows) + plain.absmax.mean(), rtol=1e-6)
    y, z = C.dequantize_blockwise(plain), C.dequantize_blockwise(double)
    assert torch.equal(double.codes, plain.codes)
    assert 0 < (z - y).norm() < 0.1 * (y - x).norm()  # next to nothing beside the first error


def test_bytes_are_those_of_the_paper() -> None:
    x = numbers(1024, 1024)
    plain = C.quantize_blockwise(x, codebook=C.nf4_codebook())
    double = C.double_quantize(plain)
    assert 8 * plain.nbytes / x.numel() == C.blockwise_bits_per_number() == 4.5
    assert 8 * (double.nbytes - 4) / x.numel() == C.double_bits_per_number() == 4 + 8 / 64 + 32 / (64 * 256)
    assert plain.nbytes == plain.codes.nbytes + plain.absmax.nbytes
    assert round(C.double_bits_per_number() - 4, 3) == 0.127
    assert round(C.blockwise_bits_per_number() - C.double_bits_per_number(), 3) == 0.373


# --- Lloyd


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_lloyd_max_of_a_normal_is_a_fixed_point_and_has_the_known_error(levels: int) -> None:
    normal = NormalDist()
    x = torch.tensor([normal.inv_cdf((i + 0.5) / 200_000) for i in range(200_000)], dtype=torch.float64)
    start = torch.linspace(-2, 2, levels, dtype=torch.float64)
    errors = []
    for steps in (0, 1, 5, 50, 400):
        book = C.lloyd_max(x, start, steps=steps)
        errors.append((x - book[torch.bucketize(x, (book[1:] + book[:-1]) / 2)]).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    known = {2: 1 - 2 / math.pi, 4: 0.1175, 16: 0.009497}[levels]  # Max (1960)
    assert errors[-1] == pytest.approx(known, rel=2e-3)
    ends = [-math.inf, *((book[1:] + book[:-1]) / 2).tolist(), math.inf]
    density = [0.0, *(normal.pdf(end) for end in ends[1:-1]), 0.0]
    share = [normal.cdf(end) for end in ends]
    means = [(density[i] - density[i + 1]) / (share[i + 1] - share[i]) for i in range(levels)]
    assert torch.allclose(book, torch.tensor(means, dtype=torch.float64), atol=2e-3)


def test_weights_of_lloyd_are_counts_and_empty_values_stay() -> None:
    x, book = torch.tensor([0.0, 1.0, 8.0, 10.0]), torch.tensor([0.0, 2.0, 99.0])
    counts = torch.tensor([1, 3, 2, 1])
    weighted = C.lloyd_max(x, book, weights=counts.float())
    assert torch.allclose(weighted, C.lloyd_max(x.repeat_interleave(counts), book))
    assert weighted.tolist() == [0.75, pytest.approx(26 / 3), 99.0]


# --- bad input


def test_bad_input_is_refused() -> None:
    x, book = torch.zeros(8), C.nf4_codebook()
    with pytest.raises(ValueError, match=r"x has dtype torch\.int64, expected a floating-point dtype"):
        C.quantize_blockwise(torch.zeros(8, dtype=torch.long), codebook=book)
    with pytest.raises(ValueError, match="x has 2 numbers that are not finite"):
        C.quantize_blockwise(torch.tensor([1.0, math.inf, math.nan]), codebook=book)
    with pytest.raises(ValueError, match="number of elements of x is 0, expected at least 1"):
        C.quantize_blockwise(torch.zeros(0), codebook=book)
    with pytest.raises(ValueError, match="block is 0, expected at least 1"):
        C.quantize_blockwise(x, codebook=book, block=0)
    for call in (C.quantize_blockwise, C.quantize_blockwise_reference):
        with pytest.raises(ValueError, match="the codebook falls or repeats at 2"):
            call(x, codebook=torch.tensor([-1.0, 0.0, 0.0, 1.0]))
        with pytest.raises(ValueError, match="the codebook has 257 values, expected at most 256"):
            call(x, codebook=torch.linspace(-1, 1, 257))
        with pytest.raises(ValueError, match="number of values of the codebook is 1, expected at least 2"):
            call(x, codebook=torch.ones(1))
    for make in (C.normal_float_codebook, C.midpoint_codebook):
        for bits in (1, 9):
            with pytest.raises(ValueError, match=f"bits is {bits}, expected 2 to 8"):
                make(bits=bits)
    for offset in (0.5, 1.0):
        with pytest.raises(ValueError, match=f"offset is {offset}, expected a probability above 0.5 and below 1"):
            C.normal_float_codebook(bits=4, offset=offset)
    with pytest.raises(ValueError, match="steps is -1, expected at least 0"):
        C.lloyd_max(x, book, steps=-1)
    for name in ("bits", "block", "factor_bits"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
            C.blockwise_bits_per_number(**{name: 0})
    for name in ("second_bits", "second_block", "factor_bits"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
            C.double_bits_per_number(**{name: 0})
