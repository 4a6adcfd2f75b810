import numpy as np
import pytest

from mmjax.evals import rices


@pytest.mark.quick
def test_nearest_is_a_numpy_loop():
    rng = np.random.default_rng(0)
    queries, support = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    support *= rng.uniform(0.1, 10, (9, 1)).astype(np.float32)      # length does not matter
    for query, got in zip(queries, np.asarray(rices.nearest(queries, support, 4)), strict=True):
        cosine = [s @ query / np.linalg.norm(s) / np.linalg.norm(query) for s in support]
        assert got.tolist() == np.argsort(cosine)[-4:].tolist()     # the closest is last


def test_features_do_not_depend_on_batches(namer):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    whole = np.asarray(namer.image_features(None, images))
    np.testing.assert_allclose(rices.image_features(namer, None, images, batch_size=3), whole, rtol=0, atol=1e-6)
