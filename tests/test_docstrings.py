"""Every public name says what it takes, in which shape, what it gives, how it fails, where it is from."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

import llm_study

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|References|Source|Example|Examples):(.*)$")
SHAPE = re.compile(r"``\([^`]*\)``")


def public_modules() -> list[ModuleType]:
    """Return every module of the package whose name has no part with an underscore, packages left out."""
    names = (info.name for info in pkgutil.walk_packages(llm_study.__path__, "llm_study.") if not info.ispkg)
    return [importlib.import_module(name) for name in names if "._" not in name]


def sections(doc: str) -> dict[str, str]:
    """Return the text below each heading of a Google docstring."""
    found, current = {"": ""}, ""
    for line in inspect.cleandoc(doc).splitlines():
        if heading := SECTION.match(line):
            current = heading[1]
            found[current] = heading[2].strip()
        else:
            current = "" if line[:1].strip() else current  # a paragraph at the margin ends the section
            found[current] += "\n" + line
    return found


def entries(section: str) -> dict[str, str]:
    """Return name → description of a section such as ``Args``."""
    lines = inspect.cleandoc("\n" + section).splitlines()
    named: dict[str, str] = {}
    for line in lines:
        if entry := re.match(r"^\*{0,2}(\w+)(?: \([^)]*\))?: *(.*)$", line):
            named[entry[1]] = entry[2]
        elif named:
            named[next(reversed(named))] += " " + line.strip()
    return named


def has_tensor(annotation: Any) -> bool:
    """Whether a type is a tensor, or may contain one."""
    return annotation is Tensor or any(has_tensor(part) for part in getattr(annotation, "__args__", ()))


def signature_of(function: Any) -> inspect.Signature:
    """Return the signature; a module that does not import torch names tensors for the type checker only."""
    names = {**getattr(function, "__globals__", {}), "Tensor": Tensor}
    return inspect.signature(function, globals=names, eval_str=True)


def raises_value_error(function: Any) -> bool:
    """Whether a function raises ValueError itself, or through a check of its own module or of core.checks."""
    return bool(re.search(r"raise ValueError|\b_?check(_\w+)?\(", inspect.getsource(function)))


def problems_of_arguments(parts: dict[str, str], signature: inspect.Signature) -> Iterator[str]:
    """Yield arguments without description, descriptions without argument, and tensors without shape."""
    described = entries(parts.get("Args", ""))
    arguments = {name: p for name, p in signature.parameters.items() if name not in ("self", "cls")}
    yield from (f"Args lacks {name}" for name in arguments if not described.get(name))
    yield from (f"Args describes {name}, which is no argument" for name in described if name not in arguments)
    for name, parameter in arguments.items():
        if parameter.annotation is inspect.Parameter.empty:
            yield f"{name} has no type"
        elif has_tensor(parameter.annotation) and not SHAPE.match(described.get(name, "")):
            yield f"{name} is a tensor: begin its description with its shape, such as ``(B, T, D)``"


def problems_of_result(parts: dict[str, str], signature: inspect.Signature) -> Iterator[str]:
    """Yield what is missing about the result."""
    result = signature.return_annotation
    if result is inspect.Signature.empty:
        yield "the result has no type"
    elif result not in (None, type(None)):
        text = (parts.get("Returns") or parts.get("Yields") or "").strip()
        if not text:
            yield "Returns is missing"
        elif has_tensor(result) and not SHAPE.match(text):
            yield "the result is a tensor: begin Returns with its shape, such as ``(B, T, D)``"


def problems(function: Callable[..., Any], *, source: bool = False, example: bool = True) -> list[str]:
    """Return what is missing in the docstring of a function or method."""
    doc = function.__doc__ or ""
    if not doc.strip():
        return ["the docstring is missing"]
    parts, signature = sections(doc), signature_of(function)
    found = [*problems_of_arguments(parts, signature), *problems_of_result(parts, signature)]
    if raises_value_error(function) and "ValueError" not in entries(parts.get("Raises", "")):
        found.append("it raises ValueError: say when, under Raises")
    if source and not (parts.get("References") or parts.get("Source", "")).strip():
        found.append("References is missing: where is the formula from?")
    if example and ">>>" not in parts.get("Example", "") + parts.get("Examples", ""):
        found.append("Example is missing")
    return found


def problems_of_class(kind: type) -> list[str]:
    """Return what is missing in the docstrings of a class and its methods; its Args are those of the constructor.

    A dataclass describes the fields that it adds or whose meaning it changes, its bases the others. A protocol is never
    made: it has neither arguments nor an example.
    """
    if not (kind.__doc__ or "").strip():
        return ["the docstring is missing"]
    if getattr(kind, "_is_protocol", False):
        return problems_of_methods(kind)
    parts, signature = sections(kind.__doc__ or ""), signature_of(kind if issubclass(kind, tuple) else kind.__init__)
    bases = [base for base in kind.__mro__[1:] if is_dataclass(base)]
    elsewhere = {name for base in bases for name in entries(sections(base.__doc__ or "").get("Args", ""))}
    elsewhere -= entries(parts.get("Args", "")).keys()
    own = [p for name, p in signature.parameters.items() if name not in elsewhere]
    found = list(problems_of_arguments(parts, signature.replace(parameters=own)))
    # the constructor of a dataclass is generated and has no source, what runs after it checks; a named tuple has none
    checks = vars(kind).get("__post_init__") if is_dataclass(kind) else kind.__init__
    if (
        inspect.isfunction(checks)
        and raises_value_error(checks)
        and "ValueError" not in entries(parts.get("Raises", ""))
    ):
        found.append("its constructor raises ValueError: say when, under Raises")
    if ">>>" not in parts.get("Example", "") + parts.get("Examples", ""):
        found.append("Example is missing")
    return [*found, *problems_of_methods(kind)]


def problems_of_methods(kind: type) -> list[str]:
    """Return what is missing in the docstrings of the public methods of a class."""
    methods = {name: x for name, x in vars(kind).items() if inspect.isfunction(x) and not name.startswith("_")}
    return [f"{name}: {problem}" for name, method in methods.items() for problem in problems(method, example=False)]


def problems_of_module(module: ModuleType) -> list[str]:
    """Return everything that is missing in one module."""
    found = [] if (module.__doc__ or "").strip() else ["the module has no docstring"]
    names: list[str] | None = getattr(module, "__all__", None)
    if names is None:
        return [*found, "the module has no __all__"]
    own = [
        name for name, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__ and name[0] != "_"
    ]
    found += [f"{name} is public but not in __all__" for name in own if name not in names]
    for name in names:
        member = getattr(module, name)
        if inspect.isclass(member):
            found += [f"{name}: {problem}" for problem in problems_of_class(member)]
        elif callable(member):
            source = module.__name__.startswith("llm_study.functional.")
            found += [f"{name}: {problem}" for problem in problems(member, source=source)]
    return found


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_names_are_documented(module: ModuleType) -> None:
    assert problems_of_module(module) == []


def test_packages_have_docstrings() -> None:
    packages = [i.name for i in pkgutil.walk_packages(llm_study.__path__, "llm_study.") if i.ispkg]
    assert packages
    assert [name for name in packages if not (importlib.import_module(name).__doc__ or "").strip()] == []


# --- the checks can fail


def good(x: Tensor, n: int, *, mask: Tensor | None = None) -> Tensor:
    """Do it.

    Args:
        x: ``(B, T)`` input,
            described: on two lines.
        n: how often.
        mask: ``(T,)`` where.

    Returns:
        ``(B, T)`` output.

    Raises:
        ValueError: if ``n`` is negative.

    Cost: nothing.

    References:
        Nobody (2000).

    Example:
        >>> 1 + 1
        2
    """
    if n < 0:
        raise ValueError(f"n is {n}, expected at least 0")
    return x


def test_a_good_docstring_passes() -> None:
    assert problems(good, source=True) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("        n: how often.\n", "", "Args lacks n"),
        ("        n: how often.\n", "        n:\n", "Args lacks n"),
        ("        n: how often.\n", "        m: how often.\n", "Args describes m, which is no argument"),
        ("``(B, T)`` input", "input ``(B, T)``", "x is a tensor: begin its description"),
        ("``(T,)`` where", "where", "mask is a tensor: begin its description"),
        ("``(B, T)`` output", "output", "the result is a tensor: begin Returns"),
        ("    Returns:\n        ``(B, T)`` output.\n", "", "Returns is missing"),
        ("ValueError: if", "TypeError: if", "it raises ValueError"),
        ("    Raises:\n        ValueError: if ``n`` is negative.\n", "", "it raises ValueError"),
        ("    References:\n        Nobody (2000).\n", "", "References is missing"),
        ("        >>> 1 + 1\n", "", "Example is missing"),
    ],
)
def test_a_gap_in_a_docstring_is_seen(monkeypatch: pytest.MonkeyPatch, old: str, new: str, problem: str) -> None:
    doc = good.__doc__ or ""
    assert old in doc
    monkeypatch.setattr(good, "__doc__", doc.replace(old, new))
    assert any(line.startswith(problem) for line in problems(good, source=True))


def test_a_missing_docstring_and_type_are_seen() -> None:
    def bare(x):
        return x

    assert problems(bare) == ["the docstring is missing"]
    bare.__doc__ = "Do it.\n\nArgs:\n    x: it.\n\nExample:\n    >>> 1\n    1\n"
    assert problems(bare) == ["x has no type", "the result has no type"]


def test_a_dataclass_describes_what_it_adds() -> None:
    @dataclass
    class Base:
        """It is.

        Args:
            n: how many.

        Example:
            >>> 1
            1
        """

        n: int

    @dataclass
    class Kind(Base):
        """It is.

        Example:
            >>> 1
            1
        """

        m: int

    assert problems_of_class(Base) == []
    assert problems_of_class(Kind) == ["Args lacks m"]


def test_classes_and_modules_are_checked_too() -> None:
    class Kind:
        """It is."""

        def __init__(self, n: int) -> None:
            if n < 0:
                raise ValueError(n)

        def method(self, x: Tensor) -> None:
            """Do it."""

    Kind.__module__ = "made_up"
    assert problems_of_class(Kind) == [
        "Args lacks n",
        "its constructor raises ValueError: say when, under Raises",
        "Example is missing",
        "method: Args lacks x",
        "method: x is a tensor: begin its description with its shape, such as ``(B, T, D)``",
    ]
    module = ModuleType("made_up")
    vars(module).update(Kind=Kind)
    assert problems_of_module(module) == ["the module has no docstring", "the module has no __all__"]
    vars(module).update(__all__=[])
    assert problems_of_module(module)[1:] == ["Kind is public but not in __all__"]
