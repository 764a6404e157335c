"""Beam search against all texts there are, and against a search in plain Python that reads each text anew."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.generation import generate
from llm_study.generation.beam import beam_search, diverse_beam_search
from tests.generation.tiny import model, prompts

Text = tuple[int, ...]


@torch.no_grad()
def log_probabilities(lm: nn.Module, text: Text) -> Tensor:
    """Return ``(V,)`` of the next token."""
    return lm(torch.tensor([text]))[0, -1].log_softmax(-1)


def every_text(lm: nn.Module, prompt: Text, new: int, end: int | None) -> list[tuple[float, Text]]:
    """Return the log-probability and the new tokens of all texts that end or have ``new`` tokens."""
    whole = []
    for tail in itertools.product(range(lm.config.vocab_size), repeat=new):
        tail = tail[: tail.index(end) + 1] if end in tail else tail
        whole.append(tail)
    heads = sorted({tail[:t] for tail in whole for t in range(len(tail))})
    after = {head: log_probabilities(lm, prompt + head) for head in heads}
    return [(sum(after[tail[:t]][x].item() for t, x in enumerate(tail)), tail) for tail in sorted(set(whole))]


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(penalty: float, end: int | None) -> None:
    lm, ids = model(vocabulary=4, layers=2), torch.tensor([[1, 3]])
    scored = sorted(((p / len(tail) ** penalty, tail) for p, tail in every_text(lm, (1, 3), 3, end)), reverse=True)
    options = {"max_new_tokens": 3, "num_beams": 64, "eos_id": end, "early_stopping": "never"}
    found = beam_search(lm, ids, length_penalty=penalty, **options)
    kept = [tuple(found.ids[0, i, 2 : 2 + n].tolist()) for i, n in enumerate(found.lengths[0].tolist()) if n]
    assert len(kept) == len(scored)
    assert kept == [tail for _, tail in scored]
    assert found.scores[0, : len(kept)].tolist() == pytest.approx([score for score, _ in scored])
    assert not found.scores[0, len(kept) :].isfinite().any()


def test_a_wider_beam_finds_what_greedy_misses() -> None:
    for seed in range(20):
        lm, ids = model(vocabulary=6, layers=2, seed=seed), torch.tensor([[1, 3]])
        narrow, wide = (
            beam_search(lm, ids, max_new_tokens=4, num_beams=k, length_penalty=0.0).scores[0, 0] for k in (1, 30)
        )
        if wide > narrow + 0.01:
            return
    raise AssertionError("greedy was best everywhere")


def search(
    lm: nn.Module, prompt: Text, new: int, groups: list[int], diversity: float, end: int | None, penalty: float
) -> list[tuple[float, Text]]:
    """Search with groups of beams, one text at a time, to the last token; return scores and texts, best first."""
    live: list[list[tuple[float, Text]]] = [[(0.0, ())] for _ in groups]
    done: list[list[tuple[float, Text]]] = [[] for _ in groups]
    for n in range(1, new + 1):
        chosen: list[int] = []
        for g, size in enumerate(groups):
            grown = []
            for score, tail in live[g]:
                logp = log_probabilities(lm, prompt + tail)
                grown += [
                    (score + x - diversity * chosen.count(token), (*tail, token))
                    for token, x in enumerate(logp.tolist())
                ]
            grown.sort(reverse=True)
            for score, tail in grown[:size]:
                if tail[-1] == end or n == new:
                    done[g].append((score / n**penalty, tail))
            done[g] = sorted(done[g], reverse=True)[:size]
            live[g] = [(score, tail) for score, tail in grown if tail[-1] != end][:size]
            chosen += [tail[-1] for _, tail in live[g]]
    return sorted(itertools.chain(*done), reverse=True)


@pytest.mark.parametrize("end", [None, 2, 5])
@pytest.mark.parametrize(("groups", "diversity"), [([3], 0.0), ([1, 1, 1], 1.0), ([2, 2], 0.7), ([3, 3], 5.0)])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_is_the_search_that_reads_each_text_anew(
    family: str, groups: list[int], diversity: float, end: int | None
) -> None:
    lm, ids = model(family, vocabulary=9, layers=2, scale=3.0), prompts(2, 4, vocabulary=9)
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": sum(groups), "length_penalty": 0.8, "eos_id": end}
    options["early_stopping"] = "never"
    if len(groups) > 1:
        found = diverse_beam_search(lm, ids, num_groups=len(groups), diversity=diversity, **options)
    else:
        found = beam_search(lm, ids, **options)
    for row in range(2):
        expected = search(lm, tuple(ids[row].tolist()), 5, groups, diversity, end, 0.8)
        texts = [tuple(found.ids[row, i, 4 : 4 + n].tolist()) for i, n in enumerate(found.lengths[row].tolist())]
        assert found.scores[row].tolist() == pytest.approx([score for score, _ in expected])
        assert sorted(texts) == sorted(tail for _, tail in expected)


def test_without_diversity_all_groups_are_one_plain_search() -> None:
    lm, ids = model(scale=3.0), prompts()
    plain = beam_search(lm, ids, max_new_tokens=6, num_beams=2)
    groups = diverse_beam_search(lm, ids, max_new_tokens=6, num_beams=6, num_groups=3, diversity=0.0)
    assert torch.equal(groups.ids, plain.ids.repeat_interleave(3, dim=1))
    assert torch.allclose(groups.scores, plain.scores.repeat_interleave(3, dim=1))


def test_more_diversity_gives_more_tokens() -> None:
    lm, ids = model(scale=3.0), prompts(1)
    counts = []
    for diversity in (0.0, 50.0):
        found = diverse_beam_search(lm, ids, max_new_tokens=4, num_beams=4, num_groups=4, diversity=diversity)
        counts.append([len(found.ids[0, :, t].unique()) for t in range(5, 9)])
    assert counts == [[1] * 4, [4] * 4]


def test_a_beam_of_one_is_greedy() -> None:
    lm, ids = model(), prompts()
    for end in (None, 3):
        found = beam_search(lm, ids, max_new_tokens=8, num_beams=1, eos_id=end, early_stopping=True)
        greedy = generate(lm, ids, max_new_tokens=8, eos_id=end)
        assert torch.equal(found.ids[:, 0], greedy)


def test_scores_are_log_probabilities_of_the_texts() -> None:
    lm, ids = model(scale=3.0), prompts(2, 5)
    ends = [0, 2, 4, 6, 8]
    found = beam_search(lm, ids, max_new_tokens=7, num_beams=4, eos_id=ends, length_penalty=0.3)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert found.lengths.unique().numel() > 1
    for row, i in itertools.product(range(2), range(4)):
        n, text = int(found.lengths[row, i]), tuple(found.ids[row, i].tolist())
        assert set(text[5 + n :]) <= {ends[0]}
        logp = sum(log_probabilities(lm, text[:t])[text[t]].item() for t in range(5, 5 + n))
        assert found.scores[row, i].item() == pytest.approx(logp / n**0.3)


def test_log_probabilities_can_be_adjusted() -> None:
    lm, ids = model(scale=3.0), prompts(2, 5)
    plain = beam_search(lm, ids, max_new_tokens=3, num_beams=2)
    seen, unwanted = [], int(plain.ids[0, 0, 6])

    def adjust(logp: Tensor, text: Tensor) -> Tensor:
        seen.append(text.shape)
        return logp.masked_fill(torch.arange(13) == unwanted, -torch.inf)

    found = beam_search(lm, ids, max_new_tokens=3, num_beams=2, adjust=adjust)
    assert seen == [(4, 5), (4, 6), (4, 7)]
    assert unwanted not in found.ids[:, :, 5:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 3}, "num_groups = 3 does not divide num_beams = 4"),
        ({"num_groups": 0}, "num_groups is 0, expected at least 1"),
        ({"diversity": -1.0}, "diversity is -1.0, expected 0 or more"),
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"early_stopping": "always"}, "early_stopping is 'always', expected True, False or 'never'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"eos_id": 13}, "eos_id is 13"),
    ],
    ids=str,
)
def test_bad_arguments(options: Any, message: str) -> None:
    given = {"max_new_tokens": 3, "num_beams": 4, "num_groups": 2, "diversity": 1.0, **options}
    with pytest.raises(ValueError, match=message):
        diverse_beam_search(model(), prompts(), **given)
    if not {"num_groups", "diversity"} & options.keys():
        del given["num_groups"], given["diversity"]
        with pytest.raises(ValueError, match=message):
            beam_search(model(), prompts(), **given)
