"""Names of dimensions follow parameters through stacking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import Linear, axes_of, init_stack, unbox

pytestmark = pytest.mark.quick


def test_stacked_parameters_gain_a_layers_dimension_and_differ():
    module = Linear((4,), (6,), ("embed", "mlp"), use_bias=False, parent=None)
    boxed = init_stack(module, 3, jax.ShapeDtypeStruct((1, 4), jnp.float32))(jax.random.key(0))
    assert axes_of(boxed) == {"kernel": ("layers", "embed", "mlp")}
    kernel = np.asarray(unbox(boxed)["kernel"])
    assert kernel.shape == (3, 4, 6)
    assert not np.any(kernel[0] == kernel[1]) and not np.any(kernel[1] == kernel[2])


def test_names_survive_eval_shape():
    module = Linear((4,), (6,), ("embed", "mlp"), parent=None)
    init = init_stack(module, 2, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    boxed = jax.eval_shape(init, jax.random.key(0))
    assert axes_of(boxed) == {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
    assert unbox(boxed)["kernel"].shape == (2, 4, 6)
