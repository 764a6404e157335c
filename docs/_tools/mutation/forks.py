"""Work in forked processes: each begins with all that this one has in memory, and none outlives its time."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MEMORY = 8 * 2**30
"""What one process may allocate, in bytes: a changed size must not take the machine down."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one task."""

    result: R | None
    """None if the process ended before it had one."""
    timed_out: bool
    seconds: float


@dataclass
class _Running(Generic[R]):
    number: int
    process: BaseProcess
    receiver: Connection
    began: float

    def end(self) -> Outcome[R]:
        """Take the result and end the process, with all that it may have started."""
        result = None
        with suppress(EOFError):
            result = self.receiver.recv() if self.receiver.poll() else None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.receiver.close()
        return Outcome(result, self.process.exitcode == -signal.SIGALRM, time.monotonic() - self.began)


def in_forks(work: Callable[[T], R], tasks: Sequence[T], limit: float, jobs: int) -> list[Outcome[R]]:
    """Do each task in a copy of this process, and return what became of them, in their order.

    Args:
        work: what is done; its result is small.
        tasks: what it is done with.
        limit: seconds after which a process is ended.
        jobs: how many processes run at a time.
    """
    outcomes: dict[int, Outcome[R]] = {}
    running: list[_Running[R]] = []
    waiting = list(enumerate(tasks))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(*waiting.pop(), work, limit))
            # what a task leaves running may hold the sentinel open
            wait([one.process.sentinel for one in running], timeout=0.5)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                outcomes[one.number] = one.end()
    finally:
        for one in running:
            one.end()
    return [outcomes[number] for number in range(len(tasks))]


def _start(number: int, task: T, work: Callable[[T], R], limit: float) -> _Running[R]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, task, limit, sender, random.getstate()))
    process.start()
    sender.close()
    return _Running(number, process, receiver, time.monotonic())


def _child(work: Callable[[T], R], task: T, limit: float, sender: Connection, state: Any) -> None:
    """Do one task; the system ends a process that is too slow, be it stuck outside Python or without a parent."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    random.setstate(state)  # Python seeds it anew in a fork, unlike the generators of numpy and torch
    sender.send(work(task))
    os._exit(0)  # whatever threads the task may have left
