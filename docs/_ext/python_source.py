"""What Python files say about themselves, read with ``ast`` and never imported: importing torch is slow."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "llm_study"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def module_file(root: Path, name: str) -> Path | None:
    """Return the file of a module, or the ``__init__.py`` of a package, that ``name`` has below ``root``."""
    stem = root.joinpath(*name.split("."))
    files = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def definitions(body: Iterable[ast.stmt]) -> dict[str, Definition]:
    """Return the functions and classes of one block by name; of several with one name (overloads) the last counts."""
    return {node.name: node for node in body if isinstance(node, Definition)}


def closure(script: Path, root: Path) -> list[Path]:
    """Return every file of the package that running ``script`` may execute, in a stable order.

    Imports are followed statically, those inside functions included. A name that is taken from a package itself
    (``import llm_study``, or a name that is no module) may come from anywhere below it, so all of its files count.
    """
    found: set[Path] = set()
    pending = [script]
    while pending:
        files = {file for name in _imports(pending.pop(), root) for file in _executed(name, root)}
        pending += files - found
        found |= files
    return sorted(found)


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Yield the modules and packages below ``llm_study`` that one file imports."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path, root)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if module_file(root, name) else base for name in inner]
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def _absolute(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """Return the full name of the module that a ``from … import`` names, which may be relative to its own file."""
    if not node.level:
        return node.module or ""
    here = path.relative_to(root).parts[: -node.level]
    return ".".join([*here, *([node.module] if node.module else [])])


def _executed(name: str, root: Path) -> Iterator[Path]:
    """Yield the files that the import of one module or package runs: it, and the packages around it."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        file = module_file(root, ".".join(parts[:depth]))
        if file is None:
            return
        yield file
    if file.name == "__init__.py":
        yield from file.parent.rglob("*.py")
