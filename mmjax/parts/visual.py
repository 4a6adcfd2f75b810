"""Visual tokens of a batch: its images through tower and connector, spread over all devices whatever their rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.parallel import layout, num_row_parts, reshape, shard, tower

Encode = Callable[[jax.Array], jax.Array]


def visual_tokens(encode: Encode, images: jax.Array, image_segment_ids: jax.Array, budget: int = 0) -> jax.Array:
    """Encodes the visual items of a batch.

    Rows differ in how many images they have. With a budget, the real ones are brought together, `budget` at a time are
    spread over the devices and encoded, and the rest, unused slots and text-only rows, costs nothing. However many
    there are, all are encoded: the budget sets the size of the steps.

    Args:
        encode: uint8[N, F, H, W, 3] items -> float[N, R, D] visual tokens.
        images: uint8[B, I, F, H, W, 3].
        image_segment_ids: int32[B, I], 0 for an unused slot.
        budget: items encoded at a time; 0 encodes all slots at once, each on the device of its row.

    Returns:
        float[B, I, R, D]; garbage in unused slots.

    Raises:
        ValueError: if the budget does not divide over the devices.
    """
    b, i = images.shape[:2]
    items = reshape(images, (b * i, *images.shape[2:]), "batch", *[None] * 4)
    if budget:
        tokens = _encode_real(encode, items, shard(image_segment_ids, None, None).reshape(-1) > 0, budget)
    else:
        tokens = encode(items)
    return shard(reshape(tokens, (b, i, *tokens.shape[1:]), "batch", None, None, None), "batch", None, None, None)


def _encode_real(encode: Encode, items: jax.Array, is_real: jax.Array, budget: int) -> jax.Array:
    n = len(items)
    size = min(budget, n)
    _check(size, budget)
    steps = -(-n // size)
    order = jnp.argsort(~is_real, stable=True)          # the real ones first
    groups = jnp.pad(order, (0, steps * size - n), constant_values=n).reshape(steps, size)
    count = is_real.sum()

    def run(which: jax.Array) -> jax.Array:
        where = layout((size, *items.shape[1:]), "batch", *[None] * 4)
        picked = items.at[which].get(mode="fill", fill_value=0, out_sharding=where)
        return shard(encode(shard(picked, "batch", *[None] * 4)), "batch", None, None)

    def step(_, inputs):
        which, number = inputs
        empty = jax.eval_shape(run, which)
        nothing = lambda _: shard(jnp.zeros(empty.shape, empty.dtype), "batch", None, None)  # noqa: E731
        return None, jax.lax.cond(number * size < count, run, nothing, which)

    _, tokens = jax.lax.scan(step, None, (groups, jnp.arange(steps)))
    tokens = reshape(tokens, (steps * size, *tokens.shape[2:]), "batch", None, None)
    place = jnp.argsort(order)                          # where each slot's tokens are now
    return tokens.at[place].get(out_sharding=layout((n, *tokens.shape[1:]), "batch", None, None))


def _check(size: int, budget: int) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else num_row_parts(mesh)
    if size == budget and budget % parts:
        raise ValueError(f"vision.budget={budget} images must be a multiple of the {parts} devices on the mesh axes "
                         f"data x fsdp; try {max(budget // parts, 1) * parts} or {(budget // parts + 1) * parts}")


def encode_frames(vision: nn.Module, params: Any, items: jax.Array) -> jax.Array:
    """Runs the tower over every frame of visual items: uint8[N, F, H, W, 3] -> float[N, F, P, D]."""
    n, f = items.shape[:2]
    with tower("vision"):
        frames = reshape(items, (n * f, *items.shape[2:]), "batch", *[None] * 3)
        features = vision.apply({"params": params}, frames)
        return reshape(features, (n, f, *features.shape[1:]), "batch", *[None] * 3)
