"""The loader: batches of every data set of a step, from a position that can be saved and restored exactly."""

import copy
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.batch import Batch
from mmjax.data import counters as counting
from mmjax.data import state
from mmjax.data.config import LoaderConfig, Source
from mmjax.data.decode import Decoder
from mmjax.data.encode import Item
from mmjax.data.images import ImageError
from mmjax.data.pipeline import Pipeline, Stream
from mmjax.data.plan import Row
from mmjax.data.threads import Threads
from mmjax.data.watch import Watch
from mmjax.data.worker import Pixels


class Loader(Iterator[dict[str, Batch]]):
    """Iterates without end over `{set name: Batch}` of NumPy arrays; each Batch has this process's rows.

    The rows of a batch come in equal parts from `config.streams` streams, which the processes share out in order. A
    thread plans which documents make which row; threads or worker processes decode the images. After
    `set_state(state)` the batches that follow are bit-equal to those that followed `get_state()`, with any number of
    threads and workers, and in another number of processes, given the states of all that saved them.

    Args:
        config: what to read.
        process_index, process_count: which part of the rows this process reads.

    Raises:
        FileNotFoundError, DocumentError: a source is missing, unreadable, truncated or empty; names the file.
        ValueError: a batch size does not divide among the streams or these among the processes, or a special token
            is missing; and while iterating, if a batch has nothing to learn.
        TooManySkipped, WorkerDied, Stuck: while iterating; each names records.
    """

    def __init__(self, config: LoaderConfig, process_index: int = 0, process_count: int = 1):
        count = _check_shares(config, process_index, process_count)
        tokenizer = config.make_tokenizer()
        self._config = config
        self._sources = {name: [s.open() for s in c.sources] for name, c in config.sets.items()}
        self._fingerprint = state.fingerprint(config, tokenizer.fingerprint(), count, self._sources)
        self._watch = Watch(config.watchdog)
        self._readers = Threads(config.threads, "read") if config.threads else None
        self._count, own = count, count // process_count
        self._streams = {k: Stream(config, self._sources, tokenizer, k, count, self._readers, self._watch)
                         for k in range(process_index * own, (process_index + 1) * own)}
        self._names = counting.Names()
        self._decoder: Decoder | None = None
        self._pipeline: Pipeline | None = None
        self._error: Exception | None = None

    @property
    def counters(self) -> dict[str, dict[str, Any]]:
        """{set: {source: counters of what this process consumed so far, see `counters.empty`}}. Saved with the
        position."""
        per_stream = copy.deepcopy([s.counters for s in self._streams.values()])
        return {name: {label: counting.add(*(c[name][k] for c in per_stream))
                       for k, label in enumerate(_labels(self._config.sets[name].sources))}
                for name in self._config.sets}

    def metrics(self) -> dict[str, float]:
        """The counters as scalars, `data/<set>/<source>/<what>`."""
        return counting.flat(self.counters)

    def __next__(self) -> dict[str, Batch]:
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except Exception as e:
            self._error = e
            raise

    def _next(self) -> dict[str, Batch]:
        if self._pipeline is None:
            self._decoder = self._decoder or self._make_decoder()
            self._pipeline = Pipeline(self._config, list(self._streams.values()), self._sources, self._decoder,
                                      self._watch, self._count)
        step = self._pipeline.get()
        for stream, name, row, damaged in step.rows:
            self._tally(stream, name, row, damaged.result())
        for name, c in self.counters.items():
            counting.check_share(name, c, self._config.max_skipped)
        for name, batch in step.batches.items():
            if not batch.loss_weights.any():
                found = counting.outcomes(i for p in step.rows if p.name == name for i in p.row.items + p.row.skipped)
                raise ValueError(f"data set {name!r}: a batch of {len(batch.tokens)} rows has no token with a loss "
                                 f"weight above 0; its documents: {found or 'none'}")
        for stream, position in zip(self._streams.values(), step.positions, strict=True):
            stream.position = position
        return step.batches

    def _tally(self, stream: Stream, name: str, row: Row, damaged: dict[int, ImageError]) -> None:
        items = [item if n not in damaged else Item(item.draw, damaged[n].reason) for n, item in enumerate(row.items)]
        for item in row.skipped + items:
            counting.count(stream.counters[name], item)
            if item.encoded is None:
                self._names.say(name, self._sources[name][item.draw.source].name(item.draw.index), item)

    def _make_decoder(self) -> Decoder:
        sets = {name: Pixels(c.image, c.frames) for name, c in self._config.sets.items()}
        images = {name: c.images_per_row for name, c in self._config.sets.items()}
        return Decoder(sets, images, self._config.workers, self._config.threads, self._watch)

    def get_state(self) -> bytes:
        """The position after the last batch given out, with the counters and the settings it is valid for."""
        streams = {k: {name: dict(s.position[name], counters=s.counters[name]) for name in self._config.sets}
                   for k, s in self._streams.items()}
        return state.write(self._fingerprint, self._config, streams)

    def set_state(self, *states: bytes) -> None:
        """Goes to a position saved by `get_state`: that of this process, or those of all, if they were others.

        Raises:
            ValueError: if a state is not one, or was saved under settings that give other data (names them and the
                records that would be lost), or streams of this process are in none of the states.
        """
        positions = state.read(states, self._fingerprint, self._config)
        if missing := [k for k in self._streams if k not in positions]:
            raise ValueError("the saved data positions are those of the streams "
                             f"{', '.join(map(str, sorted(positions)))}; stream {missing[0]} of this process is not "
                             "among them")
        self._stop()
        for k, stream in self._streams.items():
            stream.set_state(positions[k])

    def close(self) -> None:
        """Ends worker processes and threads; the loader cannot be used afterwards."""
        self._stop()
        self._error = RuntimeError("the Loader is closed")
        for part in (self._readers, self._decoder):
            if part is not None:
                part.close()

    def _stop(self) -> None:
        if self._pipeline is not None:
            self._pipeline.stop()
        self._pipeline = self._error = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_shares(config: LoaderConfig, process_index: int, process_count: int) -> int:
    """The number of streams."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be from 0 to process_count-1={process_count - 1}")
    count = config.streams or process_count
    if count % process_count:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise ValueError(f"data.streams={count} must be a multiple of the {process_count} processes that share them; "
                         f"one stream is never read by two. Use {', '.join(map(str, divisors))} processes")
    for name, data in config.sets.items():
        if data.batch_size % count:
            whose = f"{count} streams" if config.streams else f"{process_count} processes"
            raise ValueError(f"data set {name!r} batch_size={data.batch_size} must be a multiple of the {whose}")
    return count


def _labels(sources: Sequence[Source]) -> list[str]:
    """Short names of sources: the last part of the path, with a number where two are the same."""
    names = [os.path.basename(os.path.normpath(s.path)).partition(".")[0] or s.path for s in sources]
    seen = Counter(names)
    return [name if seen[name] == 1 else f"{name}-{k}" for k, name in enumerate(names)]
