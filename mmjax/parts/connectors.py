"""Connectors from vision features to embeddings that stand in the token sequence."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.batch import Batch
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Attention, Linear, param
from mmjax.parallel import layout, reshape, shard


@dataclasses.dataclass(frozen=True)
class AttentivePoolConfig:
    """KOSMOS-1's "resampler as attentive pooling" (arXiv:2302.14045, section 2.1).

    Attributes:
        input_dim: width of the vision features.
        embed_dim: D, width of the language model.
        num_latents: R, visual tokens per image.
        num_heads: attention heads; head_dim is D / num_heads.
        dtype: compute dtype.
    """

    input_dim: int
    embed_dim: int
    num_latents: int = 64
    num_heads: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")


class AttentivePool(nn.Module):
    """Learned latents attend once to [projected features, latents]: no norm, no residual, no feed-forward.

    Source: the xconnector of the authors' code for KOSMOS-2.
    """

    config: AttentivePoolConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """float[B, S, input_dim] -> float[B, R, D]."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = Linear((c.input_dim,), (c.embed_dim,), ("patch", "embed"), dtype=dtype, name="input_proj")(features)
        latents = param(self, "latents", nn.initializers.normal(1.0), (c.num_latents, c.embed_dim),
                        ("latents", "embed"))
        z = jnp.broadcast_to(latents.astype(dtype), (x.shape[0], *latents.shape))
        x, z = shard(x, "batch", None, "act_embed"), shard(z, "batch", None, "act_embed")
        source = jnp.concatenate([x, z], axis=1)
        attention = Attention(c.embed_dim, c.num_heads, c.num_heads, c.embed_dim // c.num_heads, kv_dim=c.embed_dim,
                              dtype=dtype, name="attention")
        return attention(z, masks.all_keys(x.shape[0], c.num_latents, source.shape[1]), source=source)


def insert_visual(embeddings: jax.Array, visual: jax.Array, batch: Batch) -> jax.Array:
    """Puts visual tokens into the token sequence.

    Args:
        embeddings: float[B, T, D] text embeddings.
        visual: float[B, I, R, D] visual tokens of the row's items.
        batch: its `image_index` and `slot_index` say which visual token stands where.

    Returns:
        float[B, T, D]; positions with `slot_index` -1 are as before.
    """
    b, i, r, d = visual.shape
    if i == 0:
        return embeddings
    flat = reshape(visual.astype(embeddings.dtype), (b, i * r, d), "batch", None, None)
    where = shard(jnp.clip(batch.image_index * r + batch.slot_index, 0, i * r - 1), "batch", "seq")
    place = layout(embeddings.shape, "batch", "seq", "act_embed")
    chosen = flat.at[jnp.arange(b)[:, None], where].get(out_sharding=place)
    return jnp.where((batch.slot_index >= 0)[..., None], chosen, embeddings)
