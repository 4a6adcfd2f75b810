"""The loader: batches of every data set of a step, from a position that can be saved and restored exactly."""

import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from mmjax.batch import Batch
from mmjax.data import mixture, packing
from mmjax.data.config import DataSetConfig, LoaderConfig
from mmjax.data.sources import open_source
from mmjax.data.tokenizer import Tokenizer

_PREFETCH = 2                                   # batches ready, per worker


class Loader(Iterator[dict[str, Batch]]):
    """Iterates without end over `{set name: Batch}` of NumPy arrays; each Batch has this process's rows.

    The rows of a batch come in equal parts from `config.streams` streams, which the processes share out in order.
    After `set_state(state)` the batches that follow are bit-equal to those that followed `get_state()`; also in
    another number of processes, given the states of all that saved them.

    Args:
        config: what to read.
        process_index, process_count: which part of the rows this process reads.

    Raises:
        FileNotFoundError, DocumentError: a source is missing, unreadable, truncated or empty; names the file.
        ValueError: a batch size does not divide among the streams or these among the processes, or a special token
            is missing; and while iterating, if a batch has nothing to learn.
    """

    def __init__(self, config: LoaderConfig, process_index: int = 0, process_count: int = 1):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} must be from 0 to process_count-1={process_count - 1}")
        count = config.streams or process_count
        if count % process_count:
            raise ValueError(f"data.streams={count} must be a multiple of the {process_count} processes that share "
                             "them; one stream is never read by two")
        for name, data in config.sets.items():
            if data.batch_size % count:
                whose = f"{count} streams" if config.streams else f"{process_count} processes"
                raise ValueError(f"data set {name!r} batch_size={data.batch_size} must be a multiple of the {whose}")
        tokenizer = config.make_tokenizer()
        self._fingerprint = fingerprint(config, tokenizer.fingerprint(), count)
        own = count // process_count
        self._streams = {k: _Stream(config, tokenizer, k, count)
                         for k in range(process_index * own, (process_index + 1) * own)}

    @property
    def counters(self) -> dict[str, dict[str, Any]]:
        """Per set name what this process consumed so far: documents, truncated, tokens, images and `skipped`, a dict
        of counts by reason. Saved with the position."""
        return functools.reduce(_add, (stream.counters for stream in self._streams.values()))

    def __next__(self) -> dict[str, Batch]:
        parts = [next(stream) for stream in self._streams.values()]
        batches = {name: _join([part[name][0] for part in parts]) for name in parts[0]}
        for name, batch in batches.items():
            if not batch.loss_weights.any():
                outcomes = functools.reduce(_add, (part[name][1] for part in parts))
                raise ValueError(f"data set {name!r}: a batch of {len(batch.tokens)} rows has no token with a loss "
                                 f"weight above 0; its documents: {outcomes or 'none'}")
        return batches

    def get_state(self) -> bytes:
        """The position after the last batch given out, with the counters and the settings it is valid for."""
        streams = {str(k): stream.get_state() for k, stream in self._streams.items()}
        return json.dumps(dict(fingerprint=self._fingerprint, streams=streams)).encode()

    def set_state(self, *states: bytes):
        """Goes to a position saved by `get_state`: that of this process, or those of all, if they were others.

        Raises:
            ValueError: if a state is not one, or was saved under settings that give other data (names them), or
                streams of this process are in none of the states.
        """
        saved = [_read_state(state) for state in states]
        now = json.loads(json.dumps(self._fingerprint))
        for then, _ in saved:
            if changed := [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]:
                lines = "; ".join(f"{k} was {then.get(k)!r}, is {now.get(k)!r}" for k in changed)
                raise ValueError(f"the saved data position belongs to other settings: {lines}. Restore them (streams "
                                 "are set by data.streams), or start the data anew without its saved state")
        positions = {k: position for _, streams in saved for k, position in streams.items()}
        if missing := [k for k in self._streams if str(k) not in positions]:
            raise ValueError(f"the saved data positions are those of the streams {', '.join(positions)}; stream "
                             f"{missing[0]} of this process is not among them")
        for k, stream in self._streams.items():
            stream.set_state(positions[str(k)])

    def close(self):
        """Ends worker processes and threads; the loader cannot be used afterwards."""
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_):
        self.close()


