"""Attention on Hopper GPUs through Pallas' Mosaic GPU lowering: wgmma, bulk copies, warp specialisation.

Tiles without a visible pair are neither loaded nor computed, forward and backward. Letters beside those of the
library: I blocks of 128 queries.

Rotary: what a thread block keeps is turned in the kernel, once: queries forward, and back the gradients of queries and
keys. The keys that stream past every block of queries are not: to turn them there would be done again for each of the
T / 128 blocks, and a tile's exchange of pairs is a product of as many flops as its logits at H = 128. They are turned
once by XLA, in front, and turned queries and keys are what the backward pass is given. So of the 12 passes over an
array of heads that rotary outside costs a training step through device memory (reading and writing q and k twice, and
their gradients once), 3 stay, of which 2 are of the keys: with grouped queries those are N / K times smaller. XLA turns
everything where heads are too wide: beyond 128 `Rotation.swap` does not fit in shared memory, and beyond 64 the scales
of xPos do not fit in registers beside it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.kernels.attention import hopper, hopper_backward, hopper_forward, turning
from mmjax.kernels.attention import tiles as tiling
from mmjax.kernels.attention.hopper import GROUP_ROWS, LOG2_E, LOWEST, MAX_EXPONENT, Form
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.rotary import Rotary
from mmjax.kernels.target import compute_capability

BLOCK_QUERIES = 2 * GROUP_ROWS
SHARED_BYTES = 227 * 1024  # of a thread block on compute capability 9.0
MAX_HEAD_DIM, MAX_XPOS_HEAD_DIM = 256, 128
MAX_TURNING_HEAD_DIM, MAX_TURNING_XPOS_HEAD_DIM = 128, 64
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def pallas_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None,
    bias: None,
    scale: float,
    soft_cap: float | None,
    interpret: Any = None,
) -> jax.Array:
    """Computes softmax(cap(scale q k^T)) v over the visible keys; arguments and result as in `api.attention`.

    Args:
        interpret: None, or `plgpu.InterpretGPUParams` to run on a CPU.
    """
    return _attend(q, k, v, mask, rotary, Form(scale, soft_cap, interpret))


def refuse(q, k, v, **arguments) -> str | None:
    """Why these kernels cannot compute the call here, or None if they can; arguments as in `api.attention`."""
    capability = compute_capability()
    if capability is None or not capability.startswith("9."):
        found = "no GPU" if capability is None else f"compute capability {capability}"
        return f"it needs a GPU of compute capability 9.x (Hopper), there is {found}"
    if jax.__version_info__ < (0, 11):
        return f"it has been compiled with jax 0.11 and 0.12, this is jax {jax.__version__}"
    return refuse_anywhere(q, k, v, **arguments)


def refuse_anywhere(q, k, v, *, rotary, bias, **arguments) -> str | None:
    """The part of `refuse` that does not depend on the machine."""
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in DTYPES:
        return f"q {q.dtype}, k {k.dtype} and v {v.dtype} must all be bfloat16 or all float16, for the tensor cores"
    if _has_xpos(rotary) and q.dtype == jnp.float16:
        return "the scales of xPos leave the range of float16; cast to bfloat16"
    largest = MAX_XPOS_HEAD_DIM if _has_xpos(rotary) else MAX_HEAD_DIM
    if not 16 <= q.shape[-1] <= largest:
        return f"head_dim={q.shape[-1]} must be from 16 to {largest}: other tiles do not fit in registers"
    if bias is not None:
        return "it has no bias"
    if q.size == 0 or k.size == 0:
        return f"q {list(q.shape)} and k {list(k.shape)} have nothing to cut into blocks"
    return None


def suits(*args, **kwargs) -> bool:
    """Wherever it can compute the call, it is the fastest."""
    return True


class Stream(NamedTuple):
    """What streams past the block that a kernel keeps: `size` keys (or queries) of a tile, `stages` tiles in flight."""

    size: int
    stages: int


class Sizes(NamedTuple):
    """Sizes of the tiles of each kernel.

    Attributes:
        forward, backward_queries: keys that stream past 128 queries.
        backward_keys: queries that stream past 64 or 128 keys.
        pair_heads: see `hopper_backward.backward_keys`.
        wanted: the launches of `hopper_backward.backward_keys`.
    """

    forward: Stream
    backward_queries: Stream
    backward_keys: Stream
    pair_heads: bool
    wanted: tuple[str, ...]


def sizes(num_queries: int, num_keys: int, num_kv_heads: int, head_dim: int, rotary: Rotary | None = None) -> Sizes:
    """Tiles that fit in shared memory and registers.

    Where queries and keys are different sequences, tiles have 64 keys: those of one image in Flamingo. So they do with
    xPos, whose scale is centred on 64 tokens.
    """
    narrow = num_queries != num_keys or _has_xpos(rotary)
    head_dim += -head_dim % 16
    swap = 2 * head_dim**2 if _turns_inside(rotary, head_dim) else 0
    held = 4 * GROUP_ROWS * head_dim * 2  # queries and cotangents, or keys and values, of two warpgroups

    def fit(block: int, held: int, lanes: int = 1) -> Stream:
        tile = 2 * lanes * block * head_dim * 2
        return Stream(block, min((SHARED_BYTES - 8192 - swap - held) // tile, 4))

    pair_heads = narrow and num_kv_heads % 2 == 0 and fit(64, held, lanes=2).stages > 1
    return Sizes(
        forward=fit(64 if narrow or head_dim > 128 else 128, held // 2),
        backward_queries=fit(128 if not narrow and head_dim <= 64 else 64, held),
        backward_keys=fit(64, held, lanes=2 if pair_heads else 1),
        pair_heads=pair_heads,
        wanted=("kv",) if head_dim <= (64 if _has_xpos(rotary) else 128) else ("k", "v"),
    )


def tile_lists(mask: IntervalMask, num_keys: int, sizes: Sizes) -> tuple[hopper.TileList, ...]:
    """The tiles that the three kernels visit: forward, gradient of the queries, gradient of keys and values."""
    keys = GROUP_ROWS if sizes.pair_heads else BLOCK_QUERIES
    return (
        hopper.tile_list(mask, num_keys, BLOCK_QUERIES, sizes.forward.size),
        hopper.tile_list(mask, num_keys, BLOCK_QUERIES, sizes.backward_queries.size),
        hopper.tile_list(mask, num_keys, sizes.backward_keys.size, keys, by_keys=True),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, mask, rotary, form):
    return _forward(q, k, v, mask, rotary, form)[0]


def _attend_forward(q, k, v, mask, rotary, form):
    out, lse, q, k = _forward(q, k, v, mask, rotary, form)
    return out, (q, k, v, mask, rotary, out, lse)


def _attend_backward(form, saved, d_out):
    return *_backward(*saved, d_out, form), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def forward(q, k, v, *, mask, rotary, bias, scale, soft_cap) -> tuple[jax.Array, jax.Array]:
    """One visit of `ring.Passes.forward`."""
    return _forward(q, k, v, mask, rotary, Form(scale, soft_cap))[:2]


def backward(q, k, v, out, lse, d_out, *, mask, rotary, bias, scale, soft_cap):
    """One visit of `ring.Passes.backward`."""
    q, k = _turn(q, rotary, "q"), _turn(k, rotary, "k")
    return *_backward(q, k, v, mask, rotary, out, lse, d_out, Form(scale, soft_cap)), None


def _forward(q, k, v, mask, rotary, form: Form) -> tuple[jax.Array, ...]:
    """[B, T, N, H] output; float32[B, N, T] log-sum-exp of the logits, LOWEST in rows without keys; q and k turned."""
    (_, t, _, h), plan = q.shape, sizes(q.shape[1], *k.shape[1:], rotary)
    mask = tiling.clip(mask, k.shape[1])  # before padding: nobody sees a key that only fills up
    tiles = tile_lists(mask, k.shape[1], plan)[0]
    rotation = _rotation(rotary, "q", q)
    q, k = q if rotation else _turn(q, rotary, "q"), _turn(k, rotary, "k")
    out, lse, *q_turned = hopper_forward.forward(
        form, _pad(q), _pad(k), _pad(v), _bounds(mask), tiles, _xpos(rotary, h), rotation, **plan.forward._asdict())
    lse = jnp.where(lse > -LOWEST / 2, LOWEST, lse / LOG2_E)[..., :t]
    return out[:, :t, :, :h], lse, q_turned[0][:, :t, :, :h] if rotation else q, k


def _backward(q, k, v, mask, rotary, out, lse, d_out, form: Form) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, keys (both given turned) and values."""
    (_, t, _, h), s, plan = q.shape, k.shape[1], sizes(q.shape[1], *k.shape[1:], rotary)
    mask = tiling.clip(mask, s)
    _, by_queries, by_keys = tile_lists(mask, s, plan)
    delta = jnp.einsum("btnh,btnh->bnt", d_out, out, preferred_element_type=jnp.float32)
    stats = jnp.stack([jnp.where(lse < LOWEST / 10, -LOWEST, lse * LOG2_E), delta], 2)
    bounds = _bounds(mask)
    stats = jnp.pad(stats, ((0, 0), (0, 0), (0, 0), (0, bounds.shape[2] - t)))
    args, xpos = (form, _pad(q), _pad(k), _pad(v), _pad(d_out.astype(v.dtype)), bounds, stats), _xpos(rotary, h)
    d_q = hopper_backward.backward_queries(
        *args, by_queries, xpos, _rotation(rotary, "q", q), **plan.backward_queries._asdict())[:, :t, :, :h]
    keys = functools.partial(hopper_backward.backward_keys, pair_heads=plan.pair_heads, **plan.backward_keys._asdict())
    d_k, d_v = (
        d[:, :s, :, :h] for wanted in plan.wanted
        for d in keys(*args, by_keys, xpos, _rotation(rotary, "k", k) if "k" in wanted else (), wanted=wanted)
    )
    if not _turns_inside(rotary, h):
        d_q, d_k = _turn_back(d_q, rotary, "q"), _turn_back(d_k, rotary, "k")
    return d_q, d_k, d_v


