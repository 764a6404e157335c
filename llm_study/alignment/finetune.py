r"""From conversations to a model that answers as they do: what ``python -m llm_study finetune`` does.

A model from a local folder gets an adapter of one of many methods, or all of it is trained. It learns the words of the
assistant in the conversations of a file, of which a share is held out to tell when the model is at its best. Checkpoints
hold what is trained and nothing else, and the same call goes on from them. At the end the folder has the adapter as peft
reads it, and the merged model with its tokenizer and its chat format.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llm_study.alignment.sft import Example, draw_rows, neftune, pack_examples, read_chats, sft_loss, tokenize_chat
from llm_study.core.checks import check_at_least
from llm_study.core.config import config_from_dict
from llm_study.core.hub import CONFIG, read_config, read_json
from llm_study.data.batches import seed_of
from llm_study.data.objectives import IGNORE
from llm_study.models.auto import from_pretrained, model_class
from llm_study.models.base import CausalLM
from llm_study.optim.first_order import AdamW
from llm_study.optim.schedule import cosine
from llm_study.peft.adalora import AdaLoRA, RankAllocator, orthogonality
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import Method, inject, merge, save_adapter, unload, unmerge
from llm_study.peft.decomposed import DoRA, OLoRA, PiSSA
from llm_study.peft.lora import LoRA, LoRAFA, RSLoRA, lora_plus_groups
from llm_study.peft.lowrank import FourierFT, LoHa, LoKr, MiSS, MoRA
from llm_study.peft.shared import RandLoRA, VBLoRA, VeRA
from llm_study.tokenizers._files import write_json, write_text
from llm_study.tokenizers.auto import load_tokenizer
from llm_study.tokenizers.base import TOKENIZER, Tokenizer
from llm_study.tokenizers.chat import TEMPLATES, ChatTemplate, chat_template
from llm_study.training.checkpoint import checkpoints
from llm_study.training.config import RunConfig
from llm_study.training.distributed import World
from llm_study.training.loop import Settings, Trainer
from llm_study.training.progress import Progress

__all__ = [
    "ADAPTER",
    "METHODS",
    "FinetuneConfig",
    "Finetuning",
    "Recipe",
    "chat_format",
    "end_of_text",
    "linear_targets",
]

ADAPTER, CHECKPOINTS = "adapter", "checkpoints"
"""Folders below the one of a run: the adapter alone, and the checkpoints."""
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
ORTHOGONALITY = 0.1
"""Weight of the penalty of AdaLoRA."""


# --- methods


@dataclass(frozen=True)
class Recipe:
    """How a method of fine-tuning is made from the settings of a run.

    Args:
        kind: the class of the method; None trains all parameters.
        sizes: settings → what the class is called with. Default: ``rank``.
        groups: model and learning rate → groups for the optimizer. Default: one group with all that is trained.
        adaptive: whether ranks are handed out while training, and the factors kept near to orthonormal.

    Example:
        >>> METHODS["lora"].method(FinetuneConfig(rank=4), width=64, steps=100)
        LoRA(rank=4, alpha=8.0, lora_dropout=0.0)
    """

    kind: Callable[..., Method] | None
    sizes: Callable[["FinetuneConfig", int, int], dict[str, Any]] = lambda c, width, steps: {"rank": c.rank}
    groups: Callable[[nn.Module, float], list[dict[str, Any]]] | None = None
    adaptive: bool = False

    def method(self, config: "FinetuneConfig", *, width: int, steps: int) -> Method | None:
        """Make the method.

        Args:
            config: the settings.
            width: width of the model.
            steps: number of steps of the run.

        Returns:
            The method; None if all parameters are trained.

        Raises:
            ValueError: if the settings make no sense for the method, or ``options`` has one that the method lacks.
        """
        if self.kind is None:
            return None
        known = [f.name for f in fields(self.kind)]  # type: ignore[arg-type]
        for name in config.options:
            if name not in known:
                raise ValueError(f"options: {config.method} has no {name}, expected some of {', '.join(known)}")
        return self.kind(**{**self.sizes(config, width, steps), **config.options})


def _scaled(times: float) -> Callable[["FinetuneConfig", int, int], dict[str, Any]]:
    """Return sizes of a method with a rank and a scale, which is ``alpha / rank``: ``times``, if nothing is set."""
    return lambda c, width, steps: {"rank": c.rank, "alpha": c.alpha or times * c.rank}


def _adalora(c: "FinetuneConfig", width: int, steps: int) -> dict[str, Any]:
    """Begin with half as many ranks again, and hand them out between the first tenth and the last third of the run."""
    times = {"tinit": steps // 10, "tfinal": steps // 3, "delta_t": max(1, steps // 100), "total_step": steps}
    return {"init_r": c.rank + (c.rank + 1) // 2, "target_r": c.rank, "alpha": c.alpha or 2 * c.rank, **times}


def _fourier(c: "FinetuneConfig", width: int, steps: int) -> dict[str, Any]:
    """Train as many numbers of each layer as a LoRA of this rank has in a square matrix of this width."""
    return {"n_frequency": 2 * c.rank * width, "init_weights": True}


METHODS: Mapping[str, Recipe] = {
    "lora": Recipe(LoRA, _scaled(2)),
    "rslora": Recipe(RSLoRA, _scaled(2)),
    "lora+": Recipe(LoRA, _scaled(2), groups=lambda model, lr: lora_plus_groups(model, lr=lr)),
    "lora_fa": Recipe(LoRAFA, _scaled(2)),
    "dora": Recipe(DoRA, _scaled(2)),
    "pissa": Recipe(PiSSA, _scaled(1)),
    "olora": Recipe(OLoRA, _scaled(1)),
    "adalora": Recipe(AdaLoRA, _adalora, adaptive=True),
    "vera": Recipe(VeRA),
    "vb_lora": Recipe(VBLoRA),
    "randlora": Recipe(RandLoRA, _scaled(20)),
    "loha": Recipe(LoHa, _scaled(1)),
    "lokr": Recipe(LoKr, _scaled(1)),
    "mora": Recipe(MoRA),
    "miss": Recipe(MiSS),
    "fourierft": Recipe(FourierFT, _fourier),
    "full": Recipe(None),
}
"""What ``--method`` may name. Those that keep to ``alpha / rank`` take twice the rank as ``alpha`` if it is not set; the
rank where they start from the weight or are products of products; twenty times the rank in RandLoRA, as in peft."""


# --- settings


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """What can be set in the TOML file of ``--config``.

    Args:
        method: a name in :data:`METHODS`.
        rank: rank of the adapter; for ``fourierft`` as many coefficients as a LoRA of this rank would have numbers in a
            square matrix.
        alpha: numerator of the scale, for methods that have one; 0 takes the usual one, see :data:`METHODS`.
        targets: which layers are adapted, as :func:`llm_study.peft.base.inject` takes them. Default: all linear layers
            but the head.
        options: further settings of the method, by the names of its class, such as ``{"lora_dropout": 0.1}``.
        chat: name of the format of the conversations; empty to find one, see :func:`chat_format`.
        epochs: how often each conversation is read.
        steps: number of steps; 0 takes as many as ``epochs`` says.
        learning_rate: the largest; it rises to it over ``warmup`` steps, then falls along a cosine. The default suits
            LoRA; methods that train few numbers want a much larger one, ``full`` a smaller one.
        warmup: number of these steps, or all steps if there are fewer.
        floor: share of the learning rate that is left at the end.
        weight_decay: decay of all that is trained.
        beta1: decay of AdamW's mean of gradients.
        beta2: decay of AdamW's mean of their squares.
        clip: largest norm of the gradient.
        batch_size: number of conversations in a step, in all pieces and processes. Several share a row, which changes
            nothing but the time.
        accumulate: number of pieces that a step is computed in, to save memory.
        length: number of tokens of a conversation at most; what is beyond is cut off. 0 is what the model is made for.
        held_out: share of the conversations that is not trained on; 0 for none, and then nothing is evaluated.
        neftune: size of the noise on the embeddings while training, see :func:`llm_study.alignment.sft.neftune`.
        seed: seed of the adapter, the order of the conversations and which of them are held out.
        precision: as in :class:`llm_study.training.loop.Settings`.
        eval_every: evaluate on the held-out conversations after so many steps, and at the end.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        save_every: write a checkpoint after so many steps.
        keep: how many checkpoints to keep.

    Raises:
        ValueError: if a value makes no sense.

    Example:
        >>> FinetuneConfig().method
        'lora'
        >>> FinetuneConfig.from_dict({"rank": 0}, source="run.toml")
        Traceback (most recent call last):
        ValueError: run.toml: rank is 0, expected at least 1
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    chat: str = ""
    epochs: float = 3.0
    steps: int = 0
    learning_rate: float = 2e-4
    warmup: int = 10
    floor: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 1.0
    batch_size: int = 16
    accumulate: int = 1
    length: int = 0
    held_out: float = 0.1
    neftune: float = 0.0
    seed: int = 0
    precision: str = "auto"
    eval_every: int = 50
    patience: int = 0
    save_every: int = 50
    keep: int = 2

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        if self.chat:
            chat_template(self.chat)
        for name, least in _LEAST.items():
            check_at_least(name, getattr(self, name), least)
        for name in ("held_out", "floor", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        for name in ("learning_rate", "clip", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        for name in ("alpha", "weight_decay", "neftune"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if abs(self.seed) >= 2**63:
            raise ValueError(f"seed is {self.seed}, expected a number of 64 bits")
        self.settings(1)

    def settings(self, steps: int) -> Settings:
        """Return what :class:`llm_study.training.loop.Trainer` wants to know.

        Args:
            steps: number of steps of the run.

        Returns:
            The settings of the loop; without held-out conversations it evaluates nothing.

        Raises:
            ValueError: if a value makes no sense, or ``patience`` is set and nothing is held out.
        """
        raw = {f.name: getattr(self, f.name) for f in fields(Settings)}
        evaluated = {"eval_every": self.eval_every if self.held_out else 0, "patience": self.patience or None}
        return Settings(**{**raw, **evaluated, "steps": steps})


_LEAST = {"rank": 1, "steps": 0, "warmup": 0, "batch_size": 1, "length": 0, "eval_every": 1, "patience": 0}
_LEAST |= {"save_every": 1}


# --- formats and layers


def end_of_text(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> str | None:
    """Return the token that ends a text of a model, as ``generation_config.json`` or else ``config.json`` names it.

    Args:
        folder: the folder of the model.
        tokenizer: its tokenizer.

    Returns:
        The token, the first if there are several; None if there is none, or the tokenizer cannot spell it.

    Raises:
        FileNotFoundError: if there is no such folder, or no ``config.json`` in it.
        ValueError: if a file is damaged.
    """
    config = config_from_dict(read_config(folder), source=str(Path(folder) / CONFIG))
    file = Path(folder) / GENERATION_CONFIG
    found = (read_json(file) if file.is_file() else {}).get("eos_token_id", config.eos_token_id)
    ids = found if isinstance(found, list | tuple) else [found]
    id = ids[0] if ids else None
    spelled = isinstance(id, int) and 0 <= id < tokenizer.vocab_size
    return tokenizer.decode([id]) if spelled else None  # type: ignore[list-item]


def chat_format(
    folder: str | os.PathLike[str], tokenizer: Tokenizer, name: str = ""
) -> tuple[str, ChatTemplate, int]:
    """Find the format in which a model is to hold conversations.

    Args:
        folder: the folder of the model.
        tokenizer: its tokenizer.
        name: name of the format. Default: the one that ``tokenizer_config.json`` describes, if it is one of ours; else
            the first all of whose control tokens the tokenizer has; ``plain`` is the last of them.

    Returns:
        Its name, the format, and the id of the token that ends an answer.

    Raises:
        FileNotFoundError: if there is no such folder, or no ``config.json`` in it.
        ValueError: if there is no such format, the tokenizer has not all of its control tokens, or fits none.
    """
    end = end_of_text(folder, tokenizer)
    formats = {key: chat_template(key, end=end) for key in TEMPLATES}
    chosen = name or _said(Path(folder), formats)
    lacking = {key: _lacking(tokenizer, template.control) for key, template in formats.items()}
    if not chosen:
        chosen = next((key for key in formats if not lacking[key]), "")
    if not chosen:
        raise ValueError(f"{folder}: the tokenizer has the control tokens of no format: {', '.join(formats)}")
    template = chat_template(chosen, end=end)
    if missing := lacking[chosen]:
        hint = "choose another format, such as plain"
        raise ValueError(f"{folder}: the tokenizer has no token {', '.join(missing)}, which {chosen} needs: {hint}")
    return chosen, template, _single(tokenizer, template.answer[1].strip())


def _said(folder: Path, formats: Mapping[str, ChatTemplate]) -> str:
    """Return the name of the format that a folder's tokenizer_config.json describes, if it is one of ours."""
    file = folder / TOKENIZER_CONFIG
    said = read_json(file).get("chat_template") if file.is_file() else None
    return next((name for name, template in formats.items() if template.jinja() == said), "")


def _lacking(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """Return the tokens that are no single special token of a tokenizer."""
    lacking = []
    for token in tokens:
        try:
            _single(tokenizer, token)
        except ValueError:
            lacking.append(token)
    return lacking


def _single(tokenizer: Tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, allowed_special=[token])
    if len(ids) != 1:
        raise ValueError(f"{token} is {len(ids)} tokens, expected 1")
    return ids[0]


def linear_targets(model: nn.Module) -> list[str]:
    """Name the linear layers of a model but for its head, as targets of an adapter.

    Args:
        model: a decoder.

    Returns:
        The last parts of their names, each once.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> linear_targets(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))[-3:]
        ['gate_proj', 'up_proj', 'down_proj']
    """
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in dict.fromkeys(names) if name != "lm_head"]
