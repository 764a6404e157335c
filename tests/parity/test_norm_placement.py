"""The chapter's table of norms: where transformers' models put them, of which kind, with which ε."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llm_study.functional.norms import gemma_rms_norm, layer_norm, rms_norm, rms_norm_late_cast

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
BERT = {key: TINY[key] for key in TINY if key not in ("num_key_value_heads", "head_dim")}
T5: dict[str, Any] = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
GPT_OSS = {**TINY, "num_local_experts": 2, "num_experts_per_tok": 1}
# model, small configuration, norm, ε, places of norms in the stream, widths of the norms of queries and keys
ROWS = [
    ("GPT2", GPT2, layer_norm, 1e-5, {"before"}, set()),
    ("Bert", BERT, layer_norm, 1e-12, {"after adding"}, set()),
    ("T5Encoder", T5, rms_norm, 1e-6, {"before"}, set()),
    ("Llama", TINY, rms_norm, 1e-6, {"before"}, set()),
    ("Mistral", TINY, rms_norm, 1e-6, {"before"}, set()),
    ("Qwen2", TINY, rms_norm, 1e-6, {"before"}, set()),
    ("Qwen3", TINY, rms_norm, 1e-6, {"before"}, {8}),
    ("Gemma2", TINY, gemma_rms_norm, 1e-6, {"before", "output"}, set()),
    ("Gemma3Text", TINY, gemma_rms_norm, 1e-6, {"before", "output"}, {8}),
    ("Olmo2", TINY, rms_norm_late_cast, 1e-5, {"output"}, {32, 16}),
    ("GptOss", GPT_OSS, rms_norm_late_cast, 1e-5, {"before"}, set()),
]
HEADS = ("q_norm", "k_norm")
SUBLAYERS = ("attn", "attention", "SelfAttention", "mlp", "DenseReluDense")


def traced(model: nn.Module) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """Run a model on a few ids and return name, module, input and output of all its modules, in the order of calls."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def first(x: Any) -> Any:
        return x[0] if isinstance(x, tuple) else x

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            x = first(args) if args else kwargs.get("hidden_states")
            if isinstance(x, Tensor) and isinstance(first(out), Tensor):
                calls.append((name, module, x.detach().clone(), first(out).detach().clone()))

        return record

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        model(torch.arange(1, 11)[None])
    return calls


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its name."""
    return "Norm" in type(module).__name__


def places(calls: list[tuple[str, nn.Module, Tensor, Tensor]]) -> set[str]:
    """Say where the norms of the first layer stand, by comparing what goes into them and out of them."""
    layer = min((name for name, *_ in calls if re.search(r"\b(layers?|h|block)\.0$", name)), key=len)
    ((start, end),) = [(x, out) for name, _, x, out in calls if name == layer]
    inside = [call for call in calls if call[0].startswith(f"{layer}.")]
    norms = [(x, out) for name, module, x, out in inside if is_norm(module) and not name.endswith(HEADS)]
    outputs = [out for name, _, _, out in inside if name.endswith(SUBLAYERS)]
    tests = {
        "before": any(torch.equal(x, start) for x, _ in norms),
        "output": any(x.shape == out.shape and torch.equal(x, out) for x, _ in norms for out in outputs),
        "after adding": any(torch.equal(out, end) for _, out in norms),
    }
    return {place for place, found in tests.items() if found}


@pytest.mark.parametrize(("name", "config", "norm", "eps", "where", "heads"), ROWS, ids=[row[0] for row in ROWS])
def test_row_of_the_table(
    name: str, config: dict[str, Any], norm: Callable[..., Tensor], eps: float, where: set[str], heads: set[int]
) -> None:
    kind = getattr(transformers, f"{name.removesuffix('Encoder')}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(kind(**config)).eval()
    for module in model.modules():
        if is_norm(module):
            nn.init.normal_(module.weight)
    default = kind()
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    assert [getattr(default, n) for n in names if hasattr(default, n)] == [eps]
    calls = traced(model)
    assert places(calls) == where
    widths = {x.weight.shape[0] for n, x in model.named_modules() if n.endswith(HEADS)}
    assert widths == heads
    kinds = [module for module in model.modules() if is_norm(module)]
    x = 3 * torch.randn(5, 32).bfloat16()
    for module in kinds:
        x_of_width = x[..., : module.weight.shape[0]]
        module = module.to(torch.bfloat16)
        parameters = [module.weight] + ([module.bias] if getattr(module, "bias", None) is not None else [])
        assert torch.equal(norm(x_of_width, *parameters, eps=eps), module(x_of_width))
