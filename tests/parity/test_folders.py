"""Folders that transformers writes and we read, and the other way round: every family, tied, sharded, old and new."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from llm_study.core.config import config_from_dict
from llm_study.core.hub import CONFIG, INDEX, WEIGHTS
from llm_study.core.roofline import parameters
from llm_study.models import from_pretrained
from llm_study.models.base import PretrainedModel
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import FAMILIES, LLAMA3_ROPE, oracle, random_ids

every_family = pytest.mark.parametrize("family", FAMILIES)
every_way = pytest.mark.parametrize("tied", [True, False], ids=["tied", "not tied"])
every_size = pytest.mark.parametrize("shard_bytes", [10**9, 20_000], ids=["one file", "shards"])


def logits_of(model: nn.Module) -> Tensor:
    """Return the logits of a text longer than the windows."""
    answer = model(random_ids(2, 24))
    logits: Tensor = getattr(answer, "logits", answer)
    return logits.detach()


def reread(folder: Path, family: str) -> nn.Module:
    """Return the model that transformers finds in a folder, nothing missing and nothing left over."""
    kind = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    model, report = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", dtype="auto")
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found: nn.Module = model.eval()
    return found


def names_in(folder: Path) -> list[str]:
    """Return the names of all tensors of a folder, with repetitions if there are any."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names += list(opened.keys())
    return names


@every_family
@every_way
@every_size
def test_both_ways(tmp_path: Path, family: str, tied: bool, shard_bytes: int) -> None:
    theirs = oracle(family, tie_word_embeddings=tied)
    expected = logits_of(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)

    ours = from_pretrained(tmp_path / "theirs")
    assert_close(logits_of(ours), expected)

    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=shard_bytes)
    assert torch.equal(logits_of(reread(tmp_path / "ours", family)), expected)
    assert torch.equal(logits_of(from_pretrained(tmp_path / "ours")), logits_of(ours))

    for folder in (tmp_path / "theirs", tmp_path / "ours"):  # what the test is about did happen
        assert (folder / INDEX).exists() == (not (folder / WEIGHTS).exists()) == (shard_bytes < 10**9)
    assert sorted(names_in(tmp_path / "ours")) == sorted(names_in(tmp_path / "theirs"))


@every_family
def test_what_is_written_is_what_transformers_would_write(tmp_path: Path, family: str) -> None:
    theirs = oracle(family)
    theirs.save_pretrained(tmp_path / "theirs")
    from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    written = {name: json.loads((tmp_path / name / CONFIG).read_text("utf-8")) for name in ("ours", "theirs")}
    again = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    for name, value in theirs.config.to_dict().items():
        if name not in ("_name_or_path", "n_inner", "transformers_version"):
            assert again[name] == value, name
    assert written["ours"]["architectures"] == written["theirs"]["architectures"]
    assert written["ours"]["dtype"] == written["theirs"]["dtype"] == "float32"


