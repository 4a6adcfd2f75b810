import io

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from mmjax.data.first_light import digits


@pytest.fixture(scope="module")
def examples():
    return digits.examples(32)


def test_split_is_stratified_and_complete():
    labels = sklearn.datasets.load_digits().target
    train, held_out = digits.split(labels)
    np.testing.assert_array_equal(np.bincount(labels[held_out]), [40] * 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(1797))


def test_split_holds_out_the_end_of_the_file():
    labels = sklearn.datasets.load_digits().target
    train, held_out = digits.split(labels)
    assert all(train[labels[train] == d].max() < held_out[labels[held_out] == d].min() for d in range(10))


def test_every_picture_is_the_scan_with_its_label(examples):
    official = sklearn.datasets.load_digits()
    scans = official.images.reshape(-1, 64)
    for example in examples[0][::50] + examples[1][::20]:
        pixels = np.asarray(PIL.Image.open(io.BytesIO(example.image)), float)
        small = pixels.reshape(8, 4, 8, 4).mean((1, 3)).reshape(-1) * 16 / 255
        nearest = np.argmin(((scans - small) ** 2).sum(1))
        assert example.answer == f" {digits.NAMES[official.target[nearest]]}"
        assert example.prompt == "Output:"


def test_pictures_are_small_grey_pngs(examples):
    image = PIL.Image.open(io.BytesIO(examples[0][0].image))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
    assert [len(part) for part in examples] == [1397, 400]
