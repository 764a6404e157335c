"""Checkpoints that are either whole or not there: tensors in safetensors, the rest in JSON, never a pickle.

A checkpoint is a folder. It is written under a hidden name beside its place, every file is forced to disk, and then the
folder is renamed: whoever looks sees the checkpoint before or the new one, never half of one, even if the process is
killed in between. ``state.json`` is written last and holds the size and the checksum of every other file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm_study.core.checks import check_at_least
from llm_study.core.hub import read_json
from llm_study.training.distributed import in_pieces, whole

__all__ = [
    "Checkpoint",
    "save_checkpoint",
    "load_checkpoint",
    "checkpoints",
    "model_tensors",
    "load_model",
    "optimizer_to_parts",
    "optimizer_from_parts",
    "random_state",
    "set_random_state",
    "check_same_run",
]

STATE, PREFIX = "state.json", "step-"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Args:
        step: number of steps that were taken before it was written.
        tensors: ``(…)`` tensors by name, in groups; each group is a file.
        state: everything else, as JSON.

    Example:
        >>> Checkpoint(2, {"model": {"weight": torch.zeros(1)}}, {"seed": 0}).step
        2
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


# --- writing


def save_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint, then remove old ones.

    Args:
        folder: where checkpoints lie; it is made if need be.
        checkpoint: what to write.
        keep: how many to keep, the newest.

    Returns:
        The folder of the new one, ``step-00000100`` for step 100.

    Raises:
        ValueError: if ``keep`` is below 1, or there is a checkpoint of this step already.
        OSError: if the disk is full or fails. The checkpoints that were there are as they were.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (1, 2, 3):
        ...         path = save_checkpoint(folder, Checkpoint(step, {"model": {"w": torch.zeros(2)}}, {}))
        ...     [path.name for path in checkpoints(folder)], sorted(os.listdir(path))
        (['step-00000002', 'step-00000003'], ['model.safetensors', 'state.json'])
    """
    check_at_least("keep", keep, 1)
    folder = Path(folder)
    target = folder / f"{PREFIX}{checkpoint.step:08}"
    if target.exists():
        raise ValueError(f"{target}: there is a checkpoint of this step already: resume from it, or use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    temporary = folder / f".{target.name}.tmp"
    try:
        temporary.mkdir()
        _write_all(temporary, checkpoint)
        os.rename(temporary, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = checkpoints(folder)
        last = f"the last good checkpoint is {left[-1]}" if left else "there is no checkpoint before it"
        raise OSError(error.errno, f"{target}: cannot be written: {error.strerror or error}; {last}") from error
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def _write_all(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint, the state with their checksums last."""
    from safetensors.torch import save

    files: dict[str, dict[str, Any]] = {}
    for name, tensors in checkpoint.tensors.items():
        data = save({key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in tensors.items()})
        _write(folder / f"{name}.safetensors", data)
        files[f"{name}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    state = {"step": checkpoint.step, "files": files, "state": checkpoint.state}
    _write(folder / STATE, (json.dumps(state, indent=1) + "\n").encode())
    _sync(folder)


def _write(file: Path, data: bytes) -> None:
    """Write a file, and return when it is on the disk."""
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    """Force the names in a folder to disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; it is no checkpoint any more before its first file goes."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.rename(checkpoint, hidden)
    shutil.rmtree(hidden)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote or removed."""
    for path in [*folder.glob(f".{PREFIX}*.tmp"), *folder.glob(f".{PREFIX}*.old")]:
        shutil.rmtree(path)


# --- reading


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints in a folder.

    Args:
        folder: where checkpoints lie; it need not exist.

    Returns:
        Their folders, the oldest first.

    Example:
        >>> checkpoints("no/such/folder")
        []
    """
    found = [path for path in Path(folder).glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, every file checked against its size and its checksum.

    Args:
        path: the folder of the checkpoint, as :func:`checkpoints` lists it.

    Returns:
        What it holds; tensors on the CPU.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or a file of it is missing.
        ValueError: if a file was cut short or changed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(folder, Checkpoint(7, {"model": {"w": torch.ones(2)}}, {"seed": 0}))
        ...     load_checkpoint(path)
        Checkpoint(step=7, tensors={'model': {'w': tensor([1., 1.])}}, state={'seed': 0})
    """
    from safetensors.torch import load

    path = Path(path)
    try:
        raw = read_json(path / STATE)
        step, files, state = raw["step"], dict(raw["files"]), raw["state"]
        data = {name: _read(path / name, **files[name]) for name in files}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / STATE}: damaged: {error}{_instead(path)}") from None
    except ValueError as error:
        raise ValueError(f"{error}{_instead(path)}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{_instead(path)}") from None
    return Checkpoint(step, {Path(name).stem: load(content) for name, content in data.items()}, state)


def _read(file: Path, *, bytes: int, sha256: str) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file, which {STATE} names")
    data = file.read_bytes()
    if len(data) != bytes:
        problem = "cut short" if len(data) < bytes else "changed"
        raise ValueError(f"{file}: {problem}: has {len(data)} bytes, expected {bytes}")
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{file}: changed: its sha256 is {found[:12]}…, expected {sha256[:12]}…")
    return data


def _instead(path: Path) -> str:
    """Say what to do about a checkpoint that cannot be read."""
    others = [other for other in checkpoints(path.parent) if other.name != path.name]
    go_on = f"go on from {others[-1].name}" if others else "begin again"
    return f"; remove the folder {path} to {go_on}"


def check_same_run(then: Mapping[str, Any], now: Mapping[str, Any], *, source: object) -> None:
    """Check that a run which is resumed is the run that was begun.

    Args:
        then: the settings that the checkpoint was written with, by name.
        now: the settings of today.
        source: where ``then`` is from, for messages.

    Raises:
        ValueError: if one differs; the message has its name and both values.

    Example:
        >>> check_same_run({"seed": 0}, {"seed": 1}, source="run")
        Traceback (most recent call last):
        ValueError: run: seed was 0 and is now 1: resume with what it was, or begin again in another folder
    """
    missing = object()
    for name in [*then, *(name for name in now if name not in then)]:
        a, b = then.get(name, missing), now.get(name, missing)
        if a != b:
            was, is_ = ("not set" if value is missing else repr(value) for value in (a, b))
            what = f"{source}: {name} was {was} and is now {is_}"
            raise ValueError(f"{what}: resume with what it was, or begin again in another folder")


# --- models, optimizers and random numbers


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers of a model, each once where names share one.

    Args:
        model: the model. If it lies in pieces, all processes must call this together.

    Returns:
        ``(…)`` its tensors in one piece, by name.

    Example:
        >>> [*model_tensors(nn.Linear(2, 3))]
        ['weight', 'bias']
    """
    return {name: whole(x) for name, x in _own(model).items()}


def _own(model: nn.Module) -> dict[str, Tensor]:
    first = {name for name, _ in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: x for name, x in model.state_dict().items() if name in first or name not in every}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], *, source: object = "the checkpoint") -> None:
    """Put back what :func:`model_tensors` gave.

    Args:
        model: a model of the same shapes.
        tensors: ``(…)`` its tensors, by name.
        source: where they are from, for messages.

    Raises:
        ValueError: if a tensor is missing, superfluous or of another shape; the model is then as it was.

    Example:
        >>> load_model(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)})
        Traceback (most recent call last):
        ValueError: the checkpoint: bias is missing, expected shape (3,)
    """
    own = _own(model)
    for name in [*own, *tensors]:
        there = tuple(tensors[name].shape) if name in tensors else None
        here = tuple(own[name].shape) if name in own else None
        if there is None:
            raise ValueError(f"{source}: {name} is missing, expected shape {here}")
        if here is None:
            raise ValueError(f"{source}: has {name} of shape {there}, which the model has not")
        if there != here:
            raise ValueError(f"{source}: {name} has shape {there}, expected {here}")
    with torch.no_grad():
        for name, x in own.items():
            x.copy_(in_pieces(tensors[name].to(x.dtype), x))


def optimizer_to_parts(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimizer into tensors and JSON.

    Args:
        optimizer: the optimizer, whose ``state_dict`` holds tensors, numbers, strings, lists and None. If its
            parameters are in pieces, all processes must call this together.

    Returns:
        ``(…)`` tensors in one piece, named by the number of the parameter and their own name; and the rest.

    Raises:
        ValueError: if the parameters are in pieces, and a tensor that is too has another shape than its parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> w.grad = torch.ones(2)
        >>> optimizer.step()
        >>> optimizer_to_parts(optimizer)[0]
        {'0.momentum_buffer': tensor([1., 1.])}
    """
    raw = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    parameters = _parameters(optimizer)
    for number, state in raw["state"].items():
        for name, x in state.items():
            if isinstance(x, DTensor) and x.shape != parameters[number].shape:
                what = f"{name} of parameter {number} is in pieces and has shape {tuple(x.shape)}"
                raise ValueError(f"{what}, expected that of the parameter: use an optimizer such as AdamW")
        tensors |= {f"{number}.{name}": whole(x) for name, x in state.items() if isinstance(x, Tensor)}
        plain[str(number)] = {name: x for name, x in state.items() if not isinstance(x, Tensor)}
    return tensors, {"state": plain, "param_groups": raw["param_groups"]}


def optimizer_from_parts(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Put back what :func:`optimizer_to_parts` gave.

    Args:
        optimizer: an optimizer of the same kind, with the same parameters in the same order.
        tensors: ``(…)`` its tensors.
        rest: everything else.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> rest = optimizer_to_parts(optimizer)[1]
        >>> optimizer_from_parts(optimizer, {"0.momentum_buffer": torch.ones(2)}, rest)
        >>> optimizer.state[w]["momentum_buffer"]
        tensor([1., 1.])
    """
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Any]] = {int(number): dict(plain) for number, plain in rest["state"].items()}
    for name in sorted(tensors):  # in the same order in all processes: they share out the pieces together
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = in_pieces(tensors[name], parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's random numbers, of the CPU and of the current CUDA device if there is one.

    Returns:
        ``(N,)`` bytes, by device.

    Example:
        >>> state = random_state()
        >>> a = torch.rand(1)
        >>> set_random_state(state)
        >>> torch.equal(torch.rand(1), a)
        True
    """
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`random_state` gave.

    Args:
        state: ``(N,)`` bytes, by device.

    Example:
        >>> set_random_state({"cpu": torch.get_rng_state()})
    """
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