def older(config: dict[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` as transformers 4 wrote it: rope and dtype otherwise, windows by a pattern."""
    found = copy.deepcopy(config)
    found["torch_dtype"] = found.pop("dtype")
    rope = found.pop("rope_parameters", None)
    if rope and "full_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope:
        found["rope_theta"] = rope.pop("rope_theta")
        found["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if found["model_type"] == "gemma3_text":
        found["sliding_window_pattern"] = found.pop("_sliding_window_pattern")
    found.pop("layer_types", None)
    return found


GEMMA3_PATTERN: dict[str, Any] = {
    "layer_types": None,
    "sliding_window_pattern": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
OLDER: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "bert": ("bert", {}),
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "llama3": ("llama3", {}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"rope_parameters": LLAMA3_ROPE}),
    "olmo2": ("olmo2", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", GEMMA3_PATTERN),
}


@pytest.mark.parametrize(("family", "changes"), OLDER.values(), ids=OLDER)
def test_the_older_config_json(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    theirs = oracle(family, **changes)
    expected = logits_of(theirs)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    new = config_from_dict(written)
    (tmp_path / CONFIG).write_text(json.dumps(older(written)), "utf-8")
    assert {"dtype", "rope_parameters", "layer_types"}.isdisjoint(json.loads((tmp_path / CONFIG).read_text("utf-8")))
    assert torch.equal(logits_of(reread(tmp_path, family)), expected)  # transformers reads it still

    ours = from_pretrained(tmp_path)
    assert ours.config == new
    assert_close(logits_of(ours), expected)


@every_family
def test_the_dtype_is_that_of_the_files_or_the_one_asked_for(tmp_path: Path, family: str) -> None:
    oracle(family, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    wide = from_pretrained(tmp_path, dtype=torch.float64)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    wide.save_pretrained(tmp_path / "wide")
    assert {p.dtype for p in reread(tmp_path / "wide", family).parameters()} == {torch.float64}
    narrow = dict(from_pretrained(tmp_path).named_parameters())
    assert all(torch.equal(p, narrow[name].double()) for name, p in wide.named_parameters())


@every_family
def test_ids_beyond_the_vocabulary(tmp_path: Path, family: str) -> None:
    oracle(family).save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for bad in (97, -1):
        with pytest.raises(ValueError, match=f"ids has {bad}, expected 0 to 96: vocab_size is 97"):
            ours(torch.tensor([[5, bad, 7]]))


def test_an_encoder_without_head(tmp_path: Path) -> None:
    theirs = oracle("bert").bert
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    hidden, logits = ours(random_ids())
    assert logits is None
    assert_close(hidden.detach(), theirs(random_ids()).last_hidden_state.detach())
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert torch.equal(again(random_ids()).last_hidden_state, theirs(random_ids()).last_hidden_state)


def test_the_body_of_gpt2_alone(tmp_path: Path) -> None:
    theirs = oracle("gpt2")
    theirs.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text("utf-8"))["architectures"] == ["GPT2Model"]
    assert_close(logits_of(from_pretrained(tmp_path)), logits_of(theirs))


# --- the numbers that core.roofline counts


BIASED: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"attention_bias": True},
    "olmo2": {"attention_bias": True},
    "gemma2": {"attention_bias": True},
    "gemma3": {"attention_bias": True},
}


def counted(family: str, config: Any) -> int:
    """Return how many parameters transformers' model has, a shared one once."""
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[family][1])(config)
    return sum(p.numel() for p in model.parameters())


@every_family
@every_way
@pytest.mark.parametrize("biased", [False, True], ids=["as it is", "biases"])
def test_parameters_of_tiny_models(family: str, tied: bool, biased: bool) -> None:
    config_name, _, options = FAMILIES[family]
    more = BIASED.get(family, {}) if biased else {}
    theirs = getattr(transformers, config_name)(**copy.deepcopy(options), **more, tie_word_embeddings=tied)
    config = config_from_dict(theirs.to_dict())
    unused = theirs.vocab_size if family == "bert" and not tied else 0  # a second bias of the head, which adds nothing
    assert parameters(config.transformer()).total + unused == counted(family, theirs)


@every_family
def test_parameters_of_models_as_large_as_people_use(family: str) -> None:
    theirs = getattr(transformers, FAMILIES[family][0])()
    assert parameters(config_from_dict(theirs.to_dict()).transformer()).total == counted(family, theirs)


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
def test_parameters_of_an_encoder_without_head(kind: str) -> None:
    theirs = transformers.BertConfig(architectures=[kind])
    with torch.device("meta"):
        model = transformers.BertModel(theirs, add_pooling_layer=False)
    expected = sum(p.numel() for p in model.parameters())
    assert parameters(config_from_dict(theirs.to_dict()).transformer()).total == expected


@every_family
def test_our_models_have_the_parameters_that_are_counted(tmp_path: Path, family: str) -> None:
    oracle(family).save_pretrained(tmp_path)
    ours: PretrainedModel = from_pretrained(tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == parameters(ours.config.transformer()).total
