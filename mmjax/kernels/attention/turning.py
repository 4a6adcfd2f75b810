"""Rotary position embedding and xPos inside a kernel: heads as float32[H, tokens], features along the first axis.

Angles are kept in turns, not radians, and n * f / (2 pi) loses nothing for positions below 2^24: n is cut into two
digits of 12 bits, and the turns of a digit's unit into 12 bits and a rest. The first product is then exact, and whole
turns drop out of it before any rounding. Float32 radians are off by 0.004 at position 65,536.

The features that turn are moved in front of the kernel: [first of every pair, second of every pair, the rest], each
third filled up with zeros to whole sublanes. Both layouts of `Rotary` then are one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.kernels.attention.rotary import Rotary

DIGIT = 12  # bits
ALIGN = 8  # rows of a float32 register
LIMIT = 120.0  # largest exponent (base 2) of an xPos scale: its product with a head stays in float32


def constants(rotary: Rotary, head_dim: int) -> np.ndarray:
    """float32[P, 4 C + 1] for P padded pairs and C coordinates: what `cos_sin` and `scale_exponents` need of a pair.

    Four columns a coordinate, the turns of the upper and of the lower digit of a position in two parts each, then the
    logarithm (base 2) by which xPos scales a pair per position.
    """
    dim = rotary.rotary_dim or head_dim
    pairs, axes = dim // 2, coordinates(rotary)
    turn_rate = rotary.position_scale / (2 * math.pi)
    frequency = turn_rate * rotary.base ** (-2.0 * axes * np.arange(pairs // axes) / dim)
    columns = []
    for axis in range(axes):
        turns = np.zeros((axes, pairs // axes))
        turns[axis] = frequency
        for digit in ((turns.ravel() * 2**DIGIT) % 1, turns.ravel() % 1):
            upper = np.round(digit * 2**DIGIT) / 2**DIGIT
            columns += [upper, digit - upper]
    zeta = (2 * np.arange(pairs) + 0.4 * dim) / (1.4 * dim)
    columns.append(np.log2(zeta) / (rotary.xpos_scale_base or math.inf))
    return np.pad(np.stack(columns, 1), ((0, -pairs % ALIGN), (0, 0))).astype(np.float32)


def coordinates(rotary: Rotary) -> int:
    """1 for positions along a line, 2 for rows and columns."""
    return 1 if rotary.q_positions.ndim == 2 else rotary.q_positions.shape[2]


def arrange(x: jax.Array, rotary: Rotary) -> jax.Array:
    """[..., H] in the order of `Rotary` -> [..., 2 P + rest] in that of the kernel."""
    dim = rotary.rotary_dim or x.shape[-1]
    order = (2, dim // 2) if rotary.layout == "split" else (dim // 2, 2)
    pairs = x[..., :dim].reshape(*x.shape[:-1], *order)
    pairs = pairs if rotary.layout == "split" else pairs.swapaxes(-1, -2)
    pairs = _pad(pairs, ALIGN).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([pairs, _pad(x[..., dim:], ALIGN)], -1)


def restore(x: jax.Array, rotary: Rotary, head_dim: int) -> jax.Array:
    """Undoes `arrange`: [..., 2 P + rest] -> [..., H]."""
    dim = rotary.rotary_dim or head_dim
    turning = dim + 2 * (-(dim // 2) % ALIGN)
    pairs = x[..., :turning].reshape(*x.shape[:-1], 2, -1)[..., : dim // 2]
    pairs = pairs if rotary.layout == "split" else pairs.swapaxes(-1, -2)
    pairs = pairs.reshape(*x.shape[:-1], dim)
    return jnp.concatenate([pairs, x[..., turning : turning + head_dim - dim]], -1)


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])


def cos_sin(constants: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[P, tokens] twice: cosine and sine of every pair's angle, from int32[C, tokens]."""
    whole, rest = 0.0, 0.0
    for axis in range(positions.shape[0]):
        place = positions[axis : axis + 1]
        for i, digit in enumerate((place >> DIGIT, place & (2**DIGIT - 1))):
            digit = digit.astype(jnp.float32)
            column = 4 * axis + 2 * i
            exact = constants[:, column : column + 1] * digit
            whole += exact - jnp.round(exact)
            rest += constants[:, column + 1 : column + 2] * digit
    turns = whole + rest
    half_turns = jnp.round(2 * turns)
    x = (turns - 0.5 * half_turns) * (2 * math.pi)  # within a quarter turn of 0 or of pi
    flip = 1 - 2 * (half_turns.astype(jnp.int32) & 1).astype(jnp.float32)
    square = x * x
    sin, cos = 0.0, 0.0
    for n in range(6, -1, -1):  # Taylor: the first terms left out are below 1e-8
        sin = sin * square + (-1) ** n / math.factorial(2 * n + 1)
        cos = cos * square + (-1) ** n / math.factorial(2 * n)
    return flip * cos, flip * x * sin


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """float32[H, tokens] turned by the angles; with -sin it turns back."""
    pairs = cos.shape[0]
    a, b = x[:pairs], x[pairs : 2 * pairs]
    return _with_rest(a * cos - b * sin, b * cos + a * sin, x)


def scale_exponents(constants: jax.Array, distance: jax.Array) -> jax.Array:
    """float32[P, tokens or 1] logarithm (base 2) of the xPos scale at an int32 distance [1, tokens or 1]."""
    exponent = constants[:, -1:] * distance.astype(jnp.float32)
    return jnp.clip(exponent, -LIMIT, LIMIT)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """float32[H, tokens] with both features of every pair scaled."""
    pairs = factor.shape[0]
    return _with_rest(x[:pairs] * factor, x[pairs : 2 * pairs] * factor, x)


def _with_rest(a: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
    pairs = 2 * a.shape[0]
    return jnp.concatenate([a, b, x[pairs:]] if pairs < len(x) else [a, b], 0)  # a TPU knows no empty arrays
