"""A cache that forgets: exact while it need not, and after that as if what the policy gave up had been masked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import BertConfig, GPT2Config
from llm_study.functional.attention import attention, attention_weights, causal_mask
from llm_study.nn.cache import KVCache
from llm_study.nn.eviction import EvictingKVCache, HeavyHitters, ObservationWindow, SinksAndRecent
from tests.models.test_decoder import FAMILIES, near, random_ids
from tests.nn.test_cache import decoder, in_pieces

POLICIES: dict[str, Callable[[int], Any]] = {
    "h2o": lambda budget: HeavyHitters(budget=budget, recent=2),
    "sinks": lambda budget: SinksAndRecent(budget=budget, sinks=2),
    "snapkv": lambda budget: ObservationWindow(budget=budget, window=2, kernel=3),
}
every_policy = pytest.mark.parametrize("policy", POLICIES)
every_decoder = pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])


def cache_of(model: Any, batch: int, policy: Any) -> EvictingKVCache:
    return EvictingKVCache(model.config, batch, policy, dtype=torch.float64)


# --- exact while there is room


@every_policy
@every_decoder
@pytest.mark.parametrize("pieces", [[5] + [1] * 7, [3, 6, 3], [12]], ids=str)
def test_with_a_budget_for_all_it_is_the_full_cache(policy: str, family: str, pieces: list[int]) -> None:
    model, ids = decoder(family), random_ids(2, 12)
    found = in_pieces(model, ids, pieces, cache_of(model, 2, POLICIES[policy](12)))
    full = in_pieces(model, ids, pieces, KVCache(model.config, 2, 12, dtype=torch.float64))
    assert near(found, full, 1e-12)
    assert near(found, model(ids), 1e-12)


@every_policy
def test_padding_is_hidden(policy: str) -> None:
    model, ids = decoder("gemma2"), random_ids(3, 12)
    mask = torch.arange(12) >= torch.tensor([[0], [3], [1]])
    found = in_pieces(model, ids, [7] + [1] * 5, cache_of(model, 3, POLICIES[policy](12)), mask)
    assert near(found[mask], model(ids, mask=mask)[mask], 1e-12)


@every_policy
def test_a_cleared_cache_is_as_new(policy: str) -> None:
    model, ids = decoder("llama"), random_ids(2, 9)
    cache = cache_of(model, 2, POLICIES[policy](4))
    first = in_pieces(model, ids, [6, 1, 1, 1], cache)
    cache.clear()
    assert (cache.length, cache.nbytes) == (0, 0)
    assert torch.equal(in_pieces(model, ids, [6, 1, 1, 1], cache), first)


# --- what is kept


def test_sinks_and_recent_are_the_positions_that_the_policy_says() -> None:
    model, cache = decoder("llama"), cache_of(decoder("llama"), 1, SinksAndRecent(budget=5, sinks=2))
    for n, token in enumerate(random_ids(1, 12)[0], start=1):
        model(token.view(1, 1), cache=cache)
        expected = list(range(n)) if n <= 5 else [0, 1, n - 3, n - 2, n - 1]
        for layer in range(2):
            assert cache.positions(layer).tolist() == [[expected] * 2]


def test_sinks_of_a_padded_row_are_its_first_real_tokens() -> None:
    model, ids = decoder("llama"), random_ids(2, 9)
    cache = cache_of(model, 2, SinksAndRecent(budget=4, sinks=1))
    model(ids, mask=torch.arange(9) >= torch.tensor([[0], [3]]), cache=cache)
    assert cache.positions(0)[:, 0].tolist() == [[0, 6, 7, 8], [3, 6, 7, 8]]


class OnePass:
    """A cache that runs a whole text at once, each query seeing what is allowed ``(T, T)``: the second formula."""

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.arange(ids.shape[1])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, how: Any, scale: float | None = None) -> Tensor:
        return how(q, k, v, mask=self.allowed, scale=scale)

    def end(self) -> None:
        pass


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_streaming_is_one_pass_under_a_mask(family: str) -> None:
    model, ids, T = decoder(family), random_ids(2, 14), 14
    i, j = torch.arange(T)[:, None], torch.arange(T)
    allowed = causal_mask(T) & ((j < 2) | (j >= i - 3))  # two sinks, the three latest of the past, itself
    if family == "mistral":  # its own window of 4 hides the sinks again
        allowed &= j > i - 4
    found = in_pieces(model, ids, [1] * T, cache_of(model, 2, SinksAndRecent(budget=5, sinks=2)))
    assert near(found, model(ids, cache=OnePass(allowed)), 1e-12)


def steps(cache: EvictingKVCache, q: Tensor, k: Tensor, v: Tensor, pieces: list[int]) -> Tensor:
    """Run one layer of plain attention in pieces."""

    def how(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None) -> Tensor:
        mask = causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
        return attention(q, k, v, mask=mask, scale=scale)

    out = []
    for qs, ks, vs in zip(*(x.split(pieces, dim=2) for x in (q, k, v)), strict=True):
        cache.begin(torch.zeros(q.shape[0], qs.shape[2], dtype=torch.long))
        out.append(cache.attend(0, qs, ks, vs, how=how, scale=0.7))
        cache.end()
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("pieces", [[1] * 12, [5] + [1] * 7, [4, 3, 5]], ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_heavy_hitters_by_a_loop_over_sets(pieces: list[int], group: int) -> None:
    torch.manual_seed(0)
    H, budget, recent = 2 * group, 4, 2
    q = 3 * torch.randn(1, H, 12, 6, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 12, 6, dtype=torch.float64).unbind()
    config = GPT2Config(vocab_size=9, n_positions=16, n_embd=12, n_layer=1, n_head=2)
    cache = EvictingKVCache(config, 1, HeavyHitters(budget=budget, recent=recent), dtype=torch.float64)
    found = steps(cache, q, k, v, pieces)
    for head in range(2):
        kept: list[int] = []
        score: dict[int, float] = {}
        first = 0
        for piece in pieces:
            for i in range(first, first + piece):
                seen = [*kept, *range(first, i + 1)]
                for h in range(head * group, (head + 1) * group):
                    raw = torch.stack([(0.7 * q[0, h, i] @ k[0, head, j]).exp() for j in seen])
                    p = raw / raw.sum()
                    expected = sum(w * v[0, head, j] for w, j in zip(p, seen, strict=True))
                    assert torch.allclose(found[0, h, i], expected, atol=1e-12)
                    for w, j in zip(p.tolist(), seen, strict=True):
                        score[j] = score.get(j, 0.0) + w
            kept = [*kept, *range(first, first + piece)]
            if len(kept) > budget:
                late = kept[-recent:]
                hitters = sorted(kept[:-recent], key=lambda j: -score[j])[: budget - recent]
                kept = sorted(hitters) + late
            first += piece
        assert cache.positions(0)[0, head].tolist() == kept


def test_the_weights_are_those_of_the_model() -> None:
    """The soft cap of Gemma 2 is in them; plain weights of the same queries and keys are others."""
    seen: list[Tensor] = []

    class Spy(SinksAndRecent):
        def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
            seen.append(weights())
            return super().score(past, new, weights)

    model = decoder("gemma2")
    model(random_ids(1, 3), cache=cache_of(model, 1, Spy(budget=9, sinks=1)))
    weights = seen[0]
    assert weights.shape == (1, 4, 3, 3)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 4, 3, dtype=torch.float64))
    assert (weights.triu(1) == 0).all()

    caught: list[Tensor] = []

    class Catch(OnePass):
        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
            caught.append(attention_weights(q, k, mask=causal_mask(3), scale=how["scale"]))
            capped = (how["scale"] * q @ k.repeat_interleave(2, 1).mT / 2).tanh() * 2  # attn_logit_softcapping = 2
            caught.append((capped + causal_mask(3).log()).softmax(-1))
            return super().attend(layer, q, k, v, **how)

    model(random_ids(1, 3), cache=Catch(causal_mask(3)))
    assert torch.allclose(weights, caught[1])
    assert not torch.allclose(weights, caught[0], atol=1e-3)


def test_padding_does_not_vote() -> None:
    seen: list[Tensor] = []

    class Spy(SinksAndRecent):
        def score(self, past: Tensor, new: int, weights: Callable[[], Tensor]) -> Tensor:
            seen.append(weights().sum(-1))
            return super().score(past, new, weights)

    model, mask = decoder("llama"), torch.arange(6) < torch.tensor([[6], [4]])
    model(random_ids(2, 6), mask=mask, cache=cache_of(model, 2, Spy(budget=9, sinks=1)))
    assert torch.allclose(seen[0], mask[:, None].double().expand(2, 4, 6))


def test_snapkv_compresses_the_prompt_and_keeps_what_follows() -> None:
    model, ids = decoder("llama"), random_ids(1, 15)
    cache = cache_of(model, 1, ObservationWindow(budget=5, window=3))
    model(ids[:, :11], cache=cache)
    kept = cache.positions(1)
    assert kept.shape == (1, 2, 5)
    assert kept[..., 2:].tolist() == [[[8, 9, 10]] * 2]
    for n in range(11, 15):
        model(ids[:, n : n + 1], cache=cache)
    assert torch.equal(cache.positions(1), torch.cat([kept, torch.arange(11, 15).expand(1, 2, 4)], dim=2))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_budget(policy: str, dtype: torch.dtype) -> None:
    model = decoder("qwen2").to(dtype)
    cache = EvictingKVCache(model.config, 3, POLICIES[policy](6), dtype=dtype)
    for n in (4, 9):
        cache.clear()
        model(random_ids(3, n), cache=cache)
        assert cache.nbytes == 2 * 2 * 3 * 2 * min(n, 6) * 6 * dtype.itemsize  # K and V, layers, B, heads, slots, Dh


@every_policy
def test_beams_change_their_rows(policy: str) -> None:
    model, ids = decoder("llama"), random_ids(3, 9)
    rows, cache, expected = torch.tensor([2, 0, 0]), *(cache_of(model, 3, POLICIES[policy](5)) for _ in range(2))
    model(ids[:, :8], cache=cache)
    cache.reorder(rows)
    model(ids[rows, :8], cache=expected)
    assert near(model(ids[:, 8:], cache=cache), model(ids[:, 8:], cache=expected), 1e-12)


@every_policy
def test_a_failed_call_changes_nothing(policy: str) -> None:
    model, ids = decoder("llama"), random_ids(1, 9)
    cache, expected = (cache_of(model, 1, POLICIES[policy](4)) for _ in range(2))
    model(ids[:, :8], cache=cache)
    model(ids[:, :8], cache=expected)
    cache.begin(ids[:, 8:])
    cache.attend(0, *(torch.randn(1, n, 1, 6, dtype=torch.float64) for n in (4, 2, 2)), how=attention)
    assert cache.length == 8
    assert torch.equal(model(ids[:, 8:], cache=cache), model(ids[:, 8:], cache=expected))


# --- bad input


def test_a_batch_of_another_size_is_refused() -> None:
    model = decoder("llama")
    cache = cache_of(model, 2, SinksAndRecent(budget=4, sinks=1))
    with pytest.raises(ValueError, match="batch size of ids is 3, batch size of the cache is 2, expected the same"):
        model(random_ids(3, 4), cache=cache)
    assert cache.length == 0


def test_masks_keys_and_dtypes_that_do_not_fit_are_refused() -> None:
    model, ids = decoder("llama"), random_ids(2, 3)
    cache = EvictingKVCache(model.config, 2, SinksAndRecent(budget=4, sinks=1))
    with pytest.raises(ValueError, match=r"mask has dtype torch\.int64, expected torch\.bool"):
        cache.begin(ids, torch.ones_like(ids))
    with pytest.raises(ValueError, match=r"shape of mask is \(2, 2\), shape of ids is \(2, 3\)"):
        cache.begin(ids, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"dtype of the keys is torch\.float64, dtype of the cache is torch\.float32"):
        model(ids, cache=cache)
    cache.begin(ids)
    x = torch.zeros(2, 2, 4, 6)
    with pytest.raises(ValueError, match="number of new keys is 4, number of tokens that begin was told is 3"):
        cache.attend(0, x, x, x, how=attention)


@pytest.mark.parametrize("rows", [torch.tensor([0]), torch.tensor([[0, 1]])])
def test_rows_must_be_one_for_each_sequence(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape of rows is .*, expected shape is \(2,\)"):
        cache_of(decoder("llama"), 2, SinksAndRecent(budget=4, sinks=1)).reorder(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeavyHitters(budget=1, recent=2), "budget is 1, expected at least 2: it includes the 2 latest"),
        (lambda: HeavyHitters(budget=1, recent=0), "recent is 0, expected at least 1"),
        (lambda: SinksAndRecent(budget=4, sinks=4), "budget is 4, expected at least 5"),
        (lambda: SinksAndRecent(budget=4, sinks=-1), "sinks is -1, expected at least 0"),
        (lambda: ObservationWindow(budget=1, window=2), "budget is 1, expected at least 2"),
        (lambda: ObservationWindow(budget=1, window=0), "window is 0, expected at least 1"),
        (lambda: ObservationWindow(budget=4, window=2, kernel=2), "kernel is 2, expected an odd number"),
    ],
)
def test_policies_that_make_no_sense_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_and_models_that_make_no_sense_are_refused() -> None:
    policy = SinksAndRecent(budget=4, sinks=1)
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        EvictingKVCache(decoder("llama").config, 0, policy)
    bert = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    with pytest.raises(ValueError, match="model_type is 'bert', expected a decoder"):
        EvictingKVCache(bert, 1, policy)
