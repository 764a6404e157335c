"""Groups of parameters: nothing lost, nothing doubled, and training as with groups that were written by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import BertConfig, GPT2Config, LlamaConfig
from llm_study.models.bert import BertForMaskedLM, BertForSequenceClassification
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW
from llm_study.optim.groups import assign_blocks, decay_groups, discriminative_groups, layer_blocks

SIZES: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
}


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, labels=("a", "b", "c"))).eval()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return nn.Sequential(*layers).double()


def by_hand(model: nn.Sequential, lr: float, factor: float, decay: float) -> list[dict[str, Any]]:
    first, norm, second, other, third = model
    low, middle = lr / factor**2, lr / factor
    return [
        {"params": [first.weight], "lr": low, "weight_decay": decay},
        {"params": [first.bias, norm.weight, norm.bias], "lr": low, "weight_decay": 0.0},
        {"params": [second.weight], "lr": middle, "weight_decay": decay},
        {"params": [second.bias, other.weight, other.bias], "lr": middle, "weight_decay": 0.0},
        {"params": [third.weight], "lr": lr, "weight_decay": decay},
        {"params": [third.bias], "lr": lr, "weight_decay": 0.0},
    ]


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[Tensor]:
    for step in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :2] ** 2).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


BLOCKS = [["0", "1"], ["2", "3"], "4"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AdamW])
@pytest.mark.parametrize("factor", [2.6, 1.0])
def test_training_is_that_of_groups_written_by_hand(kind: type[torch.optim.Optimizer], factor: float) -> None:
    ours, hand = net(), net()
    found = trained(ours, kind(discriminative_groups(ours, BLOCKS, lr=0.1, factor=factor, weight_decay=0.5)))
    expected = trained(hand, kind(by_hand(hand, 0.1, factor, 0.5)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    other = net()
    plain = trained(other, kind([{"params": list(other.parameters()), "lr": 0.1, "weight_decay": 0.5}]))
    assert not any(torch.equal(a, b) for a, b in zip(found[1:4], plain[1:4], strict=True))


def test_rates_fall_by_a_factor_from_block_to_block() -> None:
    model = bert()
    groups = discriminative_groups(model, layer_blocks(model, "bert.encoder.layer"), lr=2e-5, weight_decay=0.01)
    rates = {group["block"]: group["lr"] for group in groups}
    assert list(rates) == list(range(14))
    assert rates[13] == 2e-5
    for block in range(13):
        assert rates[block] == pytest.approx(rates[block + 1] / 2.6, rel=1e-14)


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    model = bert()
    names = {p: name for name, p in model.named_parameters()}
    for groups in (
        decay_groups(model, weight_decay=0.1),
        discriminative_groups(model, layer_blocks(model, "bert.encoder.layer"), lr=1.0, weight_decay=0.1),
    ):
        listed = [p for group in groups for p in group["params"]]
        assert len(listed) == len(set(listed)) == len(names)
        for group in groups:
            for p in group["params"]:
                free = "bias" in names[p] or "LayerNorm" in names[p]
                assert group["weight_decay"] == (0.0 if free else 0.1), names[p]


def test_blocks_of_models() -> None:
    model = bert()
    blocks = layer_blocks(model, "bert.encoder.layer")
    assert len(blocks) == 14
    assert all(name.startswith("bert.embeddings.") for name in blocks[0])
    assert all(name.startswith("bert.encoder.layer.10.") for name in blocks[11])
    head = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    assert blocks[13] == head
    llama = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 2}, tie_word_embeddings=True))
    assert layer_blocks(llama, "model.layers")[0] == ["model.embed_tokens.weight"]
    assert layer_blocks(llama, "model.layers")[-1] == ["model.norm.weight"]  # the head is the matrix of the embeddings
    free = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 2}))
    assert layer_blocks(free, "model.layers")[-1] == ["model.norm.weight", "lm_head.weight"]
    gpt2 = GPT2ForCausalLM(GPT2Config(vocab_size=29, n_embd=12, n_layer=2, n_head=3))
    assert [len(block) for block in layer_blocks(gpt2, "transformer.h")] == [2, 12, 12, 2]
    masked = BertForMaskedLM(BertConfig(**{**SIZES, "num_hidden_layers": 1}))
    assert [name.split(".")[0] for name in layer_blocks(masked, "bert.encoder.layer")[-1]] == ["cls"] * 5


def test_layers_without_anything_around_them() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2)]))
    assert layer_blocks(model, "0") == [["0.0.weight", "0.0.bias"], ["0.2.weight", "0.2.bias"]]


def test_names_are_whole_parts_and_stars_are_anything() -> None:
    model = bert()
    low = assign_blocks(
        model, ["bert.encoder.layer.1", ["bert.embeddings", "*.layer.[02-9]*", "*.layer.1[01].*", "*r.d*", "c*"]]
    )
    assert len(low[0]) == 16
    assert all(name.startswith("bert.encoder.layer.1.") for name in low[0])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["0", "1", "2", "3"], r"^in no block: 4\.weight, 4\.bias$"),
        (["0", "1", "2", "3", "4", "5"], r"^no parameter has the name: 5$"),
        (["0", ["0.bias", "1"], "2", "3", "4"], r"^in several blocks: 0\.bias \(0 and 1\)$"),
        (["0", "4"], r"^in no block: 1\.weight, 1\.bias, 2\.weight, 2\.bias, 3\.weight and 1 more$"),
        (["*"], ""),
    ],
)
def test_parameters_of_no_block_or_of_two(blocks: list[Any], message: str) -> None:
    if not message:
        assert len(assign_blocks(net(), blocks)[0]) == 10
        return
    with pytest.raises(ValueError, match=message):
        discriminative_groups(net(), blocks, lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0, expected at least 0"),
        ({"lr": 0.1, "factor": 0.0}, "factor is 0.0, expected a number above 0"),
        ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay is -0.1, expected at least 0"),
        ({"lr": 0.1, "blocks": []}, "the number of blocks is 0, expected at least 1"),
    ],
)
def test_numbers_without_a_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discriminative_groups(net(), **{"blocks": BLOCKS, **options})


@pytest.mark.parametrize("layers", ["layers", "bert.encoder", "bert.encoder.layer.0"])
def test_layers_that_are_no_list(layers: str) -> None:
    with pytest.raises(ValueError, match=rf"layers is '{layers}', expected a ModuleList .* bert\.encoder\.layer$"):
        layer_blocks(bert(), layers)
