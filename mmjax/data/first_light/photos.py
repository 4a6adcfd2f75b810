"""Two photographs: square crops, with the photograph and the corner of it that they come from."""

import itertools
from collections.abc import Iterator

import numpy as np
import PIL.Image

from mmjax.data.first_light import pages, pictures, sources

WHICH = "Question: which photograph? Answer:"
WHERE = "Question: which corner? Answer:"
LABELS = (" temple", " flower")
SIDES = (64, 113)  # a crop is 64 to 112 pixels wide before it is resized
MIN_CONTRAST = 12  # standard deviation of the brightness; below it is a plain piece of sky or shade
ROWS, COLUMNS = 3, 5
HELD_OUT_CELLS = ((0, 1), (1, 3), (2, 2))  # (row, column) of a 3 x 5 grid over each photograph


def held_out_boxes(height: int, width: int) -> np.ndarray:
    """int[3, 4]: the regions (left, top, right, bottom) of a photograph that no training crop touches."""
    h, w = height // ROWS, width // COLUMNS
    return np.array([(c * w, r * h, c * w + w, r * h + h) for r, c in HELD_OUT_CELLS])


def crop_boxes(height: int, width: int, held_out: bool, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless random square boxes int[4]: inside one held-out region, or clear of all of them."""
    regions = held_out_boxes(height, width)
    while True:
        side = rng.integers(*SIDES)
        left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
        box = np.array([left, top, left + side, top + side])
        starts, stops = regions[:, :2], regions[:, 2:]
        inside = ((box[:2] >= starts) & (box[2:] <= stops)).all(1).any()
        touches = ((box[:2] < stops) & (box[2:] > starts)).all(1).any()
        if inside if held_out else not touches:
            yield box


def examples(count: int, size: int, held_out: bool, rng: np.random.Generator) -> list[pages.Example]:
    """About `count` crops, as many of each photograph, each with its name and, if it lies in one, its corner.

    Plain crops are left out.

    Args:
        count: number of crops; half of it, rounded up, from each photograph.
        size: side of the JPEG pictures in pixels.
        held_out: whether crops lie inside the held-out regions or clear of them.
    """
    made = []
    for label, pixels in zip(LABELS, sources.load_photographs(), strict=True):
        photograph = PIL.Image.fromarray(pixels)
        boxes = (b for b in crop_boxes(*pixels.shape[:2], held_out, rng) if contrast(pixels, b) >= MIN_CONTRAST)
        for box in itertools.islice(boxes, (count + 1) // 2):
            crop = photograph.resize((size, size), PIL.Image.Resampling.BICUBIC, box=tuple(box.tolist()))
            image = pictures.to_jpeg(crop)
            made.append(pages.Example(image, WHICH, label, "photo"))
            if where := corner(box, *pixels.shape[:2]):
                made.append(pages.Example(image, WHERE, f" {where}", "corner"))
    return made


def contrast(pixels: np.ndarray, box: np.ndarray) -> float:
    """Standard deviation of the brightness of uint8[H, W, 3] pixels inside a box."""
    left, top, right, bottom = box
    return float(pixels[top:bottom, left:right].mean(2).std())


def corner(box: np.ndarray, height: int, width: int) -> str:
    """"top left" and so on if the box does not cross a middle line of the photograph, else ""."""
    left, top, right, bottom = box
    row = "top" if bottom <= height / 2 else "bottom" if top >= height / 2 else ""
    column = "left" if right <= width / 2 else "right" if left >= width / 2 else ""
    return f"{row} {column}" if row and column else ""
