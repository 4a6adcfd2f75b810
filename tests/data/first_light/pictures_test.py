import io
import math

import numpy as np
import PIL.Image
import pytest

from mmjax.data.first_light import pictures

SIDE, RADIUS = 200, 0.3


def covered(shape):
    image = pictures.canvas(SIDE, (0, 0, 0))
    pictures.draw_shape(image, shape, "white", 0.5, 0.5, RADIUS)
    return np.asarray(pictures.finish(image)).mean(2) / 255


def area(shape):
    """In units of radius squared, from geometry."""
    disc = math.pi
    y, x = np.mgrid[-1:1:801j, -1:1:801j]
    moon = 4 * np.mean((x**2 + y**2 < 1) & ((x - 0.65) ** 2 + y**2 > 0.8**2))
    return {"circle": disc, "square": 1.76**2, "triangle": 1.85, "diamond": 2 * 0.75 * 1.1, "moon": moon,
            "cross": 2 * 2 * 0.66 - 0.66**2, "ring": disc * (1 - 0.6**2),
            "star": 5 * 1.1 * 0.42 * math.sin(math.pi / 5)}[shape]


@pytest.mark.parametrize("shape", pictures.SHAPES)
def test_shape_covers_its_area(shape):
    want = area(shape) * (RADIUS * SIDE) ** 2
    np.testing.assert_allclose(covered(shape).sum(), want, rtol=0.03)


@pytest.mark.parametrize("shape", pictures.SHAPES)
def test_shape_stays_inside_its_radius(shape):
    y, x = np.nonzero(covered(shape))
    assert np.abs(np.stack([x, y]) + 0.5 - SIDE / 2).max() <= 1.1 * RADIUS * SIDE + 1


def test_unknown_shape_names_the_known_ones():
    with pytest.raises(ValueError, match="shape='blob' is not one of circle, square"):
        pictures.draw_shape(pictures.canvas(8, (0, 0, 0)), "blob", "red", 0.5, 0.5, 0.3)


def test_png_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    png = pictures.to_png(PIL.Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(png))), pixels)
