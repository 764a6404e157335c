"""What tokenizers share of reading and writing their files."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

__all__ = ["added_tokens", "check_special", "check_type", "special_entries", "write_json", "write_text"]


def check_special(allowed: Collection[str], known: Collection[str]) -> None:
    """Check that the special tokens that a text may spell are known."""
    unknown = [token for token in allowed if token not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no special token, expected some of {sorted(known)}")


def check_type(path: str | os.PathLike[str], raw: Mapping[str, Any], part: str, *types: str | None) -> dict[str, Any]:
    """Return a part of the file; raise unless its type is one of these, None standing for its absence."""
    entry = raw.get(part) or {}
    if entry.get("type") not in types:
        names = " or ".join(name or "none" for name in types)
        raise ValueError(f"{path}: the {part} is {entry.get('type') or 'none'}, expected {names}, the only ones known")
    return dict(entry)


def added_tokens(path: str | os.PathLike[str], raw: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return ids of added tokens, and those of them that can be allowed in a text: matched as they are spelled."""
    ids: dict[str, int] = {}
    special: list[str] = []
    for token in raw.get("added_tokens") or []:
        if not token.get("special"):
            raise ValueError(f"{path}: the added token {token['content']!r} is not special: it would change plain text")
        ids[token["content"]] = token["id"]
        if not any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            special.append(token["content"])
    return ids, special


def special_entries(tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what a file says of special tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": id, "content": token, **flags} for token, id in sorted(tokens.items(), key=lambda item: item[1])]


def write_json(path: str | os.PathLike[str], raw: Mapping[str, Any]) -> None:
    """Write a JSON file that is either the old one or whole."""
    write_text(path, json.dumps(raw, ensure_ascii=False, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file that is either the old one or whole."""
    file = Path(path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8", newline="\n")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
