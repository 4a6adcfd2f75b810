"""The one entry to grouped matmul: checks its arguments and chooses an implementation."""

import jax
import jax.numpy as jnp

from mmjax.kernels.grouped_matmul.blocks import blocks
from mmjax.kernels.grouped_matmul.ragged import ragged
from mmjax.kernels.grouped_matmul.reference import reference
from mmjax.kernels.target import platform

IMPLEMENTATIONS = {"blocks": blocks, "ragged": ragged, "reference": reference}


def grouped_matmul(
    x: jax.Array, kernels: jax.Array, group_sizes: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Multiplies consecutive groups of rows each by the matrix of its group; products add up in float32.

    Args:
        x: float[M, D] rows, those of group 0 first, then those of group 1, ...
        kernels: float[G, D, F] in the dtype of `x`.
        group_sizes: int32[G] rows of each group, at least 0; rows behind the last group give 0 and no gradient.
        implementation: a name of `IMPLEMENTATIONS`, or None: "blocks" on a CPU, "ragged" elsewhere.

    Returns:
        float[M, F] in the dtype of `x`.

    Raises:
        ValueError: if shapes or dtypes do not fit, or for an unknown implementation.
    """
    _check(x, kernels, group_sizes)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} must be None or one of {', '.join(IMPLEMENTATIONS)}")
    if x.size == 0 or kernels.size == 0:
        return jnp.zeros((len(x), kernels.shape[2]), x.dtype)
    chosen = implementation or ("blocks" if platform() == "cpu" else "ragged")
    return IMPLEMENTATIONS[chosen](x, kernels, group_sizes)


def _check(x, kernels, group_sizes) -> None:
    if x.ndim != 2 or kernels.ndim != 3 or x.shape[1] != kernels.shape[1] or x.dtype != kernels.dtype:
        raise ValueError(
            f"x {x.dtype}{list(x.shape)} and kernels {kernels.dtype}{list(kernels.shape)} must be [M, D] and "
            f"[G, D, F] of one dtype")
    if group_sizes.shape != kernels.shape[:1] or not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise ValueError(
            f"group_sizes {group_sizes.dtype}{list(group_sizes.shape)} must be integers, one for each of the "
            f"{len(kernels)} kernels")
