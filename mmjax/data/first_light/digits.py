"""Handwritten digits: every scan once, "Output: seven"."""

import numpy as np
import PIL.Image

from mmjax.data.first_light import pages, pictures, sources

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABELS = tuple(f" {name}" for name in NAMES)
HELD_OUT_PER_DIGIT = 40


def split(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fixed split: the last 40 scans of each digit are held out.

    The official file goes writer by writer, so the end of it is handwriting that training sees little of; an
    interleaved split would be easier (a support vector machine reads 96.5 % of this one, 99 % of every fourth).

    Args:
        digits: int[1797] in the official order.

    Returns:
        (int64[1397] training indices, int64[400] held-out indices), each ascending.
    """
    held_out = np.sort(np.concatenate([np.flatnonzero(digits == d)[-HELD_OUT_PER_DIGIT:] for d in range(10)]))
    return np.setdiff1d(np.arange(len(digits)), held_out), held_out


def examples(size: int) -> tuple[list[pages.Example], list[pages.Example]]:
    """(training, held-out) examples: each scan as a grey PNG of `size` x `size` pixels, in the official order."""
    scans, digits = sources.load_scans()
    made = [
        pages.Example(pictures.to_png(enlarge(scan, size)), pages.OUTPUT, LABELS[digit], "digit")
        for scan, digit in zip(scans, digits, strict=True)
    ]
    train, held_out = split(digits)
    return [made[i] for i in train], [made[i] for i in held_out]


def enlarge(scan: np.ndarray, size: int) -> PIL.Image.Image:
    """uint8[8, 8] -> a grey picture; bicubic keeps the pen strokes round."""
    return PIL.Image.fromarray(scan).resize((size, size), PIL.Image.Resampling.BICUBIC)