def _turns_inside(rotary: Rotary | None, head_dim: int) -> bool:
    """Whether the kernels turn what they keep."""
    largest = MAX_TURNING_XPOS_HEAD_DIM if _has_xpos(rotary) else MAX_TURNING_HEAD_DIM
    return rotary is not None and head_dim <= largest


def _turn(x: jax.Array, rotary: Rotary | None, side: str) -> jax.Array:
    """Queries or keys turned by their positions, and for xPos scaled from the centre of their 64 tokens."""
    if not _has_xpos(rotary):
        return x if rotary is None else getattr(rotary, f"rotate_{side}")(x)
    plain = dataclasses.replace(rotary, xpos_scale_base=None)
    distance = _distances(getattr(rotary, f"{side}_positions"))[..., None, None]
    exponent = distance * _log_scales(rotary, x.shape[-1]) * (1 if side == "q" else -1)
    scale = jnp.exp2(jnp.clip(exponent, -MAX_EXPONENT, MAX_EXPONENT))
    return (getattr(plain, f"rotate_{side}")(x.astype(jnp.float32)) * scale).astype(x.dtype)


def _turn_back(gradient: jax.Array, rotary: Rotary | None, side: str) -> jax.Array:
    """Gradient of heads from that of turned heads."""
    return jax.linear_transpose(functools.partial(_turn, rotary=rotary, side=side), gradient)(gradient)[0]


