"""Keys and values in blocks: sequences of any length share one pool, and those that begin alike share blocks.

A :class:`BlockPool` holds the memory of all layers, cut into blocks of a few tokens. A :class:`BlockTable` says which
blocks hold one sequence, as a page table says where the pages of a process lie. :class:`PagedKVCache` lets a model see
a batch of tables as a cache, and :class:`PackedKVCache` does so without padding, for sequences that take different
numbers of new tokens.

Layers with a sliding window keep all their keys here: a block holds the same tokens in every layer, so it goes back to
the pool only when the whole sequence does. What lies before the window is masked.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_boolean, check_equal, check_ndim
from llm_study.core.config import ModelConfig

__all__ = ["BlockPool", "BlockTable", "PagedKVCache", "PackedKVCache"]


class BlockPool:
    """Memory for keys and values of all layers, in blocks that are handed out, shared and given back.

    A block is a number. Block ``i`` holds the keys and values of ``block_size`` consecutive tokens in every layer. Each
    block counts its owners; it is free when there is none.

    Args:
        config: the configuration of a decoder, whose ``kv_layers()`` says what each layer keeps.
        n_blocks: number of blocks.
        block_size: tokens in a block. Small blocks waste little, large ones are read in longer runs.
        dtype: dtype of keys and values, that of the model.
        device: where they lie. Default: torch's default device.

    Attributes:
        layers: heads, width and window of each layer.
        n_blocks: number of blocks.
        block_size: tokens in a block.
        keys: ``(n_blocks, block_size, K, Dh)`` keys of each layer.
        values: ``(n_blocks, block_size, K, Dh)`` values of each layer.

    Raises:
        ValueError: if ``n_blocks`` or ``block_size`` is below 1, or the configuration is that of no decoder.

    Cost: ``2 * n_blocks * block_size * K * Dh`` numbers for each layer.

    References:
        Kwon et al. (2023), arXiv:2309.06180, section 4.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> pool = BlockPool(config, 8, block_size=4)
        >>> mine = pool.allocate(3)
        >>> mine, pool.n_free, pool.nbytes  # 2 layers x 2 x (8 x 4) tokens x 32 numbers x 4 bytes
        ([0, 1, 2], 5, 16384)
        >>> pool.share(mine[:1])  # a second owner of the first block
        >>> pool.release(mine)
        >>> pool.n_free, pool.references(0)
        (7, 1)
    """

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        block_size: int = 16,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_at_least("n_blocks", n_blocks, 1)
        check_at_least("block_size", block_size, 1, hint="a block holds at least one token")
        self.layers = config.kv_layers()
        self.n_blocks, self.block_size = n_blocks, block_size
        shapes = [(n_blocks, block_size, layer.n_kv_heads, layer.d_head) for layer in self.layers]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._references = [0] * n_blocks
        self._free = list(reversed(range(n_blocks)))  # the last one is handed out next

    @property
    def n_free(self) -> int:
        """Number of blocks without an owner."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, free blocks included."""
        return sum(x.nbytes for x in (*self.keys, *self.values))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.keys[0].dtype

    def references(self, block: int) -> int:
        """Return how many owners a block has.

        Args:
            block: the block.

        Returns:
            Number of owners; 0 for a free block.
        """
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Hand out free blocks, each with one owner.

        Args:
            count: how many.

        Returns:
            The blocks.

        Raises:
            ValueError: if ``count`` is negative, or fewer are free; then none is handed out.
        """
        check_at_least("number of blocks to allocate", count, 0)
        if count > self.n_free:
            raise ValueError(
                f"{count} blocks are asked for, {self.n_free} of {self.n_blocks} are free: release some, or make a "
                f"larger pool"
            )
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Give each block one more owner.

        Args:
            blocks: blocks that have an owner.

        Raises:
            ValueError: if a block is free; then nothing changes.
        """
        for block in blocks:
            check_at_least(f"number of owners of block {block}", self._references[block], 1, hint="allocate it first")
        for block in blocks:
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one owner from each block; a block without owners is free.

        Args:
            blocks: blocks that have an owner; one that is named twice has two.

        Raises:
            ValueError: if a block has fewer owners than are to be taken; then nothing changes.
        """
        for block, count in Counter(blocks).items():
            owners = self._references[block]
            check_at_least(f"number of owners of block {block}", owners, count, hint="it was released before")
        for block in blocks:
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def copy(self, source: int, target: int) -> None:
        """Copy keys and values of one block into another, in all layers.

        Args:
            source: the block to read.
            target: the block to overwrite.
        """
        for x in (*self.keys, *self.values):
            x[target] = x[source]


class BlockTable:
    """The blocks of one sequence, in order, and how many of their places are filled.

    Token ``i`` lies in block ``blocks[i // block_size]`` at place ``i % block_size``.

    Args:
        pool: where the blocks come from.

    Attributes:
        pool: where the blocks come from.
        blocks: the blocks; the last of them may be reserved and still empty.
        length: number of tokens whose keys and values are there.

    References:
        Kwon et al. (2023), arXiv:2309.06180, sections 4.2 to 4.4.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> pool = BlockPool(config, 8, block_size=4)
        >>> table = BlockTable(pool)
        >>> table.reserve(6)  # room for 6 tokens: 2 blocks
        >>> table.length = 6  # as a cache does it, once the model has filled them
        >>> other = table.fork()
        >>> other.blocks == table.blocks, other.missing(1)  # the last block is shared: write into a copy
        (True, 1)
        >>> other.reserve(1)
        >>> table.blocks, other.blocks
        ([0, 1], [0, 2])
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool, self.length = pool, 0
        self.blocks: list[int] = []

    def shared_tail(self) -> int | None:
        """Return the block that the next token goes into, if it is partly filled and has other owners.

        Returns:
            The block, which must be copied before it is written to; None if there is no need.
        """
        index, place = divmod(self.length, self.pool.block_size)
        return self.blocks[index] if place and self.pool.references(self.blocks[index]) > 1 else None

    def missing(self, count: int) -> int:
        """Return how many blocks must be allocated for new tokens.

        Args:
            count: number of new tokens.

        Returns:
            Number of new blocks, the copy of a shared one included.
        """
        full = -(-(self.length + count) // self.pool.block_size)
        return max(full - len(self.blocks), 0) + (count > 0 and self.shared_tail() is not None)

    def reserve(self, count: int) -> None:
        """Make room for new tokens, and a copy of the block they begin in if others own it too.

        Args:
            count: number of new tokens.

        Raises:
            ValueError: if the pool has too few free blocks; then nothing changes.
        """
        fresh, tail = self.pool.allocate(self.missing(count)), self.shared_tail()
        if count > 0 and tail is not None:
            copy = fresh.pop(0)
            self.pool.copy(tail, copy)
            self.pool.release([tail])
            self.blocks[self.length // self.pool.block_size] = copy
        self.blocks += fresh

    def adopt(self, blocks: Sequence[int]) -> None:
        """Begin with full blocks that others have filled, as one more owner of each.

        Args:
            blocks: blocks that hold the keys and values of the first tokens of this sequence.

        Raises:
            ValueError: if the table has blocks already, or one of the blocks has no owner.
        """
        if self.blocks:
            raise ValueError(f"the table has {len(self.blocks)} blocks, expected 0: what is adopted comes first")
        self.pool.share(blocks)
        self.blocks, self.length = list(blocks), len(blocks) * self.pool.block_size

    def fork(self) -> "BlockTable":
        """Return a second sequence that has the same past: it shares all filled blocks.

        Returns:
            The table. Both may go on, since whoever writes into a shared block first makes a copy of it.
        """
        other = BlockTable(self.pool)
        other.blocks, other.length = self.blocks[: -(-self.length // self.pool.block_size)], self.length
        self.pool.share(other.blocks)
        return other

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first ``length``, and release blocks that are no longer needed.

        Args:
            length: how many tokens stay.

        Raises:
            ValueError: if ``length`` is negative, or there are fewer tokens.
        """
        check_at_least("length", length, 0)
        check_at_least("length of the sequence", self.length, length, hint="truncate only makes it shorter")
        keep = -(-length // self.pool.block_size)
        self.pool.release(self.blocks[keep:])
        self.blocks, self.length = self.blocks[:keep], length

    def release(self) -> None:
        """Give all blocks back; the table is empty then."""
        self.truncate(0)


class PagedKVCache:
    """A batch of sequences of different lengths as one cache, over the blocks of a pool.

    What the model calls is :meth:`begin`, :meth:`attend` for each layer, and :meth:`end`. New keys and values are
    written to the places that the tables name; then those of each sequence are gathered, and padded to the longest. It
    is made for inference: call the model under ``torch.no_grad()``.

    Args:
        tables: one for each row of the batch, all of one pool. The cache makes them longer.

    Attributes:
        tables: one for each row of the batch.
        pool: where their blocks come from.

    Raises:
        ValueError: if there is no table, they are of different pools, or one stands there twice.

    Cost: reads and copies ``2 * B * S * K * Dh`` numbers for each layer and call, ``S`` the longest length.

    References:
        Kwon et al. (2023), arXiv:2309.06180, section 4.1. Their kernel reads the blocks where they lie; here they are
        gathered first.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> pool = BlockPool(config, 8, block_size=4)
        >>> cache = PagedKVCache([BlockTable(pool), BlockTable(pool)])
        >>> cache.begin(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]]))
        tensor([[0, 1, 2],
                [0, 0, 0]])
        >>> cache.end()
        >>> cache.lengths, cache.begin(torch.tensor([[9], [9]]))
        ([3, 1], tensor([[3],
                [1]]))
    """

    def __init__(self, tables: Sequence[BlockTable]) -> None:
        check_at_least("number of tables", len(tables), 1, hint="one for each row of the batch")
        different = len({id(table) for table in tables})
        check_equal("number of different tables", different, "number of tables", len(tables), hint="use fork")
        pools = len({id(table.pool) for table in tables})
        if pools > 1:
            raise ValueError(f"the tables are of {pools} pools, expected 1: make a cache for each pool")
        self.tables, self.pool = list(tables), tables[0].pool
        self._step: _Step | None = None

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return len(self.tables)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each sequence."""
        return [table.length for table in self.tables]

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Make room for new tokens.

        Args:
            ids: ``(B, T)`` new tokens.
            mask: ``(B, T)`` boolean, True where a token is real; only these are kept. Default: all are.

        Returns:
            ``(B, T)`` positions, counted over the real tokens of each sequence. Padding repeats the position before it.

        Raises:
            ValueError: if ``B`` is not the number of sequences, the mask does not fit, or the pool has too few free
                blocks; then nothing changes.
        """
        check_ndim("ids", ids.shape, ("B", "T"))
        check_equal("batch size of ids", ids.shape[0], "number of sequences of the cache", self.batch_size)
        if mask is None:
            counts = [ids.shape[1]] * self.batch_size
            positions = torch.arange(ids.shape[1], device=ids.device).repeat(self.batch_size, 1)
        else:
            check_boolean("mask", mask.dtype)
            check_equal("shape of mask", tuple(mask.shape), "shape of ids", tuple(ids.shape))
            counts, positions = mask.sum(dim=1).tolist(), mask.cumsum(dim=1) - 1
        _reserve(self.tables, counts)
        positions = (torch.tensor(self.lengths, device=ids.device)[:, None] + positions).clamp(min=0)
        self._step = _Step.plan(self.tables, counts, positions, mask)
        return positions

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        how: Callable[..., Tensor],
        scale: float | None = None,
    ) -> Tensor:
        """Keep the new keys and values of a layer, and let the queries meet all of their sequences.

        Args:
            layer: number of the layer, from 0.
            q: ``(B, H, T, Dh)`` queries.
            k: ``(B, K, T, Dh)`` new keys, rotated already.
            v: ``(B, K, T, Dh)`` new values.
            how: ``(q, k, v, *, mask, scale) → (B, H, T, Dh)``, attention under a mask ``(B, 1, T, S)``, or under None
                where being causal says it all: a single query sees every key, or there are as many queries as keys.
            scale: factor on the scores, handed to ``how``. Default: what ``how`` takes by itself.

        Returns:
            ``(B, H, T, Dh)`` what the queries find; at padding it means nothing.

        Raises:
            ValueError: if :meth:`begin` was not called, or keys have another shape or dtype than those of the pool.
        """
        step, kept = self._step, self.pool.layers[layer]
        if step is None:
            raise ValueError(f"layer {layer} attends before the new tokens are announced: call begin(ids) first")
        shape = (self.batch_size, kept.n_kv_heads, step.positions.shape[1], kept.d_head)
        check_equal("shape of k", tuple(k.shape), "shape of new keys (B, K, T, Dh)", shape)
        check_equal("dtype of k", k.dtype, "dtype of the pool", self.pool.dtype, hint="make the pool in the model's")
        keys = step.meet(self.pool.keys[layer], k)
        values = step.meet(self.pool.values[layer], v)
        return how(q, keys, values, mask=step.visible(kept.window), scale=scale)

    def end(self) -> None:
        """Count the new tokens as past."""
        if self._step is not None:
            for table, count in zip(self.tables, self._step.counts, strict=True):
                table.length += count
        self._step = None

    def reorder(self, rows: Sequence[int] | Tensor) -> None:
        """Let row ``i`` go on from what was row ``rows[i]``: beam search, without a copy of full blocks.

        Args:
            rows: ``(B,)`` a row for each; some may stand there several times, others not at all.
        """
        tables = [self.tables[int(row)].fork() for row in rows]
        self.clear()
        self.tables = tables

    def clear(self) -> None:
        """Forget all tokens, and give all blocks back."""
        for table in self.tables:
            table.release()


class PackedKVCache:
    """Sequences that take different numbers of new tokens, seen by the model as one row without padding.

    Linear layers and norms treat each position alone, so the new tokens of all sequences may stand in one row ``(1,
    N)``. Only attention must know what belongs together, and attention is the business of a cache: this one takes the
    row apart, lets each sequence attend by itself (those with equally many new tokens together), and puts the row
    together again. A step can so serve one sequence a chunk of its prompt and others one token each.

    The last new token of each sequence stands at the end of the row: ``logits_to_keep=B`` gives one row of logits for
    each sequence.

    Args:
        tables: one for each sequence, all of one pool.
        counts: number of new tokens of each, at least 1.

    Attributes:
        counts: number of new tokens of each sequence.
        pool: where the blocks come from.

    Raises:
        ValueError: if there is no table, a count is missing or below 1, or the tables are of different pools.

    References:
        Yu et al. (2022), "Orca", OSDI 2022, who call it selective batching.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> pool = BlockPool(config, 8, block_size=4)
        >>> cache = PackedKVCache([BlockTable(pool), BlockTable(pool)], [3, 2])
        >>> ids = cache.pack([[5, 6, 7], [8, 9]])
        >>> ids, cache.begin(ids)
        (tensor([[5, 6, 8, 7, 9]]), tensor([[0, 1, 0, 2, 1]]))
    """

    def __init__(self, tables: Sequence[BlockTable], counts: Sequence[int]) -> None:
        check_equal("number of counts", len(counts), "number of tables", len(tables))
        for count in counts:
            check_at_least("number of new tokens", count, 1, hint="leave out sequences that take none")
        whole = PagedKVCache(tables)  # its checks are wanted
        self.counts, self.pool, self._tables = list(counts), whole.pool, whole.tables
        self._groups: list[tuple[PagedKVCache, Tensor]] = []
        columns = _columns(counts)
        for count in sorted(set(counts)):
            rows = [row for row, n in enumerate(counts) if n == count]
            group = PagedKVCache([tables[row] for row in rows])
            where = torch.tensor([columns[row] for row in rows], device=self.pool.keys[0].device)
            self._groups.append((group, where))

    def pack(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Put the new tokens of all sequences into one row.

        Args:
            new: token ids of each sequence.

        Returns:
            ``(1, N)`` ids, first all but the last of each sequence, then the last of each; on the device of the pool.

        Raises:
            ValueError: if a sequence has another number of new tokens than was said.
        """
        check_equal("numbers of new tokens", [len(part) for part in new], "counts of the cache", self.counts)
        row = [i for part in new for i in part[:-1]] + [part[-1] for part in new]
        return torch.tensor([row], device=self.pool.keys[0].device)

    def begin(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Make room for the new tokens.

        Args:
            ids: ``(1, N)`` new tokens, as :meth:`pack` orders them.
            mask: ``(1, N)`` must be None: the row has no padding.

        Returns:
            ``(1, N)`` position of each token in its own sequence.

        Raises:
            ValueError: if there is a mask, ``N`` is not the number of new tokens, or the pool has too few free blocks;
                then nothing changes.
        """
        if mask is not None:
            raise ValueError(f"a mask {tuple(mask.shape)} is given, but a packed row has no padding: leave it out")
        check_equal("shape of ids", tuple(ids.shape), "shape of the row (1, N)", (1, sum(self.counts)))
        _reserve(self._tables, self.counts)
        positions = torch.empty_like(ids)
        for group, columns in self._groups:
            positions[0, columns] = group.begin(ids[0, columns])
        return positions

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        how: Callable[..., Tensor],
        scale: float | None = None,
    ) -> Tensor:
        """Let each sequence attend by itself.

        Args:
            layer: number of the layer, from 0.
            q: ``(1, H, N, Dh)`` queries.
            k: ``(1, K, N, Dh)`` new keys, rotated already.
            v: ``(1, K, N, Dh)`` new values.
            how: ``(q, k, v, *, mask, scale) → (B, H, T, Dh)``, attention under a mask.
            scale: factor on the scores, handed to ``how``. Default: what ``how`` takes by itself.

        Returns:
            ``(1, H, N, Dh)`` what the queries find.

        Raises:
            ValueError: if :meth:`begin` was not called, or keys have another shape or dtype than those of the pool.
        """
        found = torch.empty_like(q)
        for group, columns in self._groups:
            parts = (x[0][:, columns].transpose(0, 1) for x in (q, k, v))  # (1, ·, N, Dh) → (b, ·, t, Dh)
            found[0][:, columns] = group.attend(layer, *parts, how=how, scale=scale).transpose(0, 1)
        return found

    def end(self) -> None:
        """Count the new tokens as past."""
        for group, _ in self._groups:
            group.end()


@dataclass
class _Step:
    """Where the new tokens of one call go, and what they see."""

    counts: list[int]
    positions: Tensor  # (B, T)
    mask: Tensor | None  # (B, T)
    blocks: Tensor  # (B, n), padded with block 0
    places: Tensor  # (N,), of the real tokens, in the pool laid out flat
    length: int  # S
    even: bool  # whether all sequences are equally long, and no new token is padding
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # (B, 1, T, S) by window

    @classmethod
    def plan(cls, tables: Sequence[BlockTable], counts: list[int], positions: Tensor, mask: Tensor | None) -> "_Step":
        """Lay out one call; the tables have room."""
        size = tables[0].pool.block_size
        length = max(table.length + count for table, count in zip(tables, counts, strict=True))
        n = max(-(-length // size), 1)
        rows = [(table.blocks + [0] * n)[:n] for table in tables]
        blocks = torch.tensor(rows, device=positions.device)  # (B, n)
        places = blocks.gather(1, positions // size) * size + positions % size  # (B, T)
        places = places.flatten() if mask is None else places[mask]
        even = mask is None and len({table.length for table in tables}) == 1
        return cls(counts, positions, mask, blocks, places, length, even)

    def meet(self, stored: Tensor, new: Tensor) -> Tensor:
        """Write new keys or values ``(B, K, T, Dh)``, and return those of the whole sequences, ``(B, K, S, Dh)``."""
        new = new.detach().transpose(1, 2)  # (B, T, K, Dh)
        new = new.flatten(0, 1) if self.mask is None else new[self.mask]  # (N, K, Dh)
        stored.flatten(0, 1).index_copy_(0, self.places, new)
        return stored[self.blocks].flatten(1, 2)[:, : self.length].transpose(1, 2)

    def visible(self, window: int | None) -> Tensor | None:
        """Return which keys each query sees, ``(B, 1, T, S)``; None where being causal says it all."""
        T, S = self.positions.shape[1], self.length
        if self.even and T in (1, S) and (window is None or window >= S):
            return None
        if window not in self.masks:
            past = self.positions[:, None, :, None] - torch.arange(S, device=self.positions.device)
            self.masks[window] = past >= 0 if window is None else (past >= 0) & (past < window)
        return self.masks[window]


def _reserve(tables: Sequence[BlockTable], counts: Sequence[int]) -> None:
    """Make room in all tables, or in none."""
    pairs = list(zip(tables, counts, strict=True))
    tails = Counter(tail for table, count in pairs if count and (tail := table.shared_tail()) is not None)
    needed = sum(table.missing(count) for table, count in pairs)
    needed -= sum(owners == tables[0].pool.references(tail) for tail, owners in tails.items())  # one may stay
    pool = tables[0].pool
    if needed > pool.n_free:
        raise ValueError(
            f"{sum(counts)} new tokens need {needed} more blocks of {pool.block_size}, {pool.n_free} of "
            f"{pool.n_blocks} are free: release some sequences, or make a larger pool"
        )
    for table, count in pairs:
        table.reserve(count)


def _columns(counts: Sequence[int]) -> list[list[int]]:
    """Return where the new tokens of each sequence stand in a packed row."""
    columns, start, last = [], 0, sum(counts) - len(counts)
    for row, count in enumerate(counts):
        columns.append([*range(start, start + count - 1), last + row])
        start += count - 1
    return columns
