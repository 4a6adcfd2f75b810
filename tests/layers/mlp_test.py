"""Feed-forward variants against NumPy in float64."""

import jax
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import ACTIVATIONS, Mlp, init_params, unbox


def test_the_oracle_knows_every_activation():
    assert set(ACTIVATIONS) == set(oracle.ACTIVATIONS)


@pytest.mark.quick
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_matches_numpy(activation):
    sub_norm, use_bias = activation == "gelu", activation != "swiglu"
    module = Mlp(4, 6, activation, use_bias, sub_norm)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    params = unbox(init_params(module, jax.random.key(0), x))
    assert ("inner_norm" in params) == sub_norm and ("bias" in params["up"]) == use_bias
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), params)
    got = jax.jit(module.apply)({"params": params}, x)
    want = oracle.mlp(oracle.float64(params), x.astype(np.float64), activation)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
