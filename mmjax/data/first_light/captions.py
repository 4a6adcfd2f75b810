"""Captioned scenes for contrastive learning, with combinations of shape and colour that training never shows."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmjax.data.documents import SUFFIX, Document, write_documents
from mmjax.data.first_light import pages, pictures, scenes
from mmjax.data.first_light.manifest import Manifest, build_once

NAME, VERSION = "captions", 1
LOOKS = tuple(f"{colour} {shape}" for shape in pictures.SHAPES for colour in pictures.COLOURS)


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """How much of everything.

    Attributes:
        image_size: side of the square pictures in pixels.
        scenes: captioned training scenes.
        held_out: combinations of shape and colour that no training scene shows.
        queries: examples of each evaluation task.
        seed: for everything random.
    """

    image_size: int = 32
    scenes: int = 20_000
    held_out: int = 12
    queries: int = 400
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.held_out < len(LOOKS):
            raise ValueError(f"held_out={self.held_out} must be at least 1 and below the {len(LOOKS)} combinations")


def write_captions(folder: str | os.PathLike, config: CaptionsConfig, progress: bool = True) -> Manifest:
    """Writes captioned scenes as encoded images; does nothing if just these already stand in the folder.

    Files: `train`, pairs of an image and its caption; `looks/query` and `known/query`, one thing each and its colour
    and shape, held out or not, to be told from all 64; `scenes/query`, scenes with something held out, and captions.

    Raises:
        ValueError: if the folder holds anything else.
    """
    held_out = held_out_looks(config)
    plan: dict[str, tuple[int, Callable[[np.random.Generator], tuple[scenes.Scene, str]]]] = {
        "train": (config.scenes, lambda rng: _draw(rng, scenes.random_scene, held_out, False)),
        "looks/query": (config.queries, lambda rng: _draw(rng, scenes.one_thing, held_out, True, name=True)),
        "known/query": (config.queries, lambda rng: _draw(rng, scenes.one_thing, held_out, False, name=True)),
        "scenes/query": (config.queries, lambda rng: _draw(rng, scenes.random_scene, held_out, True)),
    }

    def fill(work: Path):
        records = {}
        with tqdm(total=sum(n for n, _ in plan.values()), desc=NAME, unit="doc", disable=not progress) as bar:
            for i, (name, (count, draw)) in enumerate(plan.items()):
                documents = _documents(config, count, draw, np.random.default_rng([config.seed, 1, i]), name, bar)
                records[name + SUFFIX] = write_documents(work / (name + SUFFIX), documents)
        return records, {"looks": list(LOOKS)}

    return build_once(folder, NAME, VERSION, config, fill)


def held_out_looks(config: CaptionsConfig) -> frozenset[str]:
    """The combinations "colour shape" that training never shows."""
    rng = np.random.default_rng([config.seed, 0])
    return frozenset(LOOKS[i] for i in rng.choice(len(LOOKS), config.held_out, replace=False))


def _draw(rng: np.random.Generator, make: Callable[[np.random.Generator], scenes.Scene], held_out: frozenset[str],
          wanted: bool, name: bool = False) -> tuple[scenes.Scene, str]:
    """A scene with something held out, or (not `wanted`) with nothing, and its caption or what its one thing is."""
    while True:
        scene = make(rng)
        looks = [f"{thing.colour} {thing.shape}" for thing in scene.things]
        if bool(held_out.intersection(looks)) == wanted:
            return scene, looks[0] if name else scene.caption


def _documents(config: CaptionsConfig, count: int, draw, rng: np.random.Generator, name: str, bar: tqdm
               ) -> Iterator[Document]:
    for i in range(count):
        scene, text = draw(rng)
        image = pictures.to_png(scenes.draw(scene, config.image_size))
        yield pages.page([pages.Example(image, "", text)], f"{name}/{i:06d}")
        bar.update()
