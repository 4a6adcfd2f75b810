"""Encoder-decoder language model in the T5 form: RMSNorm, no biases, positions as a learned bias of the attention.

The encoder reads a text (or visual embeddings before it) in both directions; the decoder predicts another from its own
past and, by cross-attention, from the encoder's features. FlanT5 is this with a gated GELU and an untied head.
"""

import dataclasses
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention import mask as masks
from mmjax.layers import (
    Attention,
    Block,
    BlockConfig,
    Embed,
    KVCache,
    Linear,
    dropout,
    run_stack,
    scaled,
    stack_params,
    xavier,
)
from mmjax.layers.relative import buckets, distances
from mmjax.losses import next_token_loss
from mmjax.parallel import shard

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """A T5 (arXiv:1910.10683).

    Attributes:
        vocab_size: V.
        num_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        block: of both; T5 has `norm="rms"`, `norm_eps=1e-6`, no biases, `attention_scale=1.0`, and "relu" (v1.0) or
            "geglu_tanh" (v1.1, FlanT5).
        num_buckets: of distances; each has one number per head, shared by the layers of a stack.
        max_distance: tokens from which on distances share the last bucket.
        tie_embeddings: whether the token table is the output head.
        scale_tied_logits: whether features are multiplied by D^-1/2 before a tied head (v1.0).
        embed_dropout: dropout rate on the embeddings.
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
    """

    vocab_size: int
    num_layers: int
    num_decoder_layers: int
    block: BlockConfig
    num_buckets: int = 32
    max_distance: int = 128
    tie_embeddings: bool = False
    scale_tied_logits: bool = False
    embed_dropout: float = 0.0
    remat: str = "full"

    def __post_init__(self):
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(f"num_buckets={self.num_buckets} must be a multiple of 4, and max_distance="
                             f"{self.max_distance} larger than half of it")
        if self.scale_tied_logits and not self.tie_embeddings:
            raise ValueError("scale_tied_logits=True needs tie_embeddings=True: an untied head learns its own scale")


@flax.struct.dataclass
class Cache:
    """What generation keeps.

    Attributes:
        own: keys and values of the decoder's tokens.
        k, v: dtype[L, B, S, K, H] keys and values of the encoder's features, for cross-attention.
        num_keys: int32[B] features of each row that are no padding.
    """

    own: KVCache
    k: jax.Array
    v: jax.Array
    num_keys: jax.Array

    @property
    def lengths(self) -> jax.Array:
        """int32[B] decoder tokens held per row."""
        return self.own.lengths

    def take(self, rows: jax.Array) -> "Cache":
        return Cache(self.own.take(rows), self.k[:, rows], self.v[:, rows], self.num_keys[rows])


class Source(NamedTuple):
    """What cross-attention reads.

    Attributes:
        mask: features that each token of the decoder sees.
        features: dtype[B, S, D], or None if `kv` is given.
        kv: their keys and values in all layers, dtype[L, B, S, K, H] each.
    """

    mask: IntervalMask
    features: jax.Array | None = None
    kv: tuple[jax.Array, jax.Array] | None = None


