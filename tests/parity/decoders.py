"""Pairs of a decoder of transformers and ours, and ways to look closer at the former."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import config_from_dict
from llm_study.models import gemma, llama
from llm_study.models.decoder import DecoderForCausalLM
from tests.parity.tiny_models import oracle, tensors_of

CLASSES = {name: getattr(module, name) for module in (llama, gemma) for name in module.__all__ if "ForCausalLM" in name}


def pair(family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[DecoderForCausalLM, nn.Module]:
    """Return our model and theirs: ours from the config that theirs writes and the tensors that theirs would save."""
    theirs, single = oracle(family, dtype=dtype, **changes), oracle(family, **changes)
    for name, frequencies in single.named_buffers():  # .to rounds them, reading a folder in bfloat16 does not
        owner, _, last = name.rpartition(".")
        setattr(theirs.get_submodule(owner), last, frequencies)
    ours = CLASSES[type(theirs).__name__](config_from_dict(theirs.config.to_dict())).to(dtype)
    return ours.load_hub(tensors_of(theirs)), theirs


class _NoFloat32:
    """The module torch, but that float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def keep_float64(theirs: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the casts to float32 (norms, softmax, rotations) out of transformers, so that float64 stays float64."""
    for name in {type(module).__module__ for module in theirs.modules()}:
        if name.startswith("transformers.models."):
            monkeypatch.setattr(sys.modules[name], "torch", _NoFloat32())
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def heads_of(ours: DecoderForCausalLM, theirs: nn.Module, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return q, k and v as they meet in the first layer: three of ours, then three of theirs."""
    met: list[tuple[Tensor, ...]] = []

    def note(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        met.append((q, k, v))
        return torch.zeros_like(q)

    def note_theirs(_: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return note(q, k, v).transpose(1, 2), None

    monkeypatch.setattr(sys.modules[type(theirs).__module__], "eager_attention_forward", note_theirs)
    ours.model.attend = ours.model.causal = note
    with torch.no_grad():
        ours(ids)
        count = len(met)
        theirs(input_ids=ids)
    return [*met[0], *met[count]]


def norms_of(ours: DecoderForCausalLM, theirs: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the norms of width ``D``, ours and theirs; those of heads take their input in different layouts."""
    names = [name for name, module in theirs.named_modules() if "RMSNorm" in type(module).__name__]
    wide = [name for name in names if not name.endswith(("q_norm", "k_norm"))]
    assert len(wide) >= 2 * ours.config.num_hidden_layers + 1
    return [(ours.get_submodule(name), theirs.get_submodule(name)) for name in wide]
