"""GPT-2 against transformers: logits and gradients, with and without padding, positions and odd sizes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import GPT2Config
from llm_study.models.gpt2 import GPT2ForCausalLM
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
