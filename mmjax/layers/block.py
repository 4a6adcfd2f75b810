"""The residual block of every transformer here: attention and feed-forward, with the norm where the model has it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.layers.attention import Attention, KVCache
from mmjax.layers.linear import dropout
from mmjax.layers.mlp import ACTIVATIONS, Mlp
from mmjax.layers.moe import Moe, MoeConfig, Statistics
from mmjax.layers.norm import Norm
from mmjax.layers.params import scaled, xavier
from mmjax.layers.relative import Distances
from mmjax.parallel import shard

NORM_PLACES = ("pre", "post", "branch", "parallel")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block.

    Attributes:
        embed_dim: D, width of the residual stream.
        num_heads: N query heads.
        mlp_dim: F, inner width of the feed-forward network.
        num_kv_heads: K key heads, N by default (multi-head attention).
        head_dim: H, D / N by default.
        activation: a key of `layers.mlp.ACTIVATIONS`.
        norm: "layer" or "rms".
        norm_eps: its epsilon.
        use_bias: biases on linear maps (and layer norms).
        sub_norm: Sub-LN, a second norm inside attention and feed-forward (Magneto, arXiv:2210.06423).
        init_gain: gain of W_v, W_o, W_1, W_2 under Xavier normal; None for LeCun normal everywhere.
        dropout: rate on both residual branches.
        dtype: compute dtype, "float32" or "bfloat16".
        norm_place: x + f(LN(x)) for "pre", LN(x + f(x)) for "post" (the first Transformer, BERT), x + LN(f(x)) for
            "branch" (EVA-02-CLIP-E); x + f(LN(x)) + g(LN'(x)) for "parallel" (GPT-NeoX, arXiv:2204.06745).
        norm_bias: biases on layer norms; as `use_bias` by default.
        key_bias: a bias on the keys, which no softmax sees; as `use_bias` by default (EVA has none).
        mlp_sub_norm: whether the second norm stands in the feed-forward network; as `sub_norm` by default (EVA-02-B
            and L have it there alone).
        attention_scale: factor of the attention logits; None for 1 / sqrt(H), 1 for T5.
        relative: whether the attention reads distances as Transformer-XL's; see `Attention`.
        moe: experts in place of the one feed-forward network, each `mlp_dim` wide.
    """

    embed_dim: int
    num_heads: int
    mlp_dim: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    activation: str = "gelu"
    norm: str = "layer"
    norm_eps: float = 1e-5
    use_bias: bool = True
    sub_norm: bool = False
    init_gain: float | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    norm_place: str = "pre"
    norm_bias: bool | None = None
    key_bias: bool | None = None
    mlp_sub_norm: bool | None = None
    attention_scale: float | None = None
    relative: bool = False
    moe: MoeConfig | None = None

    def __post_init__(self):
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}, "
                             "or give head_dim")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; choose from {', '.join(ACTIVATIONS)}")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"unknown norm {self.norm!r}; choose 'layer' or 'rms'")
        if self.norm_place not in NORM_PLACES:
            raise ValueError(f"unknown norm_place {self.norm_place!r}; choose from {', '.join(NORM_PLACES)}")
        if self.moe is not None and (self.sub_norm or self.mlp_sub_norm):
            raise ValueError("experts have no second norm; set sub_norm=False, or moe=None")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(num_heads, num_kv_heads, head_dim) with the defaults filled in."""
        return self.num_heads, self.num_kv_heads or self.num_heads, self.head_dim or self.embed_dim // self.num_heads
    def make_norm(self) -> Norm:
        """A norm over the residual stream as the block has them, for the ends of a stack."""
        use_bias = self.use_bias if self.norm_bias is None else self.norm_bias
        return Norm(self.embed_dim, self.norm, self.norm_eps, use_bias, jnp.dtype(self.dtype))


class Block(nn.Module):
    """x <- x + Attn(LN(x)); x <- x + Mlp(LN(x)), each branch with LN* inside under Sub-LN; see `norm_place`."""

    config: BlockConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        kernel_init: Any = scaled if c.init_gain is None else xavier
        shared = dict(use_bias=c.use_bias, norm_eps=c.norm_eps, kernel_init=kernel_init, gain=c.init_gain or 1.0,
                      dtype=dtype)
        self.attention_norm = c.make_norm()
        self.attention = Attention(c.embed_dim, *c.heads, kv_dim=c.embed_dim, sub_norm=c.sub_norm, key_bias=c.key_bias,
                                   scale=c.attention_scale, relative=c.relative, **shared)
        self.mlp_norm = c.make_norm()
        if c.moe is not None:
            self.moe = Moe(c.moe, c.embed_dim, c.mlp_dim, c.activation, kernel_init, c.init_gain or 1.0, dtype)
            return
        mlp_sub_norm = c.sub_norm if c.mlp_sub_norm is None else c.mlp_sub_norm
        self.mlp = Mlp(c.embed_dim, c.mlp_dim, c.activation, sub_norm=mlp_sub_norm, **shared)

    def __call__(self, x: jax.Array, mask: IntervalMask, rotary: Rotary | None = None,
                 key: jax.Array | None = None, cache: KVCache | None = None, layer: jax.Array | None = None,
                 bias: jax.Array | Distances | None = None) -> tuple[jax.Array, KVCache | None]:
        """float[B, T, D] -> float[B, T, D] and the cache, grown by the T tokens where one is given."""
        return self.run(x, mask, rotary, key, cache, layer, bias)[:2]

    def run(self, x: jax.Array, mask: IntervalMask, rotary: Rotary | None = None, key: jax.Array | None = None,
            cache: KVCache | None = None, layer: jax.Array | None = None,
            bias: jax.Array | Distances | None = None) -> tuple[jax.Array, KVCache | None, Statistics]:
        """`__call__`, and the statistics of the experts: none for a dense block."""
        keys = (None, None) if key is None else jax.random.split(key)
        is_cached = cache is not None
        y, cache = self.attend(x, mask, rotary, keys[0], cache, layer, bias)
        source = x if self.config.norm_place == "parallel" else y
        y, statistics = self.feed(y, source, mask.stop > mask.start, keys[1], drop=not is_cached)
        return y, cache, statistics

    def attend(self, x, mask, rotary, key, cache, layer, bias) -> tuple[jax.Array, KVCache | None]:
        """The first branch, added to the stream; arguments as for `run`."""
        h = self._before(self.attention_norm, x)
        if cache is None:
            h = self.attention(h, mask, rotary, bias=bias)
        else:
            h, cache = self.attention.extend(h, mask, rotary, cache, layer, bias)
        return self._add(self.attention_norm, x, h, key), cache

    def feed(self, x: jax.Array, source: jax.Array, real: jax.Array, key: jax.Array | None, drop: bool
             ) -> tuple[jax.Array, Statistics]:
        """The second branch, which reads `source`, added to the stream x; `real` and `drop` as for `Moe`."""
        h = self._before(self.mlp_norm, source)
        h, statistics = (self.mlp(h), {}) if self.config.moe is None else self.moe(h, real, drop)
        return self._add(self.mlp_norm, x, h, key), statistics

    def _before(self, norm: Norm, x: jax.Array) -> jax.Array:
        """What a branch takes from the stream."""
        return norm(x) if self.config.norm_place in ("pre", "parallel") else x

    def _add(self, norm: Norm, x: jax.Array, h: jax.Array, key: jax.Array | None) -> jax.Array:
        """The stream with what a branch gives."""
        place = self.config.norm_place
        x = x + dropout(norm(h) if place == "branch" else h, self.config.dropout, key)
        return shard(norm(x) if place == "post" else x, "batch", "seq", "act_embed")
