"""What a system offers: training, decoding, evaluation and the commands are written against this alone."""

from typing import Any, Protocol

import jax

from mmjax.batch import Batch
from mmjax.parts.flops import Cost, Trains, Work

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


class Cache(Protocol):
    """The state of generation. A pytree; `lengths` counts the tokens each row holds."""

    lengths: jax.Array

    def take(self, rows: jax.Array) -> "Cache":
        """The cache of rows `rows` int32[B'] in that order; beams and candidates repeat rows."""


class Model(Protocol):
    """A system as pure functions of its parameters, a nested dict of arrays."""

    config: Any

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters in float32."""

    @property
    def axes(self) -> Any:
        """The tree of `init` with a tuple of logical axis names in place of each array."""

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """float32[B, T, V] next-token logits under teacher forcing; `key=None` switches dropout off."""

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        """The scalar training loss and scalar metrics, among them `loss`, `accuracy` and `tokens` (the weight sum)."""

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        """float32[N, C] pooled features of uint8[N, H, W, 3] images, for retrieval of similar examples."""

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, Cache]:
        """Reads one right-padded document per row: float32[B, T, V] logits and a cache of `max_len` tokens a row."""

    def decode(self, params: Params, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Appends int32[B, T'] tokens after each row's own length: float32[B, T', V] logits and the longer cache."""

    def flops(self, work: Work, trains: Trains) -> dict[str, Cost]:
        """Operations that a training step needs, part by part; `trains` says what of the parameters does."""
