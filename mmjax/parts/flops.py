"""Floating-point operations that the parts of a model need in one training step, by formula.

What counts is the products of matrices, two operations for each multiplication and addition, on tokens and images that
exist: padding is not counted, nor query-key pairs that the mask hides, nor anything a program computes twice to save
memory. A weight that trains costs its product once more for its gradient, and once more again wherever something before
it trains and needs the gradient of its input.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch
from mmjax.layers import GATED
from mmjax.parts.connectors import AttentivePoolConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.gated_xattn import GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig
from mmjax.parts.text_tower import TextTowerConfig
from mmjax.parts.vision_tower import VisionConfig, vision_tower
from mmjax.parts.vit import ViTConfig

Trains = Callable[[str], bool]      # whether any parameter below a path "a/b" trains


class Work(NamedTuple):
    """What the batches of a step ask for.

    Attributes:
        tokens: that are no padding.
        pairs: (query, key) pairs that causal attention sees.
        items: images and videos.
        frames: of all items.
        reads: tokens that read an item by cross-attention.
    """

    tokens: float = 0
    pairs: float = 0
    items: float = 0
    frames: float = 0
    reads: float = 0

    @classmethod
    def of(cls, batch: Batch) -> "Work":
        """That of a batch of NumPy arrays."""
        is_token = batch.segment_ids > 0
        items = np.count_nonzero(batch.image_segment_ids)
        return cls(tokens=np.count_nonzero(is_token), pairs=int((batch.positions[is_token].astype(np.int64) + 1).sum()),
                   items=items, frames=items * batch.images.shape[2],
                   reads=np.count_nonzero(is_token & (batch.image_index >= 0)))

    @classmethod
    def full(cls, batch: Batch) -> "Work":
        """That of a batch of this shape whose rows are one document each, from the first token to the last."""
        (b, t), (_, i, f) = batch.tokens.shape, batch.images.shape[:3]
        return cls(b * t, b * t * (t + 1) // 2, b * i, b * i * f, b * t if i else 0)

    def times(self, factor: float) -> "Work":
        return Work(*(factor * x for x in self))


class Cost(NamedTuple):
    """Operations of one part in a step.

    Attributes:
        forward, backward: of products with weights.
        attention_forward, attention_backward: of products of queries, keys and values.
    """

    forward: float = 0.0
    backward: float = 0.0
    attention_forward: float = 0.0
    attention_backward: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Cost":
        return Cost(*(factor * x for x in self))


def product(rows: float, weights: float, trains: bool, to_input: bool) -> Cost:
    """`rows` vectors times `weights` numbers; `to_input`: whether a gradient goes on to the vectors."""
    return Cost(2 * rows * weights, 2 * rows * weights * (trains + to_input))


def scores(pairs: float, width: float, has_gradient: bool) -> Cost:
    """q kᵀ and its product with v over all heads, `width` wide together; four products more for the gradients."""
    return Cost(0.0, 0.0, 4 * pairs * width, 8 * pairs * width * has_gradient)


def layer(block: Any, rows: float, pairs: float, trains: bool, to_input: bool) -> Cost:
    """One self-attention block; `block` is a `layers.BlockConfig`.

    Without a gradient to the input, as in the first block that trains, queries, keys and values need none to theirs.
    """
    n, k, h = block.heads
    d, f = block.embed_dim, block.mlp_dim
    inner = trains or to_input
    matrices = 3 if block.activation in GATED else 2
    return (product(rows, d * (n + 2 * k) * h, trains, to_input) + scores(pairs, n * h, inner)
            + product(rows, n * h * d + matrices * d * f, trains, inner))


def stack(block: Any, num_layers: int, rows: float, pairs: float, trains: bool, to_input: bool) -> Cost:
    """Equal blocks on each other, that train or do not."""
    if not num_layers:
        return Cost()
    rest = layer(block, rows, pairs, trains, trains or to_input).times(num_layers - 1)
    return layer(block, rows, pairs, trains, to_input) + rest


def decoder(config: DecoderConfig, work: Work, trains: bool, to_input: bool, untouched: int = 0) -> Cost:
    """Blocks and head.

    Args:
        config: of the decoder.
        work: of the step.
        trains: whether its parameters do, the token table among them.
        to_input: whether something before the blocks, or between them, trains.
        untouched: blocks at the bottom that no gradient reaches if the decoder itself does not train.
    """
    first = 0 if trains else untouched
    block = dataclasses.replace(config.block, moe=None, mlp_dim=_active_width(config))
    blocks = (stack(block, first, work.tokens, work.pairs, False, False)
              + stack(block, config.num_layers - first, work.tokens, work.pairs, trains, trains or to_input))
    head = product(work.tokens, config.block.embed_dim * config.vocab_size, trains, trains or to_input)
    return blocks + head


def _active_width(config: DecoderConfig) -> float:
    """Inner width of the feed-forward networks that a token meets, on average over layers; routers are not counted."""
    moe, f = config.block.moe, config.block.mlp_dim
    if moe is None:
        return f
    with_experts = config.num_expert_blocks or config.num_layers
    return f * (1 + (moe.top_k - 1) * with_experts / config.num_layers)


def vit(config: ViTConfig, frames: float, trains: Trains, path: str = "vision") -> Cost:
    """Patch embedding, blocks and last blocks."""
    d, tokens = config.block.embed_dim, config.num_tokens
    rows, pairs = frames * tokens, frames * tokens**2
    patches = frames * (config.image_size // config.patch_size) ** 2
    embeds = [f"{path}/{name}" for name in ("patch_embed", "class_embed", "position_embed", "pre_norm")]
    below = any(map(trains, embeds))
    cost = product(patches, 3 * config.patch_size**2 * d, trains(embeds[0]), False)
    last = config.num_last_layers
    for name, count in (("blocks", config.num_layers - last), ("last_blocks", last)):
        own = count > 0 and trains(f"{path}/{name}")
        cost += stack(config.block, count, rows, pairs, own, below)
        below |= own
    return cost


def vision(config: VisionConfig, frames: float, trains: Trains, path: str = "vision") -> Cost:
    """Any vision tower. Those of convolutions train as a whole or not at all, and count as a trace of them does."""
    if isinstance(config, ViTConfig):
        return vit(config, frames, trains, path)
    forward = frames * _traced(config)
    return Cost(forward, 2 * forward * trains(path))


@functools.cache
def _traced(config: VisionConfig) -> float:
    """Operations of a tower for one image, by XLA's count of the program before it optimizes it."""
    tower = vision_tower(config)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    params = jax.eval_shape(tower.init, jax.random.key(0), image)
    return jax.jit(tower.apply).lower(params, image).cost_analysis()["flops"]


