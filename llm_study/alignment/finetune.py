r"""From conversations to a model that answers as they do: what ``python -m llm_study finetune`` does.

A model from a local folder gets an adapter of one of many methods, or all of it is trained. It learns the words of the
assistant in the conversations of a file, of which a share is held out to tell when the model is at its best.
Checkpoints hold what is trained and nothing else, and the same call goes on from them. At the end the folder has the
adapter as peft reads it, and the merged model with its tokenizer and its chat format.
"""

import hashlib
import inspect
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

from llm_study.alignment.sft import Example, draw_rows, neftune, numbered_chats, pack_examples, sft_loss, tokenize_chat
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
from llm_study.tokenizers.auto import GENERATION_CONFIG, end_of_text, load_tokenizer
from llm_study.tokenizers.base import TOKENIZER, Tokenizer
from llm_study.tokenizers.chat import TEMPLATES, ChatTemplate, chat_template
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
    "linear_targets",
]

ADAPTER, CHECKPOINTS = "adapter", "checkpoints"
"""Names of folders below that of a run, one for the adapter alone and one for the checkpoints."""
TOKENIZER_CONFIG = "tokenizer_config.json"
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
    sizes: Callable[["FinetuneConfig", int, int], dict[str, Any]] = field(default_factory=lambda: _rank)
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
        known = [*inspect.signature(self.kind).parameters]
        for name in config.options:
            if name not in known:
                raise ValueError(f"options: {config.method} has no {name}, expected some of {', '.join(known)}")
        return self.kind(**{**self.sizes(config, width, steps), **config.options})


def _rank(c: "FinetuneConfig", width: int, steps: int) -> dict[str, Any]:
    return {"rank": c.rank}


def _scaled(times: float) -> Callable[["FinetuneConfig", int, int], dict[str, Any]]:
    """Return sizes of a method with a rank and a scale, which is ``alpha / rank``: ``times``, if nothing is set."""
    return lambda c, width, steps: {"rank": c.rank, "alpha": c.alpha or float(times * c.rank)}


