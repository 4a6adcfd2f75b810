"""Token embeddings, whose table may serve as the output head, and learned position tables."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers.params import param
from mmjax.parallel import layout, shard


class Embed(nn.Module):
    """A table of embeddings [num_rows, dim].

    Attributes:
        num_rows: vocabulary size or number of positions.
        dim: width D.
        names: logical axis names of the table.
        std: standard deviation of the initial N(0, std²).
        dtype: dtype of the result.
    """

    num_rows: int
    dim: int
    names: tuple[str, str] = ("vocab", "embed")
    std: float = 0.02
    dtype: Any = jnp.float32

    def setup(self):
        self.table = param(self, "table", nn.initializers.normal(self.std), (self.num_rows, self.dim), self.names)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """int32[...] -> dtype[..., D]; NaN for an id outside the table."""
        table = shard(self.table, self.names[0], None)      # rows whole: else XLA gathers all ids on every device
        where = layout((*ids.shape, self.dim), "batch", "seq", "act_embed") if ids.ndim == 2 else None
        rows = jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan, out_sharding=where)
        return rows.astype(self.dtype)          # in this order, gradients add up in float32

    def attend(self, x: jax.Array) -> jax.Array:
        """Logits against every row, from factors in `dtype`: float[..., D] -> float32[..., num_rows]."""
        return jnp.einsum("...d,vd->...v", x.astype(self.dtype), self.table.astype(self.dtype),
                          preferred_element_type=jnp.float32)
