"""From text to a language model: what ``python -m llm_study train`` does.

A tokenizer of byte-level BPE is trained on the text, then a model of Llama's architecture, small enough for a CPU. Part
of the text is held out, and tells how many bits a byte of new text costs. The folder holds checkpoints, from which the
same call goes on, and at the end a model that this package and transformers read.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llm_study.core.checks import check_at_least, check_divides
from llm_study.core.config import LlamaConfig
from llm_study.core.hub import CONFIG
from llm_study.data.batches import evaluation_windows, seed_of, windows
from llm_study.data.texts import Corpus
from llm_study.functional.information import bits_per_byte
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW
from llm_study.optim.groups import decay_groups
from llm_study.optim.schedule import cosine
from llm_study.tokenizers._files import write_json
from llm_study.tokenizers.auto import GENERATION_CONFIG
from llm_study.tokenizers.bpe import ByteLevelBPE, split_words, train_bpe
from llm_study.training.checkpoint import checkpoints, load_model, model_tensors
from llm_study.training.config import RunConfig
from llm_study.training.distributed import World, shard_parameters
from llm_study.training.loop import Settings, Trainer, next_token_loss
from llm_study.training.progress import Progress

__all__ = [
    "END",
    "PretrainConfig",
    "train_tokenizer",
    "evaluate",
    "Pretraining",
]

END = "<|endoftext|>"
"""The token between two texts, which begins each of them too."""


# --- settings


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """What can be set in the TOML file of ``--config``; the defaults train about six million parameters.

    Args:
        steps: number of steps.
        seed: seed of the fresh weights and of the order of the text.
        vocab_size: number of tokens; fewer if the text has no more pairs to merge.
        held_out: share of the text that is not trained on.
        length: number of tokens that the model reads at once.
        hidden_size: width of the model.
        intermediate_size: width of the feed-forward parts.
        num_hidden_layers: number of layers.
        num_attention_heads: number of heads of the queries.
        num_key_value_heads: number of heads of keys and values.
        batch_size: number of windows of ``length`` tokens in a step, in all pieces and processes.
        accumulate: number of pieces that a step is computed in, to save memory.
        learning_rate: the largest; it rises to it over ``warmup`` steps, then falls along a cosine.
        warmup: number of these steps, or all steps if there are fewer.
        floor: share of the learning rate that is left at the end.
        weight_decay: decay of matrices; vectors have none.
        beta1: decay of AdamW's mean of gradients.
        beta2: decay of AdamW's mean of their squares.
        clip: largest norm of the gradient.
        precision: as in :class:`llm_study.training.loop.Settings`.
        eval_every: evaluate on the held-out text after so many steps.
        eval_windows: on so many windows at most, spread evenly.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        save_every: write a checkpoint after so many steps.
        keep: how many checkpoints to keep.
        fsdp: with several processes, let each hold a piece of the parameters instead of all.

    Raises:
        ValueError: if a value makes no sense.

    Example:
        >>> PretrainConfig(steps=10).length
        256
        >>> PretrainConfig.from_dict({"steps": 1.5}, source="run.toml")
        Traceback (most recent call last):
        ValueError: run.toml: steps is 1.5, expected int
    """

    steps: int = 1000
    seed: int = 0
    vocab_size: int = 4096
    held_out: float = 0.1
    length: int = 256
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-3
    warmup: int = 50
    floor: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: str = "auto"
    eval_every: int = 100
    eval_windows: int = 64
    patience: int = 0
    save_every: int = 100
    keep: int = 2
    fsdp: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            check_at_least(name, getattr(self, name), least)
        for name in ("held_out", "floor", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        for name in ("learning_rate", "clip", "held_out"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, expected at least 0")
        if abs(self.seed) >= 2**63:
            raise ValueError(f"seed is {self.seed}, expected a number of 64 bits")
        check_divides("accumulate", self.accumulate, "batch_size", self.batch_size)
        self.settings()
        self.model(self.vocab_size)

    def settings(self) -> Settings:
        """Return what :class:`llm_study.training.loop.Trainer` wants to know.

        Returns:
            The settings of the loop.
        """
        raw = {f.name: getattr(self, f.name) for f in fields(Settings)}
        return Settings(**{**raw, "patience": self.patience or None})

    def model(self, vocab_size: int) -> LlamaConfig:
        """Return the configuration of the model.

        Args:
            vocab_size: number of tokens, the last of which is :data:`END`.

        Returns:
            The configuration.

        Raises:
            ValueError: if a size makes no sense.
        """
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        return LlamaConfig(
            vocab_size=vocab_size,
            **{name: getattr(self, name) for name in names},
            max_position_embeddings=self.length,
            tie_word_embeddings=True,
            bos_token_id=vocab_size - 1,
            eos_token_id=vocab_size - 1,
        )


_LEAST = {
    "vocab_size": 257,
    "length": 1,
    "batch_size": 1,
    "warmup": 0,
    "eval_every": 1,
    "eval_windows": 1,
    "patience": 0,
    "save_every": 1,
}


# --- tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> ByteLevelBPE:
    """Train a tokenizer whose last id is :data:`END`.

    Args:
        texts: the texts.
        vocab_size: number of ids, at least 257; fewer if the texts have no more pairs to merge.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if ``vocab_size`` is below 257.

    Example:
        >>> tokenizer = train_tokenizer(["low lower lowest"], 4096)
        >>> tokenizer.vocab_size, tokenizer.decode([262, tokenizer.special_tokens[END]])
        (264, ' lowest<|endoftext|>')
    """
    check_at_least("vocab_size", vocab_size, 257, hint="256 bytes, and one token between texts")
    words: Counter[bytes] = Counter()
    for text in texts:
        words.update(word.encode() for word in split_words(text))
    return ByteLevelBPE.from_merges(train_bpe(words, vocab_size - 257), special_tokens=[END])


# --- evaluation


def evaluate(model: nn.Module, ids: Tensor, targets: Tensor, *, batch_size: int = 16) -> float:
    """Return the mean loss of a model on windows.

    Args:
        model: ids to logits, in evaluation mode if it knows one.
        ids: ``(N, T)`` ids.
        targets: ``(N, T)`` targets, -100 where none counts.
        batch_size: number of windows at once.

    Returns:
        The mean over all targets that count, in nats.

    Example:
        >>> model = nn.Embedding(4, 4)
        >>> _ = nn.init.zeros_(model.weight)
        >>> round(evaluate(model, torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, -100]])), 4)  # the logarithm of 4
        1.3863
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with torch.no_grad():
        for x, y in zip(_pieces(ids, batch_size), _pieces(targets, batch_size), strict=True):
            loss, n = next_token_loss(model, (x.to(device), y.to(device)))
            total, count = total + float(loss), count + int(n)
    return total / max(count, 1)