def _adalora(c: "FinetuneConfig", width: int, steps: int) -> dict[str, Any]:
    """Begin with half as many ranks again, and hand them out between the first tenth and the last third of the run."""
    times = {"tinit": steps // 10, "tfinal": steps // 3, "delta_t": max(1, steps // 100), "total_step": steps}
    return {"init_r": c.rank + (c.rank + 1) // 2, "target_r": c.rank, "alpha": c.alpha or 2.0 * c.rank, **times}


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
"""What ``--method`` may name. Where the scale is ``alpha / rank``, and ``alpha`` is not set, it is twice the rank; the
rank itself where factors start from the weight or are multiplied once more; twenty times the rank in RandLoRA, as in
peft."""


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


def chat_format(folder: str | os.PathLike[str], tokenizer: Tokenizer, name: str = "") -> tuple[str, ChatTemplate, int]:
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

    Example:
        >>> import tempfile
        >>> from llm_study.tokenizers.bpe import ByteLevelBPE
        >>> tokenizer = ByteLevelBPE.train(["a"], vocab_size=258, special_tokens=["<|im_start|>", "<|im_end|>"])
        >>> raw = {"model_type": "llama", "vocab_size": 258, "hidden_size": 8, "intermediate_size": 8}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / CONFIG, {**raw, "num_hidden_layers": 1, "num_attention_heads": 1})
        ...     name, _, end = chat_format(folder, tokenizer)
        >>> name, end
        ('chatml', 257)
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
    said = _read(folder / TOKENIZER_CONFIG).get("chat_template")
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


# --- what is trained


class _Trained(nn.Module):
    """The tensors that a run changes, and the model behind them: what is frozen takes no part in checkpoints.

    The best tensors so far, and the averages of AdaLoRA, are in the checkpoints too.
    """

    def __init__(self, model: CausalLM, allocator: RankAllocator | None) -> None:
        super().__init__()
        self._hidden = [model]  # in a list the model is no part of this one
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(_flat(name), parameter)
                self.register_buffer(f"best/{_flat(name)}", parameter.detach().clone())
        for name, x in ({} if allocator is None else _averages(allocator)).items():
            self.register_buffer(name, x)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        logits: Tensor = self._hidden[0](ids, mask=mask, positions=positions)
        return logits

    def train(self, mode: bool = True) -> "_Trained":
        self._hidden[0].train(mode)
        return super().train(mode)

    @torch.no_grad()
    def remember(self) -> None:
        """Take the tensors of now for the best."""
        for name, parameter in self.named_parameters():
            self.get_buffer(f"best/{name}").copy_(parameter)

    @contextmanager
    def best(self) -> Iterator[None]:
        """Let the model have the best tensors for a while."""
        now = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(self.get_buffer(f"best/{name}"))
            try:
                yield
            finally:
                for name, parameter in self.named_parameters():
                    parameter.copy_(now[name])


def _flat(name: str) -> str:
    return name.replace(".", "/")


def _averages(allocator: RankAllocator) -> dict[str, Tensor]:
    """Return the tensors by which AdaLoRA judges; they change in place."""
    found = {f"keep/{_flat(name)}": x for name, x in allocator.keep.items()}
    for kind, own in (("mean", allocator.mean), ("spread", allocator.spread)):
        found |= {f"{kind}/{_flat('.'.join(key))}": x for key, x in own.items()}
    return found


# --- a run


class Finetuning:
    """A run: model, adapter, conversations, optimizer and schedule, put together as the settings say.

    Args:
        base: the folder of the model that is fine-tuned, a decoder with its tokenizer.
        data: the file of conversations, as :func:`llm_study.alignment.sft.read_chats` reads it.
        config: the settings.
        folder: where checkpoints lie, in a folder below, and adapter and model go at the end. Default: nowhere.
        world: the processes that take part. Default: this one.
        report: called after each step.

    Attributes:
        tokenizer: that of the model.
        format: name of the format of the conversations.
        template: the format.
        model: the model with its adapter.
        trainer: the loop; ``trainer.resume()`` and ``trainer.run()`` are yours to call.

    Raises:
        FileNotFoundError: if there is no such folder or file, or a file of the model is missing.
        ValueError: if the model is no decoder, conversations or adapter do not fit it, or ``folder`` is taken.
        OSError: if the folder cannot be made.

    Example:
        >>> import tempfile
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> from llm_study.tokenizers.bpe import ByteLevelBPE
        >>> tokenizer = ByteLevelBPE.train(["a"], vocab_size=257, special_tokens=["<|endoftext|>"])
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, **sizes))
        >>> turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     tokenizer.save(Path(folder) / TOKENIZER)
        ...     _ = (Path(folder) / "chat.jsonl").write_text(json.dumps({"messages": turns}))
        ...     config = FinetuneConfig(method="full", steps=20, warmup=1, learning_rate=0.01, held_out=0.0)
        ...     run = Finetuning(folder, Path(folder) / "chat.jsonl", config)
        >>> losses = run.trainer.run().losses
        >>> losses[-1] < 0.5 * losses[0]
        True
    """

    def __init__(
        self,
        base: str | os.PathLike[str],
        data: str | os.PathLike[str],
        config: FinetuneConfig,
        *,
        folder: str | os.PathLike[str] | None = None,
        world: World | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.base, self.config, self.world = Path(base), config, World() if world is None else world
        self.folder = None if folder is None else Path(folder)
        width = self._check_base()
        if self.folder is not None:
            _check_free(self.folder, self.base)
        self.tokenizer = load_tokenizer(self.base)
        self.format, self.template, self.end = chat_format(self.base, self.tokenizer, config.chat)
        self.train, self.held_out, self.n_cut = self._examples(Path(data))
        n = math.ceil(config.epochs * len(self.train) / config.batch_size)
        self.steps = config.steps or max(1, n)
        self.model = self._adapted(width)
        self.trainer = self._trainer(report)
        if self.folder is not None:
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)

    def _check_base(self) -> int:
        """Check that the folder is one of a decoder, before its weights are read; return the width of the model."""
        source = self.base / CONFIG
        self._about = config_from_dict(read_config(self.base), source=str(source))
        if not issubclass(model_class(self._about, source=source), CausalLM):
            raise ValueError(f"{self.base}: model_type is {self._about.model_type!r}, expected that of a decoder")
        most = self._about.max_length
        if self.config.length > most:
            raise ValueError(f"length is {self.config.length}, expected at most {most}, as {source} says")
        return self._about.transformer().hidden_size

    # --- conversations

    def _examples(self, data: Path) -> tuple[list[Example], list[Example], int]:
        """Return the conversations to train on, those that are held out, and how many of all had to be cut."""
        tokenize = partial(tokenize_chat, tokenizer=self.tokenizer, template=self.template)
        found, cut, length = list[Example](), 0, self.config.length or self._about.max_length
        for line, messages in numbered_chats(data, template=self.template):
            try:
                whole = tokenize(messages)
                found.append(whole if len(whole) <= length else tokenize(messages, max_length=length))
            except ValueError as error:
                raise ValueError(f"{data}:{line}: {error}") from None
            cut += len(whole) > length
        self._check_ids(found)
        return *self._split(found, data), cut

    def _check_ids(self, examples: Sequence[Example]) -> None:
        most, V = max(int(example.ids.max()) for example in examples), self._about.vocab_size
        if most >= V:
            text = f"the tokenizer gives id {most}, expected at most {V - 1}"
            raise ValueError(f"{self.base}: {text}: the model has too few rows for {self.format}")

    def _split(self, examples: list[Example], data: Path) -> tuple[list[Example], list[Example]]:
        """Return what is trained on and what is held out, both in the order of the file."""
        n = len(examples)
        apart = max(1, round(self.config.held_out * n)) if self.config.held_out else 0
        if apart >= n:
            text = f"{data}: has {n} conversation, expected at least 2, one of them held out"
            raise ValueError(f"{text}: add one, or set held_out = 0")
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, "held out"))
        chosen = set(torch.randperm(n, generator=generator)[:apart].tolist())
        parts: tuple[list[Example], list[Example]] = ([], [])
        for i, example in enumerate(examples):
            parts[i in chosen].append(example)
        return parts

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the conversations of a step, in as many rows as they need, and as the pieces of a step can share.

        Args:
            step: number of the step, from 0.

        Returns:
            ``(B, T)`` ids, targets, positions and numbers of the conversations.
        """
        numbers = torch.arange(len(self.train))
        (chosen,) = draw_rows((numbers,), batch_size=self.config.batch_size, seed=self.config.seed, step=step)
        return _rows([self.train[i] for i in chosen.tolist()], self.config.accumulate * self.world.size)

    # --- model and loop

    def _adapted(self, width: int) -> CausalLM:
        """Return the model, ready for training: with its adapter, or all of it in float32."""
        c, method = self.config, METHODS[self.config.method].method(self.config, width=width, steps=self.steps)
        model = from_pretrained(self.base, dtype=torch.float32 if method is None else None)
        assert isinstance(model, CausalLM)  # as _check_base has found
        self.n_base = sum(p.numel() for p in model.parameters())
        self._checksum = _checksum(model.state_dict())
        model.to(self.world.device)
        if method is not None:
            generator = torch.Generator(self.world.device).manual_seed(seed_of(c.seed, "adapter"))
            inject(model, method, c.targets or linear_targets(model), generator=generator)
            unmerge(merge(model))  # what cannot be merged is told now, and not after the training
        return model

    def _trainer(self, report: Callable[[Progress], None] | None) -> Trainer:
        c, recipe = self.config, METHODS[self.config.method]
        self._allocator = RankAllocator(self.model) if recipe.adaptive else None
        self._trained = _Trained(self.model, self._allocator)
        parameters = list(self._trained.parameters())
        groups = [{"params": parameters}] if recipe.groups is None else recipe.groups(self.model, c.learning_rate)
        optimizer = AdamW(groups, c.learning_rate, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay)
        if self._allocator is not None:
            optimizer.register_step_post_hook(self._allocate)
        factor = partial(cosine, total=self.steps + 1, warmup=min(c.warmup, self.steps), floor=c.floor)
        torch.manual_seed(seed_of(c.seed, "rank", self.world.rank))
        data = _checksum({f"{i}": torch.stack([x.ids, x.targets]) for i, x in enumerate([*self.train, *self.held_out])})
        sources = {"base": f"sha256 {self._checksum}", "data": f"sha256 {data}", "chat": self.format}
        return Trainer(
            self._trained,
            self._loss,
            self.batch,
            optimizer,
            settings=c.settings(self.steps),
            schedule=LambdaLR(optimizer, lambda step: factor(step + 1)),  # the first step too moves the parameters
            evaluate=self._evaluate,
            folder=None if self.folder is None else self.folder / CHECKPOINTS,
            identity={**_identity(c), **sources},
            world=self.world,
            report=report,
        )

    def _allocate(self, *_: Any) -> None:
        """Hand out the ranks of AdaLoRA; called when the optimizer has taken its step."""
        if self._allocator is not None:
            self._allocator.step(len(self.trainer.history.losses) + 1)

    def _loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        noise = neftune(self.model, self.config.neftune) if self.config.neftune else nullcontext()
        with noise:
            total, count = sft_loss(model, batch)
        if self._allocator is not None and self.model.training:
            total = total + ORTHOGONALITY * count * orthogonality(self.model)
        return total, count

    # --- how good it is

    def evaluate(self, examples: Sequence[Example] | None = None) -> float:
        """Return the mean loss of the assistant's tokens.

        Args:
            examples: conversations. Default: those that are held out.

        Returns:
            The mean, in nats.

        Raises:
            ValueError: if there are no conversations.
        """
        chosen, total, count = self.held_out if examples is None else examples, 0.0, 0
        check_at_least("number of conversations", len(chosen), 1)
        self._trained.eval()
        with torch.no_grad():
            for i in range(0, len(chosen), self.config.batch_size):
                rows = _rows(chosen[i : i + self.config.batch_size], 1)
                loss, n = sft_loss(self._trained, tuple(x.to(self.world.device) for x in rows))
                total, count = total + float(loss), count + int(n)
        return total / count

    def _evaluate(self, _: nn.Module) -> float:
        """Evaluate, and remember what is trained if it was never so good."""
        value = self.evaluate()
        if value < min((found for _, found in self.trainer.history.evaluations), default=math.inf):
            self._trained.remember()
        return value

    # --- in words

    def describe(self, *, resumed: bool) -> str:
        """Say what is about to happen.

        Args:
            resumed: whether the run goes on from a checkpoint.

        Returns:
            A few lines.
        """
        c, done = self.config, len(self.trainer.history.losses)
        n = sum(p.numel() for p in self._trained.parameters())
        cut = f", {self.n_cut:,} of them cut" if self.n_cut else ""
        where = f"goes on after step {done:,}" if resumed else "begins"
        return (
            f"model: {self.n_base:,} parameters; {c.method} trains {n:,}, {n / self.n_base:.2%}\n"
            f"conversations: {len(self.train):,} to train on, {len(self.held_out):,} held out{cut}; "
            f"format {self.format}\n"
            f"training {where}: {self.steps:,} steps of {c.batch_size:,} conversations"
        )

    def summary(self) -> str:
        """Say what came of it.

        Returns:
            A few lines.
        """
        history = self.trainer.history
        text = f"{len(history.losses):,} steps in {history.seconds / 60:.1f} minutes"
        if history.evaluations:
            step, loss = min(history.evaluations, key=lambda found: found[1])
            text += f"; on the held-out conversations, best after step {step:,}: "
            text += f"{loss:.4f} nats per token of the assistant"
        return f"{text}\nthe model is in {self.folder}; answer with --chat {self.format}"

    # --- files

    def save(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Write the best adapter, and the model that it is merged into, as ``generate`` and transformers read it.

        What is best, the evaluations say; without them it is what there is now. All processes may call this; the first
        one writes.

        Args:
            folder: where to; the adapter goes into a folder below. Default: the folder of the run.

        Raises:
            ValueError: if there is no folder.
            OSError: if a file cannot be written.
        """
        chosen = self.folder if folder is None else Path(folder)
        if chosen is None:
            raise ValueError("folder is None, expected where the model is to lie")
        if self.world.rank:
            return
        with self._trained.best() if self.trainer.history.evaluations else nullcontext():
            model = self._merged(chosen)
        self._save_tokenizer(chosen)
        model.save_pretrained(chosen)

    def _merged(self, folder: Path) -> CausalLM:
        """Write the adapter, if there is one, and return a fresh model with it merged."""
        model = from_pretrained(self.base)
        assert isinstance(model, CausalLM)
        folder.mkdir(parents=True, exist_ok=True)
        if METHODS[self.config.method].kind is None:
            model.load_state_dict(self.model.state_dict())
            return model
        save_adapter(self.model, folder / ADAPTER)
        return unload(merge(load_adapter(model, folder / ADAPTER)))

    def _save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, and what transformers wants to know to hold a conversation."""
        for file in [*self.base.glob(TOKENIZER), *self.base.glob("*.tiktoken")]:
            write_text(folder / file.name, file.read_text("utf-8"))
        end = self.template.answer[1].strip()
        about = {"tokenizer_class": "PreTrainedTokenizerFast", **_read(self.base / TOKENIZER_CONFIG)}
        write_json(folder / TOKENIZER_CONFIG, {**about, "eos_token": end, "chat_template": self.template.jinja()})
        begin = {} if self._about.bos_token_id is None else {"bos_token_id": self._about.bos_token_id}
        write_json(
            folder / GENERATION_CONFIG, {**begin, **_read(self.base / GENERATION_CONFIG), "eos_token_id": self.end}
        )


def _rows(examples: Sequence[Example], times: int) -> tuple[Tensor, ...]:
    """Lay conversations out in rows as long as the longest, and fill up with empty rows to a multiple of ``times``."""
    rows = pack_examples(examples, max(len(example) for example in examples))
    short = -len(rows[0]) % times
    fill = (0, IGNORE, 0, -1)
    return tuple(torch.cat([x, x.new_full((short, x.shape[1]), value)]) for x, value in zip(rows, fill, strict=True))


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that the losses depend on, as JSON has them."""
    left = ("keep", "save_every", "precision", "patience", "steps", "epochs", "eval_every", "chat")
    found = {name: x for name, x in asdict(config).items() if name not in left}
    same: dict[str, Any] = json.loads(json.dumps(found))
    return same


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of tensors and their names, such as the weights of a model."""
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(name.encode())
        digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _check_free(folder: Path, base: Path) -> None:
    """Check that the folder of a run is not that of the model, and holds nothing that the run would write over."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file, expected a folder: choose another path for --out")
    if folder.exists() and folder.resolve() == base.resolve():
        raise ValueError(f"{folder}: is the folder of the model itself: choose another folder for --out")
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKPOINTS).is_dir():
        raise ValueError(f"{folder}: holds something, but no checkpoints of a run: choose another folder for --out")
