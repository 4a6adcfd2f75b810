"""The way of a batch: a thread plans the rows of all streams, the decoder fills them, the consumer takes them."""

import copy
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any, NamedTuple, TypeVar

from mmjax.batch import Batch
from mmjax.data import counters
from mmjax.data.config import LoaderConfig
from mmjax.data.decode import Decoder
from mmjax.data.encode import Encoder, Item
from mmjax.data.mixture import Draw, Mixture
from mmjax.data.packing import empty_batch
from mmjax.data.plan import Planner, Row
from mmjax.data.shuffle import derive_seed, make_order
from mmjax.data.sources import DocumentSource
from mmjax.data.threads import Threads
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.watch import Watch

_PREFETCH = 2                           # batches that are ready or being filled, beside the one that is planned
_POLL = 1.0                             # seconds between two looks at what hangs
T = TypeVar("T")


class Stream:
    """One of the streams: the plan of every data set, and where the last batch given out ended.

    Args:
        config: what is read.
        sources: of every data set.
        tokenizer: of all.
        index, count: which stream of how many.
        readers: threads that read and tokenise.
        watch: is told what they read.

    Attributes:
        position: {set: position of its plan after the last batch given out}.
        counters: {set: counters of its sources, see `counters.empty`}.
    """

    def __init__(self, config: LoaderConfig, sources: dict[str, list[DocumentSource]], tokenizer: Tokenizer,
                 index: int, count: int, readers: Threads | None, watch: Watch):
        self.planners = {}
        for name in config.sets:
            seed = derive_seed(config.seed, f"set {name}")
            encoder = Encoder(config.sets[name], sources[name], tokenizer, seed)
            self.planners[name] = _planner(config, name, sources[name], seed, encoder, index, count, readers, watch)
        self.position = self.planned()
        self.counters = {name: [counters.empty() for _ in c.sources] for name, c in config.sets.items()}

    def planned(self) -> dict[str, dict[str, Any]]:
        """The positions of the plans, which are ahead of what is given out."""
        return {name: planner.get_state() for name, planner in self.planners.items()}

    def set_state(self, saved: dict[str, dict[str, Any]]) -> None:
        """Goes to a position, `counters` included."""
        for name, planner in self.planners.items():
            planner.set_state(saved[name])
            self.counters[name] = copy.deepcopy(saved[name]["counters"])
        self.position = self.planned()


def _planner(config: LoaderConfig, name: str, sources: list[DocumentSource], seed: int, encoder: Encoder, index: int,
             count: int, readers: Threads | None, watch: Watch) -> Planner:
    c = config.sets[name]

    def make_mixture() -> Mixture:
        orders = [make_order(s, derive_seed(seed, f"source {k}"), index, count) for k, s in enumerate(sources)]
        return Mixture([s.weight for s in c.sources], orders)

    def encode(draw: Draw) -> Item:
        with watch.task(lambda: encoder.name(draw)):
            return encoder(draw)

    buffer = min(c.packing_buffer, max(16, sum(map(len, sources)) // count))
    return Planner(make_mixture, encode, c.seq_len, c.images_per_row, buffer, readers)


class Planned(NamedTuple):
    """A row of a step: its stream and data set, its plan, and the Future of what was damaged."""

    stream: Stream
    name: str
    row: Row
    damaged: Future


class Step(NamedTuple):
    """The batches of a step, which are being filled, and the positions of the streams after it."""

    batches: dict[str, Batch]
    rows: list[Planned]
    positions: list[dict[str, Any]]


class Pipeline:
    """Prepares steps ahead of the consumer.

    Args:
        config: what is read.
        streams: those of this process, in order.
        sources: of every data set.
        decoder: fills rows.
        watch: is asked for what hangs, whenever the consumer waits.
        count: how many streams there are in all processes.
    """

    def __init__(self, config: LoaderConfig, streams: list[Stream], sources: dict[str, list[DocumentSource]],
                 decoder: Decoder, watch: Watch, count: int):
        self._config, self._streams, self._sources = config, streams, sources
        self._decoder, self._watch = decoder, watch
        self._rows = {name: c.batch_size // count for name, c in config.sets.items()}
        in_step = len(streams) * sum(self._rows.values())
        self._room = threading.Semaphore(max(_PREFETCH, math.ceil(2 * config.workers / in_step)))
        self._ready: queue.SimpleQueue[Step | Exception] = queue.SimpleQueue()
        self._failed: Exception | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="plan", daemon=True)
        self._thread.start()

    def get(self) -> Step:
        """The next step, when all its rows are filled."""
        step = self._wait(lambda: self._ready.get(timeout=_POLL))
        if isinstance(step, Exception):
            raise step
        for planned in step.rows:
            self._wait(lambda planned=planned: planned.damaged.result(timeout=_POLL))
        self._room.release()
        return step

    def stop(self) -> None:
        """Ends the planning; waits for the plan under way."""
        self._stopped = True
        self._room.release()
        self._thread.join(timeout=5)

    def _wait(self, attempt: Callable[[], T]) -> T:
        while True:
            if self._failed is not None:        # a batch before the one that failed would only put it off
                raise self._failed
            try:
                return attempt()
            except (queue.Empty, NotYet):
                self._watch.check()

    def _run(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._stopped:
                    return
                self._ready.put(self._plan())
        except Exception as e:
            self._ready.put(e)

    def _plan(self) -> Step:
        batches, rows = {}, []
        for name, c in self._config.sets.items():
            own, side = self._rows[name], c.image.size
            batches[name] = empty_batch(len(self._streams) * own, c.seq_len, c.images_per_row,
                                        (c.frames, side, side, 3))
            for s, stream in enumerate(self._streams):
                for r in range(s * own, (s + 1) * own):
                    row = next(stream.planners[name])
                    rows.append(Planned(stream, name, row, self._submit(name, row, batches[name], r)))
        return Step(batches, rows, [stream.planned() for stream in self._streams])

    def _submit(self, name: str, row: Row, batch: Batch, r: int) -> Future:
        def name_of(item: Item) -> str:
            return self._sources[name][item.draw.source].name(item.draw.index)

        future = self._decoder.submit(name, row, batch, r, name_of)
        future.add_done_callback(self._note)
        return future

    def _note(self, future: Future) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failed = self._failed or error
