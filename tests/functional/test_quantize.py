"""The laws of affine quantization: nearest level, error of half a step, lossless packing, bytes as counted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_study.functional import quantize as Q

law = settings(max_examples=60, derandomize=True, deadline=None)
every_bits = pytest.mark.parametrize("bits", [2, 4, 8])


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_search(group: list[float], bits: int) -> list[float]:
    """Second formula: write down every level, and take the one that is nearest."""
    low, high = min(group), max(group)
    levels = [low + (high - low) * i / (2**bits - 1) for i in range(2**bits)]
    return [min(levels, key=lambda level: abs(level - x)) for x in group]


@every_bits
@pytest.mark.parametrize("seed", range(5))
def test_each_number_goes_to_the_nearest_level(bits: int, seed: int) -> None:
    x = numbers(6, 8, seed=seed)
    expected = torch.tensor([by_search(row, bits) for row in x.tolist()], dtype=torch.float64)
    assert torch.allclose(Q.quantize_affine_reference(x, bits=bits), expected, rtol=0, atol=1e-14)


@given(data=st.data(), bits=st.sampled_from([2, 4, 8]), seed=st.integers(0, 2**32), group=st.sampled_from([4, 8, 12]))
@law
def test_fast_equals_reference_along_every_dimension(data: st.DataObject, bits: int, seed: int, group: int) -> None:
    shape = [data.draw(st.integers(1, 3)) for _ in range(data.draw(st.integers(1, 4)))]
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    shape[dim] *= group
    x = numbers(*shape, seed=seed)
    groups = x.movedim(dim, -1).unflatten(-1, (-1, group))
    expected = Q.quantize_affine_reference(groups, bits=bits).flatten(-2).movedim(-1, dim)
    assert torch.allclose(Q.dequantize_affine(Q.quantize_affine(x, bits=bits, group=group, dim=dim)), expected)


@given(bits=st.sampled_from([2, 4, 8]), seed=st.integers(0, 2**32), spread=st.sampled_from([1e-8, 1.0, 1e6]))
@law
def test_no_error_is_larger_than_half_a_step(bits: int, seed: int, spread: float) -> None:
    x = spread * numbers(4, 16, seed=seed) + 5
    quantized = Q.quantize_affine(x, bits=bits, group=8)
    half_steps = quantized.scale.repeat_interleave(8, dim=-1) / 2
    error = (Q.dequantize_affine(quantized) - x).abs()
    assert (error <= half_steps * (1 + 1e-9) + 1e-15 * x.abs()).all()
    assert bits == 8 or (error > 0.7 * half_steps).any()  # and some come near it


@every_bits
def test_the_error_of_even_numbers_is_that_of_uniform_noise(bits: int) -> None:
    x = torch.rand(4096, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quantized = Q.quantize_affine(x, bits=bits, group=64)
    steps = quantized.scale.repeat_interleave(64, dim=-1)
    relative = (Q.dequantize_affine(quantized) - x)[..., :].div(steps).square()
    relative = relative[relative > 1e-20]  # the ends of a group are exact
    standard_error = relative.std() / relative.numel() ** 0.5
    assert (relative.mean() - 1 / 12).abs() < 5 * standard_error


@every_bits
def test_ends_and_equal_numbers_are_exact(bits: int) -> None:
    x = numbers(5, 8)
    x[2] = 0.3
    y = Q.dequantize_affine(Q.quantize_affine(x, bits=bits, group=8))
    assert torch.allclose(y.amin(-1), x.amin(-1), rtol=0, atol=0)
    assert torch.allclose(y.amax(-1), x.amax(-1), rtol=1e-14)
    assert torch.equal(y[2], x[2])
    again = Q.dequantize_affine(Q.quantize_affine(y, bits=bits, group=8))
    assert torch.allclose(again, y, rtol=0, atol=1e-14)  # what is on a level stays


@every_bits
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_formats_stay_and_are_near(bits: int, dtype: torch.dtype) -> None:
    x = numbers(7, 32, dtype=dtype)
    quantized = Q.quantize_affine(x, bits=bits, group=16)
    y = Q.dequantize_affine(quantized)
    assert y.dtype == quantized.scale.dtype == quantized.minimum.dtype == dtype
    spread = (x.amax() - x.amin()).double()
    limit = quantized.scale.double().repeat_interleave(16, -1) / 2 + 3 * torch.finfo(dtype).eps * spread
    assert ((y.double() - x.double()).abs() <= limit).all()


@given(bits=st.sampled_from([2, 4, 8]), data=st.data())
@law
def test_packing_loses_nothing_and_is_binary(bits: int, data: st.DataObject) -> None:
    count = 8 // bits * data.draw(st.integers(0, 5))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    packed = Q.pack_bits(torch.tensor(codes, dtype=torch.long).expand(3, count), bits=bits)
    assert packed.shape == (3, count * bits // 8)
    assert packed.dtype == torch.uint8
    assert Q.unpack_bits(packed, bits=bits).tolist() == [codes] * 3
    digits = "".join(f"{code:0{bits}b}" for code in reversed(codes))  # the last code first, as binary numbers are read
    whole = sum(byte << 8 * i for i, byte in enumerate(packed[0].tolist()))
    assert whole == int(digits or "0", 2)


@every_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_as_counted(bits: int, dtype: torch.dtype) -> None:
    x = numbers(2, 3, 64, 16, dtype=dtype)
    for dim in (-1, -2):
        per_number = Q.affine_bits_per_number(bits=bits, group=16, parameter_bits=8 * dtype.itemsize)
        assert Q.quantize_affine(x, bits=bits, group=16, dim=dim).nbytes * 8 == per_number * x.numel()


# --- bad input


@pytest.mark.parametrize("bits", [0, 1, 3, 16])
def test_other_bits_are_refused(bits: int) -> None:
    x, byte = torch.zeros(8), torch.zeros(1, dtype=torch.uint8)
    message = f"bits is {bits}, expected 2, 4 or 8"
    for call in (
        lambda: Q.quantize_affine(x, bits=bits, group=8),
        lambda: Q.quantize_affine_reference(x, bits=bits),
        lambda: Q.pack_bits(byte, bits=bits),
        lambda: Q.unpack_bits(byte, bits=bits),
        lambda: Q.affine_bits_per_number(bits=bits, group=8),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_groups_must_divide_and_fill_bytes() -> None:
    with pytest.raises(ValueError, match=r"group = 8 does not divide size of x along dim -1 = 12 \(remainder 4\)"):
        Q.quantize_affine(torch.zeros(2, 12), bits=4, group=8)
    with pytest.raises(ValueError, match=r"group = 8 does not divide size of x along dim -2 = 12"):
        Q.quantize_affine(torch.zeros(12, 8), bits=4, group=8, dim=0)
    with pytest.raises(ValueError, match="codes in a byte = 4 does not divide group = 6"):
        Q.quantize_affine(torch.zeros(12), bits=2, group=6)
    with pytest.raises(ValueError, match="codes in a byte = 2 does not divide number of codes = 3"):
        Q.pack_bits(torch.zeros(3, dtype=torch.long), bits=4)
    with pytest.raises(ValueError, match="group is 0, expected at least 1"):
        Q.affine_bits_per_number(bits=4, group=0)
    with pytest.raises(ValueError, match="parameter_bits is 0, expected at least 1"):
        Q.affine_bits_per_number(bits=4, group=4, parameter_bits=0)


def test_integers_and_missing_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has dtype torch\.int64, expected a floating-point dtype"):
        Q.quantize_affine(torch.zeros(8, dtype=torch.long), bits=2, group=8)
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"dim is {dim}, expected -2 to 1: x has shape \(8, 8\)"):
            Q.quantize_affine(torch.zeros(8, 8), bits=2, group=8, dim=dim)
