"""Whoever is served beside others gets what he would get alone; and every block comes back.

For every family and blocks of 1, 2 and 16 tokens: requests that join and leave at different steps, prompts read in
chunks, requests that are preempted and computed again, requests that begin alike.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_study.core.config import LlamaConfig
from llm_study.generation import generate, serving
from llm_study.generation.serving import Completion, RadixTree, Request, Scheduler
from llm_study.models.llama import LlamaForCausalLM
from llm_study.nn.paged import BlockPool, BlockTable
from tests.models.test_decoder import SIZES, V, near
from tests.nn.test_cache import decoder, every_decoder

every_size = pytest.mark.parametrize("size", [1, 2, 16])


class Watched:
    """A model that notes how many tokens it reads in each call."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.calls: list[int] = []

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def __call__(self, ids: Tensor, **options: Any) -> Tensor:
        self.calls.append(ids.numel())
        return self.model(ids, **options)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(V, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def scheduler_of(model: Any, size: int = 4, blocks: int = 64, **options: Any) -> Scheduler:
    return Scheduler(model, BlockPool(model.config, blocks, size, dtype=torch.float64), **options)


def alone(model: Any, request: Request) -> list[int]:
    """Return what generate makes of a request."""
    ids = generate(
        model,
        torch.tensor([request.prompt]),
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        generator=torch.Generator().manual_seed(request.seed),
        eos_id=request.eos_id,
    )
    return ids[0, len(request.prompt) :].tolist()


def serve(scheduler: Scheduler, arrivals: dict[int, list[Request]]) -> dict[Any, Completion]:
    """Run a scheduler to the end; requests arrive before the steps that are their keys."""
    done, step = {}, 0
    while arrivals.keys() - range(step) or scheduler.n_waiting or scheduler.n_running:
        for request in arrivals.get(step, []):
            scheduler.add(request)
        done.update({new.request_id: new.completion for new in scheduler.step() if new.completion})
        step += 1
        owned = {block for s in (*scheduler._waiting, *scheduler._running) for block in s.table.blocks}
        used = scheduler.pool.n_blocks - scheduler.pool.n_free
        assert len(owned) <= used <= len(owned) + scheduler.prefixes.n_blocks
    return done


def assert_all_returned(scheduler: Scheduler) -> None:
    pool = scheduler.pool
    assert pool.n_free + scheduler.prefixes.n_blocks == pool.n_blocks
    scheduler.prefixes.clear()
    assert (pool.n_free, scheduler.prefixes.n_blocks) == (pool.n_blocks, 0)
    assert [pool.references(i) for i in range(pool.n_blocks)] == [0] * pool.n_blocks


ALIKE = words(17, seed=99)
MIXED = {
    0: [
        Request("long", words(19, 0), 7),
        Request("short", words(1, 1), 9),
        Request("drawn", words(10, 2), 8, temperature=0.8, top_p=0.9, seed=3),
    ],
    2: [Request("first alike", [*ALIKE, 3], 6), Request("late", words(11, 3), 8, repetition_penalty=1.3)],
    9: [Request("second alike", [*ALIKE, 5, 8], 5, temperature=1.2, top_k=9, min_p=0.01, seed=4)],
    11: [Request("third alike", ALIKE, 4)],
}
"""When requests arrive: 7 in all, of 1 to 19 tokens."""


# --- the law


@every_decoder
@every_size
@pytest.mark.parametrize(
    ("tight", "reuse"),
    [(False, True), (True, True), (True, False)],
    ids=["enough blocks", "too few blocks", "too few blocks, nothing shared"],
)
def test_each_gets_what_it_would_get_alone(
    family: str, size: int, tight: bool, reuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, met = decoder(family), {}
    choose = serving._Sequence.choose

    def note(sequence: Any, logits: Tensor) -> int:
        met.setdefault(sequence.request.id, []).append(logits[0])
        return choose(sequence, logits)

    monkeypatch.setattr(serving._Sequence, "choose", note)
    blocks = {1: 34, 2: 17, 16: 3}[size] if tight else 128
    scheduler = scheduler_of(model, size, blocks, token_budget=7, max_running=5, reuse_prefixes=reuse)
    done = serve(scheduler, MIXED)
    for request in (r for requests in MIXED.values() for r in requests):
        found = done[request.id]
        assert found.ids == alone(model, request)
        text = torch.tensor([[*request.prompt, *found.ids]])
        assert near(torch.stack(met[request.id]), model(text)[0, len(request.prompt) - 1 : -1], 1e-12)
    assert any(c.n_preempted for c in done.values()) == tight
    assert reuse or not any(c.n_reused for c in done.values())
    assert tight or all(done[name].n_reused for name in ("second alike", "third alike"))
    assert_all_returned(scheduler)


@every_size
@pytest.mark.parametrize("budget", [3, 4, 17, 200])
def test_chunks_of_any_length_change_nothing(size: int, budget: int) -> None:
    model = Watched(decoder("gemma3"))
    requests = [Request(i, words(n, i), 5) for i, n in enumerate((40, 1, 23))]
    scheduler = scheduler_of(model, size, 128, token_budget=budget, max_running=3)
    done = serve(scheduler, {0: requests})
    assert max(model.calls) <= budget
    assert len(model.calls) >= 64 / budget
    for request in requests:
        assert done[request.id].ids == alone(model.model, request)
        assert done[request.id].n_computed == len(request.prompt) + 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_requests_at_any_time(data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 1})).double().eval()
    size, max_running = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    arrivals: dict[int, list[Request]] = {}
    for i in range(data.draw(st.integers(1, 8))):
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))  # many begin alike
        temperature = data.draw(st.sampled_from([0.0, 1.0]))
        request = Request(i, prompt, data.draw(st.integers(1, 6)), temperature, eos_id=7, seed=i)
        arrivals.setdefault(data.draw(st.integers(0, 9)), []).append(request)
    blocks = data.draw(st.integers(-(-17 // size), 40))  # the longest fits
    budget = data.draw(st.integers(max_running, 9))
    scheduler = scheduler_of(model, size, blocks, token_budget=budget, max_running=max_running)
    done = serve(scheduler, arrivals)
    for request in (r for requests in arrivals.values() for r in requests):
        assert done[request.id].ids == alone(model, request)
    assert_all_returned(scheduler)


def test_a_model_in_half_precision_can_be_served() -> None:
    model = decoder("llama").to(torch.bfloat16)
    scheduler = Scheduler(model, BlockPool(model.config, 16, 4, dtype=torch.bfloat16))
    scheduler.add(Request("a", words(5, 0), 3))
    assert len(next(scheduler.run()).ids) == 3


# --- who is served when


def test_answers_are_not_held_up_by_a_long_prompt() -> None:
    model = Watched(decoder("llama"))
    scheduler = scheduler_of(model, token_budget=8, max_running=4)
    scheduler.add(Request("answer", words(3, 0), 12))
    scheduler.step()
    scheduler.add(Request("prompt", words(40, 1), 2))
    names = [[new.request_id for new in scheduler.step()] for _ in range(7)]
    assert names[:5] == [["answer"]] * 5  # 7 tokens of the prompt beside it in each step
    assert names[5:] == [["answer", "prompt"]] * 2
    assert model.calls[1:7] == [8, 8, 8, 8, 8, 6]


def test_requests_start_in_the_order_in_which_they_came() -> None:
    scheduler = scheduler_of(decoder("llama"), token_budget=4, max_running=2)
    for i in range(5):
        scheduler.add(Request(i, words(3, i), 2))
    assert (scheduler.n_waiting, scheduler.n_running) == (5, 0)
    assert [done.request.id for done in scheduler.run()] == [0, 1, 2, 3, 4]


def test_no_more_than_so_many_run_at_the_same_time() -> None:
    scheduler = scheduler_of(decoder("llama"), token_budget=64, max_running=3)
    for i in range(7):
        scheduler.add(Request(i, words(2, i), 3))
    counts = []
    while scheduler.n_waiting or scheduler.n_running:
        counts.append(len(scheduler.step()))
    assert counts == [3, 3, 3, 3, 3, 3, 1, 1, 1]


def test_a_request_waits_until_its_whole_prompt_fits() -> None:
    scheduler = scheduler_of(decoder("llama"), 2, 7, token_budget=64, reuse_prefixes=False)
    scheduler.add(Request("five blocks", words(9, 0), 4))
    scheduler.add(Request("three blocks", words(6, 1), 1))
    scheduler.add(Request("one block", words(1, 2), 1))
    assert [new.request_id for new in scheduler.step()] == ["five blocks"]  # none overtakes the one that must wait
    assert [done.request.id for done in scheduler.run()] == ["five blocks", "three blocks", "one block"]


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    scheduler = scheduler_of(decoder("llama"), 1, 20, token_budget=64, max_running=3, reuse_prefixes=False)
    for name in "abc":
        scheduler.add(Request(name, words(5, ord(name)), 9))
    scheduler.add(Request("d", words(2, 0), 2))
    steps, done = [], {}
    while scheduler.n_waiting or scheduler.n_running:
        new = scheduler.step()
        steps.append("".join(token.request_id for token in new))
        done.update({token.request_id: token.completion for token in new if token.completion})
    # 3 x 5 tokens have been read after the first step, 3 x 6 after the second; 3 x 7 are too many: c goes. 2 x 10 after
    # the sixth: b goes, and waits before c. When a has ended, b, c and d start: 11 + 7 + 2; no room for more: d goes.
    assert steps == ["abc", "abc", "ab", "ab", "ab", "ab", "a", "a", "a", "bcd", "bc", "b", "cd", *"cccc"]
    assert {name: c.n_preempted for name, c in done.items()} == {"a": 0, "b": 1, "c": 2, "d": 1}
    assert {name: c.n_computed for name, c in done.items()} == {"a": 13, "b": 13 + 10, "c": 13 + 6 + 8, "d": 3 + 2}


def test_what_a_preempted_request_had_read_may_still_be_there() -> None:
    plain, clever = (
        serve(
            scheduler_of(decoder("llama"), 1, 20, token_budget=64, max_running=3, reuse_prefixes=reuse),
            {0: [Request(name, words(5, ord(name)), 9) for name in "abc"]},
        )
        for reuse in (False, True)
    )
    assert [c.n_reused for c in plain.values()] == [0, 0, 0]
    assert clever["b"].n_preempted == 1
    assert clever["b"].n_reused > 0
    assert clever["b"].n_reused + clever["b"].n_computed == plain["b"].n_computed


# --- common beginnings


@every_size
@pytest.mark.parametrize("common", [1, 15, 16, 17, 35])
def test_a_hit_saves_the_full_blocks_that_are_shared(size: int, common: int) -> None:
    model, beginning = Watched(decoder("qwen2")), words(common, 0)
    scheduler = scheduler_of(model, size, 128, token_budget=200)
    a, b = Request("a", [*beginning, 1, *words(6, 1)], 3), Request("b", [*beginning, 2, *words(9, 2)], 3)
    done = serve(scheduler, {0: [a], 4: [b]})
    saved = common // size * size
    assert (done["a"].n_reused, done["b"].n_reused) == (0, saved)
    assert done["b"].n_computed == common + 10 + 2 - saved  # the last token is never read
    assert sum(model.calls) == done["a"].n_computed + done["b"].n_computed
    assert [done[r.id].ids for r in (a, b)] == [alone(model.model, r) for r in (a, b)]


@pytest.mark.parametrize(("size", "saved"), [(1, 11), (2, 10), (4, 8), (12, 0), (16, 0)])
def test_of_a_prompt_that_is_known_the_last_token_is_read_again(size: int, saved: int) -> None:
    model, prompt = decoder("llama"), words(12, 0)
    done = serve(scheduler_of(model, size), {0: [Request("a", prompt, 1)], 1: [Request("b", prompt, 1)]})
    assert (done["b"].n_reused, done["b"].n_computed) == (saved, 12 - saved)
    assert done["a"].ids == done["b"].ids == alone(model, Request("a", prompt, 1))


@pytest.mark.parametrize(("size", "saved"), [(1, 12), (2, 12), (4, 12), (5, 10), (16, 0)])
def test_an_answer_is_known_when_the_dialog_goes_on(size: int, saved: int) -> None:
    model, prompt = decoder("llama"), words(8, 0)
    scheduler = scheduler_of(model, size)
    (first,) = serve(scheduler, {0: [Request("first", prompt, 5)]}).values()
    again = Request("second", [*prompt, *first.ids, *words(3, 1)], 4)
    (second,) = serve(scheduler, {0: [again]}).values()
    assert second.n_reused == saved  # of 8 + 5 tokens, the last of which was never read
    assert second.ids == alone(model, again)


def test_a_prompt_is_shared_as_soon_as_it_is_read() -> None:
    prompt = words(9, 0)
    done = serve(scheduler_of(decoder("llama")), {0: [Request("a", prompt, 9)], 1: [Request("b", prompt, 2)]})
    assert done["b"].n_reused == 8
    assert list(done) == ["b", "a"]


def test_equal_prompts_at_the_same_time_end_in_the_same_blocks() -> None:
    scheduler = scheduler_of(decoder("llama"), token_budget=64)
    for name in "ab":
        scheduler.add(Request(name, words(9, 0), 5))
    scheduler.step()
    a, b = (sequence.table.blocks for sequence in scheduler._running)
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    assert scheduler.pool.n_blocks - scheduler.pool.n_free == 4


# --- the tree


def text_of(pool: BlockPool, count: int) -> BlockTable:
    """Return a table whose tokens are said to be there."""
    table = BlockTable(pool)
    table.reserve(count)
    table.length = count
    return table


def remember(tree: RadixTree, *ids: int) -> list[int]:
    """Let a text pass by, and return its blocks."""
    table = text_of(tree.pool, len(ids))
    tree.insert(ids, table)
    blocks = list(table.blocks)
    table.release()
    return blocks


def small_tree(blocks: int = 16, size: int = 2) -> RadixTree:
    return RadixTree(BlockPool(LlamaConfig(**SIZES), blocks, size))


def test_the_tree_finds_the_longest_beginning_in_whole_blocks() -> None:
    tree = small_tree()
    blocks = remember(tree, 1, 2, 3, 4, 5, 6, 7)
    assert tree.match([1, 2, 3, 4, 5, 6, 7, 8]) == blocks[:3]  # the half block is not kept
    assert tree.match([1, 2, 3, 4, 5]) == blocks[:2]
    assert tree.match([1, 2, 3, 9, 5, 6]) == blocks[:1]
    assert tree.match([1]) == tree.match([]) == tree.match([2, 1]) == []
    other = remember(tree, 1, 2, 3, 4, 9, 9)
    assert other[:2] == blocks[:2]
    assert tree.n_blocks == 4
    assert (tree.match([1, 2, 3, 4, 9, 9]), tree.match([1, 2, 3, 4, 5, 6])) == (other, blocks[:3])


def test_what_was_used_last_is_evicted_last_and_ends_go_first() -> None:
    tree = small_tree()
    a, b, c = remember(tree, 1, 1, 2, 2, 3, 3), remember(tree, 1, 1, 5, 5), remember(tree, 6, 6, 7, 7)
    assert tree.match([1, 1, 2, 2]) == a[:2]  # leaves 33 behind, which was not used
    assert tree.evict(1) == 1
    assert tree.n_blocks == 5  # 33 is gone: the oldest
    assert tree.evict(2) == 2  # 55, and the end of 6677
    assert (tree.match([1, 1, 5, 5]), tree.match([6, 6, 7, 7])) == (b[:1], c[:1])
    assert tree.match([1, 1, 2, 2, 3, 3]) == a[:2]
    assert tree.evict(99) == 3
    assert (tree.n_blocks, tree.pool.n_free, tree.evict(1)) == (0, 16, 0)


def test_an_end_that_is_split_off_keeps_its_age() -> None:
    tree = small_tree()
    remember(tree, 8, 8)
    remember(tree, 1, 1, 2, 2)
    tree.match([1, 1])  # splits 1122 behind 11
    assert (tree.evict(1), tree.n_blocks) == (1, 2)
    assert tree.match([8, 8]) == []  # the oldest, not 22


def test_a_block_in_use_is_not_evicted() -> None:
    tree = small_tree()
    table = text_of(tree.pool, 6)
    tree.insert([1, 1, 2, 2, 3, 3], table)
    table.truncate(2)
    assert (tree.n_blocks, tree.n_evictable, tree.evict(99)) == (3, 2, 2)
    assert tree.match([1, 1, 2, 2]) == table.blocks


def test_a_tree_wants_the_ids_of_all_tokens() -> None:
    tree = small_tree()
    with pytest.raises(ValueError, match="number of ids is 3, expected at least 4"):
        tree.insert([1, 2, 3], text_of(tree.pool, 4))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_tree_is_a_dictionary_of_beginnings(data: st.DataObject) -> None:
    size, known = data.draw(st.integers(1, 3)), {}
    tree, used = small_tree(60, size), []
    for _ in range(data.draw(st.integers(1, 12))):
        ids = data.draw(st.lists(st.integers(0, 1), max_size=8))
        cuts = [tuple(ids[: i + size]) for i in range(0, len(ids) // size * size, size)]
        action = data.draw(st.sampled_from(["insert", "match", "evict", "hold"]))
        if action == "insert":
            for cut, block in zip(cuts, remember(tree, *ids), strict=False):
                assert known.setdefault(cut, block) == block
        elif action == "hold":
            used.append(BlockTable(tree.pool))
            used[-1].adopt(tree.match(ids))
        elif action == "evict":
            count, held = data.draw(st.integers(0, 6)), {block for table in used for block in table.blocks}
            loose = [cut for cut, block in known.items() if block not in held]
            assert tree.n_evictable == len(loose)
            assert tree.evict(count) == min(count, len(loose))
            known = {cut: block for cut, block in known.items() if tree.match(cut)[len(cut) // size - 1 :] == [block]}
            assert held <= set(known.values())
        assert tree.match(ids) == [known[cut] for cut in cuts if cut in known]
        assert tree.n_blocks == len(known) == len(set(known.values()))
    for table in used:
        table.release()
    tree.clear()
    assert tree.pool.n_free == 60


# --- what comes out


def test_a_stream_hands_out_tokens_as_they_are_made() -> None:
    model = decoder("llama")
    scheduler = scheduler_of(model)
    requests = [Request("a", words(5, 0), 4), Request("b", words(2, 1), 2), Request("late", words(3, 2), 2)]
    for request in requests[:2]:
        scheduler.add(request)
    order: list[Any] = []
    texts: dict[Any, list[int]] = {"a": [], "b": [], "late": []}
    for new in scheduler.stream():
        if not order:
            scheduler.add(requests[2])
        order.append(new.request_id)
        texts[new.request_id].append(new.token)
        assert (new.completion is None) == (order.count(new.request_id) < len(alone(model, request_of(new, requests))))
        assert new.completion is None or new.completion.ids == texts[new.request_id]
    assert order == ["a", "b", "a", "b", "late", "a", "late", "a"]
    assert texts == {request.id: alone(model, request) for request in requests}


def request_of(new: serving.NewToken, requests: list[Request]) -> Request:
    return next(request for request in requests if request.id == new.request_id)


def test_an_end_ends_a_text() -> None:
    model, request = decoder("llama"), {"prompt": words(5, 0), "max_new_tokens": 12, "temperature": 1.5, "seed": 1}
    ids = alone(model, Request("a", **request))
    ends = [ids[5], next(i for i in range(V) if i not in ids)]
    for eos_id in (ends[0], ends, ends[::-1]):
        scheduler = scheduler_of(model)
        scheduler.add(Request("a", eos_id=eos_id, **request))
        assert next(scheduler.run()).ids == ids[: ids.index(ends[0]) + 1]
        assert_all_returned(scheduler)


def test_seeds_make_the_difference() -> None:
    same: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 9, "prompt": words(5, 0)}
    requests = [Request(0, seed=1, **same), Request(1, seed=1, **same), Request(2, seed=2, **same)]
    done = serve(scheduler_of(decoder("llama")), {0: requests})
    assert done[0].ids == done[1].ids != done[2].ids


def test_a_canceled_request_gives_its_blocks_back() -> None:
    model = decoder("llama")
    scheduler = scheduler_of(model, token_budget=8, max_running=2)
    requests = [Request(i, words(7, i), 5) for i in range(4)]
    for request in requests:
        scheduler.add(request)
    scheduler.step()
    scheduler.cancel(0)  # runs
    scheduler.cancel(3)  # waits
    done = {c.request.id: c.ids for c in scheduler.run()}
    assert done == {i: alone(model, requests[i]) for i in (1, 2)}
    assert_all_returned(scheduler)
    with pytest.raises(ValueError, match="request 0 is neither waiting nor running"):
        scheduler.cancel(0)
    scheduler.add(requests[0])  # its name is free again
    assert next(scheduler.run()).ids == alone(model, requests[0])


def test_nothing_to_do_is_done_at_once() -> None:
    scheduler = scheduler_of(decoder("llama"))
    assert scheduler.step() == list(scheduler.run()) == list(scheduler.stream()) == []


# --- bad input


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Request("a", [], 4), "length of the prompt is 0, expected at least 1"),
        (Request("a", [1], 0), "max_new_tokens is 0, expected at least 1"),
        (Request("a", [1, V], 4), f"largest id of the prompt is {V}, expected 0 to {V - 1}"),
        (Request("a", [1, -1], 4), f"smallest id of the prompt is -1, expected 0 to {V - 1}"),
        (Request("a", [1], 4, eos_id=V), f"eos_id is {V}, expected 0 to {V - 1}"),
        (Request("a", [1], 4, temperature=-1.0), r"temperature is -1\.0"),
        (Request("a", [1], 4, top_k=0), r"is 0, expected"),
        (Request("a", [1], 4, top_p=1.5), r"is 1\.5, expected"),
        (Request("a", [1], 4, min_p=-0.5), r"is -0\.5, expected"),
        (Request("a", [1], 4, repetition_penalty=0.0), r"is 0\.0, expected"),
        (Request("a", [1] * 30, 4), "request 'a' needs 9 blocks for 33 tokens, the pool has 8 of 4"),
        (Request("taken", [1], 4), "request 'taken' is waiting or running already"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_request_that_cannot_be_served_is_refused_at_once(wrong: Request, problem: str) -> None:
    scheduler = scheduler_of(decoder("llama"), 4, 8)
    scheduler.add(Request("taken", [1], 4))
    with pytest.raises(ValueError, match=problem):
        scheduler.add(wrong)
    assert scheduler.n_waiting == 1
    scheduler.add(Request("longest", [1] * 29, 4))  # the last token needs no place
    assert len(list(scheduler.run())) == 2


def test_positions_that_the_model_has_not_learned_are_refused() -> None:
    scheduler = scheduler_of(decoder("gpt2"))
    with pytest.raises(ValueError, match="n_positions is 32, expected at least 33"):
        scheduler.add(Request("a", words(20, 0), 14))
    scheduler.add(Request("a", words(20, 0), 13))
    assert len(next(scheduler.run()).ids) == 13


def test_a_scheduler_that_makes_no_sense_is_refused() -> None:
    model = decoder("llama")
    with pytest.raises(ValueError, match="max_running is 0, expected at least 1"):
        scheduler_of(model, max_running=0)
    with pytest.raises(ValueError, match="token_budget is 3, expected at least 4"):
        scheduler_of(model, max_running=4, token_budget=3)
    with pytest.raises(ValueError, match=r"dtype of the pool is torch\.float32, dtype of the model is torch\.float64"):
        Scheduler(model, BlockPool(model.config, 4))
    with pytest.raises(ValueError, match=r"layers of the pool is .*, layers of the model is .*window=4"):
        Scheduler(decoder("mistral"), BlockPool(model.config, 4, dtype=torch.float64))


def test_a_pool_that_others_have_filled_is_complained_about() -> None:
    request = Request("a", words(9, 0), 3)
    scheduler = scheduler_of(decoder("llama"), 2, 8)
    taken = scheduler.pool.allocate(4)
    scheduler.add(request)
    with pytest.raises(ValueError, match="1 more blocks are needed, 4 of 8 are free, and no other request runs"):
        scheduler.step()
    scheduler.pool.release(taken[:1])
    assert len(scheduler.step()) == len(scheduler.step()) == 1  # 9 tokens, then 10
    with pytest.raises(ValueError, match="1 more blocks are needed, 0 of 8 are free, and no other request runs"):
        scheduler.step()
    scheduler.pool.release(taken[1:])
    assert next(scheduler.run()).ids == alone(scheduler.model, request)
    assert_all_returned(scheduler)
