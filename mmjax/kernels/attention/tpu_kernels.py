"""The bodies of the two TPU kernels, forward and backward: what one step of the grid does with one tile.

A step has one block of queries, one block of keys and a few heads in on-chip memory. Logits stand with the keys along
the first axis, so that the maximum, the sum and the bounds of a query are rows: a reduction adds registers instead of
crossing lanes, a block of keys need not be a multiple of 128, and a head dimension is padded to 16 only. Hence queries,
outputs and their gradients are [H, queries] here.

The forward kernel walks the visible tiles query block by query block. The backward kernel walks them key block by key
block: the gradients of a key block stay on chip for its tiles, those of all queries of a head for all tiles. Nothing is
added to in parallel, so results do not change from run to run.

Source: FlashAttention-2 (arXiv:2307.08691) algorithms 1 and 2, the latter with the sums of queries' gradients on chip.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmjax.kernels.attention import tiles as tiling
from mmjax.kernels.attention import turning

LOWEST = -1e30  # logit of a hidden key; finite, so that a row without keys has no inf - inf
LARGEST = 3e38  # just below what bfloat16 holds
LOG2_E = math.log2(math.e)


class Form(NamedTuple):
    """What is fixed when a kernel is compiled.

    Attributes:
        scale: factor of the logits.
        soft_cap: bound of the logits, or None.
        has_bias: whether a bias is added.
        turns: whether queries and keys are turned by their positions.
        has_xpos: whether they are scaled by them, too.
        keeps_keys: whether the forward kernel keeps turned keys of a whole row, or turns them for every tile.
        block_queries, block_keys: sizes of a tile.
        num_queries, num_keys: blocks of a row.
        heads: query heads of a step.
        kv_heads: key heads of a step.
        group: query heads that share a key head.
        interpret: what `pallas_call` takes.
    """

    scale: float
    soft_cap: float | None
    has_bias: bool
    turns: bool
    has_xpos: bool
    keeps_keys: bool
    block_queries: int
    block_keys: int
    num_queries: int
    num_keys: int
    heads: int
    kv_heads: int
    group: int
    interpret: Any

    @property
    def plain(self) -> bool:
        """Whether logits are products times a positive factor; then the factor waits until the exponential."""
        return not self.has_bias and self.soft_cap is None and self.scale > 0

    @property
    def unit(self) -> float:
        """Of the logits inside the kernels."""
        return self.scale if self.plain else 1.0

    @property
    def to_log2(self) -> float:
        return self.unit * LOG2_E

    def kv_head(self, head: int) -> int:
        """Which of a step's key heads one of its query heads reads."""
        return head // self.group if self.kv_heads > 1 else 0


def forward(form: Form, row: jax.Array, code: jax.Array, refs) -> None:
    """One step of the forward grid (rows, groups of heads, tiles).

    Args:
        form: see `Form`.
        row: of the batch.
        code: the step of a walk, see `tiles.Walk`.
        refs: of the arrays that `pallas_tpu.forward` names.
    """
    i, j = code >> tiling.OUTER, inner_block(code)

    @pl.when(code & tiling.OUTER_BEGINS != 0)
    def _():
        refs.top[...] = jnp.full(refs.top.shape, LOWEST / 2, jnp.float32)
        refs.total[...] = jnp.zeros(refs.total.shape, jnp.float32)
        refs.sum[...] = jnp.zeros(refs.sum.shape, jnp.float32)
        if form.turns:
            angles = _query_angles(form, refs, row, i)
            for head in range(form.heads):
                refs.q_turned[head] = angles.turn(refs.q[head]).astype(refs.q_turned.dtype)

    if form.turns:
        slot = j if form.keeps_keys else 0
        wanted = tiling.INNER_BEGINS if form.keeps_keys else tiling.FULL | tiling.PARTIAL

        @pl.when(code & wanted != 0)
        def _():
            angles = _key_angles(form, refs, row, j)
            for head in range(form.kv_heads):
                refs.k_turned[slot, head] = angles.turn(refs.k[head]).T.astype(refs.k_turned.dtype)

    def tile(visible):
        factor = _pair_factor(form, refs, row, i, j)
        products = []  # of all heads first: the compiler then fills one head's softmax with the next one's products
        for head in range(form.heads):
            k = refs.k_turned[slot, form.kv_head(head)] if form.turns else refs.k[form.kv_head(head)]
            q = _queries(refs.q_turned[head], factor, k.dtype) if form.turns else refs.q[head]
            products.append(_dot(k, q))
        for head in range(form.heads):
            logits = _logits(form, refs, products[head], head, visible)
            old_top = refs.top[head]
            top = jnp.maximum(old_top, logits.max(0, keepdims=True))
            weights = jnp.exp2((logits - top) * form.to_log2)
            decay = jnp.exp2((old_top - top) * form.to_log2)
            refs.top[head] = top
            refs.total[head] = refs.total[head] * decay + weights.sum(0, keepdims=True)
            v = refs.v[form.kv_head(head)]
            refs.sum[head] = refs.sum[head] * decay + _dot(v, weights.astype(v.dtype))

    _masked_or_not(form, refs, code, j, tile)

    @pl.when(code & tiling.OUTER_ENDS != 0)
    def _():
        total = refs.total[...]
        total = jnp.where(total == 0, 1, total)
        refs.out[...] = (refs.sum[...] / total).astype(refs.out.dtype)
        refs.lse[...] = refs.top[...] + jnp.log2(total) / form.to_log2


