"""Blocks change nothing but where keys and values lie; and every block comes back.

For every family, blocks of 1, 2 and 16 tokens, sequences of different lengths, with and without padding, past windows.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from llm_study.core.config import BertConfig, LlamaConfig
from llm_study.nn.cache import KVCache
from llm_study.nn.paged import BlockPool, BlockTable, PackedKVCache, PagedKVCache
from tests.models.test_decoder import SIZES, W, near, random_ids
from tests.nn.test_cache import decoder, every_decoder, in_pieces

every_size = pytest.mark.parametrize("size", [1, 2, 16])
SMALL = LlamaConfig(**SIZES)


def pool_of(model: Any, size: int, tokens: int = 96) -> BlockPool:
    return BlockPool(model.config, tokens // size, size, dtype=torch.float64)


def tables(pool: BlockPool, count: int) -> list[BlockTable]:
    return [BlockTable(pool) for _ in range(count)]


def filled(pool: BlockPool, count: int) -> BlockTable:
    """Return a table that says that its tokens are there."""
    table = BlockTable(pool)
    table.reserve(count)
    table.length = count
    return table


# --- the law


@every_decoder
@every_size
@pytest.mark.parametrize("pieces", [[5] + [1] * 11, [16], [1, W, 2, 9], [W + 1, W + 3, 1, 7 - W]], ids=str)
def test_paged_equals_contiguous_equals_one_pass(family: str, size: int, pieces: list[int]) -> None:
    model, ids = decoder(family), random_ids(2, 16)
    pool = pool_of(model, size)
    pool.allocate(3)  # blocks do not begin at 0
    paged = in_pieces(model, ids, pieces, PagedKVCache(tables(pool, 2)))
    contiguous = in_pieces(model, ids, pieces, KVCache(model.config, 2, 16, dtype=torch.float64))
    assert near(paged, contiguous, 1e-12)
    assert near(paged, model(ids), 1e-12)


@every_decoder
@every_size
@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_rows_of_different_lengths_each_equal_one_pass(family: str, size: int, side: str) -> None:
    model, T = decoder(family), 6
    cache = PagedKVCache(tables(pool_of(model, size), 3))
    texts: list[list[int]] = [[], [], []]
    for seed, counts in enumerate([(6, 2, 0), (1, 0, 5), (3, 6, 1), (2, 4, 6)]):
        ids, mask = random_ids(3, T, seed=seed), torch.zeros(3, T, dtype=torch.bool)
        for row, count in enumerate(counts):
            where = {"left": range(T - count, T), "right": range(count), "between": range(0, T, 2)}[side]
            mask[row, list(where)] = True
        found = model(ids, mask=mask, cache=cache)
        assert found.isfinite().all()  # padding too, where a row has no token yet
        for row, text in enumerate(texts):
            text += ids[row][mask[row]].tolist()
            if mask[row].any():
                new = int(mask[row].sum())
                assert near(found[row][mask[row]], model(torch.tensor([text]))[0, -new:], 1e-12)
    assert cache.lengths == [len(text) for text in texts]


@every_decoder
@every_size
def test_a_packed_row_equals_each_sequence_alone(family: str, size: int) -> None:
    model = decoder(family)
    mine = tables(pool_of(model, size), 4)
    texts: list[list[int]] = [[], [], [], []]
    for step, counts in enumerate([{0: 7, 1: 1}, {0: 1, 2: 5, 1: 1}, {3: 6, 2: 3, 0: 6}, {0: 1, 1: 1, 2: 1, 3: 1}]):
        new = {row: random_ids(1, n, seed=9 * step + row)[0].tolist() for row, n in counts.items()}
        cache = PackedKVCache([mine[row] for row in new], list(counts.values()))
        ids = cache.pack(list(new.values()))
        found = model(ids, cache=cache, logits_to_keep=len(new))[0]
        for row, part in new.items():
            texts[row] += part
        for logits, row in zip(found, new, strict=True):
            assert near(logits, model(torch.tensor([texts[row]]))[0, -1], 1e-12)
    assert [table.length for table in mine] == [len(text) for text in texts]


def test_all_logits_of_a_packed_row_are_right() -> None:
    model, parts = decoder("gemma2"), [random_ids(1, n, seed=n) for n in (5, 3, 5, 1)]
    cache = PackedKVCache(tables(pool_of(model, 2), 4), [5, 3, 5, 1])
    found = model(cache.pack([part[0].tolist() for part in parts]), cache=cache)[0]
    alone = [model(part)[0] for part in parts]
    expected = torch.cat([x[:-1] for x in alone] + [x[-1:] for x in alone])
    assert near(found, expected, 1e-12)


@every_decoder
@every_size
def test_beams_share_blocks_and_go_on_alone(family: str, size: int) -> None:
    model, ids, more, rows = decoder(family), random_ids(3, 5), random_ids(3, 4, seed=9), [2, 0, 2]
    pool = pool_of(model, size)
    cache = PagedKVCache(tables(pool, 3))
    model(ids, cache=cache)
    cache.reorder(torch.tensor(rows))
    assert pool.n_blocks - pool.n_free == 2 * -(-5 // size)  # row 1 is gone, row 2 is there once
    found = in_pieces(model, more, [1, 1, 2], cache)
    assert near(found, model(torch.cat([ids[rows], more], dim=1))[:, 5:], 1e-12)
    cache.clear()
    assert (pool.n_free, cache.lengths) == (pool.n_blocks, [0, 0, 0])


@every_size
def test_a_fork_that_writes_leaves_the_other_alone(size: int) -> None:
    model, ids = decoder("llama"), random_ids(1, 5)
    table = BlockTable(pool_of(model, size))
    model(ids, cache=PagedKVCache([table]))
    other = table.fork()
    for goes_on, seed in ((other, 3), (table, 4)):
        more = random_ids(1, 3, seed=seed)
        found = model(more, cache=PagedKVCache([goes_on]))
        assert near(found, model(torch.cat([ids, more], dim=1))[:, 5:], 1e-12)
    shared = set(table.blocks) & set(other.blocks)
    assert len(shared) == 5 // size  # full blocks only
    assert len(table.blocks) == len(other.blocks) == -(-8 // size)


@every_size
@pytest.mark.parametrize("kept", [0, 1, 4, 6])
def test_a_truncated_sequence_goes_on_from_there(size: int, kept: int) -> None:
    model, ids, more = decoder("mistral"), random_ids(1, 6), random_ids(1, 4, seed=9)
    table = BlockTable(pool_of(model, size))
    model(ids, cache=PagedKVCache([table]))
    other = table.fork()  # still needs what the first forgets
    table.truncate(kept)
    assert len(table.blocks) == -(-kept // size)
    found = model(more, cache=PagedKVCache([table]))
    assert near(found, model(torch.cat([ids[:, :kept], more], dim=1))[:, kept:], 1e-12)
    assert near(model(more, cache=PagedKVCache([other])), model(torch.cat([ids, more], dim=1))[:, 6:], 1e-12)


def test_full_blocks_of_others_can_be_adopted() -> None:
    model, ids = decoder("qwen3"), random_ids(1, 9)
    pool = pool_of(model, 2)
    first, second = tables(pool, 2)
    model(ids, cache=PagedKVCache([first]))
    second.adopt(first.blocks[:3])
    assert (second.length, second.missing(3)) == (6, 2)
    assert near(model(ids[:, 6:], cache=PagedKVCache([second])), model(ids)[:, 6:], 1e-12)
    first.release()
    second.release()
    assert pool.n_free == pool.n_blocks


def test_half_precision_stays_half() -> None:
    model = decoder("llama").to(torch.bfloat16)
    pool = BlockPool(model.config, 8, 4, dtype=torch.bfloat16)
    assert pool.nbytes == 2 * 2 * 8 * 4 * 2 * 6 * 2  # k and v, layers, tokens, heads, width, bytes
    assert model(random_ids(1, 5), cache=PagedKVCache(tables(pool, 1))).dtype == torch.bfloat16


def test_nothing_flows_back_through_the_pool() -> None:
    model = decoder("llama").requires_grad_(True)
    pool = pool_of(model, 2)
    cache = PagedKVCache(tables(pool, 1))
    model(random_ids(1, 5), cache=cache)
    assert not any(x.requires_grad for x in (*pool.keys, *pool.values))


def test_a_call_that_fails_can_be_repeated() -> None:
    model, ids = decoder("llama"), random_ids(1, 5)
    cache = PagedKVCache(tables(pool_of(model, 2), 1))
    model(ids[:, :2], cache=cache)
    cache.begin(ids[:, 2:])  # and no end
    assert cache.lengths == [2]
    assert near(model(ids[:, 2:], cache=cache), model(ids)[:, 2:], 1e-12)


def test_the_fused_kernel_is_asked_for_where_it_serves() -> None:
    """No mask is made for a prompt from the start, nor for one new token each of equally long sequences."""
    masks: list[Tensor | None] = []

    def note(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None) -> Tensor:
        masks.append(mask)
        return q

    cache = PagedKVCache(tables(BlockPool(SMALL, 16, 4), 2))
    q, kv = torch.zeros(2, 4, 5, 6), torch.zeros(2, 2, 5, 6)
    for new in (5, 1, 2):
        cache.begin(torch.zeros(2, new, dtype=torch.long))
        cache.attend(0, q[:, :, :new], kv[:, :, :new], kv[:, :, :new], how=note)
        cache.end()
    assert [mask is None for mask in masks] == [True, True, False]


# --- owners and free blocks, against a simple model


class Blocks(RuleBasedStateMachine):
    """Tables that grow, fork, shrink and vanish, beside plain lists of the tokens that each should hold."""

    @initialize(size=st.integers(1, 4), count=st.integers(1, 12))
    def start(self, size: int, count: int) -> None:
        self.pool = BlockPool(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}), count, size)
        self.tables, self.texts, self.written = [], [], 0

    @rule()
    def open(self) -> None:
        self.tables.append(BlockTable(self.pool))
        self.texts.append([])

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        if self.tables:
            i = data.draw(st.integers(0, len(self.tables) - 1))
            self.tables.append(self.tables[i].fork())
            self.texts.append(list(self.texts[i]))

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """Write a number into each place; rows get different numbers of new tokens."""
        if not self.tables:
            return
        rows = data.draw(st.lists(st.integers(0, len(self.tables) - 1), min_size=1, max_size=3, unique=True))
        counts = [data.draw(st.integers(0, 4)) for _ in rows]
        mask = torch.arange(4) < torch.tensor(counts)[:, None]
        cache, before = PagedKVCache([self.tables[i] for i in rows]), self.state()
        try:
            cache.begin(torch.zeros(len(rows), 4, dtype=torch.long), mask)
        except ValueError:
            assert self.state() == before
            assert self.needed(rows, counts) > self.pool.n_free
            return
        new = self.written + torch.arange(4.0 * len(rows)).view(len(rows), 1, 4, 1)
        self.written += new.numel()
        k = new.expand(-1, 2, -1, 6)
        cache.attend(0, torch.zeros(len(rows), 4, 4, 6), k, -k, how=lambda q, k, v, **_: q)
        cache.end()
        for row, i in enumerate(rows):
            self.texts[i] += new[row].flatten()[mask[row]].tolist()

    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        if self.tables:
            i = data.draw(st.integers(0, len(self.tables) - 1))
            length = data.draw(st.integers(0, len(self.texts[i])))
            self.tables[i].truncate(length)
            del self.texts[i][length:]

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.tables:
            i = data.draw(st.integers(0, len(self.tables) - 1))
            self.tables.pop(i).release()
            self.texts.pop(i)

    def state(self) -> Any:
        owners = [self.pool.references(i) for i in range(self.pool.n_blocks)]
        return owners, [(list(t.blocks), t.length) for t in self.tables]

    def needed(self, rows: list[int], counts: list[int]) -> int:
        """Return how many free blocks the rows need, by growing one after the other without a limit."""
        size, owners = self.pool.block_size, [self.pool.references(i) for i in range(self.pool.n_blocks)]
        total = 0
        for i, count in zip(rows, counts, strict=True):
            table = self.tables[i]
            total += max(-(-(table.length + count) // size) - len(table.blocks), 0)
            if count and table.length % size:
                tail = table.blocks[table.length // size]
                total += owners[tail] > 1
                owners[tail] -= owners[tail] > 1
        return total

    @invariant()
    def every_token_is_where_it_should_be(self) -> None:
        for table, text in zip(getattr(self, "tables", []), getattr(self, "texts", []), strict=True):
            assert table.length == len(text)
            places = [(table.blocks[i // self.pool.block_size], i % self.pool.block_size) for i in range(len(text))]
            assert [float(self.pool.keys[0][place][0, 0]) for place in places] == text
            assert [float(self.pool.values[0][place][1, 5]) for place in places] == [-x for x in text]

    @invariant()
    def owners_are_counted(self) -> None:
        if hasattr(self, "pool"):
            blocks = [block for table in self.tables for block in table.blocks]
            owners = [blocks.count(i) for i in range(self.pool.n_blocks)]
            assert [self.pool.references(i) for i in range(self.pool.n_blocks)] == owners
            assert self.pool.n_free == owners.count(0)
            for table in self.tables:
                assert len(set(table.blocks)) == len(table.blocks) >= -(-table.length // self.pool.block_size)

    def teardown(self) -> None:
        for table in getattr(self, "tables", []):
            table.release()
        if hasattr(self, "pool"):
            assert self.pool.n_free == self.pool.n_blocks


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# --- bad input


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0), (-1, 4), (4, -2)])
def test_sizes_that_make_no_sense_are_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"is {min(count, size)}, expected at least 1"):
        BlockPool(SMALL, count, size)


def test_a_model_that_is_no_decoder_is_refused() -> None:
    bert = BertConfig(vocab_size=29, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="decoder"):
        BlockPool(bert, 4, 4)


def test_blocks_that_are_not_there_are_refused() -> None:
    pool = BlockPool(SMALL, 4, 2)
    taken = pool.allocate(3)
    with pytest.raises(ValueError, match="2 blocks are asked for, 1 of 4 are free"):
        pool.allocate(2)
    with pytest.raises(ValueError, match="is -1, expected at least 0"):
        pool.allocate(-1)
    with pytest.raises(ValueError, match="number of owners of block 3 is 0, expected at least 1"):
        pool.share([taken[0], 3])
    with pytest.raises(ValueError, match="number of owners of block 1 is 1, expected at least 2"):
        pool.release([taken[0], taken[1], taken[1]])
    assert ([pool.references(i) for i in range(4)], pool.n_free) == ([1, 1, 1, 0], 1)  # nothing has changed
    pool.release(taken)
    with pytest.raises(ValueError, match="number of owners of block 0 is 0, expected at least 1"):
        pool.release(taken)
    assert pool.n_free == 4


def test_a_full_pool_is_refused_before_anything_changes() -> None:
    model = decoder("llama")
    pool = BlockPool(model.config, 4, 2, dtype=torch.float64)
    cache = PagedKVCache(tables(pool, 2))
    model(random_ids(2, 2), cache=cache)
    for full in (cache, PackedKVCache(cache.tables, [3, 3])):
        ids = random_ids(2, 3) if full is cache else random_ids(1, 6)
        with pytest.raises(ValueError, match="6 new tokens need 4 more blocks of 2, 2 of 4 are free"):
            full.begin(ids)
        assert (cache.lengths, [len(t.blocks) for t in cache.tables], pool.n_free) == ([2, 2], [1, 1], 2)
    model(random_ids(2, 2), cache=cache)  # this just fits


def test_forks_that_need_one_copy_less_than_they_are_fit() -> None:
    pool = BlockPool(SMALL, 3, 4)
    table = filled(pool, 2)
    cache = PagedKVCache([table, table.fork(), table.fork()])
    cache.begin(torch.zeros(3, 1, dtype=torch.long))
    assert sorted(block for t in cache.tables for block in t.blocks) == [0, 1, 2]


def test_what_does_not_fit_the_cache_is_refused() -> None:
    model = decoder("llama")
    pool = pool_of(model, 4)
    cache = PagedKVCache(tables(pool, 2))
    with pytest.raises(ValueError, match="batch size of ids is 3, number of sequences of the cache is 2"):
        model(random_ids(3, 2), cache=cache)
    with pytest.raises(ValueError, match=r"\(5,\), expected 2 dimensions"):
        cache.begin(torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape of mask is \(2, 3\), shape of ids is \(2, 4\)"):
        cache.begin(random_ids(2, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"torch.int64, expected torch.bool"):
        cache.begin(random_ids(2, 4), torch.ones(2, 4, dtype=torch.long))
    q = torch.zeros(2, 4, 1, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="call begin"):
        cache.attend(0, q, q[:, :2], q[:, :2], how=lambda q, *_, **__: q)
    cache.begin(random_ids(2, 1))
    with pytest.raises(ValueError, match=r"shape of k is \(2, 4, 1, 6\), .* is \(2, 2, 1, 6\)"):
        cache.attend(0, q, q, q, how=lambda q, *_, **__: q)
    with pytest.raises(ValueError, match=r"dtype of k is torch.float32, dtype of the pool is torch.float64"):
        cache.attend(0, q, q[:, :2].float(), q[:, :2].float(), how=lambda q, *_, **__: q)


def test_tables_that_do_not_go_together_are_refused() -> None:
    pool, other = BlockPool(SMALL, 4, 2), BlockPool(SMALL, 4, 2)
    table = BlockTable(pool)
    with pytest.raises(ValueError, match="number of tables is 0, expected at least 1"):
        PagedKVCache([])
    with pytest.raises(ValueError, match="number of different tables is 1, number of tables is 2"):
        PagedKVCache([table, table])
    with pytest.raises(ValueError, match="the tables are of 2 pools, expected 1"):
        PagedKVCache([table, BlockTable(other)])
    with pytest.raises(ValueError, match="number of counts is 1, number of tables is 2"):
        PackedKVCache(tables(pool, 2), [1])
    with pytest.raises(ValueError, match="number of new tokens is 0, expected at least 1"):
        PackedKVCache(tables(pool, 2), [1, 0])
    packed = PackedKVCache(tables(pool, 2), [1, 2])
    with pytest.raises(ValueError, match=r"numbers of new tokens is \[2, 1\], counts of the cache is \[1, 2\]"):
        packed.pack([[5, 6], [7]])
    with pytest.raises(ValueError, match=r"shape of ids is \(1, 2\), shape of the row \(1, N\) is \(1, 3\)"):
        packed.begin(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"a mask \(1, 3\) is given, but a packed row has no padding"):
        packed.begin(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


def test_tables_refuse_what_they_cannot_do() -> None:
    pool = BlockPool(SMALL, 4, 2)
    table = filled(pool, 3)
    with pytest.raises(ValueError, match="length of the sequence is 3, expected at least 4"):
        table.truncate(4)
    with pytest.raises(ValueError, match="length is -1, expected at least 0"):
        table.truncate(-1)
    with pytest.raises(ValueError, match="the table has 2 blocks, expected 0"):
        table.adopt([0])
    with pytest.raises(ValueError, match="number of owners of block 3 is 0"):
        BlockTable(pool).adopt([3])
    with pytest.raises(ValueError, match="4 blocks are asked for, 2 of 4 are free"):
        table.reserve(9)
    assert (table.blocks, pool.n_free) == ([0, 1], 2)
