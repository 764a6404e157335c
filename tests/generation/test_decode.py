"""Greedy decoding and sampling: equal to reading the whole text each time, and to the exact distribution."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.generation import generate, stream
from llm_study.generation.decode import process_logits
from llm_study.generation.session import check_request
from tests.generation.tiny import model, prompts, without_cache


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_greedy_is_the_best_token_of_the_whole_text(family: str) -> None:
    lm, ids = model(family), prompts(3, 5)
    expected = without_cache(lambda text: lm(text)[:, -1], ids, 12)
    assert len(expected[:, 5:].unique()) > 3  # it says something
    assert torch.equal(generate(lm, ids, max_new_tokens=12), expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 5}, {"repetition_penalty": 1.3}], ids=str)
def test_a_stream_is_the_text_column_by_column(options: dict[str, Any]) -> None:
    lm, ids = model(), prompts(2, 5)
    whole = generate(lm, ids, max_new_tokens=9, generator=torch.Generator().manual_seed(0), **options)
    parts = list(stream(lm, ids, max_new_tokens=9, generator=torch.Generator().manual_seed(0), **options))
    assert all(tokens.shape == (2,) for tokens in parts)
    assert torch.equal(torch.stack(parts, dim=1), whole[:, 5:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_prompt_among_longer_ones_is_continued_as_alone(family: str, options: dict[str, Any]) -> None:
    lm, ids = model(family), prompts(3, 7)
    mask = torch.arange(7) >= torch.tensor([[0], [2], [6]])
    together = generate(lm, ids, max_new_tokens=8, mask=mask, repetition_penalty=1.2, **options)
    assert torch.equal(together[:, :7], ids)
    for row, padding in enumerate([0, 2, 6]):
        alone = generate(lm, ids[row : row + 1, padding:], max_new_tokens=8, repetition_penalty=1.2, **options)
        assert torch.equal(together[row, padding:], alone[0])


def test_a_seed_gives_the_same_text_again() -> None:
    lm, ids = model(), prompts(4, 3)
    first, again, other = (
        generate(lm, ids, max_new_tokens=20, temperature=2.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def exact(lm: nn.Module, ids: Tensor, new: int, **options: Any) -> dict[tuple[int, ...], float]:
    """Return the probability of each continuation, from one pass over each whole text and the chain rule."""
    V, found = lm.config.vocab_size, {}
    for tail in itertools.product(range(V), repeat=new):
        text, logp = torch.cat([ids, torch.tensor([tail])], dim=1), 0.0
        logits = lm(text)
        for t, token in enumerate(tail, start=ids.shape[1]):
            scores = process_logits(logits[:, t - 1], text[:, :t], **options)
            logp += scores.log_softmax(-1)[0, token].item()
        found[tail] = float(torch.tensor(logp).exp())
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 3},
        {"temperature": 1.2, "top_p": 0.8},
        {"temperature": 1.2, "min_p": 0.3},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(options: dict[str, Any]) -> None:
    lm, ids, count, new = model(vocabulary=5, layers=2, scale=3.0), torch.tensor([[1, 2, 0]]), 6000, 3
    expected = exact(lm, ids, new, **options)
    assert sum(expected.values()) == pytest.approx(1)
    sampler = torch.Generator().manual_seed(0)
    text = generate(lm, ids.expand(count, -1), max_new_tokens=new, generator=sampler, **options)
    codes = (text[:, 3:] * torch.tensor([25, 5, 1])).sum(1)  # a continuation as one number
    observed = torch.bincount(codes, minlength=125).double()
    p = torch.tensor(list(expected.values()), dtype=torch.float64)
    assert observed[p == 0].sum() == 0
    common = p * count >= 5  # all rarer ones are one class
    observed, p = (torch.cat([x[common], x[~common].sum()[None]]) for x in (observed, p))
    observed, p = observed[p > 0], p[p > 0]
    statistic, freedom = ((observed - count * p) ** 2 / (count * p)).sum().item(), len(p) - 1
    assert freedom >= 8
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # mean of χ² and four standard deviations


def test_filters_do_not_matter_for_the_best_token() -> None:
    lm, ids = model(), prompts()
    plain = generate(lm, ids, max_new_tokens=6)
    assert torch.equal(generate(lm, ids, max_new_tokens=6, top_k=2, top_p=0.5, min_p=0.2), plain)
    assert torch.equal(generate(lm, ids, max_new_tokens=6, top_k=1, temperature=3.0), plain)


def test_rows_end_and_are_filled() -> None:
    lm, ids = model(), prompts(3, 5)
    plain = generate(lm, ids, max_new_tokens=12)[:, 5:]
    ends = [int(plain[0, 2]), int(plain[1, 4])]
    text = generate(lm, ids, max_new_tokens=12, eos_id=ends)
    lengths = [next((i for i, token in enumerate(row) if token in ends), 11) + 1 for row in plain.tolist()]
    assert len(set(lengths)) > 1
    assert text.shape[1] == 5 + max(lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(text[row, 5 : 5 + length], plain[row, :length])
        assert (text[row, 5 + length :] == ends[0]).all()


def test_what_is_generated_can_be_trained_on() -> None:
    lm, ids = model(), prompts()
    for options in ({}, {"num_beams": 2}):
        text = generate(lm, ids, max_new_tokens=3, **options)
        lm(text).sum().backward()
        assert lm.lm_head.weight.grad is not None
    lm(next(stream(lm, ids, max_new_tokens=1))[:, None]).sum().backward()


def test_half_precision_is_penalized_and_filtered_in_float32() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.arange(10).expand(2, -1)
    found = process_logits(logits, ids, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    assert found.dtype == torch.float32
    assert torch.equal(found, process_logits(logits.float(), ids, temperature=0.7, top_p=0.9, repetition_penalty=1.1))


class Refuses(nn.Module):
    """A model that must not be called."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.config = model(family).config
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("computed before the arguments were checked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected more than 0, and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1, expected 0 to 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected more than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"eos_id": 13}, "eos_id is 13, expected 0 to 12: vocab_size is 13"),
        ({"eos_id": [3, -1]}, "eos_id is -1, expected 0 to 12"),
        ({"ids": torch.zeros(2, 0).long()}, "length of the prompt is 0, expected at least 1: begin with bos_token_id"),
        ({"ids": torch.zeros(0, 2).long()}, "number of prompts is 0, expected at least 1"),
        ({"ids": torch.zeros(3).long()}, r"ids has shape \(3,\), expected 2 dimensions"),
        ({"mask": torch.ones(2, 5)}, "mask has dtype torch.float32, expected torch.bool"),
        ({"mask": torch.ones(2, 4).bool()}, r"shape of mask is \(2, 4\), shape of ids is \(2, 5\)"),
        ({"mask": torch.tensor([[1] * 5, [1, 1, 1, 1, 0]]).bool()}, r"row 1 of mask is \[1, 1, 1, 1, 0\]"),
        ({"mask": torch.tensor([[0, 1, 0, 1, 1], [1] * 5]).bool()}, r"row 0 of mask is \[0, 1, 0, 1, 1\]"),
        ({"mask": torch.zeros(2, 5).bool()}, r"row 0 of mask is \[0, 0, 0, 0, 0\].*pad prompts on the left"),
        ({"max_new_tokens": 29}, "n_positions is 32, expected at least 33: 5 tokens of the prompt and 29 new ones"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [generate, stream])
def test_bad_arguments_are_refused_before_anything_is_computed(function: Any, options: Any, message: str) -> None:
    given = {"ids": prompts(2, 5), "max_new_tokens": 4, **options}
    with pytest.raises(ValueError, match=message):
        function(Refuses("gpt2"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"num_beams": 4, "temperature": 0.7}, "num_beams is 4 and temperature is 0.7: beam search does not sample"),
        ({"num_beams": 2, "temperature": -0.7}, "num_beams is 2 and temperature is -0.7"),
        ({"num_beams": 2, "top_p": 2.0}, "top_p is 2.0"),
        ({"num_beams": 2, "max_new_tokens": 29}, "n_positions is 32, expected at least 33"),
    ],
    ids=str,
)
def test_bad_beams_are_refused_before_anything_is_computed(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(Refuses("gpt2"), prompts(2, 5), **{"max_new_tokens": 4, **options})


def test_learned_positions_are_used_to_the_last() -> None:
    lm, ids = model("gpt2"), prompts(2, 5)
    assert generate(lm, ids, max_new_tokens=28).shape == (2, 33)  # the last token needs no position
    mask = torch.tensor([[0, 1, 1, 1, 1]] * 2).bool()
    assert generate(lm, ids, max_new_tokens=29, mask=mask).shape == (2, 34)  # nor does padding
    check_request(lm, ids, max_new_tokens=27, reads_last=True)
    with pytest.raises(
        ValueError, match=r"n_positions is 32, expected at least 33: 5 tokens of the prompt and 28 new ones$"
    ):
        check_request(lm, ids, max_new_tokens=28, reads_last=True)


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="ids has 13, expected 0 to 12"):
        generate(model(), torch.tensor([[13]]), max_new_tokens=1)
