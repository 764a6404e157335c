"""The code of a chapter, read from its source in the order in which the doctest builder runs it."""

import doctest
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rst_lines import CODE, DIRECTIVE, OPTION, Line, read

KINDS = {"doctest", "testcode", "testoutput", "testsetup"}


@dataclass(frozen=True)
class Block:
    """One directive with code or output."""

    kind: str
    line: int
    groups: tuple[str, ...]
    options: dict[str, str]
    first: int
    """The line on which the content begins."""
    text: str

    @property
    def equations(self) -> tuple[str, ...]:
        """The labels that the block verifies."""
        return tuple(label.strip() for label in self.options.get("verifies", "").split(",") if label.strip())

    @property
    def flags(self) -> dict[int, bool]:
        """How output is compared, beside what holds everywhere."""
        words = self.options.get("options", "").replace(",", " ").split()
        return {doctest.OPTIONFLAGS_BY_NAME[word[1:]]: word[0] == "+" for word in words}


@dataclass(frozen=True)
class Step:
    """One example of a doctest, or a whole ``testcode`` with its output."""

    source: str
    want: str
    line: int
    """The first line of the source on the page."""
    flags: dict[int, bool] = field(default_factory=dict)
    error: str | None = None
    """The message of the exception that is expected."""
    whole: bool = False
    """Whether the source is many statements, of which none shows its value by itself."""

    def example(self) -> doctest.Example:
        """Return what the runner of doctests takes; it compiles one statement at a time."""
        whole = f"exec(compile({self.source!r}, '<testcode>', 'exec'), globals())\n"
        return doctest.Example(
            whole if self.whole else self.source, self.want, self.error, lineno=self.line, options=dict(self.flags)
        )


@dataclass(frozen=True)
class Unit:
    """What runs in one go: a doctest, a ``testcode`` with its output, or a ``testsetup``."""

    line: int
    equations: tuple[str, ...]
    steps: tuple[Step, ...]


def blocks(source: str) -> Iterator[Block]:
    """Yield the blocks of a page in the order of the page."""
    lines = read(source)
    for number, line in enumerate(lines):
        found = DIRECTIVE.match(line.text) if line.kind == "markup" else None
        if found and found["name"] in KINDS:
            content = list(_content(lines[number + 1 :], found["name"]))
            options = dict(_option(part) for part in content if part.kind == "option")
            code = [part for part in content if part.kind != "option"]
            while code and not code[0].text.strip():
                code.pop(0)
            text = textwrap.dedent("\n".join(part.text for part in code)).rstrip() + "\n"
            groups = tuple(name.strip() for name in (found["argument"] or "default").split(","))
            yield Block(found["name"], line.number, groups, options, code[0].number if code else line.number, text)


def promised(source: str) -> int:
    """Return how many blocks of a page say that they verify something, be they found by ``blocks`` or not."""
    shown = (CODE | {"literal", "comment"}) - KINDS  # a guide shows the option, and promises nothing
    return sum(bool(re.match(r"\s*:verifies:", line.text)) for line in read(source) if line.kind not in shown)


def _content(lines: list[Line], name: str) -> Iterator[Line]:
    """Yield the lines that follow a directive and belong to it."""
    begun = False
    for line in lines:
        if line.kind not in {name, "blank"} and (begun or line.kind != "option"):
            return
        begun = begun or line.kind != "option"
        yield line


def _option(line: Line) -> tuple[str, str]:
    found = OPTION.match(line.text)
    return (found["name"], found["value"] or "") if found else ("", "")


def groups(source: str) -> dict[str, list[Unit]]:
    """Return what each group of a page runs, in order, as Sphinx does: first what sets it up."""
    every = list(blocks(source))
    names = dict.fromkeys(name for block in every for name in block.groups if name != "*")
    return {
        name: _units([b for b in every if name in b.groups], [b for b in every if "*" in b.groups]) for name in names
    }


def _units(own: list[Block], shared: list[Block]) -> list[Unit]:
    setup: list[Unit] = []
    units: list[Unit] = []
    for block in [*own, *shared]:
        if block.kind == "testsetup":
            setup.append(Unit(block.line, (), (Step(block.text, "", block.first, whole=True),)))
        elif block.kind == "testoutput":
            if units and units[-1].steps and units[-1].steps[0].whole:
                units[-1] = _with_output(units[-1], block)
        else:
            steps = _examples(block) if block.kind == "doctest" else (Step(block.text, "", block.first, whole=True),)
            units.append(Unit(block.line, block.equations, steps))
    return setup + units


def _examples(block: Block) -> tuple[Step, ...]:
    try:
        found = doctest.DocTestParser().get_examples(block.text)
    except ValueError as error:  # then the block fails, and is reported like any other that does
        return (Step(f"raise ValueError({str(error)!r})\n", "", block.first),)
    return tuple(
        Step(part.source, part.want, block.first + part.lineno, {**block.flags, **part.options}, part.exc_msg)
        for part in found
    )


def _with_output(unit: Unit, output: Block) -> Unit:
    """Return a ``testcode`` with the output that it is compared with."""
    raised = re.match(
        r"Traceback \((?:most recent call last|innermost last)\):\n(?:\s.*\n)*(?P<message>\S.*)", output.text
    )
    flags = {**output.flags, doctest.DONT_ACCEPT_BLANKLINE: True}
    error = raised["message"] + "\n" if raised else None
    step = replace(unit.steps[0], want=output.text, flags=flags, error=error)
    return Unit(unit.line, unit.equations + output.equations, (step,))
