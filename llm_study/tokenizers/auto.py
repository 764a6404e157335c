"""The right tokenizer for a folder: what its ``tokenizer.json`` calls its model decides."""

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_study.core.config import config_from_dict
from llm_study.core.hub import CONFIG, read_config, read_json
from llm_study.tokenizers.base import TOKENIZER, Tokenizer, read_tokenizer_json

__all__ = ["load_tokenizer", "leading_ids", "ending_ids", "end_of_text"]

RANKS, GENERATION_CONFIG = ".tiktoken", "generation_config.json"
_CLASSES = {"BPE": ("bpe", "ByteLevelBPE"), "WordPiece": ("wordpiece", "WordPiece"), "Unigram": ("unigram", "Unigram")}
"""What ``tokenizer.json`` may call its model → module and class here."""


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer of a model's folder, or of a file.

    Args:
        path: a folder that holds a ``tokenizer.json`` or, if it has none, one ``.tiktoken`` file of ranks, which is
            read with the pattern of GPT-4; or such a file itself. Nothing is downloaded.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: if there is nothing at the path, or no such file in the folder.
        ValueError: if the folder has several files of ranks and no ``tokenizer.json``, a file is damaged, or its model
            is none of BPE, WordPiece and Unigram.

    Example:
        >>> import json, tempfile
        >>> raw = {"model": {"type": "WordLevel", "vocab": {"a": 0}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / TOKENIZER).write_text(json.dumps(raw))
        ...     try:
        ...         load_tokenizer(folder)
        ...     except ValueError as error:
        ...         print(str(error).partition(TOKENIZER)[2])
        : the model is of type WordLevel, expected one of BPE, WordPiece, Unigram
    """
    file = _file(Path(path))
    kind = "BPE" if file.suffix == RANKS else read_tokenizer_json(file)["model"]["type"]
    if kind not in _CLASSES:
        raise ValueError(f"{file}: the model is of type {kind}, expected one of {', '.join(_CLASSES)}")
    module, name = _CLASSES[kind]
    tokenizer: Tokenizer = getattr(importlib.import_module(f"llm_study.tokenizers.{module}"), name).load(file)
    return tokenizer


def leading_ids(path: str | os.PathLike[str]) -> list[int]:
    """Return the ids that a ``tokenizer.json`` puts before every text, such as that of ``<s>``.

    What it puts after a text is not returned: a text that is to be continued has no end.

    Args:
        path: the folder or the file, as for :func:`load_tokenizer`.

    Returns:
        The ids; none for a file of ranks, which says nothing of them.

    Raises:
        FileNotFoundError: as :func:`load_tokenizer` does.
        ValueError: if the ``post_processor`` of the file names a token without an id.

    Example:
        >>> import json, tempfile
        >>> single = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
        >>> processor = {"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {"ids": [1]}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     raw = {"model": {"type": "Unigram", "vocab": []}, "post_processor": processor}
        ...     _ = (Path(folder) / TOKENIZER).write_text(json.dumps(raw))
        ...     leading_ids(folder)
        [1]
    """
    file = _file(Path(path))
    if file.suffix == RANKS:
        return []
    processor = read_tokenizer_json(file).get("post_processor")
    try:
        return [] if processor is None else list(_leading(processor))
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"{file}: its post_processor names tokens without ids, or is none of this library") from None


def ending_ids(folder: str | os.PathLike[str]) -> list[int]:
    """Return the ids that end a text of a model, as ``generation_config.json`` or else ``config.json`` says.

    Args:
        folder: the folder of the model.

    Returns:
        The ids; none if the files name none.

    Raises:
        FileNotFoundError: if there is no such folder, or no ``config.json`` in it.
        ValueError: if a file is damaged, or names something else than ids.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": 2}))
        ...     ending_ids(folder)
        [2]
    """
    file = Path(folder) / GENERATION_CONFIG
    raw = read_json(file) if file.is_file() else {}
    if "eos_token_id" in raw:
        found = raw["eos_token_id"]
    else:
        file = Path(folder) / CONFIG
        found = config_from_dict(read_config(folder), source=str(file)).eos_token_id
    ids = list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
    if not all(type(id) is int for id in ids):
        raise ValueError(f"{file}: eos_token_id is {found!r}, expected a number or a list of numbers")
    return ids


def end_of_text(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> str | None:
    """Return the token that ends a text of a model, the first of :func:`ending_ids` that its tokenizer can spell.

    Args:
        folder: the folder of the model.
        tokenizer: its tokenizer.

    Returns:
        The token; None if there is none.

    Raises:
        FileNotFoundError: if there is no such folder, or no ``config.json`` in it.
        ValueError: if a file is damaged, or names something else than ids.

    Example:
        >>> import json, tempfile
        >>> from llm_study.tokenizers.bpe import ByteLevelBPE
        >>> tokenizer = ByteLevelBPE.train(["a"], vocab_size=257, special_tokens=["</s>"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": [300, 256]}))
        ...     end_of_text(folder, tokenizer)
        '</s>'
    """
    known = [id for id in ending_ids(folder) if 0 <= id < tokenizer.vocab_size]
    return tokenizer.decode(known[:1]) or None


def _file(path: Path) -> Path:
    """Return the file of a tokenizer: the path itself, or the one that a folder holds."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder or file")
    if not path.is_dir():
        return path
    if (path / TOKENIZER).is_file():
        return path / TOKENIZER
    ranks = sorted(path.glob(f"*{RANKS}"))
    if len(ranks) > 1:
        names = ", ".join(file.name for file in ranks)
        raise ValueError(f"{path}: has no {TOKENIZER} and {len(ranks)} files of ranks, expected 1: name one of {names}")
    if not ranks:
        hint = "transformers writes one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise FileNotFoundError(f"{path}: has neither {TOKENIZER} nor a {RANKS} file; {hint}")
    return ranks[0]


def _leading(processor: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ids before a text; in a sequence each processor wraps what the earlier ones made."""
    kind = processor["type"]
    if kind == "Sequence":
        for inner in reversed(processor["processors"]):
            yield from _leading(inner)
    elif kind in ("BertProcessing", "RobertaProcessing"):
        yield processor["cls"][1]
    elif kind == "TemplateProcessing":
        for piece in processor["single"]:
            if "Sequence" in piece:
                break
            yield from processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
