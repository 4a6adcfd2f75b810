"""Drawn scenes: one thing, several things to count, or two things side by side, with captions and questions.

A picture has one true caption: things are named from left to right, from top to bottom, and groups in the order of
`pictures.SHAPES`. So a caption can be scored by exact match.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import PIL.Image

from mmjax.data.first_light import pages, pictures

NUMBERS = ("zero", "one", "two", "three", "four")
MAX_COUNT = 4  # of one shape; a scene holds at most five things
PLACES = {"left": (0.22, 0.5), "right": (0.78, 0.5), "top": (0.5, 0.22), "bottom": (0.5, 0.78), "middle": (0.5, 0.5)}
WHERE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
         "middle": "in the middle"}
LABELS = tuple(f" {shape}" for shape in pictures.SHAPES)  # of the question for the shape


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape; centre and half width are fractions of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    def __str__(self):
        return f"{article(self.colour)} {self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is drawn, and what is true of it.

    Attributes:
        things: none overlaps another.
        grey: brightness of the background, 0 to 255.
        facts: (kind, prompt, answer) each; the first is the caption.
    """

    things: tuple[Thing, ...]
    grey: int
    facts: tuple[tuple[str, str, str], ...]

    @property
    def caption(self) -> str:
        return self.facts[0][2].strip()


def draw(scene: Scene, size: int) -> PIL.Image.Image:
    """The scene as an RGB picture of `size` x `size` pixels."""
    image = pictures.canvas(size, (scene.grey,) * 3)
    for t in scene.things:
        pictures.draw_shape(image, t.shape, t.colour, t.x, t.y, t.radius)
    return pictures.finish(image)


def random_scene(rng: np.random.Generator) -> Scene:
    """One of the three kinds of scene, equally often."""
    return SCENES[rng.integers(len(SCENES))](rng)


def examples(scene: Scene, size: int) -> list[pages.Example]:
    """Every fact of the scene, each beside the same PNG."""
    image = pictures.to_png(draw(scene, size))
    return [pages.Example(image, prompt, answer, kind) for kind, prompt, answer in scene.facts]


def one_thing(rng: np.random.Generator) -> Scene:
    """"a big red star", or "a small red star on the left"."""
    shape, colour = _look(rng)
    big = rng.random() < 0.5
    place = "middle" if big else list(PLACES)[rng.integers(len(PLACES))]
    x, y = PLACES[place] + rng.uniform(-0.06, 0.06, 2)
    thing = Thing(shape, colour, x, y, rng.uniform(0.3, 0.36) if big else rng.uniform(0.13, 0.15))
    size = "big" if big else "small"
    facts = [_caption(f"a {size} {colour} {shape}" + ("" if big else f" {WHERE[place]}")),
             _question("shape", "what shape?", shape), _question("colour", "what colour?", colour),
             _question("size", "what size?", size)]
    if not big:
        facts.append(_question("place", "where?", place))
    return Scene((thing,), _grey(rng), tuple(facts))


def several_things(rng: np.random.Generator) -> Scene:
    """"three red stars", or "one blue ring and two red stars"."""
    look, other = _two_looks(rng)
    count = rng.integers(1, MAX_COUNT + 1)
    others = rng.integers(2, 5) if count == 1 else rng.integers(1, 6 - count) if rng.random() < 0.5 else 0
    looks = [look] * count + [other] * others
    cells = rng.choice(9, len(looks), replace=False)
    things = tuple(
        Thing(*look, *((np.array(divmod(cell, 3)) + 0.5) / 3 + rng.uniform(-0.015, 0.015, 2)), 0.125)
        for look, cell in zip(looks, cells, strict=True))
    groups = sorted([(look, count), (other, others)], key=lambda g: pictures.SHAPES.index(g[0][0]))
    groups = [(NUMBERS[n], colour, plural(shape, n), plural(shape)) for (shape, colour), n in groups if n]
    facts = [_caption(" and ".join(f"{number} {colour} {name}" for number, colour, name, _ in groups))]
    facts += [_question("count", f"how many {name}?", number) for number, _, _, name in groups]
    return Scene(things, _grey(rng), tuple(facts))


def two_things(rng: np.random.Generator) -> Scene:
    """"a blue star left of a green square", or one above the other."""
    beside = rng.random() < 0.5
    things = []
    for look, centre in zip(_two_looks(rng), (0.26, 0.74), strict=True):
        along, across = centre + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.65)
        x, y = (along, across) if beside else (across, along)
        things.append(Thing(*look, x, y, rng.uniform(0.16, 0.19)))
    facts = [_caption(f"{things[0]} {'left of' if beside else 'above'} {things[1]}")]
    for thing, place in zip(things, ("left", "right") if beside else ("top", "bottom"), strict=True):
        facts.append(_question("relation", f"what is {WHERE[place]}?", str(thing)))
    return Scene(tuple(things), _grey(rng), tuple(facts))


SCENES: tuple[Callable[[np.random.Generator], Scene], ...] = (one_thing, several_things, two_things)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str, count: int = 2) -> str:
    if count == 1:
        return shape
    return shape + ("es" if shape.endswith("s") else "s")


def _look(rng: np.random.Generator) -> tuple[str, str]:
    return (pictures.SHAPES[rng.integers(len(pictures.SHAPES))],
            list(pictures.COLOURS)[rng.integers(len(pictures.COLOURS))])


def _two_looks(rng: np.random.Generator) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two that differ in both shape and colour."""
    look = other = _look(rng)
    while other[0] == look[0] or other[1] == look[1]:
        other = _look(rng)
    return look, other


def _grey(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 41))


def _caption(text: str) -> tuple[str, str, str]:
    return "caption", pages.OUTPUT, f" {text}"


def _question(kind: str, question: str, answer: str) -> tuple[str, str, str]:
    return kind, f"Question: {question} Answer:", f" {answer}"
