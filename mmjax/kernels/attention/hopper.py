"""What the Hopper kernels share: sizes of tiles, products on the tensor cores, logits of a tile, lists of tiles.

A kernel runs one thread block per block of queries (or keys). Its last warpgroup only moves data: it walks the list of
the tiles that hold a visible pair, and copies each tile's blocks from global to shared memory, `stages` ahead. The
others compute, 64 rows each. Barriers say when a buffer is full and when all of them are done with it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.kernels.attention import tiles as tiling
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.turning import DIGIT

LOWEST = -1e30  # logit of a hidden key; finite, so that a row without keys has no inf - inf
LOG2_E = math.log2(math.e)
GROUP_ROWS = 64  # rows of one warpgroup: those of a wgmma instruction
COMPUTE_REGISTERS, LOAD_REGISTERS = 240, 24  # of a thread; two warpgroups of the one and one of the other fill an SM
MAX_EXPONENT = 120.0  # of an xPos scale
FULL_BIT = 1  # of an entry of a tile list


class Form(NamedTuple):
    """What is fixed when a kernel is compiled.

    Attributes:
        scale: factor of the logits.
        soft_cap: bound of the logits, or None.
        interpret: parameters of the interpreter, or None to compile for a GPU.
    """

    scale: float
    soft_cap: float | None
    interpret: Any = None


class Rotation(NamedTuple):
    """What turns the heads that a kernel keeps: queries before they are used, gradients before they are stored.

    Angles come from integer positions as in `turning`, and the two features of a pair meet in a product with `swap`,
    which is exact: so one form serves both layouts, parts of a head, and rows and columns.

    Attributes:
        swap: [H, H] in the dtype of the heads; of x @ swap, each feature is the other one of its pair, the first of a
            pair with its sign changed, and 0 where nothing turns.
        turns: float32[4 C, H] turns of a feature for C coordinates, the columns of `turning.constants`; for xPos, one
            more row with the logarithm (base 2) of the scale per position.
        positions: int32[B, C, I * 128]; for xPos, one more row with the distance to the centre of the 64 tokens.
    """

    swap: jax.Array
    turns: jax.Array
    positions: jax.Array


class XPos(NamedTuple):
    """What xPos needs in a kernel. Queries and keys are turned, and scaled from the centre of their 64 tokens.

    The rest of the scale is one factor a feature for a pair of blocks, so that no number grows with the sequence: only
    with the positions that differ within 64 tokens, and with the distance of a pair that sees each other.

    Attributes:
        log_zeta: float32[H] logarithm (base 2) of a feature's scale per position.
        q_centers: int32[B, I * 2] centre of every 64 queries.
        k_centers: int32[B, J] centre of every 64 keys, J even.
    """

    log_zeta: jax.Array
    q_centers: jax.Array
    k_centers: jax.Array


class TileList(NamedTuple):
    """The tiles that each block of a kernel's grid visits; entry = other block << 1 | whether every pair is visible.

    Attributes:
        entries: int32[B, I, J].
        count: int32[B, I] valid entries of a list.
    """

    entries: jax.Array
    count: jax.Array


def tile_list(
    mask: IntervalMask, num_keys: int, block_queries: int, block_keys: int, by_keys: bool = False
) -> TileList:
    """Lists the visible tiles per block of queries, or per block of keys."""
    visible, full = tiling.tiles(mask, num_keys, block_queries, block_keys)
    if by_keys:
        visible, full = visible.swapaxes(1, 2), full.swapaxes(1, 2)
    table, count = tiling.lists(visible)
    return TileList(table << 1 | jnp.take_along_axis(full, table, -1), count)


def walk(entries, count: jax.Array, body: Callable, state: Any, repeats: int = 1) -> Any:
    """Folds `body(step, block, full, state)` over a tile list (ref int32[J]), `repeats` times.

    The next entry is read one step ahead: it has come from memory when it is wanted.
    """

    def step(i, carry):
        entry, state = carry
        return entries[lax.rem(i + 1, count)], body(i, entry >> 1, (entry & FULL_BIT) == 1, state)

    return lax.fori_loop(0, count * repeats, step, (entries[0], state))[1]


def slot_of(step: jax.Array, stages: int) -> jax.Array:
    """Which of the buffers holds the tile of a step.

    With one buffer it is 0, but not to the compiler: it would move the addresses of all products of a tile, then
    constant, before the loop, more than there are registers.
    """
    return lax.rem(step, stages) if stages > 1 else step >> 30


def kept_at(group: jax.Array, step: jax.Array, stages: int) -> jax.Array:
    """Where a warpgroup's own block is: at `group`; with one buffer not known to be so before the loop either."""
    return group if stages > 1 else group + slot_of(step, stages)


