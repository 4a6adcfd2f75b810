"""The grids of the attention benchmark: what each row computes, as two vectors of key intervals, and its inputs."""

import itertools
from typing import NamedTuple

import numpy as np

from mmjax.kernels.attention import Rotary
from mmjax.kernels.attention import mask as masks


class Row(NamedTuple):
    """One computation.

    Attributes:
        name: system and part.
        kind: "causal", "packed" (causal in documents), "full", "prefix" or "images" (keys of one image a query).
        batch, num_queries, num_keys, num_heads, num_kv_heads, head_dim: B, T, S, N, K, H at paper size.
        parts: lengths of the packed documents, the prefix of each row (one number), or images of a row (one number).
        rotary: None, "split", "interleaved" or "xpos" (interleaved, scale base 512); positions count in documents.
        keep_batch: `scaled` leaves the batch as it is.
    """

    name: str
    kind: str
    batch: int
    num_queries: int
    num_keys: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    parts: tuple[int, ...] = ()
    rotary: str | None = None
    keep_batch: bool = False

    def scaled(self, scale: float) -> "Row":
        """Fewer rows and heads, the same lengths and masks."""
        heads = max(round(self.num_kv_heads * scale), min(2, self.num_kv_heads))
        group = self.num_heads // self.num_kv_heads
        batch = self.batch if self.keep_batch else max(round(self.batch * scale), 1)
        return self._replace(batch=batch, num_kv_heads=heads, num_heads=heads * group)

    def segments(self) -> np.ndarray:
        """int32[B, T] number of the document of each token; the rows of a batch have them in different orders."""
        if self.kind != "packed":
            return np.ones((self.batch, self.num_queries), np.int32)
        orders = itertools.islice(itertools.cycle(itertools.permutations(self.parts)), self.batch)
        return np.stack([np.repeat(np.arange(1, len(order) + 1), order) for order in orders]).astype(np.int32)

    def positions(self) -> np.ndarray:
        """int32[B, T] from 0 in each document."""
        return np.arange(self.num_queries, dtype=np.int32) - np.asarray(masks.full(self.segments()).start)

    def mask(self) -> masks.IntervalMask:
        """start and stop, int32[B, T] each."""
        index = np.broadcast_to(np.arange(self.num_queries), (self.batch, self.num_queries)).astype(np.int32)
        if self.kind == "full":
            return masks.IntervalMask(0 * index, 0 * index + self.num_keys)
        if self.kind == "images":  # the first tokens of a document stand before its first image
            (images,) = self.parts
            which = np.where(index < 16, -1, index * images // self.num_queries)
            return masks.per_image(which, self.num_keys // images)
        if self.kind == "prefix":
            return masks.prefix(self.segments(), *self.parts)
        return masks.causal(self.segments())

    def turning(self) -> Rotary | None:
        if self.rotary is None:
            return None
        layout = "split" if self.rotary == "split" else "interleaved"
        positions = self.positions()
        return Rotary(positions, positions, layout=layout, xpos_scale_base=512.0 if self.rotary == "xpos" else None)

    def visible_pairs(self) -> int:
        """Query-key pairs of the whole batch, for one head."""
        return int(sum(np.maximum(np.asarray(stop, np.int64) - start, 0).sum() for start, stop in [self.mask()]))

    def flops(self, backward: bool) -> int:
        """Two products forward, five more backward, over visible pairs only."""
        return (14 if backward else 4) * self.visible_pairs() * self.num_heads * self.head_dim

    def inputs(self) -> tuple[np.ndarray, ...]:
        """float32 q, k, v and the cotangent of the output, normal."""
        rng = np.random.default_rng(0)
        q = (self.batch, self.num_queries, self.num_heads, self.head_dim)
        k = (self.batch, self.num_keys, self.num_kv_heads, self.head_dim)
        return tuple(rng.standard_normal(shape, np.float32) for shape in (q, k, k, q))


def _self(name, kind, batch, length, heads, head_dim, kv_heads=None, **rest) -> Row:
    return Row(name, kind, batch, length, length, heads, kv_heads or heads, head_dim, **rest)


DOCUMENTS = 700, 300, 600, 448
# Sizes from the papers and the authors' code; "ours" where none is published.
SYSTEMS = (
    _self("kosmos1 decoder", "packed", 8, 2048, 32, 64, parts=DOCUMENTS, rotary="xpos"),
    Row("flamingo-3b cross, 5 images", "images", 8, 2048, 320, 16, 16, 128, (5,)),
    Row("flamingo-80b cross, 5 images", "images", 8, 2048, 320, 64, 64, 128, (5,)),
    Row("flamingo-80b cross, 30 frames", "images", 4, 2048, 1920, 64, 64, 128, (30,)),
    Row("flamingo resampler, 30 frames", "full", 16, 64, 3064, 16, 16, 96),
    _self("clip L/14@336", "full", 64, 577, 16, 64),
    _self("eva g/14 (blip2, minigpt4)", "full", 64, 257, 16, 88),
    _self("eva E/14 (emu2)", "full", 32, 1025, 16, 112),
    Row("blip2 q-former cross", "full", 128, 32, 257, 12, 12, 64),
    _self("blip2 q-former text", "prefix", 128, 64, 12, 64, parts=(32,)),
    _self("aim-3b", "prefix", 64, 256, 24, 128, parts=(96,)),
    _self("minigpt4 llama-13b", "causal", 32, 256, 40, 128, rotary="split"),
    _self("mm1-30b (ours)", "packed", 2, 4096, 56, 128, parts=tuple(2 * n for n in DOCUMENTS), rotary="split"),
    _self("mm1-30b, 8 kv heads (ours)", "causal", 2, 4096, 56, 128, 8, rotary="split"),
    _self("emu2 llama-33b", "causal", 4, 2048, 52, 128, rotary="split"),
)


def _lengths(head_dim: int) -> tuple[Row, ...]:
    """16,384 tokens and 2,048 features at every length: dense causal, and four equal documents."""
    found = []
    for length, parts in itertools.product((512, 1024, 2048, 4096, 8192, 16384), ((), (4,))):
        kind = "packed" if parts else "causal"
        found.append(_self(f"{kind} T={length} H={head_dim}", kind, 16384 // length, length, 2048 // head_dim, head_dim,
                           parts=(length // 4,) * 4 if parts else (), keep_batch=True))
    return tuple(found)


GRIDS = {"systems": SYSTEMS, "lengths": _lengths(64), "lengths128": _lengths(128)}
