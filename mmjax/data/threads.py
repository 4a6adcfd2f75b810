"""Threads that work ahead: jobs in the order they are given, results in the order they are asked for."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

_CHUNK = 8                              # inputs of one job; handing over one costs about as much as a short document
_PATIENCE = 2.0                         # seconds that closing waits for all threads together
A, B = TypeVar("A"), TypeVar("B")


class Threads:
    """Daemon threads. Unlike those of an executor they never hold up the end of the process."""

    def __init__(self, count: int, name: str):
        self._jobs: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self.count, self._closed = count, False
        self._threads = [threading.Thread(target=self._work, name=f"{name} {i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., B], *args: Any) -> "Future[B]":
        """Has `function(*args)` called when its turn comes."""
        future: Future = Future()
        self._jobs.put((future, function, args))
        return future

    def close(self) -> None:
        """Ends the threads. Waits for the jobs that they are at, but not for one that hangs.

        A thread that computes in native code while the process ends would abort it.
        """
        self._closed = True
        for _ in range(self.count):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE / self.count)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            if self._closed:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as e:
                    future.set_exception(e)
            del job, future, function, args         # else the last row lives until the next one comes


def in_order(function: Callable[[A], B], inputs: Iterator[A], threads: Threads | None) -> Iterator[B]:
    """`map(function, inputs)`, by threads if there are some, which are then a few inputs ahead."""
    if threads is None:
        yield from map(function, inputs)
        return
    waiting: deque[Future[list[B]]] = deque()
    chunks = iter(lambda: list(itertools.islice(inputs, _CHUNK)), [])
    for chunk in chunks:
        waiting.append(threads.submit(lambda chunk: [function(x) for x in chunk], chunk))
        if len(waiting) > 2 * threads.count:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()
