"""All pairs of features that lie on many devices, block by block round a ring.

Every device keeps its x. Blocks of y are handed from each device to the next until each has been everywhere; what
a column of the similarities adds up to travels with its block, and so does, in the backward pass, the gradient of y. No
device ever holds more of the similarities than a part of one block, nor the features of all.

Source: the chunked sigmoid loss of SigLIP (arXiv:2303.15343, section 3.3), here for both losses and in both directions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.kernels.placement import ROWS, axes_for, free_axes, is_explicit, num_devices

LOWEST = -1e30          # the logarithm of nothing; finite, so that joining two of them has no inf - inf
BLOCK = 1 << 22         # similarities held at a time


class _Ring(NamedTuple):
    """What is no array: the loss, the mesh axes that the rows are split over, the devices along them."""

    form: str
    axes: tuple[str, ...]
    size: int

    def send(self, block: Any) -> Any:
        """Every array of a block to the next device."""
        if self.size == 1:
            return block
        to_next = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.axes, to_next), block)

    def total(self, x: Any) -> Any:
        return jax.lax.psum(x, self.axes) if self.size > 1 else x


class _Side(NamedTuple):
    """What the pairs of a row, or of a column, add up to so far.

    Attributes:
        sum: float32[n] log-sum-exp of similarities ("softmax"), or sum of the pairs' losses ("sigmoid", rows alone).
        top: float32[n] the largest similarity to another than its own partner.
    """

    sum: jax.Array
    top: jax.Array

    def join(self, other: "_Side", form: str) -> "_Side":
        add = jnp.logaddexp if form == "softmax" else jnp.add
        return _Side(add(self.sum, other.sum), jnp.maximum(self.top, other.top))


def ring(x, y, weights, scale, bias, *, form: str) -> tuple[jax.Array, jax.Array]:
    """Rows split over the devices of the current mesh; arguments and results as `api.pair_loss`."""
    axes = axes_for(ROWS, len(x))
    return _pairs(x, y, weights, scale, bias, _Ring(form, axes, num_devices(axes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _pairs(x, y, weights, scale, bias, ring: _Ring):
    return _forward(x, y, weights, scale, bias, ring)[0]


def _forward(x, y, weights, scale, bias, ring: _Ring):
    rows = P(ring.axes)
    sums, sides = _on_devices(_local_forward, ring, (x, y, weights, scale, bias), ((P(), P()), (rows, rows)))
    return sums, (x, y, weights, scale, bias, *sides)


def _backward(ring: _Ring, saved, cotangents):
    rows = P(ring.axes)
    out_specs = ((rows, rows), (P(), P()))
    d_features, (d_scale, d_bias) = _on_devices(_local_backward, ring, (*saved, cotangents[0]), out_specs)
    x, y, weights, scale, bias = saved[:5]
    d_x, d_y = (d.astype(like.dtype) for d, like in zip(d_features, (x, y), strict=True))
    if is_explicit():       # a gradient lies as what it belongs to
        d_x, d_y = (jax.reshard(d, jax.typeof(like).sharding.spec) for d, like in ((d_x, x), (d_y, y)))
    return d_x, d_y, jnp.zeros_like(weights), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_pairs.defvjp(_forward, _backward)


def _on_devices(run, ring: _Ring, args, out_specs):
    """`run` on every device's rows; arrays are split along their first dimension, scalars are everywhere."""
    _, free = free_axes()
    if num_devices(free) == 1 and not is_explicit():
        return run(ring, *args)
    specs = tuple(P(ring.axes) if jnp.ndim(a) else P() for a in args)
    if is_explicit():
        args = jax.tree.map(jax.reshard, args, specs)
    return jax.shard_map(functools.partial(run, ring), in_specs=specs, out_specs=out_specs, axis_names=free,
                         check_vma=False)(*args)


