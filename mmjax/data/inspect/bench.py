"""How fast data comes, and what the time of a row goes into."""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from mmjax.data import images, packing
from mmjax.data.config import LoaderConfig
from mmjax.data.loader import Loader
from mmjax.data.pipeline import Stream
from mmjax.data.watch import Watch


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a loader gave in some seconds; tokens and images are those in use."""

    seconds: float
    batches: int
    rows: int
    tokens: int
    images: int

    def line(self) -> str:
        """The rates."""
        per = {name: getattr(self, name) / self.seconds for name in ("images", "tokens", "rows", "batches")}
        return ", ".join(f"{rate:,.1f} {name}/s" for name, rate in per.items())


@dataclasses.dataclass(frozen=True)
class Costs:
    """CPU seconds of the rows of a data set in one thread, by what they are for.

    Attributes:
        rows: how many.
        plan: drawing, reading, tokenising, checking headers and choosing what goes together.
        decode: images to pixels.
        lay: pixels and tokens into the arrays of a batch.
    """

    rows: int
    plan: float
    decode: float
    lay: float

    @property
    def not_decoding(self) -> float:
        """The share of the time that is not decoding."""
        return (self.plan + self.lay) / max(self.plan + self.decode + self.lay, 1e-12)

    def line(self) -> str:
        """Milliseconds a row, and the share."""
        each = {name: 1e3 * getattr(self, name) / max(self.rows, 1) for name in ("plan", "decode", "lay")}
        return (", ".join(f"{name} {ms:.3f} ms" for name, ms in each.items())
                + f" a row; not decoding: {self.not_decoding:.1%}")


def throughput(config: LoaderConfig, seconds: float, warm_up: int = 2) -> Speed:
    """Batches of a loader as fast as they come.

    Args:
        config: threads and workers included.
        seconds: to go on for, at least until one batch came.
        warm_up: batches that come before the clock starts, and drain what was made ahead.
    """
    with Loader(config) as loader:
        for _ in range(warm_up):
            next(loader)
        start, batches, rows, tokens, pictures = time.perf_counter(), 0, 0, 0, 0
        while not batches or time.perf_counter() - start < seconds:
            for batch in next(loader).values():
                rows += len(batch.tokens)
                tokens += int(np.count_nonzero(batch.segment_ids))
                pictures += int(np.count_nonzero(batch.image_segment_ids))
            batches += 1
        return Speed(time.perf_counter() - start, batches, rows, tokens, pictures)


def costs(config: LoaderConfig, rows: int) -> dict[str, Costs]:
    """What rows of every data set cost, one part after the other in this thread.

    Args:
        config: its threads and workers are not used.
        rows: of each data set, after the first, which fills the buffer.
    """
    sources = {name: [s.open() for s in c.sources] for name, c in config.sets.items()}
    stream = Stream(config, sources, config.make_tokenizer(), 0, 1, None, Watch(0))
    return {name: _costs_of(config, name, stream.planners[name], rows) for name in config.sets}


def _costs_of(config: LoaderConfig, name: str, planner: Iterator, rows: int) -> Costs:
    c, spent = config.sets[name], dict(plan=0.0, decode=0.0, lay=0.0)
    shape = (c.frames, c.image.size, c.image.size, 3)
    next(planner)
    for _ in range(rows):
        start = time.thread_time()
        row = next(planner)
        planned = time.thread_time()
        pixels = [_decode(item.encoded.visuals, c) for item in row.items]
        decoded = time.thread_time()
        batch = packing.empty_batch(1, c.seq_len, c.images_per_row, shape)
        packing.lay_row(batch, 0, [packing.to_features(item.encoded, p) for item, p in
                                   zip(row.items, pixels, strict=True) if p is not None])
        end = time.thread_time()
        for part, value in zip(spent, (planned - start, decoded - planned, end - decoded), strict=True):
            spent[part] += value
    return Costs(rows, **spent)


def _decode(visuals, config):
    try:
        return images.decode_visuals(visuals, config.image, config.frames)
    except images.ImageError:
        return None
