"""Load an adapter from a folder, whichever method it is of."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from llm_study.core.hub import read_json, read_tensors
from llm_study.peft.adalora import AdaLoRA
from llm_study.peft.base import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Method,
    check_fresh,
    inject_into,
    load_adapter_state_dict,
    unload,
)
from llm_study.peft.decomposed import DoRA, LoRAGA, OLoRA, PiSSA
from llm_study.peft.lora import LoRA, RSLoRA
from llm_study.peft.lowrank import FourierFT, LoHa, LoKr, MiSS, MoRA
from llm_study.peft.qlora import LoftQ
from llm_study.peft.shared import RandLoRA, VBLoRA, VeRA

__all__ = ["METHODS", "load_adapter", "method_from_config"]

METHODS: tuple[type[Method], ...] = (
    LoRA, RSLoRA, DoRA, PiSSA, OLoRA, LoRAGA, AdaLoRA, VeRA, VBLoRA, RandLoRA, LoHa, LoKr, MoRA, MiSS, FourierFT,
    LoftQ,
)  # the first that knows a file reads it  # fmt: skip
_M = TypeVar("_M", bound=nn.Module)


def load_adapter(model: _M, folder: str | os.PathLike[str]) -> _M:
    """Put the adapter of a folder into a model, and freeze everything else.

    The folder is one of :func:`llm_study.peft.base.save_adapter` or of peft. Which layers it adapts is read from the
    names of its tensors.

    Args:
        model: the model that the adapter was made for, without adapters; it is changed in place.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The model itself.

    Raises:
        FileNotFoundError: if one of the files is not there.
        ValueError: if the model has adapters already, a file is damaged, the method is not known, or the adapter is of
            another model: its layers are not there, or tensors have other shapes. Then nothing has changed.

    Example:
        >>> import tempfile, torch
        >>> from llm_study.peft.base import inject, save_adapter
        >>> base, x = nn.Sequential(nn.Linear(8, 4)), torch.ones(1, 8)
        >>> tuned = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> _ = nn.init.normal_(tuned[0].lora_B), base[0].load_state_dict(tuned[0].base_layer.state_dict())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(tuned, folder)
        ...     torch.equal(load_adapter(base, folder)(x), tuned(x))
        True
    """
    check_fresh(model)
    config = read_json(Path(folder) / ADAPTER_CONFIG)
    source = Path(folder) / ADAPTER_WEIGHTS
    method, tensors = method_from_config(config), read_tensors(source)
    inject_into(model, method, _names(model, method, tensors, source))
    try:
        load_adapter_state_dict(model, tensors, source=source)
    except ValueError:
        unload(model)
        raise
    return model


def method_from_config(config: Mapping[str, Any]) -> Method:
    """Find the method that an ``adapter_config.json`` is of.

    Args:
        config: what the file says.

    Returns:
        The method with its settings.

    Raises:
        ValueError: if no method of ``METHODS`` knows it, or the file asks for something that the method lacks.

    Example:
        >>> method_from_config({"peft_type": "LORA", "r": 4, "lora_alpha": 8})
        LoRA(rank=4, alpha=8, lora_dropout=0.0)
    """
    for kind in METHODS:
        if method := kind.from_config(config):
            return method
    asked = {field: config[field] for field in ("peft_type", "init_lora_weights", "use_dora") if field in config}
    known = ", ".join(kind.__name__ for kind in METHODS)
    raise ValueError(f"{ADAPTER_CONFIG} has {asked}, expected a method that is known here: {known}")


def _names(model: nn.Module, method: Method, tensors: Mapping[str, Tensor], source: Path) -> Sequence[str]:
    """Return the layers that stored tensors belong to: the longest beginning of each name that is a module."""
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for tensor in tensors:
        name = tensor.removeprefix("base_model.model.")
        if name == tensor or ".base_layer." in name:
            continue  # shared by all layers, or a weight of the model
        while name and not (name in modules and method.takes(modules[name])):
            name = name.rpartition(".")[0]
        if not name:
            raise ValueError(f"{source}: the model has no layer for {tensor}: the adapter is of another model")
        found[name] = None
    return list(found)