class DecoderBlock(Block):
    """A block with x <- x + XAttn(LN(x), features) between its two branches; for pre-norm blocks."""

    def setup(self):
        super().setup()
        c = self.config
        self.cross_norm = c.make_norm()
        self.cross = Attention(
            c.embed_dim, *c.heads, kv_dim=c.embed_dim, use_bias=c.use_bias, scale=c.attention_scale,
            kernel_init=scaled if c.init_gain is None else xavier, gain=c.init_gain or 1.0, dtype=jnp.dtype(c.dtype))

    def __call__(self, x: jax.Array, mask: IntervalMask, source: Source) -> jax.Array:
        return self.run(x, mask, source=source)[0]

    def run(self, x, mask, rotary=None, key=None, cache=None, layer=None, bias=None, *, source: Source):
        """As `Block.run`, with what cross-attention reads."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x, cache = self.attend(x, mask, rotary, keys[0], cache, layer, bias)
        k, v = self.cross.project_kv(source.features) if source.kv is None else (kv[layer] for kv in source.kv)
        h = self.cross.attend(self.cross_norm(x), k, v, source.mask)
        x = shard(x + dropout(h, self.config.dropout, keys[1]), "batch", "seq", "act_embed")
        x, statistics = self.feed(x, x, mask.stop > mask.start, keys[2], drop=cache is None)
        return x, cache, statistics

    def keys_and_values(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """dtype[B, S, D] -> what the cross-attention of this layer reads, [B, S, K, H] each."""
        return self.cross.project_kv(features)


class EncoderDecoder(nn.Module):
    """Embeddings of one text, or of images, to next-token logits of another."""

    config: EncoderDecoderConfig

    def setup(self):
        c = self.config
        width, dtype = c.block.embed_dim, jnp.dtype(c.block.dtype)
        one, everything = jax.ShapeDtypeStruct((1, 1, width), dtype), masks.all_keys(1, 1, 1)
        # A tied table without the scale on its logits must itself be small.
        self.token_embed = Embed(c.vocab_size, width, std=1.0 if c.scale_tied_logits else 0.02, dtype=dtype)
        self.encoder_distance = Embed(c.num_buckets, c.block.num_heads, ("patch", None), std=0.02)
        self.decoder_distance = Embed(c.num_buckets, c.block.num_heads, ("patch", None), std=0.02)
        self.block = Block(c.block, parent=None)
        self.decoder_block = DecoderBlock(c.block, parent=None)
        self.encoder = stack_params(self, "encoder", self.block, c.num_layers, one, everything)
        self.decoder = stack_params(self, "decoder", self.decoder_block, c.num_decoder_layers, one, everything,
                                    Source(everything, one))
        self.encoder_norm, self.decoder_norm = c.block.make_norm(), c.block.make_norm()
        if not c.tie_embeddings:
            self.head = Linear((width,), (c.vocab_size,), ("embed", "vocab"), use_bias=False, dtype=dtype,
                               out_dtype=jnp.float32)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> dtype[B, T, D]: token embeddings for either side."""
        return self.token_embed(tokens)

    def encode(self, x: jax.Array, segment_ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Features of embeddings.

        Args:
            x: float[B, S, D].
            segment_ids: int32[B, S] document of each token, 0 on padding; no token sees another document.
            key: dropout key, or None.

        Returns:
            dtype[B, S, D].
        """
        c, s = self.config, x.shape[1]
        key_embed, key_blocks = (None, None) if key is None else jax.random.split(key)
        bias = self._bias(self.encoder_distance, jnp.arange(s, dtype=jnp.int32)[None], s, bidirectional=True)
        x, _ = run_stack(self.block, self.encoder, dropout(x, c.embed_dropout, key_embed), masks.full(segment_ids),
                         bias=bias, key=key_blocks, remat=c.remat)
        return self.encoder_norm(x)

    def run(self, y: jax.Array, segment_ids: jax.Array, features: jax.Array, source_ids: jax.Array,
            key: jax.Array | None = None) -> jax.Array:
        """float32[B, T, V] next-token logits; arguments as for `decode_features`."""
        return self._logits(self.decode_features(y, segment_ids, features, source_ids, key))

    def loss(self, y: jax.Array, segment_ids: jax.Array, features: jax.Array, source_ids: jax.Array,
             targets: jax.Array, weights: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        """`losses.token_cross_entropy` of the logits of `run`, which need not exist all at once."""
        x = self._scale(self.decode_features(y, segment_ids, features, source_ids, key))
        if self.config.tie_embeddings:
            return next_token_loss(x, self.token_embed.table, targets, weights, 0)
        return next_token_loss(x, self.head.variables["params"]["kernel"], targets, weights, 1)

    def decode_features(self, y: jax.Array, segment_ids: jax.Array, features: jax.Array, source_ids: jax.Array,
                        key: jax.Array | None = None) -> jax.Array:
        """Runs the decoder over whole texts.

        Args:
            y: float[B, T, D] embeddings of the tokens before each target: T5 starts with its padding token.
            segment_ids: int32[B, T] document of each, 0 on padding.
            features: dtype[B, S, D] from `encode`.
            source_ids: int32[B, S] their documents, as given to `encode`: ascending, then 0 on padding.
            key: dropout key, or None.

        Returns:
            dtype[B, T, D], to which the head is applied.
        """
        c, t = self.config, y.shape[1]
        key_embed, key_blocks = (None, None) if key is None else jax.random.split(key)
        bias = self._bias(self.decoder_distance, jnp.arange(t, dtype=jnp.int32)[None], t, bidirectional=False)
        source = Source(same_document(segment_ids, source_ids), features)
        y, _ = run_stack(self.decoder_block, self.decoder, dropout(y, c.embed_dropout, key_embed),
                         masks.causal(segment_ids), bias=bias, key=key_blocks, remat=c.remat, more={"source": source})
        return self.decoder_norm(y)

    def start(self, features: jax.Array, num_keys: jax.Array, max_len: int) -> Cache:
        """An empty cache for generation.

        Args:
            features: dtype[B, S, D] from `encode`, one document per row.
            num_keys: int32[B] how many of them are no padding.
            max_len: decoder tokens that a row may hold.
        """
        c, b = self.config, len(features)
        _, kv_heads, head_dim = c.block.heads
        shape = (c.num_decoder_layers, b, -(-max_len // 8) * 8, kv_heads * head_dim)
        k, v = jax.lax.map(lambda p: self.decoder_block.apply({"params": p}, features, method="keys_and_values"),
                           self.decoder)
        own = KVCache(*(jnp.zeros(shape, features.dtype) for _ in range(2)), jnp.zeros((b,), jnp.int32))
        return Cache(own, k, v, num_keys)

    def extend(self, y: jax.Array, cache: Cache, num_new: jax.Array) -> tuple[jax.Array, Cache]:
        """Appends embeddings to every row of a cache.

        Args:
            y: float[B, T', D] embeddings, right-padded.
            cache: what the rows hold so far.
            num_new: int32[B], at most T': how many of the new tokens are real.

        Returns:
            float32[B, T', V] logits (garbage on padding) and the cache with lengths grown by `num_new`.
        """
        (b, t, _), own = y.shape, cache.own
        bias = self._bias(self.decoder_distance, own.positions(t), own.k.shape[2], bidirectional=False)
        source = Source(masks.all_keys(b, t, cache.num_keys), kv=(cache.k, cache.v))
        y, own = run_stack(self.decoder_block, self.decoder, y, masks.decode(own.lengths, t), bias=bias, cache=own,
                           remat="none", more={"source": source})
        own = own.replace(lengths=own.lengths + num_new)
        return self._logits(self.decoder_norm(y)), cache.replace(own=own)

    def __call__(self, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        """float32[B, T, V] logits of unpadded texts int32[B, T] given others int32[B, S]."""
        ones = jnp.ones_like(tokens)
        features = self.encode(self.embed(tokens), ones)
        return self.run(self.embed(targets), jnp.ones_like(targets), features, ones)

    def _bias(self, table: Embed, index: jax.Array, num_keys: int, bidirectional: bool) -> jax.Array:
        """float32[1 or B, N, T, S] for queries at int32[1 or B, T] among `num_keys` keys."""
        c = self.config
        bucket = buckets(distances(index, num_keys), c.num_buckets, c.max_distance, bidirectional)
        return jnp.moveaxis(jnp.take(table.table, bucket, axis=0), -1, 1)

    def _scale(self, y: jax.Array) -> jax.Array:
        return y * self.config.block.embed_dim**-0.5 if self.config.scale_tied_logits else y

    def _logits(self, y: jax.Array) -> jax.Array:
        y = self._scale(y)
        logits = self.token_embed.attend(y) if self.config.tie_embeddings else self.head(y)
        return shard(logits, "batch", "seq", "act_vocab")


def same_document(segment_ids: jax.Array, source_ids: jax.Array) -> IntervalMask:
    """Cross-attention of packed documents: a token sees the features of its own document.

    Args:
        segment_ids: int32[B, T] document of each token, 0 on padding, which sees nothing.
        source_ids: int32[B, S] document of each feature: ascending, then 0 on padding.
    """
    ordered = jnp.where(source_ids > 0, source_ids, jnp.iinfo(jnp.int32).max)
    start, stop = (jax.vmap(lambda keys, ids, side=side: jnp.searchsorted(keys, ids, side=side))(ordered, segment_ids)
                   for side in ("left", "right"))
    return IntervalMask(start.astype(jnp.int32), jnp.where(segment_ids > 0, stop, start).astype(jnp.int32))
