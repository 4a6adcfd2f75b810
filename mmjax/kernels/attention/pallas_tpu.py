"""Attention on TPUs: cuts the arrays into blocks, lists the visible tiles, and calls the kernels of `tpu_kernels`.

The grid is (rows, groups of heads, tiles). Its last axis is as long as the longest list of visible tiles of a row,
which is known when the program runs; the lists come by scalar prefetch and say which blocks a step wants. Blocks that
nobody sees are neither loaded nor computed.
"""

import dataclasses
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.kernels.attention import tiles as tiling
from mmjax.kernels.attention import tpu_kernels, turning
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.rotary import Rotary
from mmjax.kernels.attention.tpu_kernels import LOWEST, Form
from mmjax.kernels.target import platform

MAX_HEAD_DIM = 256
MAX_STEPS = 128 * 1024  # of all rows; scalar memory holds 256 Ki words
ROW_BYTES = 2**22  # on-chip memory for what a kernel keeps of a whole row: keys forward, d_q backward


def pallas_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None,
    bias: jax.Array | None,
    scale: float,
    soft_cap: float | None,
    block_queries: int | None = None,
    block_keys: int | None = None,
    heads: int | None = None,
    interpret: Any = None,
) -> jax.Array:
    """Computes softmax(cap(scale q k^T + bias)) v over the visible keys; arguments and result as in `api.attention`.

    Args:
        block_queries: upper bound of the queries of a tile; None to choose, here and below.
        block_keys: upper bound of the keys of a tile.
        heads: upper bound of the query heads of a step of the grid.
        interpret: None compiles for a TPU and interprets elsewhere; anything else goes to `pl.pallas_call`.
    """
    return _attend(q, k, v, mask, rotary, bias, _Options(scale, soft_cap, block_queries, block_keys, heads, interpret))


def refuse(q: jax.Array, k: jax.Array, v: jax.Array, **arguments) -> str | None:
    """Why the kernels cannot compute this call, or None if they can; arguments as in `api.attention`."""
    (b, t, _, h), s = q.shape, k.shape[1]
    if q.size == 0 or k.size == 0:
        return f"q {list(q.shape)} and k {list(k.shape)} have nothing to cut into blocks"
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"q {q.dtype}, k {k.dtype} and v {v.dtype} must all be bfloat16 or all float32"
    if h > MAX_HEAD_DIM:
        return f"head_dim={h} exceeds {MAX_HEAD_DIM}"
    form = plan(q, k)
    steps = b * form.num_queries * form.num_keys
    if steps > MAX_STEPS:
        return f"B={b} rows of T={t} and S={s} have {steps} tiles, more than the {MAX_STEPS} of scalar memory; split B"
    return None


def suits(*args, **kwargs) -> bool:
    """Whether to choose the kernels where a caller does not."""
    return platform() == "tpu"


class _Options(NamedTuple):
    """What is fixed at compile time, as `pallas_tpu` takes it."""

    scale: float
    soft_cap: float | None = None
    block_queries: int | None = None
    block_keys: int | None = None
    heads: int | None = None
    interpret: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, mask, rotary, bias, options):
    return _forward(q, k, v, mask, rotary, bias, options)[0]


def _attend_forward(q, k, v, mask, rotary, bias, options):
    out, lse = _forward(q, k, v, mask, rotary, bias, options)
    return out, (q, k, v, mask, rotary, bias, out, lse)


def _attend_backward(options, saved, d_out):
    d_q, d_k, d_v, d_bias = _backward(*saved, d_out, options)
    return d_q, d_k, d_v, None, None, d_bias


_attend.defvjp(_attend_forward, _attend_backward)


def forward(q, k, v, *, mask, rotary, bias, scale, soft_cap) -> tuple[jax.Array, jax.Array]:
    """One visit of `ring.Passes.forward`."""
    return _forward(q, k, v, mask, rotary, bias, _Options(scale, soft_cap))


def backward(q, k, v, out, lse, d_out, *, mask, rotary, bias, scale, soft_cap):
    """One visit of `ring.Passes.backward`."""
    return _backward(q, k, v, mask, rotary, bias, out, lse, d_out, _Options(scale, soft_cap))


