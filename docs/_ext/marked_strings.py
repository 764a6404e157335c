"""The strings that a Python module marks for translation with ``_(…)``."""

import ast
from collections.abc import Iterator


def strings(source: str) -> Iterator[tuple[int, str | None]]:
    """Yield line and text of every ``_(…)`` of a Python module; None where it is not one plain string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            match node.args:
                case [ast.Constant(value=str(text))]:
                    yield node.lineno, text
                case _:
                    yield node.lineno, None
