"""``.. source:: llm_study.functional.attention.attention`` shows code of the package without its docstrings.

The docstring stands, translated, on the API page, to which the caption of the listing leads. The file is parsed, never
imported. Code is the same in every language, so nothing of a listing enters the catalogs.
"""

import ast
import difflib
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from python_source import PACKAGE, Definition, definitions, module_file
from sphinx.application import Sphinx
from sphinx.directives.code import container_wrapper
from sphinx.transforms import ExtraTranslatableNodes, SphinxTransform
from sphinx.transforms.i18n import Locale
from sphinx.util import parselinenos
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec


@dataclass(frozen=True)
class Found:
    """A function, class or method, and the file in which it is defined."""

    path: Path
    source: str
    node: Definition

    def code(self) -> str:
        """Return its lines from the first decorator on, dedented, without any docstring."""
        first = min([self.node.lineno, *(decorator.lineno for decorator in self.node.decorator_list)])
        lines = self.source.split("\n")
        replaced = dict(_docstrings(self.node, lines))
        kept = [replaced.get(number, lines[number - 1]) for number in range(first, (self.node.end_lineno or first) + 1)]
        return textwrap.dedent("\n".join(line for line in kept if line is not None))


def _docstrings(node: Definition, lines: list[str]) -> Iterator[tuple[int, str | None]]:
    """Yield the lines of all docstrings inside, which are left out (None), or what stands in their place."""
    for block in (inner for inner in ast.walk(node) if isinstance(inner, Definition)):
        for statement, following in itertools.zip_longest(block.body, block.body[1:]):
            if not _is_docstring(statement, block):
                continue
            last = statement.end_lineno or statement.lineno
            if statement is block.body[0] or not isinstance(following, Definition):
                last += (
                    _blank(lines[last:]) if following else 0
                )  # below a documented field, a method keeps its distance
            yield from ((number, None) for number in range(statement.lineno, last + 1))
            if len(block.body) == 1:  # nothing else in the block, and Python wants a body
                yield statement.lineno, " " * statement.col_offset + "..."


def _is_docstring(statement: ast.stmt, block: Definition) -> bool:
    """Tell whether a statement is the docstring of its block, or of a field in a class."""
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and statement.value.value
    return isinstance(text, str) and (statement is block.body[0] or isinstance(block, ast.ClassDef))


def _blank(lines: list[str]) -> int:
    """Count the blank lines at the beginning."""
    return next((count for count, line in enumerate(lines) if line.strip()), len(lines))


def find(root: Path, name: str) -> Found:
    """Find the definition that a dotted name stands for.

    Raises:
        LookupError: if there is none; the text says which part of the name is at fault, and what comes nearest.
    """
    parts = name.split(".")
    depth = max((n for n in range(len(parts) + 1) if n and module_file(root, ".".join(parts[:n]))), default=0)
    path = module_file(root, ".".join(parts[:depth]))
    if path is None or parts[0] != PACKAGE:
        raise LookupError(f"{name} is not in the package{_nearest(root, name)}")
    source = path.read_text("utf-8")
    body, node = ast.parse(source, str(path)).body, None
    for part in parts[depth:]:
        node = definitions(body).get(part)
        if node is None:
            break
        body = node.body
    if node is None:
        local = ".".join(parts[depth:]) or name
        raise LookupError(
            f"{path.relative_to(root).as_posix()} defines no function or class {local}{_nearest(root, name)}"
        )
    return Found(path, source, node)


def _nearest(root: Path, name: str) -> str:
    """Return a hint with the public name of the package that looks most like ``name``."""
    names = difflib.get_close_matches(name, list(_public(root)), n=1, cutoff=0.0)
    return f"; the nearest public name is {names[0]}" if names else "; the package has no public name yet"


def _public(root: Path) -> Iterator[str]:
    """Yield the public functions, classes and methods of the package by their full names."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for name, node in definitions(ast.parse(path.read_bytes()).body).items():
            methods = definitions(node.body) if isinstance(node, ast.ClassDef) else {}
            full = [f"{module}.{name}", *(f"{module}.{name}.{method}" for method in methods)]
            yield from (candidate for candidate in full if "._" not in candidate)


class Source(SphinxDirective):
    """The directive; ``:name:`` labels the listing, ``:emphasize-lines:`` counts from its first line."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {"name": directives.unchanged, "emphasize-lines": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the listing under a caption that refers to the API page of the object."""
        name = self.arguments[0]
        try:
            found = find(Path(self.env.srcdir).parent, name)
        except LookupError as error:
            raise self.error(f"source: {error.args[0]}") from None
        except SyntaxError as error:
            raise self.error(f"source: {error.filename}:{error.lineno}: {error.msg}; mend the file") from None
        self.env.note_dependency(str(found.path))
        code = found.code()
        block = nodes.literal_block(code, code, language="python", source_listing=True)
        block["highlight_args"] = self._emphasized(len(code.splitlines()))
        self.set_source_info(block)
        listing = container_wrapper(self, block, f":py:obj:`{name}`")
        listing[0]["translatable"] = False
        self.add_name(listing)
        return [listing]

    def _emphasized(self, length: int) -> dict[str, list[int]]:
        """Return the argument of the highlighter for ``:emphasize-lines:``."""
        wanted = self.options.get("emphasize-lines")
        if wanted is None:
            return {}
        try:
            lines = [number + 1 for number in parselinenos(wanted, length)]
        except ValueError as error:
            raise self.error(f"source: emphasize-lines: {error}") from None
        if not lines or min(lines) < 1 or max(lines) > length:
            raise self.error(f"source: emphasize-lines is {wanted}, but the listing has {length} lines")
        return {"hl_lines": lines}


class SameInEveryLanguage(SphinxTransform):
    """Keeps listings out of the catalogs: after Sphinx declares all code translatable, before it translates."""

    default_priority = (ExtraTranslatableNodes.default_priority + Locale.default_priority) // 2

    def apply(self, **kwargs: Any) -> None:
        """Mark the listings of one page."""
        for block in self.document.findall(nodes.literal_block):
            if block.get("source_listing"):
                block["translatable"] = False


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("source", Source)
    app.add_transform(SameInEveryLanguage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