def _forward(q, k, v, mask, rotary, bias, options: _Options) -> tuple[jax.Array, jax.Array]:
    """float[B, T, N, H] output and float32[B, N, T] log-sum-exp of the logits; LOWEST for a row without keys."""
    form = _form(q, k, rotary, bias, options, is_backward=False)
    (b, t, n, h), size = q.shape, (form.heads, form.block_queries)
    tables, inputs = _common(q, k, mask, rotary, bias, form)
    if not form.turns:
        inputs["k"] = _tokens_last_but_one(_arranged(k, rotary), form.block_keys), "bkj11"
    inputs["v"] = _tokens_last(_padded(v), form.block_keys), "bkj11"
    features, v_features = inputs["q"][0].shape[3], inputs["v"][0].shape[3]
    blocks = b, n, form.num_queries
    outputs = dict(
        out=(jax.ShapeDtypeStruct((*blocks, v_features, form.block_queries), v.dtype), "bni11"),
        lse=(jax.ShapeDtypeStruct((*blocks, 1, form.block_queries), jnp.float32), "bni11"),
    )
    scratch = dict(top=(form.heads, 1, size[1]), total=(form.heads, 1, size[1]), sum=(form.heads, v_features, size[1]))
    scratch = {name: pltpu.VMEM(shape, jnp.float32) for name, shape in scratch.items()}
    if form.turns:
        kept = form.num_keys if form.keeps_keys else 1
        scratch["q_turned"] = pltpu.VMEM((form.heads, features, size[1]), jnp.float32 if form.has_xpos else q.dtype)
        scratch["k_turned"] = pltpu.VMEM((kept, form.kv_heads, form.block_keys, features), k.dtype)
    tiles = tiling.tiles(mask, k.shape[1], form.block_queries, form.block_keys)
    out, lse = _call(tpu_kernels.forward, form, tiling.walk(tiles), "ij", tables, inputs, outputs, scratch)
    sees = _sees(mask, k)  # what no step has written is made zero here
    lse = jnp.where(sees[:, None], lse.reshape(b, n, -1)[..., :t] * form.unit, LOWEST)
    return jnp.where(sees[..., None, None], _from_tokens_last(out, t)[..., :h], 0), lse


def _backward(q, k, v, mask, rotary, bias, out, lse, d_out, options: _Options):
    """Gradients of q, k, v and bias, a part of the queries after the other: d_q of a part stays on chip."""
    form = _form(q, k, rotary, bias, options, is_backward=True)
    d_out = d_out.astype(v.dtype)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    stats = jnp.stack([lse.swapaxes(1, 2) / form.unit, delta], -1)
    args = IntervalMask(*tiling.clip(mask, k.shape[1])), rotary and rotary.q_positions, bias, stats, d_out
    part = max(ROW_BYTES // (4 * form.heads * _ceil(q.shape[3], 16) * form.block_queries), 1) * form.block_queries
    if part >= q.shape[1]:
        d_q, d_k, d_v, d_bias = _backward_part(q, k, v, rotary, *args, options)
    else:
        args = [_parts(x, 2 if x is bias else 1, part) for x in (q, *args)]

        def step(sums, some):
            d_q, d_k, d_v, d_bias = _backward_part(some[0], k, v, rotary, *some[1:], options)
            return (sums[0] + d_k, sums[1] + d_v), (d_q, d_bias)

        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
        (d_k, d_v), (d_q, d_bias) = jax.lax.scan(step, zeros, args)
        d_q = _joined(d_q, 1, q.shape[1])
        d_bias = None if bias is None else _joined(d_bias, 2, q.shape[1])
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), d_bias


