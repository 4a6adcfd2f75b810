"""Decoding: rows that are planned become rows of a batch, several at a time, in threads or by worker processes."""

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from mmjax.batch import Batch
from mmjax.data.encode import Item
from mmjax.data.image_spec import ImageError
from mmjax.data.images import decode_visuals
from mmjax.data.packing import lay_row, to_features
from mmjax.data.plan import Row
from mmjax.data.threads import Threads
from mmjax.data.watch import Watch
from mmjax.data.worker import Pixels
from mmjax.data.workers import Worker

Decoded = list[np.ndarray | ImageError]


class Decoder:
    """Fills rows of batches.

    Args:
        sets: what images of each data set become.
        max_images: per data set, the images of a row.
        workers: processes that decode; 0 decodes in threads of this one.
        threads: those threads.
        watch: is told what is under way.
    """

    def __init__(self, sets: Mapping[str, Pixels], max_images: Mapping[str, int], workers: int, threads: int,
                 watch: Watch):
        self._watch = watch
        self._images: _Images = _InWorkers(sets, max_images, workers, watch) if workers else _InThreads(sets, watch)
        self._threads = Threads(workers or max(1, threads), "decode")

    def submit(self, name: str, row: Row, batch: Batch, r: int, name_of: Callable[[Item], str]
               ) -> "Future[dict[int, ImageError]]":
        """Has row `r` of a batch filled.

        Args:
            name: of the data set.
            row: the plan.
            batch: arrays of the batch, row r as `packing.empty_batch` made it.
            r: the row.
            name_of: the record of a document, for messages.

        Returns:
            A Future of the documents that turned out to be damaged and are left out of the row, by their place.
        """
        return self._threads.submit(self._fill, name, row.items, batch, r, name_of)

    def close(self) -> None:
        """Ends threads and workers."""
        self._threads.close()
        self._images.close()

    def _fill(self, name: str, items: Sequence[Item], batch: Batch, r: int, name_of: Callable[[Item], str]
              ) -> dict[int, ImageError]:
        with self._images.decoded(name, items, name_of) as found:
            lay_row(batch, r, [to_features(item.encoded, pixels) for item, pixels in zip(items, found, strict=True)
                               if not isinstance(pixels, ImageError)])
            return {n: pixels for n, pixels in enumerate(found) if isinstance(pixels, ImageError)}


class _Images(Protocol):
    def decoded(self, name: str, items: Sequence[Item], name_of: Callable[[Item], str]
                ) -> contextlib.AbstractContextManager[Decoded]: ...

    def close(self) -> None: ...


class _InThreads:
    def __init__(self, sets: Mapping[str, Pixels], watch: Watch):
        self._sets, self._watch = sets, watch

    @contextlib.contextmanager
    def decoded(self, name: str, items: Sequence[Item], name_of: Callable[[Item], str]) -> Iterator[Decoded]:
        pixels, found = self._sets[name], []
        for item in items:
            with self._watch.task(lambda item=item: name_of(item)):
                try:
                    found.append(decode_visuals(item.encoded.visuals, pixels.spec, pixels.frames))
                except ImageError as e:
                    found.append(e)
        yield found

    def close(self) -> None:
        pass


class _InWorkers:
    def __init__(self, sets: Mapping[str, Pixels], max_images: Mapping[str, int], count: int, watch: Watch):
        self._workers = [Worker(n, sets, max_images) for n in range(count)]
        self._watch, self._idle = watch, queue.LifoQueue()
        self._shapes = {name: pixels.shape for name, pixels in sets.items()}
        for worker in self._workers:
            self._idle.put(worker)

    @contextlib.contextmanager
    def decoded(self, name: str, items: Sequence[Item], name_of: Callable[[Item], str]) -> Iterator[Decoded]:
        documents = [item.encoded.visuals for item in items]
        if not any(documents):
            yield [np.zeros((0, *self._shapes[name]), np.uint8)] * len(items)
            return
        worker = self._idle.get()
        try:
            with (self._watch.task(lambda: name_of(items[worker.current]), worker.stack),
                  worker.decoded(name, documents, lambda n: name_of(items[n])) as found):
                yield found
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
