import dataclasses

import numpy as np
import pytest

from mmjax.data import preprocess


@pytest.mark.quick
def test_a_preset_gives_a_spec_that_can_be_changed():
    spec = preprocess.image_spec("clip-224", draft=1.0)
    assert (spec.size, spec.resize, spec.policy, spec.draft) == (224, "bicubic", "center_crop", 1.0)
    assert preprocess.image_spec("clip-224") == dataclasses.replace(spec, draft=0)
    assert all(name.endswith(f"-{p.spec.size}") for name, p in preprocess.PRESETS.items())


def test_errors_name_the_nearest():
    with pytest.raises(ValueError, match="'clip-244' is unknown; did you mean 'clip-224'"):
        preprocess.image_spec("clip-244")
    with pytest.raises(ValueError, match="policy='crop' is unknown"):
        preprocess.image_spec("clip-224", policy="crop")


def test_padding_is_nothing_after_normalisation():
    p = preprocess.preset("flamingo-320")
    assert np.abs(preprocess.normalise(np.uint8(p.spec.fill), p.mean, p.std)).max() < 0.01


def test_normalise_is_what_the_vision_tower_does():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    got = preprocess.normalise(pixels, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0, 1], [(60 / 255 - 0.5) / 0.5, (80 / 255 - 0.25) / 0.25, 100 / 255 / 2], rtol=1e-6)
