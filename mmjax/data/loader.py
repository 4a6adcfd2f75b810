"""The loader: batches of every data set of a step, from a position that can be saved and restored exactly."""

import dataclasses
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
from mmjax.data.documents import DocumentSource, record_files

_PREFETCH = 2                                   # batches ready, per worker


class Loader(Iterator[dict[str, Batch]]):
    """Iterates without end over `{set name: Batch}` of NumPy arrays; each Batch has this process's rows.

    After `set_state(state)` the batches that follow are bit-equal to those that followed `get_state()`.

    Attributes:
        counters: per set name a dict of what was consumed so far: documents, truncated, tokens, images and
            `skipped`, a dict of counts by reason. They are saved with the position.

    Raises:
        FileNotFoundError, DocumentError: a source is missing, unreadable, truncated or empty; names the file.
        ValueError: a batch size does not divide among the processes, or a special token is missing; and while
            iterating, if a batch has nothing to learn.
    """

    def __init__(self, config: LoaderConfig, process_index: int = 0, process_count: int = 1):
        self._config, self._names = config, tuple(config.sets)
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} must be from 0 to process_count-1={process_count - 1}")
        tokenizer = config.make_tokenizer()
        streams = [self._rows(name, tokenizer, process_index, process_count) for name in self._names]
        self._fingerprint = _fingerprint(config, tokenizer.fingerprint(), process_index, process_count)
        self._sources = {n: [DocumentSource(s.path) for s in config.sets[n].sources] for n in self._names}
        self._iterator = iter(_in_background(grain.experimental.ZipIterDataset(streams), config.workers))
        self.counters = {name: dict(documents=0, truncated=0, tokens=0, images=0, skipped={}) for name in self._names}
        self._named: set[tuple[str, int, int]] = set()

    def _rows(self, name: str, tokenizer, process_index: int, process_count: int) -> grain.IterDataset:
        c = self._config.sets[name]
        if c.batch_size % process_count:
            raise ValueError(f"data set {name!r} batch_size={c.batch_size} must be a multiple of the "
                             f"{process_count} processes")
        seed = mixture.derive_seed(self._config.seed, f"set {name}")
        stream = mixture.document_stream(c, tokenizer, seed, self._config.threads, process_index, process_count)
        rows = packing.pack_dataset(stream, c.seq_len, c.images_per_row, c.packing_bins,
                                    mixture.derive_seed(seed, "rows") % 2**31)
        return rows.batch(c.batch_size // process_count, batch_fn=_Stack(c))

    def __next__(self) -> dict[str, Batch]:
        fields = dict(zip(self._names, next(self._iterator), strict=True))
        return {name: self._batch(name, f) for name, f in fields.items()}

    def _batch(self, name: str, fields: packing.Features) -> Batch:
        outcomes = self._count(name, fields.pop("info"))
        batch = Batch(**fields)
        self.counters[name]["tokens"] += int(np.count_nonzero(batch.segment_ids))
        self.counters[name]["images"] += int(np.count_nonzero(batch.image_segment_ids))
        if not batch.loss_weights.any():
            raise ValueError(f"data set {name!r}: a batch of {len(batch.tokens)} rows has no token with a loss weight "
                             f"above 0; its documents: {outcomes or 'none'}")
        return batch

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

    def get_state(self) -> bytes:
        """The position after the last batch given out, with the counters and the settings it is valid for."""
        state = dict(fingerprint=self._fingerprint, counters=self.counters, position=self._iterator.get_state())
        return json.dumps(state).encode()

    def set_state(self, state: bytes):
        """Goes to a position saved by `get_state`.

        Raises:
            ValueError: if `state` is not one, or was saved under settings that give other data; names them.
        """
        try:
            value = json.loads(state)
            saved, counters, position = value["fingerprint"], value["counters"], value["position"]
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"not the state of a Loader: {len(state)} bytes, {e!r}") from e
        now = json.loads(json.dumps(self._fingerprint))
        if changed := [k for k in sorted(saved.keys() | now.keys()) if saved.get(k) != now.get(k)]:
            lines = "; ".join(f"{k} was {saved.get(k)!r}, is {now.get(k)!r}" for k in changed)
            raise ValueError(f"the saved data position belongs to other settings: {lines}. Restore them, or start "
                             "the data anew without its saved state")
        self._iterator.set_state(position)
        self.counters = counters

    def close(self):
        """Ends worker processes and threads; the loader cannot be used afterwards."""
        self._iterator.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_):
        self.close()


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


def _fingerprint(config: LoaderConfig, tokenizer: str, process_index: int, process_count: int) -> dict[str, Any]:
    """All that decides which data comes when, flat and as JSON values. A folder may move, its files not change."""
    out = dict(seed=config.seed, workers=config.workers, tokenizer=tokenizer, process_index=process_index,
               process_count=process_count)
    for name, c in config.sets.items():
        values = dataclasses.asdict(c)
        del values["loss_weight"]
        values["sources"] = [(s.weight, [(os.path.basename(f), os.path.getsize(f)) for f in record_files(s.path)])
                             for s in c.sources]
        out |= _flatten(f"sets.{name}", values)
    return out


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flatten(f"{prefix}.{key}", item).items()}
