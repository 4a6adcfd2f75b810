"""Learned position tables at another resolution, by bicubic interpolation as the reference implementations do it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.parts.vit import ViTConfig


def resize_tower(config: ViTConfig, params: dict[str, Any], image_size: int, antialias: bool = True
                 ) -> tuple[ViTConfig, dict[str, Any]]:
    """A tower for images of another size: its config and parameters, all but the position table as they were.

    Args:
        config: the tower.
        params: its parameters.
        image_size: new side in pixels, a multiple of the patch size.
        antialias: see `resize_positions`.
    """
    resized = dataclasses.replace(config, image_size=image_size)
    if config.positions != "learned":
        return resized, params
    table = resize_positions(params["position_embed"], config.grid, resized.grid, antialias)
    return resized, params | {"position_embed": table}


def resize_positions(table: jax.Array, old: int, new: int, antialias: bool = True) -> jax.Array:
    """Interpolates the embeddings of a square grid.

    Args:
        table: float[old² + n, D], first n rows (class tokens) that stay as they are, then the grid's row by row.
        old: side of the grid.
        new: side of the grid that is wanted.
        antialias: True as open_clip and timm have it, False as Hugging Face's `interpolate_pos_encoding` and DINO.
            They also differ in the cubic, and so where the grid grows.

    Returns:
        float[new² + n, D] in the table's dtype, computed in float32.

    Raises:
        ValueError: if the table has fewer than old² rows.
    """
    num_first = table.shape[0] - old**2
    if num_first < 0:
        raise ValueError(f"position table {list(table.shape)} must have at least {old}² = {old**2} rows")
    if old == new:
        return table
    weights = jnp.asarray(cubic_weights(old, new, antialias), jnp.float32)
    grid = jnp.asarray(table[num_first:], jnp.float32).reshape(old, old, -1)
    grid = jnp.einsum("ya,xb,abd->yxd", weights, weights, grid, precision="highest").reshape(new**2, -1)
    return jnp.concatenate([table[:num_first], grid.astype(table.dtype)])


def cubic_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """float64[new, old] by which points of a line become points of another; each row adds up to 1.

    With `antialias` the cubic (a = -1/2) widens where the line shrinks, and what reaches beyond the ends is left out;
    without, it has a = -3/4 and the end points are repeated. Source: torch's `interpolate`, mode "bicubic".
    """
    scale = old / new
    widen = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * scale - 0.5
        for j in range(math.floor(center - 2 * widen), math.ceil(center + 2 * widen) + 1):
            if not antialias or 0 <= j < old:
                weights[i, min(max(j, 0), old - 1)] += _cubic((j - center) / widen, -0.5 if antialias else -0.75)
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: float, a: float) -> float:
    """Keys's kernel (IEEE Transactions on Acoustics, Speech, and Signal Processing 29, 1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