class _Stream(Iterator[dict[str, tuple[Batch, dict[str, int]]]]):
    """Stream `index` of `count`: its rows of the batch of every data set, and what became of their documents."""

    def __init__(self, config: LoaderConfig, tokenizer: Tokenizer, index: int, count: int):
        self._names = tuple(config.sets)
        rows = [_rows(config, name, tokenizer, index, count) for name in self._names]
        self._sources = {n: [open_source("array_record", s.path) for s in config.sets[n].sources] for n in self._names}
        self._iterator = iter(_in_background(grain.experimental.ZipIterDataset(rows), config.workers))
        self.counters = {name: dict(documents=0, truncated=0, tokens=0, images=0, skipped={}) for name in self._names}
        self._named: set[tuple[str, int, int]] = set()

    def __next__(self) -> dict[str, tuple[Batch, dict[str, int]]]:
        fields = dict(zip(self._names, next(self._iterator), strict=True))
        return {name: self._batch(name, f) for name, f in fields.items()}

    def _batch(self, name: str, fields: packing.Features) -> tuple[Batch, dict[str, int]]:
        outcomes = self._count(name, fields.pop("info"))
        batch = Batch(**fields)
        self.counters[name]["tokens"] += int(np.count_nonzero(batch.segment_ids))
        self.counters[name]["images"] += int(np.count_nonzero(batch.image_segment_ids))
        return batch, outcomes

    def _count(self, name: str, info: np.ndarray) -> dict[str, int]:
        counters, outcomes = self.counters[name], {}
        for source, record, code in info.tolist():
            outcome = mixture.OUTCOMES[code]
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if outcome in mixture.FAULTS and (name, source, record) not in self._named:
                self._named.add((name, source, record))
                logging.warning("data set %s: skipped %s: %s", name, self._sources[name][source].name(record), outcome)
        counters["truncated"] += outcomes.get(mixture.TRUNCATED, 0)
        counters["documents"] += outcomes.get(mixture.KEPT, 0) + outcomes.get(mixture.TRUNCATED, 0)
        for outcome in outcomes.keys() - {mixture.KEPT, mixture.TRUNCATED}:
            counters["skipped"][outcome] = counters["skipped"].get(outcome, 0) + outcomes[outcome]
        return outcomes

    def get_state(self) -> dict[str, Any]:
        return dict(counters=copy.deepcopy(self.counters), position=self._iterator.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        self._iterator.set_state(state["position"])
        self.counters = state["counters"]

    def close(self) -> None:
        self._iterator.close()


def _rows(config: LoaderConfig, name: str, tokenizer: Tokenizer, index: int, count: int) -> grain.IterDataset:
    """Batches of the rows that one stream gives of a data set."""
    c = config.sets[name]
    seed = mixture.derive_seed(config.seed, f"set {name}")
    documents = mixture.document_stream(c, tokenizer, seed, config.threads, index, count)
    rows = packing.pack_dataset(documents, c.seq_len, c.images_per_row, c.packing_bins,
                                mixture.derive_seed(seed, "rows") % 2**31)
    return rows.batch(c.batch_size // count, batch_fn=_Stack(c))


def _join(parts: list[Batch]) -> Batch:
    return parts[0] if len(parts) == 1 else Batch(*map(np.concatenate, zip(*parts, strict=True)))


def _add(a: Any, b: Any) -> Any:
    """The sum of two nested dicts of counts."""
    if not isinstance(a, Mapping):
        return a + b
    return {key: _add(a[key], b[key]) if key in a and key in b else (a | b)[key] for key in a | b}


def _read_state(state: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fingerprint, {stream: its position and counters})."""
    try:
        value = json.loads(state)
        return value["fingerprint"], dict(value["streams"])
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"not the state of a Loader: {len(state)} bytes, {e!r}") from e


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Rows to batch fields; a class, for it is sent to worker processes."""

    config: DataSetConfig

    def __call__(self, rows: list[packing.Features]) -> packing.Features:
        side = self.config.image.size
        return packing.stack_rows(rows, (self.config.frames, side, side, 3))


def _in_background(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    """Prepares batches ahead. Batching comes before this step, or Grain loses elements on restore."""
    if not workers:
        return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCH)
    if not flags.FLAGS.is_parsed():             # in a notebook or a plain script nobody has, and Grain insists
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_PREFETCH)
    return dataset.mp_prefetch(options, worker_init_fn=_follow_parent)


def _follow_parent(*_):
    """Ends this worker with the process it works for: were that killed, the worker would wait for ever to be read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # a terminal sends Ctrl-C to workers too; the parent handles it

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def fingerprint(config: LoaderConfig, tokenizer: str, streams: int) -> dict[str, Any]:
    """All that decides which data comes when, flat and as JSON values. A folder may move, its files not change.

    Args:
        config: what is read.
        tokenizer: the fingerprint of its tokenizer.
        streams: how many there are.
    """
    out = dict(seed=config.seed, workers=config.workers, tokenizer=tokenizer, streams=streams)
    for name, c in config.sets.items():
        values = dataclasses.asdict(c)
        del values["loss_weight"]
        values["sources"] = [(s.weight, open_source("array_record", s.path).fingerprint()) for s in c.sources]
        out |= _flatten(f"sets.{name}", values)
    return out


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flatten(f"{prefix}.{key}", item).items()}
