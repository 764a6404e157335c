"""Whether translated code is still the code of its source: the gate that a catalog has to pass before anything runs.

A translation may change comments, and what plain string literals say to people:

- a string, or the text of an f-string, may differ only if the source text has a Chinese character; the translation
  keeps its placeholders, brings in no path or shell character, and is not code that calls, imports or assigns;
- in code that names something which takes strings as code, commands, attributes or files (``EXECUTORS``), strings stay;
- all else, the expressions inside f-strings included, has the same syntax tree and is spelled with the same names;
- a doctest keeps its examples, one by one, with their flags; its expected output follows the rule of plain text:
- of plain text only lines with a Chinese character may differ, and those keep their numbers and ellipses.
"""

import ast
import doctest
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from languages import CJK

EXECUTES = frozenset({"eval", "exec", "compile", "__import__"})
"""Builtins that run a string."""
EXECUTORS = EXECUTES | frozenset(
    re.findall(
        r"\w+",
        """
        getattr setattr delattr globals locals vars open breakpoint builtins __builtins__ os sys io subprocess importlib
        runpy codeop ctypes pickle marshal shelve shutil pathlib Path tempfile socket urllib requests timeit
        multiprocessing webbrowser sqlite3 attrgetter methodcaller import_module system popen load save hub
        """,
    )
)
"""Names next to which no string may change: they take strings as code, commands, attributes or files."""
PYTHON = frozenset({"python", "python3", "py"})
PLACEHOLDER = re.compile(r"\{[^{}]*\}|%(?:\(\w*\))?[-+#0]*\d*(?:\.\d+)?[a-zA-Z%]")
CARRIERS = re.compile(r"[/\\~$`\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
NUMBER = re.compile(r"\.{3}|(?:(?<!\w)[-+])?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
ACTS = (
    ast.Call | ast.Import | ast.ImportFrom | ast.Attribute | ast.Subscript | ast.Assign | ast.AugAssign | ast.NamedExpr
    | ast.Delete | ast.Await | ast.While | ast.For | ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
)  # fmt: skip


def difference(source: str, translation: str, kind: str = "python", *, strings: bool = True) -> str | None:
    """Return how the translation of a block is other code than its source, or None.

    Args:
        source: the block as its author wrote it.
        translation: the block that would be shown and run instead.
        kind: ``pycon`` for a doctest, else the language of the block; the source decides, never the translation.
        strings: whether strings may be translated at all.
    """
    if source == translation:
        return None
    if kind == "pycon" or re.search(r"^\s*>>> ", source, re.MULTILINE):
        return _examples(source, translation, strings)
    if kind in PYTHON and (found := _parsed(source)) is not None:
        return _python(source, found, translation, strings)
    return text_difference(source, translation, comments=kind not in {"text", "none", "output"})


def executes_strings(source: str) -> bool:
    """Whether a block of code mentions a builtin that runs strings."""
    return any(re.search(rf"(?<![\w.]){name}\b", source) for name in EXECUTES)


def text_difference(source: str, translation: str, *, comments: bool = False) -> str | None:
    """Compare output, or code that is not Python: what has no Chinese stays, numbers and ellipses stay everywhere.

    Args:
        source: the text of the source.
        translation: the text of the translation.
        comments: whether ``#`` begins a comment, before which only Chinese may be translated.
    """
    ours, theirs = source.splitlines(), translation.splitlines()
    if len(ours) != len(theirs):
        return f"expected {len(ours)} lines, found {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        if a == b:
            continue
        if not CJK.search(a):
            return f"expected {a!r} unchanged, found {b!r}"
        if NUMBER.findall(a) != NUMBER.findall(b):
            return f"expected the numbers and ellipses of {a!r}, found {b!r}"
        if comments and not CJK.search(head := a.partition("#")[0]) and b.partition("#")[0] != head:
            return f"expected {head!r} before the comment, found {b!r}"
    return None


def _examples(source: str, translation: str, strings: bool) -> str | None:
    """Compare two doctest blocks example by example, and the text between the examples."""
    parser = doctest.DocTestParser()
    try:
        ours, theirs = parser.parse(source), parser.parse(translation)
    except ValueError as error:
        return f"expected a doctest, found one that cannot be read: {error}"
    mine, their = ([part for part in parts if isinstance(part, doctest.Example)] for parts in (ours, theirs))
    if len(mine) != len(their):
        return f"expected {len(mine)} examples, found {len(their)}"
    before, after = ("".join(part for part in parts if isinstance(part, str)).strip() for parts in (ours, theirs))
    if found := text_difference(before, after, comments=True):
        return f"between the examples: {found}"
    for number, (a, b) in enumerate(zip(mine, their, strict=True), 1):
        if a.options != b.options:
            return f"example {number}: expected the same doctest flags, found others"
        if found := difference(a.source, b.source, "python", strings=strings) or text_difference(a.want, b.want):
            return f"example {number}: {found}"
    return None


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python(source: str, tree: ast.Module, translation: str, strings: bool) -> str | None:
    """Compare two pieces of Python, of which the first is already parsed."""
    other = _parsed(translation)
    if other is None:
        return f"expected Python, found {_excerpt(translation)}, which cannot be parsed"
    if extra := _names(translation) - _names(source):
        return f"expected the names of the source, found {sorted(extra)[0]!r}"
    allowed = strings and not _names(source) & EXECUTORS
    return _trees(tree, other, _may_say if allowed else _must_say)


def _names(source: str) -> set[str]:
    """Return names as they are spelled: the parser folds look-alikes such as ``ｅｘｅｃ`` into one."""
    try:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        return {token.string for token in tokens if token.type == tokenize.NAME}
    except (tokenize.TokenError, SyntaxError):  # an example without its last line is still compared as a tree
        return set(re.findall(r"\w+", source))


Compare = Callable[[str, str], str | None]


def _trees(a: Any, b: Any, compare: Compare) -> str | None:
    """Compare two syntax trees; ``compare`` judges the texts of two strings."""
    if type(a) is not type(b):
        return f"expected {_show(a)}, found {_show(b)}"
    match a:
        case ast.Constant(value=str()) if isinstance(b.value, str):
            return compare(a.value, b.value)
        case ast.JoinedStr():
            return _f_strings(a, b, compare)
        case ast.FormattedValue():
            formats = (node.format_spec.values if node.format_spec else [] for node in (a, b))
            return _trees(*formats, _must_say) or _trees([a.value, a.conversion], [b.value, b.conversion], compare)
        case ast.AST():
            return _first(_trees(getattr(a, field, None), getattr(b, field, None), compare) for field in a._fields)
        case list():
            if len(a) != len(b):
                return f"expected {_show(a)}, found {_show(b)}"
            return _first(_trees(x, y, compare) for x, y in zip(a, b, strict=True))
    return None if repr(a) == repr(b) else f"expected {_show(a)}, found {_show(b)}"


def _f_strings(a: ast.JoinedStr, b: ast.JoinedStr, compare: Compare) -> str | None:
    """Compare the text of two f-strings as words, and their expressions, in their order, as code."""
    texts = ("".join(p.value for p in node.values if isinstance(p, ast.Constant)) for node in (a, b))
    parts = ([p for p in node.values if not isinstance(p, ast.Constant)] for node in (a, b))
    return compare(*texts) or _trees(*parts, compare)


def _first(found: Iterator[str | None]) -> str | None:
    return next((text for text in found if text is not None), None)


def _must_say(a: str, b: str) -> str | None:
    return None if a == b else f"expected the string {a!r} unchanged, found {b!r}"


def _may_say(a: str, b: str) -> str | None:
    """Compare the text of two strings of which the second may be a translation."""
    if a == b:
        return None
    if not CJK.search(a):
        return _must_say(a, b)
    if sorted(PLACEHOLDER.findall(a)) != sorted(PLACEHOLDER.findall(b)):
        return f"expected the placeholders of {a!r}, found {b!r}"
    if extra := set(CARRIERS.findall(b)) - set(CARRIERS.findall(a)):
        return f"expected no {sorted(extra)[0]!r} in the translation of {a!r}, found {b!r}"
    if a.count("\n") != b.count("\n"):
        return f"expected as many lines as in {a!r}, found {b!r}"
    if (tree := _parsed(b.strip())) and any(isinstance(node, ACTS) for node in ast.walk(tree)):
        return f"expected words in the translation of {a!r}, found code: {b!r}"
    return None


def _show(part: object) -> str:
    if isinstance(part, list):
        return "[" + ", ".join(map(_show, part)) + "]"
    if isinstance(part, ast.expr_context | ast.operator | ast.boolop | ast.unaryop | ast.cmpop):
        return type(part).__name__
    return f"code {ast.unparse(part)!r}" if isinstance(part, ast.AST) else repr(part)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
