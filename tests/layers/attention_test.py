"""Attention with its projections against NumPy, and the key-value cache."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.kernels.attention import Rotary
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Attention, KVCache

SEGMENTS = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 2, 2, 2, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 0]], np.int32)


def random_params(module: Attention, seed: int = 0):
    """Parameters with no zero, drawn from the shapes that the fields of a module imply."""
    d, n, k, h, s = module.embed_dim, module.num_heads, module.num_kv_heads, module.head_dim, module.kv_dim
    shapes = {"q": ((d, n, h), (n, h)), "k": ((s, k, h), (k, h)), "v": ((s, k, h), (k, h)), "out": ((n, h, d), (d,))}
    rng = np.random.default_rng(seed)
    draw = lambda shape: 0.5 * rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {name: {"kernel": draw(kernel)} | ({"bias": draw(bias)} if module.use_bias else {})
              for name, (kernel, bias) in shapes.items()}
    return params | ({"inner_norm": {"scale": draw(n * h), "bias": draw(n * h)}} if module.sub_norm else {})


@pytest.mark.quick
@pytest.mark.parametrize("kv_heads, sub_norm", [(2, True), (1, False), (4, False)])
def test_grouped_self_attention_matches_numpy(kv_heads, sub_norm):
    module = Attention(8, 4, kv_heads, 6, kv_dim=8, use_bias=sub_norm, sub_norm=sub_norm)
    params = random_params(module)
    x = np.random.default_rng(1).normal(size=(2, 6, 8)).astype(np.float32)
    rotary = Rotary(POSITIONS, POSITIONS, layout="interleaved")
    got = jax.jit(module.apply)({"params": params}, x, masks.causal(SEGMENTS), rotary)
    turn = lambda a, row: oracle.turn(a, POSITIONS[row], "interleaved")  # noqa: E731
    for row in range(2):
        want = oracle.attention(oracle.float64(params), x[row].astype(np.float64), oracle.causal(SEGMENTS[row]),
                                rotate=lambda q, k, row=row: (turn(q, row), turn(k, row)))
        np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_cross_attention_matches_numpy_and_is_exactly_zero_without_keys():
    module = Attention(8, 2, 2, 4, kv_dim=5, use_bias=False)
    params = random_params(module)
    rng = np.random.default_rng(1)
    x, source = rng.normal(size=(1, 4, 8)).astype(np.float32), rng.normal(size=(1, 6, 5)).astype(np.float32)
    image_index = np.array([[-1, 0, 1, -1]], np.int32)
    mask = masks.per_image(image_index, 3)
    got = jax.jit(lambda x, source: module.apply({"params": params}, x, mask, source=source))(x, source)
    keys = {0: range(0), 1: range(0, 3), 2: range(3, 6), 3: range(0)}
    want = oracle.attention(oracle.float64(params), np.float64(x[0]), keys.get, source=np.float64(source[0]))
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-5)
    got = np.asarray(got)
    assert not np.any(got[0, [0, 3]]) and np.all(got[0, [1, 2]])


@pytest.mark.quick
def test_cache_extends_rows_of_different_lengths():
    """Attending in pieces over a cache equals attending to the whole row."""
    module = Attention(8, 4, 2, 6, kv_dim=8)
    params = random_params(module)
    x = np.random.default_rng(1).normal(size=(2, 7, 8)).astype(np.float32)
    positions = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    run = jax.jit(lambda x: module.apply({"params": params}, x, masks.causal(np.ones((2, 7), np.int32)),
                                         Rotary(positions, positions)))
    full = run(x)

    @jax.jit
    def extend(cache, x, num_new):
        at = cache.positions(x.shape[1])
        out, cache = module.apply({"params": params}, x, masks.decode(cache.lengths, x.shape[1]), Rotary(at, at), cache,
                                  jnp.asarray(1), method="extend")
        return out, cache.replace(lengths=cache.lengths + num_new)

    first, second = np.array([4, 2]), np.array([3, 5])          # of five tokens, these are real
    out, cache = extend(empty_cache(), x[:, :5], first)
    np.testing.assert_allclose(out[0, :4], full[0, :4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1, :2], full[1, :2], rtol=1e-5, atol=1e-6)
    single, _ = extend(cache, np.stack([x[0, 4:5], x[1, 2:3]]), np.array([1, 1]))     # one token takes a way of its own
    np.testing.assert_allclose(single[:, 0], np.stack([full[0, 4], full[1, 2]]), rtol=1e-5, atol=1e-6)
    rest = np.zeros((2, 5, 8), np.float32)
    rest[0, :3], rest[1] = x[0, 4:], x[1, 2:]
    out, cache = extend(cache, rest, second)
    np.testing.assert_allclose(out[0, :3], full[0, 4:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1], full[1, 2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cache.lengths, [7, 7])
    assert not np.any(cache.k[0])           # the other layer is as it was


def empty_cache() -> KVCache:
    zeros = jnp.zeros((2, 2, 8, 2 * 6))
    return KVCache(zeros, zeros, jnp.zeros(2, jnp.int32))


@pytest.mark.quick
def test_cache_writes_behind_each_row_and_drops_what_does_not_fit():
    cache = empty_cache().replace(lengths=jnp.array([1, 6]))
    new = np.arange(1, 2 * 4 * 12 + 1, dtype=np.float32).reshape(2, 4, 2, 6)
    cache = cache.write(jnp.asarray(0), new, -new)
    want = np.zeros((2, 8, 2, 6), np.float32)
    want[0, 1:5], want[1, 6:] = new[0], new[1, :2]
    k, v = cache.read(jnp.asarray(0), head_dim=6)
    np.testing.assert_array_equal(k, want)
    np.testing.assert_array_equal(v, -want)
    assert not np.any(cache.k[1]) and not np.any(cache.v[1])


@pytest.mark.quick
def test_cache_take_repeats_and_reorders_rows():
    rng = np.random.default_rng(0)
    cache = KVCache(*(jnp.asarray(rng.normal(size=(2, 3, 4, 2))) for _ in "kv"), jnp.array([4, 1, 2]))
    taken = cache.take(jnp.array([2, 0, 0, 2]))
    for name in ("k", "v"):
        np.testing.assert_array_equal(getattr(taken, name), np.asarray(getattr(cache, name))[:, [2, 0, 0, 2]])
    np.testing.assert_array_equal(taken.lengths, [2, 4, 4, 2])