def _local_forward(ring: _Ring, x, y, weights, scale, bias):
    def visit(step, carry):
        rows, (y, y_weights, columns) = carry
        more_rows, columns = _add_block(x, y, weights, y_weights, scale, bias, rows, columns, step == 0, ring.form)
        return more_rows, ring.send((y, y_weights, columns))

    nothing = jnp.full(x.shape[:1], LOWEST if ring.form == "softmax" else 0.0), jnp.full(x.shape[:1], LOWEST)
    rows, (_, _, columns) = jax.lax.fori_loop(0, ring.size, visit, (_Side(*nothing), (y, weights, _Side(*nothing))))
    own = scale * (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(1) + bias
    losses = (rows.sum + columns.sum) / 2 - own if ring.form == "softmax" else rows.sum
    hits = ((own > rows.top).astype(jnp.float32) + (own > columns.top)) / 2
    return ring.total(((losses * weights).sum(), (hits * weights).sum())), (rows.sum, columns.sum)


def _add_block(x, y, x_weights, y_weights, scale, bias, rows: _Side, columns: _Side, is_own, form: str):
    """`rows` and `columns` with the pairs of x float[n, D] and y float[m, D] added."""
    def part(columns, chunk):
        index, x, x_weights, rows = chunk
        z, visible, own = _similarities(x, y, x_weights, y_weights, scale, bias, index, is_own)
        others = jnp.where(visible & ~own, z, LOWEST)
        if form == "softmax":
            seen = jnp.where(visible, z, LOWEST)
            sums = jax.nn.logsumexp(seen, axis=1), jax.nn.logsumexp(seen, axis=0)
        else:
            sums = jnp.where(visible, jax.nn.softplus(jnp.where(own, -z, z)), 0).sum(1), jnp.zeros(len(y))
        new_rows, new_columns = (_Side(s, others.max(axis)) for s, axis in zip(sums, (1, 0), strict=True))
        return columns.join(new_columns, form), rows.join(new_rows, form)

    columns, rows = _by_chunks(part, columns, (jnp.arange(len(x)), x, x_weights, rows), len(x), len(y))
    return rows, columns


def _local_backward(ring: _Ring, x, y, weights, scale, bias, row_sums, column_sums, d_loss):
    def visit(_, carry):
        is_own, d_x, d_numbers, (y, y_weights, column_sums, d_y) = carry

        def part(d_block, chunk):
            d_y, d_numbers = d_block
            index, x, x_weights, row_sums = chunk
            z, visible, own = _similarities(x, y, x_weights, y_weights, scale, bias, index, is_own)
            if ring.form == "softmax":
                shares = [w * jnp.exp(jnp.where(visible, z - sums, LOWEST))
                          for w, sums in ((x_weights[:, None], row_sums[:, None]), (y_weights, column_sums))]
                d_z = (shares[0] + shares[1]) / 2 - jnp.where(own & visible, x_weights[:, None], 0)
            else:
                d_z = x_weights[:, None] * jnp.where(visible, jax.nn.sigmoid(jnp.where(own, -z, z)), 0)
                d_z = jnp.where(own, -d_z, d_z)
            d_z = d_loss * d_z
            d_x, to_y = _product("ij,jd->id", d_z.astype(y.dtype), y), _product("ij,id->jd", d_z.astype(x.dtype), x)
            d_numbers = d_numbers[0] + (d_x * x).sum(), d_numbers[1] + d_z.sum()
            return (d_y + scale * to_y, d_numbers), scale * d_x

        chunks = jnp.arange(len(x)), x, weights, row_sums
        (d_y, d_numbers), more = _by_chunks(part, (d_y, d_numbers), chunks, len(x), len(y))
        return jnp.bool_(False), d_x + more, d_numbers, ring.send((y, y_weights, column_sums, d_y))

    zeros, number = jnp.zeros(x.shape, jnp.float32), jnp.float32(0)
    start = jnp.bool_(True), zeros, (number, number), (y, weights, column_sums, zeros)
    _, d_x, d_numbers, (*_, d_y) = jax.lax.fori_loop(0, ring.size, visit, start)
    return (d_x, d_y), ring.total(d_numbers)


def _similarities(x, y, x_weights, y_weights, scale, bias, index, is_own):
    """Of some rows with a block of columns: the similarities, which pairs exist, and which are partners."""
    z = scale * _product("id,jd->ij", x, y) + bias
    visible = (x_weights[:, None] > 0) & (y_weights > 0)
    return z, visible, is_own & (index[:, None] == jnp.arange(len(y)))


def _product(spec: str, a, b) -> jax.Array:
    return jnp.einsum(spec, a, b, precision="highest", preferred_element_type=jnp.float32)


def _by_chunks(part, carry, rows, num_rows: int, num_columns: int):
    """`jax.lax.scan` of `part` over chunks of rows so large that a block of similarities stays small."""
    count = next(c for c in range(1, num_rows + 1) if num_rows % c == 0 and num_rows // c * num_columns <= BLOCK
                 or c == num_rows)
    if count == 1:
        return part(carry, rows)
    cut = jax.tree.map(lambda a: a.reshape(count, num_rows // count, *a.shape[1:]), rows)
    carry, out = jax.lax.scan(part, carry, cut)
    return carry, jax.tree.map(lambda a: a.reshape(num_rows, *a.shape[2:]), out)
