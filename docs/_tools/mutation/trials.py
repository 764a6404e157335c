"""Whether the checks of a page can fail: each is run with one thing changed, after the page up to it."""

import ast
import doctest
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mutation.blocks import Step, Unit, groups
from mutation.changes import Change, changes, names_nothing, parsed
from mutation.forks import Outcome, in_forks

Namespace = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of the steps of a unit, by their lines."""

    wrong: tuple[int, ...] = ()
    """Other output than expected."""
    errors: tuple[int, ...] = ()
    """An exception that was not expected."""

    @property
    def passed(self) -> bool:
        """Whether all was as expected."""
        return not self.wrong and not self.errors

    @property
    def place(self) -> str:
        """Where the first failure is."""
        return f"a failure at line {min(self.wrong + self.errors)}"


class Runner(doctest.DocTestRunner):
    """Runs steps as the doctest builder does, and notes silently which of them fail."""

    def __init__(self) -> None:
        super().__init__(verbose=False, optionflags=doctest.DONT_ACCEPT_TRUE_FOR_1)
        self.wrong: list[int] = []
        self.errors: list[int] = []

    def report_start(self, out: Any, test: doctest.DocTest, example: doctest.Example) -> None:
        """Say nothing."""

    def report_failure(self, out: Any, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        """Note the line."""
        self.wrong.append(example.lineno)

    def report_unexpected_exception(
        self, out: Any, test: doctest.DocTest, example: doctest.Example, exc_info: Any
    ) -> None:
        """Note the line."""
        self.errors.append(example.lineno)


def run(steps: tuple[Step, ...], namespace: Namespace) -> Verdict:
    """Run steps in a namespace, which keeps what they define."""
    runner = Runner()
    test = doctest.DocTest([step.example() for step in steps], {}, "page", None, None, None)
    test.globs = namespace  # the constructor copies what it is given
    runner.run(test, out=lambda text: None, clear_globs=False)
    return Verdict(tuple(runner.wrong), tuple(runner.errors))


@dataclass(frozen=True)
class Mutant:
    """One change of one step, and what came of it."""

    step: int
    line: int
    change: Change
    fate: str = ""
    """``survived``, ``answer`` (other output), ``error``, ``time`` or ``died``."""
    wrong: tuple[int, ...] = ()

    @property
    def telling(self) -> bool:
        """Whether the change shows that the check can fail."""
        return self.fate != "survived" and self.change.proves


@dataclass
class Trial:
    """What is known of one check."""

    unit: Unit
    mutants: list[Mutant] = field(default_factory=list)

    @property
    def line(self) -> int:
        """The line of the directive."""
        return self.unit.line

    @property
    def survivors(self) -> list[Mutant]:
        """The changes that the check did not notice."""
        return [mutant for mutant in self.mutants if mutant.fate == "survived"]

    @property
    def proving(self) -> int:
        """How many changes might have shown something."""
        return sum(mutant.change.proves for mutant in self.mutants)

    @property
    def idle(self) -> bool:
        """Whether no change shows that the check can fail."""
        return not any(mutant.telling for mutant in self.mutants)

    @property
    def alert(self) -> set[int]:
        """The lines of the steps whose output some change has altered."""
        return {line for mutant in self.mutants if mutant.change.proves for line in mutant.wrong}

    @property
    def unmoved(self) -> list[int]:
        """The lines of the steps whose output no change has altered, though they compute it from names."""
        return [
            step.line
            for step in self.unit.steps
            if step.want and not step.error and not names_nothing(parsed(step.source)) and step.line not in self.alert
        ]


@dataclass(frozen=True)
class Broken:
    """A unit that fails as it stands; nothing can be said of what comes after it."""

    line: int
    where: str


def trials(source: str, limit: float, jobs: int) -> Iterator[Trial | Broken]:
    """Run a page from top to bottom, and try every change of each check at the moment when its turn has come.

    Args:
        source: the text of the page.
        limit: seconds for one change, or ten times what the unchanged check takes, if that is more.
        jobs: how many changes are tried at a time.
    """
    found = groups(source)
    for units in found.values():
        warm(units)
    for units in found.values():
        namespace: Namespace = {}
        for unit in units:
            if unit.equations:
                yield (tried := _try(unit, namespace, limit, jobs))
                if isinstance(tried, Broken):
                    break
            if not (verdict := run(unit.steps, namespace)).passed:
                yield Broken(unit.line, verdict.place)
                break


def warm(units: list[Unit]) -> None:
    """Import what the units import, once and for all: each fork would do it anew."""
    for statement in (part for unit in units for step in unit.steps for part in ast.walk(parsed(step.source))):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            with suppress(Exception):  # the page will say so itself
                exec(compile(ast.Module([statement], []), "<imports>", "exec"), {})


def mutants(unit: Unit) -> list[Mutant]:
    """Return every change of the code of a unit."""
    return [
        Mutant(number, step.line + change.line, change)
        for number, step in enumerate(unit.steps)
        for change in changes(step.source)
    ]


def _try(unit: Unit, namespace: Namespace, limit: float, jobs: int) -> Trial | Broken:
    def attempt(mutant: Mutant | None) -> Verdict:
        steps = list(unit.steps)
        if mutant:
            steps[mutant.step] = replace(steps[mutant.step], source=mutant.change.source)
        return run(tuple(steps), namespace)

    began = time.monotonic()
    [unchanged] = in_forks(attempt, [None], 60 * limit, 1)
    if unchanged.result is None:
        return Broken(unit.line, f"no end of it within {60 * limit:.0f} s" if unchanged.timed_out else "a crash")
    if not unchanged.result.passed:
        return Broken(unit.line, unchanged.result.place)
    enough = max(limit, 10 * (time.monotonic() - began))
    todo = mutants(unit)
    outcomes = in_forks(attempt, todo, enough, jobs)
    return Trial(unit, [_judged(mutant, outcome) for mutant, outcome in zip(todo, outcomes, strict=True)])


def _judged(mutant: Mutant, outcome: Outcome[Verdict]) -> Mutant:
    verdict = outcome.result
    if verdict is None:
        return replace(mutant, fate="time" if outcome.timed_out else "died")
    fate = "survived" if verdict.passed else "answer" if verdict.wrong else "error"
    return replace(mutant, fate=fate, wrong=verdict.wrong)
