"""Encoded images to uint8 pixels, safely: limits are checked on the header, before anything is decoded.

What every mode becomes: grey, bilevel and palette images become RGB; 16-bit channels keep their high byte; CMYK, which
JPEG stores inverted, is converted by Pillow's formula (colour profiles are ignored); transparency is laid on white. An
EXIF orientation is applied once. Of an animation the first frame is used.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as pil

from mmjax.data import documents, video
from mmjax.data.image_spec import RESIZE, ImageError, ImageSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_UPRIGHT = {2: pil.Transpose.FLIP_LEFT_RIGHT, 3: pil.Transpose.ROTATE_180, 4: pil.Transpose.FLIP_TOP_BOTTOM,
            5: pil.Transpose.TRANSPOSE, 6: pil.Transpose.ROTATE_270, 7: pil.Transpose.TRANSVERSE,
            8: pil.Transpose.ROTATE_90}
_ORIENTATION = 0x0112
_JPEG_SIZE = struct.Struct(">HH")


class Header(NamedTuple):
    """What an image says of itself before it is decoded; `animated`: there are frames after the one that is used."""

    format: str
    width: int
    height: int
    animated: bool


def check_header(data: bytes, spec: ImageSpec) -> Header:
    """Checks all that can be known of an image without decoding it.

    Args:
        data: an encoded JPEG, PNG, WebP or GIF file.
        spec: its limits.

    Returns:
        The header.

    Raises:
        ImageError: if the data are no such image or break a limit.
    """
    if len(data) <= spec.max_bytes and (size := _jpeg_size(data)):          # ten times as fast as Pillow
        spec.check_shape(*size)
        return Header("JPEG", *size, False)
    image = _open(data, spec)
    try:
        return Header(image.format, *image.size, bool(getattr(image, "is_animated", False)))
    except Exception as e:                          # a GIF looks for its second frame
        raise ImageError("image truncated or damaged", str(e) or type(e).__name__) from e


def decode_image(data: bytes, spec: ImageSpec) -> np.ndarray:
    """Decodes one image.

    Args:
        data: an encoded JPEG, PNG, WebP or GIF file.
        spec: size, geometry and limits.

    Returns:
        uint8[size, size, 3] RGB.

    Raises:
        ImageError: naming what is wrong with the data.
    """
    image = _open(data, spec)
    try:
        shape, box = spec.shape_after_resize(*image.size), None
        if spec.draft and (drafted := image.draft(None, tuple(int(spec.draft * v) for v in shape))):
            box = drafted[1]                        # the part of the smaller image that is not the codec's padding
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        image = _resize(_rgb(image), shape, spec, box)
        return _cut(image if turn is None else image.transpose(turn), spec)
    except Exception as e:                          # Pillow's codecs raise at least six types on bad data
        raise ImageError("image truncated or damaged", str(e) or type(e).__name__) from e


def check_visuals(visuals: Sequence[documents.Image | documents.Video], spec: ImageSpec, frames: int = 1
                  ) -> list[Header]:
    """Checks what `decode_visuals` will need as far as that costs little: headers of images, size of video files.

    Returns:
        The headers of the images, those of a video's frames among them.

    Raises:
        ImageError: as `check_header` and `video.check_file`.
    """
    headers = []
    for data in (data for visual in visuals for data in _encoded(visual, frames)):
        if video.is_file(data):
            video.check_file(data, spec.video)
        else:
            headers.append(check_header(data, spec))
    return headers


def decode_visuals(visuals: Sequence[documents.Image | documents.Video], spec: ImageSpec, frames: int = 1
                   ) -> np.ndarray:
    """Decodes images and videos of a document to one array.

    Args:
        visuals: images and videos in order.
        spec: for every frame.
        frames: F. A video gives F of its frames at equal distances, first and last included (the middle one if
            F is 1), or as `spec.video` says if it is a video file; an image gives F copies.

    Returns:
        uint8[len(visuals), F, size, size, 3].

    Raises:
        ImageError: if any frame that is needed cannot be used.
        ImportError: for a video file without the extra [video].
    """
    out = np.zeros((len(visuals), frames, spec.size, spec.size, 3), np.uint8)
    for i, visual in enumerate(visuals):
        for f, data in enumerate(_encoded(visual, frames)):
            if video.is_file(data):
                for k, frame in enumerate(video.read_frames(data, frames, spec)):
                    out[i, k] = _cut(_resize(frame, spec.shape_after_resize(*frame.size), spec), spec)
            else:
                out[i, f:] = decode_image(data, spec)       # the last one is repeated, and an image is alone
    return out


def sample_frames(available: int, wanted: int) -> np.ndarray:
    """int[wanted] frame numbers at equal distances; frames repeat when fewer are available than wanted."""
    if wanted == 1:
        return np.array([available // 2])
    return np.round(np.linspace(0, available - 1, wanted)).astype(int)


def _encoded(visual: documents.Image | documents.Video, frames: int) -> Iterator[bytes]:
    """The encoded images that are needed of an item, or the one video file that it is."""
    if isinstance(visual, documents.Image):
        return iter([visual.data])
    if video.is_file(visual.frames[0]):
        return iter(visual.frames[:1])
    return (visual.frames[k] for k in sample_frames(len(visual.frames), frames))


def _open(data: bytes, spec: ImageSpec) -> pil.Image:
    """The image, its header read and within the limits."""
    if len(data) > spec.max_bytes:
        raise ImageError("image has too many bytes", f"{len(data)}, the limit is {spec.max_bytes}")
    try:
        image = pil.open(io.BytesIO(data), formats=FORMATS)
    except pil.DecompressionBombError as e:
        raise ImageError("image has too many pixels", str(e)) from e
    except pil.UnidentifiedImageError as e:
        raise ImageError("not a JPEG, PNG, WebP or GIF image", f"{len(data)} bytes, first {data[:8]!r}") from e
    except Exception as e:
        raise ImageError("image truncated or damaged", str(e) or type(e).__name__) from e
    spec.check_shape(*image.size)
    return image


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG from its first frame header; None where that is not found at once."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):         # a frame; those are tables
            height, width = _JPEG_SIZE.unpack_from(data, at + 5)
            return (width, height) if width and height else None
        if not 0xC4 <= kind <= 0xFE or 0xD0 <= kind <= 0xDA:                # nothing that has a length, or pixels
            return None
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return None


def _orientation(image: pil.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:                               # damaged metadata does not spoil the pixels
        return 1


def _rgb(image: pil.Image) -> pil.Image:
    if image.mode.startswith("I"):                  # 16-bit grey; Pillow's own conversion clips at 255
        return pil.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _resize(image: pil.Image, shape: tuple[int, int], spec: ImageSpec, box: tuple[float, ...] | None = None
            ) -> pil.Image:
    return image if image.size == shape and box is None else image.resize(shape, RESIZE[spec.resize], box)


def _cut(image: pil.Image, spec: ImageSpec) -> np.ndarray:
    """uint8[size, size, 3], the middle of an image or the image in the middle of the padding."""
    n, (w, h) = spec.size, image.size
    left, top = round((w - n) / 2), round((h - n) / 2)
    if spec.policy == "pad":
        canvas = pil.new("RGB", (n, n), spec.fill)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(image if (w, h) == (n, n) else image.crop((left, top, left + n, top + n)))
