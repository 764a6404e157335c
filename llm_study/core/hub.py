"""A model's folder as Hugging Face lays it out: ``config.json`` and weights in safetensors, in one file or in shards.

Only safetensors are read, never pickles, and nothing is downloaded. Whatever is wrong with a folder is told with the
name of the file, of the tensor, and both numbers. torch and safetensors are imported when weights are read or written,
not before.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llm_study.core.checks import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_config", "load_tensors", "read_tensors", "save_folder", "read_json", "CONFIG", "INDEX", "WEIGHTS"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# --- reading


def read_json(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        file: its path.

    Returns:
        The object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no UTF-8 text, no JSON, or JSON that is no object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "config.json"
        ...     _ = file.write_text('{"vocab_size": 97}', "utf-8")
        ...     read_json(file)
        {'vocab_size': 97}
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds {_kind(found)}, expected an object")
    return found


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``config.json`` of a model's folder.

    Args:
        folder: path of the folder.

    Returns:
        What the file says; :func:`llm_study.core.config.config_from_dict` makes a configuration of it.

    Raises:
        FileNotFoundError: if there is no such folder, or no ``config.json`` in it.
        ValueError: if the path is no folder, or ``config.json`` holds no JSON object.

    Example:
        >>> read_config("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder: there is no such folder
    """
    folder = _folder(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: has no {CONFIG}")
    return read_json(folder / CONFIG)


def load_tensors(folder: str | os.PathLike[str]) -> "dict[str, Tensor]":
    """Read the weights of a model's folder, from ``model.safetensors``, else from the shards that its index names.

    Links are followed within the folder; in a cache of the hub, also from a snapshot to its blobs.

    Args:
        folder: path of the folder.

    Returns:
        ``(…)`` every tensor, by name, in the shape and dtype of the file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such folder, no weights in it, or not every shard.
        ValueError: if the weights are there as pickles only; if a file is cut off or damaged; if the index names a file
            outside the folder, or a tensor that its shard does not hold.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_folder(folder, {"model_type": "made up"}, {"a": torch.zeros(2, 3), "b": torch.ones(4)})
        ...     {name: tuple(tensor.shape) for name, tensor in load_tensors(folder).items()}
        {'a': (2, 3), 'b': (4,)}
    """
    folder = _folder(folder)
    if (folder / WEIGHTS).is_file():
        return dict(_tensors(folder / WEIGHTS))
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    place = _weight_map(folder / INDEX)
    found: dict[str, Tensor] = {}
    for shard in dict.fromkeys(place.values()):
        own = {name: x for name, x in _tensors(_inside(folder, shard)) if place.get(name, shard) == shard}
        for name in (name for name, where in place.items() if where == shard and name not in own):
            raise ValueError(f"{folder / shard}: lacks tensor {name}, which {INDEX} promises")
        found |= own
    return found


def read_tensors(file: str | os.PathLike[str]) -> "dict[str, Tensor]":
    """Read one safetensors file.

    Args:
        file: its path.

    Returns:
        ``(…)`` every tensor, by name, in the shape and dtype of the file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off or damaged, or holds no tensors.

    Example:
        >>> read_tensors("no/such/adapter_model.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: no/such/adapter_model.safetensors: there is no such file
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    found = dict(_tensors(file))
    if not found:
        raise ValueError(f"{file}: holds 0 tensors, expected at least 1")
    return found


def _folder(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected the folder of a model")
    return folder


def _no_weights(folder: Path) -> Exception:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        text = f"{folder / pickles[0]}: weights in a pickle, which can run code, are not read"
        return ValueError(f"{text}: convert them to {WEIGHTS}")
    return FileNotFoundError(f"{folder}: has neither {WEIGHTS} nor {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    """Return which shard holds which tensor, every name of a shard checked."""
    place = read_json(index).get("weight_map")
    if not isinstance(place, dict) or not place:
        raise ValueError(f"{index}: weight_map is {_kind(place)}, expected an object that says where each tensor is")
    for name, shard in place.items():
        if not isinstance(shard, str):
            raise ValueError(f"{index}: the file of tensor {name} is {shard!r}, expected a name")
        if not _is_plain(shard):
            raise ValueError(f"{index}: tensor {name} is said to be in {shard!r}, outside the folder {index.parent}")
        _inside(index.parent, shard, index=index)
    return place


def _is_plain(shard: str) -> bool:
    """Whether a name, read on any system, stays below the folder that it is joined to."""
    path = PurePosixPath(shard)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set("\\:\0") & set(shard)


def _inside(folder: Path, shard: str, *, index: Path | None = None) -> Path:
    """Return the path of a shard, which must be there, also where links lead; a cache of the hub links to its blobs."""
    file, real = folder / shard, (folder / shard).resolve()
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / "blobs")
    if not any(real.is_relative_to(home) for home in homes):
        raise ValueError(f"{index or folder / INDEX}: {shard!r} is a link to {real}, outside the folder {folder}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: the shard is missing, which {INDEX} names")
    return file


def _tensors(file: Path) -> "Iterator[tuple[str, Tensor]]":
    """Yield the tensors of a safetensors file, its size checked first."""
    from safetensors import SafetensorError, safe_open

    _check_size(file)
    try:
        with safe_open(file, framework="pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in list(opened.keys()))
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged: {error}") from None


def _check_size(file: Path) -> None:
    """Compare the size of a file with what its header says: 8 bytes of length, the header, the numbers."""
    actual = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if actual < 8 + length:
            what = f"8 + {length} bytes of header" if actual >= 8 else "8 bytes and a header"
            raise ValueError(f"{file}: cut off or damaged: has {actual} bytes, expected at least {what}")
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ValueError(f"{file}: damaged: its {length} bytes of header say nothing of tensors") from None
    if actual != expected:
        problem = "cut off" if actual < expected else "damaged"
        raise ValueError(f"{file}: {problem}: has {actual} bytes, expected {expected}")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "an object without entries")


# --- writing


def save_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write ``config.json`` and weights, so that transformers reads them.

    Every file is first written under another name and then moved into its place, so that a reader never sees half of
    one. Weights of an earlier call that do not belong to this one are removed; other files in the folder stay.

    Args:
        folder: path of the folder, which is made if need be.
        config: what ``config.json`` is to say.
        tensors: ``(…)`` weights by name. Names that share one tensor, as tied weights do, are stored once, under the
            first of them.
        max_shard_bytes: the largest size of a file; what is larger is split into shards with an index. A tensor is
            never split.

    Raises:
        ValueError: if there are no tensors, one has no data, or ``max_shard_bytes`` is below 1.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     weights = {"a": torch.zeros(100), "b": torch.ones(100)}
        ...     save_folder(folder, {}, weights, max_shard_bytes=500)
        ...     for name in sorted(os.listdir(folder)):
        ...         print(name)
        config.json
        model-00001-of-00002.safetensors
        model-00002-of-00002.safetensors
        model.safetensors.index.json
    """
    check_at_least("max_shard_bytes", max_shard_bytes, 1)
    folder, kept = Path(folder), _unshared(tensors)
    shards = _split(kept, max_shard_bytes)
    n = len(shards)
    names = [WEIGHTS] if n == 1 else [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    texts = {CONFIG: dict(config)}
    if n > 1:
        place = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        texts[INDEX] = {"metadata": {"total_size": sum(map(_bytes, kept.values()))}, "weight_map": place}
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in [*names, *texts]}
    try:
        for name, shard in zip(names, shards, strict=True):
            _write_tensors(temporary[name], shard)
        for name, text in texts.items():
            temporary[name].write_text(json.dumps(text, indent=2, allow_nan=False) + "\n", "utf-8")
        for name, file in temporary.items():
            os.replace(file, folder / name)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    for file in folder.iterdir():
        if file.name not in temporary and (file.name in (WEIGHTS, INDEX) or SHARD.fullmatch(file.name)):
            file.unlink()


def _unshared(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors, detached and on the CPU, those that are the same memory once."""
    first: dict[tuple[Any, ...], str] = {}
    for name, x in tensors.items():
        if x.is_meta:
            raise ValueError(
                f"tensor {name} of shape {tuple(x.shape)} is on the meta device, so it has no data to write"
            )
        key = (x.device, x.data_ptr(), x.dtype, x.shape, x.stride()) if x.numel() else (name,)
        first.setdefault(key, name)
    if not first:
        raise ValueError("there are 0 tensors to write, expected at least 1")
    return {name: tensors[name].detach().cpu() for name in first.values()}


def _bytes(x: "Tensor") -> int:
    return x.numel() * x.element_size()


def _split(tensors: "Mapping[str, Tensor]", max_shard_bytes: int) -> "list[dict[str, Tensor]]":
    """Fill shards in order; one that would grow too large is closed."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + _bytes(x) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += _bytes(x)
    return shards


def _write_tensors(file: Path, tensors: "Mapping[str, Tensor]") -> None:
    from safetensors.torch import save_file

    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, x in tensors.items():
        x, memory = x.contiguous(), x.untyped_storage()
        if memory.nbytes() != _bytes(x) or memory.data_ptr() in seen:  # a part of a larger memory is copied out of it
            x = x.clone()
        seen.add(memory.data_ptr())
        whole[name] = x
    save_file(whole, file, metadata={"format": "pt"})
