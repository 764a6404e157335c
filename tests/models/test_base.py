"""What all models share, on a model of two matrices and a bias: strict loading, tied weights, saving, ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import ModelConfig
from llm_study.core.hub import load_tensors, read_config
from llm_study.models.base import PretrainedModel


class Pair(PretrainedModel):
    tied: ClassVar[Mapping[str, str]] = {"head.weight": "embed.weight"}
    unused: ClassVar[tuple[str, ...]] = (r"embed\.position_ids",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 2)
        self.head = nn.Linear(2, config.vocab_size)
        self.tie()

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("pair."): x for name, x in tensors.items()}

    @classmethod
    def to_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"pair.{name}": x for name, x in tensors.items()}


def pair(*, tied: bool = False, **more: Any) -> Pair:
    return Pair(ModelConfig(vocab_size=3, tie_word_embeddings=tied, **more))


def tensors(**more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {"pair.embed.weight": torch.randn(3, 2, generator=generator)}
    found |= {"pair.head.weight": torch.randn(3, 2, generator=generator), "pair.head.bias": torch.ones(3)}
    return {**found, **more}


def without(name: str) -> dict[str, Tensor]:
    return {key: x for key, x in tensors().items() if key != name}


def message(model: Pair, found: dict[str, Tensor]) -> str:
    with pytest.raises(ValueError) as caught:
        model.load_hub(found, source="some/folder")
    said = str(caught.value)
    assert said.startswith("some/folder: ")
    return said.removeprefix("some/folder: ")


# --- loading


def test_every_tensor_goes_to_its_parameter() -> None:
    model, found = pair(), tensors()
    assert model.load_hub(found) is model
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, found[f"pair.{name}"])
        assert parameter.requires_grad


def test_tensors_are_copied() -> None:
    model, found = pair(), tensors()
    model.load_hub(found)
    found["pair.head.bias"].zero_()
    assert model.head.bias.tolist() == [1.0, 1.0, 1.0]


def test_the_dtype_is_that_of_the_parameters() -> None:
    found = {name: x.bfloat16() for name, x in tensors().items()}
    model = pair().double().load_hub(found)
    assert model.head.weight.dtype == torch.float64
    assert torch.equal(model.head.weight, found["pair.head.weight"].double())


def test_a_missing_tensor() -> None:
    assert message(pair(), without("pair.head.bias")) == "lacks head.bias of shape (3,)"
    assert message(pair(), without("pair.head.weight")) == "lacks head.weight of shape (3, 2)"


def test_a_superfluous_tensor() -> None:
    said = message(pair(), tensors(other=torch.ones(4, 5)))
    assert said == "has, beyond what the model has, other of shape (4, 5)"


def test_a_wrong_shape() -> None:
    said = message(pair(), tensors(**{"pair.head.weight": torch.ones(2, 3)}))
    assert said == "head.weight has shape (2, 3), expected (3, 2)"
    assert "head.bias has shape (), expected (3,)" in message(pair(), tensors(**{"pair.head.bias": torch.tensor(1.0)}))


def test_whole_numbers_are_no_weights() -> None:
    said = message(pair(), tensors(**{"pair.head.bias": torch.ones(3, dtype=torch.int8)}))
    assert said == "head.bias has dtype torch.int8, expected a floating one"


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_loaded() -> None:
    model = pair()
    before = model.embed.weight.clone()
    more = {f"x{i}": torch.ones(1) for i in range(7)}
    said = message(model, {**without("pair.head.bias"), **more, "pair.head.weight": torch.ones(3)})
    assert said == (
        "lacks head.bias of shape (3,); "
        "has, beyond what the model has, x0 of shape (1,), x1 of shape (1,), x2 of shape (1,), x3 of shape (1,), "
        "x4 of shape (1,) and 2 more; "
        "head.weight has shape (3,), expected (3, 2)"
    )
    assert torch.equal(model.embed.weight, before)


def test_what_old_files_hold_besides_is_passed_over() -> None:
    pair().load_hub(tensors(**{"embed.position_ids": torch.arange(3)}))
    assert "embed.position_ids_" in message(pair(), tensors(**{"embed.position_ids_": torch.arange(3)}))


# --- tied weights


@pytest.mark.parametrize("name", ["pair.head.weight", "pair.embed.weight"])
def test_one_of_two_tied_tensors_is_enough(name: str) -> None:
    found = without(name)
    model = pair(tied=True).load_hub(found)
    assert model.head.weight is model.embed.weight
    (other,) = (x for x in found.values() if x.ndim == 2)
    assert torch.equal(model.embed.weight, other)


def test_two_tied_tensors_must_be_equal() -> None:
    found = tensors()
    said = message(pair(tied=True), found)
    assert said == "head.weight and embed.weight differ, but tie_word_embeddings is true"
    model = pair(tied=True).load_hub({**found, "pair.head.weight": found["pair.embed.weight"].clone()})
    assert torch.equal(model.head.weight, found["pair.embed.weight"])


def test_both_tied_tensors_missing() -> None:
    only = {"pair.head.bias": torch.ones(3)}
    assert message(pair(tied=True), only) == "lacks embed.weight of shape (3, 2), head.weight of shape (3, 2)"


def test_without_the_setting_nothing_is_tied() -> None:
    model = pair().load_hub(tensors())
    assert model.head.weight is not model.embed.weight
    assert not torch.equal(model.head.weight, model.embed.weight)


# --- saving


@pytest.mark.parametrize(
    ("tied", "names"), [(False, {"embed.weight", "head.weight", "head.bias"}), (True, {"embed.weight", "head.bias"})]
)
def test_tied_weights_are_stored_once(tmp_path: Path, tied: bool, names: set[str]) -> None:
    model = pair(tied=tied)
    model.save_pretrained(tmp_path)
    stored = load_tensors(tmp_path)
    assert set(stored) == {f"pair.{name}" for name in names}
    again = pair(tied=tied).load_hub(stored)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_config_says_what_was_saved(tmp_path: Path) -> None:
    model = pair(architectures=("Other",), dtype="float16", bos_token_id=2).bfloat16()
    model.save_pretrained(tmp_path)
    said = read_config(tmp_path)
    assert (said["architectures"], said["dtype"], said["bos_token_id"]) == (["Pair"], "bfloat16", 2)


def test_shards(tmp_path: Path) -> None:
    pair().save_pretrained(tmp_path, max_shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


# --- ids


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.tensor([[0, 3]]), "ids has 3, expected 0 to 2: vocab_size is 3"),
        (torch.tensor([[-1, 0]]), "ids has -1, expected 0 to 2: vocab_size is 3"),
        (torch.tensor([0, 1]), r"ids has shape \(2,\), expected \(B, T\), both at least 1"),
        (torch.zeros(2, 0, dtype=torch.long), r"ids has shape \(2, 0\), expected \(B, T\), both at least 1"),
        (torch.tensor([[0.0, 1.0]]), r"ids has dtype torch\.float32, expected torch\.int64"),
        (torch.tensor([[True]]), r"ids has dtype torch\.bool, expected torch\.int64"),
    ],
)
def test_ids_that_are_none(ids: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        pair().check_ids(ids)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_up_to_the_last(dtype: torch.dtype) -> None:
    pair().check_ids(torch.tensor([[0, 1, 2]], dtype=dtype))
