"""BERT's laws: everybody sees everybody, no padding, no neighbors; what files may hold; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import BertConfig, GPT2Config
from llm_study.core.hub import load_tensors, save_folder
from llm_study.models.bert import BertForMaskedLM, BertForSequenceClassification
from llm_study.models.gpt2 import GPT2ForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 12,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model(**changes: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**{**SIZES, "initializer_range": 0.5, **changes})).double().eval()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(29, (batch, length), generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


@torch.no_grad()
def test_every_position_depends_on_every_other() -> None:
    bert, ids = model(), random_ids(1, 8)
    before = bert(ids).hidden
    for t in range(8):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 7) % 29
        assert ((bert(changed).hidden - before).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_without_position_embeddings_the_order_of_tokens_is_lost() -> None:
    bert, ids, order = model(), random_ids(2, 8), torch.randperm(8)
    types = torch.randint(2, (2, 8))
    assert not close(bert(ids[:, order]).hidden, bert(ids).hidden[:, order])
    bert.bert.embeddings.position_embeddings.weight.zero_()
    shuffled, straight = bert(ids[:, order], types=types[:, order]), bert(ids, types=types)
    assert close(shuffled.hidden, straight.hidden[:, order])
    assert close(shuffled.logits, straight.logits[:, order])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    bert, ids, padding = model(), random_ids(2, 7), random_ids(2, 4)
    real, absent = torch.ones(2, 7, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    parts = ((padding, absent), (ids, real)) if side == "left" else ((ids, real), (padding, absent))
    padded, mask = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert close(bert(padded, mask=mask, positions=positions).hidden[mask], bert(ids).hidden.flatten(0, 1))


@torch.no_grad()
def test_texts_that_share_a_row_do_not_see_each_other() -> None:
    bert, ids, texts = model(), random_ids(2, 10), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    mask = ((texts[:, None] == texts) & (texts < 2)).expand(2, -1, -1)  # the last token is padding, and sees nothing
    together = bert(ids, mask=mask, positions=torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 0]))
    for text in range(2):
        alone = bert(ids[:, texts == text])
        assert close(together.hidden[:, texts == text], alone.hidden)
        assert close(together.logits[:, texts == text], alone.logits)


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    bert, ids = model(), random_ids(3, 8)
    assert close(bert(ids).hidden, torch.cat([bert(row[None]).hidden for row in ids]))


@torch.no_grad()
def test_token_types_are_zeros_unless_given() -> None:
    bert, ids = model(), random_ids(2, 5)
    assert close(bert(ids).hidden, bert(ids, types=torch.zeros(2, 5, dtype=torch.long)).hidden)
    assert not close(bert(ids).hidden, bert(ids, types=torch.ones(2, 5, dtype=torch.long)).hidden)


@torch.no_grad()
def test_hidden_states_are_normalized_last() -> None:
    bert = model()
    hidden = bert(random_ids(2, 5)).hidden  # fresh norms have weight 1 and bias 0
    assert close(hidden.mean(-1), torch.zeros(2, 5).double())
    assert torch.allclose(hidden.var(-1, unbiased=False), torch.ones(2, 5).double(), atol=1e-9)


def test_the_head_shares_matrix_and_bias() -> None:
    tied, free = model(), model(tie_word_embeddings=False)
    assert tied.cls is not None
    assert free.cls is not None
    for bert, shared in ((tied, True), (free, False)):
        head = bert.cls["predictions"]
        assert (head.decoder.weight is bert.bert.embeddings.word_embeddings.weight) == shared
        assert (head.decoder.bias is head.bias) == shared


@torch.no_grad()
@pytest.mark.parametrize("only", NO_DROPOUT)
def test_each_dropout_acts_in_training_only(only: str) -> None:
    bert, ids = model(**{**NO_DROPOUT, only: 0.5}), random_ids(2, 6)
    before = bert(ids).hidden
    assert not close(bert.train()(ids).hidden, before)
    assert not close(bert(ids, mask=torch.ones(2, 6, dtype=torch.bool)).hidden, before)
    assert close(bert.eval()(ids).hidden, before)


# --- files


def stored(bert: BertForMaskedLM) -> dict[str, Tensor]:
    return bert.to_hub({name: x.detach() for name, x in bert.named_parameters()})


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of the first files: gamma and beta."""
    new = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for theirs, old in new:
        tensors = {name.replace(theirs, old): x for name, x in tensors.items()}
    return tensors


