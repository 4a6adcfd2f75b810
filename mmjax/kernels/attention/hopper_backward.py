"""Backward attention on Hopper: one kernel for the queries, one for keys and values; no atomics, so bit-reproducible.

Both compute the weights of a tile again from the log-sum-exp.

Source: FlashAttention-2 (arXiv:2307.08691) algorithm 2, with its two accumulations in kernels of their own.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.kernels.attention import hopper
from mmjax.kernels.attention.hopper import GROUP_ROWS, Form, Rotation, TileList, XPos, columns, rows

GROUPS = 2


def backward_queries(
    form: Form, q, k, v, d_out, bounds, stats, tiles: TileList, xpos: XPos | tuple[()], rotation: Rotation | tuple[()],
    *, size: int, stages: int,
):
    """Gradient with respect to the queries, [B, T, N, H] in their dtype.

    Args:
        form, k, v, bounds, tiles, xpos, size, stages: see `hopper_forward.forward`.
        q: [B, T, N, H] turned queries.
        d_out: [B, T, N, H] cotangent of the output, in the dtype of `q`.
        stats: float32[B, N, 2, I * 128] log-sum-exp, and the products of output and cotangent.
        rotation: of the queries, to turn the gradient back; or ().
    """
    b, _, n, h = q.shape
    group_heads = n // k.shape[2]
    num_blocks = tiles.count.shape[1]
    shape = (GROUP_ROWS, size)

    def kernel(q, k, v, d_out, bounds, stats, entries, count, *refs):
        scales, angles, refs = hopper.parts(refs, len(xpos), len(rotation))
        d_q, buffers, q_full, k_full, v_full, k_free, v_free, turning = refs
        q_smem, d_out_smem, bounds_smem, stats_smem, k_smem, v_smem = buffers
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

        @pl.when(group < GROUPS)
        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            place = block * GROUPS + group
            mine = pl.ds(place * GROUP_ROWS, GROUP_ROWS)
            queries, d_out_rows = q_smem.at[group], d_out_smem.at[group]
            plgpu.copy_gmem_to_smem(q.at[row, mine, head], queries, q_full.at[group])
            plgpu.copy_gmem_to_smem(d_out.at[row, mine, head], d_out_rows, q_full.at[group])
            plgpu.copy_gmem_to_smem(bounds.at[row, :, mine], bounds_smem.at[group], q_full.at[group])
            plgpu.copy_gmem_to_smem(stats.at[row, head, :, mine], stats_smem.at[group], q_full.at[group])
            if rotation:
                plgpu.copy_gmem_to_smem(angles[2].at[row, :, mine], turning[1].at[group], q_full.at[group])
            plgpu.barrier_wait(q_full.at[group])
            start, stop = bounds_smem[group, 0], bounds_smem[group, 1]
            lse, delta = stats_smem[group, 0], stats_smem[group, 1]

            def tile(step, at, full, d_q):
                slot = hopper.slot_of(step, stages)
                left, scale = hopper.scaled(scales, queries, place, at)
                plgpu.barrier_wait(k_full.at[slot])
                logits = hopper.product(form, left, hopper.transposed(k_smem.at[slot]))
                logits = hopper.hide(hopper.capped(form, logits), full, start, stop, at * size, key_axis=1)
                weights = jnp.exp2(logits - rows(lse, shape))
                plgpu.barrier_wait(v_full.at[slot])
                d_weights = hopper.product(form, d_out_rows, hopper.transposed(v_smem.at[slot]))
                plgpu.barrier_arrive(v_free.at[slot])
                d_logits = weights * (d_weights - rows(delta, shape))
                d_logits = hopper.through_cap(form, d_logits, weights, rows(lse, shape))
                d_q = hopper.add_product(form, d_q, d_logits.astype(k.dtype), k_smem.at[slot], scale)
                plgpu.barrier_arrive(k_free.at[slot])
                return d_q

            total = hopper.walk(entries, count, tile, jnp.zeros((GROUP_ROWS, h), jnp.float32))
            hopper.finish(form, total * form.scale, queries, angles, turning, group)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, d_q.at[row, mine, head])
            plgpu.wait_smem_to_gmem(0)

    smem = plgpu.SMEM
    buffers = (
        smem((GROUPS, GROUP_ROWS, h), q.dtype),
        smem((GROUPS, GROUP_ROWS, h), q.dtype),
        smem((GROUPS, 2, GROUP_ROWS), jnp.int32),
        smem((GROUPS, 2, GROUP_ROWS), jnp.float32),
        smem((stages, size, h), k.dtype),
        smem((stages, size, h), v.dtype),
    )
    filled, freed = plgpu.Barrier(num_barriers=stages), plgpu.Barrier(num_arrivals=GROUPS, num_barriers=stages)
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=(
            buffers, plgpu.Barrier(num_arrivals=5 if rotation else 4, num_barriers=GROUPS), *[filled] * 2, *[freed] * 2,
            hopper.rotation_scratch(rotation, GROUPS)),
        grid=(b, num_blocks, n),
        grid_names=("row", "block", "head"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=hopper.compiler_params(),
        interpret=form.interpret,
    )(q, k, v, d_out, bounds, stats, *tiles, *xpos, *rotation)


def backward_keys(
    form: Form, q, k, v, d_out, bounds, stats, tiles: TileList, xpos: XPos | tuple[()], rotation: Rotation | tuple[()],
    *, size: int, stages: int, wanted: str, pair_heads: bool,
):
    """Gradients with respect to keys and values, [B, S, K, H] each in their dtype, those that are wanted.

    Queries stream past keys that stay. A warpgroup keeps 64 keys of one head and adds up over the query heads that
    read it, so nothing is summed across thread blocks.

    Args:
        form, k, v, bounds, xpos, stages: see `hopper_forward.forward`.
        q, d_out, stats: see `backward_queries`.
        rotation: of the keys; () where they do not turn or their gradient is not wanted.
        tiles: lists of blocks of queries by block of keys.
        size: queries of a tile.
        wanted: "k", "v" or "kv"; one at a time where the accumulators of both do not fit in registers.
        pair_heads: whether the two warpgroups take the same 64 keys of two heads, rather than 128 keys of one.
    """
    b, s, num_heads, h = k.shape
    heads_per_key = q.shape[2] // num_heads
    num_blocks = tiles.count.shape[1]
    shape = (GROUP_ROWS, size)
    lanes = (GROUPS,) if pair_heads else ()  # streams of queries
    num_lanes = math.prod(lanes)
    want_k, want_v = "k" in wanted, "v" in wanted

    def kernel(q, k, v, d_out, bounds, stats, entries, count, *refs):
        scales, angles, outs, refs = hopper.parts(refs, len(xpos), len(rotation), len(wanted))
        buffers, k_full, q_full, d_out_full, free, turning = refs
        k_smem, v_smem, q_smem, d_out_smem, bounds_smem, stats_smem = buffers
        row, group = lax.axis_index("row"), lax.axis_index("group")
        block, head = lax.axis_index("block"), lax.axis_index("head") * num_lanes
        entries, count = entries.at[row, block], count[row, block]
        scales = scales and (scales[0], *(centers.at[row] for centers in scales[1:]))

        @pl.when(group == GROUPS)
        def load():
            plgpu.set_max_registers(hopper.LOAD_REGISTERS, action="decrease")
            if rotation:
                plgpu.copy_gmem_to_smem(angles[0], turning[0], turning[2])

            def tile(step, at, full, _):
                slot = hopper.slot_of(step, stages)

                @pl.when(step >= stages)
                def wait():
                    plgpu.barrier_wait(free.at[slot])

                part = pl.ds(at * size, size)
                for lane in np.ndindex(lanes):
                    q_head = (head + sum(lane)) * heads_per_key + lax.div(step, count)
                    to = slot, *lane
                    plgpu.copy_gmem_to_smem(q.at[row, part, q_head], q_smem.at[to], q_full.at[slot])
                    plgpu.copy_gmem_to_smem(stats.at[row, q_head, :, part], stats_smem.at[to], q_full.at[slot])
                    plgpu.copy_gmem_to_smem(d_out.at[row, part, q_head], d_out_smem.at[to], d_out_full.at[slot])
                plgpu.copy_gmem_to_smem(bounds.at[row, :, part], bounds_smem.at[slot], q_full.at[slot])

            hopper.walk(entries, count, tile, None, repeats=heads_per_key)
            hopper.drain(count * heads_per_key, stages, free)

        @pl.when(group < GROUPS)
        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            place = block if pair_heads else block * GROUPS + group
            first = place * GROUP_ROWS
            mine = row, pl.ds(first, GROUP_ROWS), head + group if pair_heads else head
            keys, values = k_smem.at[group], v_smem.at[group]
            plgpu.copy_gmem_to_smem(k.at[mine], keys, k_full.at[group])
            plgpu.copy_gmem_to_smem(v.at[mine], values, k_full.at[group])
            if rotation:
                plgpu.copy_gmem_to_smem(angles[2].at[row, :, mine[1]], turning[1].at[group], k_full.at[group])
            plgpu.barrier_wait(k_full.at[group])

            def tile(step, at, full, state):
                d_k, d_v = state
                slot = hopper.slot_of(step, stages)
                lane = (slot, group) if pair_heads else (slot,)
                queries, d_out_rows = q_smem.at[lane], d_out_smem.at[lane]
                kept = hopper.kept_at(group, step, stages)
                keys, values = k_smem.at[kept], v_smem.at[kept]
                left, scale = hopper.scaled(scales, keys, at, place)
                plgpu.barrier_wait(q_full.at[slot])
                logits = hopper.product(form, left, hopper.transposed(queries))
                start, stop = bounds_smem[slot, 0], bounds_smem[slot, 1]
                logits = hopper.hide(hopper.capped(form, logits), full, start, stop, first, key_axis=0)
                lse = columns(stats_smem[*lane, 0], shape)
                weights = jnp.exp2(logits - lse)
                plgpu.barrier_wait(d_out_full.at[slot])
                if want_v:
                    d_v = hopper.product(form, weights.astype(q.dtype), d_out_rows, onto=d_v)
                if want_k:
                    d_weights = hopper.product(form, values, hopper.transposed(d_out_rows))
                    d_logits = weights * (d_weights - columns(stats_smem[*lane, 1], shape))
                    d_logits = hopper.through_cap(form, d_logits, weights, lse)
                    d_k = hopper.add_product(form, d_k, d_logits.astype(q.dtype), queries, scale)
                plgpu.commit_smem()  # the plain reads of bounds and statistics before the copy that replaces them
                plgpu.barrier_arrive(free.at[slot])
                return d_k, d_v

            nothing = tuple(jnp.zeros((GROUP_ROWS, h), jnp.float32) if want else None for want in (want_k, want_v))
            d_k, d_v = hopper.walk(entries, count, tile, nothing, repeats=heads_per_key)
            if want_k:
                hopper.finish(form, d_k * form.scale, keys, angles, turning, group)
            if want_v:
                values[...] = d_v.astype(v.dtype)
            plgpu.commit_smem()
            for out, smem in zip(outs, [keys] * want_k + [values] * want_v, strict=True):
                plgpu.copy_smem_to_gmem(smem, out.at[mine])
            plgpu.wait_smem_to_gmem(0)

    smem = plgpu.SMEM
    buffers = (
        smem((GROUPS, GROUP_ROWS, h), k.dtype),
        smem((GROUPS, GROUP_ROWS, h), v.dtype),
        smem((stages, *lanes, size, h), q.dtype),
        smem((stages, *lanes, size, h), q.dtype),
        smem((stages, 2, size), jnp.int32),
        smem((stages, *lanes, 2, size), jnp.float32),
    )
    barriers = (
        plgpu.Barrier(num_arrivals=3 if rotation else 2, num_barriers=GROUPS),
        plgpu.Barrier(num_arrivals=2 * num_lanes + 1, num_barriers=stages),
        plgpu.Barrier(num_arrivals=num_lanes, num_barriers=stages),
        plgpu.Barrier(num_arrivals=GROUPS, num_barriers=stages),
    )
    return plgpu.kernel(
        kernel,
        out_type=tuple(jax.ShapeDtypeStruct(k.shape, k.dtype) for _ in wanted),
        scratch_types=(buffers, *barriers, hopper.rotation_scratch(rotation, GROUPS)),
        grid=(b, num_blocks, num_heads // num_lanes),
        grid_names=("row", "block", "head"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=hopper.compiler_params(),
        interpret=form.interpret,
    )(q, k, v, d_out, bounds, stats, *tiles, *xpos, *rotation)
