"""Texts from files, and which of them are held out."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["SUFFIXES", "Corpus", "read_texts", "split_texts"]

SUFFIXES = (".txt", ".md", ".rst")
"""What the names of files end in that are read from a folder."""


class Corpus(NamedTuple):
    """Texts to train on, and texts that tell how well.

    Args:
        train: the texts to train on.
        held_out: the others.

    Example:
        >>> Corpus(["a"], ["b"]).held_out
        ['b']
    """

    train: list[str]
    held_out: list[str]


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """Read a file, or all files in a folder whose names end in ``.txt``, ``.md`` or ``.rst``, also in folders below.

    Args:
        path: the file, of any name, or the folder. Names that begin with a dot are passed over.

    Returns:
        The texts, in the order of their paths, without those that are empty or white space.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is not UTF-8, a folder has no such file, or all texts are empty.

    Example:
        >>> read_texts("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder: there is no such file or folder
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    files = sorted(_files(path), key=lambda file: file.relative_to(path).as_posix()) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: has 0 files whose names end in {', '.join(SUFFIXES)}, expected at least 1")
    texts = [text for text in map(_read, files) if text.strip()]
    if not texts:
        raise ValueError(f"{path}: holds no text: {len(files)} file{'s' * (len(files) > 1)}, all empty")
    return texts


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in SUFFIXES and file.is_file() and not hidden:
            yield file


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{file}: byte 0x{byte:02X} at {error.start} is no UTF-8: convert it, or remove it") from None


def split_texts(texts: Sequence[str], held_out: float) -> Corpus:
    r"""Hold out whole texts where there are enough of them, else the end of each.

    Args:
        texts: the texts.
        held_out: share to hold out, above 0 and below 1.

    Returns:
        The texts to train on and the others. Of at least ``1 / held_out`` texts every tenth, say, is held out, else the
        last lines of each text.

    Raises:
        ValueError: if ``held_out`` is out of range, or nothing is left on one of the sides.

    Example:
        >>> split_texts([str(i) for i in range(10)], 0.2)
        Corpus(train=['0', '1', '2', '3', '5', '6', '7', '8'], held_out=['4', '9'])
        >>> split_texts(["one\ntwo\nthree\nfour\n"], 0.3)
        Corpus(train=['one\ntwo\nthree\n'], held_out=['four\n'])
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}, expected above 0 and below 1")
    every = max(round(1 / held_out), 2)
    if len(texts) >= every:
        chosen = [i % every == every - 1 for i in range(len(texts))]
        corpus = Corpus(
            [text for text, out in zip(texts, chosen, strict=True) if not out],
            [text for text, out in zip(texts, chosen, strict=True) if out],
        )
    else:
        cuts = [_cut(text, held_out) for text in texts]
        both = [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
        corpus = Corpus([a for a, _ in both if a.strip()], [b for _, b in both if b.strip()])
    for name, part in zip(("train on", "hold out"), corpus, strict=True):
        if not part:
            size = sum(map(len, texts))
            raise ValueError(f"the text has {size} characters, which leaves nothing to {name}: use more text")
    return corpus


def _cut(text: str, held_out: float) -> int:
    """Return where the held-out end of a text begins: after a line end if there is one, else anywhere."""
    cut = len(text) - max(round(len(text) * held_out), 1)
    line = text.find("\n", cut) + 1
    return line if 0 < line < len(text) else cut
