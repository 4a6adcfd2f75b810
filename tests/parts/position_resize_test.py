"""Position tables at other sizes: what stays, and what the weights must be; parity has the references' numbers."""

import numpy as np
import pytest

from mmjax.layers import BlockConfig
from mmjax.parts.position_resize import cubic_weights, resize_positions, resize_tower
from mmjax.parts.vit import ViTConfig

TABLE = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)


@pytest.mark.quick
@pytest.mark.parametrize("antialias", [False, True])
def test_weights_add_up_and_are_the_same_from_either_end(antialias):
    for old, new in ((5, 5), (6, 15), (12, 5)):
        weights = cubic_weights(old, new, antialias)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)
    np.testing.assert_allclose(cubic_weights(5, 5, antialias), np.eye(5), atol=1e-12)


@pytest.mark.quick
def test_only_the_table_of_a_tower_changes():
    config = ViTConfig(16, 4, 1, BlockConfig(4, 1, 4))
    params = {"position_embed": TABLE[:, :1], "class_embed": TABLE[0]}
    resized, new = resize_tower(config, params, 24)
    assert resized.image_size == 24 and new["position_embed"].shape == (37, 1)
    assert new["class_embed"] is params["class_embed"]
    np.testing.assert_array_equal(new["position_embed"][0], TABLE[0, :1])
    fixed, same = resize_tower(ViTConfig(16, 4, 1, BlockConfig(4, 1, 4), positions="sincos"), params, 24)
    assert fixed.num_tokens == 37 and same is params


@pytest.mark.quick
def test_a_short_table_is_refused_and_an_equal_grid_is_left_alone():
    assert resize_positions(TABLE, 4, 4) is TABLE
    with pytest.raises(ValueError, match=r"position table \[17, 3\] must have at least 5² = 25 rows"):
        resize_positions(TABLE, 5, 7)
