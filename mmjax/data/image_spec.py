"""What pixels a model expects of an image or a video, and what is refused."""

import dataclasses

from PIL import Image as pil

RESIZE = {name: getattr(pil.Resampling, name.upper()) for name in ("nearest", "box", "bilinear", "bicubic", "lanczos")}
POLICIES = ("squash", "center_crop", "pad")


class ImageError(ValueError):
    """An image or a video cannot be used; `reason` is one of ImageError.REASONS."""

    REASONS = ("not a JPEG, PNG, WebP or GIF image", "image truncated or damaged", "image has too many bytes",
               "image has too many pixels", "image too small", "image too long and thin", "video truncated or damaged",
               "video too large or too long")

    def __init__(self, reason: str, detail: str):
        assert reason in self.REASONS
        super().__init__(f"{reason}: {detail}")
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.reason, str(self).removeprefix(f"{self.reason}: "))


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How frames are taken from a video file, an MP4 say. Frames given as images are taken at equal distances.

    Attributes:
        rate: frames per second, from the start on, the last one repeated if the video is too short (1.0 as
            Flamingo); 0 takes them at equal distances, first and last included (as Emu2).
        max_bytes, max_seconds: what is refused. A frame may have as many pixels as an image.
    """

    rate: float = 0.0
    max_bytes: int = 256 << 20
    max_seconds: float = 3600.0

    def __post_init__(self):
        if not self.rate >= 0:
            raise ValueError(f"video rate={self.rate} must be frames per second, or 0 for equal distances")


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How pixels are made. It is part of a model: weights trained under one spec expect it for ever.

    Specs of published towers are in `preprocess`.

    Attributes:
        size: side of the square result.
        resize: resampling filter, antialiased when it shrinks: nearest, box, bilinear, bicubic or lanczos.
        policy: `squash` ignores the aspect; `center_crop` scales the short side to `resize_to` and cuts the middle;
            `pad` scales the long side to `size` and centres the image on `fill`.
        resize_to: side before the middle `size` is cut; 0 for size itself.
        fill: RGB of the padding.
        draft: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that leaves `draft` times the pixels per side
            that the resize asks for; 0 always decodes in full. On photographs 1.0 differs from 0 by 0.4 to 2.1 grey
            levels on average, most where the half is hardly larger than the result, and takes half the time; 1.5 by
            0.6 at most, where it halves at all.
        min_side, max_aspect, max_pixels, max_bytes: what is refused.
        video: how frames of video files are taken.
    """

    size: int = 224
    resize: str = "bicubic"
    policy: str = "squash"
    resize_to: int = 0
    fill: tuple[int, int, int] = (255, 255, 255)
    draft: float = 1.0
    min_side: int = 4
    max_aspect: float = 20.0
    max_pixels: int = 50_000_000
    max_bytes: int = 32 << 20
    video: VideoSpec = VideoSpec()

    def __post_init__(self):
        object.__setattr__(self, "fill", tuple(self.fill))
        if self.size < 1:
            raise ValueError(f"image size={self.size} must be at least 1")
        for field, known in (("resize", tuple(RESIZE)), ("policy", POLICIES)):
            if getattr(self, field) not in known:
                raise ValueError(f"image {field}={getattr(self, field)!r} is unknown; known: {', '.join(known)}")
        if len(self.fill) != 3 or not all(0 <= v <= 255 for v in self.fill):
            raise ValueError(f"image fill={self.fill} must be three numbers from 0 to 255")
        if self.resize_to and (self.resize_to < self.size or self.policy == "pad"):
            raise ValueError(f"image resize_to={self.resize_to} must be at least size={self.size}, of which it is cut, "
                             "and 0 for the policy 'pad'")
        if not (self.draft == 0 or self.draft >= 1):
            raise ValueError(f"image draft={self.draft} must be 0 (decode in full) or at least 1")

    def shape_after_resize(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which an image is scaled before it is cut or padded, as torchvision rounds it."""
        side = self.resize_to or self.size
        if self.policy == "squash":
            return side, side
        anchor = min(width, height) if self.policy == "center_crop" else max(width, height)
        return max(1, side * width // anchor), max(1, side * height // anchor)

    def check_shape(self, width: int, height: int):
        """Raises ImageError if an image of this width and height breaks a limit."""
        if width * height > self.max_pixels:
            raise ImageError("image has too many pixels", f"{width} x {height}, the limit is {self.max_pixels}")
        short, long = sorted((width, height))
        if short < self.min_side:
            raise ImageError("image too small", f"{width} x {height}, min_side={self.min_side}")
        if long > self.max_aspect * short:
            raise ImageError("image too long and thin", f"{width} x {height}, max_aspect={self.max_aspect:g}")
