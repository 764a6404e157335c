"""Decoding on every device: in float64, where no two logits are equal, the ids are those of the CPU without a cache."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import T5Config
from llm_study.functional.sampling import top_k_filter
from llm_study.generation import generate, stream
from llm_study.generation.beam import Beams, beam_search, diverse_beam_search
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


WAYS: dict[str, Callable[..., Any]] = {
    "beams by generate": partial(generate, num_beams=3, repetition_penalty=1.2),
    "beam_search": partial(beam_search, num_beams=3, eos_id=2),
    "diverse_beam_search": partial(diverse_beam_search, num_beams=4, num_groups=2, diversity=0.7),
    "guided_decode": partial(guided_decode, scale=1.5),
    "dola_decode": partial(dola_decode, layers=[1, 2]),
    "contrastive_search": partial(contrastive_search, top_k=3),
    "penalty": partial(generate, repetition_penalty=1.5),
    "the best of one": partial(generate, temperature=0.7, top_k=1),
}


def weak(where: str) -> nn.Module:
    """Return another model on a device."""
    return moved(model(layers=1, seed=7), where)


@every_device
@pytest.mark.parametrize("mask", [None, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("way", [*WAYS, "contrastive_decode"])
def test_searches_and_contrasts_find_what_the_cpu_finds(way: str, mask: Tensor | None, device: str) -> None:
    found = []
    for where in ("cpu", device):
        decode = WAYS.get(way) or (lambda lm, ids, where=where, **o: contrastive_decode(lm, weak(where), ids, **o))
        lm, real = moved(model(), where), None if mask is None else mask.to(where)
        found.append(decode(lm, prompts().to(where), max_new_tokens=NEW, mask=real))
    if isinstance(found[0], Beams):
        assert_near(found[1].ids, found[0].ids, device)
        assert_near(found[1].lengths, found[0].lengths, device)
        assert_near(found[1].scores, found[0].scores, device, 1e-12)
    else:
        assert_near(found[1], found[0], device)


@every_device
@pytest.mark.parametrize("way", [*WAYS, "contrastive_decode"])
def test_a_search_is_not_greedy(way: str, device: str) -> None:
    """Or the test above would only see greedy decoding, nine times."""
    lm, ids = moved(model(), device), prompts().to(device)
    options: dict[str, Any] = {"max_new_tokens": NEW}
    decode = WAYS.get(way) or (lambda lm, ids, **o: contrastive_decode(lm, weak(device), ids, **o))
    found = decode(lm, ids, **options)
    text = found.ids[:, 0] if isinstance(found, Beams) else found
    same = text.shape == (2, 5 + NEW) and torch.equal(text, generate(lm, ids, **options))
    assert same == (way == "the best of one")


# --- drawn


@every_device
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_the_same_seed_draws_the_same_text(options: dict[str, Any], device: str) -> None:
    lm, ids = moved(model(), device), prompts(batch=8).to(device)

    def drawn(seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return generate(lm, ids, max_new_tokens=NEW, temperature=1.0, generator=generator, **options)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@every_device
def test_what_is_drawn_is_what_the_filters_leave(device: str) -> None:
    """Of 500 draws none is a token that float64 on the CPU rules out, and none that it keeps is missing."""
    lm, ids = model(scale=2.0), prompts(batch=1)
    kept = top_k_filter(lm(ids)[0, -1].detach(), 4).isfinite()
    drawn = generate(
        moved(lm, device), ids.expand(500, -1).to(device), max_new_tokens=1, temperature=3.0, top_k=4,
        generator=torch.Generator(device).manual_seed(0),
    )  # fmt: skip
    assert set(drawn[:, -1].tolist()) == set(kept.nonzero()[:, 0].tolist())


@every_device
def test_a_stream_hands_out_what_generate_returns(device: str) -> None:
    lm, ids = moved(model("gpt2"), device), prompts().to(device)
    tokens = list(stream(lm, ids, max_new_tokens=NEW))
    assert {x.device.type for x in tokens} == {device}
    assert torch.equal(torch.stack(tokens, 1).cpu(), without_cache(last(model("gpt2")), prompts(), NEW)[:, 5:])


# --- T5, and requests that are served together


@every_device
@pytest.mark.parametrize("beams", [1, 3])
def test_t5_writes_a_target(beams: int, device: str) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3, "initializer_factor": 3.0}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=29, **sizes)).double().eval()
    ids = randint(29, 2, 7)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    found = []
    for where in ("cpu", device):
        given = moved(t5, where).given(ids.to(where), mask=real.to(where))
        found.append(generate(given, given.start, max_new_tokens=NEW, num_beams=beams))
    assert_near(found[1], found[0], device)
    if beams == 1:
        greedy = without_cache(lambda target: t5(ids, target, mask=real)[:, -1], t5.given(ids).start, NEW)
        assert torch.equal(found[1].cpu(), greedy)


@every_device
@every_family
def test_who_is_served_beside_others_gets_what_he_would_get_alone(family: str, device: str) -> None:
    """Prompts in chunks, requests that are preempted for lack of blocks, prefixes that are shared."""
    lm = model(family)
    pool = BlockPool(lm.config, 8, 2, dtype=torch.float64, device=device)
    scheduler = Scheduler(moved(lm, device), pool, token_budget=6, max_running=3)
    start = randint(13, 4).tolist()
    wanted = [Request(id=i, prompt=start + randint(13, i, seed=i).tolist(), max_new_tokens=6) for i in range(5)]
    for request in wanted:
        scheduler.add(request)
    done = {completion.request.id: completion for completion in scheduler.run()}
    assert sum(completion.n_reused for completion in done.values()) > 0
    assert sum(completion.n_preempted for completion in done.values()) > 0
    for request in wanted:
        alone = without_cache(last(lm), torch.tensor([request.prompt]), 6)
        assert done[request.id].ids == alone[0, len(request.prompt) :].tolist()
    scheduler.prefixes.clear()
    assert pool.n_free == pool.n_blocks


@every_device
def test_a_request_draws_by_its_own_seed(device: str) -> None:
    lm = moved(model(), device)
    texts = []
    for others in (0, 2):
        scheduler = Scheduler(lm, BlockPool(lm.config, 64, 4, dtype=torch.float64, device=device))
        for i in range(1 + others):
            scheduler.add(Request(id=i, prompt=[1, 2 + i], max_new_tokens=12, temperature=1.0, top_p=0.9, seed=i))
        texts.append(next(x.ids for x in scheduler.run() if x.request.id == 0))
    assert texts[0] == texts[1]
