"""Bytes on one device, from shapes and shardings alone: exact for what a step is given, an estimate for the rest."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig
from mmjax.kernels.cross_entropy.chunked import CHUNK_LOGITS, LEAST_TOKENS
from mmjax.parallel import RULES, rules_of
from mmjax.parallel.sharding import Rules
from mmjax.training.config import StageConfig
from mmjax.training.step import TrainState

# Bytes a token of a block's activations that the backward pass keeps, in widths of the residual stream (D) and of the
# feed-forward network (F); heads and F may be split over devices. Two bytes a number. "offload" has the host keep what
# "dots" keeps.
KEPT = {"full": (1, 0), "dots": (6, 1), "none": (12, 4), "offload": (1, 0)}


def parts(sharding_spec: Iterable[Any], sizes: Mapping[str, int]) -> int:
    """Pieces into which an array of this partition spec is cut on a mesh of these sizes."""
    axes = (axis for entry in sharding_spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,)))
    return math.prod(sizes[axis] for axis in axes)


def of_arrays(tree: Any, sizes: Mapping[str, int]) -> float:
    """Bytes of the part of these `jax.ShapeDtypeStruct`s that lies on one device."""
    return sum(leaf.size * leaf.dtype.itemsize / parts(leaf.sharding.spec, sizes) for leaf in jax.tree.leaves(tree))


def of_state(template: TrainState, batches: Mapping[str, Batch], sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes on one device by group; gradients are as large as what they are of."""
    trainable = of_arrays(template.trainable, sizes)
    return {
        "trainable": trainable,
        "frozen": of_arrays(template.frozen, sizes),
        "optimizer": of_arrays(template.opt_state, sizes),
        "gradients": trainable,
        "batch": of_arrays(batches, sizes),
    }


def of_workspace(config: StageConfig, template: TrainState, sizes: Mapping[str, int]) -> float:
    """Roughly what a step needs beside its state and the activations, however few rows it has.

    Gradients a second time where they are added up, the output matrix whole with its gradient, and the logits of a
    chunk of tokens, their exponentials and their gradient.
    """
    lm = config.model.lm
    words = lm.vocab_size / math.prod(sizes[axis] for axis in RULES["vocab"])
    most = max(_tokens(config, data, sizes) for data in config.data.sets.values())
    chunk = min(most, max(LEAST_TOKENS, CHUNK_LOGITS / words))
    is_sum = config.accumulate > 1 or len(config.data.sets) > 1
    return (is_sum * of_arrays(template.trainable, sizes) + 12 * chunk * words
            + words * lm.block.embed_dim * (jnp.dtype(lm.block.dtype).itemsize + 4))


def of_activations(config: StageConfig, sizes: Mapping[str, int]) -> float:
    """Roughly what the backward pass keeps and one block needs to work, of the data set that needs most."""
    return max(_of_set(config, data, sizes) for data in config.data.sets.values())


def _tokens(config: StageConfig, data: DataSetConfig, sizes: Mapping[str, int]) -> float:
    """Tokens that a device has at a time."""
    rows = data.batch_size / config.accumulate / math.prod(sizes[axis] for axis in RULES["batch"])
    return rows * data.seq_len / sizes["seq"]


def _of_set(config: StageConfig, data: DataSetConfig, sizes: Mapping[str, int]) -> float:
    lm, vision = config.model.lm, getattr(config.model, "vision", None)
    tokens = _tokens(config, data, sizes)
    total = _of_stack(lm.block, lm.num_layers, tokens, lm.remat, RULES, sizes)
    total += 6 * tokens * lm.block.embed_dim                            # hidden states of the loss and their gradient
    if data.images_per_row and hasattr(vision, "block"):
        rules = rules_of("vision", config.sharding)
        frames = data.batch_size * data.images_per_row * data.frames / config.accumulate
        frames /= math.prod(sizes[axis] for axis in rules["batch"])
        total += _of_stack(vision.block, max(vision.num_last_layers, 1), frames * vision.num_tokens, vision.remat,
                           rules, sizes)
    return total


def _of_stack(block: Any, num_layers: int, tokens: float, remat: str, rules: Rules, sizes: Mapping[str, int]) -> float:
    heads, inner = (math.prod(sizes[axis] for axis in rules[name]) for name in ("act_heads", "act_mlp"))
    d, f = KEPT[remat]
    kept = num_layers * 2 * tokens * (block.embed_dim * (1 + (d - 1) / heads) + f * block.mlp_dim / inner)
    working = 3 * tokens * (8 * block.embed_dim + 4 * block.mlp_dim / inner)        # norms compute in float32
    return kept + working