EXTRA = {
    "bert.pooler.dense.weight": torch.zeros(12, 12),
    "bert.pooler.dense.bias": torch.zeros(12),
    "bert.embeddings.position_ids": torch.arange(12)[None],
    "cls.seq_relationship.weight": torch.zeros(2, 12),
    "cls.seq_relationship.bias": torch.zeros(2),
}


@torch.no_grad()
def test_old_names_and_what_is_not_read() -> None:
    bert, other, ids = model(), model(initializer_range=0.1), random_ids(2, 5)
    for name, x in bert.named_parameters():  # norms that are not as they were made
        x += 0.1 * torch.randn_like(x) if "LayerNorm" in name else 0
    assert not close(other(ids).logits, bert(ids).logits)
    other.load_hub({**old_names(stored(bert)), **EXTRA})
    assert close(other(ids).logits, bert(ids).logits)
    with pytest.raises(ValueError, match=r"bert\.pooler\.other"):
        other.load_hub({**stored(bert), "bert.pooler.other": torch.zeros(1)})


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_file_without_a_head_gives_no_logits(prefix: str) -> None:
    bert, other, ids = model(), model(initializer_range=0.1), random_ids(2, 5)
    body = {name: x for name, x in {**stored(bert), **EXTRA}.items() if not name.startswith("cls.")}
    other.load_hub({prefix + name.removeprefix("bert."): x for name, x in body.items()})
    assert other(ids).logits is None
    assert close(other(ids).hidden, bert(ids).hidden)
    assert other.hub_name == "BertModel"
    assert "embeddings.word_embeddings.weight" in stored(other)


@pytest.mark.parametrize(
    "name",
    [
        "bias",
        "transform.dense.weight",
        "transform.dense.bias",
        "transform.LayerNorm.weight",
        "transform.LayerNorm.bias",
    ],
)
def test_a_head_with_some_tensors_missing_is_an_error(name: str) -> None:
    tensors = stored(model())
    del tensors[f"cls.predictions.{name}"]
    with pytest.raises(ValueError, match=rf"lacks .*cls\.predictions\.{name} of shape"):
        model().load_hub(tensors)


