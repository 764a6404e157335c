"""BERT against transformers: logits, hidden states and gradients, with padding and token types; real weights too."""

from typing import Any

import pytest
import torch

from llm_study.core.config import BertConfig
from llm_study.models.bert import BertForMaskedLM
from tests.parity.tiny_models import assert_parity, oracle, padded, random_ids, tensors_of


def pair(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[BertForMaskedLM, torch.nn.Module]:
    """Return our model with the weights of the oracle, and the oracle."""
    theirs = oracle("bert", dtype=dtype, **changes)
    ours = BertForMaskedLM(BertConfig.from_dict(theirs.config.to_dict())).to(dtype).eval()
    ours.load_hub(tensors_of(theirs))
    return ours, theirs


def random_types(*shape: int) -> torch.Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_logits_and_gradients(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype)
    assert_parity(ours, theirs, random_ids())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_types(side: str) -> None:
    ours, theirs = pair()
    assert_parity(ours, theirs, random_ids(3), mask=padded(side), types=random_types(3, 16))


def test_positions() -> None:
    ours, theirs = pair()
    positions = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(3))
    assert_parity(ours, theirs, random_ids(), positions=positions)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 2},
        {"type_vocab_size": 1},
        {"pad_token_id": None},
    ],
    ids=str,
)
def test_other_settings(changes: dict[str, Any]) -> None:
    ours, theirs = pair(**changes)
    assert_parity(ours, theirs, random_ids())
