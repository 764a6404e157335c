"""The modules are their functions with parameters, and PyTorch's where it has the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.functional.activations import gelu, silu, swiglu
from llm_study.functional.norms import gemma_rms_norm, layer_norm, rms_norm, rms_norm_late_cast
from llm_study.nn.basic import FeedForward, GatedFeedForward, GemmaRMSNorm, LateCastRMSNorm, LayerNorm, RMSNorm

NORMS: dict[type[nn.Module], Callable[..., Tensor]] = {
    RMSNorm: rms_norm,
    LateCastRMSNorm: rms_norm_late_cast,
    GemmaRMSNorm: gemma_rms_norm,
}
every_rms_norm = pytest.mark.parametrize("kind", NORMS)


def randomized(module: nn.Module) -> nn.Module:
    """Draw every parameter anew, so that none is at 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@every_rms_norm
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rms_norms_are_their_functions(kind: type[RMSNorm], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, x = randomized(kind(12, eps=0.5)).to(dtype), torch.randn(3, 12, dtype=dtype)
    expected = NORMS[kind](x, norm.weight, eps=0.5)
    assert expected.dtype == dtype
    assert torch.equal(norm(x), expected)
    assert not torch.equal(norm(x), NORMS[kind](x, norm.weight))  # eps counts


def test_the_three_cast_orders_differ_in_bfloat16() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32).bfloat16(), torch.randn(32).bfloat16()
    outputs = []
    for kind, shift in ((RMSNorm, 0), (LateCastRMSNorm, 0), (GemmaRMSNorm, 1)):
        norm = kind(32).bfloat16()
        norm.load_state_dict({"weight": weight - shift})
        outputs.append(norm(x))
    early, late, gemma = outputs
    assert not torch.equal(early, late)
    assert (gemma.float() - late.float()).abs().max() > 0  # weight - 1 was rounded, 1 + weight is not
    for y in (late, early):
        assert (y.float() - gemma.float()).abs().max() <= 2**-6 * gemma.abs().max()


@every_rms_norm
def test_rms_norms_begin_as_plain_normalization(kind: type[RMSNorm]) -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = kind(16, eps=0.0).double()(x)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(5).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y * x.norm(dim=-1, keepdim=True), 4 * x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_torchs(bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = randomized(LayerNorm(12, eps=0.1, bias=bias)), nn.LayerNorm(12, eps=0.1, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 12)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x), layer_norm(x, ours.weight, ours.bias, eps=0.1))
    fresh = LayerNorm(12, bias=bias)
    fresh.load_state_dict(nn.LayerNorm(12, bias=bias).state_dict())  # the same names
    assert torch.equal(fresh(x), nn.LayerNorm(12, bias=bias)(x))  # the same eps


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [torch.relu, gelu], ids=["relu", "gelu"])
def test_feed_forward_is_two_layers(activation: Callable[[Tensor], Tensor], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10, activation=activation, bias=bias).double(), torch.randn(2, 3, 6).double()
    up, down = layer.up_proj, layer.down_proj
    expected = F.linear(activation(F.linear(x, up.weight, up.bias)), down.weight, down.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 6 * 10 + bias * (10 + 6)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_feed_forward_is_a_gated_linear_unit(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(6, 10, activation=silu, bias=bias).double(), torch.randn(2, 3, 6).double()
    expected = layer.down_proj(swiglu(layer.gate_proj(x), layer.up_proj(x)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 6 * 10 + bias * (10 + 10 + 6)


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_each_position_is_transformed_alone(kind: type[FeedForward | GatedFeedForward]) -> None:
    torch.manual_seed(0)
    layer, x = kind(6, 10, activation=gelu).double(), torch.randn(2, 3, 6).double()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]), rtol=1e-12, atol=1e-12)


def test_default_biases() -> None:
    assert FeedForward(2, 3, activation=gelu).up_proj.bias is not None
    assert GatedFeedForward(2, 3, activation=gelu).up_proj.bias is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LayerNorm(0), "d is 0, expected at least 1"),
        (lambda: RMSNorm(-1), "d is -1, expected at least 1"),
        (lambda: GemmaRMSNorm(0), "d is 0, expected at least 1"),
        (lambda: FeedForward(0, 3, activation=gelu), "d_model is 0, expected at least 1"),
        (lambda: FeedForward(3, 0, activation=gelu), "d_ff is 0, expected at least 1"),
        (lambda: GatedFeedForward(3, 0, activation=gelu), "d_ff is 0, expected at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_print_shows_width_and_eps() -> None:
    assert "8, eps=1e-05, bias=True" in repr(LayerNorm(8))
    assert "GemmaRMSNorm(8, eps=0.5)" in repr(GemmaRMSNorm(8, eps=0.5))
