"""The real input: scans and photographs that scikit-learn ships, so that nothing is downloaded."""

import numpy as np


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits of the UCI optical recognition set, as scanned to 8x8 pixels.

    Returns:
        (uint8[1797, 8, 8] grey pixels, int64[1797] digits), in the order of the official file.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    digits = _datasets().load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def load_photographs() -> tuple[np.ndarray, np.ndarray]:
    """A temple and a flower, each uint8[427, 640, 3].

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    load = _datasets().load_sample_image
    return load("china.jpg"), load("flower.jpg")


def _datasets():
    try:
        import sklearn.datasets
    except ImportError as e:
        raise ImportError("the default data set takes its digits and photographs from scikit-learn, which is not "
                          "installed; install it with: pip install 'mmjax[data]'") from e
    return sklearn.datasets
