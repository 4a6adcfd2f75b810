"""Any system with low-rank adapters beside some of its kernels."""

from typing import Any

import jax

from mmjax.batch import Batch
from mmjax.layers.low_rank import Choose, add_adapters, add_axes, scale_adapters
from mmjax.models.interface import Cache, Metrics, Model, Params
from mmjax.parts.flops import Cost, Trains, Work


class Adapted:
    """A model whose chosen kernels have adapters among the parameters; see `interface.Model` for the methods.

    Args:
        model: the system.
        choose: which kernels have one.
    """

    def __init__(self, model: Model, choose: Choose):
        self.model, self.choose, self.config = model, choose, model.config

    def init(self, key: jax.Array) -> Params:
        return add_adapters(self.model.init(key), self.model.axes, self.choose, jax.random.fold_in(key, 1))

    @property
    def axes(self) -> Any:
        return add_axes(self.model.axes, self.choose)

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        return self.model.logits(scale_adapters(params, self.choose), batch, key)

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        return self.model.loss(scale_adapters(params, self.choose), batch, key)

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        return self.model.image_features(scale_adapters(params, self.choose), images)

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, Cache]:
        return self.model.prefill(scale_adapters(params, self.choose), batch, max_len)

    def decode(self, params: Params, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return self.model.decode(scale_adapters(params, self.choose), tokens, cache)

    def flops(self, work: Work, trains: Trains) -> dict[str, Cost]:
        return self.model.flops(work, trains)       # a part whose adapters train counts as one that trains
