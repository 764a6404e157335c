"""The training loop: one step after the other, in one process or several, with checkpoints that a run goes on from.

A :class:`Trainer` knows nothing of language models. It is given a model, a loss, the batch of each step and an
optimizer; it computes in mixed precision where that is asked for, splits a batch that is too large for the memory,
clips gradients, calls for evaluations, stops when they no longer get better, and writes checkpoints.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from llm_study.core.checks import check_at_least
from llm_study.optim.stability import clip_grad_norm
from llm_study.training.checkpoint import (
    Checkpoint,
    check_same_run,
    checkpoints,
    load_checkpoint,
    load_model,
    model_tensors,
    optimizer_from_parts,
    optimizer_to_parts,
    random_state,
    save_checkpoint,
    set_random_state,
)
from llm_study.training.distributed import World, exchanging, gather, replicate, rows, sums, whole
from llm_study.training.progress import Progress

__all__ = ["Settings", "History", "Trainer", "next_token_loss"]

Batch = tuple[Tensor, ...]
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes.

    Args:
        steps: number of steps, each of them one update of the parameters.
        accumulate: number of pieces that a batch is computed in; the gradient is that of the whole batch.
        clip: largest norm of the gradient, of all parameters together; None does not clip.
        precision: what matrices are multiplied in, ``"float32"``, ``"bf16"`` or ``"fp16"``; parameters and the state of
            the optimizer stay in float32. ``"auto"`` is bf16 on a GPU that has it, fp16 on one that has not, and
            float32 on a CPU.
        eval_every: evaluate after so many steps, and at the end; 0 is never.
        patience: stop after so many evaluations in a row without a new best; None never stops early.
        save_every: write a checkpoint after so many steps, and at the end; 0 is at the end only.
        keep: how many checkpoints to keep, the newest.

    Raises:
        ValueError: if a number makes no sense, ``precision`` is none of these, or ``patience`` is set without
            ``eval_every``.

    Example:
        >>> Settings(steps=0)
        Traceback (most recent call last):
        ValueError: steps is 0, expected at least 1
    """

    steps: int
    accumulate: int = 1
    clip: float | None = 1.0
    precision: str = "auto"
    eval_every: int = 0
    patience: int | None = None
    save_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value, least)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, expected a number above 0, or None")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}, expected auto, {', '.join(PRECISIONS)}")
        if self.patience is not None and not self.eval_every:
            raise ValueError(f"patience is {self.patience} and eval_every 0: set eval_every, or nothing is evaluated")


_LEAST = {"steps": 1, "accumulate": 1, "eval_every": 0, "patience": 1, "save_every": 0, "keep": 1}


