"""Llama and its relatives against transformers: logits, and gradients of the loss for every parameter.

In float32 as transformers computes; in float64 with its casts to float32 taken out, where both must agree to 1e-11.
"""

from typing import Any

import pytest
import torch

from tests.parity.decoders import heads_of, keep_float64, norms_of, pair
from tests.parity.tiny_models import assert_parity, padded, random_ids

FAMILIES = ["llama", "llama3", "mistral", "qwen2", "qwen3", "olmo2"]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_padding = pytest.mark.parametrize("side", [None, "left", "right"], ids=["no padding", "left", "right"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
BIASED = {"attention_bias": True}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {**BIASED, "mlp_bias": True}),
    ("llama", {"hidden_act": "gelu", "rms_norm_eps": 0.3}),
    ("llama", {"head_dim": 6}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"rope_parameters": LINEAR}),
    ("llama3", {"num_hidden_layers": 3, "max_position_embeddings": 4}),  # no limit in either
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1}),
    ("mistral", {"sliding_window": 15}),
    ("mistral", {"sliding_window": 16}),
    ("mistral", {"head_dim": 16}),
    ("qwen2", WINDOWS),
    ("qwen3", {**WINDOWS, **BIASED}),
    ("olmo2", {**BIASED, "rms_norm_eps": 0.3}),
]


@every_dtype
@every_padding
@every_family
def test_logits_and_gradients(
    family: str, side: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair(family, dtype=dtype)
    if dtype == torch.float64:
        keep_float64(theirs, monkeypatch)
    assert_parity(ours, theirs, random_ids(3, 20), mask=None if side is None else padded(side, 3, 20))


@every_dtype
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_options(family: str, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(family, dtype=dtype, **options)
    if dtype == torch.float64:
        keep_float64(theirs, monkeypatch)
    assert_parity(ours, theirs, random_ids(2, 16))


@every_family
def test_tied_embeddings(family: str) -> None:
    ours, theirs = pair(family, tie_word_embeddings=True)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert_parity(ours, theirs, random_ids())


@pytest.mark.parametrize("length", [1, 8, 9, 40])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "llama3"])
def test_lengths(family: str, length: int) -> None:
    assert_parity(*pair(family, **(WINDOWS if family == "qwen2" else {})), random_ids(2, length))


@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_positions_and_padding_that_they_leave_out(family: str) -> None:
    mask = padded("left", 3, 16)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert_parity(*pair(family), random_ids(3, 16), mask=mask, positions=positions)


@pytest.mark.parametrize("family", ["llama3", "mistral", "olmo2"])
def test_positions_far_away_and_with_gaps(family: str) -> None:
    gaps = torch.randint(1, 9, (2, 16), generator=torch.Generator().manual_seed(0))
    assert_parity(*pair(family), random_ids(2, 16), positions=gaps.cumsum(-1) + torch.tensor([[0], [500]]))


@every_family
def test_names_and_shapes_of_parameters(family: str) -> None:
    ours, theirs = pair(family)
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@every_family
def test_bfloat16_is_rounded_where_they_round(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(family, dtype=torch.bfloat16)
    x = torch.randn(50, ours.config.hidden_size).bfloat16()
    for norm, theirs_norm in norms_of(ours, theirs):
        assert torch.equal(norm(x), theirs_norm(x))
    *mine, q, k, v = heads_of(ours, theirs, random_ids(2, 32), monkeypatch)
    for found, expected in zip(mine, (q, k, v), strict=True):
        assert expected.dtype == torch.bfloat16
        assert torch.equal(found, expected)
