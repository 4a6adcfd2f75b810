import sys

import numpy as np
import pytest

from mmjax.data.first_light import sources


def test_sizes_are_the_official_ones():
    scans, digits = sources.load_scans()
    assert scans.shape == (1797, 8, 8) and scans.dtype == np.uint8 and scans.max() == 255
    np.testing.assert_array_equal(np.bincount(digits), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert [p.shape for p in sources.load_photographs()] == [(427, 640, 3)] * 2


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install 'mmjax\[data\]'"):
        sources.load_scans()
