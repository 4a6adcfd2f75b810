"""From the tokens of a vision tower to one embedding per image: what contrastive towers end with."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import attention
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Attention, Linear, Mlp, Norm, param
from mmjax.parallel import shard

POOLS = ("class", "mean", "latent", "mean_query")


@dataclasses.dataclass(frozen=True)
class VisionHeadConfig:
    """How the tokens of an image become its embedding.

    Attributes:
        input_dim: D, width of the tokens.
        output_dim: C, width of the embedding; 0 for D without a projection.
        pool: "class", the first token (CLIP); "mean", of the patches (EVA-02, NFNet); "latent", a learned query reads
            all tokens, then a feed-forward network (SigLIP's MAP head); "mean_query", the mean of the tokens reads
            itself and them (CLIP's ResNets), and its output map is the projection.
        use_bias: bias of the projection.
        norm: layer norm after pooling.
        num_class_tokens: first tokens that are no patches, which "mean" leaves out.
        num_heads, mlp_dim, activation: of "latent"; `num_heads` of "mean_query", too.
        num_tokens: patches, for the position table of "mean_query".
        norm_eps: epsilon of the norms.
        dtype: compute dtype.
    """

    input_dim: int
    output_dim: int = 0
    pool: str = "class"
    use_bias: bool = False
    norm: bool = False
    num_class_tokens: int = 0
    num_heads: int = 0
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    num_tokens: int = 0
    norm_eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f"unknown pool {self.pool!r}; choose from {', '.join(POOLS)}")
        if self.pool in ("latent", "mean_query") and (not self.num_heads or self.input_dim % self.num_heads):
            raise ValueError(f"pool={self.pool!r} needs num_heads={self.num_heads} that divide "
                             f"input_dim={self.input_dim}")
        if self.pool == "latent" and not self.mlp_dim or self.pool == "mean_query" and not self.num_tokens:
            raise ValueError(f"pool={self.pool!r} needs {'mlp_dim' if self.pool == 'latent' else 'num_tokens'}")


class VisionHead(nn.Module):
    """Pools, normalises and projects."""

    config: VisionHeadConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """float[B, P, D] -> dtype[B, C]."""
        c = self.config
        dtype, tokens = jnp.dtype(c.dtype), shard(tokens, "batch", None, "act_embed")     # an image's tokens together
        if c.pool == "class":
            x = tokens[:, 0]
        elif c.pool == "mean":
            x = tokens[:, c.num_class_tokens:].astype(jnp.float32).mean(1)
        else:
            x = {"latent": LatentPool, "mean_query": MeanQueryPool}[c.pool](c, name="pool")(tokens)
        x = x.astype(dtype)
        if c.norm:
            x = Norm(c.input_dim, eps=c.norm_eps, dtype=dtype, name="norm")(x)
        if c.output_dim and c.pool != "mean_query":
            x = Linear((c.input_dim,), (c.output_dim,), ("embed", None), c.use_bias, dtype=dtype, name="proj")(x)
        return x


class LatentPool(nn.Module):
    """y = Attn(latent, tokens); y + Mlp(LN(y)). Source: the MAP head of SigLIP (arXiv:2303.15343)."""

    config: VisionHeadConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """float[B, P, D] -> dtype[B, D]."""
        c = self.config
        b, p, d = tokens.shape
        dtype = jnp.dtype(c.dtype)
        latent = param(self, "latent", nn.initializers.normal(d**-0.5), (d,), ("norm",)).astype(dtype)
        query = shard(jnp.broadcast_to(latent, (b, 1, d)), "batch", None, "act_embed")
        attend = Attention(d, c.num_heads, c.num_heads, d // c.num_heads, kv_dim=d, dtype=dtype, name="attention")
        y = attend(query, masks.all_keys(b, 1, p), source=tokens)
        h = Norm(d, eps=c.norm_eps, dtype=dtype, name="norm")(y)
        y = y + Mlp(d, c.mlp_dim, c.activation, dtype=dtype, name="mlp")(h)
        return shard(y, "batch", None, "act_embed")[:, 0]


class MeanQueryPool(nn.Module):
    """Attn(m, [m, tokens]) of the mean m, all with learned positions. Source: CLIP (arXiv:2103.00020) section 2.4."""

    config: VisionHeadConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """float[B, P, D] -> dtype[B, C]."""
        c = self.config
        b, p, d = tokens.shape
        dtype, heads = jnp.dtype(c.dtype), (c.num_heads, d // c.num_heads)
        table = param(self, "position_embed", nn.initializers.normal(d**-0.5), (c.num_tokens + 1, d),
                      ("patch", "embed"))
        mean = tokens.astype(jnp.float32).mean(1, keepdims=True)
        x = jnp.concatenate([mean.astype(dtype), tokens.astype(dtype)], axis=1) + table.astype(dtype)
        q, k, v = (Linear((d,), heads, ("embed", "heads", "head_dim"), dtype=dtype, name=name)(part)
                   for name, part in (("q", x[:, :1]), ("k", x), ("v", x)))
        y = shard(attention(q, k, v, mask=masks.all_keys(b, 1, p + 1)), "batch", None, "act_heads", None)[:, 0]
        return Linear(heads, (c.output_dim or d,), ("heads", "head_dim", None), dtype=dtype, name="out")(y)
