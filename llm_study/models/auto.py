"""The right model for a folder: what its ``config.json`` calls itself decides."""

import importlib
import os
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from llm_study.core.config import ModelConfig, config_from_dict, model_types
from llm_study.core.hub import CONFIG, load_tensors, read_config
from llm_study.models.base import PretrainedModel

__all__ = ["from_pretrained", "model_class", "architectures"]

_CLASSES = (
    ("bert", "bert", "BertForMaskedLM", ("BertForMaskedLM", "BertForPreTraining", "BertModel")),
    ("bert", "bert", "BertForSequenceClassification", ("BertForSequenceClassification",)),
    ("gemma2", "gemma", "Gemma2ForCausalLM", ("Gemma2ForCausalLM",)),
    ("gemma3_text", "gemma", "Gemma3ForCausalLM", ("Gemma3ForCausalLM",)),
    ("gpt2", "gpt2", "GPT2ForCausalLM", ("GPT2LMHeadModel", "GPT2Model")),
    ("llama", "llama", "LlamaForCausalLM", ("LlamaForCausalLM",)),
    ("mistral", "llama", "MistralForCausalLM", ("MistralForCausalLM",)),
    ("olmo2", "llama", "Olmo2ForCausalLM", ("Olmo2ForCausalLM",)),
    ("qwen2", "llama", "Qwen2ForCausalLM", ("Qwen2ForCausalLM",)),
    ("qwen3", "llama", "Qwen3ForCausalLM", ("Qwen3ForCausalLM",)),
    ("t5", "t5", "T5ForConditionalGeneration", ("T5ForConditionalGeneration",)),
)
"""``model_type``, module and class here, and the names of transformers' classes whose weights they read.

Where a family has several classes, the first is that of a configuration which names no architecture.
"""


def architectures() -> tuple[str, ...]:
    """Return the names of transformers' classes whose folders are read.

    Returns:
        What ``architectures`` may say in a ``config.json``, sorted.

    Example:
        >>> architectures()[:2]
        ('BertForMaskedLM', 'BertForPreTraining')
    """
    return tuple(sorted(name for *_, names in _CLASSES for name in names))


def model_class(config: ModelConfig, *, source: object = CONFIG) -> type[PretrainedModel]:
    """Return the class of the models of a configuration; its module is imported now.

    Args:
        config: the configuration.
        source: where it is from, for messages.

    Returns:
        The class, to be called with the configuration.

    Raises:
        ValueError: if there is no model for it, or ``architectures`` names none whose weights fit.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> model_class(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)).__name__
        'GPT2ForCausalLM'
    """
    kinds = [(module, name, known) for kind, module, name, known in _CLASSES if kind == config.model_type]
    if not kinds:
        raise ValueError(f"{source}: model_type is {config.model_type!r}, expected one of {', '.join(model_types())}")
    said = set(config.architectures)
    for module, name, known in kinds:
        if not said or said & set(known):
            found: type[PretrainedModel] = getattr(importlib.import_module(f"llm_study.models.{module}"), name)
            return found
    named = ", ".join(config.architectures)
    raise ValueError(f"{source}: architectures is {named}, expected one of {', '.join(architectures())}")


def from_pretrained(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> PretrainedModel:
    """Read a model from a local folder as Hugging Face's libraries write it: ``config.json`` and safetensors.

    Args:
        folder: path of the folder. Nothing is downloaded.
        dtype: dtype of the parameters. Default: that of the tensors in the folder; where they differ, the one that
            holds them all without loss.

    Returns:
        The model, on the CPU, ready for evaluation; ``train()`` makes it ready for training.

    Raises:
        FileNotFoundError: if the folder, ``config.json``, the weights or a shard is missing.
        ValueError: if the architecture is unknown, ``dtype`` is no floating one, a file is damaged or no safetensors,
            or tensors are missing, superfluous or of another shape.

    Example:
        >>> import tempfile
        >>> from llm_study.core.config import GPT2Config
        >>> config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
        >>> model = model_class(config)(config).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     again = from_pretrained(folder)
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> torch.equal(again(ids), model(ids))
        True
    """
    source = Path(folder) / CONFIG
    config = config_from_dict(read_config(folder), source=str(source))
    kind = model_class(config, source=source)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected a floating one such as torch.bfloat16")
    tensors = load_tensors(folder)
    return _empty(kind, config, _dtype(tensors) if dtype is None else dtype).load_hub(tensors, source=folder).eval()


def _dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    found = {x.dtype for x in tensors.values() if x.is_floating_point()}
    return reduce(torch.promote_types, found) if found else torch.float32


def _empty(kind: type[PretrainedModel], config: ModelConfig, dtype: torch.dtype) -> PretrainedModel:
    """Return a model whose parameters are not yet filled: drawing random ones would take longer than reading."""
    with torch.device("meta"):
        model = kind(config).to(dtype)
    model.to_empty(device="cpu").tie()  # each parameter got a memory of its own
    return model
