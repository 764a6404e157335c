"""Decoding by comparison equals the same comparison without a cache, and is greedy where nothing is compared."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.functional import sampling
from llm_study.generation import generate
from llm_study.generation.contrast import contrastive_decode, contrastive_search, dola_decode, guided_decode, outputs_of
from tests.generation.tiny import model, prompts, without_cache

every_family = pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
NEW = 9


# --- expert and amateur


@every_family
@pytest.mark.parametrize(
    "contrast",
    [sampling.contrastive_difference, partial(sampling.contrastive_scores, alpha=0.05, beta=0.8)],
    ids=["difference", "scores"],
)
def test_expert_and_amateur(family: str, contrast: Any) -> None:
    expert, amateur, ids = model(family), model("llama", layers=1, seed=7), prompts()
    expected = without_cache(lambda text: contrast(expert(text)[:, -1], amateur(text)[:, -1]), ids, NEW)
    assert not torch.equal(expected, generate(expert, ids, max_new_tokens=NEW))
    found = contrastive_decode(expert, amateur, ids, max_new_tokens=NEW, contrast=contrast)
    assert torch.equal(found, expected)


# --- guidance


@every_family
def test_guidance(family: str) -> None:
    lm, ids, negative = model(family), prompts(), prompts(2, 3)

    def score(text: Tensor) -> Tensor:
        weak = torch.cat([negative, text[:, ids.shape[1] :]], dim=1)
        return sampling.classifier_free_guidance(lm(text)[:, -1], lm(weak)[:, -1], 2.5)

    expected = without_cache(score, ids, NEW)
    greedy = generate(lm, ids, max_new_tokens=NEW)
    assert not torch.equal(expected, greedy)
    assert torch.equal(guided_decode(lm, ids, max_new_tokens=NEW, scale=2.5, negative=negative), expected)
    assert torch.equal(guided_decode(lm, ids, max_new_tokens=NEW, scale=1.0, negative=negative), greedy)


def test_guidance_without_a_negative_prompt_takes_the_last_token() -> None:
    lm, ids = model(), prompts()
    found, named = (
        guided_decode(lm, ids, max_new_tokens=NEW, scale=2.0, negative=negative) for negative in (None, ids[:, -1:])
    )
    assert torch.equal(found, named)


# --- early layers


class Skip(nn.Module):
    """A layer that does nothing."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


@torch.no_grad()
def hidden_states(lm: nn.Module, text: Tensor) -> list[Tensor]:
    """Return what each layer gives, normalized: the output of the model when those behind it do nothing."""
    body = lm.transformer if hasattr(lm, "transformer") else lm.model
    layers, found = list(lm.layers), []
    for n in range(1, len(layers) + 1):
        for i in range(n, len(layers)):
            lm.layers[i] = Skip()
        found.append(body(text))
        for i in range(n, len(layers)):
            lm.layers[i] = layers[i]
    return found


@every_family
@pytest.mark.parametrize("layers", [[1], [3, 1], [1, 2, 3]], ids=str)
def test_early_layers(family: str, layers: list[int]) -> None:
    lm, ids = model(family, layers=4), prompts()

    def score(text: Tensor) -> Tensor:
        states = hidden_states(lm, text)
        early = torch.stack([lm.lm_head(states[n - 1][:, -1]) for n in sorted(layers)], dim=1)
        return sampling.dola_scores(lm(text)[:, -1], early, alpha=0.05)

    expected = without_cache(score, ids, NEW)
    assert not torch.equal(expected, generate(lm, ids, max_new_tokens=NEW))
    assert torch.equal(dola_decode(lm, ids, max_new_tokens=NEW, layers=layers, alpha=0.05), expected)
    assert not any(layer._forward_hooks for layer in lm.layers)  # nothing is left behind


def test_outputs_are_noted_in_order_and_no_longer_than_asked() -> None:
    lm, ids = model(), prompts()
    with outputs_of(lm.layers) as found:
        logits = lm(ids)
    lm(ids)
    assert len(found) == 3
    assert torch.equal(lm.head(lm.norm(found[-1])), logits)
    with pytest.raises(ValueError, match="ids has"), outputs_of(lm.layers):
        lm(ids + 13)
    assert not any(layer._forward_hooks for layer in lm.layers)


# --- contrastive search


@torch.no_grad()
def search(lm: nn.Module, ids: Tensor, new: int, k: int, alpha: float) -> Tensor:
    """Search for one prompt, candidate by candidate, reading the whole text for each."""
    text, body = ids, lm.transformer if hasattr(lm, "transformer") else lm.model
    for _ in range(new):
        probabilities, tokens = lm(text)[0, -1].softmax(-1).topk(k)
        past, scores = body(text)[0], []
        for p, token in zip(probabilities, tokens, strict=True):
            hidden = body(torch.cat([text, token.view(1, 1)], dim=1))[0, -1]
            likeness = max(F.cosine_similarity(hidden, h, dim=0).item() for h in past)
            scores.append((1 - alpha) * p.item() - alpha * likeness)
        text = torch.cat([text, tokens[torch.tensor(scores).argmax()].view(1, 1)], dim=1)
    return text


