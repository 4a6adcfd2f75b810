"""Pixels and patches of images: normalising, cutting, where each patch lies, and leaving some out."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.parallel import layout, reshape


def normalize_pixels(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8[..., 3] RGB to float32[..., 3], minus `mean` over `std`, both of RGB in [0, 1]."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts float[B, H, W, C] into float[B, P, patch_size² · C] patches, row-major in space and inside a patch."""
    b, h, w, c = images.shape
    rows, columns = h // patch_size, w // patch_size
    x = reshape(images, (b, rows, patch_size, columns, patch_size, c), "batch", *[None] * 5)
    return reshape(x.transpose(0, 1, 3, 2, 4, 5), (b, rows * columns, patch_size**2 * c), "batch", None, None)


def grid_positions(side: int) -> np.ndarray:
    """int32[side², 2] row and column of every patch."""
    return np.stack(np.divmod(np.arange(side**2, dtype=np.int32), side), axis=-1)


def sincos_positions(side: int, dim: int) -> np.ndarray:
    """Fixed embeddings of a square grid: float32[side², dim].

    Quarters of the features are sin and cos of the column, then sin and cos of the row, each at dim / 4 frequencies
    10000^(-4i/dim).

    Raises:
        ValueError: if dim is no multiple of 4.

    Source: Transformer (arXiv:1706.03762) section 3.5 on two axes as MAE (arXiv:2111.06377) orders them; AIM
        (arXiv:2401.08541).
    """
    if dim % 4:
        raise ValueError(f"embed_dim={dim} must be a multiple of 4 for fixed sin-cos positions")
    frequency = 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))
    angles = grid_positions(side)[:, ::-1, None] * frequency
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(side**2, dim).astype(np.float32)


def drop_patches(x: jax.Array, rate: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keeps a random part of every image's patches, in their order.

    Args:
        x: float[B, P, D].
        rate: share that is left out, at least 0 and below 1.
        key: for the choice.

    Returns:
        float[B, P', D] with P' = floor(P (1 - rate)), at least 1, and int32[B, P'] which ones they are.

    Source: FLIP (arXiv:2212.00794).
    """
    b, p, d = x.shape
    num_kept = max(1, math.floor(p * (1 - rate)))
    order = jnp.argsort(jax.random.uniform(key, (b, p)), axis=1)
    kept = jnp.sort(order[:, :num_kept], axis=1)
    rows = jnp.arange(b)[:, None]
    return x.at[rows, kept].get(out_sharding=layout((b, num_kept, d), "batch", None, "act_embed")), kept
