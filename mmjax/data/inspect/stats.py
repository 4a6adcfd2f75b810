"""What rows are made of: how full they are, how long documents are, how many images they have, what was left out."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.batch import Batch

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


@dataclasses.dataclass
class SetStats:
    """Of the rows of one data set.

    Attributes:
        seq_len, images_per_row: T and I.
        tokens, images, learned, documents: of each row: positions and image slots in use, targets with a loss weight,
            and documents.
        lengths: tokens of each document.
        document_images: images of each document.
    """

    seq_len: int
    images_per_row: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    images: list[int] = dataclasses.field(default_factory=list)
    learned: list[int] = dataclasses.field(default_factory=list)
    documents: list[int] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    document_images: list[int] = dataclasses.field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Counts the rows of a batch."""
        rows = zip(batch.segment_ids, batch.image_segment_ids, batch.loss_weights, strict=True)
        for segments, image_segments, weights in rows:
            lengths = np.bincount(segments)[1:]
            self.tokens.append(int(lengths.sum()))
            self.images.append(int(np.count_nonzero(image_segments)))
            self.learned.append(int(np.count_nonzero(weights)))
            self.documents.append(len(lengths))
            self.lengths += lengths.tolist()
            self.document_images += np.bincount(image_segments, minlength=len(lengths) + 1)[1:].tolist()

    def report(self) -> str:
        """The figures as lines of text."""
        if not self.tokens:
            return "no rows"
        rows, tokens = len(self.tokens), sum(self.tokens)
        lines = [f"rows             {rows}, of {self.seq_len} tokens and {self.images_per_row} images",
                 f"tokens in use    {tokens / rows / self.seq_len:.2%}, the emptiest row "
                 f"{min(self.tokens) / self.seq_len:.2%}"]
        if self.images_per_row:
            lines.append(f"images in use    {sum(self.images) / rows / self.images_per_row:.2%}, of a row "
                         f"{min(self.images)} to {max(self.images)}")
        lines += [f"learned          {sum(self.learned) / tokens if tokens else 0:.1%} of the tokens in use",
                  f"documents a row  {np.mean(self.documents):.2f}, {min(self.documents)} to {max(self.documents)}",
                  f"document tokens  {_quantiles(self.lengths)}"]
        if self.images_per_row:
            counts = np.bincount(self.document_images)
            shares = "  ".join(f"{n}: {c / counts.sum():.1%}" for n, c in enumerate(counts) if c)
            lines.append(f"document images  {shares}")
        return "\n".join(lines)

    def values(self) -> dict[str, Any]:
        """The figures as JSON values."""
        rows = max(len(self.tokens), 1)
        return dict(rows=len(self.tokens), seq_len=self.seq_len, images_per_row=self.images_per_row,
                    token_fill=sum(self.tokens) / rows / self.seq_len, learned=sum(self.learned),
                    image_fill=sum(self.images) / rows / self.images_per_row if self.images_per_row else None,
                    documents=len(self.lengths), tokens=sum(self.tokens), images=sum(self.images),
                    length_quantiles={str(q): float(np.quantile(self.lengths or [0], q)) for q in QUANTILES},
                    images_of_documents=np.bincount(self.document_images or [0]).tolist())


def collect(batches: Iterable[Mapping[str, Batch]]) -> dict[str, SetStats]:
    """The statistics of every data set over some batches."""
    found: dict[str, SetStats] = {}
    for step in batches:
        for name, batch in step.items():
            if name not in found:
                found[name] = SetStats(batch.tokens.shape[1], batch.images.shape[1])
            found[name].add(batch)
    return found


def sources_table(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each source of a data set from its counters, and one for each reason that records were left out."""
    width = max(map(len, sources), default=0)
    total = max(sum(c["tokens"] for c in sources.values()), 1)
    lines = []
    for name, c in sources.items():
        lines.append(f"source {name.ljust(width)}  {c['records']} records, {c['tokens']} tokens "
                     f"({c['tokens'] / total:.1%}), {c['images']} images, {c['truncated']} cut to size")
        lines += [f"       {'':{width}}  left out {n}: {reason}" for reason, n in sorted(c["skipped"].items())]
    return "\n".join(lines)


def _quantiles(values: Sequence[int]) -> str:
    found = np.quantile(values, QUANTILES) if len(values) else np.zeros(len(QUANTILES))
    names = [{0: "least", 0.5: "median", 1: "most"}.get(q, f"{q:.0%}") for q in QUANTILES]
    return ", ".join(f"{name} {value:.0f}" for name, value in zip(names, found, strict=True))
