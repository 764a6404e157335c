"""Packing: nothing lost and nothing doubled, few rows, and a model that notices nothing, in loss and gradients."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_study.core.config import BertConfig, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig
from llm_study.data import packing as P
from llm_study.models.bert import BertForMaskedLM
from llm_study.models.gemma import Gemma2ForCausalLM
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM, MistralForCausalLM

law = settings(max_examples=100, derandomize=True, deadline=None)
Fit = Callable[[Sequence[int], int], list[list[int]]]
FITS: dict[str, Fit] = {
    "first": P.first_fit_decreasing,
    "first, reference": P.first_fit_decreasing_reference,
    "best": P.best_fit_decreasing,
    "best, reference": P.best_fit_decreasing_reference,
}
every_fit = pytest.mark.parametrize("name", FITS)
V = 23


@st.composite
def problems(draw: st.DrawFn, most: int = 40) -> tuple[list[int], int]:
    """Return lengths and a capacity that none exceeds."""
    capacity = draw(st.integers(1, 24))
    return draw(st.lists(st.integers(1, capacity), max_size=most)), capacity


def documents_of(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, V, (n,), generator=generator) for n in lengths]


def fewest_rows(lengths: Sequence[int], capacity: int) -> int:
    """Return the number of rows of the best packing, by trying all."""

    @cache
    def least(rest: tuple[int, ...], rooms: tuple[int, ...]) -> int:
        if not rest:
            return len(rooms)
        n, rest = rest[0], rest[1:]
        ways = [tuple(sorted((*rooms, capacity - n)))]
        for i, room in enumerate(rooms):
            if room >= n:
                ways.append(tuple(sorted((*rooms[:i], room - n, *rooms[i + 1 :]))))
        return min(least(rest, way) for way in set(ways))

    return least(tuple(sorted(lengths, reverse=True)), ())


# --- which documents share a row


@every_fit
@given(problem=problems())
@law
def test_every_document_stands_in_one_row_that_has_room(name: str, problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    rows = FITS[name](lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(1 <= sum(lengths[i] for i in row) <= capacity for row in rows)
    for row in rows:
        assert all(lengths[i] >= lengths[j] for i, j in pairwise(row))


@pytest.mark.parametrize("name", ["first", "best"])
@given(problem=problems())
@example(problem=([6, 4, 3, 1], 8))
@example(problem=([13, 9, 5, 3, 2, 2], 17))
@law
def test_fast_and_reference_make_the_same_rows(name: str, problem: tuple[list[int], int]) -> None:
    assert FITS[name](*problem) == FITS[f"{name}, reference"](*problem)


@given(problem=problems(most=8))
@example(problem=([6, 3, 3, 3], 8))
@example(problem=([4, 4, 5, 5, 3, 3, 8, 6], 10))
@law
def test_rows_are_few(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    best = fewest_rows(lengths, capacity)
    assert -(-sum(lengths) // capacity) <= P.least_rows(lengths, capacity) <= best
    first = len(P.first_fit_decreasing(lengths, capacity))
    assert best <= first <= 11 / 9 * best + 6 / 9
    assert best <= len(P.best_fit_decreasing(lengths, capacity)) <= 11 / 9 * best + 4


def test_the_bound_of_first_fit_is_reached() -> None:
    lengths = [23] * 4 + [13] * 4 + [12] * 4 + [9] * 8  # at best 23 + 12 + 9 four times, 13 + 13 + 9 + 9 twice
    assert P.least_rows(lengths, 44) == sum(lengths) / 44 == 6
    assert len(P.first_fit_decreasing(lengths, 44)) == 11 / 9 * 6 + 6 / 9 == 8
    assert len(P.best_fit_decreasing(lengths, 44)) == 8


def test_the_fewest_rows_can_be_more_than_the_tokens_would_fill() -> None:
    for lengths, capacity in [([7, 7, 7, 3, 3, 3, 3], 9), ([5, 5, 5], 8), ([6, 3, 3, 3], 8)]:
        assert P.least_rows(lengths, capacity) == fewest_rows(lengths, capacity) > -(-sum(lengths) // capacity)


def test_first_and_best_fit_differ() -> None:
    assert P.first_fit_decreasing([6, 4, 3, 1], 8) == [[0, 3], [1, 2]]  # the 1 into the first row
    assert P.best_fit_decreasing([6, 4, 3, 1], 8) == [[0], [1, 2, 3]]  # the 1 into the row with room for one
    lengths = [13, 9, 5, 3, 2, 2]
    assert P.first_fit_decreasing(lengths, 17) == [[0, 3], [1, 2, 4], [5]]
    assert P.best_fit_decreasing(lengths, 17) == [[0, 4, 5], [1, 2, 3]]


def test_many_documents_of_skewed_lengths_leave_hardly_any_room() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(20_000, generator=generator).pow(3) * 2047).long().add(1).tolist()
    for fit in (P.first_fit_decreasing, P.best_fit_decreasing):
        rows = fit(lengths, 2048)
        assert len(rows) <= P.least_rows(lengths, 2048) + 1
        assert sum(lengths) / (2048 * len(rows)) > 0.999
    assert sum(lengths) / (2048 * len(lengths)) < 0.26  # a row for each


# --- the rows


lengths_and_row = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.lists(st.integers(1, n), min_size=1, max_size=12), st.integers(n, 14))
)


def assert_sound(packed: P.Packed, documents: list[Tensor], length: int, pad_id: int) -> None:
    """Fail unless every token stands in one place, and its position and target are those of its document."""
    ids, targets, positions, segments = packed.ids, packed.targets, packed.positions, packed.segments
    assert {x.shape for x in (ids, targets, positions, segments)} == {(len(ids), length)}
    assert {x.dtype for x in (ids, targets, positions, segments)} == {torch.int64}
    padding = segments == -1
    assert (ids[padding] == pad_id).all()
    assert (targets[padding] == -100).all()
    assert (positions[padding] == 0).all()
    assert packed.efficiency == pytest.approx(sum(len(x) for x in documents) / ids.numel())
    for found, document in zip(P.unpack(ids, segments), documents, strict=True):
        assert torch.equal(found, document)
    for found, document in zip(P.unpack(targets, segments), documents, strict=True):
        assert found.tolist() == [*document[1:].tolist(), -100]
    assert not (padding[:, :-1] & ~padding[:, 1:]).any()  # padding stands at the end


@pytest.mark.parametrize("fit", [P.first_fit_decreasing, P.best_fit_decreasing])
@given(sizes=lengths_and_row, pad_id=st.integers(-1, 3))
@law
def test_packing_loses_and_doubles_nothing(fit: Fit, sizes: tuple[list[int], int], pad_id: int) -> None:
    lengths, length = sizes
    documents = documents_of(lengths)
    packed = P.pack(documents, length, fit=fit, pad_id=pad_id)
    assert_sound(packed, documents, length, pad_id)
    for found, n in zip(P.unpack(packed.positions, packed.segments), lengths, strict=True):
        assert found.tolist() == list(range(n))
    for row in packed.segments:  # each document is one run
        assert len(row.unique_consecutive()) == len(row.unique())
    assert len(packed.ids) == len(fit(lengths, length))


@given(sizes=lengths_and_row, length=st.integers(1, 14), pad_id=st.integers(-1, 3))
@law
def test_concatenation_loses_and_doubles_nothing(sizes: tuple[list[int], int], length: int, pad_id: int) -> None:
    documents = documents_of(sizes[0])
    packed = P.concatenate(documents, length, pad_id=pad_id)
    assert_sound(packed, documents, length, pad_id)
    string = torch.cat(documents)
    assert torch.equal(packed.ids.flatten()[: len(string)], string)
    assert len(packed.ids) == -(-len(string) // length)
    for row, places in zip(packed.segments.tolist(), packed.positions.tolist(), strict=True):
        for t in range(length):
            goes_on = t > 0 and row[t] == row[t - 1] and row[t] >= 0
            assert places[t] == (places[t - 1] + 1 if goes_on else 0)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), length=st.integers(1, 12))
@law
def test_pieces_are_whole_where_they_can_be(lengths: list[int], length: int) -> None:
    documents = documents_of(lengths)
    pieces = P.cut(documents, length)
    assert torch.equal(torch.cat(pieces), torch.cat(documents))
    assert [len(x) for x in pieces] == [min(length, n - i) for n in lengths for i in range(0, n, length)]
    assert P.pack(pieces, length).efficiency > 0.5 or len(P.pack(pieces, length).ids) == 1


def test_targets_of_ones_own() -> None:
    prompt_then_answer = [[-100, 7, 8], [-100, -100, 9, 1]]
    packed = P.pack([[5, 6, 7], [1, 2, 3, 4]], 8, targets=prompt_then_answer)
    assert packed.targets.tolist() == [[-100, -100, 9, 1, -100, 7, 8, -100]]
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0]]


def test_narrow_integers_and_lists_are_read() -> None:
    for documents in (
        [torch.tensor([250, 3], dtype=torch.uint8), torch.tensor([5], dtype=torch.uint8)],
        [[250, 3], [5]],
    ):
        packed = P.pack(documents, 4)
        assert packed.ids.tolist() == [[250, 3, 5, 0]]
        assert packed.targets.tolist() == [[3, -100, -100, -100]]


def test_anything_can_be_unpacked() -> None:
    packed = P.pack(documents_of([3, 1, 4]), 5)
    x = torch.randn(*packed.ids.shape, 2, 3)
    parts = P.unpack(x, packed.segments)
    assert [tuple(part.shape) for part in parts] == [(3, 2, 3), (1, 2, 3), (4, 2, 3)]
    assert torch.equal(torch.cat(parts), torch.cat([x[packed.segments == i] for i in range(3)]))


@given(data=st.data(), B=st.integers(1, 3), T=st.integers(1, 6))
@law
def test_the_mask_by_a_loop(data: st.DataObject, B: int, T: int) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(-1, 2), min_size=T, max_size=T), min_size=B, max_size=B))
    mask = P.block_diagonal_mask(torch.tensor(rows))
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[[a == b != -1 for b in row] for a in row] for row in rows]


# --- a model does not notice

SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=4, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=4, num_key_value_heads=2, sliding_window=3)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=4, num_key_value_heads=2, sliding_window=3, attn_logit_softcapping=2.0)
    ),
    "gpt2": lambda: GPT2ForCausalLM(
        GPT2Config(vocab_size=V, n_embd=12, n_layer=2, n_head=3, n_positions=9, initializer_range=0.3)
    ),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=9)),
}


def model_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[family]().double().eval()


def logits_of(model: nn.Module, ids: Tensor, **options: Tensor) -> Tensor:
    answer = model(ids, **options)
    logits: Tensor = getattr(answer, "logits", answer)
    return logits


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("length", [9, 13, 40], ids=["no two", "some", "all"])
def test_loss_and_gradients_are_those_of_the_documents_alone(family: str, length: int) -> None:
    model, documents = model_of(family), documents_of([7, 2, 9, 5, 1, 4])
    alone = [logits_of(model, x[None])[0] for x in documents]
    right = torch.cat([x[1:] for x in documents])
    expected = F.cross_entropy(torch.cat([x[:-1] for x in alone]), right)  # a mean over all tokens that are predicted

    packed = P.pack(documents, length)
    assert len(packed.ids) == {9: 4, 13: 3, 40: 1}[length]
    mask = P.block_diagonal_mask(packed.segments)
    logits = logits_of(model, packed.ids, mask=mask, positions=packed.positions)
    found = F.cross_entropy(logits.flatten(0, 1), packed.targets.flatten())
    assert_near(found, expected)
    for ours, theirs in zip(P.unpack(logits, packed.segments), alone, strict=True):
        assert_near(ours, theirs)
    ours, theirs = gradients(model, found), gradients(model, expected)
    for name, gradient in theirs.items():
        assert_near(ours[name], gradient)
        assert gradient.abs().max() > 1e-6 or name.endswith("key.bias")  # which softmax takes out

    if length > 9:  # what is wrong without the mask
        careless = logits_of(model, packed.ids, positions=packed.positions)
        assert (F.cross_entropy(careless.flatten(0, 1), packed.targets.flatten()) - expected).abs() > 1e-4


def test_without_positions_learned_ones_go_on() -> None:
    model, packed = model_of("gpt2"), P.pack(documents_of([4, 5]), 9)
    mask = P.block_diagonal_mask(packed.segments)
    right = logits_of(model, packed.ids, mask=mask, positions=packed.positions)
    wrong = logits_of(model, packed.ids, mask=mask)
    assert_near(wrong[:, :5], right[:, :5])  # the first document of the row
    assert (wrong[:, 5:] - right[:, 5:]).abs().max() > 1e-3


def test_rotated_positions_may_go_on() -> None:
    model, packed = model_of("llama"), P.pack(documents_of([4, 5]), 9)
    mask = P.block_diagonal_mask(packed.segments)
    right = logits_of(model, packed.ids, mask=mask, positions=packed.positions)
    assert (logits_of(model, packed.ids, mask=mask) - right).abs().max() < 1e-6  # only differences count


# --- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: P.pack([[1, 2], [1, 2, 3]], 2), r"document 1 has 3 tokens, expected 1 to 2: cut it"),
        (lambda: P.pack([], 2), r"number of documents is 0, expected at least 1"),
        (lambda: P.pack([[1], []], 2), r"number of tokens of document 1 is 0, expected at least 1: leave it out"),
        (lambda: P.pack([torch.ones(1, 1)], 2), r"document 0 has shape \(1, 1\), expected 1 dimensions \(n\)"),
        (lambda: P.pack([torch.tensor([1.0])], 2), r"document 0 has dtype torch.float32, expected integers"),
        (lambda: P.pack([[1, 2]], 2, targets=[[1]]), r"targets is \[1\], number of tokens is \[2\]"),
        (lambda: P.pack([[1, 2]], 2, targets=[[1, 2], [3]]), r"targets is \[2, 1\], number of tokens is \[2\]"),
        (lambda: P.concatenate([[1, 2]], 0), r"length is 0, expected at least 1"),
        (lambda: P.concatenate([], 2), r"number of documents is 0, expected at least 1"),
        (lambda: P.cut([[1, 2]], 0), r"length is 0, expected at least 1"),
        (lambda: P.first_fit_decreasing([1, 0], 2), r"document 1 has 0 tokens, expected 1 to 2: leave it out"),
        (lambda: P.best_fit_decreasing([3], 2), r"document 0 has 3 tokens, expected 1 to 2"),
        (lambda: P.least_rows([3], 2), r"document 0 has 3 tokens, expected 1 to 2"),
        (lambda: P.unpack(torch.zeros(2, 3), torch.zeros(2, 2)), r"\(2, 3\), shape of segments is \(2, 2\)"),
        (lambda: P.block_diagonal_mask(torch.zeros(3)), r"segments has shape \(3,\), expected 2 dimensions"),
    ],
)
def test_bad_input_is_told_with_both_numbers(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
