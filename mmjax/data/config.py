"""Configs of the data floor: plain values only, so that they print as JSON and compare field by field."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.data import packing, templates
from mmjax.data.images import ImageSpec
from mmjax.data.sources import DocumentSource, check_source, open_source
from mmjax.data.tokenizer import SPECIALS, Tokenizer, byte_tokenizer, load_tokenizer


def _free(default: Any) -> Any:
    """A field that may change while a run is interrupted; see training/structure.py."""
    return dataclasses.field(default=default, metadata={"free": True})


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one kind and their share of the mixture.

    Attributes:
        path: a file or folder, of whatever the format says.
        weight: documents in proportion to those of other sources; may change when a run continues.
        format: array_record, or another key of `sources.FORMATS`.
        options: of the format.
    """

    path: str
    weight: float = _free(1.0)
    format: str = "array_record"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(f"source {self.path!r} weight={self.weight} must be above 0; leave the source out instead")
        check_source(self.format, dict(self.options))

    def open(self) -> DocumentSource:
        """Opens it; see `sources.open_source`."""
        return open_source(self.format, self.path, **self.options)


@dataclasses.dataclass(frozen=True)
class DataSetConfig:
    """One data set of a training step: a mixture of sources, packed into rows of one shape.

    Attributes:
        sources: the mixture; a source with weight 2 gives twice the documents of one with weight 1.
        batch_size: B, rows per step over all processes.
        seq_len: T, tokens per row.
        images_per_row: I; 0 for text.
        frames: F per visual item; 1 unless the set has videos.
        image: how pixels are made.
        template: a key of `templates.TEMPLATES`.
        template_options: fields of that template, see `templates`.
        max_tokens: tokens of one document; 0 means seq_len.
        max_images: visual items of one document; 0 means images_per_row.
        too_long: what becomes of a document with more: truncate, window (a random stretch) or drop.
        packing_buffer: documents to choose from for a row, encoded; 256 of them leave less than one token in a thousand
            free. A stream never holds more than its share of the records, or 16.
        loss_weight: factor of this set's loss in the step.
    """

    sources: tuple[Source, ...]
    batch_size: int
    seq_len: int
    images_per_row: int = 0
    frames: int = 1
    image: ImageSpec = ImageSpec()
    template: str = "language"
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_tokens: int = 0
    max_images: int = 0
    too_long: str = "truncate"
    packing_buffer: int = 256
    loss_weight: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise ValueError("a data set needs at least one source")
        for field, least in dict(batch_size=1, seq_len=2, images_per_row=0, frames=1, max_tokens=0, max_images=0,
                                 packing_buffer=1, loss_weight=0).items():
            if not getattr(self, field) >= least:
                raise ValueError(f"data set {field}={getattr(self, field)} must be at least {least}")
        for field, row in (("max_tokens", "seq_len"), ("max_images", "images_per_row")):
            if getattr(self, field) > getattr(self, row):
                raise ValueError(f"data set {field}={getattr(self, field)} is more than {row}={getattr(self, row)}")
        if self.too_long not in packing.POLICIES:
            raise ValueError(f"data set too_long={self.too_long!r} is unknown; known: {', '.join(packing.POLICIES)}")
        if (blocks := self.make_template().video_frames) not in (1, self.frames):
            raise ValueError(f"data set template {self.template!r} has video_frames={blocks}; it must be 1 or "
                             f"frames={self.frames}")

    def make_template(self) -> templates.Template:
        """The template with its options."""
        return templates.make_template(self.template, **self.template_options)


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a training step reads.

    Attributes:
        sets: the data sets of a step by name.
        seed: of shuffling, augmentation and packing order.
        streams: independent streams that the rows of a batch come from, to be shared out among the processes of a run;
            0 for one each. It is part of the order of the data: with 8, the batches are the same in 1, 2, 4 and 8
            processes, and a run can continue in another number of them.
        workers: processes that decode images; 0 decodes in `threads`. Not part of the order.
        threads: that read and tokenise documents, per stream and data set, and decode images if there are no workers;
            0 reads in one thread. Not part of the order.
        max_skipped: the share of records that may be damaged, of the first 1,000 or of all there were if those are
            more; beyond it the run stops.
        watchdog: seconds that a record may take to read or a row to decode; 0 for any time.
        tokenizer: folder or file of a tokenizer.json; "" is the byte tokenizer.
        specials: special tokens the tokenizer must have; see `load_tokenizer`.
    """

    sets: Mapping[str, DataSetConfig]
    seed: int = 0
    streams: int = _free(0)             # a run in more processes may name them
    workers: int = _free(0)
    threads: int = _free(2)
    max_skipped: float = _free(0.01)
    watchdog: float = _free(120.0)
    tokenizer: str = ""
    specials: tuple[str, ...] = SPECIALS

    def __post_init__(self):
        object.__setattr__(self, "specials", tuple(self.specials))
        if not self.sets:
            raise ValueError("a loader needs at least one data set")
        if not 0 <= self.seed < 2**32 or min(self.streams, self.workers, self.threads) < 0:
            raise ValueError(f"loader seed={self.seed}, streams={self.streams}, workers={self.workers}, "
                             f"threads={self.threads} must be at least 0, and seed below 2**32")
        if not 0 <= self.max_skipped <= 1 or not self.watchdog >= 0:
            raise ValueError(f"loader max_skipped={self.max_skipped} must be a share from 0 to 1, and "
                             f"watchdog={self.watchdog} a number of seconds or 0")

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer these settings name."""
        if self.tokenizer:
            return load_tokenizer(self.tokenizer, self.specials)
        return byte_tokenizer(self.specials)
