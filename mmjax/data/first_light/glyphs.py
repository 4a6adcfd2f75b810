"""Drawn classes for learning in context: invented characters, and coloured shapes.

A class is a number. Both families draw a class as often as one likes, each time a little different, so a
page can show a class several times without repeating a picture.
"""

import dataclasses

import numpy as np
import PIL.Image
from PIL import ImageDraw

from mmjax.data.first_light import pictures


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """Invented characters of two to four pen strokes, white on black, in the manner of Omniglot.

    A stroke is a quadratic Bezier curve through three random points. An instance moves the points a little,
    rotates, scales and shifts the whole and changes the width of the pen.

    Attributes:
        seed: another seed gives other characters for the same numbers.
        jitter: how much instances of a class differ; 0 repeats one picture.

    Source: Omniglot's idea (Lake et al., Science 2015), drawn by rule instead of by hand.
    """

    seed: int = 0
    jitter: float = 1.0

    def strokes(self, class_id: int) -> np.ndarray:
        """The class itself: float[strokes, 3, 2] control points in [-1, 1]."""
        rng = np.random.default_rng([self.seed, class_id])
        count = rng.integers(2, 5)
        strokes = np.empty((count, 3, 2))
        for i in range(count):
            strokes[i] = _stroke(rng)
            if i and rng.random() < 0.6:            # joined to an earlier stroke, as in handwriting
                strokes[i] += strokes[rng.integers(i), rng.integers(3)] - strokes[i, 0]
        low, high = strokes.min((0, 1)), strokes.max((0, 1))
        return (strokes - (low + high) / 2) / (np.max(high - low) / 2)

    def draw(self, class_id: int, size: int, rng: np.random.Generator) -> PIL.Image.Image:
        """A fresh instance of the class as a grey picture of `size` x `size` pixels."""
        strokes, j = self.strokes(class_id), self.jitter
        strokes = strokes + j * rng.normal(0, 0.06, strokes.shape)
        strokes = strokes @ _rotation(j * rng.uniform(-0.25, 0.25)) * (0.72 + j * rng.uniform(-0.08, 0.08))
        points = (_bezier(strokes) + j * rng.uniform(-0.1, 0.1, 2) + 1) / 2
        width = size * (0.075 + j * rng.uniform(-0.015, 0.02))
        return _ink(points, width, size)


@dataclasses.dataclass(frozen=True)
class Compositions:
    """Coloured shapes: each class is one of 8 shapes in one of 8 colours, 64 classes in all.

    Easier than `Glyphs`, since an unseen class is a new combination of parts that were all seen: any 8 classes from
    a multiple of 8 on have every shape and every colour once, like the diagonals of a Latin square.

    Attributes:
        seed: which shapes and colours go together on one diagonal.
        jitter: how much place and size differ between instances.
    """

    seed: int = 0
    jitter: float = 1.0
    num_classes = len(pictures.SHAPES) * len(pictures.COLOURS)

    def parts(self, class_id: int) -> tuple[str, str]:
        """The (shape, colour) of a class.

        Raises:
            ValueError: if there is no such class.
        """
        if not 0 <= class_id < self.num_classes:
            raise ValueError(f"class_id={class_id} must be in [0, {self.num_classes}), the pairs of shape and colour")
        diagonal, shape = divmod(class_id, len(pictures.SHAPES))
        colours = np.random.default_rng(self.seed).permutation(list(pictures.COLOURS))
        return pictures.SHAPES[shape], str(colours[(shape + diagonal) % len(colours)])

    def draw(self, class_id: int, size: int, rng: np.random.Generator) -> PIL.Image.Image:
        """A fresh instance of the class as an RGB picture of `size` x `size` pixels."""
        shape, colour = self.parts(class_id)
        radius = 0.27 + self.jitter * rng.uniform(-0.07, 0.07)
        x, y = 0.5 + self.jitter * rng.uniform(-1, 1, 2) * (0.47 - 1.1 * radius)
        image = pictures.canvas(size, (12, 12, 16))
        pictures.draw_shape(image, shape, colour, x, y, radius)
        return pictures.finish(image)


def _stroke(rng: np.random.Generator) -> np.ndarray:
    """Three control points: a start, an end well away from it, and a bend between them."""
    start = rng.uniform(-1, 1, 2)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.8)
    along = length * np.array([np.cos(angle), np.sin(angle)])
    bend = rng.choice([0.0, rng.uniform(-1.2, 1.2)]) * along[::-1] * [-1, 1]
    return np.stack([start, start + along / 2 + bend, start + along])


def _bezier(strokes: np.ndarray, steps: int = 12) -> np.ndarray:
    """float[strokes, 3, 2] control points -> float[strokes, steps, 2] points on the curves."""
    t = np.linspace(0, 1, steps)
    basis = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    return basis @ strokes


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _ink(points: np.ndarray, width: float, size: int) -> PIL.Image.Image:
    side, pen = size * pictures.SUPERSAMPLE, width * pictures.SUPERSAMPLE
    image = PIL.Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for stroke in points * side:
        draw.line([tuple(p) for p in stroke], fill=255, width=round(pen))
        for x, y in (stroke[0], stroke[-1]):        # round ends
            draw.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=255)
    return pictures.finish(image)