def test_files_may_repeat_what_is_tied() -> None:
    bert, other = model(), model(initializer_range=0.1)
    tensors = stored(bert)
    matrix, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
    again = {"cls.predictions.decoder.weight": matrix, "cls.predictions.decoder.bias": bias}
    other.load_hub({**tensors, **again})
    assert all(torch.equal(x, y) for x, y in zip(bert.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="differ"):
        other.load_hub({**tensors, "cls.predictions.decoder.weight": matrix + 1})


# --- bad input

IDS = torch.zeros(1, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.full((1, 2), 29), {}, "29"),
        (torch.zeros(1, 13, dtype=torch.long), {}, "max_position_embeddings is 12, expected at least 13"),
        (IDS, {"positions": torch.tensor([0, 12])}, "max_position_embeddings is 12.* 13"),
        (IDS, {"types": torch.tensor([[0, 2]])}, "type_vocab_size is 2.* 3"),
        (IDS, {"types": torch.tensor([[0, -1]])}, "smallest of types is -1"),
        (IDS, {"types": torch.tensor([[0, 1, 1]])}, r"\(1, 3\).*\(1, 2\)"),
        (IDS, {"mask": torch.ones(1, 2)}, "torch.float32"),
        (IDS, {"mask": torch.ones(1, 2, 3, dtype=torch.bool)}, r"\(1, 2, 3\).*\(1, 2, 2\)"),
        (IDS, {"mask": torch.ones(1, 3, dtype=torch.bool)}, r"\(1, 3\).*\(1, 2\)"),
    ],
)
def test_bad_input_is_told_with_both_numbers(ids: Tensor, options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(ids, **options)


# --- the classifier


def classifier(**changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(**{**SIZES, "initializer_range": 0.5, "labels": ("a", "b", "c"), **changes})
    return BertForSequenceClassification(config).double().eval()


@torch.no_grad()
def test_the_classifier_reads_the_first_token_and_padding_changes_nothing() -> None:
    net, ids = classifier(), random_ids(2, 8)
    hidden = net.bert(ids, None, None, None)
    pooled = torch.tanh(hidden[:, 0] @ net.bert.pooler.dense.weight.T + net.bert.pooler.dense.bias)
    assert close(net.features(ids), pooled)
    assert close(net(ids), pooled @ net.classifier.weight.T + net.classifier.bias)
    padded, mask = torch.cat([ids, random_ids(2, 3)], 1), torch.arange(11).expand(2, -1) < 8
    assert close(net(padded, mask=mask), net(ids))
    assert not close(net(padded), net(ids))


@torch.no_grad()
@pytest.mark.parametrize(("hidden", "own"), [(0.5, None), (0.0, 0.5)])
def test_the_dropout_of_the_classifier(hidden: float, own: float | None) -> None:
    settings = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": hidden, "classifier_dropout": own}
    net, ids = classifier(**settings), random_ids(2, 6)
    assert net.drop.p == 0.5
    assert close(net(ids), net(ids))
    net.train()
    assert not close(net(ids), net(ids))
    assert close(net.features(ids), net.features(ids)) == (hidden == 0)


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, torch.tensor([0.0, 1.0]), "labels have dtype torch.float32, expected torch.int64"),
        ({}, torch.tensor([[0], [1]]), r"shape of labels is \(2, 1\).*\(2,\)"),
        ({}, torch.tensor([0, 3]), "labels has 3, expected 0 to 2"),
        ({}, torch.tensor([-1, 0]), "labels has -1, expected 0 to 2"),
        ({"problem_type": "regression"}, torch.zeros(2), r"shape of labels is \(2,\).*\(2, 3\)"),
        ({"problem_type": "multi_label_classification"}, torch.zeros(2, 2), r"\(2, 2\).*\(2, 3\)"),
        ({"labels": ("a",)}, torch.zeros(2, 2), r"\(2, 2\).*\(2, 1\)"),
    ],
)
def test_labels_that_do_not_fit(changes: dict[str, Any], labels: Tensor, message: str) -> None:
    net = classifier(**changes)
    with pytest.raises(ValueError, match=message):
        net.loss(net(random_ids(2, 4)), labels)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_half_a_pooler_is_an_error(tmp_path: Path, missing: str) -> None:
    net = classifier()
    tensors = {name: x for name, x in net.state_dict().items() if name != f"bert.pooler.dense.{missing}"}
    save_folder(tmp_path, net.config.to_dict(), tensors, max_shard_bytes=10**9)
    with pytest.raises(ValueError, match=rf"lacks bert\.pooler\.dense\.{missing} of shape"):
        BertForSequenceClassification.from_encoder(tmp_path, labels=("a", "b"))


def test_an_encoder_of_another_family_or_with_a_hole(tmp_path: Path) -> None:
    GPT2ForCausalLM(GPT2Config(vocab_size=29, n_embd=12, n_layer=1, n_head=3)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'gpt2', expected 'bert'"):
        BertForSequenceClassification.from_encoder(tmp_path / "gpt2", labels=("a", "b"))
    model().save_pretrained(tmp_path / "whole")
    found = load_tensors(tmp_path / "whole")
    del found["bert.embeddings.word_embeddings.weight"]
    save_folder(tmp_path / "hole", model().config.to_dict(), found, max_shard_bytes=10**9)
    with pytest.raises(ValueError, match=r"hole: lacks bert\.embeddings\.word_embeddings\.weight of shape \(29, 12\)"):
        BertForSequenceClassification.from_encoder(tmp_path / "hole", labels=("a", "b"))


def test_a_seed_gives_the_same_head_again(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(BertForSequenceClassification.from_encoder(tmp_path, labels=("a", "b")).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
