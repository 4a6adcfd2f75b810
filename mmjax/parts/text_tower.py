"""Encoders of text: the towers of CLIP and SigLIP, and BERT."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import mask as masks
from mmjax.layers import Block, BlockConfig, Embed, Linear, dropout, run_stack, stack_params

POOLS = ("largest_id", "eos", "last", "first", "mean")


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """A transformer over whole texts.

    Attributes:
        vocab_size: V.
        max_positions: rows of the position table, the longest text.
        num_layers: blocks.
        block: the block; `norm_place="post"` and `norm_eps=1e-12` make it BERT's.
        causal: whether a token sees only what stands before it (CLIP).
        pool: whose feature stands for the text: that of the token with the largest id (OpenAI's CLIP, whose end token
            is the last of the vocabulary), of the first `eos_id`, of the last position, padding or not (SigLIP), of the
            first (BERT), or the mean over the text.
        eos_id: id of the end token, for `pool="eos"`.
        output_dim: width of the pooled output's linear map; None for none.
        output_bias: whether that map has a bias.
        output_tanh: whether a tanh follows (BERT's pooler).
        num_token_types: rows of a table of token types added to the embeddings; 0 for none.
        embed_norm: a norm on the embeddings (BERT).
        final_norm: a norm after the blocks; not with post-norm blocks.
        embed_dropout: dropout rate on the embeddings.
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
    """

    vocab_size: int
    max_positions: int
    num_layers: int
    block: BlockConfig
    causal: bool = True
    pool: str = "largest_id"
    eos_id: int | None = None
    output_dim: int | None = None
    output_bias: bool = False
    output_tanh: bool = False
    num_token_types: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    embed_dropout: float = 0.0
    remat: str = "full"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f"unknown pool {self.pool!r}; choose from {', '.join(POOLS)}")
        if (self.pool == "eos") != (self.eos_id is not None):
            raise ValueError(f"pool={self.pool!r} with eos_id={self.eos_id}: pool='eos', and no other, needs the id of "
                             "the end token")


class TextTower(nn.Module):
    """Tokens to features, and to one vector per text."""

    config: TextTowerConfig

    def setup(self):
        c = self.config
        width, dtype = c.block.embed_dim, jnp.dtype(c.block.dtype)
        self.token_embed = Embed(c.vocab_size, width, std=0.02, dtype=dtype)
        self.position_embed = Embed(c.max_positions, width, ("patch", "embed"), std=0.01, dtype=dtype)
        if c.num_token_types:
            self.type_embed = Embed(c.num_token_types, width, ("patch", "embed"), std=0.02, dtype=dtype)
        if c.embed_norm:
            self.embed_norm = c.block.make_norm()
        self.block = Block(c.block, parent=None)
        self.blocks = stack_params(self, "blocks", self.block, c.num_layers,
                                   jax.ShapeDtypeStruct((1, 1, width), dtype), masks.all_keys(1, 1, 1))
        if c.final_norm:
            self.final_norm = c.block.make_norm()
        if c.output_dim is not None:
            self.output = Linear((width,), (c.output_dim,), ("embed", None), c.output_bias, dtype=dtype)

    def features(self, tokens: jax.Array, segment_ids: jax.Array | None = None, token_types: jax.Array | None = None,
                 key: jax.Array | None = None) -> jax.Array:
        """Features of every token.

        Args:
            tokens: int32[B, T] ids, one text per row, at most `max_positions` long.
            segment_ids: int32[B, T], 0 on padding that no token sees; None if there is none, or (CLIP, SigLIP) if the
                model takes padding as text.
            token_types: int32[B, T] rows of the table of types; None for all 0.
            key: dropout key, or None.

        Returns:
            dtype[B, T, D].

        Raises:
            ValueError: if the texts are longer than the model has positions, or have types it does not know.
        """
        c, (b, t) = self.config, tokens.shape
        if t > c.max_positions:
            raise ValueError(f"texts of {t} tokens exceed max_positions={c.max_positions} of the text tower; cut them")
        if token_types is not None and not c.num_token_types:
            raise ValueError("the text tower has no token types; pass token_types=None or set num_token_types")
        segment_ids = jnp.ones((b, t), jnp.int32) if segment_ids is None else segment_ids
        x = self.token_embed(tokens) + self.position_embed(jnp.arange(t)[None])
        if c.num_token_types:
            x = x + self.type_embed(jnp.zeros_like(tokens) if token_types is None else token_types)
        key_embed, key_blocks = (None, None) if key is None else jax.random.split(key)
        x = dropout(self.embed_norm(x) if c.embed_norm else x, c.embed_dropout, key_embed)
        mask = (masks.causal if c.causal else masks.full)(segment_ids)
        x, _ = run_stack(self.block, self.blocks, x, mask, key=key_blocks, remat=c.remat)
        return self.final_norm(x) if c.final_norm else x

    def pooled(self, features: jax.Array, tokens: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """dtype[B, output_dim] (or D) of features [B, T, D]."""
        c = self.config
        x = pool_text(features, tokens, segment_ids, c.pool, c.eos_id)
        if c.output_dim is not None:
            x = self.output(x)
        return jnp.tanh(x) if c.output_tanh else x

    def __call__(self, tokens: jax.Array, segment_ids: jax.Array | None = None, token_types: jax.Array | None = None,
                 key: jax.Array | None = None) -> jax.Array:
        """dtype[B, output_dim] (or D): one vector per text; arguments as for `features`."""
        return self.pooled(self.features(tokens, segment_ids, token_types, key), tokens, segment_ids)


def pool_text(features: jax.Array, tokens: jax.Array, segment_ids: jax.Array | None, pool: str,
              eos_id: int | None = None) -> jax.Array:
    """One feature per text.

    Args:
        features: float[B, T, D].
        tokens: int32[B, T].
        segment_ids: int32[B, T], 0 on padding that a mean leaves out; None if there is none.
        pool, eos_id: see `TextTowerConfig`. A text without the end token gives its first feature, as transformers does.

    Returns:
        float[B, D] in the dtype of `features`; a mean is taken in float32.
    """
    if pool == "mean":
        real = jnp.ones(tokens.shape) if segment_ids is None else (segment_ids > 0)
        weight = jnp.asarray(real, jnp.float32)[..., None]
        return ((features * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)).astype(features.dtype)
    if pool in ("first", "last"):
        return features[:, 0 if pool == "first" else -1]
    where = (tokens if pool == "largest_id" else tokens == eos_id).argmax(1)
    return jnp.take_along_axis(features, where[:, None, None], axis=1)[:, 0]
