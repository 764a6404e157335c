"""Activations against PyTorch's and transformers', and gates against LlamaMLP."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from llm_study.functional import activations as A
from tests.parity.closeness import assert_close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
WITH_PARAMETERS = {"prelu", "xielu"}
"""Activations that learn: modules, not functions."""


def value_and_slope(function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of an elementwise function, and its derivatives by autograd."""
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@both_dtypes
@pytest.mark.parametrize("name", sorted(set(ACT2FN) - WITH_PARAMETERS))
def test_every_name_is_the_function_of_transformers(name: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-12, 12, 1000), torch.randn(1000, generator=torch.Generator().manual_seed(0))])
    x = x.to(dtype)
    for ours, theirs in zip(value_and_slope(A.activation(name), x), value_and_slope(ACT2FN[name], x), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", sorted(WITH_PARAMETERS))
def test_names_with_parameters_are_refused(name: str) -> None:
    assert sum(p.numel() for p in ACT2FN[name].parameters()) > 0
    with pytest.raises(ValueError, match=f"activation is '{name}'"):
        A.activation(name)


@both_dtypes
def test_matches_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = 3 * torch.randn(2, 64, 33, dtype=dtype)
    pairs = (
        (A.gelu_reference, A.gelu_backward, F.gelu),
        (A.gelu_tanh_reference, A.gelu_tanh_backward, lambda x: F.gelu(x, approximate="tanh")),
        (A.swish, A.swish_backward, F.silu),
        (A.mish_reference, A.mish_backward, F.mish),
        (A.relu_squared, A.relu_squared_backward, lambda x: F.relu(x) ** 2),
    )
    for reference, backward, theirs in pairs:
        expected, slope = value_and_slope(theirs, x)
        assert_close(reference(x), expected)
        assert_close(backward(x, grad), slope * grad)


@both_dtypes
def test_matches_torch_glu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    both = (3 * torch.randn(4, 7, 10, dtype=dtype)).requires_grad_()
    up, gate = both.detach().chunk(2, dim=-1)  # there, the second half is the gate
    expected = F.glu(both)
    direction = torch.randn_like(expected)
    (slope,) = torch.autograd.grad(expected, both, direction)
    d_gate, d_up = A.glu_backward(gate, up, direction)
    assert_close(A.glu(gate, up), expected.detach())
    assert_close(torch.cat([d_up, d_gate], dim=-1), slope)


GATES = {"sigmoid": A.glu, "relu": A.reglu, "gelu": A.geglu, "silu": A.swiglu, "linear": A.bilinear}


@both_dtypes
@pytest.mark.parametrize("name", GATES)
def test_gated_network_matches_llama_mlp(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = LlamaMLP(LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4, hidden_act=name)).to(
        dtype
    )
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(5)
    x = torch.randn(3, 5, 24, dtype=dtype)
    gate, up = x @ theirs.gate_proj.weight.mT, x @ theirs.up_proj.weight.mT
    assert_close(GATES[name](gate, up) @ theirs.down_proj.weight.mT, theirs(x))


@both_dtypes
def test_swiglu_network_and_its_gradients_match_llama_mlp(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = LlamaMLP(LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4)).to(dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(5)
    weights = [layer.weight for layer in (theirs.gate_proj, theirs.up_proj, theirs.down_proj)]
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    y = theirs(x)
    direction = torch.randn_like(y)
    assert_close(A.swiglu_feed_forward(x, *weights), y)
    ours = A.swiglu_feed_forward_backward(x.detach(), *weights, direction)
    for mine, other in zip(ours, torch.autograd.grad(y, (x, *weights), direction), strict=True):
        assert_close(mine.detach(), other)