def _pieces(x: Tensor, size: int) -> list[Tensor]:
    return [x[i : i + size] for i in range(0, len(x), size)]


# --- a run


class Pretraining:
    r"""A run: tokenizer, model, optimizer, schedule and held-out text, put together as the settings say.

    Args:
        corpus: the texts.
        config: the settings.
        folder: where checkpoints lie, in a folder below, and the model goes at the end. Default: nowhere.
        world: the processes that take part. Default: this one.
        report: called after each step.

    Attributes:
        tokenizer: trained on the texts to train on.
        ids: ``(N,)`` these texts, :data:`END` before, between and after them.
        trainer: the loop; ``trainer.resume()`` and ``trainer.run()`` are yours to call.

    Raises:
        ValueError: if the text is too short, or the folder is a file, or holds a model but no checkpoint.
        OSError: if the folder cannot be made.

    Example:
        >>> from llm_study.data.texts import split_texts
        >>> corpus = split_texts(["a rose is a rose is a rose\n" * 40], 0.1)
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "length": 8}
        >>> config = PretrainConfig(steps=30, warmup=3, vocab_size=260, learning_rate=0.01, **sizes)
        >>> run = Pretraining(corpus, config)
        >>> history = run.trainer.run()
        >>> len(history.losses), history.losses[-1] < 0.5 * history.losses[0]
        (30, True)
    """

    def __init__(
        self,
        corpus: Corpus,
        config: PretrainConfig,
        *,
        folder: str | os.PathLike[str] | None = None,
        world: World | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.config, self.world = config, World() if world is None else world
        self.folder = None if folder is None else _prepared(Path(folder))
        self.tokenizer = train_tokenizer(corpus.train, config.vocab_size)
        self._end = self.tokenizer.special_tokens[END]
        self.ids = self._joined(corpus.train)
        held_out = [self.tokenizer.encode(text) for text in corpus.held_out]
        windows_ = evaluation_windows(held_out, length=config.length, stride=config.length, end=self._end)
        chosen = torch.linspace(0, len(windows_[0]) - 1, min(len(windows_[0]), config.eval_windows)).long()
        self._windows = windows_[0][chosen], windows_[1][chosen]
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(config.model(self.tokenizer.vocab_size)).to(self.world.device)
        torch.manual_seed(seed_of(config.seed, "rank", self.world.rank))
        self.model = shard_parameters(model, self.world) if config.fsdp else model
        self.trainer = self._trainer(corpus, report)

    def _joined(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of all texts in a row, and check that they fill a window."""
        ids = [id for text in texts for id in (self._end, *self.tokenizer.encode(text))] + [self._end]
        if len(ids) <= self.config.length:
            what = f"the text to train on has {len(ids)} tokens, expected at least {self.config.length + 1}"
            raise ValueError(f"{what}, length and one more: use more text, or a smaller length")
        return torch.tensor(ids)

    def _trainer(self, corpus: Corpus, report: Callable[[Progress], None] | None) -> Trainer:
        c = self.config
        groups = decay_groups(self.model, weight_decay=c.weight_decay)
        optimizer = AdamW(groups, c.learning_rate, betas=(c.beta1, c.beta2))
        factor = partial(cosine, total=c.steps + 1, warmup=min(c.warmup, c.steps), floor=c.floor)
        text = hashlib.sha256("\0".join([*corpus.train, "", *corpus.held_out]).encode()).hexdigest()
        batch = partial(windows, self.ids, length=c.length, batch_size=c.batch_size, seed=c.seed)
        return Trainer(
            self.model,
            next_token_loss,
            lambda step: batch(step=step),
            optimizer,
            settings=c.settings(),
            schedule=LambdaLR(optimizer, lambda step: factor(step + 1)),  # the first step too moves the parameters
            evaluate=lambda model: evaluate(model, *self._windows, batch_size=c.batch_size),
            folder=None if self.folder is None else self.folder / CHECKPOINTS,
            identity={"text": f"sha256 {text[:16]}", **_identity(c)},
            world=self.world,
            report=report,
        )

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss on the held-out windows to bits for each byte of their text.

        Args:
            loss: what an evaluation gave.

        Returns:
            Bits for each byte.
        """
        counted = self._windows[1][self._windows[1] >= 0]
        n_bytes = sum(len(self.tokenizer.decode_bytes([id])) for id in counted.tolist())
        return bits_per_byte(loss, len(counted), n_bytes)

    def describe(self, *, resumed: bool) -> str:
        """Say what is about to happen.

        Args:
            resumed: whether the run goes on from a checkpoint.

        Returns:
            A few lines.
        """
        c, done = self.config, len(self.trainer.history.losses)
        n = sum(p.numel() for p in self.model.parameters())
        passes = c.steps * c.batch_size * c.length / len(self.ids)
        where = f"goes on after step {done:,}" if resumed else "begins"
        return (
            f"model: {n:,} parameters, {self.tokenizer.vocab_size:,} tokens in its vocabulary\n"
            f"text: {len(self.ids):,} tokens to train on, which {c.steps:,} steps read {passes:.3g} times\n"
            f"training {where}: {c.steps:,} steps of {c.batch_size * c.length:,} tokens"
        )

    def summary(self) -> str:
        """Say what came of it.

        Returns:
            A few lines.
        """
        history = self.trainer.history
        _, loss = history.evaluations[-1]
        minutes = f"{len(history.losses):,} steps in {history.seconds / 60:.1f} minutes"
        bits = f"{loss:.4f} nats per token, {self.bits_per_byte(loss):.4f} bits per byte"
        return f"{minutes}; on the held-out text: {bits}\nthe model is in {self.folder}"

    def save(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Write the model as a folder that ``generate`` and transformers read; all processes must call this together.

        Args:
            folder: where to. Default: the folder of the run.

        Raises:
            ValueError: if there is no folder.
            OSError: if a file cannot be written.
        """
        chosen = self.folder if folder is None else Path(folder)
        if chosen is None:
            raise ValueError("folder is None, expected where the model is to lie")
        tensors = model_tensors(self.model)
        if self.world.rank:
            return
        model = LlamaForCausalLM(self.config.model(self.tokenizer.vocab_size))
        load_model(model, tensors)
        chosen.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(chosen / TOKENIZER)
        ends = {"bos_token_id": self._end, "eos_token_id": self._end}
        write_json(chosen / GENERATION_CONFIG, ends)
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
        write_json(chosen / "tokenizer_config.json", {**about, "model_max_length": self.config.length})
        model.save_pretrained(chosen)


CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer.json"


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that the losses depend on."""
    return {
        name: x for name, x in asdict(config).items() if name not in ("keep", "save_every", "precision", "patience")
    }


def _prepared(folder: Path) -> Path:
    """Return the folder of a run, which exists then and holds nothing that the run would write over."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file, expected a folder: choose another path for --out")
    if (folder / CONFIG).exists() and not checkpoints(folder / CHECKPOINTS):
        raise ValueError(f"{folder}: holds a model but no checkpoint of a run: choose another folder for --out")
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    return folder
