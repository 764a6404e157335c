"""What a run tells while it goes: a bar on a terminal, lines anywhere else, with loss, speed and the time left."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Progress", "ProgressBar"]

WIDTH, RECENT = 24, 20
"""Characters of the bar, and steps that the speed is the mean of."""


@dataclass(frozen=True)
class Progress:
    """What a step has done.

    Args:
        step: number of steps that are done.
        steps: number of steps of the run.
        loss: loss of this step.
        tokens: number of items that the loss of this step is the mean of, in all processes.
        evaluation: what the evaluation after this step gave, if there was one.

    Example:
        >>> Progress(step=1, steps=10, loss=2.5, tokens=64).evaluation is None
        True
    """

    step: int
    steps: int
    loss: float
    tokens: int
    evaluation: float | None = None


class ProgressBar:
    r"""Shows progress: called with what each step has done.

    On a terminal one line is drawn again and again, and an evaluation stays above it. Elsewhere, as in a log file, a
    line is written every ten seconds, for each evaluation and at the end.

    Args:
        stream: where to. Default: ``sys.stderr``.
        clock: what time it is, in seconds.
        every: seconds between two lines where there is no terminal.

    Example:
        >>> times = iter([0.0, 0.5, 1.0])
        >>> bar = ProgressBar(sys.stdout, clock=lambda: next(times), every=0)
        >>> bar(Progress(step=1, steps=3, loss=2.5, tokens=1000))
        step 1 of 3, loss 2.5000, 2,000 tokens/s, 0:01 left
        >>> bar(Progress(step=2, steps=3, loss=2.25, tokens=1000, evaluation=2.3))
        step 2 of 3, loss 2.2500, evaluation 2.3000, 2,000 tokens/s, 0:00 left
    """

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic, every: float = 10.0
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self._terminal = self.stream.isatty()
        self._every = 0.1 if self._terminal else every
        self._marks = deque([(clock(), 0)], maxlen=RECENT + 1)
        self._shown, self._drawn = float("-inf"), 0

    def __call__(self, progress: Progress) -> None:
        """Show a step, unless the one before was shown just now."""
        now = self.clock()
        self._marks.append((now, progress.tokens))
        last = progress.step == progress.steps
        if now - self._shown < self._every and progress.evaluation is None and not last:
            return
        self._shown = now
        if not self._terminal:
            print(self._line(progress), file=self.stream, flush=True)
            return
        if progress.evaluation is not None:
            self._draw(self._line(progress) + "\n")
        self._draw(_with_bar(self._line(progress), progress.step / progress.steps))
        if last:
            self.close()

    def close(self) -> None:
        """End the line of the bar, so that what is printed next begins a new one."""
        if self._drawn:
            self._draw("\n")

    def _line(self, progress: Progress) -> str:
        """Return a step in words; speed and time left are those of the last few steps."""
        seconds = max(self._marks[-1][0] - self._marks[0][0], 1e-9)
        tokens = sum(tokens for _, tokens in self._marks) - self._marks[0][1]
        left = round((progress.steps - progress.step) * seconds / (len(self._marks) - 1))
        found = "" if progress.evaluation is None else f", evaluation {progress.evaluation:.4f}"
        speed = f"{tokens / seconds:,.0f} tokens/s, {_clock_time(left)} left"
        return f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}{found}, {speed}"

    def _draw(self, text: str) -> None:
        """Write over the line that was drawn last."""
        if text != "\n":
            room = shutil.get_terminal_size().columns - 1
            end = "\n" if text.endswith("\n") else ""
            text = "\r" + text.rstrip("\n")[:room].ljust(min(self._drawn, room)) + end
        self.stream.write(text)
        self.stream.flush()
        self._drawn = 0 if text.endswith("\n") else len(text.rstrip()) - 1


def _with_bar(line: str, share: float) -> str:
    """Put a bar before a line, as wide as the terminal has room for."""
    width = min(WIDTH, shutil.get_terminal_size().columns - len(line) - 4)
    full = round(width * share)
    return f"[{'=' * full}{' ' * (width - full)}] {line}" if width > 0 else line


def _clock_time(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
