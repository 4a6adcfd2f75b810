"""Perceiver resampler: any number of visual features in, a fixed number of visual tokens out."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import mask as masks
from mmjax.layers import Attention, Linear, Mlp, Norm, param, stack_params
from mmjax.parallel import shard


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """A resampler as in Flamingo (arXiv:2204.14198, appendix A.1.1).

    Attributes:
        input_dim: width of the vision tower's features.
        embed_dim: D, width of latents and output; features of another width are projected to it first.
        num_latents: visual tokens per image or video.
        num_layers: pairs of attention and feed-forward.
        num_heads: attention heads N.
        head_dim: H; N · H need not be D.
        mlp_dim: inner width of the feed-forward.
        activation: a key of `layers.ACTIVATIONS`.
        num_frames: learned time embeddings; longer videos interpolate them linearly (B.1.2). 0 for none.
        norm_eps: epsilon of the layer norms.
        dtype: compute dtype.
    """

    input_dim: int
    embed_dim: int = 1536
    num_latents: int = 64
    num_layers: int = 6
    num_heads: int = 16
    head_dim: int = 96
    mlp_dim: int = 6144
    activation: str = "squared_relu"
    num_frames: int = 8
    norm_eps: float = 1e-5
    dtype: str = "float32"


class PerceiverLayer(nn.Module):
    """z <- z + Attn(q = LN(z), kv = [LN(x), LN(z)]); z <- z + Mlp(LN(z))."""

    config: PerceiverConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        norm = lambda: Norm(c.embed_dim, eps=c.norm_eps, dtype=dtype)  # noqa: E731
        self.feature_norm, self.latent_norm, self.mlp_norm = norm(), norm(), norm()
        self.attention = Attention(c.embed_dim, c.num_heads, c.num_heads, c.head_dim, kv_dim=c.embed_dim,
                                   use_bias=False, dtype=dtype)
        self.mlp = Mlp(c.embed_dim, c.mlp_dim, c.activation, use_bias=False, dtype=dtype)

    def __call__(self, z: jax.Array, x: jax.Array) -> jax.Array:
        """Latents float[B, L, D] and features float[B, S, D] -> float[B, L, D]."""
        normed = self.latent_norm(z)
        # Two sequences split over devices cannot be put together without moving both; the keys stay whole.
        both = (shard(part, "batch", None, "act_embed") for part in (self.feature_norm(x), normed))
        source = jnp.concatenate(list(both), axis=1)
        z = z + self.attention(normed, masks.all_keys(z.shape[0], z.shape[1], source.shape[1]), source=source)
        return z + self.mlp(self.mlp_norm(z))


class PerceiverResampler(nn.Module):
    """Latents pass `num_layers` layers over the features of all frames, then a final norm."""

    config: PerceiverConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if c.input_dim != c.embed_dim:
            self.input_proj = Linear((c.input_dim,), (c.embed_dim,), ("patch", "embed"), use_bias=False, dtype=dtype)
        if c.num_frames:
            self.time_embed = param(self, "time_embed", nn.initializers.normal(0.02), (c.num_frames, c.embed_dim),
                                    ("patch", "embed"))
        self.latents = param(self, "latents", nn.initializers.normal(1.0), (c.num_latents, c.embed_dim),
                             ("latents", "embed"))
        self.layer = PerceiverLayer(c, parent=None)
        tokens = jax.ShapeDtypeStruct((1, 1, c.embed_dim), dtype)
        self.layers = stack_params(self, "layers", self.layer, c.num_layers, tokens, tokens)
        self.final_norm = Norm(c.embed_dim, eps=c.norm_eps, dtype=dtype)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Resamples the frames of each visual item.

        Args:
            features: float[B, F, P, input_dim], F frames of P patches.

        Returns:
            float[B, num_latents, D], however large F and P are.
        """
        c = self.config
        x = self.input_proj(features) if c.input_dim != c.embed_dim else features
        if c.num_frames:
            x = x + interpolate_frames(self.time_embed, x.shape[1]).astype(x.dtype)[:, None]
        x = x.reshape(x.shape[0], -1, c.embed_dim)
        z = jnp.broadcast_to(self.latents.astype(x.dtype), (x.shape[0], *self.latents.shape))
        z = shard(z, "batch", "seq", "act_embed")
        layer = jax.checkpoint(lambda z, params: (self.layer.apply({"params": params}, z, x), None), prevent_cse=False)
        z, _ = jax.lax.scan(layer, z, self.layers)
        return self.final_norm(z)


def interpolate_frames(embeddings: jax.Array, num_frames: int) -> jax.Array:
    """Time embeddings float[F0, D] for `num_frames` frames: the first ones, or all of them stretched linearly.

    Source: Flamingo (arXiv:2204.14198) B.1.2: trained with 8 frames, evaluated with 30.
    """
    known = embeddings.shape[0]
    if num_frames <= known:
        return embeddings[:num_frames]
    at = jnp.linspace(0.0, known - 1.0, num_frames)
    low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, known - 2) if known > 1 else jnp.zeros(num_frames, jnp.int32)
    high = jnp.minimum(low + 1, known - 1)
    share = (at - low)[:, None]
    return embeddings[low] * (1 - share) + embeddings[high] * share