def text_tower(config: TextTowerConfig, work: Work, trains: bool) -> Cost:
    """A text tower's blocks."""
    pairs = work.pairs if config.causal else 2 * work.pairs - work.tokens
    return stack(config.block, config.num_layers, work.tokens, pairs, trains, trains)


def perceiver(config: PerceiverConfig, features: float, items: float, trains: bool, to_input: bool) -> Cost:
    """The resampler; `features` counts the vision tower's tokens of all `items`."""
    d, width = config.embed_dim, config.num_heads * config.head_dim
    latents = items * config.num_latents
    keys = features + latents
    inner = trains or to_input
    cost = product(features, config.input_dim * d * (config.input_dim != d), trains, to_input)
    pairs = config.num_latents * keys
    one = (product(latents, 2 * d * width, trains, inner) + product(keys, 2 * d * width, trains, inner)
           + scores(pairs, width, inner) + product(latents, 2 * d * config.mlp_dim, trains, inner))
    return cost + one.times(config.num_layers)


def attentive_pool(config: AttentivePoolConfig, features: float, items: float, trains: bool, to_input: bool) -> Cost:
    """KOSMOS-1's connector; `features` counts the vision tower's tokens of all `items`."""
    d, latents = config.embed_dim, items * config.num_latents
    keys = features + latents
    inner = trains or to_input
    return (product(features, config.input_dim * d, trains, to_input) + product(2 * latents, d * d, trains, inner)
            + product(keys, 2 * d * d, trains, inner) + scores(config.num_latents * keys, d, inner))


def gated_xattn(config: GatedXAttnConfig, count: int, work: Work, latents: int, trains: bool, to_visual: bool) -> Cost:
    """`count` layers that read items of `latents` visual tokens each."""
    d, width = config.embed_dim, config.num_heads * config.head_dim
    inner = trains or to_visual
    one = (product(work.tokens, 2 * d * width + 2 * d * config.mlp_dim, trains, inner)
           + product(work.items * latents, 2 * config.visual_dim * width, trains, to_visual)
           + scores(work.reads * latents, width, inner))
    return one.times(count)
