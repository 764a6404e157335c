"""Settings of a run in a TOML file: what the configurations of runs have in common."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

__all__ = ["RunConfig"]


@dataclass(frozen=True)
class RunConfig:
    """What is read from a dictionary or a TOML file; a frozen dataclass derives from it, its fields are the settings.

    A field may be a number, a string, a boolean, a tuple of any length of one of these, or a table with string keys.

    Example:
        >>> @dataclass(frozen=True)
        ... class Walk(RunConfig):
        ...     steps: int = 10
        ...     places: tuple[str, ...] = ()
        >>> Walk.from_dict({"places": ["sea"]})
        Walk(steps=10, places=('sea',))
        >>> Walk.from_dict({"steps": 1.5}, source="run.toml")
        Traceback (most recent call last):
        ValueError: run.toml: steps is 1.5, expected int
    """

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: object = "the settings") -> Self:
        """Make a configuration of names and values.

        Args:
            raw: the values; what is missing keeps its default.
            source: where they are from, for messages.

        Returns:
            The configuration.

        Raises:
            ValueError: if a name is unknown, or a value has the wrong type or makes no sense.
        """
        known = get_type_hints(cls)
        for name in raw:
            if name not in known:
                raise ValueError(f"{source}: there is no setting {name!r}, expected some of {', '.join(sorted(known))}")
        try:
            return cls(**{name: _converted(name, value, known[name]) for name, value in raw.items()})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_toml(cls, file: str | os.PathLike[str], **changes: Any) -> Self:
        """Read a configuration from a TOML file.

        Args:
            file: its path.
            changes: settings that count instead of those of the file.

        Returns:
            The configuration.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no TOML, or as :meth:`from_dict` says.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
        try:
            raw = tomllib.loads(Path(file).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: no TOML: {error}") from None
        return cls.from_dict({**raw, **changes}, source=file)


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Return a value of TOML as the field wants it: an integer may stand for a number, a list for a tuple."""
    plain = get_origin(kind) or kind
    wanted = {float: (int, float), tuple: (list, tuple)}.get(plain, (plain,))
    words = f"list of {get_args(kind)[0].__name__}" if plain is tuple else "table" if plain is dict else plain.__name__
    parts = value if plain is tuple and type(value) in wanted else ()
    if type(value) not in wanted or any(type(part) is not get_args(kind)[0] for part in parts):
        raise ValueError(f"{name} is {value!r}, expected {words}")
    return plain(value)
