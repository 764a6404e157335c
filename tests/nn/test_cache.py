"""A cache changes nothing but the time: whatever the pieces in which a text is given, the logits are those of one pass.

For every family, past the window and past the wrap of its ring, with padding, and for beams that change their rows.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import BertConfig, GPT2Config, LlamaConfig
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.nn.cache import KVCache
from tests.models.test_decoder import FAMILIES, SIZES, V, W, model_of, near, random_ids

GPT2 = GPT2Config(vocab_size=V, n_positions=32, n_embd=12, n_layer=2, n_head=2, initializer_range=0.5)
WINDOWED = ["mistral", "qwen2", "gemma2", "gemma3"]
every_decoder = pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])


def decoder(family: str) -> Any:
    """Return a model in float64 whose norms and biases are random."""
    if family != "gpt2":
        return model_of(family).requires_grad_(False)
    torch.manual_seed(0)
    model = GPT2ForCausalLM(GPT2).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def cache_of(model: Any, batch: int, length: int = 24) -> KVCache:
    return KVCache(model.config, batch, length, dtype=torch.float64)


def in_pieces(model: Any, ids: Tensor, pieces: list[int], cache: KVCache, mask: Tensor | None = None) -> Tensor:
    """Return the logits of a text that is given piece by piece."""
    assert sum(pieces) == ids.shape[1]
    masks = [None] * len(pieces) if mask is None else mask.split(pieces, dim=1)
    parts = zip(ids.split(pieces, dim=1), masks, strict=True)
    return torch.cat([model(part, mask=real, cache=cache) for part, real in parts], dim=1)


# --- the law


@every_decoder
@pytest.mark.parametrize(
    "pieces",
    [[5] + [1] * 11, [1] * 16, [2, 9, 1, 4], [W, 1, W, 7], [W - 1, 2, 1, 10], [16], [3, W + 3, W + 2]],
    ids=str,
)
def test_pieces_equal_one_pass(family: str, pieces: list[int]) -> None:
    model = decoder(family)
    ids = random_ids(2, sum(pieces))
    cache = cache_of(model, 2)
    assert near(in_pieces(model, ids, pieces, cache), model(ids), 1e-12)
    assert cache.length == ids.shape[1]


@every_decoder
@pytest.mark.parametrize("pieces", [[6] + [1] * 8, [3, 7, 1, 3], [14]], ids=str)
@pytest.mark.parametrize("padding", ["left", "right", "between"])
def test_pieces_equal_one_pass_with_padding(family: str, pieces: list[int], padding: str) -> None:
    model, ids = decoder(family), random_ids(3, 14)
    mask = torch.ones(3, 14, dtype=torch.bool)
    where = {"left": [slice(0, 0), slice(0, 4), slice(0, 1)], "right": [slice(12, 14), slice(0, 0), slice(9, 14)]}
    for row, hidden in zip(mask, where.get(padding, [slice(2, 5), slice(7, 8), slice(0, 0)]), strict=True):
        row[hidden] = False
    found = in_pieces(model, ids, pieces, cache_of(model, 3), mask)
    assert near(found[mask], model(ids, mask=mask)[mask], 1e-12)
    unmasked = in_pieces(model, ids, pieces, cache_of(model, 3))
    assert padding == "right" or not near(unmasked[mask], found[mask], 1e-3)  # else the padding is read


@every_decoder
def test_positions_that_are_named_count(family: str) -> None:
    model, ids, positions = decoder(family), random_ids(2, 9), 2 * torch.arange(9).expand(2, 9)
    cache = cache_of(model, 2)
    parts = [model(ids[:, a:b], positions=positions[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 9))]
    assert near(torch.cat(parts, dim=1), model(ids, positions=positions), 1e-12)
    assert not near(torch.cat(parts, dim=1), model(ids), 1e-3)


@every_decoder
def test_the_last_logits_are_those_of_all(family: str) -> None:
    model, ids = decoder(family), random_ids(2, 7)
    for kept in (1, 3, 7):
        assert near(model(ids, logits_to_keep=kept), model(ids)[:, -kept:], 1e-12)


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, 3 * W, 3 * W + 2])
def test_a_ring_keeps_the_last_tokens_of_its_window_only(family: str, length: int) -> None:
    model = decoder(family)
    cache = cache_of(model, 1)
    ids = random_ids(1, length)
    model(ids, cache=cache)
    whole = cache_of(model, 1)
    whole.keys = [x.new_zeros(*x.shape[:2], 24, x.shape[3]) for x in whole.keys]  # room for all, where windows mask
    whole.values = [torch.zeros_like(x) for x in whole.keys]
    model(ids, cache=whole)
    for i, layer in enumerate(model.config.kv_layers()):
        slots = cache.keys[i].shape[2]
        assert slots == (24 if layer.window is None else W)
        for p in range(max(0, length - slots), length):
            assert torch.equal(cache.keys[i][:, :, p % slots], whole.keys[i][:, :, p])
            assert torch.equal(cache.values[i][:, :, p % slots], whole.values[i][:, :, p])


# --- what a cache can do besides


@every_decoder
@pytest.mark.parametrize("length", [3, 9])
def test_reordered_rows_go_on_from_the_rows_they_come_from(family: str, length: int) -> None:
    model, ids, rows = decoder(family), random_ids(3, length), torch.tensor([2, 0, 2])
    mask = torch.arange(length) >= torch.tensor([0, 1, 2])[:, None]
    cache, more = cache_of(model, 3), random_ids(3, 4, seed=9)
    in_pieces(model, ids, [length - 1, 1], cache, mask)
    cache.reorder(rows)
    found = in_pieces(model, more, [1, 1, 2], cache)
    together = torch.cat([mask[rows], torch.ones(3, 4, dtype=torch.bool)], dim=1)
    assert near(found, model(torch.cat([ids[rows], more], dim=1), mask=together)[:, length:], 1e-12)


@every_decoder
@pytest.mark.parametrize(("stored", "kept"), [(W, 1), (W, W - 1), (W - 1, 0), (10, 9), (10, 10)])
def test_what_was_truncated_is_forgotten(family: str, stored: int, kept: int) -> None:
    model, ids, more = decoder(family), random_ids(2, stored), random_ids(2, 5, seed=9)
    cache = cache_of(model, 2)
    model(ids, cache=cache)
    cache.truncate(kept)
    assert cache.length == kept
    found = in_pieces(model, more, [1, 4], cache)
    assert near(found, model(torch.cat([ids[:, :kept], more], dim=1))[:, kept:], 1e-12)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_ring_that_has_wrapped_gives_back_one_token_only(family: str) -> None:
    model = decoder(family)
    cache = cache_of(model, 1)
    model(random_ids(1, W + 3), cache=cache)
    with pytest.raises(ValueError, match=rf"length is {W + 1}, expected {W + 2} or more: a window of {W} tokens has"):
        cache.truncate(W + 1)
    assert cache.length == W + 3
    cache.truncate(W + 2)


def test_a_cleared_cache_is_as_new() -> None:
    model, ids = decoder("mistral"), random_ids(2, 9)
    cache = cache_of(model, 2)
    model(ids, mask=torch.arange(9) > torch.tensor([[3], [0]]), cache=cache)
    cache.clear()
    assert near(in_pieces(model, ids, [4, 5], cache), model(ids), 1e-12)


def test_bytes_are_those_of_the_shapes() -> None:
    model = decoder("qwen2")  # one layer with a window, one without; 2 heads of width 6
    assert KVCache(model.config, 3, 24, dtype=torch.float32).nbytes == 2 * 3 * 2 * 6 * (24 + W) * 4
    assert KVCache(model.config, 3, 2, dtype=torch.bfloat16).nbytes == 2 * 3 * 2 * 6 * (2 + 2) * 2


def test_no_gradient_is_kept() -> None:
    model = decoder("llama").requires_grad_(True)
    cache = cache_of(model, 1)
    model(random_ids(1, 3), cache=cache)
    assert not any(x.requires_grad for x in (*cache.keys, *cache.values))


# --- bad input


def test_a_batch_of_another_size_is_refused() -> None:
    model = decoder("llama")
    cache = cache_of(model, 2)
    with pytest.raises(ValueError, match="batch size of ids is 3, batch size of the cache is 2, expected the same"):
        model(random_ids(3, 4), cache=cache)
    assert cache.length == 0


@every_decoder
def test_a_full_cache_is_refused_and_loses_nothing(family: str) -> None:
    model, ids = decoder(family), random_ids(1, 7)
    cache = cache_of(model, 1, length=6)
    model(ids[:, :5], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 5 tokens and has room for 6, expected room for 7"):
        model(ids[:, 5:], cache=cache)
    assert near(model(ids[:, 5:6], cache=cache), model(ids[:, :6])[:, 5:], 1e-12)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    cache, ids = KVCache(LlamaConfig(**SIZES), 2, 8), random_ids(2, 3)
    with pytest.raises(ValueError, match=r"mask has dtype torch\.int64, expected torch\.bool"):
        cache.begin(ids, torch.ones_like(ids))
    with pytest.raises(ValueError, match=r"shape of mask is \(2, 2\), shape of ids is \(2, 3\)"):
        cache.begin(ids, torch.ones(2, 2, dtype=torch.bool))


def test_another_dtype_is_refused() -> None:
    model = decoder("gpt2")
    message = r"dtype of the keys is torch\.float64, dtype of the cache is torch\.float32"
    with pytest.raises(ValueError, match=message):
        model(random_ids(1, 3), cache=KVCache(GPT2, 1, 8))


def test_positions_beyond_the_learned_ones_are_refused_and_lose_nothing() -> None:
    model, ids = decoder("gpt2"), random_ids(1, 33)
    cache = cache_of(model, 1, length=40)
    model(ids[:, :31], cache=cache)
    with pytest.raises(ValueError, match="n_positions is 32, expected at least 33"):
        model(ids[:, 31:], cache=cache)
    assert near(model(ids[:, 31:32], cache=cache), model(ids[:, :32])[:, 31:], 1e-12)


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (1, 0)])
def test_sizes_below_one_are_refused(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match="is 0, expected at least 1"):
        KVCache(GPT2, batch, length)


def test_a_model_that_is_no_decoder_is_refused() -> None:
    bert = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    with pytest.raises(ValueError, match="model_type is 'bert', expected a decoder"):
        KVCache(bert, 1, 4)


@pytest.mark.parametrize("rows", [torch.tensor([0]), torch.tensor([[0, 1]])])
def test_rows_must_be_one_for_each_sequence(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape of rows is .*, expected shape is \(2,\)"):
        KVCache(GPT2, 2, 4).reorder(rows)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_cache_can_only_be_cut_to_what_it_holds(length: int) -> None:
    cache = KVCache(GPT2, 1, 8)
    cache.begin(torch.zeros(1, 3, dtype=torch.long))
    cache.end()
    with pytest.raises(ValueError, match=rf"length is {length}, expected 0 to 3"):
        cache.truncate(length)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kept", [0, 4, -1])
def test_logits_of_positions_that_are_not_there_are_refused(family: str, kept: int) -> None:
    with pytest.raises(ValueError, match=rf"logits_to_keep is {kept}, expected 1 to 3"):
        decoder(family)(random_ids(1, 3), logits_to_keep=kept)
