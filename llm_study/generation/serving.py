"""Serving: many requests at once, each of which gets the text that it would get alone.

A :class:`Scheduler` takes requests at any time and lets the model read a few tokens of each at every step: continuous
batching. A request joins as soon as there is room and leaves as soon as it is done. Long prompts are read in chunks, so
that they do not hold up the others; keys and values lie in blocks of a pool; a :class:`RadixTree` remembers prompts and
answers, so that what two requests begin with is computed once; and when the pool is full, the youngest request gives
its blocks back and is computed again later.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal
from llm_study.functional.sampling import sample
from llm_study.generation.decode import process_logits
from llm_study.generation.session import LanguageModel, check_request, check_temperature, end_ids
from llm_study.nn.paged import BlockPool, BlockTable, PackedKVCache

__all__ = ["Request", "NewToken", "Completion", "Scheduler", "RadixTree"]


@dataclass(frozen=True)
class Request:
    """A prompt, how it is to be continued, and a name for it.

    Args:
        id: the name; no other waiting or running request has it.
        prompt: token ids, at least one.
        max_new_tokens: how many tokens follow at most.
        temperature: 0 takes the best token each time; otherwise tokens are drawn.
        top_k: keep the so many best tokens. Default: all.
        top_p: keep the fewest tokens whose probabilities add up to this. Default: all.
        min_p: keep the tokens at least so probable, relative to the best. Default: all.
        repetition_penalty: make tokens of the text less probable by this factor on their logits. Default: none.
        eos_id: id that ends the text, or several; it is the last one of the text. Default: none.
        seed: of this request's own random numbers: its neighbors do not change what it draws.

    Example:
        >>> Request("a", [5, 6, 7], max_new_tokens=4).temperature
        0.0
    """

    id: str | int
    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_id: int | Sequence[int] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What became of a request.

    Args:
        request: the request.
        ids: the new tokens, the one that ended the text included.
        n_computed: tokens of it that the model has read; those read again after a preemption count again.
        n_reused: tokens that the model need not read, because their keys and values were there.
        n_preempted: how often it had to give its blocks back.

    Example:
        >>> Completion(Request("a", [5, 6, 7], 2), [8, 9], n_computed=4, n_reused=0, n_preempted=0).ids
        [8, 9]
    """

    request: Request
    ids: list[int]
    n_computed: int
    n_reused: int
    n_preempted: int


@dataclass(frozen=True)
class NewToken:
    """A token that a request has got.

    Args:
        request_id: the name of the request.
        token: the id.
        completion: the whole result, if this token is the last one; else None.

    Example:
        >>> NewToken("a", 8).completion is None
        True
    """

    request_id: str | int
    token: int
    completion: Completion | None = None


