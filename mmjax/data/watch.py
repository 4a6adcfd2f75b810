"""The watchdog: who is at work on which record since when, so that a loader that hangs can say where."""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator


class Stuck(RuntimeError):
    """A record took longer than the watchdog allows; the message names it and has the stack of who reads it."""


class _Task:
    def __init__(self, name: Callable[[], str], stack: Callable[[], str]):
        self.name, self.stack, self.since = name, stack, time.monotonic()


class Watch:
    """Tasks that are under way.

    Args:
        limit: seconds that one may take; 0 for any time.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._tasks: dict[int, _Task] = {}              # by thread; its every operation is atomic

    @contextlib.contextmanager
    def task(self, name: Callable[[], str], stack: Callable[[], str] | None = None) -> Iterator[None]:
        """Marks what this thread does as a task.

        Args:
            name: of the record it is at, asked for only if the task hangs.
            stack: of whoever does the work, if that is not this thread.
        """
        me = threading.get_ident()
        self._tasks[me] = _Task(name, stack or (lambda: _stack(me)))
        try:
            yield
        finally:
            del self._tasks[me]

    def check(self) -> None:
        """Raises Stuck if a task has taken too long."""
        if not self._limit:
            return
        now = time.monotonic()
        for task in list(self._tasks.values()):
            if now - task.since > self._limit:
                raise Stuck(f"{task.name()} has taken more than watchdog={self._limit:g} seconds; it may hang in a "
                            f"decoder or wait for storage. Where it is:\n{task.stack()}")


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)) if frame else "(the thread has ended)"
