"""BERT with a classifier against transformers: logits, loss and gradients of every parameter, and folders both ways."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llm_study.core.config import BertConfig
from llm_study.models import from_pretrained
from llm_study.models.bert import BertForSequenceClassification
from llm_study.optim.groups import decay_groups
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import FAMILIES, assert_all_close, oracle, padded, random_ids, scramble, tensors_of

LABELS = {0: "bad", 1: "so-so", 2: "good"}


def classifier(dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """Return transformers' classifier, tiny and scrambled."""
    torch.manual_seed(0)
    options = {**copy.deepcopy(FAMILIES["bert"][2]), "id2label": LABELS, **changes}
    model: nn.Module = transformers.BertForSequenceClassification(transformers.BertConfig(**options))
    model.set_attn_implementation("eager")
    scramble(model, 0)
    return model.to(dtype).eval()


def pair(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[BertForSequenceClassification, nn.Module]:
    """Return our model with the weights of the oracle, and the oracle."""
    theirs = classifier(dtype, **changes)
    ours = BertForSequenceClassification(BertConfig.from_dict(theirs.config.to_dict())).to(dtype).eval()
    return ours.load_hub(tensors_of(theirs)), theirs


def gradients(model: nn.Module, logits: Tensor, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    return {"logits": logits.detach(), "loss": loss.detach(), **dict(zip(names, found, strict=True))}


def outcome(theirs: nn.Module, ids: Tensor, labels: Tensor, mask: Tensor, types: Tensor) -> dict[str, Tensor]:
    theirs.config.problem_type = None if theirs.wanted is None else theirs.wanted  # it writes what it has guessed
    answer = theirs(input_ids=ids, attention_mask=mask.long(), token_type_ids=types, labels=labels)
    return gradients(theirs, answer.logits, answer.loss)


NUMBERS = torch.randn(3, 3, generator=torch.Generator().manual_seed(3))
PROBLEMS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "one label of three": ({}, torch.tensor([2, 0, 1])),
    "one label of two": ({"id2label": {0: "no", 1: "yes"}}, torch.tensor([1, 0, 1])),
    "several labels": ({"problem_type": "multi_label_classification"}, (NUMBERS > 0).float()),
    "three numbers": ({"problem_type": "regression"}, NUMBERS),
    "a number": ({"id2label": {0: "stars"}}, NUMBERS[:, 0]),
    "a number in a column": ({"id2label": {0: "stars"}}, NUMBERS[:, :1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("changes", "labels"), PROBLEMS.values(), ids=PROBLEMS)
def test_logits_loss_and_gradients(changes: dict[str, Any], labels: Tensor, dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype, **changes)
    theirs.wanted = changes.get("problem_type")
    labels = labels.to(dtype) if labels.is_floating_point() else labels
    ids, mask = random_ids(3), padded("right")
    types = torch.randint(2, (3, 16), generator=torch.Generator().manual_seed(2))
    logits = ours(ids, mask=mask, types=types)
    found = gradients(ours, logits, ours.loss(logits, labels))
    expected = outcome(theirs, ids, labels, mask, types)
    double = copy.deepcopy(theirs).double()
    wide = labels.double() if labels.is_floating_point() else labels
    assert_all_close(found, expected, outcome(double, ids, wide, mask, types), None)


@torch.no_grad()
def test_features_are_what_the_pooler_gives() -> None:
    ours, theirs = pair()
    assert_close(ours.features(random_ids()), theirs.bert(input_ids=random_ids()).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("labels", [LABELS, {0: "LABEL_0", 1: "LABEL_1"}, {0: "stars"}], ids=str)
def test_folders_go_both_ways(tmp_path: Path, labels: dict[int, str]) -> None:
    ours, theirs = pair(id2label=labels)
    expected = theirs(input_ids=random_ids()).logits
    theirs.save_pretrained(tmp_path / "theirs")
    read = from_pretrained(tmp_path / "theirs")
    assert isinstance(read, BertForSequenceClassification)
    assert read.config.labels == tuple(labels.values())
    assert not read.training
    assert_close(read(random_ids()), expected)
    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    back, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values())
    assert back.config.id2label == labels
    assert back.config.label2id == {label: i for i, label in labels.items()}
    assert_close(back(input_ids=random_ids()).logits, expected)


def rewrite(folder: Path, drop: tuple[str, ...] = (), **more: Any) -> None:
    file = folder / "config.json"
    said = json.loads(file.read_text("utf-8"))
    kept = {name: x for name, x in said.items() if name not in drop}
    file.write_text(json.dumps({**kept, **more}), "utf-8")


def test_a_file_that_only_counts_its_labels(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path)
    rewrite(tmp_path, ("id2label", "label2id"), num_labels=3)
    read = from_pretrained(tmp_path)
    assert isinstance(read, BertForSequenceClassification)
    assert read.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["BertForMaskedLM", "BertForPreTraining", "BertModel", "BertForSequenceClassification"]
)
def test_a_new_classifier_on_the_encoder_of_any_folder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(transformers, kind)(transformers.BertConfig(**copy.deepcopy(FAMILIES["bert"][2]))).eval()
    scramble(theirs, 0)
    theirs.save_pretrained(tmp_path)
    torch.manual_seed(1)
    ours = BertForSequenceClassification.from_encoder(tmp_path, labels=("no", "yes", "perhaps"))
    body = theirs if kind == "BertModel" else theirs.bert
    expected = body(input_ids=random_ids())
    assert_close(ours.bert(random_ids(), None, None, None), expected.last_hidden_state)
    if kind != "BertForMaskedLM":
        assert_close(ours.features(random_ids()), expected.pooler_output)
    for name, x in (
        ("classifier", ours.classifier),
        *((("pooler", ours.bert.pooler.dense),) * (kind == "BertForMaskedLM")),
    ):
        assert 0.01 < x.weight.std().item() < 0.03, name
        assert not x.bias.any(), name
    assert ours.config.labels == ("no", "yes", "perhaps")
    assert not ours.training
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert back.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert_close(back(input_ids=random_ids()).logits, ours(random_ids()))


def test_the_dtype_is_that_of_the_folder_or_the_one_asked_for(tmp_path: Path) -> None:
    oracle("bert", dtype=torch.bfloat16).save_pretrained(tmp_path)
    found = BertForSequenceClassification.from_encoder(tmp_path, labels=("a", "b"))
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    found = BertForSequenceClassification.from_encoder(tmp_path, labels=("a", "b"), dtype=torch.float64)
    assert {p.dtype for p in found.parameters()} == {torch.float64}


def test_what_decays_is_what_decays_in_their_trainer() -> None:
    ours, theirs = pair()
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    expected = transformers.trainer_pt_utils.get_parameter_names(theirs, [nn.LayerNorm], patterns)
    names = {p: name for name, p in ours.named_parameters()}
    [decaying] = [group for group in decay_groups(ours, weight_decay=0.1) if group["weight_decay"]]
    assert sorted(names[p] for p in decaying["params"]) == sorted(expected)
