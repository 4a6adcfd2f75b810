"""The worker process: decodes the images of rows until its parent closes the connection or ends.

Run by `workers.Worker` as `python -m mmjax.data.worker`; what it imports is what every worker waits for at its start.
"""

import faulthandler
import mmap
import os
import pickle
import signal
import struct
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from mmjax.data.image_spec import ImageError, ImageSpec
from mmjax.data.images import decode_visuals

HEADER = struct.Struct("q")             # at the beginning of the shared memory: which document is being decoded


class Pixels(NamedTuple):
    """What images of a data set become: uint8[F, size, size, 3] each."""

    spec: ImageSpec
    frames: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.spec.size, self.spec.size, 3


def main(connection: int, memory: int, stacks: int, parent: int) -> None:
    """Serves requests.

    Args:
        connection: file descriptor of the parent's connection.
        memory: of the memory that pixels go to.
        stacks: of a file that takes the stacks of all threads at SIGUSR1.
        parent: process to end with.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):      # a terminal or launcher sends them to all; the parent decides
        signal.signal(signum, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=stacks)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe, shared = Connection(connection), mmap.mmap(memory, 0)
    sets: dict[str, Pixels] = pickle.loads(pipe.recv_bytes())
    while True:
        try:
            name, documents = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(_decode(sets[name], documents, shared)))
        except (EOFError, ConnectionError):             # the parent has closed it, perhaps in the middle of a row
            return


def _decode(pixels: Pixels, documents: list[tuple], shared: mmap.mmap) -> list[int | ImageError] | Exception:
    """Puts the pixels one after another into the memory; tells how many images each document gave, or why none."""
    found, offset = [], HEADER.size
    try:
        for n, visuals in enumerate(documents):
            HEADER.pack_into(shared, 0, n)
            try:
                array = decode_visuals(visuals, pixels.spec, pixels.frames)
            except ImageError as e:
                found.append(e)
                continue
            np.frombuffer(shared, np.uint8, array.size, offset)[:] = array.reshape(-1)
            offset += array.size
            found.append(len(array))
    except Exception as e:
        e.add_note(f"in document {n} of a row")
        return RuntimeError(f"{type(e).__name__}: {e}")
    return found


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
