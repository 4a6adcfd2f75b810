"""The contestants of the attention benchmark that are written in JAX: ours, and those in JAX and tokamax."""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention import api
from mmjax.kernels.attention.mask import IntervalMask, to_dense
from mmjax.kernels.attention.reference import reference
from mmjax.parallel import make_mesh


class Refused(Exception):
    """A contestant cannot compute a row; the message is its reason."""


class Ready(NamedTuple):
    """A contestant, compiled for one row and pass.

    Attributes:
        call: starts a run and returns its result.
        wait: returns when a result is there.
        arrays: result -> numpy float32 [B, T, heads, H] arrays: the output, then gradients of q, k and v.
        temporary_bytes: memory beside inputs and results, if known.
    """

    call: Callable[[], object]
    wait: Callable[[object], object]
    arrays: Callable[[object], list]
    temporary_bytes: int | None


class Peer(NamedTuple):
    """Attributes:
    name, library: as reported.
    attend: row, q, k, v, mask, rotary -> out.
    devices: how many share the heads.
    """

    name: str
    library: str
    attend: Callable[..., jax.Array]
    devices: int = 1

    def prepare(self, row, arrays, dtype, backward: bool, limit: int) -> Ready:
        """Compiles; raises `Refused` if it needs more than `limit` bytes of temporaries."""
        if row.num_kv_heads % self.devices:
            raise Refused(f"{row.num_kv_heads} key heads do not divide among {self.devices} devices")
        mesh = make_mesh({"model": self.devices}, jax.devices()[: self.devices])
        heads, whole = NamedSharding(mesh, P(None, None, "model")), NamedSharding(mesh, P())
        q, k, v, d_out = (jax.device_put(jnp.asarray(x, dtype), heads) for x in arrays)
        rest = jax.device_put((row.mask(), row.turning()), whole)

        def forward(q, k, v, rest):
            return self.attend(row, q, k, v, *rest)

        def both(q, k, v, rest, d_out):
            out, vjp = jax.vjp(lambda *qkv: forward(*qkv, rest), q, k, v)
            return out, *vjp(d_out)

        args = (q, k, v, rest, d_out) if backward else (q, k, v, rest)
        if self.devices > 1:
            with jax.set_mesh(mesh):
                compiled = jax.jit(both if backward else forward).lower(*args).compile()
        else:
            compiled = jax.jit(both if backward else forward).lower(*args).compile()
        temporary = self.devices * compiled.memory_analysis().temp_size_in_bytes
        if temporary > limit:
            raise Refused(f"needs {temporary / 2**30:.1f} GiB of temporaries, {limit / 2**30:.1f} GiB are free")
        return Ready(functools.partial(compiled, *args), jax.block_until_ready, jax.tree.leaves, temporary)


def peers() -> list[Peer]:
    """Every one that is installed."""
    found = [Peer(f"mmjax {i.name}", "mmjax", functools.partial(_ours, i.name)) for i in api.IMPLEMENTATIONS]
    found += [Peer("mmjax, rotary outside", "mmjax", _ours_turned_outside)]
    found += [Peer(f"jax.nn {name}", "jax.nn", functools.partial(_jax_nn, name)) for name in ("xla", "cudnn")]
    platform = jax.default_backend()
    if platform == "gpu":
        found += [Peer("pallas mosaic gpu", "jax pallas", _mosaic_gpu), Peer("pallas triton", "jax pallas", _triton)]
    if platform == "tpu":
        found += [Peer("splash", "jax pallas", _splash)]
    if importlib.util.find_spec("tokamax"):
        from tokamax._src.ops.attention import api as tokamax_api  # the public entry takes no ranges of keys
        found += [Peer(f"tokamax {name}", "tokamax", functools.partial(_tokamax, name))
                  for name in tokamax_api.IMPLEMENTATIONS]
    if platform == "cpu" and len(jax.devices()) > 1:
        shared = ("mmjax blockwise", "jax.nn xla", "tokamax xla", "tokamax xla_chunked")
        found += [p._replace(name=f"{p.name}, {len(jax.devices())} devices", devices=len(jax.devices()))
                  for p in found if p.name in shared]
    return found


def expected(row, arrays, dtype, backward: bool) -> list[np.ndarray]:
    """What `visible_part` of every contestant's results must be near: the float32 reference on the rounded inputs."""
    q, k, v, d_out = (jnp.asarray(x[:1], dtype).astype(jnp.float32) for x in arrays)
    (q_heads, kv_heads), rotary = _checked_heads(row), row.turning()
    rows = jax.tree.map(lambda x: x[:1], (row.mask(), rotary))

    @jax.jit
    def one(q, k, v, d_out, rest):
        mask, rotary = rest
        out, vjp = jax.vjp(functools.partial(reference, mask=mask, rotary=rotary, bias=None,
                                             scale=1 / math.sqrt(row.head_dim)), q, k, v)
        return [out, *vjp(d_out)] if backward else [out]

    group = row.num_heads // row.num_kv_heads
    with jax.default_matmul_precision("highest"):
        parts = [one(*(x[:, :, heads[i * size:(i + 1) * size]] for x, heads, size in (
            (q, q_heads, group), (k, kv_heads, 1), (v, kv_heads, 1), (d_out, q_heads, group))), rows)
            for i in range(len(kv_heads))]
        return [np.concatenate(x, 2) for x in zip(*parts, strict=True)]


