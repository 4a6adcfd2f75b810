"""Decoder-only language model: Magneto/KOSMOS (Sub-LN, xPos), LLaMA, OPT, GPT-NeoX, MPT, Chinchilla, Mixtral."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.batch import Batch
from mmjax.kernels.attention import Rotary
from mmjax.kernels.attention import mask as masks
from mmjax.layers import (
    Block,
    BlockConfig,
    Embed,
    Every,
    Hook,
    KVCache,
    Linear,
    dropout,
    router_losses,
    run_layers,
    stack_params,
)
from mmjax.layers.relative import Distances, alibi, distances, sinusoids
from mmjax.losses import next_token_loss
from mmjax.parallel import shard

POSITIONS = ("learned", "rotary", "xpos", "alibi", "relative")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    Attributes:
        vocab_size: V.
        num_layers: blocks.
        block: the block; `sub_norm` and `init_gain` make it a Magneto decoder, `norm_place="parallel"` GPT-NeoX, `moe`
            a mixture of experts.
        moe_every: with `moe`, the layers from one with experts to the next; the others are dense. MM1 has 2 and 4.
        positions: "learned" (GPT, OPT), "rotary" (LLaMA, arXiv:2104.09864), "xpos" (KOSMOS-1, arXiv:2212.10554),
            "alibi" (MPT, arXiv:2108.12409) or "relative" (Gopher and Chinchilla, after Transformer-XL,
            arXiv:1901.02860). The last two give attention a bias of T x T numbers per head.
        max_positions: longest document; rows of a learned table, and twice the centre of the xPos scale.
        position_offset: rows of a learned table before that of the first token; OPT has 2.
        rotary_base: base of the rotary angles.
        rotary_layout: "split" (LLaMA) or "interleaved" (xPos).
        rotary_dim: leading features of each head that turn (GPT-NeoX turns a quarter); None for all.
        xpos_scale_base: tokens over which xPos decays by its smallest factor.
        tie_embeddings: whether the token table is the output head.
        scale_embedding: whether embeddings, of text and images, are multiplied by sqrt(D) (KOSMOS-1).
        embed_dropout: dropout rate on the embeddings.
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
    """

    vocab_size: int
    num_layers: int
    block: BlockConfig
    moe_every: int = 1
    positions: str = "rotary"
    max_positions: int = 2048
    position_offset: int = 0
    rotary_base: float = 10_000.0
    rotary_layout: str = "split"
    rotary_dim: int | None = None
    xpos_scale_base: float = 512.0
    tie_embeddings: bool = True
    scale_embedding: bool = False
    embed_dropout: float = 0.0
    remat: str = "full"

    def __post_init__(self):
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; choose from {', '.join(POSITIONS)}")
        if self.block.relative != (self.positions == "relative"):
            raise ValueError(f"positions={self.positions!r} with block.relative={self.block.relative}: the terms of "
                             "distance are parameters of the block; set both or neither")
        if not 1 <= self.moe_every <= (1 if self.block.moe is None else self.num_layers):
            raise ValueError(f"moe_every={self.moe_every} must be at least 1, at most num_layers={self.num_layers}, "
                             "and 1 without block.moe")

    @property
    def dense_block(self) -> BlockConfig:
        """The block of the layers in `blocks`: without experts if only every n-th layer has some."""
        return self.block if self.moe_every == 1 else dataclasses.replace(self.block, moe=None)

    @property
    def num_expert_blocks(self) -> int:
        """Layers of `expert_blocks`, apart from the others."""
        return 0 if self.moe_every == 1 else self.num_layers // self.moe_every