def backward(form: Form, row: jax.Array, code: jax.Array, refs) -> None:
    """One step of the backward grid (rows, groups of heads, tiles).

    Args:
        form: see `Form`.
        row: of the batch.
        code: the step of a walk, see `tiles.Walk`.
        refs: of the arrays that `pallas_tpu.backward` names.
    """
    j, i = code >> tiling.OUTER, inner_block(code)

    @pl.when(code & tiling.OUTER_BEGINS != 0)
    def _():
        refs.d_k[...] = jnp.zeros(refs.d_k.shape, jnp.float32)
        refs.d_v[...] = jnp.zeros(refs.d_v.shape, jnp.float32)
        angles = _key_angles(form, refs, row, j) if form.turns else None
        for head in range(form.kv_heads):
            k = angles.turn(refs.k[head]) if form.turns else refs.k[head].astype(jnp.float32)
            if form.turns:
                refs.k_features[head] = k.astype(refs.k_features.dtype)
            refs.k_tokens[head] = k.T.astype(refs.k_tokens.dtype)

    @pl.when(code & tiling.INNER_BEGINS != 0)
    def _():
        refs.d_q[:, i] = jnp.zeros((form.heads, *refs.d_q.shape[2:]), jnp.float32)
        if form.turns:
            angles = _query_angles(form, refs, row, i)
            for head in range(form.heads):
                refs.q_turned[head, i] = angles.turn(refs.q[head]).astype(refs.q_turned.dtype)

    def tile(visible):
        factor = _pair_factor(form, refs, row, i, j)
        for head in range(form.heads):
            kv_head = form.kv_head(head)
            k, v, d_out = refs.k_tokens[kv_head], refs.v[kv_head], refs.d_out[head]
            q = _queries(refs.q_turned[head, i], factor, k.dtype) if form.turns else refs.q[head]
            logits = _logits(form, refs, _dot(k, q), head, visible)
            lse, delta = refs.stats[head, :1], refs.stats[head, 1:]
            weights = jnp.exp2((logits - lse) * form.to_log2)
            refs.d_v[kv_head] += _dot(weights.astype(v.dtype), d_out, (1, 1))
            d_logits = weights * (_dot(v, d_out) - delta)
            if form.soft_cap is not None:  # tanh' is 1 - tanh^2; a hidden logit is far below -soft_cap
                d_logits *= 1 - jnp.square(jnp.maximum(logits / form.soft_cap, -1))
            if form.has_bias:
                refs.d_bias[head] = d_logits
            d_logits = d_logits.astype(k.dtype)
            refs.d_k[kv_head] += _dot(d_logits, q, (1, 1))
            d_q = _dot((refs.k_features if form.turns else refs.k)[kv_head], d_logits)
            refs.d_q[head, i] += d_q if factor is None else turning.scale(d_q, factor)

    _masked_or_not(form, refs, code, j, tile)

    @pl.when(code & tiling.INNER_ENDS != 0)
    def _():
        angles = _query_angles(form, refs, row, i) if form.turns else None
        for head in range(form.heads):
            d_q = refs.d_q[head, i] * form.scale
            refs.d_q[head, i] = angles.turn_back(d_q) if form.turns else d_q

    @pl.when(code & tiling.OUTER_ENDS != 0)
    def _():
        angles = _key_angles(form, refs, row, j) if form.turns else None
        for head in range(form.kv_heads):
            d_k = refs.d_k[head] * form.scale
            refs.d_k[head] = angles.turn_back(d_k.T).T if form.turns else d_k


