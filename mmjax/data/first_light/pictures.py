"""Small drawn pictures: filled shapes, smooth edges, and the encoded files they become."""

import io
import math

import PIL.Image
from PIL import ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "moon")
COLOURS = {
    "red": (235, 50, 50), "green": (40, 175, 75), "blue": (65, 100, 245), "yellow": (250, 225, 50),
    "orange": (250, 145, 25), "purple": (165, 60, 205), "cyan": (60, 215, 235), "white": (255, 255, 255),
}
SUPERSAMPLE = 4  # drawn this many times larger, then averaged: Pillow's own edges are hard


def canvas(size: int, background: tuple[int, int, int]) -> PIL.Image.Image:
    """An empty RGB picture, still SUPERSAMPLE times as large as the `size` it will have."""
    return PIL.Image.new("RGB", (size * SUPERSAMPLE, size * SUPERSAMPLE), background)


def finish(image: PIL.Image.Image) -> PIL.Image.Image:
    """Averages a supersampled picture down to its real size."""
    return image.reduce(SUPERSAMPLE)


def to_png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def to_jpeg(image: PIL.Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def draw_shape(image: PIL.Image.Image, shape: str, colour: str, x: float, y: float, radius: float):
    """Draws one filled shape of about equal visual size, whatever the shape.

    Args:
        image: an RGB picture, changed in place.
        shape: one of SHAPES.
        colour: one of COLOURS.
        x, y, radius: centre and half width, as fractions of the picture's side.

    Raises:
        ValueError: if there is no such shape.
    """
    side, fill, draw = image.width, COLOURS[colour], ImageDraw.Draw(image)
    cx, cy, r = x * side, y * side, radius * side
    if shape == "circle":
        draw.ellipse(_box(cx, cy, r), fill=fill)
    elif shape == "ring":
        draw.ellipse(_box(cx, cy, r), outline=fill, width=round(0.4 * r))
    elif shape == "moon":
        image.paste(fill, mask=_moon(side, cx, cy, r))
    elif shape in _CORNERS:
        draw.polygon([(cx + r * u, cy + r * v) for u, v in _CORNERS[shape]], fill=fill)
    else:
        raise ValueError(f"shape={shape!r} is not one of {', '.join(SHAPES)}")


def _box(cx: float, cy: float, r: float) -> list[float]:
    return [cx - r, cy - r, cx + r, cy + r]


def _moon(side: int, cx: float, cy: float, r: float) -> PIL.Image.Image:
    """A disc with another disc bitten out of its right, as a mask: what lies behind must show through."""
    mask = PIL.Image.new("1", (side, side))
    draw = ImageDraw.Draw(mask)
    draw.ellipse(_box(cx, cy, r), fill=1)
    draw.ellipse(_box(cx + 0.65 * r, cy, 0.8 * r), fill=0)
    return mask


def _star(points: int = 5, inner: float = 0.42) -> list[tuple[float, float]]:
    angles = [math.pi * i / points for i in range(2 * points)]
    return [((inner if i % 2 else 1.1) * math.sin(a), -(inner if i % 2 else 1.1) * math.cos(a))
            for i, a in enumerate(angles)]


_ARM = 0.33  # half the width of a bar of the cross
_CORNERS = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "star": _star(),
    "diamond": [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)],
    "cross": [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
              (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
}