@every_family
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (4, 0.6), (13, 1.0)])
def test_contrastive_search(family: str, k: int, alpha: float) -> None:
    lm, ids = model(family), prompts()
    expected = torch.cat([search(lm, row[None], 6, k, alpha) for row in ids])
    assert torch.equal(contrastive_search(lm, ids, max_new_tokens=6, top_k=k, alpha=alpha), expected)
    greedy = generate(lm, ids, max_new_tokens=6)
    assert torch.equal(expected, greedy) == (k == 1)
    assert torch.equal(contrastive_search(lm, ids, max_new_tokens=6, top_k=k, alpha=0.0), greedy)


# --- what all have in common

OTHER = model("llama", layers=1, seed=7)
WAYS = {
    "expert and amateur": lambda lm, ids, **options: contrastive_decode(lm, OTHER, ids, **options),
    "guidance": lambda lm, ids, **options: guided_decode(lm, ids, scale=2.0, **options),
    "early layers": lambda lm, ids, **options: dola_decode(lm, ids, layers=[1, 2], **options),
    "search": lambda lm, ids, **options: contrastive_search(lm, ids, top_k=4, **options),
}
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_a_prompt_among_longer_ones_is_continued_as_alone(way: str) -> None:
    lm, ids = model(), prompts(3, 7)
    mask = torch.arange(7) >= torch.tensor([[0], [2], [6]])
    together = WAYS[way](lm, ids, max_new_tokens=NEW, mask=mask)
    for row, padding in enumerate([0, 2, 6]):
        assert torch.equal(together[row, padding:], WAYS[way](lm, ids[row : row + 1, padding:], max_new_tokens=NEW)[0])


@every_way
def test_rows_end_and_are_filled(way: str) -> None:
    lm, ids = model(), prompts(3, 5)
    plain = WAYS[way](lm, ids, max_new_tokens=NEW)
    end = int(plain[0, 6])
    text = WAYS[way](lm, ids, max_new_tokens=NEW, eos_id=end)
    for row in range(3):
        tail = plain[row, 5:].tolist()
        length = tail.index(end) + 1 if end in tail else len(tail)
        assert torch.equal(text[row, 5 : 5 + length], plain[row, 5 : 5 + length])
        assert (text[row, 5 + length :] == end).all()


@pytest.mark.parametrize("way", ["expert and amateur", "guidance", "early layers"])
def test_drawing_follows_the_scores(way: str) -> None:
    lm, ids = model(), prompts(1).expand(20, -1)
    drawn = [
        WAYS[way](lm, ids, max_new_tokens=NEW, temperature=t, generator=torch.Generator().manual_seed(0))
        for t in (1.0, 1.0, 1e-6)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert len(drawn[0].unique(dim=0)) > 1
    assert torch.equal(drawn[2], WAYS[way](lm, ids, max_new_tokens=NEW))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, ids: contrastive_decode(lm, model(vocabulary=12), ids, max_new_tokens=1), "amateur is 12, .* 13"),
        (lambda lm, ids: contrastive_decode(lm, model("gpt2"), ids, max_new_tokens=30), "n_positions is 32"),
        (lambda lm, ids: contrastive_decode(lm, lm, ids, max_new_tokens=1, temperature=-1.0), "temperature is -1.0"),
        (lambda lm, ids: guided_decode(lm, ids, max_new_tokens=1, scale=-1.0), "scale is -1.0, expected 0 or more"),
        (lambda lm, ids: guided_decode(lm, ids, max_new_tokens=1, scale=2.0, temperature=-1.0), "temperature is -1.0"),
        (
            lambda lm, ids: guided_decode(lm, ids, max_new_tokens=1, scale=2.0, negative=ids[:1]),
            "number of negative prompts is 1, number of prompts is 2",
        ),
        (lambda lm, ids: guided_decode(lm, ids, max_new_tokens=1, scale=2.0, negative=ids[:, :0]), "prompt is 0"),
        (lambda lm, ids: dola_decode(lm, ids, max_new_tokens=1, layers=[]), "number of early layers is 0"),
        (lambda lm, ids: dola_decode(lm, ids, max_new_tokens=1, layers=[1, 3]), "layers has 3, expected 1 to 2"),
        (lambda lm, ids: dola_decode(lm, ids, max_new_tokens=1, layers=[0]), "layers has 0, expected 1 to 2"),
        (lambda lm, ids: dola_decode(lm, ids, max_new_tokens=1, layers=[1], alpha=0.0), "alpha is 0.0"),
        (lambda lm, ids: dola_decode(lm, ids, max_new_tokens=1, layers=[1], temperature=-1.0), "temperature is -1.0"),
        (lambda lm, ids: contrastive_search(lm, ids, max_new_tokens=1, top_k=0), "top_k is 0, expected at least 1"),
        (lambda lm, ids: contrastive_search(lm, ids, max_new_tokens=1, top_k=14), "vocab_size is 13, .* at least 14"),
        (lambda lm, ids: contrastive_search(lm, ids, max_new_tokens=1, top_k=2, alpha=1.1), "alpha is 1.1"),
        (lambda lm, ids: contrastive_search(model("gpt2"), ids, max_new_tokens=28, top_k=2), "expected at least 33"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model(), prompts())