def inner_block(code: jax.Array) -> jax.Array:
    return (code >> tiling.INNER) & (tiling.MAX_BLOCKS - 1)


def _masked_or_not(form: Form, refs, code, j, tile) -> None:
    """Runs `tile(visible)` if the step has one; without a mask where every pair is visible."""
    pl.when(code & tiling.FULL != 0)(lambda: tile(None))

    @pl.when(code & tiling.PARTIAL != 0)
    def _():
        key = jax.lax.broadcasted_iota(jnp.int32, (form.block_keys, form.block_queries), 0) + j * form.block_keys
        tile(key + refs.rows[0:1] < refs.rows[1:2])


def _logits(form: Form, refs, products: jax.Array, head: int, visible: jax.Array | None) -> jax.Array:
    """float32[keys, queries] logits, or products if the form is plain; LOWEST where hidden."""
    if not form.plain:
        products *= form.scale
    if form.has_bias:
        products += refs.bias[head].astype(jnp.float32)
    if form.soft_cap is not None:
        products = form.soft_cap * jnp.tanh(products / form.soft_cap)
    return products if visible is None else jnp.where(visible, products, LOWEST)


class _Angles(NamedTuple):
    """How the tokens of a block are turned: float32[P, tokens] each; `scale` is None without xPos."""

    cos: jax.Array
    sin: jax.Array
    scale: jax.Array | None

    def turn(self, x: jax.Array) -> jax.Array:
        """float32[H, tokens] from a head [H, tokens]."""
        x = turning.turn(x.astype(jnp.float32), self.cos, self.sin)
        return x if self.scale is None else turning.scale(x, self.scale)

    def turn_back(self, x: jax.Array) -> jax.Array:
        """The gradient of a head, from that of the turned head."""
        x = x if self.scale is None else turning.scale(x, self.scale)
        return turning.turn(x, self.cos, -self.sin)


def _query_angles(form: Form, refs, row: jax.Array, i: jax.Array) -> _Angles:
    return _angles(form, refs, refs.rows[2:], refs.q_centers, row * form.num_queries + i, 1)


def _key_angles(form: Form, refs, row: jax.Array, j: jax.Array) -> _Angles:
    return _angles(form, refs, refs.columns[...], refs.k_centers, row * form.num_keys + j, -1)


def _angles(form: Form, refs, positions, centers, block: jax.Array, sign: int) -> _Angles:
    """Every block is scaled from its own centre. What is missing is the same for a whole tile: `_pair_factor`."""
    constants = refs.constants[...]
    cos, sin = turning.cos_sin(constants, positions)
    if not form.has_xpos:
        return _Angles(cos, sin, None)
    distance = positions - centers[block]
    return _Angles(cos, sin, jnp.exp2(turning.scale_exponents(constants, sign * distance)))


def _pair_factor(form: Form, refs, row, i, j) -> jax.Array | None:
    """float32[P, 1] xPos scale of the distance between the centres of two blocks."""
    if not form.has_xpos:
        return None
    distance = refs.q_centers[row * form.num_queries + i] - refs.k_centers[row * form.num_keys + j]
    return jnp.exp2(turning.scale_exponents(refs.constants[...], jnp.full((1, 1), distance)))


def _queries(q: jax.Array, factor: jax.Array | None, dtype) -> jax.Array:
    """Turned queries, scaled for the tile. They stay finite where no pair of them is visible: 0 * inf is NaN."""
    if factor is not None:
        q = jnp.clip(turning.scale(q, factor), -LARGEST, LARGEST)
    return q.astype(dtype)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
