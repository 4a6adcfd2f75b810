"""Filling rows: which of the documents at hand go together, so that rows of two budgets are as good as full.

A row begins with the oldest documents, as many as fit, and ends with the one or two others that have exactly the
length that is left; if there are none, the last old one gives way. So nothing waits longer than the buffer has
documents, and the buffer stays as mixed as what comes in. The lengths that there are, for every number of images, are
the bits of a whole number: the mirrored number, shifted by the room, meets another in all pairs that fill the room.
"""

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

_LEFT_FREE = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)      # tokens that an ending may leave free, tried in turn
_GIVE_WAY = 8                                           # old documents that may give way to a better ending


class _Size(NamedTuple):
    tokens: int
    images: int


class Filler:
    """The documents at hand in the order they came.

    Args:
        seq_len: T, tokens of a row.
        images_per_row: I.
    """

    def __init__(self, seq_len: int, images_per_row: int):
        self._seq_len, self._images_per_row = seq_len, images_per_row
        self._sizes: dict[Hashable, _Size] = {}                 # of all documents, oldest first
        self._queues: dict[_Size, deque[Hashable]] = {}         # documents of one size, oldest first
        self._lengths = [0] * (images_per_row + 1)              # bit n: there is one of n tokens with that many images
        self._mirrored = [0] * (images_per_row + 1)             # bit seq_len - n: likewise

    def __len__(self) -> int:
        return len(self._sizes)

    def waiting(self) -> tuple[Hashable, ...]:
        """The documents, oldest first. Added in this order to an empty Filler they give this one again."""
        return tuple(self._sizes)

    def add(self, key: Hashable, tokens: int, images: int) -> None:
        """Adds a document.

        Raises:
            ValueError: if it has not 1 to seq_len tokens and 0 to images_per_row images, or is there already.
        """
        if not 1 <= tokens <= self._seq_len or not 0 <= images <= self._images_per_row or key in self._sizes:
            raise ValueError(f"document {key!r} of {tokens} tokens and {images} images: a row has {self._seq_len} and "
                             f"{self._images_per_row}, and a document comes once")
        size = self._sizes[key] = _Size(tokens, images)
        self._queue(size).append(key)

    def take_row(self) -> list[Hashable]:
        """Removes the documents of one row and returns them in order; there are none if none are at hand."""
        row, tokens, images = [], self._seq_len, self._images_per_row
        for key, size in self._sizes.items():
            if size.tokens > tokens or size.images > images:
                break
            row.append(key)
            tokens, images = tokens - size.tokens, images - size.images
        for key in row:
            self._drop(self._sizes[key])                        # the oldest of all is the first of its size
        kept, ending = self._best_ending(row, tokens, images)
        for key in reversed(row[kept:]):
            self._queue(self._sizes[key]).appendleft(key)
        row = row[:kept] + [self._drop(size) for size in ending]
        while size := self._largest(*self._room(row)):
            row.append(self._drop(size))
        for key in row:
            del self._sizes[key]
        return row

    def _room(self, row: list[Hashable]) -> tuple[int, int]:
        sizes = [self._sizes[key] for key in row]
        return (self._seq_len - sum(s.tokens for s in sizes), self._images_per_row - sum(s.images for s in sizes))

    def _largest(self, tokens: int, images: int) -> _Size | None:
        """The size with most images, then tokens, that fits; where images are short, they fill the rows."""
        for i in range(images, -1, -1):
            if fitting := self._lengths[i] & (2 << tokens) - 1:
                return _Size(fitting.bit_length() - 1, i)
        return None

    def _best_ending(self, row: list[Hashable], tokens: int, images: int) -> tuple[int, list[_Size]]:
        """How many of the row's old documents stay, and the sizes that follow them. `tokens`, `images`: its room."""
        best, free, kept = [], tokens, len(row)
        for stay in range(len(row), max(0, len(row) - _GIVE_WAY - 1), -1):
            if stay < len(row):
                size = self._sizes[row[stay]]
                tokens, images = tokens + size.tokens, images + size.images
            ending, left = self._ending(tokens, images, free)
            if ending:
                best, free, kept = ending, left, stay
            if not free:
                break
        return kept, best

    def _ending(self, tokens: int, images: int, free: int) -> tuple[list[_Size], int]:
        """Sizes of one or two documents that leave less than `free` of the room, and what they leave."""
        for left in _LEFT_FREE:
            if left >= min(free, tokens):
                break
            if ending := self._single(tokens - left, images) or self._pair(tokens - left, images):
                return ending, left
        return [], free

    def _single(self, tokens: int, images: int) -> list[_Size]:
        return next(([_Size(tokens, i)] for i in range(images, -1, -1) if self._lengths[i] >> tokens & 1), [])

    def _pair(self, tokens: int, images: int) -> list[_Size]:
        """Two sizes that have `tokens` together, and as many of `images` as can be."""
        shift = self._seq_len - tokens
        for both in range(images, -1, -1):
            for i in range(both // 2 + 1):
                found = self._lengths[i] & self._mirrored[both - i] >> shift
                while found:
                    first = _Size(found.bit_length() - 1, i)
                    second = _Size(tokens - first.tokens, both - i)
                    if first != second or len(self._queues[first]) > 1:
                        return [first, second]
                    found ^= 1 << first.tokens
        return []

    def _queue(self, size: _Size) -> deque[Hashable]:
        """The queue of a size, to which the caller adds at once."""
        if size not in self._queues:
            self._queues[size] = deque()
            self._flip(size)
        return self._queues[size]

    def _drop(self, size: _Size) -> Hashable:
        queue = self._queues[size]
        key = queue.popleft()
        if not queue:
            del self._queues[size]
            self._flip(size)
        return key

    def _flip(self, size: _Size) -> None:
        self._lengths[size.images] ^= 1 << size.tokens
        self._mirrored[size.images] ^= 1 << self._seq_len - size.tokens
