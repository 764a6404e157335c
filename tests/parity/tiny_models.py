"""Every family of models, tiny and random, from transformers; and the comparison with ours: logits and gradients.

A model as transformers initializes it has weights of std 0.02, so logits of 0.1 and nearly uniform attention: a wrong
mask or scale would pass. ``scramble`` makes the weights five times as large, and norm weights and biases random.
Attention is eager, the formula written out. How close is equal is relative to the largest reference value: 1e-5 in
float32, or three times what the oracle itself loses in float32, where that is more.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers

VOCABULARY = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {  # the base is small, so that a head of width 8 has waves that stay, that blend and that are stretched
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 63,
}
GEMMA: dict[str, Any] = {**BASE, "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 8}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", {k: v for k, v in BASE.items() if k != "num_key_value_heads"}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", BASE),
    "llama3": ("LlamaConfig", "LlamaForCausalLM", {**BASE, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**BASE, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", BASE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**BASE, "head_dim": 16}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", BASE),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
"""Name of a family → transformers' configuration, its model, and the options of a tiny one."""

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-11}


def oracle(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """Return transformers' model of a family, tiny and scrambled, without dropout; ``changes`` go into its config."""
    config_name, model_name, options = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**copy.deepcopy(options), **changes})
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, model_name)(config)
    model.set_attn_implementation("eager")
    scramble(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def scramble(model: nn.Module, seed: int, *, factor: float = 5.0) -> None:
    """Multiply all matrices, and move each vector (weights of norms, biases) by random numbers, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(factor)
        else:
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what transformers would save: each parameter once, a tied one under its first name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def random_ids(batch: int = 2, length: int = 16, *, seed: int = 0) -> Tensor:
    """Return ``(B, T)`` ids; never 0, 1 or 2, which some configurations reserve for padding."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(side: str, batch: int = 3, length: int = 16) -> Tensor:
    """Return a ``(B, T)`` mask, True where a token is real: no padding in row 0, then 5 more in each row."""
    missing = 5 * torch.arange(batch)[:, None] % length
    column = torch.arange(length)
    return column >= missing if side == "left" else column < length - missing


def outcome(model: nn.Module, logits: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Return the logits at real positions, and the gradient of a cross-entropy there for each parameter."""
    labels = random_ids(*real.shape, seed=1)
    loss = F.cross_entropy(logits[real], labels[real])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"logits": logits[real].detach(), **dict(zip(names, gradients, strict=True))}


def assert_parity(
    ours: nn.Module,
    theirs: nn.Module,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    types: Tensor | None = None,
    as_hub: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
    limit: float | None = None,
) -> None:
    """Fail unless logits and gradients of all parameters agree.

    Args:
        ours: our model, with the parameters of theirs.
        theirs: transformers' model.
        ids: ``(B, T)`` token ids.
        mask: ``(B, T)``, True where a token is real; the others are not compared. Default: all are real.
        positions: ``(B, T)`` positions. Default: what each model takes by itself.
        types: ``(B, T)`` token types, for BERT.
        as_hub: changes gradients by our names into gradients by theirs, transposed where the files have them so.
        limit: largest difference, as a part of the largest reference value, instead of the default.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    options = {"mask": mask, "positions": positions, "types": types}
    answer = ours(ids, **{name: value for name, value in options.items() if value is not None})
    found = dict(outcome(ours, getattr(answer, "logits", answer), real))
    found = {"logits": found.pop("logits"), **as_hub(found)}

    inputs = {"attention_mask": real.long(), "position_ids": positions, "token_type_ids": types}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    expected = outcome(theirs, theirs(input_ids=ids, **inputs).logits, real)
    double = copy.deepcopy(theirs).double()
    precise = outcome(double, double(input_ids=ids, **inputs).logits, real)
    assert_all_close(found, expected, precise, limit)


def assert_all_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], precise: Mapping[str, Tensor], limit: float | None
) -> None:
    """Fail unless the same names have the same values; ``precise`` tells how far ``expected`` may be off itself.

    A gradient that is 0 in theory, such as that of a bias of all keys, is rounding error of sums of larger numbers: it
    may differ by the ε of the dtype times the largest gradient.
    """
    assert found.keys() == expected.keys()
    largest = max((value.abs().max().item() for name, value in expected.items() if name != "logits"), default=0.0)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        difference = (found[name] - value).abs().max().item()
        noise = 3 * (value - precise[name]).abs().max().item()
        relative = (LIMITS[value.dtype] if limit is None else limit) * value.abs().max().item()
        allowed = max(relative, noise, torch.finfo(value.dtype).eps * largest)
        assert difference <= allowed, f"{name} differs by {difference:.2e}, allowed {allowed:.2e}"
