"""Encoded images to uint8 pixels, safely: limits are checked on the header, before anything is decoded.

What every mode becomes: grey, bilevel and palette images become RGB; 16-bit grey keeps its high byte; CMYK is
converted by Pillow's formula (colour profiles are ignored); transparency is laid on white. An EXIF orientation
is applied once. Of an animation the first frame is used.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as pil

from mmjax.data import documents

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
RESIZE = {name: getattr(pil.Resampling, name.upper()) for name in ("nearest", "box", "bilinear", "bicubic", "lanczos")}
POLICIES = ("squash", "center_crop", "pad")
_UPRIGHT = {2: pil.Transpose.FLIP_LEFT_RIGHT, 3: pil.Transpose.ROTATE_180, 4: pil.Transpose.FLIP_TOP_BOTTOM,
            5: pil.Transpose.TRANSPOSE, 6: pil.Transpose.ROTATE_270, 7: pil.Transpose.TRANSVERSE,
            8: pil.Transpose.ROTATE_90}
_ORIENTATION = 0x0112


class ImageError(ValueError):
    """An image cannot be used; `reason` is one of ImageError.REASONS."""

    REASONS = ("not a JPEG, PNG, WebP or GIF image", "image truncated or damaged", "image has too many bytes",
               "image has too many pixels", "image too small", "image too long and thin")

    def __init__(self, reason: str, detail: str):
        assert reason in self.REASONS
        super().__init__(f"{reason}: {detail}")
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.reason, str(self).removeprefix(f"{self.reason}: "))


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How pixels are made. It is part of a model: weights trained under one spec expect it for ever.

    Attributes:
        size: side of the square result.
        resize: resampling filter, antialiased when it shrinks: nearest, box, bilinear, bicubic or lanczos.
        policy: `squash` ignores the aspect; `center_crop` scales the short side to `size` and cuts the middle;
            `pad` scales the long side to `size` and centres the image on `fill`.
        fill: RGB of the padding.
        min_side, max_aspect, max_pixels, max_bytes: what is refused.
    """

    size: int = 224
    resize: str = "bicubic"
    policy: str = "squash"
    fill: tuple[int, int, int] = (255, 255, 255)
    min_side: int = 4
    max_aspect: float = 20.0
    max_pixels: int = 50_000_000
    max_bytes: int = 32 << 20

    def __post_init__(self):
        object.__setattr__(self, "fill", tuple(self.fill))
        if self.size < 1:
            raise ValueError(f"image size={self.size} must be at least 1")
        for field, known in (("resize", tuple(RESIZE)), ("policy", POLICIES)):
            if getattr(self, field) not in known:
                raise ValueError(f"image {field}={getattr(self, field)!r} is unknown; known: {', '.join(known)}")
        if len(self.fill) != 3 or not all(0 <= v <= 255 for v in self.fill):
            raise ValueError(f"image fill={self.fill} must be three numbers from 0 to 255")


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
    if len(data) > spec.max_bytes:
        raise ImageError("image has too many bytes", f"{len(data)}, the limit is {spec.max_bytes}")
    image = _open(data)
    _check_shape(*image.size, spec)
    try:
        image.draft(None, (spec.size, spec.size))   # a JPEG decodes at 1/2, 1/4 or 1/8 when that is enough
        image.load()
        image = _rgb(_upright(image))
    except Exception as e:                          # Pillow's codecs raise at least six types on bad data
        raise ImageError("image truncated or damaged", str(e) or type(e).__name__) from e
    return np.asarray(_fit(image, spec))


def decode_visuals(visuals: Sequence[documents.Image | documents.Video], spec: ImageSpec, frames: int = 1
                   ) -> np.ndarray:
    """Decodes images and videos of a document to one array.

    Args:
        visuals: images and videos in order.
        spec: for every frame.
        frames: F. A video gives F of its frames at equal distances, first and last included (the middle one if
            F is 1); an image gives F copies.

    Returns:
        uint8[len(visuals), F, size, size, 3].

    Raises:
        ImageError: if any frame that is needed cannot be used.
    """
    out = np.zeros((len(visuals), frames, spec.size, spec.size, 3), np.uint8)
    for i, visual in enumerate(visuals):
        if isinstance(visual, documents.Image):
            out[i] = decode_image(visual.data, spec)
            continue
        for f, k in enumerate(sample_frames(len(visual.frames), frames)):
            out[i, f] = decode_image(visual.frames[k], spec)
    return out


def sample_frames(available: int, wanted: int) -> np.ndarray:
    """int[wanted] frame numbers at equal distances; frames repeat when fewer are available than wanted."""
    if wanted == 1:
        return np.array([available // 2])
    return np.round(np.linspace(0, available - 1, wanted)).astype(int)


def _open(data: bytes) -> pil.Image:
    try:
        return pil.open(io.BytesIO(data), formats=FORMATS)
    except pil.DecompressionBombError as e:
        raise ImageError("image has too many pixels", str(e)) from e
    except pil.UnidentifiedImageError as e:
        raise ImageError("not a JPEG, PNG, WebP or GIF image", f"{len(data)} bytes, first {data[:8]!r}") from e
    except Exception as e:
        raise ImageError("image truncated or damaged", str(e) or type(e).__name__) from e


def _check_shape(width: int, height: int, spec: ImageSpec):
    if width * height > spec.max_pixels:
        raise ImageError("image has too many pixels", f"{width} x {height}, the limit is {spec.max_pixels}")
    short, long = sorted((width, height))
    if short < spec.min_side:
        raise ImageError("image too small", f"{width} x {height}, min_side={spec.min_side}")
    if long > spec.max_aspect * short:
        raise ImageError("image too long and thin", f"{width} x {height}, max_aspect={spec.max_aspect:g}")


def _upright(image: pil.Image) -> pil.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:                               # damaged metadata does not spoil the pixels
        orientation = 1
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: pil.Image) -> pil.Image:
    if image.mode.startswith("I"):                  # 16-bit grey; Pillow's own conversion clips at 255
        return pil.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _fit(image: pil.Image, spec: ImageSpec) -> pil.Image:
    n, method, (w, h) = spec.size, RESIZE[spec.resize], image.size
    if spec.policy == "squash":
        return image if (w, h) == (n, n) else image.resize((n, n), method)
    anchor = min(w, h) if spec.policy == "center_crop" else max(w, h)
    w, h = max(1, int(n * w / anchor)), max(1, int(n * h / anchor))
    if (w, h) != image.size:
        image = image.resize((w, h), method)
    left, top = round((w - n) / 2), round((h - n) / 2)
    if spec.policy == "center_crop":
        return image.crop((left, top, left + n, top + n))
    canvas = pil.new("RGB", (n, n), tuple(spec.fill))
    canvas.paste(image, (-left, -top))
    return canvas
