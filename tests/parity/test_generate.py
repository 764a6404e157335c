"""Decoding against ``transformers.generate``: the same ids, for every family, with padding, past windows, with ends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_study.generation import generate
from llm_study.generation.beam import beam_search
from llm_study.generation.contrast import guided_decode
from llm_study.generation.decode import process_logits
from tests.parity import decoders, test_gpt2
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import FAMILIES, VOCABULARY, padded, random_ids

ENDS = [5, 20, 33, 40, 50, 60, 70, 80]  # several, so that some text ends
every_family = pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
every_mask = pytest.mark.parametrize("mask", [None, padded("left")], ids=["real", "padded"])


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """Return our model and theirs, whose own ends of a text are taken away."""
    ours, theirs = test_gpt2.pair() if family == "gpt2" else decoders.pair(family)
    theirs.generation_config.eos_token_id = theirs.generation_config.pad_token_id = None
    return ours.eval(), theirs


def continued(theirs: nn.Module, ids: Tensor, mask: Tensor | None, ends: Any = None, **options: Any) -> Any:
    """Return what transformers makes of a prompt; a row that has ended is filled with the first of the ends."""
    fill = 0 if ends is None else ends if isinstance(ends, int) else ends[0]
    real = torch.ones_like(ids) if mask is None else mask.long()
    options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": fill, **options}
    return theirs.generate(ids, attention_mask=real, **options)


@every_family
@every_mask
@pytest.mark.parametrize("ends", [None, 5, ENDS], ids=["no end", "one end", "several ends"])
@pytest.mark.parametrize("penalty", [None, 1.4])
def test_greedy(family: str, mask: Tensor | None, ends: Any, penalty: float | None) -> None:
    ours, theirs = pair(family)
    options = {"max_new_tokens": 20, "repetition_penalty": penalty}
    expected = continued(theirs, random_ids(3), mask, ends, **options)
    assert torch.equal(generate(ours, random_ids(3), mask=mask, eos_id=ends, **options), expected)


def test_some_texts_end_and_some_do_not() -> None:
    lengths = set()
    for family in ("llama", "mistral", "qwen3", "gemma2", "gpt2"):
        text = generate(pair(family)[0], random_ids(3), max_new_tokens=20, eos_id=ENDS)[:, 16:]
        ended = torch.isin(text, torch.tensor(ENDS)).long()
        lengths |= set(torch.where(ended.any(1), ended.argmax(1) + 1, 99).tolist())
    assert len(lengths) > 3  # 99: no end
    assert max(lengths) == 99


@every_family
@every_mask
@pytest.mark.parametrize("ends", [None, ENDS], ids=["no end", "several ends"])
def test_beams(family: str, mask: Tensor | None, ends: Any) -> None:
    ours, theirs = pair(family)
    expected = continued(theirs, random_ids(3), mask, ends, max_new_tokens=20, num_beams=4)
    assert torch.equal(generate(ours, random_ids(3), max_new_tokens=20, mask=mask, eos_id=ends, num_beams=4), expected)


@every_mask
@pytest.mark.parametrize("ends", [None, 5, ENDS], ids=["no end", "one end", "several ends"])
@pytest.mark.parametrize("stopping", [False, True, "never"])
@pytest.mark.parametrize("power", [0.0, 1.0, 3.0, -1.0])
def test_all_beams_and_their_scores(mask: Tensor | None, ends: Any, stopping: Any, power: float) -> None:
    ours, theirs = pair("mistral")
    options = {"max_new_tokens": 16, "num_beams": 5, "length_penalty": power, "early_stopping": stopping}
    more = {"num_return_sequences": 5, "return_dict_in_generate": True, "output_scores": True}
    expected = continued(theirs, random_ids(3), mask, ends, **options, **more)
    found = beam_search(ours, random_ids(3), mask=mask, eos_id=ends, **options)
    assert torch.equal(found.ids.flatten(0, 1), expected.sequences)
    assert_close(found.scores.flatten(), expected.sequences_scores)


@every_mask
def test_beams_with_a_penalty_on_repetition(mask: Tensor | None) -> None:
    ours, theirs = pair("llama")
    options = {"max_new_tokens": 20, "num_beams": 3, "repetition_penalty": 1.3}
    expected = continued(theirs, random_ids(3), mask, ENDS, **options)
    assert torch.equal(generate(ours, random_ids(3), mask=mask, eos_id=ENDS, **options), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("k", [None, 1, 30])
@pytest.mark.parametrize("p", [None, 0.6, 0.95])
@pytest.mark.parametrize("least", [None, 0.05, 0.3])
@pytest.mark.parametrize("penalty", [None, 0.8, 1.3])
def test_processed_logits(
    temperature: float, k: int | None, p: float | None, least: float | None, penalty: float | None
) -> None:
    steps: list[Any] = [] if penalty is None else [RepetitionPenaltyLogitsProcessor(penalty)]
    steps.append(TemperatureLogitsWarper(temperature))
    steps += [] if k is None else [TopKLogitsWarper(k)]
    steps += [] if p is None else [TopPLogitsWarper(p)]
    steps += [] if least is None else [MinPLogitsWarper(least)]
    ids, logits = random_ids(4, 20), 3 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    expected = LogitsProcessorList(steps)(ids, logits.clone())
    options = {"temperature": temperature, "top_k": k, "top_p": p, "min_p": least, "repetition_penalty": penalty}
    assert torch.equal(process_logits(logits, ids, **options), expected)


@every_family
@every_mask
def test_sampling_with_the_same_seed(family: str, mask: Tensor | None) -> None:
    ours, theirs = pair(family)
    options = {"temperature": 1.6, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    torch.manual_seed(3)
    expected = continued(theirs, random_ids(3), mask, ENDS, max_new_tokens=12, do_sample=True, **options)
    torch.manual_seed(3)
    assert torch.equal(generate(ours, random_ids(3), max_new_tokens=12, mask=mask, eos_id=ENDS, **options), expected)


@every_family
@pytest.mark.parametrize("negative", [None, random_ids(2, 4, seed=9)], ids=["last token", "prompt"])
def test_guidance(family: str, negative: Tensor | None) -> None:
    ours, theirs = pair(family)
    options = {"negative_prompt_ids": negative, "guidance_scale": 1.8}
    expected = continued(theirs, random_ids(2), None, max_new_tokens=12, **options)
    assert torch.equal(guided_decode(ours, random_ids(2), max_new_tokens=12, scale=1.8, negative=negative), expected)
