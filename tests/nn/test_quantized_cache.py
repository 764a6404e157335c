"""A cache in few bits: exact while nothing is quantized, and after that as the equation of each group says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import BertConfig, GPT2Config
from llm_study.functional.attention import attention, causal_mask
from llm_study.functional.quantize import quantize_affine_reference
from llm_study.nn.cache import KVCache
from llm_study.nn.quantized_cache import QuantizedKVCache
from tests.models.test_decoder import FAMILIES, near, random_ids
from tests.nn.test_cache import decoder, in_pieces

every_decoder = pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
every_bits = pytest.mark.parametrize("bits", [2, 4, 8])
TINY = GPT2Config(vocab_size=9, n_positions=64, n_embd=16, n_layer=1, n_head=2)


def cache_of(model: Any, batch: int, *, bits: int, residual: int, length: int = 32) -> QuantizedKVCache:
    """Return a cache for a model whose heads are 6 wide, in groups of 6."""
    return QuantizedKVCache(model.config, batch, length, bits=bits, group=6, residual=residual, dtype=torch.float64)


def how(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None) -> Tensor:
    return attention(q, k, v, mask=causal_mask(q.shape[2], k.shape[2]) if mask is None else mask, scale=scale)


# --- exact while nothing is quantized


@every_decoder
@pytest.mark.parametrize("pieces", [[5] + [1] * 6, [3, 5, 3], [11]], ids=str)
def test_fewer_tokens_than_the_residual_are_exact(family: str, pieces: list[int]) -> None:
    model, ids = decoder(family), random_ids(2, 11)
    cache = cache_of(model, 2, bits=8, residual=12)
    found = in_pieces(model, ids, pieces, cache)
    assert near(found, in_pieces(model, ids, pieces, KVCache(model.config, 2, 11, dtype=torch.float64)), 1e-12)
    assert near(found, model(ids), 1e-12)


@every_decoder
def test_a_prompt_in_one_call_is_exact(family: str) -> None:
    model, ids = decoder(family), random_ids(2, 12)
    assert near(model(ids, cache=cache_of(model, 2, bits=4, residual=6)), model(ids), 1e-12)


@every_decoder
def test_eight_bits_are_close(family: str) -> None:
    model, ids = decoder(family), random_ids(2, 14)
    exact = model(ids)
    errors = []
    for bits in (8, 4):
        found = in_pieces(model, ids, [6] + [1] * 8, cache_of(model, 2, bits=bits, residual=6))
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[0] < 0.01
    assert errors[0] < errors[1] / 4


def test_padding_is_hidden() -> None:
    model, ids = decoder("gemma2"), random_ids(3, 11)
    mask = torch.arange(11) >= torch.tensor([[0], [3], [1]])
    found = in_pieces(model, ids, [7] + [1] * 4, cache_of(model, 3, bits=8, residual=12), mask)
    assert near(found[mask], model(ids, mask=mask)[mask], 1e-12)


# --- what is quantized, and when


@every_bits
@pytest.mark.parametrize("pieces", [[1] * 21, [9] + [1] * 12, [6, 7, 8]], ids=str)
def test_attention_by_the_equation_of_each_group(bits: int, pieces: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 21, 8, dtype=torch.float64).unbind()
    k = k * torch.tensor([1, 1, 20, 1, 1, 1, 0.1, 1])  # channels of keys differ
    group, residual = 4, 8
    cache = QuantizedKVCache(TINY, 2, 21, bits=bits, group=group, residual=residual, dtype=torch.float64)
    n = 0
    for piece in pieces:
        due, old = n - n % residual, max(0, n - residual)  # tokens whose keys, whose values are quantized by now
        keys, values = k[:, :, : n + piece].clone(), v[:, :, : n + piece].clone()
        for first in range(0, due, group):
            tokens = slice(first, first + group)
            keys[:, :, tokens] = quantize_affine_reference(k[:, :, tokens].mT, bits=bits).mT  # one step for a channel
        for first in range(0, 8, group):
            channels = slice(first, first + group)
            values[:, :, :old, channels] = quantize_affine_reference(v[:, :, :old, channels], bits=bits)
        new = slice(n, n + piece)
        cache.begin(torch.zeros(2, piece, dtype=torch.long))
        found = cache.attend(0, q[:, :, new], k[:, :, new], v[:, :, new], how=how, scale=0.5)
        cache.end()
        mask = causal_mask(piece, n + piece)
        assert near(found, attention(q[:, :, new], keys, values, mask=mask, scale=0.5), 1e-12)
        n += piece
    assert cache.length == 21


@every_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [3, 8, 9, 16, 21, 29])
def test_bytes_are_those_of_the_formula(bits: int, dtype: torch.dtype, n: int) -> None:
    group, residual, p = 4, 8, dtype.itemsize
    cache = QuantizedKVCache(TINY, 3, 32, bits=bits, group=group, residual=residual, dtype=dtype)
    x = torch.randn(3, 2, n, 8, dtype=dtype)
    cache.begin(torch.zeros(3, n, dtype=torch.long))
    cache.attend(0, x, x, x, how=how)
    cache.end()
    small = (n - n % residual) + max(0, n - residual)  # keys and values that are quantized
    per_token = 3 * 2 * 8  # B, K, Dh
    assert cache.nbytes == per_token * (small * (bits / 8 + 2 * p / group) + (2 * n - small) * p)


def test_keys_need_their_channels_and_values_their_tokens() -> None:
    """With one loud channel, steps by channel lose less than steps by token: the reason for the two directions."""
    torch.manual_seed(0)
    k = torch.randn(64, 32)
    k[:, 3] *= 30
    by_channel = quantize_affine_reference(k.mT, bits=2).mT
    by_token = quantize_affine_reference(k, bits=2)
    quiet = [c for c in range(32) if c != 3]
    assert 4 * (by_channel - k)[:, quiet].norm() < (by_token - k)[:, quiet].norm()


def test_beams_change_their_rows_and_a_cleared_cache_is_as_new() -> None:
    model, ids = decoder("llama"), random_ids(3, 12)
    rows, cache, expected = torch.tensor([2, 0, 0]), *(cache_of(model, 3, bits=4, residual=6) for _ in range(2))
    mask = torch.arange(12) >= torch.tensor([[0], [3], [1]])
    model(ids[:, :11], mask=mask[:, :11], cache=cache)
    cache.reorder(rows)
    model(ids[rows, :11], mask=mask[rows, :11], cache=expected)
    assert near(model(ids[:, 11:], cache=cache), model(ids[:, 11:], cache=expected), 1e-12)
    cache.clear()
    assert (cache.length, cache.nbytes) == (0, 0)
    assert near(model(ids, mask=mask, cache=cache)[mask], model(ids, mask=mask)[mask], 1e-12)


def test_a_failed_call_changes_nothing() -> None:
    model, ids = decoder("llama"), random_ids(1, 9)
    cache, expected = (cache_of(model, 1, bits=4, residual=6) for _ in range(2))
    model(ids[:, :8], cache=cache)
    model(ids[:, :8], cache=expected)
    cache.begin(ids[:, 8:])
    cache.attend(0, *(torch.randn(1, n, 1, 6, dtype=torch.float64) for n in (4, 2, 2)), how=lambda q, *_, **__: q)
    assert cache.length == 8
    assert torch.equal(model(ids[:, 8:], cache=cache), model(ids[:, 8:], cache=expected))


# --- bad input


def test_a_full_cache_and_another_batch_are_refused_and_lose_nothing() -> None:
    model, ids = decoder("llama"), random_ids(1, 7)
    cache = cache_of(model, 1, bits=8, residual=12, length=6)
    model(ids[:, :5], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 5 tokens and has room for 6, expected room for 7"):
        model(ids[:, 5:], cache=cache)
    with pytest.raises(ValueError, match="batch size of ids is 2, batch size of the cache is 1"):
        model(ids[:, 5:6].expand(2, 1), cache=cache)
    assert near(model(ids[:, 5:6], cache=cache), model(ids[:, :6])[:, 5:], 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3, "group": 4, "residual": 4}, "bits is 3, expected 2, 4 or 8"),
        (
            {"bits": 4, "group": 6, "residual": 6},
            r"group = 6 does not divide size of x along dim -1 = 8 \(remainder 2\)",
        ),
        ({"bits": 4, "group": 4, "residual": 6}, r"group = 4 does not divide residual = 6 \(remainder 2\)"),
        ({"bits": 4, "group": 4, "residual": 0}, "residual is 0, expected at least 1"),
        ({"bits": 4, "group": 0, "residual": 4}, "group is 0, expected at least 1"),
        ({"bits": 2, "group": 2, "residual": 4}, "codes in a byte = 4 does not divide group = 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedKVCache(TINY, 1, 8, **options)


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (1, 0)])
def test_sizes_below_one_are_refused(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match="is 0, expected at least 1"):
        QuantizedKVCache(TINY, batch, length, bits=4, group=4, residual=4)


def test_models_dtypes_and_rows_that_do_not_fit_are_refused() -> None:
    bert = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    with pytest.raises(ValueError, match="model_type is 'bert', expected a decoder"):
        QuantizedKVCache(bert, 1, 4, bits=4, group=4, residual=4)
    cache = QuantizedKVCache(TINY, 2, 4, bits=4, group=4, residual=4)
    with pytest.raises(ValueError, match=r"shape of rows is \(1,\), expected shape is \(2,\)"):
        cache.reorder(torch.tensor([0]))
    cache.begin(torch.zeros(2, 1, dtype=torch.long))
    x = torch.zeros(2, 2, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dtype of the keys is torch\.float64, dtype of the cache is torch\.float32"):
        cache.attend(0, x, x, x, how=how)
