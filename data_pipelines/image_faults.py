"""Why an image is of no use for training, by limits that each corpus declares."""

import numpy as np

from mmjax.data.images import ImageError, ImageSpec, decode_image


def image_fault(data: bytes, *, min_side: int, max_aspect: float, max_pixels: int = 50_000_000,
                max_bytes: int = 20 << 20, single_colour: int = 8) -> str:
    """The reason not to use an encoded image, "" if there is none.

    Args:
        data: an encoded image.
        min_side, max_aspect, max_pixels, max_bytes: limits; checked on the header, before anything is decoded.
        single_colour: largest range of a channel, shrunk to 16 x 16, of an image that counts as of one colour; -1 for
            none.
    """
    spec = ImageSpec(size=16, resize="box", min_side=min_side, max_aspect=max_aspect, max_pixels=max_pixels,
                     max_bytes=max_bytes)
    try:
        pixels = decode_image(data, spec).reshape(-1, 3)
    except ImageError as e:
        return e.reason
    return "single colour" if np.ptp(pixels, axis=0).max() <= single_colour else ""
