import numpy as np
import pytest
from colours import png

from mmjax.data.documents import Image
from mmjax.evals import rices
from mmjax.evals.fewshot import Example


@pytest.mark.quick
def test_nearest_is_a_numpy_loop():
    rng = np.random.default_rng(0)
    queries, support = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    support *= rng.uniform(0.1, 10, (9, 1)).astype(np.float32)      # length does not matter
    for query, got in zip(queries, np.asarray(rices.nearest(queries, support, 4)), strict=True):
        cosine = [s @ query / np.linalg.norm(s) / np.linalg.norm(query) for s in support]
        assert got.tolist() == np.argsort(cosine)[-4:].tolist()     # the closest is last


def test_features_do_not_depend_on_batches(namer, writer):
    examples = [Example(Image(png(30 * i)), "", ("",)) for i in range(7)]
    whole = np.asarray(namer.image_features(None, writer.pixels(examples)[:, 0]))
    got = rices.image_features(namer, None, writer, examples, batch_size=3)
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-6)
