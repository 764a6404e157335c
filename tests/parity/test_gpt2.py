"""GPT-2 against transformers: logits and gradients, with and without padding, positions and odd sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from llm_study.core.config import GPT2Config
from llm_study.models import from_pretrained
from llm_study.models.gpt2 import GPT2ForCausalLM
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import assert_parity, oracle, padded, random_ids, tensors_of


def pair(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[GPT2ForCausalLM, torch.nn.Module]:
    """Return our model with the weights of the oracle, and the oracle."""
    theirs = oracle("gpt2", dtype=dtype, **changes)
    ours = GPT2ForCausalLM(GPT2Config.from_dict(theirs.config.to_dict())).to(dtype).eval()
    ours.load_hub(tensors_of(theirs))
    return ours, theirs


def as_hub(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return GPT2ForCausalLM.to_hub(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_logits_and_gradients(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype)
    assert_parity(ours, theirs, random_ids(), as_hub=as_hub)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    ours, theirs = pair()
    mask = padded(side)
    assert_parity(ours, theirs, random_ids(3), mask=mask, as_hub=as_hub)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # counted from the first real token, as in generation
    assert_parity(ours, theirs, random_ids(3), mask=mask, positions=positions, as_hub=as_hub)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_inner": 40},
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 0.1},
        {"tie_word_embeddings": False},
        {"n_head": 1},
    ],
    ids=str,
)
def test_other_settings(changes: dict[str, Any]) -> None:
    ours, theirs = pair(**changes)
    assert_parity(ours, theirs, random_ids(), as_hub=as_hub)


def test_the_longest_text() -> None:
    ours, theirs = pair()
    assert_parity(ours, theirs, random_ids(1, 64), as_hub=as_hub)


@torch.no_grad()
@pytest.mark.parametrize("tie", [True, False])
def test_folders_go_both_ways(tie: bool, tmp_path: Path) -> None:
    ours, theirs = pair(tie_word_embeddings=tie)
    ids, expected = random_ids(), theirs(input_ids=random_ids()).logits
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(from_pretrained(tmp_path / "theirs")(ids), expected)
    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    back, told = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values())
    assert torch.equal(back(input_ids=ids).logits, GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")(ids).logits)


@torch.no_grad()
def test_a_folder_of_the_body_alone(tmp_path: Path) -> None:
    _, theirs = pair()
    theirs.transformer.save_pretrained(tmp_path)
    assert_close(from_pretrained(tmp_path)(random_ids()), theirs(input_ids=random_ids()).logits)