@dataclass
class History:
    """What a run has done, from its very beginning, however often it was resumed.

    Args:
        losses: loss of each step.
        evaluations: number of steps done, and what the evaluation gave.
        seconds: time of all steps and evaluations; what was done twice because a process was killed counts once.

    Example:
        >>> History([2.0, 1.5], [(2, 1.6)]).losses[-1]
        1.5
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def since_best(self) -> int:
        """Count the evaluations after the best one.

        Returns:
            How many there were; 0 if the last is the best, or there is none.
        """
        values = [value for _, value in self.evaluations]
        return len(values) - 1 - values.index(min(values)) if values else 0


def next_token_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    r"""Loss of a model that predicts the next token, as :class:`Trainer` wants it.

    .. math:: -\sum_{b,t} \log p(y_{bt} \mid x_{b,\le t})

    Args:
        model: called with ids ``(B, T)``, gives logits ``(B, T, V)``.
        batch: ``(B, T)`` ids and ``(B, T)`` targets; a target of -100 does not count.

    Returns:
        ``()`` the sum over all targets that count, in float32 at least; and ``()`` how many they are.

    Example:
        >>> loss, count = next_token_loss(nn.Embedding(4, 4), (torch.tensor([[0, 1]]), torch.tensor([[1, -100]])))
        >>> loss.shape, count
        (torch.Size([]), tensor(1))
    """
    ids, targets = batch
    logits = model(ids).flatten(0, 1)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    total = nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")
    return total, (targets != -100).sum()


class Trainer:
    """The loop.

    The loss of a step is the mean over all items that count, such as tokens, of the whole batch: pieces and processes
    are weighted by how many they hold, so that it does not matter how a batch is split.

    Args:
        model: what is trained, on the device of the world. With several processes: equal in all of them, and not yet
            wrapped; or in pieces, from :func:`llm_study.training.distributed.shard_parameters`.
        loss: ``(model, batch) → (sum, count)``, the sum of the losses of a batch, and how many they are.
        batches: ``(B, …)`` tensors as a function of the step; their rows are split into pieces. The same
            step must give the same batch each time, and in each process the batch of all processes.
        optimizer: an optimizer of the parameters of the model.
        settings: how the run goes.
        schedule: a scheduler of torch, such as ``LambdaLR``, which is told of every step.
        prepare: called before each step with its number, from 0, such as
            :class:`~llm_study.training.unfreezing.Unfreezing`, which freezes and unfreezes. It must depend on nothing
            else, or a resumed run is another one.
        evaluate: ``model → number``, smaller is better; called in evaluation mode and without gradients, in every
            process.
        folder: where checkpoints are written, and read by :meth:`resume`. Default: nowhere.
        identity: what makes the run this one, such as a checksum of its text; a checkpoint of a run with another
            identity or other settings is refused.
        world: the processes that take part. Default: this one.
        report: called after each step in the first process.

    Attributes:
        history: what was done so far.

    Raises:
        ValueError: if the device has no such precision, or ``eval_every`` is set without ``evaluate``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, target = nn.Linear(1, 1), lambda x: 3 * x - 1
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - target(batch[0])).square().sum(), len(batch[0])
        >>> batch, optimizer = (torch.linspace(-1, 1, 8)[:, None],), torch.optim.SGD(model.parameters(), 0.5)
        >>> trainer = Trainer(model, loss, lambda step: batch, optimizer, settings=Settings(steps=50))
        >>> round(trainer.run().losses[-1], 4), model.weight.round(decimals=2).item()
        (0.0, 3.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, Tensor | int]],
        batches: Callable[[int], tuple[Tensor, ...]],
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings,
        schedule: LRScheduler | None = None,
        prepare: Callable[[int], object] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        folder: str | os.PathLike[str] | None = None,
        identity: Mapping[str, Any] | None = None,
        world: World | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        if settings.eval_every and evaluate is None:
            raise ValueError(f"eval_every is {settings.eval_every} and evaluate None: pass a function, or set 0")
        self.world = World() if world is None else world
        self.settings = replace(settings, precision=_precision(settings.precision, self.world.device))
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.batches, self.prepare, self.evaluate, self.report = batches, prepare, evaluate, report
        self.folder = None if folder is None else Path(folder)
        self.identity = dict(identity or {})
        self.history = History()
        self._loss = replicate(_Loss(model, loss), self.world)
        self._count = 0
        self._scaler = torch.amp.GradScaler(
            self.world.device.type, init_scale=2.0**8, enabled=self.settings.precision == "fp16"
        )

    # --- one step

    def step(self) -> float:
        """Take one step: gradients of the whole batch, clipping, an update of the parameters.

        Returns:
            The loss, the mean over all items of the batch, in all processes, before the update.

        Raises:
            ValueError: if the number of pieces times that of processes does not divide the rows of the batch, or loss
                or gradient is not finite; then the parameters are as they were before the step.
        """
        self.model.train()
        number = len(self.history.losses)
        if self.prepare is not None:
            self.prepare(number)
        batch = self.batches(number)
        total, count = sums(self._gradients(rows(batch, self.world.rank, self.world.size)), self.world)
        loss = total / max(count, 1)
        if not math.isfinite(loss):
            raise self._failed(f"the loss is {loss}")
        self._update(self.world.size / max(count, 1))
        self.history.losses.append(loss)
        self._count = int(count)
        return loss

    def _gradients(self, batch: tuple[Tensor, ...]) -> list[float]:
        """Add up the gradients of the sum of losses over the pieces of a batch; return that sum, and the count."""
        n, total, count = self.settings.accumulate, 0.0, 0.0
        for i in range(n):
            piece = tuple(x.to(self.world.device) for x in rows(batch, i, n))
            with exchanging(self._loss, i == n - 1):
                with self._autocast():
                    loss, items = self._loss(*piece)
                self._scaler.scale(loss).backward()
            total, count = total + float(loss.detach()), count + float(items)
        return [total, count]

    def _update(self, factor: float) -> None:
        """Turn the sum of gradients into the mean, clip it, and let the optimizer take its step."""
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
        norm = whole(clip_grad_norm(parameters, math.inf if self.settings.clip is None else self.settings.clip))
        if not self._scaler.is_enabled() and not norm.isfinite():  # a scaler skips such a step by itself
            raise self._failed(f"the norm of the gradient is {float(norm)}")
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        if self.schedule is not None:
            self.schedule.step()

    def _failed(self, what: str) -> ValueError:
        self.optimizer.zero_grad()
        at = f"step {len(self.history.losses) + 1}: {what}"
        return ValueError(f"{at}; the parameters are as before this step: lower the learning rate, or clip more")

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.settings.precision]
        return nullcontext() if dtype is None else torch.autocast(self.world.device.type, dtype)

    # --- a whole run

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or evaluations have no longer got better for too long."""
        patience = self.settings.patience
        tired = patience is not None and self.history.since_best() >= patience
        return tired or len(self.history.losses) >= self.settings.steps

    def run(self) -> History:
        """Take all steps that are left, with evaluations and checkpoints.

        Returns:
            What was done, from the very beginning.

        Raises:
            ValueError: as :meth:`step`.
            OSError: if a checkpoint cannot be written; those before it are as they were.
        """
        while not self.finished:
            start = time.perf_counter()
            loss = self.step()
            done = len(self.history.losses)
            evaluate = self.evaluate if self._is_due(self.settings.eval_every, done) else None
            value = None if evaluate is None else self._evaluate(evaluate)
            self.history.seconds += time.perf_counter() - start
            if self.report is not None and self.world.rank == 0:
                self.report(Progress(done, self.settings.steps, loss, self._count, value))
            if self.folder is not None and (self.finished or self._is_due(self.settings.save_every, done)):
                self.save()
        return self.history

    def _is_due(self, every: int, done: int) -> bool:
        return every > 0 and (done % every == 0 or done == self.settings.steps)

    def _evaluate(self, evaluate: Callable[[nn.Module], float]) -> float:
        """Evaluate; every process goes on with what the first one found."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            value = float(evaluate(self.model))
        [value] = sums([value if self.world.rank == 0 else 0.0], self.world)
        self.history.evaluations.append((len(self.history.losses), value))
        return value

    # --- checkpoints

    def save(self) -> None:
        """Write a checkpoint into the folder; the first process does, but all must call this together.

        Raises:
            ValueError: if the trainer has no folder, or there is a checkpoint of this step already.
            OSError: if it cannot be written; the checkpoints before it are as they were.
        """
        if self.folder is None:
            raise ValueError("folder is None, expected where checkpoints are to lie")
        optimizer, rest = optimizer_to_parts(self.optimizer)
        random = {
            f"{rank}.{device}": x
            for device, own in random_state().items()
            for rank, x in enumerate(gather(own, self.world))
        }
        losses = torch.tensor(self.history.losses, dtype=torch.float64)
        parameters = model_tensors(self.model)
        groups = {"model": parameters, "optimizer": optimizer, "random": random, "history": {"losses": losses}}
        state = {
            "run": self._run(),
            "optimizer": rest,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "evaluations": self.history.evaluations,
            "seconds": self.history.seconds,
        }
        if self.world.rank == 0:
            save_checkpoint(self.folder, Checkpoint(len(losses), groups, state), keep=self.settings.keep)
        sums([0.0], self.world)  # nobody goes on, and perhaps reads the folder, before it is written

    def resume(self) -> bool:
        """Go on from the newest checkpoint in the folder, as if the run had never stopped.

        Returns:
            Whether there was one.

        Raises:
            FileNotFoundError: if a file of the checkpoint is missing.
            ValueError: if a file was cut short or changed, or the checkpoint is of another run: its settings, its
                identity or the shapes of its model differ.
        """
        found = [] if self.folder is None else checkpoints(self.folder)
        if not found:
            return False
        _, tensors, state = load_checkpoint(found[-1])
        check_same_run(state["run"], self._run(), source=found[-1])
        load_model(self.model, tensors["model"], source=found[-1])
        optimizer_from_parts(self.optimizer, tensors["optimizer"], state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        own = f"{self.world.rank}."
        set_random_state({name.removeprefix(own): x for name, x in tensors["random"].items() if name.startswith(own)})
        evaluations = [(int(step), float(value)) for step, value in state["evaluations"]]
        self.history = History(tensors["history"]["losses"].tolist(), evaluations, state["seconds"])
        return True

    def _run(self) -> dict[str, Any]:
        """Return everything that the losses depend on, as far as it is known here, as JSON."""
        settings = {name: x for name, x in asdict(self.settings).items() if name not in ("keep", "save_every")}
        own = {**settings, "optimizer": type(self.optimizer).__name__, "processes": self.world.size}
        return {**own, **self.identity}


class _Loss(nn.Module):
    """The loss as a module, so that it can be wrapped with the model: called with the tensors of a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor | int]]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor | int]:
        return self.loss(self.model, batch)


def _precision(name: str, device: torch.device) -> str:
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision is 'fp16' on a CPU, expected bf16 or float32: fp16 needs a GPU")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
