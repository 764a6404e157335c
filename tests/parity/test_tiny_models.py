"""The harness itself: its models are as lively as they should be, and the comparison can fail."""

import copy

import pytest
import torch
from torch import nn

from tests.parity.tiny_models import FAMILIES, assert_parity, oracle, padded, random_ids, tensors_of


class Twin(nn.Module):
    """A copy of the oracle behind the interface of our models."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(theirs)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner(input_ids=ids, attention_mask=None if mask is None else mask.long()).logits


def without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("inner."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_agrees_with_its_copy(family: str) -> None:
    theirs = oracle(family)
    assert_parity(Twin(theirs), theirs, random_ids(3), mask=padded("right"), as_hub=without_prefix)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_attention_are_far_from_uniform(family: str) -> None:
    theirs = oracle(family)
    with torch.no_grad():
        answer = theirs(input_ids=random_ids(), output_attentions=True)
    assert answer.logits.std() > 0.3
    last = answer.attentions[0][:, :, -1]  # weights of the last query
    assert (last.amax(-1) / last.mean(-1)).mean() > 1.3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_small_change_of_any_parameter_is_seen(family: str) -> None:
    theirs = oracle(family)
    for name, tensor in tensors_of(theirs).items():
        twin = Twin(theirs)
        with torch.no_grad():
            twin.inner.get_parameter(name).add_(1e-3 * torch.randn(tensor.shape))
        with pytest.raises(AssertionError, match="differs by"):
            assert_parity(twin, theirs, random_ids(), as_hub=without_prefix)


def test_a_missing_gradient_is_seen() -> None:
    theirs = oracle("gpt2")
    with pytest.raises(AssertionError):
        assert_parity(Twin(theirs), theirs, random_ids())


def test_padding_on_either_side() -> None:
    assert padded("left", 2, 6).tolist() == [[True] * 6, [False] * 5 + [True]]
    assert padded("right", 2, 6).tolist() == [[True] * 6, [True] + [False] * 5]
