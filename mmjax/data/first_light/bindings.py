"""Learning in context: pages that bind made-up labels to drawn classes, another binding on every page."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmjax.data.documents import SUFFIX, Document, write_documents
from mmjax.data.first_light import glyphs, pages, pictures
from mmjax.data.first_light.manifest import Manifest, build_once
from mmjax.data.first_light.pages import OUTPUT
from mmjax.data.first_light.words import WORDS, check_labels, draw_labels

NAME, VERSION = "bindings", 3

# What draws the classes of each family.
FAMILIES = dict(compositions=glyphs.Compositions, glyphs=glyphs.Glyphs)


@dataclasses.dataclass(frozen=True)
class BindingsConfig:
    """What the pages look like.

    Attributes:
        compositions: classes of coloured shapes in training pages, and held out; 64 in all at most.
        glyphs: the same of invented characters, which are harder to tell apart.
        ways: fewest and most classes on a training page.
        shots: fewest and most shots of each class before the query of a training page.
        pages: training pages of each family, and as many captions.
        held_out_ways: classes on every evaluation page, so chance is 1 / held_out_ways.
        held_out_shots: shots of each class on them.
        held_out_pages: pages in each evaluation file.
        prompt: text between an image and its label; empty for none.
        labels: vocabulary of labels; those of one page differ in their first letters.
        first_weight: loss weight of a label where its class appears for the first time on the page and nothing
            can tell it.
        jitter: how much instances of a class differ.
        image_size: side of the PNG pictures in pixels.
        seed: for everything random.
    """

    compositions: tuple[int, int] = (48, 16)
    glyphs: tuple[int, int] = (2000, 400)
    ways: tuple[int, int] = (2, 5)
    shots: tuple[int, int] = (1, 4)
    pages: int = 8000
    held_out_ways: int = 4
    held_out_shots: int = 4
    held_out_pages: int = 200
    prompt: str = OUTPUT
    labels: tuple[str, ...] = WORDS
    first_weight: float = 0.0
    jitter: float = 1.0
    image_size: int = 32
    seed: int = 0

    def __post_init__(self):
        for name in ("ways", "shots"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}={getattr(self, name)!r} must be (fewest, most) with 1 <= fewest <= most")
        most = max(self.ways[1], self.held_out_ways)
        check_labels(self.labels, most)
        for name in FAMILIES:
            train, held_out = getattr(self, name)
            if train < most or held_out < self.held_out_ways:
                raise ValueError(f"{name}={(train, held_out)} must be at least {(most, self.held_out_ways)}: "
                                 f"the classes of one page")
        total, limit = sum(self.compositions), glyphs.Compositions.num_classes
        if total > limit:
            raise ValueError(f"compositions={self.compositions} are {total} classes and exceed the {limit} pairs of "
                             f"shape and colour")


class _Classes(NamedTuple):
    """Classes to draw pages from."""

    family: glyphs.Compositions | glyphs.Glyphs
    numbers: range


def write_bindings(folder: str | os.PathLike, config: BindingsConfig, progress: bool = True) -> Manifest:
    """Writes the pages as encoded images; does nothing if just these already stand in the folder.

    Files, for each family F: `train_F` (training classes), `held_out_F` (classes never seen) and `seen_F` (training
    classes, new instances and pages, to compare with); and `captions`, each one picture of a training composition and
    its colour and shape. On pages of `held_out_F` and `seen_F` the shots come in rounds, one of each class, so the
    first k * held_out_ways examples of a page are its k-shot support; only the query's label bears loss. The labels
    of a page are the candidates to choose from.

    Raises:
        ValueError: if the folder holds anything else.
    """
    c = config
    plan: dict[str, tuple[int, Callable[[np.random.Generator, str], Document]]] = {}
    for name, family in FAMILIES.items():
        train, held_out = getattr(c, name)
        drawn = family(c.seed, c.jitter)
        known, unknown = _Classes(drawn, range(train)), _Classes(drawn, range(train, train + held_out))
        plan[f"train_{name}"] = c.pages, functools.partial(_training_page, c, known)
        plan[f"held_out_{name}"] = c.held_out_pages, functools.partial(_evaluation_page, c, unknown)
        plan[f"seen_{name}"] = c.held_out_pages, functools.partial(_evaluation_page, c, known)
    plan["captions"] = c.pages, functools.partial(_caption, c)

    def fill(work: Path):
        records = {}
        with tqdm(total=sum(n for n, _ in plan.values()), desc=NAME, unit="doc", disable=not progress) as bar:
            for i, (name, (count, make)) in enumerate(plan.items()):
                documents = _documents(count, make, np.random.default_rng([c.seed, i]), name, bar)
                records[name + SUFFIX] = write_documents(work / (name + SUFFIX), documents)
        return records, {}

    return build_once(folder, NAME, VERSION, c, fill)


def _training_page(config: BindingsConfig, classes: _Classes, rng: np.random.Generator, key: str) -> Document:
    """Random ways and shots, all shots of all classes in random order, then the query."""
    ways = rng.integers(config.ways[0], config.ways[1] + 1)
    shots = rng.integers(config.shots[0], config.shots[1] + 1)
    order = rng.permutation(np.repeat(np.arange(ways), shots))
    order = np.append(order, rng.integers(ways))
    first = {w: i for i, w in reversed(list(enumerate(order)))}
    weights = [config.first_weight if first[w] == i else 1.0 for i, w in enumerate(order)]
    return _page(config, classes, order, weights, rng, key)


def _evaluation_page(config: BindingsConfig, classes: _Classes, rng: np.random.Generator, key: str) -> Document:
    """Rounds of one shot of each class, then the query, which alone bears loss."""
    ways, shots = config.held_out_ways, config.held_out_shots
    order = np.concatenate([rng.permutation(ways) for _ in range(shots)] + [rng.integers(ways, size=1)])
    return _page(config, classes, order, [0.0] * (ways * shots) + [1.0], rng, key)


def _page(
    config: BindingsConfig, classes: _Classes, order: np.ndarray, weights: list[float], rng: np.random.Generator,
    key: str,
) -> Document:
    """The page whose i-th picture is of the `order[i]`-th of its classes; its key ends in the classes' numbers."""
    ways = int(order.max()) + 1
    drawn = [classes.numbers[i] for i in rng.choice(len(classes.numbers), ways, replace=False)]
    labels = draw_labels(config.labels, ways, rng)
    images = [pictures.to_png(classes.family.draw(drawn[w], config.image_size, rng)) for w in order]
    shown = [pages.Example(image, config.prompt, f" {labels[w]}") for image, w in zip(images, order, strict=True)]
    return pages.page(shown, f"{key}/{','.join(map(str, drawn))}", weights)


def _caption(config: BindingsConfig, rng: np.random.Generator, key: str) -> Document:
    """One picture of a training composition, and what it shows."""
    family, drawn = glyphs.Compositions(config.seed, config.jitter), int(rng.integers(config.compositions[0]))
    shape, colour = family.parts(drawn)
    image = pictures.to_png(family.draw(drawn, config.image_size, rng))
    return pages.page([pages.Example(image, config.prompt, f" {colour} {shape}")], f"{key}/{drawn}")


def _documents(count: int, make, rng: np.random.Generator, name: str, bar: tqdm) -> Iterator[Document]:
    for i in range(count):
        yield make(rng, f"{name}/{i:06d}")
        bar.update()