class RadixTree:
    """Blocks of past texts, found by the tokens that they hold.

    The tree spells texts from the root: each edge is a run of whole blocks, and texts with a common beginning share the
    path of it. The tree is an owner of its blocks; a block that has no other owner can be evicted, the least recently
    used text first, from its end.

    Args:
        pool: where the blocks come from.

    Attributes:
        pool: where the blocks come from.

    Cost: ``O(S)`` for a text of ``S`` tokens; evicting walks through the whole tree.

    References:
        Zheng et al. (2024), arXiv:2312.07104, section 3.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> pool = BlockPool(config, 8, block_size=2)
        >>> table = BlockTable(pool)
        >>> table.reserve(5)
        >>> table.length = 5  # as a cache does it, once the model has filled the blocks
        >>> tree = RadixTree(pool)
        >>> tree.insert([5, 6, 7, 8, 9], table)  # two full blocks
        >>> tree.match([5, 6, 7, 1]), tree.n_blocks
        ([0], 2)
        >>> table.release()
        >>> tree.evict(8), pool.n_free
        (2, 8)
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._root, self._clock = _Node([], []), 0

    @property
    def n_blocks(self) -> int:
        """Number of blocks in the tree."""
        return sum(len(node.blocks) for node in self._root.below())

    @property
    def n_evictable(self) -> int:
        """Number of blocks that nobody else owns."""
        return sum(self.pool.references(block) == 1 for node in self._root.below() for block in node.blocks)

    def match(self, ids: Sequence[int]) -> list[int]:
        """Return the blocks of the longest beginning of a text that the tree knows, in whole blocks.

        Args:
            ids: the text.

        Returns:
            The blocks; the caller is no owner of them yet.
        """
        return [block for node in self._walk(self._cut(ids)) for block in node.blocks]

    def insert(self, ids: Sequence[int], table: BlockTable) -> None:
        """Remember the full blocks of a text.

        Blocks that the tree has already, filled with the same tokens by another request, are taken into the table
        instead of its own. So whoever owns a block of the tree owns all blocks on the way to it.

        Args:
            ids: the text.
            table: its blocks.

        Raises:
            ValueError: if the table holds more tokens than the text has.
        """
        check_at_least("number of ids", len(ids), table.length, hint="one for each token of the table")
        keys = self._cut(ids[: table.length])
        path = self._walk(keys)
        known = [block for node in path for block in node.blocks]
        new = table.blocks[len(known) : len(keys)]
        self.pool.share([*known, *new])  # known: by the table; new: by the tree
        self.pool.release(table.blocks[: len(known)])
        table.blocks[: len(known)] = known
        if new:
            path[-1].add(_Node(keys[len(known) :], new, used=self._clock))

    def evict(self, count: int) -> int:
        """Forget the least recently used blocks that nobody else owns.

        Args:
            count: how many blocks are wanted.

        Returns:
            How many were freed; fewer if there are no more.
        """
        freed = 0
        while freed < count:
            leaves = [n for n in self._root.below() if not n.children and self.pool.references(n.blocks[-1]) == 1]
            if not leaves:
                break
            leaf = min(leaves, key=lambda node: node.used)
            while freed < count and leaf.blocks and self.pool.references(leaf.blocks[-1]) == 1:
                self.pool.release([leaf.drop_last()])
                freed += 1
        return freed

    def clear(self) -> None:
        """Forget all blocks that nobody else owns."""
        self.evict(self.n_blocks)

    def _cut(self, ids: Sequence[int]) -> list["_Key"]:
        """Return the tokens of each full block."""
        size = self.pool.block_size
        return [tuple(ids[i : i + size]) for i in range(0, len(ids) // size * size, size)]

    def _walk(self, keys: list["_Key"]) -> list["_Node"]:
        """Return the nodes that spell the longest known beginning, the root first; the last is split off for it."""
        path, at = [self._root], 0
        self._clock += 1
        while at < len(keys) and (node := path[-1].children.get(keys[at])):
            same = [a == b for a, b in zip(node.keys, keys[at:], strict=False)]
            node.split(same.index(False) if False in same else len(same))
            node.used = self._clock
            path.append(node)
            at += len(node.keys)
        return path


class Scheduler:
    """Continuous batching over a pool of blocks.

    A step of the model reads at most ``token_budget`` tokens: one of each request that is being answered, and with what
    is left a chunk of the next prompt. Requests are admitted in the order in which they came:

    - A request is admitted when there is room in the batch and the pool has blocks for its whole prompt, less those
      that the tree of prefixes has already.
    - If a running request needs a block and none is free, the tree gives up what nobody uses; then the request that was
      admitted last gives back its blocks and waits, before all others, to be admitted again. What it has written by
      then is kept; its keys and values are computed again.

    Each request gets the tokens that :func:`llm_study.generation.decode.generate` would give it alone. The logits
    differ by rounding only, since they come from products of other shapes.

    Args:
        model: the model; call its ``eval()`` first, if it has dropout.
        pool: memory for keys and values, made from the configuration of the model.
        token_budget: tokens that the model reads in a step, at most.
        max_running: requests that are served at the same time, at most.
        reuse_prefixes: whether blocks of past texts are kept for requests that begin alike.

    Attributes:
        pool: memory for keys and values.
        prefixes: the tree of past texts.
        token_budget: tokens in a step, at most.
        max_running: requests at the same time, at most.

    Raises:
        ValueError: if the pool is not made for the model, ``max_running`` is below 1, or ``token_budget`` is below
            ``max_running``: each running request gets a token in each step.

    References:
        Batches that change at every step: Yu et al. (2022), "Orca", OSDI 2022. Blocks and preemption: Kwon et al.
        (2023), arXiv:2309.06180, section 4. Chunks of prompts beside the answers: Agrawal et al. (2024),
        arXiv:2403.02310.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> scheduler = Scheduler(LlamaForCausalLM(config), BlockPool(config, 64, block_size=4))
        >>> scheduler.add(Request("a", [5, 6, 7], max_new_tokens=4))
        >>> scheduler.add(Request("b", [5, 6, 7, 8, 9], max_new_tokens=2))
        >>> [(done.request.id, len(done.ids)) for done in scheduler.run()]
        [('b', 2), ('a', 4)]
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        *,
        token_budget: int = 256,
        max_running: int = 16,
        reuse_prefixes: bool = True,
    ) -> None:
        weight = next(iter(model.parameters()))
        check_equal("layers of the pool", pool.layers, "layers of the model", model.config.kv_layers())
        check_equal("dtype of the pool", pool.dtype, "dtype of the model", weight.dtype)
        check_at_least("max_running", max_running, 1)
        check_at_least("token_budget", token_budget, max_running, hint="each running request gets a token in each step")
        self.model, self.pool, self.prefixes = model, pool, RadixTree(pool)
        self.token_budget, self.max_running, self.reuse_prefixes = token_budget, max_running, reuse_prefixes
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []

    @property
    def n_waiting(self) -> int:
        """Number of requests that are not admitted yet, or were preempted."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Number of requests that are being served."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn; also between two steps.

        Args:
            request: the request.

        Raises:
            ValueError: if another waiting or running request has the same name, the prompt is empty, an option is out
                of its range, an id is outside the vocabulary, or prompt and answer need more blocks than the pool has
                or more positions than the model has learned.
        """
        if any(request.id == sequence.request.id for sequence in (*self._waiting, *self._running)):
            raise ValueError(f"request {request.id!r} is waiting or running already: give each request its own id")
        _check_options(self.model, request)
        length, size = len(request.prompt) + request.max_new_tokens - 1, self.pool.block_size  # the last is never read
        if -(-length // size) > self.pool.n_blocks:
            raise ValueError(
                f"request {request.id!r} needs {-(-length // size)} blocks for {length} tokens, the pool has "
                f"{self.pool.n_blocks} of {size}: make a larger pool"
            )
        self._waiting.append(_Sequence(request, list(request.prompt), BlockTable(self.pool)))

    def cancel(self, request_id: str | int) -> None:
        """Take a request away, and give back its blocks.

        Args:
            request_id: its name.

        Raises:
            ValueError: if no waiting or running request has this name.
        """
        for sequences in (self._waiting, self._running):
            for sequence in list(sequences):
                if sequence.request.id == request_id:
                    sequences.remove(sequence)
                    sequence.table.release()
                    return
        raise ValueError(f"request {request_id!r} is neither waiting nor running: it is done, or was never added")

    def run(self) -> Iterator[Completion]:
        """Serve all requests, those added meanwhile too.

        Yields:
            Each completion, as soon as it is complete.
        """
        for token in self.stream():
            if token.completion:
                yield token.completion

    def stream(self) -> Iterator[NewToken]:
        """Serve all requests, those added meanwhile too, and hand out tokens as they are made.

        Yields:
            The new tokens of all requests, step by step.
        """
        while self._waiting or self._running:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Let the model read some tokens of each request once.

        Returns:
            A new token of each request whose text has been read up to its end.

        Raises:
            ValueError: if the pool is full of blocks that neither a request nor the tree of prefixes owns.
        """
        plan = self._continue()
        plan += self._admit(self.token_budget - sum(count for _, count in plan))
        if not plan:
            return []
        sequences, counts = [s for s, _ in plan], [count for _, count in plan]
        cache = PackedKVCache([s.table for s in sequences], counts)
        ids = cache.pack([s.unread[:count] for s, count in plan]).to(next(iter(self.model.parameters())).device)
        logits = self.model(ids, cache=cache, logits_to_keep=len(plan))[0]  # (B, V)
        return [new for i, (s, count) in enumerate(plan) if (new := self._advance(s, count, logits[i : i + 1]))]

    def _continue(self) -> list["_Plan"]:
        """Plan what running requests read; some may be preempted for it.

        Answers come before prompts: a prompt that is not complete has used up the budget of the last step, so that no
        request was admitted after it.
        """
        plan, budget = [], self.token_budget
        for sequence in list(self._running):
            count = min(len(sequence.unread), budget)
            if count and sequence in self._running and self._make_room(sequence, count):
                plan.append((sequence, count))
                budget -= count
        return plan

    def _make_room(self, sequence: "_Sequence", count: int) -> bool:
        """Reserve blocks for new tokens; False if the sequence was preempted instead."""
        while (lacking := sequence.table.missing(count) - self.pool.n_free) > 0:
            if self.prefixes.evict(lacking):
                continue
            if len(self._running) == 1:
                self._complain(lacking)
            victim = self._running.pop()
            self._leave(victim)
            victim.n_preempted += 1
            self._waiting.appendleft(victim)
            if victim is sequence:
                return False
        sequence.table.reserve(count)
        return True

    def _admit(self, budget: int) -> list["_Plan"]:
        """Start waiting requests, the first one first, while there is room for them."""
        plan = []
        while self._waiting and budget and len(self._running) < self.max_running:
            sequence = self._waiting[0]
            sequence.table.adopt(self.prefixes.match(sequence.tokens[:-1]))  # one must be read, for its logits
            lacking = sequence.table.missing(len(sequence.unread)) - self.pool.n_free
            if lacking > self.prefixes.n_evictable:
                sequence.table.release()
                if not self._running:
                    self._complain(lacking)
                break
            self.prefixes.evict(lacking)
            sequence.table.reserve(len(sequence.unread))
            sequence.n_reused += sequence.table.length
            sequence.known = False
            self._running.append(self._waiting.popleft())
            plan.append((sequence, min(len(sequence.unread), budget)))
            budget -= plan[-1][1]
        return plan

    def _advance(self, sequence: "_Sequence", count: int, logits: Tensor) -> NewToken | None:
        """Note that a sequence has read some tokens; if these were all, choose the next from ``(1, V)`` logits."""
        sequence.n_computed += count
        if sequence.unread:
            return None
        if self.reuse_prefixes and not sequence.known:  # others may begin with this text from now on
            self.prefixes.insert(sequence.tokens, sequence.table)
            sequence.known = True
        token = sequence.choose(logits)
        sequence.tokens.append(token)
        completion = sequence.completion()
        if completion:
            self._running.remove(sequence)
            self._leave(sequence)
        return NewToken(sequence.request.id, token, completion)

    def _leave(self, sequence: "_Sequence") -> None:
        """Give back the blocks of a sequence; the tree may keep the full ones until they are needed."""
        if self.reuse_prefixes:
            self.prefixes.insert(sequence.tokens, sequence.table)
        sequence.table.release()

    def _complain(self, lacking: int) -> None:
        """Say that nothing is left to be taken back."""
        raise ValueError(
            f"{lacking} more blocks are needed, {self.pool.n_free} of {self.pool.n_blocks} are free, and no other "
            f"request runs that could be preempted: release blocks that were allocated outside the scheduler"
        )


_Key = tuple[int, ...]  # the tokens of one block


@dataclass(eq=False)
class _Sequence:
    """A request, its text so far, and the blocks of what the model has read of it."""

    request: Request
    tokens: list[int]
    table: BlockTable
    n_computed: int = 0
    n_reused: int = 0
    n_preempted: int = 0
    known: bool = False  # whether the tree of prefixes has been told of it since it was admitted
    generator: torch.Generator | None = None

    @property
    def unread(self) -> list[int]:
        """What the model has not read yet."""
        return self.tokens[self.table.length :]

    def choose(self, logits: Tensor) -> int:
        """Return the next token, from ``(1, V)`` logits."""
        text, r = torch.tensor([self.tokens], device=logits.device), self.request
        if r.temperature == 0:
            return int(process_logits(logits, text, repetition_penalty=r.repetition_penalty).argmax(-1))
        if self.generator is None:
            self.generator = torch.Generator(logits.device).manual_seed(r.seed)
        return int(sample(_process(r, logits, text), generator=self.generator))

    def completion(self) -> Completion | None:
        """Return the result, if the text has ended."""
        new = self.tokens[len(self.request.prompt) :]
        if len(new) < self.request.max_new_tokens and new[-1] not in end_ids(self.request.eos_id):
            return None
        return Completion(self.request, new, self.n_computed, self.n_reused, self.n_preempted)


_Plan = tuple[_Sequence, int]  # who reads how many tokens


@dataclass(eq=False)
class _Node:
    """A run of blocks that follow each other in every text that comes this way."""

    keys: list[_Key]
    blocks: list[int]
    used: int = 0
    parent: "_Node | None" = None
    children: dict[_Key, "_Node"] = field(default_factory=dict)

    def add(self, child: "_Node") -> None:
        """Hang a node below this one."""
        child.parent = self
        self.children[child.keys[0]] = child

    def split(self, at: int) -> None:
        """Move all but the first blocks to a child, if there are more."""
        if at == len(self.keys):
            return
        tail = _Node(self.keys[at:], self.blocks[at:], self.used)
        for child in self.children.values():
            tail.add(child)
        self.keys, self.blocks, self.children = self.keys[:at], self.blocks[:at], {}
        self.add(tail)

    def drop_last(self) -> int:
        """Take the last block away, and with its only block the node."""
        if len(self.keys) == 1 and self.parent:
            del self.parent.children[self.keys[0]]
        self.keys.pop()
        return self.blocks.pop()

    def below(self) -> Iterator["_Node"]:
        """Walk through all nodes below this one."""
        for child in self.children.values():
            yield child
            yield from child.below()


def _process(request: Request, logits: Tensor, text: Tensor) -> Tensor:
    """Return the logits that a request draws from."""
    return process_logits(
        logits,
        text,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
    )


def _check_options(model: LanguageModel, request: Request) -> None:
    """Check a request before it is mixed with others."""
    prompt, V = torch.tensor([list(request.prompt)], dtype=torch.long), model.config.vocab_size
    check_request(model, prompt, max_new_tokens=request.max_new_tokens, eos_id=request.eos_id)
    for name, index in (("smallest", int(prompt.min())), ("largest", int(prompt.max()))):
        if not 0 <= index < V:
            raise ValueError(f"{name} id of the prompt is {index}, expected 0 to {V - 1}: vocab_size is {V}")
    check_temperature(request.temperature)
    _process(replace(request, temperature=request.temperature or 1.0), torch.zeros(1, V), prompt)  # options are tried
