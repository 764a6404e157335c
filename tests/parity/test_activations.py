"""Activations against PyTorch's and transformers', gates against LlamaMLP, and the chapter's table of models."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
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


# --- the table of models in the chapter

CHAPTER = Path(__file__).parents[2] / "docs/algorithms/activations.rst"
LAYERS = re.compile(r"\.mlp\.|DenseReluDense|\.fc[12]\.|(?<!attention)\.(intermediate|output)\.dense")
GATE = {"无": 2, "有": 3}


def rows_of_the_table() -> list[list[str]]:
    """Return the cells of each row below the heading."""
    text = CHAPTER.read_text("utf-8").split(":name: tab-activations-models")[1].split("\n\n.. _")[0]
    rows = re.findall(r"^   \* - (.*)\n((?:     - .*\n)+)", text, re.MULTILINE)
    return [[first.strip("`"), *(cell.strip("` ") for cell in rest.split("     - ")[1:])] for first, rest in rows][1:]


ROWS = [[cell.strip().strip("`") for cell in row] for row in rows_of_the_table()]


def test_the_table_has_its_rows() -> None:
    assert len(ROWS) >= 10
    assert {row[1] for row in ROWS} <= set(ACT2FN)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_the_table_is_the_model_of_transformers(row: list[str]) -> None:
    kind, name, gate, d_model, width, ratio, weights = row
    config = AutoConfig.for_model(kind)
    names = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")
    assert next(getattr(config, field) for field in names if hasattr(config, field)) == name
    config.num_hidden_layers = 1
    for field in ("num_layers", "num_decoder_layers"):
        if hasattr(config, field):
            setattr(config, field, 1)
    if getattr(config, "num_key_value_heads", 1) is None:  # the default of Nemotron: as many as there are queries
        config.num_key_value_heads = config.num_attention_heads
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:1]
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    matrices = {n: p for n, p in model.named_parameters() if LAYERS.search(f".{n}") and p.ndim == 2}
    blocks = 2 if kind == "t5" else 1  # encoder and decoder
    assert matrices
    assert {size for p in matrices.values() for size in p.shape} <= {int(d_model), int(width), 2 * int(width)}
    numbers = sum(p.numel() for p in matrices.values())
    assert numbers == blocks * GATE[gate] * int(d_model) * int(width)
    assert f"{int(width) / int(d_model):.2f}" == ratio
    assert f"{numbers / blocks / int(d_model) ** 2:.2f}" == weights


@both_dtypes
def test_clamped_gate_matches_the_experts_of_gpt_oss(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=6, num_local_experts=2))
    joined = (6 * torch.randn(40, 12, dtype=dtype)).requires_grad_()  # some beyond the limit of 7 on either side
    expected = experts._apply_gate(joined)
    ours = A.clamped_swiglu(joined[:, ::2], joined[:, 1::2])
    assert_close(ours, expected)
    direction = torch.randn_like(expected)
    (theirs,), (mine,) = (torch.autograd.grad(y, joined, direction) for y in (expected, ours))
    assert_close(mine, theirs)
    assert (joined[:, ::2] > 7).any()
    assert (joined[:, 1::2].abs() > 7).any()
