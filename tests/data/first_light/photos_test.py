import io

import numpy as np
import PIL.Image
import pytest

from mmjax.data.first_light import photos, sources

HEIGHT, WIDTH = 427, 640


def touched(held_out, count):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    boxes = photos.crop_boxes(HEIGHT, WIDTH, held_out, np.random.default_rng(0))
    for _ in range(count):
        left, top, right, bottom = next(boxes)
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.quick
def test_training_crops_touch_no_held_out_pixel():
    train, held_out = touched(False, 2000), touched(True, 300)
    assert not (train & held_out).any()
    assert train.mean() > 0.6 and held_out.mean() > 0.15


def test_labels_name_the_photograph_and_the_corner(monkeypatch):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    marks = np.stack([0 * x, 255 * (x >= WIDTH / 2), 255 * (y >= HEIGHT / 2)], 2)  # green on the right, blue below
    noise = rng.integers(0, 100, (HEIGHT, WIDTH, 1))
    pair = [np.clip(marks * 0.6 + noise + [red, 0, 0], 0, 255).astype(np.uint8) for red in (0, 155)]
    monkeypatch.setattr(sources, "load_photographs", lambda: pair)
    corners = 0
    for example in photos.examples(60, 32, False, rng):
        red, green, blue = np.asarray(PIL.Image.open(io.BytesIO(example.image)), float).mean((0, 1))
        if example.kind == "photo":
            assert example.answer == (" flower" if red > 127 else " temple")
        else:
            assert example.answer == f" {'bottom' if blue > 127 else 'top'} {'right' if green > 127 else 'left'}"
            corners += 1
    assert corners > 5


def test_a_box_across_the_middle_has_no_corner():
    assert photos.corner(np.array([300, 0, 364, 64]), HEIGHT, WIDTH) == ""
    assert photos.corner(np.array([0, 180, 64, 244]), HEIGHT, WIDTH) == ""
    assert photos.corner(np.array([0, 0, 64, 64]), HEIGHT, WIDTH) == "top left"


def test_plain_crops_are_left_out():
    for example in photos.examples(100, 32, False, np.random.default_rng(0)):
        image = PIL.Image.open(io.BytesIO(example.image))
        assert (image.format, image.size) == ("JPEG", (32, 32))
        assert np.asarray(image.convert("L"), float).std() > 0.5 * photos.MIN_CONTRAST  # resizing smooths a little