def drain(num_steps: jax.Array, stages: int, *freed) -> None:
    """Waits until the last tiles are done with, so that every arrival at a barrier has been seen."""

    @pl.loop(jnp.maximum(num_steps - stages, 0), num_steps)
    def step(i):
        for barrier in freed:
            plgpu.barrier_wait(barrier.at[slot_of(i, stages)])


def load_key_tiles(k, v, smem, filled, freed, entries, count, where: Callable) -> None:
    """The loading warpgroup's work when queries stay and keys stream past.

    Args:
        k, v: refs of all keys and values.
        smem: refs [stages, keys, H] for either.
        filled, freed: barriers for either, `stages` each.
        entries, count: tile list.
        where: index into `k` and `v` of a block of keys.
    """
    stages = smem[0].shape[0]

    def tile(step, at, full, _):
        slot = slot_of(step, stages)
        for ref, buffer, fill, free in zip((k, v), smem, filled, freed, strict=True):

            @pl.when(step >= stages)
            def wait(free=free):
                plgpu.barrier_wait(free.at[slot])

            plgpu.copy_gmem_to_smem(ref.at[where(at)], buffer.at[slot], fill.at[slot])

    walk(entries, count, tile, None)
    drain(count, stages, *freed)


def parts(refs: tuple, *sizes: int) -> list[tuple]:
    """Cuts `refs` in parts of these sizes, and the rest."""
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [refs[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True)]


def rotation_scratch(rotation: Rotation | tuple[()], groups: int) -> tuple:
    """What a kernel that turns heads holds: the swap, positions of every warpgroup, and a barrier for the swap."""
    if not rotation:
        return ()
    places = plgpu.SMEM((groups, rotation.positions.shape[1], GROUP_ROWS), jnp.int32)
    return plgpu.SMEM(rotation.swap.shape, rotation.swap.dtype), places, plgpu.Barrier()