class Decoder(nn.Module):
    """Tokens or embeddings to next-token logits, in steps that a system may reach between."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        width, dtype = c.block.embed_dim, jnp.dtype(c.block.dtype)
        # With scaling by sqrt(D) the embeddings start at unit variance, as in torchscale.
        std = width**-0.5 if c.scale_embedding else 0.02
        self.token_embed = Embed(c.vocab_size, width, std=std, dtype=dtype)
        if c.positions == "learned":
            rows = c.max_positions + c.position_offset
            self.position_embed = Embed(rows, width, ("patch", "embed"), std=0.02, dtype=dtype)
        self.block = Block(c.dense_block, parent=None)
        example = (jax.ShapeDtypeStruct((1, 1, width), dtype), masks.all_keys(1, 1, 1), None, None, None, None,
                   self._bias(jnp.zeros((1, 1), jnp.int32), 1))
        self.blocks = stack_params(self, "blocks", self.block, c.num_layers - c.num_expert_blocks, *example)
        self.every = None
        if c.num_expert_blocks:
            expert_block = Block(c.block, parent=None)
            expert_blocks = stack_params(self, "expert_blocks", expert_block, c.num_expert_blocks, *example)
            self.every = Every(expert_block, expert_blocks, c.moe_every)
        self.final_norm = c.block.make_norm()
        if not c.tie_embeddings:
            self.head = Linear((width,), (c.vocab_size,), ("embed", "vocab"), use_bias=False, dtype=dtype,
                               out_dtype=jnp.float32)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> float[B, T, D] token embeddings, not yet scaled."""
        return self.token_embed(tokens)

    def run(self, x: jax.Array, segment_ids: jax.Array, positions: jax.Array, *, key: jax.Array | None = None,
            hook: Hook | None = None) -> jax.Array:
        """Next-token logits of packed rows of embeddings: float32[B, T, V]; arguments as for `features`."""
        return self._logits(self.features(x, segment_ids, positions, key=key, hook=hook))

    def loss(self, x: jax.Array, batch: Batch, *, key: jax.Array | None = None, hook: Hook | None = None
             ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`losses.token_cross_entropy` of the logits of `run`, which need not exist all at once.

        With experts the losses of their routers are added; the metric "loss" stays the cross-entropy.
        """
        x, statistics = self._features(x, batch.segment_ids, batch.positions, key, hook)
        if self.config.tie_embeddings:
            matrix, vocab_axis = self.token_embed.table, 0
        else:
            matrix, vocab_axis = self.head.variables["params"]["kernel"], 1
        loss, metrics = next_token_loss(x, matrix, batch.targets, batch.loss_weights, vocab_axis)
        if self.config.block.moe is None:
            return loss, metrics
        extra, more = router_losses(self.config.block.moe, statistics)
        return loss + extra, metrics | more

    def features(self, x: jax.Array, segment_ids: jax.Array, positions: jax.Array, *, key: jax.Array | None = None,
                 hook: Hook | None = None) -> jax.Array:
        """Runs packed rows of embeddings through the blocks and the final norm.

        Args:
            x: float[B, T, D] embeddings.
            segment_ids: int32[B, T] document of each token, 0 on padding; no token sees another document.
            positions: int32[B, T] position inside the document, below `max_positions`.
            key: dropout key, or None.
            hook: layers that run before every n-th block.

        Returns:
            dtype[B, T, D], to which the head is applied.
        """
        return self._features(x, segment_ids, positions, key, hook)[0]

    def _features(self, x, segment_ids, positions, key, hook) -> tuple[jax.Array, Any]:
        """`features`, and the statistics of experts."""
        key_embed, key_blocks = (None, None) if key is None else jax.random.split(key)
        x = dropout(self._place(x, positions), self.config.embed_dropout, key_embed)
        index = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        x, _, statistics = run_layers(
            self.block, self.blocks, x, masks.causal(segment_ids), rotary=self._rotary(positions),
            bias=self._bias(index, x.shape[1]), key=key_blocks, hook=hook, every=self.every,
            remat=self.config.remat)
        return self.final_norm(x), statistics

    def extend(self, x: jax.Array, cache: KVCache, num_new: jax.Array, hook: Hook | None = None
               ) -> tuple[jax.Array, KVCache]:
        """Appends embeddings to every row of a cache.

        Args:
            x: float[B, T', D] embeddings, right-padded.
            cache: what the rows hold so far.
            num_new: int32[B], at most T': how many of the new tokens are real.
            hook: as for `run`.

        Returns:
            float32[B, T', V] logits (garbage on padding) and the cache with lengths grown by `num_new`.
        """
        positions = cache.positions(x.shape[1])
        mask = masks.decode(cache.lengths, x.shape[1])
        x, cache, _ = run_layers(self.block, self.blocks, self._place(x, positions), mask,
                                 rotary=self._rotary(positions), bias=self._bias(positions, cache.k.shape[2]),
                                 cache=cache, hook=hook, every=self.every, remat="none")
        return self._logits(self.final_norm(x)), cache.replace(lengths=cache.lengths + num_new)

    def __call__(self, batch: Batch) -> jax.Array:
        """float32[B, T, V] logits of a batch of text."""
        return self.run(self.embed(batch.tokens), batch.segment_ids, batch.positions)

    def _place(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Scales embeddings and adds learned positions."""
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.block.embed_dim)
        if self.config.positions == "learned":
            x = x + self.position_embed(positions + self.config.position_offset)
        return x

    def _rotary(self, positions: jax.Array) -> Rotary | None:
        c = self.config
        if c.positions not in ("rotary", "xpos"):
            return None
        scale_base = c.xpos_scale_base if c.positions == "xpos" else None
        return Rotary(positions, positions, base=c.rotary_base, layout=c.rotary_layout, rotary_dim=c.rotary_dim,
                      xpos_scale_base=scale_base, xpos_center=c.max_positions // 2)

    def _bias(self, index: jax.Array, num_keys: int) -> jax.Array | Distances | None:
        """What attention reads of the positions of queries int32[1 or B, T] among `num_keys` keys."""
        c = self.config
        if c.positions == "alibi":
            return alibi(distances(index, num_keys), c.block.num_heads)
        if c.positions == "relative":
            return Distances(sinusoids(num_keys, c.block.embed_dim),
                             jnp.clip(distances(index, num_keys), 0, num_keys - 1))
        return None

    def _logits(self, x: jax.Array) -> jax.Array:
        logits = self.token_embed.attend(x) if self.config.tie_embeddings else self.head(x)
        return shard(logits, "batch", "seq", "act_vocab")


def empty_cache(config: DecoderConfig, batch_size: int, max_len: int) -> KVCache:
    """A cache with room for `batch_size` rows of `max_len` tokens, in the compute dtype.

    Raises:
        ValueError: if the rows are longer than the positions the model has.
    """
    if max_len > config.max_positions:
        raise ValueError(f"max_len={max_len} exceeds max_positions={config.max_positions} of the language model; "
                         "shorten the prompt or generate fewer tokens")
    _, kv_heads, head_dim = config.block.heads
    room = -(-max_len // 8) * 8     # else a TPU lays the cache out as its kernel cannot read it, and copies it
    shape = (config.num_layers, batch_size, room, kv_heads * head_dim)
    zeros = lambda: jnp.zeros(shape, config.block.dtype)  # noqa: E731
    return KVCache(zeros(), zeros(), jnp.zeros((batch_size,), jnp.int32))


def row_lengths(batch: Batch) -> jax.Array:
    """int32[B] tokens of each row of a batch that holds one right-padded document per row."""
    return (batch.segment_ids > 0).sum(axis=1).astype(jnp.int32)


def text_example() -> Batch:
    """A batch of one token and no image, for the shapes that initialisation needs."""
    one = jnp.ones((1, 1), jnp.int32)
    return Batch(one, one, one.astype(jnp.float32), one, one - 1, one - 2, one - 2,
                 jnp.zeros((1, 0, 1, 1, 1, 3), jnp.uint8), jnp.zeros((1, 0), jnp.int32))