def visible_part(row, arrays) -> list[np.ndarray]:
    """Of a contestant's results: the first row, its first and last key head (in very long rows, the last), float32."""
    q_heads, kv_heads = _checked_heads(row)
    parts = (x[:1, :, heads] for x, heads in zip(arrays, (q_heads, q_heads, kv_heads, kv_heads), strict=False))
    return [np.asarray(x.astype(jnp.float32)) for x in parts]


def _checked_heads(row) -> tuple[np.ndarray, np.ndarray]:
    group, kv_heads = row.num_heads // row.num_kv_heads, np.unique([0, row.num_kv_heads - 1])
    if row.num_queries * row.num_keys > 2**27:  # the reference is dense
        kv_heads = kv_heads[-1:]
    return (kv_heads[:, None] * group + np.arange(group)).ravel(), kv_heads


def _turned(q, k, rotary):
    return (q, k) if rotary is None else (rotary.rotate_q(q), rotary.rotate_k(k))


def _without_blind(out, mask: IntervalMask):
    """0 for queries without keys, for peers that do not define them."""
    return jnp.where((mask.start < mask.stop)[..., None, None], out, 0)


def _ours(name, row, q, k, v, mask, rotary):
    try:
        return api.attention(q, k, v, mask=mask, rotary=rotary, implementation=name)
    except ValueError as error:
        raise Refused(str(error)) from None


def _ours_turned_outside(row, q, k, v, mask, rotary):
    if rotary is None:
        raise Refused("there is no rotary")
    return api.attention(*_turned(q, k, rotary), v, mask=mask)


def _jax_nn(implementation, row, q, k, v, mask, rotary):
    q, k = _turned(q, k, rotary)
    dense = to_dense(mask, row.num_keys)[:, None] if row.kind not in ("causal", "full") else None
    out = jax.nn.dot_product_attention(q, k, v, mask=dense, is_causal=row.kind == "causal",
                                       implementation=implementation)
    return _without_blind(out, mask) if row.kind == "images" else out


def _tokamax(implementation, row, q, k, v, mask, rotary):
    from tokamax._src.ops.attention import api as tokamax_api
    from tokamax._src.ops.attention.base import Mask

    q, k = _turned(q, k, rotary)
    ranges = {"causal": dict(is_causal=True), "packed": dict(is_causal=True, k_start=mask.start[:, None]), "full": {}}
    ranges = ranges.get(row.kind, dict(k_start=mask.start[:, None], k_end=mask.stop[:, None]))
    out = tokamax_api.IMPLEMENTATIONS[implementation](q, k, v, mask=Mask(**ranges))
    return _without_blind(out, mask) if row.kind == "images" else out


def _mosaic_gpu(row, q, k, v, mask, rotary):
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    if row.kind not in ("causal", "full"):
        raise Refused("it has causal and no masks only")
    q, k = _turned(q, k, rotary)
    config = attention_mgpu.TuningConfig(block_q=64, block_kv=64, max_concurrent_steps=2, causal=row.kind == "causal",
                                         block_q_dkv=64, block_kv_dkv=64, block_q_dq=64, block_kv_dq=64)
    return attention_mgpu.attention(q / math.sqrt(row.head_dim), k, v, config)


def _triton(row, q, k, v, mask, rotary):
    from jax.experimental.pallas.ops.gpu import attention

    if row.kind not in ("causal", "full", "packed") or row.num_heads != row.num_kv_heads:
        raise Refused("it has causal masks and segment ids, and no grouped queries")
    segments = jnp.asarray(row.segments()) if row.kind == "packed" else None
    q, k = _turned(q, k, rotary)
    return attention.mha(q, k, v, segments, sm_scale=1 / math.sqrt(row.head_dim), causal=row.kind != "full")


def _splash(row, q, k, v, mask, rotary):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks

    if row.kind == "prefix" or row.num_heads != row.num_kv_heads:
        raise Refused("a static causal or full mask and segment ids are all it is given, and no grouped queries")
    if row.num_queries % 128 or row.num_keys % 128:
        raise Refused(f"T={row.num_queries} and S={row.num_keys} must be multiples of 128")
    q, k = _turned(q, k, rotary)
    shape = row.num_queries, row.num_keys
    one = splash_masks.CausalMask(shape) if row.kind in ("causal", "packed") else splash_masks.FullMask(shape)
    kernel = splash.make_splash_mha(splash_masks.MultiHeadMask([one] * row.num_heads), head_shards=1, q_seq_shards=1)
    if row.kind == "images":
        size = row.num_keys // row.parts[0]
        ids = jnp.where(mask.start < mask.stop, mask.start // size, -1), jnp.arange(row.num_keys)[None] // size
        ids = splash.SegmentIds(ids[0], jnp.broadcast_to(ids[1], (row.batch, row.num_keys)))
    else:
        ids = splash.SegmentIds(*[jnp.asarray(row.segments())] * 2) if row.kind == "packed" else None
    q, k, v = (x.swapaxes(1, 2) for x in (q / math.sqrt(row.head_dim), k, v))
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None if ids is None else 0))(q, k, v, ids).swapaxes(1, 2)
    return _without_blind(out, mask)
