import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.data.inspect import stats


def batch(segments, image_segments, weights):
    segments, image_segments = np.array(segments, np.int32), np.array(image_segments, np.int32)
    nothing = np.zeros_like(segments)
    return Batch(nothing, nothing, np.array(weights, np.float32), segments, nothing, nothing, nothing,
                 np.zeros((*image_segments.shape, 1, 1, 1, 3), np.uint8), image_segments)


BATCH = batch([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], [[1, 1, 2], [0, 0, 0]], [[1, 0, 0, 0.5, 0, 0], [0] * 6])


@pytest.mark.quick
def test_rows_and_documents_are_counted():
    s = stats.collect([dict(pages=BATCH)])["pages"]
    assert (s.tokens, s.images, s.learned, s.documents) == ([5, 6], [3, 0], [2, 0], [2, 1])
    assert (s.lengths, s.document_images) == ([3, 2, 6], [2, 1, 0])
    v = s.values()
    assert v["token_fill"] == 11 / 12 and v["image_fill"] == 0.5 and v["images_of_documents"] == [1, 1, 1]
    assert v["length_quantiles"]["0.5"] == 3
    text = s.report()
    for line in ("rows             2, of 6 tokens and 3 images", "91.67%, the emptiest row 83.33%",
                 "50.00%, of a row 0 to 3", "18.2% of the tokens in use", "1.50, 1 to 2",
                 "least 2, 5% 2, 25% 2, median 3", "0: 33.3%  1: 33.3%  2: 33.3%"):
        assert line in text, line


def test_batches_add_up_and_empty_rows_count():
    empty = batch([[0, 0]], np.zeros((1, 0)), [[0, 0]])
    s = stats.collect([dict(text=empty)] * 3)["text"]
    assert s.tokens == [0, 0, 0] and s.lengths == [] and s.values()["image_fill"] is None
    assert "images in use" not in s.report() and stats.SetStats(1, 1).report() == "no rows"


def test_sources_with_what_they_left_out():
    counters = dict(a=dict(records=5, truncated=1, tokens=30, images=2, skipped={"too long": 2, "left out": 1}),
                    long=dict(records=1, truncated=0, tokens=10, images=0, skipped={}))
    lines = stats.sources_table(counters).splitlines()
    assert lines[0] == "source a     5 records, 30 tokens (75.0%), 2 images, 1 cut to size"
    assert [line.strip() for line in lines[1:3]] == ["left out 1: left out", "left out 2: too long"]
    assert lines[3].startswith("source long  1 records, 10 tokens (25.0%)")
