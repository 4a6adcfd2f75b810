"""Bytes on one device, from shapes and shardings alone: exact for what a step is given, an estimate for the rest."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig
from mmjax.parallel import RULES
from mmjax.training.config import StageConfig
from mmjax.training.step import TrainState

# Bytes a token of a block's activations that the backward pass keeps, in widths of the residual stream (D) and of the
# feed-forward network (F); the latter and heads are split over the axis `model`. Two bytes a number.
KEPT = {"full": (1, 0), "dots": (6, 1), "none": (12, 4)}


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


def of_activations(config: StageConfig, sizes: Mapping[str, int]) -> float:
    """Roughly what the backward pass keeps and one block needs to work, of the data set that needs most."""
    return max(_of_set(config, data, sizes) for data in config.data.sets.values())


def _of_set(config: StageConfig, data: DataSetConfig, sizes: Mapping[str, int]) -> float:
    rows = data.batch_size / config.accumulate / math.prod(sizes[axis] for axis in RULES["batch"])
    lm, vision = config.model.lm, getattr(config.model, "vision", None)
    tokens = rows * data.seq_len / sizes["seq"]
    total = _of_stack(lm.block, lm.num_layers, tokens, lm.remat, sizes["model"])
    total += 6 * tokens * lm.block.embed_dim                            # hidden states of the loss and their gradient
    if vision is not None and data.images_per_row:
        frames = rows * data.images_per_row * data.frames
        total += _of_stack(vision.block, max(vision.num_last_layers, 1), frames * vision.num_tokens, vision.remat,
                           sizes["model"])
    return total


def _of_stack(block: Any, num_layers: int, tokens: float, remat: str, split: int) -> float:
    d, f = KEPT[remat]
    kept = num_layers * 2 * tokens * (block.embed_dim * (1 + (d - 1) / split) + f * block.mlp_dim / split)
    working = 2 * tokens * (8 * block.embed_dim + 4 * block.mlp_dim / split)
    return kept + working
