"""Decoding on every device: in float64, where no two logits are equal, the ids are those of the CPU without a cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import T5Config
from llm_study.generation import generate, stream
from llm_study.generation.beam import beam_search, diverse_beam_search
from llm_study.generation.contrast import contrastive_decode, contrastive_search, dola_decode, guided_decode
from llm_study.generation.serving import Request, Scheduler
from llm_study.models.t5 import T5ForConditionalGeneration
from llm_study.nn.paged import BlockPool
from tests.devices.where import assert_near, every_device, moved, randint
from tests.generation.tiny import model, prompts, without_cache

NEW = 8
FAMILIES = ["llama", "gpt2", "mistral"]
every_family = pytest.mark.parametrize("family", FAMILIES)
PADDED = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])


def last(lm: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what gives the logits after a text, read as a whole."""
    return lambda ids: lm(ids)[:, -1]


@every_device
@every_family
def test_greedy_is_the_argmax_of_the_whole_text_each_time(family: str, device: str) -> None:
    lm = model(family)
    found = generate(moved(lm, device), prompts().to(device), max_new_tokens=NEW)
    assert found.device.type == device
    assert torch.equal(found.cpu(), without_cache(last(lm), prompts(), NEW))


@every_device
@every_family
def test_padded_prompts_go_on_as_alone(family: str, device: str) -> None:
    lm, ids = model(family), prompts()
    found = generate(moved(lm, device), ids.to(device), max_new_tokens=NEW, mask=PADDED.to(device)).cpu()
    for row, real in enumerate(PADDED):
        alone = without_cache(last(lm), ids[row : row + 1, real], NEW)
        assert torch.equal(found[row, -NEW:], alone[0, -NEW:])


@every_device
def test_a_text_ends_at_its_end(device: str) -> None:
    lm, ids = model(), prompts()
    plain = without_cache(last(lm), ids, NEW)
    end = int(plain[0, 7])
    found = generate(moved(lm, device), ids.to(device), max_new_tokens=NEW, eos_id=end).cpu()
    at = (plain[0, 5:] == end).nonzero()[0].item() + 5
    assert torch.equal(found[0, : at + 1], plain[0, : at + 1])
    assert (found[0, at:] == end).all()


def alone(lm: nn.Module, ids: Tensor) -> Any:
    return generate(lm, ids, max_new_tokens=NEW, num_beams=3, repetition_penalty=1.2)


WAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "beams by generate": alone,
    "beam_search": lambda lm, ids: beam_search(lm, ids, max_new_tokens=NEW, num_beams=3, eos_id=2),
    "diverse_beam_search": lambda lm, ids: diverse_beam_search(
        lm, ids, max_new_tokens=NEW, num_beams=4, num_groups=2, diversity=0.7
    ),
    "guided_decode": lambda lm, ids: guided_decode(lm, ids, max_new_tokens=NEW, scale=1.5),
    "dola_decode": lambda lm, ids: dola_decode(lm, ids, max_new_tokens=NEW, layers=[0, 1]),
    "contrastive_search": lambda lm, ids: contrastive_search(lm, ids, max_new_tokens=NEW, top_k=3),
    "penalty": lambda lm, ids: generate(lm, ids, max_new_tokens=NEW, repetition_penalty=1.5),
    "the best of one": lambda lm, ids: generate(lm, ids, max_new_tokens=NEW, temperature=0.7, top_k=1),
}


@every_device
@pytest.mark.parametrize("mask", [None, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("way", ["beam_search", "guided_decode", "dola_decode", "contrastive_search"])
def test_prompts_of_different_lengths(way: str, mask: Tensor | None, device: str) -> None:
    def run(where: str) -> Any:
        function = {"beam_search": beam_search, "guided_decode": guided_decode}.get(way) or {
            "dola_decode": dola_decode, "contrastive_search": contrastive_search,
        }[way]  # fmt: skip
        return function
    del run


@every_device
@pytest.mark.parametrize("way", WAYS)
def test_searches_and_contrasts_find_what_the_cpu_finds(way: str, device: str) -> None:
    lm, ids = model(), prompts()
    expected, found = WAYS[way](lm, ids), WAYS[way](moved(lm, device), ids.to(device))
    if isinstance(expected, Tensor):
        assert_near(found, expected, device)
    else:
        assert_near(found.ids, expected.ids, device)
        assert_near(found.lengths, expected.lengths, device)
        assert_near(found.scores, expected.scores, device, 1e-12)
