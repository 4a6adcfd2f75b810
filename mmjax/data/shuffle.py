"""Shuffling: the endless order in which one stream reads a source, from numbers alone.

The records of every epoch, or the blocks of a source that is read in blocks, stand in a new random order; a long one
is computed place by place and never held in memory. The streams take them in turn, so together they read each record
of an epoch once.
"""

import zlib
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle

from mmjax.data.sources import DocumentSource

WINDOW = 4                              # blocks whose records are shuffled among each other
_ROUNDS = 4                             # of the block cipher behind a long permutation; as Grain shuffles
_SHORT = 1 << 16                        # numbers; fewer are permuted at once, for the cipher takes ever longer then


class Record(NamedTuple):
    """A record of a source, in the epoch-th pass over it."""

    epoch: int
    index: int


def derive_seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for every purpose."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


class RecordOrder:
    """Any record at any time. The position is the number of records that the stream has taken.

    Args:
        count: records of the source.
        seed: of the order.
        stream, streams: which of the streams that share the source.
    """

    def __init__(self, count: int, seed: int, stream: int = 0, streams: int = 1):
        self._permutation = _Permutation(count, seed)
        self._stream, self._streams, self.position = stream, streams, 0

    def peek(self) -> Record:
        """The next record."""
        return self._permutation(self._stream + self._streams * self.position)

    def advance(self) -> None:
        """Takes the next record."""
        self.position += 1


class BlockOrder:
    """Block after block, for sources whose records are cheap to read together; records mix within a few blocks.

    The position is that of RecordOrder's kind, [windows, records of the next window].

    Args:
        ends: int64[k] ends of the blocks, in records.
        seed, stream, streams: see RecordOrder.
    """

    def __init__(self, ends: np.ndarray, seed: int, stream: int = 0, streams: int = 1):
        self._ends = [0, *map(int, ends)]
        self._permutation = _Permutation(len(ends), seed)
        self._seed, self._stream, self._streams = seed, stream, streams
        self.position = [0, 0]

    @property
    def position(self) -> list[int]:
        return [self._number, self._next]

    @position.setter
    def position(self, value: list[int]) -> None:
        self._number, self._next = value
        self._window = self._read_window()

    def peek(self) -> Record:
        return self._window[self._next]

    def advance(self) -> None:
        self._next += 1
        if self._next == len(self._window):
            self.position = [self._number + 1, 0]

    def _read_window(self) -> list[Record]:
        first = self._number * WINDOW
        blocks = [self._permutation(self._stream + self._streams * (first + i)) for i in range(WINDOW)]
        records = [Record(b.epoch, i) for b in blocks for i in range(self._ends[b.index], self._ends[b.index + 1])]
        rng = np.random.default_rng([self._seed, self._stream, self._number])
        return [records[i] for i in rng.permutation(len(records))]


class _Permutation:
    """The endless sequence of `count` numbers, permuted anew in every epoch."""

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._epoch, self._epoch_seed, self._numbers = -1, 0, np.empty(0, np.int64)

    def __call__(self, place: int) -> Record:
        epoch, k = divmod(place, self._count)
        if epoch != self._epoch:
            self._epoch, self._epoch_seed = epoch, derive_seed(self._seed, f"epoch {epoch}")
            if self._count <= _SHORT:
                self._numbers = np.random.default_rng(self._epoch_seed).permutation(self._count)
        if self._count <= _SHORT:
            return Record(epoch, int(self._numbers[k]))
        return Record(epoch, _permute(k, self._count, self._epoch_seed))


def _permute(k: int, count: int, seed: int) -> int:
    """The number in place k of a permutation of `count` numbers."""
    highest = count - 1
    if highest & (highest - 1) == 0:    # Grain 0.2.18 then gives one number twice and one never; one more cures it
        highest += 1
    while (k := index_shuffle(k, max_index=highest, seed=seed, rounds=_ROUNDS)) >= count:
        pass                            # a cycle that leaves the range comes back into it
    return k


Order = RecordOrder | BlockOrder


def make_order(source: DocumentSource, seed: int, stream: int = 0, streams: int = 1) -> Order:
    """The order of a source: by blocks if it has some, else any record at any time."""
    ends = source.blocks()
    if ends is None:
        return RecordOrder(len(source), seed, stream, streams)
    return BlockOrder(ends, seed, stream, streams)
