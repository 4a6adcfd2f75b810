"""A decoder-only language model alone: what Flamingo freezes, trained or loaded by itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.layers import KVCache, axes_of, init_params, unbox
from mmjax.models.interface import Metrics, Params
from mmjax.parts import flops
from mmjax.parts.decoder import Decoder, DecoderConfig, empty_cache, row_lengths, text_example


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The system `language`.

    Attributes:
        lm: the decoder.
    """

    lm: DecoderConfig


class Language:
    """Parameters {"lm"}; see `models.interface.Model` for the methods."""

    def __init__(self, config: LanguageConfig):
        self.config = config
        self.lm = Decoder(config.lm, parent=None)

    def _init(self, key: jax.Array) -> Any:
        return {"lm": init_params(self.lm, key, text_example())}

    def init(self, key: jax.Array) -> Params:
        return unbox(self._init(key))

    @property
    def axes(self) -> Any:
        return axes_of(jax.eval_shape(self._init, jax.random.key(0)))

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.run(lm.embed(batch.tokens), batch.segment_ids, batch.positions, key=key)

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.loss(lm.embed(batch.tokens), batch, key=key)

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        raise ValueError("system 'language' has no vision tower; choose examples at random, not by image similarity")

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, KVCache]:
        lm = self.lm.bind({"params": params["lm"]})
        cache = empty_cache(self.config.lm, batch.tokens.shape[0], max_len)
        return lm.extend(lm.embed(batch.tokens), cache, row_lengths(batch))

    def decode(self, params: Params, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.extend(lm.embed(tokens), cache, jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32))

    def flops(self, work: flops.Work, trains: flops.Trains) -> dict[str, flops.Cost]:
        return {"lm": flops.decoder(self.config.lm, work, trains("lm"), to_input=False)}
