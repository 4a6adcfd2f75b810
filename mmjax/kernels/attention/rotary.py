"""Rotary position embedding, and xPos on top of it, applied to queries and keys.

RoFormer (arXiv:2104.09864) turns pair i of a head by the angle n * base^(-2i/d) at position n. xPos (arXiv:2212.10554)
also scales it by zeta_i^((n - c) / scale_base), and the key by the inverse, so that logits decay with distance. The
centre c cancels between a query and a key; it only keeps the two factors representable. On a grid of image patches
(EVA-02, arXiv:2303.11331) the first half of the pairs turns by the row, the second half by the column.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

Layout = Literal["split", "interleaved"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("q_positions", "k_positions"),
    meta_fields=("base", "layout", "rotary_dim", "xpos_scale_base", "xpos_center", "position_scale"),
)
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Positions and form of the rotation; a pytree whose leaves are the two position arrays.

    Attributes:
        q_positions: int32[B, T] positions of the queries in their documents, or int32[B, T, 2] rows and columns.
        k_positions: int32[B, S] or int32[B, S, 2] positions of the keys.
        base: inverse frequencies are base^(-2i/d); with two coordinates each half has base^(-4i/d).
        layout: "split" turns features (i, i + d/2) together (LLaMA), "interleaved" (2i, 2i + 1) (xPos, EVA).
        rotary_dim: d, the leading features that turn (GPT-NeoX turns a quarter); None for all of head_dim.
        xpos_scale_base: None for plain rotary, 512 for xPos as KOSMOS-1 uses it.
        xpos_center: c above. The same for every query and key that meet, also across a cache; half the context is
            a good value. A side grows as 3.5^(|n - c| / scale_base): float32 holds up to |n - c| of about 36,000
            at a scale base of 512.
            The Pallas kernels do not need it: they scale from the middle of each block of tokens (64 on a GPU, up to
            512 on a TPU), whatever the length. Only where a document that is longer than about 68,000 tokens (at 512)
            ends in the same block as another begins, the scales are clamped: its decay over the tokens of that one
            block is lost, and nothing overflows.
        position_scale: factor on the positions in all angles: EVA-02 stretches any grid of patches to 16 x 16.
    """

    q_positions: jax.Array
    k_positions: jax.Array
    base: float = 10_000.0
    layout: Layout = "split"
    rotary_dim: int | None = None
    xpos_scale_base: float | None = None
    xpos_center: int = 0
    position_scale: float = 1.0

    def rotate_q(self, q: jax.Array) -> jax.Array:
        """float[B, T, N, H] queries turned (and, for xPos, scaled) at `q_positions`, in the dtype of `q`."""
        return rotate(q, self.q_positions, inverse_scale=False, **self._form)

    def rotate_k(self, k: jax.Array) -> jax.Array:
        """float[B, S, K, H] keys turned (and, for xPos, inversely scaled) at `k_positions`, in the dtype of `k`.

        A cache may hold rotated keys: attend to them with `rotate_q(q)` and `rotary=None`.
        """
        return rotate(k, self.k_positions, inverse_scale=True, **self._form)

    @property
    def _form(self):
        fields = ("base", "layout", "rotary_dim", "xpos_scale_base", "xpos_center", "position_scale")
        return {name: getattr(self, name) for name in fields}


def rotate(
    x: jax.Array,
    positions: jax.Array,
    *,
    base: float = 10_000.0,
    layout: Layout = "split",
    rotary_dim: int | None = None,
    xpos_scale_base: float | None = None,
    xpos_center: int = 0,
    position_scale: float = 1.0,
    inverse_scale: bool = False,
) -> jax.Array:
    """Turns (and for xPos scales) the heads of `x` by their positions; computed in float32.

    Args:
        x: float[B, T, N, H] queries or keys.
        positions: int32[B, T], or int32[B, T, 2] for rows and columns.
        base, layout, rotary_dim, xpos_scale_base, xpos_center, position_scale: see `Rotary`.
        inverse_scale: True for keys; has no effect without xPos.

    Returns:
        float[B, T, N, H] in the dtype of `x`.

    Raises:
        ValueError: if the number of turning features is odd (or, with two coordinates, no multiple of 4) or exceeds
            H, if `layout` is unknown, if `positions` is neither integer[B, T] nor integer[B, T, 2], or if xPos is
            asked for with two coordinates.

    Source: arXiv:2104.09864 equation 34; arXiv:2212.10554 algorithm 1 in the form of torchscale,
        zeta_i = (2i + 0.4 d) / (1.4 d).
    """
    dim = x.shape[-1] if rotary_dim is None else rotary_dim
    _check(x, positions, dim, layout, xpos_scale_base)
    cos, sin = _factors(positions, dim, base, position_scale, xpos_scale_base, xpos_center, inverse_scale)
    turning, rest = x[..., :dim].astype(jnp.float32), x[..., dim:]
    if layout == "split":
        a, b = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def _factors(positions, dim, base, position_scale, xpos_scale_base, xpos_center, inverse_scale
             ) -> tuple[jax.Array, jax.Array]:
    """Scaled cosine and sine of the angles, float32[B, T, 1, dim / 2] each."""
    axes = 1 if positions.ndim == 2 else positions.shape[2]
    frequency = position_scale * base ** (-2.0 * axes * jnp.arange(dim // 2 // axes, dtype=jnp.float32) / dim)
    angle = positions.reshape(*positions.shape[:2], axes, 1).astype(jnp.float32) * frequency
    angle = angle.reshape(*positions.shape[:2], 1, dim // 2)
    if xpos_scale_base is None:
        return jnp.cos(angle), jnp.sin(angle)
    pair = jnp.arange(dim // 2, dtype=jnp.float32)
    power = (positions[..., None, None] - xpos_center).astype(jnp.float32) / xpos_scale_base
    scale = ((2.0 * pair + 0.4 * dim) / (1.4 * dim)) ** (-power if inverse_scale else power)
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def _check(x: jax.Array, positions: jax.Array, dim: int, layout: str, xpos_scale_base: float | None) -> None:
    two = positions.ndim == 3
    if dim % (4 if two else 2) or not 0 < dim <= x.shape[-1]:
        wanted = "a multiple of 4 to turn by rows and columns" if two else "even"
        raise ValueError(f"rotary_dim={dim} must be {wanted}, positive and at most head_dim={x.shape[-1]}")
    if two and xpos_scale_base is not None:
        raise ValueError(f"xpos_scale_base={xpos_scale_base} needs positions [B, T] along a line, not "
                         f"{list(positions.shape)}; pass None")
    if layout not in ("split", "interleaved"):
        raise ValueError(f"rotary layout={layout!r} must be 'split' or 'interleaved'")
    if positions.shape not in (x.shape[:2], (*x.shape[:2], 2)) or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"rotary positions {positions.dtype}{list(positions.shape)} must be integers of shape "
            f"{list(x.shape[:2])}, the rows and tokens of {list(x.shape)}, or two of them each (row and column)"
        )