def turned(form: Form, x: jax.Array, smem, swap, turns, positions, back: bool = False) -> jax.Array:
    """Heads turned by their positions, or gradients turned back, and for xPos scaled.

    Args:
        x: float32[64, H], or a ref of it in another dtype.
        smem: ref[64, H] that has `x` in the dtype of `swap`.
        swap, turns, positions: refs of a `Rotation`, positions those of the 64 rows.
    """
    swapped, shape = product(form, smem, swap), x.shape
    whole, rest = 0.0, 0.0
    for axis in range(turns.shape[0] // 4):
        for i, digit in enumerate((positions[axis] >> DIGIT, positions[axis] & (2**DIGIT - 1))):
            digit = rows(digit.astype(jnp.float32), shape)
            at = 4 * axis + 2 * i
            upper, lower = (columns(plgpu.load(turns.at[at + j], optimized=False), shape) for j in (0, 1))
            whole += upper * digit - jnp.round(upper * digit)
            rest += lower * digit
    angle = whole + rest
    angle = (angle - jnp.round(angle)) * (-2 * math.pi if back else 2 * math.pi)
    x = x[...].astype(jnp.float32) * jnp.cos(angle) + swapped * jnp.sin(angle)
    if turns.shape[0] % 4 == 0:
        return x
    log_scale = columns(plgpu.load(turns.at[turns.shape[0] - 1], optimized=False), shape)
    exponent = log_scale * rows(positions[positions.shape[0] - 1].astype(jnp.float32), shape)
    return x * jnp.exp2(jnp.minimum(jnp.maximum(exponent, -MAX_EXPONENT), MAX_EXPONENT))


def finish(form: Form, gradient: jax.Array, smem, angles: tuple, turning: tuple, group: jax.Array) -> None:
    """Writes float32[64, H] to `smem`, turned back where heads turn.

    Args:
        angles: refs of a `Rotation`, or ().
        turning: of its `rotation_scratch`.
    """
    if angles:
        swap, places, swap_full = turning
        plgpu.barrier_wait(swap_full)
        smem[...] = gradient.astype(swap.dtype)
        plgpu.commit_smem()
        gradient = turned(form, gradient, smem, swap, angles[1], places.at[group], back=True)
    smem[...] = gradient.astype(smem.dtype)


def transposed(ref):
    """A ref of shared memory with its two axes swapped."""
    return ref.T if hasattr(ref, "T") else plgpu.transpose_ref(ref, (1, 0))


def product(form: Form, a, b, onto=None, meanwhile: Callable[[], None] = lambda: None) -> jax.Array:
    """float32 a @ b, plus `onto`, on the tensor cores.

    Args:
        a: ref of shared memory, or an array in registers.
        b: ref of shared memory.
        onto: float32 array in registers, or None.
        meanwhile: called between issuing the product and waiting for it.
    """
    if form.interpret is not None:  # the interpreter has no wgmma on registers
        out = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)
        plgpu.commit_smem()  # a copy may follow plain reads only then; wgmma reads as copies write
        meanwhile()
        return out if onto is None else onto + out

    def issue(acc):
        plgpu.wgmma(acc, a, b)
        meanwhile()

    if onto is not None:
        return pl.run_state(issue)(plgpu.ACC.init(onto))

    def fresh(acc):
        issue(acc)
        return acc[...]

    return pl.run_scoped(fresh, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def scaled(xpos, x, q_block, k_block):
    """The block that a warpgroup keeps, as the left side of a product with block `k_block` (or `q_block`).

    Args:
        xpos: refs of `XPos` (centres of one row), or () without xPos.
        x: ref[64, H] of shared memory.

    Returns:
        `x` and None without xPos; else `x` scaled, in registers, and the scale float32[H].
    """
    if not xpos:
        return x, None
    log_zeta, q_centers, k_centers = xpos
    distance = (q_centers[q_block] - k_centers[k_block]).astype(jnp.float32)
    exponent = plgpu.load(log_zeta, optimized=False) * distance
    scale = jnp.exp2(jnp.minimum(jnp.maximum(exponent, -MAX_EXPONENT), MAX_EXPONENT))
    return (x[...].astype(jnp.float32) * columns(scale, x.shape)).astype(x.dtype), scale


def add_product(form: Form, total: jax.Array, a, b, scale: jax.Array | None) -> jax.Array:
    """total + (a @ b) with its columns scaled."""
    if scale is None:
        return product(form, a, b, onto=total)
    return total + product(form, a, b) * columns(scale, total.shape)


def rows(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """One value a row, repeated along the columns."""
    return lax.broadcast_in_dim(x, shape, [0])


def columns(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """One value a column, repeated along the rows."""
    return lax.broadcast_in_dim(x, shape, [1])


def capped(form: Form, logits: jax.Array) -> jax.Array:
    """Raw products as logits in powers of two."""
    if form.soft_cap is None:
        return logits * (form.scale * LOG2_E)
    grown = jnp.exp2(logits * (2 * LOG2_E * form.scale / form.soft_cap))
    return (form.soft_cap * LOG2_E) * (1 - 2 / (1 + grown))  # tanh; the instruction for it has only 11 bits


def through_cap(form: Form, d_logits: jax.Array, weights: jax.Array, lse: jax.Array) -> jax.Array:
    """Gradient of the logits before the soft cap. Its slope comes from the weights: logits kept would not fit."""
    if form.soft_cap is None:
        return d_logits
    bent = (jnp.log2(weights) + lse) * (1 / (form.soft_cap * LOG2_E))
    return jnp.where(weights > 0, d_logits * (1 - bent * bent), 0.0)


def hide(logits: jax.Array, full: jax.Array, start: jax.Array, stop: jax.Array, first_key, key_axis: int) -> jax.Array:
    """The logits of a tile with LOWEST where a query does not see the key; untouched where the tile is full."""
    spread = (columns, rows)[key_axis]

    def masked(logits):
        shape = logits.shape
        key = lax.broadcasted_iota(jnp.int32, shape, key_axis) + first_key
        visible = (spread(start, shape) <= key) & (key < spread(stop, shape))
        return jnp.where(visible, logits, LOWEST)

    return lax.cond(full, lambda logits: logits, masked, logits)


def compiler_params() -> plgpu.CompilerParams:
    """Fast exponentials; the default of the lowering differs between versions of JAX."""
    return plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
