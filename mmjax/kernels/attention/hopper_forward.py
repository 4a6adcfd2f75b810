"""Forward attention on Hopper: output and log-sum-exp.

Source: FlashAttention-3 (arXiv:2407.08608): a warpgroup that only loads, two that take turns on the tensor cores, so
that the softmax of one runs under the products of the other.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.kernels.attention import hopper
from mmjax.kernels.attention.hopper import GROUP_ROWS, LOWEST, Form, Rotation, TileList, XPos, rows

GROUPS = 2


def forward(
    form: Form, q, k, v, bounds, tiles: TileList, xpos: XPos | tuple[()], rotation: Rotation | tuple[()], *, size: int,
    stages: int,
):
    """Attention of every query to the keys of its interval.

    Args:
        form: what is fixed at compile time.
        q: float16 or bfloat16[B, T, N, H], H a multiple of 16.
        k, v: [B, S, K, H] of the same dtype, keys turned.
        bounds: int32[B, 2, I * 128] start and stop of the intervals, within [0, S], empty past T.
        tiles: of I blocks of 128 queries.
        xpos: () without xPos; with it, `size` is 64.
        rotation: of the queries; () if they come turned or need not.
        size: keys of a tile.
        stages: tiles in flight.

    Returns:
        [B, T, N, H] in the dtype of `q`; float32[B, N, I * 128] binary logarithm of the sum of exponentials; and with a
        rotation the turned queries, for the backward pass.
    """
    b, t, n, h = q.shape
    group_heads = n // k.shape[2]
    num_blocks = tiles.count.shape[1]
    shape = (GROUP_ROWS, size)

    def kernel(q, k, v, bounds, entries, count, *refs):
        scales, angles, refs = hopper.parts(refs, len(xpos), len(rotation))
        out, lse, *q_turned, buffers, full, free, turns, turning = refs
        q_smem, k_smem, v_smem, bounds_smem, lse_smem = buffers
        q_full, k_full, v_full = full
        k_free, v_free = free
        row, head, group = lax.axis_index("row"), lax.axis_index("head"), lax.axis_index("group")
        block = num_blocks - 1 - lax.axis_index("block")  # causal rows grow: the longest lists start first
        entries, count = entries.at[row, block], count[row, block]
        scales = scales and (scales[0], *(centers.at[row] for centers in scales[1:]))

        @pl.when(group == GROUPS)
        def load():
            plgpu.set_max_registers(hopper.LOAD_REGISTERS, action="decrease")
            if rotation:
                plgpu.copy_gmem_to_smem(angles[0], turning[0], turning[2])
            hopper.load_key_tiles(
                k, v, (k_smem, v_smem), (k_full, v_full), (k_free, v_free), entries, count,
                lambda at: (row, pl.ds(at * size, size), lax.div(head, group_heads)),
            )

        def take_turn():
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

        def turn_queries(group, queries):
            swap, places, swap_full = turning
            plgpu.barrier_wait(swap_full)
            queries[...] = hopper.turned(form, queries, queries, swap, angles[1], places.at[group]).astype(q.dtype)
            plgpu.commit_smem()

        @pl.when(group < GROUPS)
        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            place = block * GROUPS + group
            mine = pl.ds(place * GROUP_ROWS, GROUP_ROWS)
            queries = q_smem.at[group]
            plgpu.copy_gmem_to_smem(q.at[row, mine, head], queries, q_full.at[group])
            plgpu.copy_gmem_to_smem(bounds.at[row, :, mine], bounds_smem.at[group], q_full.at[group])
            if rotation:
                plgpu.copy_gmem_to_smem(angles[2].at[row, :, mine], turning[1].at[group], q_full.at[group])
            plgpu.barrier_wait(q_full.at[group])
            start, stop = bounds_smem[group, 0], bounds_smem[group, 1]
            if rotation:
                turn_queries(group, queries)
                plgpu.copy_smem_to_gmem(queries, q_turned[0].at[row, mine, head])
            pl.when(group == 1)(take_turn)

            def tile(step, at, full, state):
                acc, top, total = state
                slot = hopper.slot_of(step, stages)
                left, _ = hopper.scaled(scales, queries, place, at)
                plgpu.barrier_wait(k_full.at[slot])
                logits = hopper.product(form, left, hopper.transposed(k_smem.at[slot]), meanwhile=take_turn)
                plgpu.barrier_arrive(k_free.at[slot])
                logits = hopper.hide(hopper.capped(form, logits), full, start, stop, at * size, key_axis=1)
                new_top = jnp.maximum(top, logits.max(1))
                decay = jnp.exp2(top - new_top)
                weights = jnp.exp2(logits - rows(new_top, shape))
                total = total * decay + weights.sum(1)
                acc *= rows(decay, acc.shape)
                weights = weights.astype(v.dtype)
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(v_full.at[slot])
                plgpu.barrier_wait(turns)
                acc = hopper.product(form, weights, v_smem.at[slot], onto=acc)
                plgpu.barrier_arrive(v_free.at[slot])
                return acc, new_top, total

            nothing = (
                jnp.zeros((GROUP_ROWS, h), jnp.float32),
                jnp.full((GROUP_ROWS,), LOWEST / 2, jnp.float32),
                jnp.zeros((GROUP_ROWS,), jnp.float32),
            )
            acc, top, total = hopper.walk(entries, count, tile, nothing)
            pl.when(group == 0)(take_turn)
            lse_of_rows = jnp.where(total == 0, -LOWEST, top + jnp.log2(total))  # weights of empty rows become 0
            total = jnp.where(total == 0, 1.0, total)
            plgpu.wait_smem_to_gmem(0)  # the turned queries have left
            queries[...] = (acc / rows(total, acc.shape)).astype(out.dtype)
            lse_smem[group] = lse_of_rows
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, out.at[row, mine, head])
            plgpu.copy_smem_to_gmem(lse_smem.at[group], lse.at[row, head, mine])
            plgpu.wait_smem_to_gmem(0)

    smem = plgpu.SMEM
    buffers = (
        smem((GROUPS, GROUP_ROWS, h), q.dtype),
        smem((stages, size, h), k.dtype),
        smem((stages, size, h), v.dtype),
        smem((GROUPS, 2, GROUP_ROWS), jnp.int32),
        smem((GROUPS, GROUP_ROWS), jnp.float32),
    )
    full = (
        plgpu.Barrier(num_arrivals=3 if rotation else 2, num_barriers=GROUPS),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
    )
    free = (plgpu.Barrier(num_arrivals=GROUPS, num_barriers=stages),) * 2
    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, n, bounds.shape[2]), jnp.float32),
            *[jax.ShapeDtypeStruct(q.shape, q.dtype)] * bool(rotation),
        ),
        scratch_types=(
            buffers, full, free, plgpu.Barrier(num_arrivals=GROUPS), hopper.rotation_scratch(rotation, GROUPS)),
        grid=(b, num_blocks, n),
        grid_names=("row", "block", "head"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=hopper.compiler_params(),
        interpret=form.interpret,
    )(q, k, v, bounds, *tiles, *xpos, *rotation)