def _rotation(rotary: Rotary | None, side: str, x: jax.Array) -> hopper.Rotation | tuple[()]:
    """What the kernels need to turn the queries or keys `x`."""
    head_dim = x.shape[-1]
    if not _turns_inside(rotary, head_dim):
        return ()
    dim, padded = rotary.rotary_dim or head_dim, head_dim + -head_dim % 16
    first, second = np.arange(dim).reshape(2, -1) if rotary.layout == "split" else np.arange(dim).reshape(-1, 2).T
    swap = np.zeros((padded, padded), np.float32)
    swap[first, second], swap[second, first] = 1, -1
    constants = turning.constants(rotary, head_dim)[: dim // 2].T
    constants[-1] *= 1 if side == "q" else -1
    turns = np.zeros((len(constants), padded), np.float32)
    turns[:, first] = turns[:, second] = constants
    positions = getattr(rotary, f"{side}_positions")
    places = positions.reshape(*positions.shape[:2], -1).swapaxes(1, 2)
    if _has_xpos(rotary):
        places = jnp.stack([positions, _distances(positions)], 1)
    else:
        turns = turns[:-1]
    places = jnp.pad(places, ((0, 0), (0, 0), (0, -places.shape[2] % BLOCK_QUERIES)))
    return hopper.Rotation(jnp.asarray(swap, x.dtype), jnp.asarray(turns), places)


def _has_xpos(rotary: Rotary | None) -> bool:
    return rotary is not None and rotary.xpos_scale_base is not None


def _xpos(rotary: Rotary | None, head_dim: int) -> hopper.XPos | tuple[()]:
    """What the kernels need for xPos."""
    if not _has_xpos(rotary):
        return ()
    features = np.pad(_log_scales(rotary, head_dim), (0, -head_dim % 16))
    centers = (_centers(x) for x in (rotary.q_positions, rotary.k_positions))
    centers = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2))) for x in centers)  # one for each of two warpgroups
    return hopper.XPos(jnp.asarray(features), *centers)


def _log_scales(rotary: Rotary, head_dim: int) -> np.ndarray:
    """float32[H] logarithm (base 2) by which xPos scales each feature of a query per position."""
    dim = rotary.rotary_dim or head_dim
    zeta = (2 * np.arange(dim // 2) + 0.4 * dim) / (1.4 * dim)
    pair = np.log2(zeta) / rotary.xpos_scale_base
    features = np.tile(pair, 2) if rotary.layout == "split" else np.repeat(pair, 2)
    return np.pad(features, (0, head_dim - dim)).astype(np.float32)


def _distances(positions: jax.Array) -> jax.Array:
    """int32[B, T] from the centre of every 64 tokens."""
    return positions - jnp.repeat(_centers(positions), GROUP_ROWS, axis=1)[:, : positions.shape[1]]


def _centers(positions: jax.Array) -> jax.Array:
    """int32[B, ceil(T / 64)] middle of the positions in every 64 tokens."""
    positions = jnp.pad(positions, ((0, 0), (0, -positions.shape[1] % GROUP_ROWS)), mode="edge")
    blocks = positions.reshape(positions.shape[0], -1, GROUP_ROWS)
    return (blocks.min(2) + blocks.max(2)) // 2


def _pad(x: jax.Array) -> jax.Array:
    """[B, T, N, H] with T a multiple of 8, as tiles of shared memory want it, and H of 16, as wgmma does."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, -x.shape[3] % 16)))


def _bounds(mask: IntervalMask) -> jax.Array:
    """int32[B, 2, I * 128] start and stop; the queries that fill up the last block see nothing."""
    bounds = jnp.stack(mask, 1)
    return jnp.pad(bounds, ((0, 0), (0, 0), (0, -bounds.shape[2] % BLOCK_QUERIES)))
