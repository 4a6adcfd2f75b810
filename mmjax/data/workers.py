"""Worker processes that decode images, as their parent sees them.

They are started as programs of their own, so that a script or notebook needs no `__main__` guard and no thread of the
parent is forked. Pixels come back through memory that has no name and so can never be left behind.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from socket import socketpair

import numpy as np

from mmjax.data.image_spec import ImageError
from mmjax.data.worker import HEADER, Pixels

_GRACE = 2.0                            # seconds that a worker has to end by itself
_SHARED_MEMORY = "/dev/shm"
# glibc else gives the memory of every image back and gets it again page by page, a sixth of the time of decoding
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}


class WorkerDied(RuntimeError):
    """A worker process ended; the message has its number, process id, the signal and the record it was at."""


class Worker:
    """One worker process, used by one thread at a time.

    Args:
        number: for messages.
        sets: what images of each data set become.
        max_images: per data set, the images of a row.
    """

    def __init__(self, number: int, sets: Mapping[str, Pixels], max_images: Mapping[str, int]):
        self.number, self._sets = number, dict(sets)
        size = HEADER.size + max(max_images[name] * int(np.prod(p.shape)) for name, p in sets.items())
        folder = _SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else None
        self._stacks = tempfile.TemporaryFile("w+")       # noqa: SIM115  closed with the worker
        ours, theirs = socketpair()
        with tempfile.TemporaryFile(dir=folder) as file, theirs:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
            descriptors = (theirs.fileno(), file.fileno(), self._stacks.fileno())
            path = os.pathsep.join(p or os.getcwd() for p in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mmjax.data.worker", *map(str, descriptors), str(os.getpid())],
                pass_fds=descriptors, stdin=subprocess.DEVNULL, env=_MALLOC | os.environ | {"PYTHONPATH": path})
        self._pipe = Connection(ours.detach())
        with contextlib.suppress(OSError):              # it may have ended already; the first row will tell
            self._pipe.send_bytes(pickle.dumps(self._sets))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @contextlib.contextmanager
    def decoded(self, name: str, documents: Sequence[tuple], names: Callable[[int], str]
                ) -> Iterator[list[np.ndarray | ImageError]]:
        """Gives the pixels of every document of a row, or why there are none; they are valid inside the context.

        Args:
            name: of the data set.
            documents: visual items of each.
            names: of the record of document n, for messages.

        Raises:
            WorkerDied: if the process ended.
        """
        try:
            self._pipe.send_bytes(pickle.dumps((name, list(documents)), protocol=5))
            found = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as e:
            raise WorkerDied(f"data worker {self.number} (pid {self.pid}) {self._how_it_ended()} while it decoded "
                             f"{names(self.current)}; if the machine ran out of memory, use fewer data.workers") from e
        if isinstance(found, Exception):
            raise RuntimeError(f"{names(self.current)}: {found}") from found
        yield list(self._arrays(self._sets[name].shape, found))

    @property
    def current(self) -> int:
        """The document of the row that it is at."""
        return HEADER.unpack_from(self._memory)[0]

    def stack(self) -> str:
        """Where it is, if it can still say so."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.5)
        self._stacks.seek(0)
        return f"data worker {self.number} (pid {self.pid})\n{self._stacks.read() or '(it does not answer)'}"

    def close(self) -> None:
        """Ends it."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._process.kill()
        self._process.wait()
        self._stacks.close()

    def _arrays(self, shape: tuple[int, ...], found: list[int | ImageError]) -> Iterator[np.ndarray | ImageError]:
        offset = HEADER.size
        for count in found:
            if isinstance(count, ImageError):
                yield count
                continue
            size = count * int(np.prod(shape))
            yield np.frombuffer(self._memory, np.uint8, size, offset).reshape(count, *shape)
            offset += size

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