def _parts(tree: Any, axis: int, size: int) -> Any:
    """Cuts an axis of every array in parts of `size`, the last filled up with zeros, and puts their number first."""

    def cut(x):
        x = jnp.pad(x, [(0, -n % size if i == axis else 0) for i, n in enumerate(x.shape)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(cut, tree)


def _joined(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Undoes `_parts` for an axis that had `size` entries."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)


def _backward_part(q, k, v, rotary, mask, q_positions, bias, stats, d_out, options: _Options):
    """Float32 gradients, as far as these queries contribute."""
    rotary = rotary and dataclasses.replace(rotary, q_positions=q_positions)
    form = _form(q, k, rotary, bias, options, is_backward=True)
    (b, t, n, h), (s, num_kv_heads) = q.shape, k.shape[1:3]
    tables, inputs = _common(q, k, mask, rotary, bias, form)
    inputs["v"] = _tokens_last_but_one(_padded(v), form.block_keys), "bkj11"
    inputs["d_out"] = _tokens_last(_padded(d_out), form.block_queries), "bni11"
    inputs["stats"] = _tokens_last(jnp.where(_sees(mask, k)[..., None, None], stats, 0), form.block_queries), "bni11"
    features, v_features = inputs["q"][0].shape[3], inputs["v"][0].shape[4]
    groups = b, n // form.heads, form.kv_heads, form.num_keys, form.block_keys
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    outputs = dict(
        d_q=(f32((b, n, form.num_queries, features, form.block_queries)), "bn111"),
        d_k=(f32((*groups, features)), "bg1j11"),
        d_v=(f32((*groups, v_features)), "bg1j11"),
    )
    if form.has_bias:
        tile = form.num_queries, form.num_keys, form.block_keys, form.block_queries
        outputs["d_bias"] = f32((b, n, *tile)), "bnij11"
    scratch = dict(k_tokens=pltpu.VMEM((form.kv_heads, form.block_keys, features), k.dtype))
    if form.turns:
        scratch["k_features"] = pltpu.VMEM((form.kv_heads, features, form.block_keys), k.dtype)
        shape = form.heads, form.num_queries, features, form.block_queries
        scratch["q_turned"] = pltpu.VMEM(shape, jnp.float32 if form.has_xpos else q.dtype)
    tiles = tiling.tiles(mask, s, form.block_queries, form.block_keys)
    walk = tiling.walk(tiling.Tiles(*(x.swapaxes(1, 2) for x in tiles)))
    d_q, d_k, d_v, *d_bias = _call(tpu_kernels.backward, form, walk, "ji", tables, inputs, outputs, scratch)

    # What no step has written is made zero here.
    d_q = jnp.where(_sees(mask, k)[..., None, None], _restored(_from_tokens_last(d_q, t), rotary, h), 0)
    seen = tiles.visible.any(1)[:, None, None, :, None, None]
    d_k, d_v = (_sum_groups(jnp.where(seen, x, 0), num_kv_heads, s) for x in (d_k, d_v))
    if form.has_bias:
        d_bias = jnp.where(tiles.visible[:, None, :, :, None, None], d_bias[0], 0)
        d_bias = d_bias.transpose(0, 1, 2, 5, 3, 4).reshape(b, n, form.num_queries * form.block_queries, -1)
        d_bias = d_bias[:, :, :t, :s]
        d_bias = d_bias if bias.shape[0] == b else d_bias.sum(0, keepdims=True)
    else:
        d_bias = None
    return d_q, _restored(d_k, rotary, h), d_v[..., :h], d_bias


def plan(q: jax.Array, k: jax.Array, is_backward: bool = False) -> Form:
    """The sizes chosen for queries [B, T, N, H] and keys [B, S, K, H] where a caller names none."""
    return _form(q, k, None, None, _Options(1.0), is_backward)


def _form(q, k, rotary, bias, options: _Options, is_backward: bool) -> Form:
    (_, t, n, h), (s, num_kv_heads) = q.shape, k.shape[1:3]
    # By the compiler's schedules (experiments/benchmarks/attention_tpu_static.py), per visible pair of packed documents
    # and of one long one. Where keys are fewer than queries, these read one image of several: small blocks leave out
    # the others. Wide heads get less, to fit the 16 MiB of a v4; long rows get more, for shorter lists.
    wide = h * q.dtype.itemsize > 256
    if s < t:
        sizes = 256, 64, 1 if wide else 4
    elif wide:
        sizes = 256, 256, 1
    else:
        sizes = (512, 512, 2) if is_backward or t * s > 2**26 else (256, 256, 4)
    given = options.block_queries, options.block_keys, options.heads
    block_queries, block_keys, most = (a or b for a, b in zip(given, sizes, strict=True))
    block_queries, block_keys, group = _even(t, block_queries, 128), _even(s, block_keys, 16), n // num_kv_heads
    heads = max(x for x in range(1, most + 1) if n % x == 0 and (group % x == 0 or x % group == 0))
    kv_heads = max(heads // group, 1)
    return Form(
        scale=float(options.scale),
        soft_cap=options.soft_cap,
        has_bias=bias is not None,
        turns=rotary is not None,
        has_xpos=rotary is not None and rotary.xpos_scale_base is not None,
        keeps_keys=kv_heads * s * h * q.dtype.itemsize <= ROW_BYTES,
        block_queries=block_queries,
        block_keys=block_keys,
        num_queries=-(-t // block_queries),
        num_keys=-(-s // block_keys),
        heads=heads,
        kv_heads=kv_heads,
        group=group,
        interpret=options.interpret,
    )


def _even(length: int, bound: int, multiple: int) -> int:
    """Size of the blocks when `length` is cut into as few equal ones as `bound` allows, rounded up to `multiple`."""
    return _ceil(-(-length // -(-length // bound)), multiple)


def _ceil(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _common(q, k, mask, rotary, bias, form: Form) -> tuple[dict, dict]:
    """Tables to prefetch, and the inputs that both kernels read, with their axes (see `_call`)."""
    start, stop = tiling.clip(mask, k.shape[1])
    lowest = jnp.iinfo(jnp.int32).min
    # A key is visible if key - start < stop - start without a sign, which one signed comparison tells after a shift.
    tables, rows = {}, [(lowest - start)[..., None], (lowest + stop - start)[..., None]]
    inputs = dict(
        q=(_tokens_last(_arranged(q, rotary), form.block_queries), "bni11"),
        k=(_tokens_last(_arranged(k, rotary), form.block_keys), "bkj11"),
    )
    if form.turns:
        q_positions, k_positions = (x.reshape(*x.shape[:2], -1) for x in (rotary.q_positions, rotary.k_positions))
        rows.append(q_positions)
        inputs["columns"] = _tokens_last(k_positions[:, :, None], form.block_keys), "b0j11"
        inputs["constants"] = jnp.asarray(turning.constants(rotary, q.shape[3])), "11"
    if form.has_xpos:
        tables["q_centers"] = _centers(rotary.q_positions, form.block_queries)
        tables["k_centers"] = _centers(rotary.k_positions, form.block_keys)
    inputs["rows"] = _tokens_last(jnp.concatenate(rows, -1)[:, :, None].astype(jnp.int32), form.block_queries), "b0i11"
    if form.has_bias:
        missing = [(0, size * number - x) for size, number, x in zip(
            (form.block_queries, form.block_keys), (form.num_queries, form.num_keys), bias.shape[2:], strict=True)]
        bias = jnp.pad(bias, [(0, 0), (0, 0), *missing])
        shape = *bias.shape[:2], form.num_queries, form.block_queries, form.num_keys, form.block_keys
        row = "b" if bias.shape[0] == q.shape[0] else "0"
        inputs["bias"] = bias.reshape(shape).transpose(0, 1, 2, 4, 5, 3), f"{row}nij11"
    return tables, inputs


def _call(kernel, form: Form, walk: tiling.Walk, order: str, tables: dict, inputs: dict, outputs: dict, scratch: dict):
    """Runs a kernel over the tiles of every row and group of heads.

    Args:
        kernel: takes the form, the row, the step of the walk, and a namespace of refs: the tables, inputs, outputs and
            scratch by their names.
        order: "ij" if the outer blocks of the walk are those of queries, "ji" if they are those of keys.
        tables: name -> int32 array for scalar memory.
        inputs, outputs: name -> array (or its shape) and a letter an axis: what a step takes of it. b its row, n its
            heads, k its key heads, g its group of heads, i its block of queries, j its block of keys, 0 the first
            entry, 1 everything.
    """
    tables = dict(steps=walk.steps.ravel(), **tables)
    names = [*tables, *inputs, *outputs, *scratch]
    tiles_of_a_row = walk.steps.shape[1]

    def spec(array, axes):
        sizes = dict(n=form.heads, k=form.kv_heads)
        block = [size if axis == "1" else sizes.get(axis) for axis, size in zip(axes, array.shape, strict=True)]

        def index(row, heads, step, steps, *_):
            code = steps[row * tiles_of_a_row + step]
            at = dict(zip(order, (code >> tiling.OUTER, tpu_kernels.inner_block(code)), strict=True))
            at |= {"b": row, "n": heads, "g": heads, "k": jax.lax.div(heads * form.heads, form.group * form.kv_heads)}
            return tuple(at.get(axis, 0) for axis in axes)

        return pl.BlockSpec(tuple(block), index)

    def body(*refs):
        named = {"q_centers": None, "k_centers": None} | dict(zip(names, refs, strict=True))
        row, step = pl.program_id(0), pl.program_id(2)
        kernel(form, row, named["steps"][row * tiles_of_a_row + step], types.SimpleNamespace(**named))

    def run(interpret, num_steps, *args):
        q = inputs["q"][0]
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(tables),
                grid=(q.shape[0], q.shape[1] // form.heads, num_steps),
                in_specs=[spec(*x) for x in inputs.values()],
                out_specs=[spec(*x) for x in outputs.values()],
                scratch_shapes=list(scratch.values()),
            ),
            out_shape=[x[0] for x in outputs.values()],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
            interpret=interpret,
            name=f"attention_{kernel.__name__}",
        )(*args)

    args = jnp.maximum(walk.count.max(), 1), *tables.values(), *(x[0] for x in inputs.values())
    if form.interpret is not None:
        return run(form.interpret, *args)
    compiled, interpreted = (functools.partial(run, x) for x in (False, True))
    return jax.lax.platform_dependent(*args, tpu=compiled, default=interpreted)


def _sees(mask: IntervalMask, k: jax.Array) -> jax.Array:
    start, stop = tiling.clip(mask, k.shape[1])
    return start < stop


def _arranged(x: jax.Array, rotary: Rotary | None) -> jax.Array:
    """[B, T, N, H] -> [B, T, N, features] in the order of the kernels."""
    return _padded(x if rotary is None else turning.arrange(x, rotary))


def _restored(x: jax.Array, rotary: Rotary | None, head_dim: int) -> jax.Array:
    return x[..., :head_dim] if rotary is None else turning.restore(x, rotary, head_dim)


def _padded(x: jax.Array) -> jax.Array:
    """Features filled up to whole registers of bfloat16."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[3] % 16)))


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """[B, T, N, h] -> [B, I, size, N, h], with zeros for the tokens that fill up the last block."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _tokens_last(x: jax.Array, size: int) -> jax.Array:
    """[B, T, N, h] -> [B, N, I, h, size]."""
    return _blocks(x, size).transpose(0, 3, 1, 4, 2)


def _tokens_last_but_one(x: jax.Array, size: int) -> jax.Array:
    """[B, T, N, h] -> [B, N, I, size, h]."""
    return _blocks(x, size).transpose(0, 3, 1, 2, 4)


def _from_tokens_last(x: jax.Array, num_tokens: int) -> jax.Array:
    """[B, N, I, h, size] -> [B, T, N, h]."""
    b, n, _, h, _ = x.shape
    return x.transpose(0, 2, 4, 1, 3).reshape(b, -1, n, h)[:, :num_tokens]


def _sum_groups(x: jax.Array, num_kv_heads: int, num_tokens: int) -> jax.Array:
    """[B, N / heads, kv_heads, J, Z, h] -> [B, S, K, h], the sum over the groups of heads that share a key head."""
    b, groups, kv_heads, j, z, h = x.shape
    x = x.reshape(b, num_kv_heads, groups * kv_heads // num_kv_heads, j * z, h).sum(2)
    return x.swapaxes(1, 2)[:, :num_tokens]


def _centers(positions: jax.Array, size: int) -> jax.Array:
    """int32[B I] half way between the smallest and the largest position of every block."""
    b, t = positions.shape
    x = jnp.pad(positions.astype(jnp.int32), ((0, 0), (0, -t % size)), mode="edge").reshape(b, -1, size)
    return (x.min(2) + (x.max(2) - x.min(2)) // 2).ravel()
