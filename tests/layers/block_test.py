"""The residual block against NumPy, and its initial spread against Magneto's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.kernels.attention import Rotary
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Block, BlockConfig, init_params, unbox

SUB_LN = BlockConfig(8, 2, 12, sub_norm=True, init_gain=1.5)
LLAMA = BlockConfig(8, 4, 12, num_kv_heads=2, head_dim=4, activation="swiglu", norm="rms", use_bias=False)
GPT = BlockConfig(8, 2, 12, activation="gelu_tanh")
BERT = BlockConfig(8, 2, 12, norm_place="post")
EVA_E = BlockConfig(8, 2, 12, norm_place="branch", key_bias=False)
EVA02 = BlockConfig(8, 2, 12, activation="swiglu", mlp_sub_norm=True, key_bias=False)
AIM = BlockConfig(8, 2, 12, use_bias=False, norm_bias=True)
SEGMENTS = np.array([[1, 1, 1, 2, 2]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1]], np.int32)


@pytest.mark.quick
@pytest.mark.parametrize("config", [SUB_LN, LLAMA, GPT, BERT, EVA_E, EVA02, AIM],
                         ids=["sub_ln", "llama", "gpt", "bert", "eva_e", "eva02", "aim"])
def test_block_matches_numpy(config):
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    block, mask = Block(config), masks.causal(SEGMENTS)
    rng, key = np.random.default_rng(1), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(block, key, x, mask)))
    params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)
    got, cache = jax.jit(block.apply)({"params": params}, x, mask, Rotary(POSITIONS, POSITIONS))
    assert cache is None
    turn = lambda a: oracle.turn(a, POSITIONS[0], "split")  # noqa: E731
    want = oracle.block(oracle.float64(params), x[0].astype(np.float64), oracle.causal(SEGMENTS[0]), config.activation,
                        config.norm, lambda q, k: (turn(q), turn(k)), config.norm_place)
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_biases_and_inner_norms_stand_where_the_config_says():
    x, mask = jnp.zeros((1, 5, 8)), masks.causal(SEGMENTS)
    tree = {name: jax.eval_shape(lambda c=c: unbox(init_params(Block(c), jax.random.key(0), x, mask)))
            for name, c in (("eva02", EVA02), ("aim", AIM))}
    attention, mlp = tree["eva02"]["attention"], tree["eva02"]["mlp"]
    assert "bias" not in attention["k"] and "bias" in attention["q"] and "bias" in attention["v"]
    assert "inner_norm" in mlp and "inner_norm" not in attention
    assert "bias" in tree["aim"]["mlp_norm"] and "bias" not in tree["aim"]["mlp"]["up"]


@pytest.mark.quick
def test_magneto_gain_is_on_values_output_and_feed_forward():
    """Xavier normal times sqrt(ln 2N) on W_v, W_o, W_1, W_2, times 1 on W_q and W_k, for the N = 24 of KOSMOS-1."""
    gain = math.sqrt(math.log(2 * 24))
    assert gain == pytest.approx(1.9675, abs=1e-4)
    d, f, h = 128, 256, 96          # inner width 2 * 96 of the heads is not D, so that fans differ
    config = BlockConfig(d, 2, f, head_dim=h, sub_norm=True, init_gain=gain)
    x = jnp.zeros((1, 1, d))
    params = jax.jit(lambda key: unbox(init_params(Block(config), key, x, masks.all_keys(1, 1, 1))))(jax.random.key(0))
    fans = {"q": (d, 2 * h, 1), "k": (d, 2 * h, 1), "v": (d, 2 * h, gain), "out": (2 * h, d, gain)}
    for name, (fan_in, fan_out, factor) in fans.items():
        spread = float(params["attention"][name]["kernel"].std())
        assert spread == pytest.approx(factor * math.sqrt(2 / (fan_in + fan_out)), rel=0.02), name
    for name in ("up", "down"):
        spread = float(params["mlp"][name]["kernel"].std())
        assert spread == pytest.approx(gain * math.sqrt(2 / (d + f)), rel=0.02), name


def test_dropout_acts_on_both_branches_and_only_with_a_key():
    x, mask = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32), masks.causal(SEGMENTS)
    config = BlockConfig(8, 2, 12)
    block = Block(dataclasses.replace(config, dropout=0.5))
    params = jax.jit(lambda key: unbox(init_params(block, key, x, mask)))(jax.random.key(0))
    run = jax.jit(lambda params, key: block.apply({"params": params}, x, mask, key=key)[0])
    plain = jax.jit(lambda params, key: Block(config).apply({"params": params}, x, mask, key=key)[0])
    np.testing.assert_array_equal(run(params, None), plain(params, None))
    for silent in ("attention", "mlp"):         # with one branch silent, what drops is the other's
        branch = "out" if silent == "attention" else "down"
        quiet = params | {silent: params[silent] | {branch: jax.tree.map(jnp.zeros_like, params[silent][branch])}}
        moved = run(quiet, jax.random.key(1)) - x
        assert 0.2 < float((moved == 0).mean()) < 0.8, silent


@pytest.mark.quick
@pytest.mark.parametrize("fields, message", [
    (dict(embed_dim=10, num_heads=4), r"embed_dim=10 must be a multiple of num_heads=4, or give head_dim"),
    (dict(num_heads=4, num_kv_heads=3), r"num_heads=4 must be a multiple of num_kv_heads=3"),
    (dict(activation="glu"), r"unknown activation 'glu'; choose from gelu, .*swiglu"),
    (dict(norm_place="end"), r"unknown norm_place 'end'; choose from pre, post, branch"),
    (dict(norm="batch"), r"unknown norm 'batch'; choose 'layer' or 'rms'"),
])
def test_config_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        BlockConfig(**dict(embed_dim=8, num_heads=4, mlp_dim=16) | fields)
