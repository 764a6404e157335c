"""Gemma 2 and 3 against transformers: logits, and gradients of the loss for every parameter.

In float32 as transformers computes; in float64 with its casts to float32 taken out, where both must agree to 1e-11. The
width there is 16, whose root is exact: transformers keeps the root of any width in float32.
"""

from typing import Any

import pytest
import torch
import transformers

from llm_study.models.gemma import ScaledEmbedding
from tests.parity.decoders import heads_of, keep_float64, norms_of, pair
from tests.parity.tiny_models import assert_parity, padded, random_ids

FAMILIES = ["gemma2", "gemma3"]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_padding = pytest.mark.parametrize("side", [None, "left", "right"], ids=["no padding", "left", "right"])

FULL, SLIDING = "full_attention", "sliding_attention"
TWO_SCALINGS = {
    FULL: {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
    SLIDING: {"rope_type": "default", "rope_theta": 30.0},
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}),
    ("gemma2", {"attention_bias": True, "query_pre_attn_scalar": 3, "rms_norm_eps": 0.3}),
    ("gemma2", {"num_hidden_layers": 3, "num_key_value_heads": 1}),
    ("gemma2", {"layer_types": [FULL, SLIDING], "hidden_activation": "gelu"}),
    ("gemma3", {"num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL], "num_key_value_heads": 1}),
    ("gemma3", {"rope_parameters": TWO_SCALINGS}),
    ("gemma3", {"layer_types": [FULL, SLIDING], "rope_parameters": TWO_SCALINGS}),
    ("gemma3", {"attention_bias": True, "query_pre_attn_scalar": 3, "rms_norm_eps": 0.3}),
    ("gemma3", {"final_logit_softcapping": 2.0, "head_dim": 16}),
]


@every_padding
@every_family
def test_logits_and_gradients(family: str, side: str | None) -> None:
    assert_parity(*pair(family), random_ids(3, 20), mask=None if side is None else padded(side, 3, 20))


@every_padding
@every_family
def test_logits_and_gradients_in_float64(family: str, side: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(family, dtype=torch.float64, hidden_size=16)
    keep_float64(theirs, monkeypatch)
    assert_parity(ours, theirs, random_ids(3, 20), mask=None if side is None else padded(side, 3, 20))


@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_options(family: str, options: dict[str, Any]) -> None:
    assert_parity(*pair(family, **options), random_ids(2, 16))


@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_options_in_float64(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(family, dtype=torch.float64, hidden_size=16, **options)
    keep_float64(theirs, monkeypatch)
    assert_parity(ours, theirs, random_ids(2, 16))


@every_family
def test_separate_embeddings(family: str) -> None:
    ours, theirs = pair(family, tie_word_embeddings=False)
    assert ours.lm_head.weight is not ours.model.embed_tokens.weight
    assert_parity(ours, theirs, random_ids())


@pytest.mark.parametrize("length", [1, 8, 9, 40])
@every_family
def test_lengths(family: str, length: int) -> None:
    assert_parity(*pair(family), random_ids(2, length))


@every_family
def test_positions_that_leave_padding_out(family: str) -> None:
    mask = padded("left", 3, 16)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert_parity(*pair(family), random_ids(3, 16), mask=mask, positions=positions)


@every_family
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


@pytest.mark.parametrize("width", [640, 1152, 2304, 2560, 3072, 3584, 3840, 4608, 5376])  # of models that are there
def test_embeddings_are_scaled_by_the_rounded_root(width: int) -> None:
    ours = ScaledEmbedding(5, width, scale=width**0.5).bfloat16()
    theirs = transformers.models.gemma3.modeling_gemma3.Gemma3TextScaledWordEmbedding(5, width, 0, width**0.5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(torch.arange(5)), theirs.bfloat16()(torch.arange(5)))
