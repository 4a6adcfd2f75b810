"""Planning: which documents make which row, decided one after another and long before an image is decoded.

A plan is the same whoever decodes its rows, and when. Its position is a place in the order of draws and the documents
that were drawn but wait for a row that they fill.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmjax.data.encode import Item
from mmjax.data.filling import Filler
from mmjax.data.mixture import Draw, Mixture
from mmjax.data.threads import Threads, in_order

_BUFFER_BYTES = 256 << 20               # of encoded images that wait for a row
_PATIENCE = 4                           # times as many draws as the buffer holds; what is there then makes a row


class Row(NamedTuple):
    """The documents of a row in order, and the draws that were left out since the row before."""

    items: list[Item]
    skipped: list[Item]


class Planner(Iterator[Row]):
    """Rows without end of one data set in one stream.

    Args:
        make_mixture: gives the mixture at its beginning; two are in use, of which one draws ahead.
        encode: what becomes of a draw.
        seq_len, images_per_row: T and I.
        buffer: documents to choose from for a row.
        threads: that encode ahead; None encodes when it is time.
    """

    def __init__(self, make_mixture: Callable[[], Mixture], encode: Callable[[Draw], Item], seq_len: int,
                 images_per_row: int, buffer: int, threads: Threads | None = None):
        self._make_mixture, self._encode, self._threads = make_mixture, encode, threads
        self._shape, self._buffer = (seq_len, images_per_row), buffer
        self._start(make_mixture().get_state())

    def __next__(self) -> Row:
        skipped = self._fill()
        items = [self._items.pop(draw) for draw in self._filler.take_row()]
        self._bytes -= sum(item.num_bytes for item in items)
        return Row(items, skipped)

    def get_state(self) -> dict[str, Any]:
        """The position after the last row, as JSON values."""
        return dict(mixture=self._mixture.get_state(), buffer=self._filler.waiting())

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; reads the documents of the buffer again."""
        self._start(state["mixture"])
        draws = [Draw(*draw) for draw in state["buffer"]]
        for item in in_order(self._encode, iter(draws), self._threads):
            if item.encoded is None:
                raise ValueError(f"a document that was read before, source {item.draw.source} record "
                                 f"{item.draw.index}, cannot be read any more: {item.outcome}: {item.detail}")
            self._add(item)

    def _start(self, position: dict[str, Any]) -> None:
        self._mixture, ahead = self._make_mixture(), self._make_mixture()
        for mixture in (self._mixture, ahead):
            mixture.set_state(position)
        self._encoded = in_order(self._encode, ahead, self._threads)
        self._filler, self._items, self._bytes = Filler(*self._shape), {}, 0

    def _fill(self) -> list[Item]:
        """Draws until there is enough to choose from; returns what cannot be used."""
        skipped = []
        for _ in range(_PATIENCE * self._buffer):
            if len(self._filler) >= self._buffer or self._bytes >= _BUFFER_BYTES:
                break
            item = next(self._encoded)
            self._mixture.follow(item.draw)
            if item.encoded is None:
                skipped.append(item)
            else:
                self._add(item)
        return skipped

    def _add(self, item: Item) -> None:
        self._filler.add(item.draw, len(item.encoded.tokens), len(item.encoded.visuals))
        self._items[item.draw] = item
        self._bytes += item.num_bytes
