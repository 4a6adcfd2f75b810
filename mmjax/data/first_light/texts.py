"""Text-only pages for the language model that comes first: the prompts of the image pages, made predictable by text.

Where an image page has an image, these have its description, or nothing but the order of the lines. A model that
learned them knows every word the images will need, and to look back for the label that a like thing had before.
"""

from collections.abc import Callable, Iterator

import numpy as np

from mmjax.data.documents import Document, Text
from mmjax.data.first_light import digits, pages, photos, pictures, scenes
from mmjax.data.first_light.words import WORDS, draw_labels

MAX_LINES = 8


def documents(count: int, rng: np.random.Generator, key: str) -> Iterator[Document]:
    """`count` documents of one text each, the kinds of page in random order."""
    for i in range(count):
        make = PAGES[rng.integers(len(PAGES))]
        yield Document((Text(make(rng)),), f"{key}/{i:06d}")


def numerals(rng: np.random.Generator) -> str:
    """"7. Output: seven", line by line."""
    drawn = rng.integers(0, 10, rng.integers(1, MAX_LINES + 1))
    return "\n".join(f"{d}. {_output(digits.NAMES[d])}" for d in drawn)


def counting(rng: np.random.Generator) -> str:
    """"Output: two", "Output: three", ... up or down, round and round, in steps of one or two."""
    start, step, lines = rng.integers(10), rng.choice([-2, -1, 1, 2]), rng.integers(3, MAX_LINES + 1)
    return "\n".join(_output(digits.NAMES[(start + step * i) % 10]) for i in range(lines))


def repeating(rng: np.random.Generator) -> str:
    """One to three outputs over and over."""
    words = digits.NAMES if rng.random() < 0.5 else WORDS
    cycle = rng.choice(words, rng.integers(1, 4))
    return "\n".join(_output(cycle[i % len(cycle)]) for i in range(rng.integers(4, MAX_LINES + 1)))


def unseen(rng: np.random.Generator) -> str:
    """Outputs whose images are missing: only the vocabulary of a task can be learned from these."""
    lines = rng.integers(1, MAX_LINES + 1)
    if rng.random() < 0.7:
        return "\n".join(_output(digits.NAMES[d]) for d in rng.integers(0, 10, lines))
    return "\n".join(f"{photos.WHICH}{photos.LABELS[i]}" for i in rng.integers(0, len(photos.LABELS), lines))


def described_scenes(rng: np.random.Generator) -> str:
    """The caption of a scene, then what the page asks of it: "a big red star. Question: what shape? Answer: star"."""
    lines = []
    for _ in range(rng.integers(1, 4)):
        scene = scenes.random_scene(rng)
        _, prompt, answer = scene.facts[rng.integers(len(scene.facts))]
        lines.append(f"{scene.caption}. {prompt}{answer}")
    return "\n".join(lines)


def bindings(rng: np.random.Generator) -> str:
    """Things given names that hold for this page: "a red star is dax. a blue ring is wug. a red star is dax."."""
    count = rng.integers(2, 5)
    names, things = draw_labels(WORDS, count, rng), _things(count, rng)
    order = rng.permutation(np.repeat(np.arange(count), rng.integers(1, 5)))
    order = [*order, rng.integers(count)]
    if rng.random() < 0.3:
        return " ".join(f"{things[i]} is {names[i]}." for i in order)
    return "\n".join(f"{things[i]}. {_output(names[i])}" for i in order)


# Bindings are what a small model needs longest for, so they have the largest share.
PAGES: tuple[Callable[[np.random.Generator], str], ...] = (
    numerals, counting, repeating, unseen, described_scenes, described_scenes, bindings, bindings, bindings)


def _things(count: int, rng: np.random.Generator) -> list[str]:
    """Different things of one sort: coloured shapes, digits, or random letters, which can only be compared."""
    sort = rng.integers(3)
    if sort == 0:
        every = [f"{scenes.article(c)} {c} {s}" for c in pictures.COLOURS for s in pictures.SHAPES]
    elif sort == 1:
        every = list("0123456789")
    else:
        every = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 3)) for _ in range(40)]
        every = list(dict.fromkeys(every))
    return [every[i] for i in rng.choice(len(every), count, replace=False)]


def _output(word: str) -> str:
    return f"{pages.OUTPUT} {word}"
