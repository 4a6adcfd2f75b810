"""AIM's objective against a loop; `tests/parity/vision_test.py` has the whole of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parts.aim import PixelHeadConfig, aim_loss, draw_prefix, next_patch_loss
from mmjax.parts.vit import ViTConfig


@pytest.mark.quick
def test_loss_is_the_error_of_the_patches_after_the_prefix():
    rng = np.random.default_rng(0)
    predicted, pixels = rng.normal(size=(2, 3, 5, 12)).astype(np.float32)
    prefix = np.array([1, 4, 2], np.int32)
    errors = []
    for row in range(3):
        for n in range(prefix[row], 5):
            patch = pixels[row, n].astype(np.float64)
            target = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            errors.append(np.mean((predicted[row, n - 1] - target) ** 2))
    got = jax.jit(next_patch_loss)(predicted, pixels, prefix)
    assert float(got) == pytest.approx(np.mean(errors), rel=1e-6)


@pytest.mark.quick
def test_prefixes_leave_at_least_one_patch_on_either_side():
    prefix = np.asarray(draw_prefix(jax.random.key(0), 500, 4))
    assert set(prefix.tolist()) == {1, 2, 3}


@pytest.mark.quick
def test_a_class_token_is_refused():
    with pytest.raises(ValueError, match="class_token must be False"):
        aim_loss(ViTConfig(), PixelHeadConfig(8, 4, 4), {}, jnp.zeros((1, 8, 8, 3), jnp.uint8), jnp.ones(1, jnp.int32))
