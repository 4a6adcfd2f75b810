"""A thread in every process that ends all of them when one fails or dies: none is to wait in a collective for ever.

The processes share a small store of texts in process 0, JAX's own. There each of them counts up a number, the first
failure is written, and everyone looks. A process that is gone cannot write: process 0 names it by its number that
stands still. Where process 0 itself is gone, the store is.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

FAILURE, ALIVE = "mmjax/failure", "mmjax/alive/"
BEAT, SILENCE = 2.0, 25.0       # seconds between signs of life, and without one until a process counts as dead


class Watch:
    """Watches over `count` processes; `store` is JAX's client of the key-value store."""

    def __init__(self, store: Any, index: int, count: int):
        self._store, self._index, self._count = store, index, count
        self._stop, self._ending, self._beats = threading.Event(), threading.Lock(), 0
        self._seen: dict[str, tuple[str, float]] = {}       # process -> its last sign of life and when it came
        self._thread = threading.Thread(target=self._run, daemon=True, name="mmjax-watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, when all processes have come to their end."""
        self._stop.set()
        self._thread.join(timeout=3 * BEAT)

    def fail(self, text: str, code: int, lost_contact: bool = False) -> NoReturn:
        """Tells all processes that this one failed, prints the error that was told first, and ends this process.

        Args:
            text: the error.
            code: exit code of this process; that of the others is 1.
            lost_contact: whether it may come from another process that is gone; then that one is looked for.
        """
        if lost_contact and (gone := self._look_for_the_dead()):
            text = f"{gone} ({' '.join(text.split())[:200]})"
        else:
            text = f"process {self._index} of {self._count} on {socket.gethostname()}: {text}"
        self._stop.set()
        self._end(self._tell(text), code)

    def _run(self) -> None:
        misses = 0
        while not self._stop.is_set():
            try:
                self._beat()
                if self._index == 0 and (dead := self._silent(SILENCE)):
                    self._end(self._tell(dead))
                if failure := self._failure(BEAT):
                    if not self._stop.is_set():
                        self._end(failure)
                    return
                misses = 0
            except Exception as error:      # gRPC's; the store answers nothing any more
                misses += 1
                if misses * BEAT > SILENCE / 2 and not self._stop.is_set():
                    self._end(f"process 0 of {self._count} has not answered for {misses * BEAT:.0f} s: it was killed, "
                              f"or its machine or the network is down ({str(error).splitlines()[0][:200]})")
                self._stop.wait(BEAT)

    def _beat(self) -> None:
        self._beats += 1
        text = json.dumps([self._beats, socket.gethostname()])
        self._store.key_value_set(f"{ALIVE}{self._index}", text, allow_overwrite=True)

    def _silent(self, limit: float) -> str:
        """What to say of processes without a sign of life for `limit` seconds; empty if there are none."""
        now, found = time.monotonic(), dict.fromkeys(map(str, range(self._count)), "")
        found |= {key.rpartition("/")[2]: value for key, value in self._store.key_value_dir_get(ALIVE)}
        for name, value in found.items():
            if self._seen.get(name, ("?", 0))[0] != value:
                self._seen[name] = value, now
        gone = [name for name, (_, since) in self._seen.items() if now - since > limit]
        if not gone:
            return ""
        value = self._seen[gone[0]][0]
        host = f" on {json.loads(value)[1]}" if value else ""
        more = f" (and {len(gone) - 1} more processes)" if len(gone) > 1 else ""
        return (f"process {gone[0]} of {self._count}{host}{more} has shown no sign of life for {limit:.0f} s: it was "
                "killed, or its machine or the network is down; start all processes again to continue from the last "
                "checkpoint")

    def _look_for_the_dead(self) -> str:
        try:
            begin = time.monotonic()
            self._seen.clear()
            while time.monotonic() - begin < 4 * BEAT:
                self._silent(SILENCE)
                time.sleep(BEAT / 4)
            return self._silent(3 * BEAT)
        except Exception:                   # the store is gone
            return f"process 0 of {self._count} does not answer: it was killed, or its machine or the network is down"

    def _tell(self, text: str) -> str:
        """Writes the failure unless there is one already; the one that stands then."""
        with contextlib.suppress(Exception):        # there is one already, or no store any more
            self._store.key_value_set(FAILURE, text)
        return self._failure(BEAT, text)

    def _failure(self, seconds: float, default: str = "") -> str:
        try:
            return self._store.blocking_key_value_get(FAILURE, int(1000 * seconds))
        except Exception as error:
            if default or "DEADLINE_EXCEEDED" in str(error):
                return default
            raise

    def _end(self, text: str, code: int = 1) -> NoReturn:
        """Ends this process without waiting for others, whatever its threads do. The store ends with process 0."""
        if not self._ending.acquire(blocking=False):
            time.sleep(SILENCE)             # another thread is here already
        print(f"mmjax: error: {text}", file=sys.stderr, flush=True)
        if self._index == 0:
            time.sleep(2 * BEAT)            # until the others have read why
        os._exit(code)
