"""Our pixels equal those of the published image processors, to the grey level."""

import importlib.util
import io

import numpy as np
import preprocess_references as reference
import pytest
from PIL import Image

from mmjax.data import images, preprocess

MISSING = [p for p in ("torch", "torchvision", "transformers", "timm", "open_clip") if not importlib.util.find_spec(p)]
PUBLISHED = sorted(preprocess.PRESETS.keys() - {"flamingo-320"})        # of which no code was published


def ours(picture, name):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", compress_level=0)
    return images.decode_image(data.getvalue(), preprocess.image_spec(name))


@pytest.mark.quick
def test_presets_equal_the_goldens():
    with np.load(reference.GOLDENS) as goldens:
        assert sorted(goldens) == sorted(f"{name}/{k}" for name in PUBLISHED for k in (0, 1))
        for name in PUBLISHED:
            p = preprocess.preset(name)
            for k, picture in enumerate(reference.pictures()):
                got, want = reference.grid(ours(picture, name)), goldens[f"{name}/{k}"]
                np.testing.assert_array_equal(got, want, err_msg=name)
                np.testing.assert_allclose(preprocess.normalise(got, p.mean, p.std),
                                           (want / 255 - p.mean) / p.std, atol=1e-6)


@pytest.mark.skipif(bool(MISSING), reason=f"the references are not installed: {MISSING}")
def test_presets_equal_the_processors():
    processors = reference.references()
    assert sorted(processors) == PUBLISHED
    for name, several in processors.items():
        p = preprocess.preset(name)
        for picture in reference.pictures():
            got = preprocess.normalise(ours(picture, name), p.mean, p.std)
            for processor in several:
                np.testing.assert_allclose(got, processor(Image.fromarray(picture)), atol=2e-6, err_msg=name)


@pytest.mark.skipif(bool(MISSING), reason=f"the references are not installed: {MISSING}")
def test_odd_margins_are_cut_as_by_torchvision():
    picture = np.random.default_rng(1).integers(0, 256, (224, 227, 3), np.uint8)        # 1.5 pixels on either side
    clip, open_clip = reference.references()["clip-224"]
    p = preprocess.preset("clip-224")
    got = preprocess.normalise(ours(picture, "clip-224"), p.mean, p.std)
    np.testing.assert_allclose(got, open_clip(Image.fromarray(picture)), atol=2e-6)
    assert np.abs(got - clip(Image.fromarray(picture))).max() > 1                       # transformers rounds down
