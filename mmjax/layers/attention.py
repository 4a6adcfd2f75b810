"""Multi-head attention over intervals of keys, and the key-value cache of generation."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask, Rotary, attention
from mmjax.kernels.decode import cached_attention
from mmjax.layers.linear import Linear
from mmjax.layers.norm import Norm
from mmjax.layers.params import param, scaled
from mmjax.layers.relative import Distances
from mmjax.parallel import shard


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer, and how many each row holds.

    Attributes:
        k, v: [L, B, S, K·H], heads side by side as `kernels.decode` reads them; keys are stored rotated.
        lengths: int32[B] tokens held per row; entries from there on are garbage that no mask reaches.
    """

    k: jax.Array
    v: jax.Array
    lengths: jax.Array

    def take(self, rows: jax.Array) -> "KVCache":
        return KVCache(self.k[:, rows], self.v[:, rows], self.lengths[rows])

    def positions(self, num_tokens: int) -> jax.Array:
        """int32[B, T'] the positions that the next T' tokens of each row take."""
        return self.lengths[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)

    def write(self, layer: jax.Array, k: jax.Array, v: jax.Array) -> "KVCache":
        """Puts [B, T', K, H] keys and values after each row's length; what does not fit is dropped."""
        rows = jnp.arange(k.shape[0])[:, None]
        columns = self.positions(k.shape[1])

        def put(store, new):
            new = new.reshape(*new.shape[:2], -1).astype(store.dtype)
            return store.at[layer, rows, columns].set(new, mode="drop")

        return self.replace(k=put(self.k, k), v=put(self.v, v))

    def read(self, layer: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of one layer."""
        return tuple(x[layer].reshape(*x.shape[1:3], -1, head_dim) for x in (self.k, self.v))


class Attention(nn.Module):
    """out = W_o · LN*(softmax(q kᵀ / sqrt(H)) v), with grouped queries and interval masks.

    Attributes:
        embed_dim: D, width of the queries' input and of the output.
        num_heads, num_kv_heads, head_dim: N, K (N a multiple of K) and H.
        kv_dim: width of the input of keys and values; D for self-attention.
        use_bias: biases on the four linear maps.
        sub_norm: whether LN* over the concatenated heads stands before W_o (Sub-LN, arXiv:2210.06423).
        norm_eps: its epsilon.
        scale: factor of the logits; None for 1 / sqrt(H).
        relative: whether logits have Transformer-XL's terms of distance (arXiv:1901.02860 section 3.3); `bias` must
            then be `Distances`.
        kernel_init: see `Linear`.
        gain: factor on the initial W_v and W_o.
        dtype: compute dtype.
        key_bias: whether the keys have a bias; as `use_bias` by default.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv_dim: int
    use_bias: bool = True
    sub_norm: bool = False
    norm_eps: float = 1e-5
    scale: float | None = None
    relative: bool = False
    kernel_init: Any = scaled
    gain: float = 1.0
    dtype: Any = jnp.float32
    key_bias: bool | None = None

    def setup(self):
        def linear(size_in, shape_out, names, gain, use_bias=self.use_bias):
            return Linear(size_in, shape_out, names, use_bias, self.kernel_init, gain, self.dtype)

        key_bias = self.use_bias if self.key_bias is None else self.key_bias
        heads, kv_heads = (self.num_heads, self.head_dim), (self.num_kv_heads, self.head_dim)
        self.q = linear((self.embed_dim,), heads, ("embed", "heads", "head_dim"), 1.0)
        self.k = linear((self.kv_dim,), kv_heads, ("embed", "kv_heads", "head_dim"), 1.0, key_bias)
        self.v = linear((self.kv_dim,), kv_heads, ("embed", "kv_heads", "head_dim"), self.gain)
        self.out = linear(heads, (self.embed_dim,), ("heads", "head_dim", "embed"), self.gain)
        if self.sub_norm:
            self.inner_norm = Norm(self.num_heads * self.head_dim, eps=self.norm_eps, dtype=self.dtype)
        if self.relative:
            self.distance = Linear((self.embed_dim,), heads, ("embed", "heads", "head_dim"), False, self.kernel_init,
                                   dtype=self.dtype)
            zeros, names = nn.initializers.zeros, ("heads", "head_dim")
            self.content_bias = param(self, "content_bias", zeros, heads, names)
            self.distance_bias = param(self, "distance_bias", zeros, heads, names)

    def project_kv(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float[B, S, kv_dim] -> keys and values dtype[B, S, K, H]."""
        return (shard(self.k(x), "batch", "seq", "act_heads", None),
                shard(self.v(x), "batch", "seq", "act_heads", None))

    def attend(self, x: jax.Array, k: jax.Array, v: jax.Array, mask: IntervalMask, rotary: Rotary | None = None,
               bias: jax.Array | Distances | None = None) -> jax.Array:
        """Attends from float[B, T, D] to given keys and values [B, S, K, H]: dtype[B, T, D]."""
        q, bias = self._queries(x, bias)
        q = shard(q, "batch", "seq", "act_heads", None)
        return self._finish(attention(q, k, v, mask=mask, rotary=rotary, bias=bias, scale=self.scale))

    def __call__(self, x: jax.Array, mask: IntervalMask, rotary: Rotary | None = None,
                 source: jax.Array | None = None, bias: jax.Array | Distances | None = None) -> jax.Array:
        """Self-attention, or cross-attention to `source` float[B, S, kv_dim]: dtype[B, T, D].

        `bias`, float[1 or B, N, T, S], is added to the logits.
        """
        return self.attend(x, *self.project_kv(x if source is None else source), mask, rotary, bias)

    def extend(self, x: jax.Array, mask: IntervalMask, rotary: Rotary | None, cache: KVCache, layer: jax.Array,
               bias: jax.Array | Distances | None = None) -> tuple[jax.Array, KVCache]:
        """Self-attention of T' new tokens [B, T', D] to all that the cache holds, themselves included."""
        (q, bias), (k, v) = self._queries(x, bias), self.project_kv(x)
        if rotary is not None:
            q, k = rotary.rotate_q(q), rotary.rotate_k(k)
        cache = cache.write(layer, k, v)
        return self._finish(self._read(q, mask, cache, layer, bias)), cache

    def attend_cached(self, x: jax.Array, mask: IntervalMask, cache: KVCache, layer: jax.Array) -> jax.Array:
        """Attends from T' new tokens [B, T', D] to what the cache holds, which stays as it is: dtype[B, T', D]."""
        q, _ = self._queries(x, None)
        return self._finish(self._read(q, mask, cache, layer))

    def _read(self, q: jax.Array, mask: IntervalMask, cache: KVCache, layer: jax.Array, bias: jax.Array | None = None
              ) -> jax.Array:
        """Attention of queries [B, T', N, H] to a layer of the cache."""
        if q.shape[1] == 1 and bias is None:        # the kernel of decoding takes no bias
            return cached_attention(q[:, 0], cache.k, cache.v, layer, mask=mask, scale=self.scale)[:, None]
        k, v = (store.astype(q.dtype) for store in cache.read(layer, self.head_dim))
        return attention(q, k, v, mask=mask, bias=bias, scale=self.scale)

    def _queries(self, x: jax.Array, bias: jax.Array | Distances | None) -> tuple[jax.Array, jax.Array | None]:
        """Queries of x, and the bias of the logits as an array."""
        q = self.q(x)
        if not self.relative:
            return q, bias
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        towards = bias.scores(q + self.distance_bias.astype(q.dtype), self.distance(bias.features))
        return q + self.content_bias.astype(q.dtype), scale * towards

    def _finish(self, heads: jax.Array) -> jax.Array:
        heads = shard(heads, "batch", "seq", "act_heads", None)
        if self.sub_norm:
            heads = self.inner_norm(heads.reshape(*heads.shape[:-2], -1)).reshape(heads.shape)
        return self.out(heads)
