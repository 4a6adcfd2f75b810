"""Learning in context: pages that bind made-up labels to drawn classes, another binding on every page."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmjax.data.documents import SUFFIX, Document, Text, write_documents
from mmjax.data.first_light import glyphs, pages, pictures, texts
from mmjax.data.first_light.manifest import Manifest, build_once
from mmjax.data.first_light.pages import OUTPUT
from mmjax.data.first_light.words import WORDS, check_labels, draw_labels

NAME, VERSION = "bindings", 2
KINDS = ("glyphs", "compositions")


@dataclasses.dataclass(frozen=True)
class BindingsConfig:
    """What the pages look like.

    Attributes:
        kind: "glyphs" (invented characters) or "compositions" (coloured shapes, 64 classes; easier).
        train_classes: classes 0 .. train_classes - 1 are those of the training pages.
        held_out_classes: the classes after them, never seen in training.
        ways: fewest and most classes on a training page.
        shots: fewest and most shots of each class before the query of a training page.
        pages: training pages, and as many text pages.
        held_out_ways: classes on every page of the two evaluation files, so chance is 1 / held_out_ways.
        held_out_shots: shots of each class on them.
        held_out_pages: pages in each of the two evaluation files.
        prompt: text between an image and its label; empty for none.
        labels: vocabulary of labels; those of one page differ in their first letters.
        first_weight: loss weight of a label where its class appears for the first time on the page and nothing
            can tell it.
        jitter: how much instances of a class differ.
        image_size: side of the PNG pictures in pixels.
        seed: for everything random.
    """

    kind: str = "glyphs"
    train_classes: int = 2000
    held_out_classes: int = 400
    ways: tuple[int, int] = (2, 4)
    shots: tuple[int, int] = (1, 4)
    pages: int = 4000
    held_out_ways: int = 4
    held_out_shots: int = 8
    held_out_pages: int = 200
    prompt: str = OUTPUT
    labels: tuple[str, ...] = WORDS
    first_weight: float = 0.0
    jitter: float = 1.0
    image_size: int = 32
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        for name in ("ways", "shots"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}={getattr(self, name)!r} must be (fewest, most) with 1 <= fewest <= most")
        check_labels(self.labels, max(self.ways[1], self.held_out_ways))
        for name, ways in (("train_classes", max(self.ways[1], self.held_out_ways)),
                           ("held_out_classes", self.held_out_ways)):
            if getattr(self, name) < ways:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {ways}, the classes of one page")
        total, limit = self.train_classes + self.held_out_classes, glyphs.Compositions.num_classes
        if self.kind == "compositions" and total > limit:
            raise ValueError(f"train_classes + held_out_classes = {total} exceeds the {limit} shape-colour pairs")

    @property
    def family(self) -> glyphs.Glyphs | glyphs.Compositions:
        """Draws the classes."""
        return {"glyphs": glyphs.Glyphs, "compositions": glyphs.Compositions}[self.kind](self.seed, self.jitter)


def write_bindings(folder: str | os.PathLike, config: BindingsConfig, progress: bool = True) -> Manifest:
    """Writes the pages as encoded images; does nothing if just these already stand in the folder.

    Files: `train` (training classes), `text` (pages of the same form in text only, for the language model that comes
    first), `captions` (of "compositions" only: one picture of a training class and its colour and shape), `held_out`
    (classes never seen) and `seen` (training classes, new instances and pages, to compare with).
    In the last two every page has `held_out_ways` classes and its shots come in rounds, one of each class, so the
    first k * held_out_ways examples of a page are its k-shot support; only the query's label bears loss. The labels
    of a page are the candidates to choose from.

    Raises:
        ValueError: if the folder holds anything else.
    """
    c = config
    train = range(c.train_classes)
    held_out = range(c.train_classes, c.train_classes + c.held_out_classes)
    plan: dict[str, tuple[int, Callable[[np.random.Generator, str], Document]]] = {
        "train": (c.pages, lambda rng, key: training_page(c, train, rng, key)),
        "text": (c.pages, lambda rng, key: _text_page(c, rng, key)),
        "held_out": (c.held_out_pages, lambda rng, key: evaluation_page(c, held_out, rng, key)),
        "seen": (c.held_out_pages, lambda rng, key: evaluation_page(c, train, rng, key)),
    }
    if c.kind == "compositions":
        plan["captions"] = (c.pages, lambda rng, key: _caption(c, train, rng, key))

    def fill(work: Path):
        records = {}
        with tqdm(total=sum(n for n, _ in plan.values()), desc=NAME, unit="doc", disable=not progress) as bar:
            for i, (name, (count, make)) in enumerate(plan.items()):
                documents = _documents(count, make, np.random.default_rng([c.seed, i]), name, bar)
                records[name + SUFFIX] = write_documents(work / (name + SUFFIX), documents)
        return records, {}

    return build_once(folder, NAME, VERSION, c, fill)


def training_page(config: BindingsConfig, classes: range, rng: np.random.Generator, key: str) -> Document:
    """Random ways and shots, all shots of all classes in random order, then the query."""
    ways = rng.integers(config.ways[0], config.ways[1] + 1)
    shots = rng.integers(config.shots[0], config.shots[1] + 1)
    order = rng.permutation(np.repeat(np.arange(ways), shots))
    order = np.append(order, rng.integers(ways))
    first = {w: i for i, w in reversed(list(enumerate(order)))}
    weights = [config.first_weight if first[w] == i else 1.0 for i, w in enumerate(order)]
    return _page(config, classes, order, weights, rng, key)


def evaluation_page(config: BindingsConfig, classes: range, rng: np.random.Generator, key: str) -> Document:
    """Rounds of one shot of each class, then the query, which alone bears loss."""
    ways, shots = config.held_out_ways, config.held_out_shots
    order = np.concatenate([rng.permutation(ways) for _ in range(shots)] + [rng.integers(ways, size=1)])
    return _page(config, classes, order, [0.0] * (ways * shots) + [1.0], rng, key)


def _page(
    config: BindingsConfig, classes: range, order: np.ndarray, weights: list[float], rng: np.random.Generator, key: str,
) -> Document:
    """The page whose i-th picture is of the `order[i]`-th of its classes; its key ends in the classes' numbers."""
    ways = int(order.max()) + 1
    drawn = [classes[i] for i in rng.choice(len(classes), ways, replace=False)]
    labels = draw_labels(config.labels, ways, rng)
    images = [pictures.to_png(config.family.draw(drawn[w], config.image_size, rng)) for w in order]
    shown = [pages.Example(image, config.prompt, f" {labels[w]}") for image, w in zip(images, order, strict=True)]
    return pages.page(shown, f"{key}/{','.join(map(str, drawn))}", weights)


def _text_page(config: BindingsConfig, rng: np.random.Generator, key: str) -> Document:
    return Document((Text(texts.bindings(rng, config.ways, config.shots, config.labels)),), key)


def _caption(config: BindingsConfig, classes: range, rng: np.random.Generator, key: str) -> Document:
    """One picture of a training class, and what it shows."""
    drawn = int(rng.choice(classes))
    shape, colour = config.family.parts(drawn)
    image = pictures.to_png(config.family.draw(drawn, config.image_size, rng))
    return pages.page([pages.Example(image, config.prompt, f" {colour} {shape}")], f"{key}/{drawn}")


def _documents(count: int, make, rng: np.random.Generator, name: str, bar: tqdm) -> Iterator[Document]:
    for i in range(count):
        yield make(rng, f"{name}/{i:06d}")
        bar.update()
