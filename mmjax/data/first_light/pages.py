"""Examples, and the documents made of them: single pairs and interleaved few-shot pages.

Every document of examples is a run of [Image, Text(prompt), Text(answer)]: "Output:" " seven". The answer keeps
its leading space, so prompt + answer is the text to read, whatever the tokenizer. Only answers bear loss.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.documents import Document, Image, Text

OUTPUT = "Output:"  # Flamingo's prompt for captions and classes (arXiv:2204.14198, appendix A.2)


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with one thing to say about it.

    Attributes:
        image: an encoded picture.
        prompt: the text before the answer, such as "Output:" or "Question: how many stars? Answer:".
        answer: what to say, with its leading space.
        kind: examples of one kind ask for the same sort of answer, so they may share a page.
    """

    image: bytes
    prompt: str
    answer: str
    kind: str = ""


def page(examples: Sequence[Example], key: str, weights: Sequence[float] | None = None) -> Document:
    """The examples one after another; a single one makes a caption pair, or an evaluation record.

    Args:
        examples: the shots and, last, the query.
        key: name of the document.
        weights: loss weight of each answer; None gives each 1.
    """
    weights = [1.0] * len(examples) if weights is None else weights
    segments = []
    for example, weight in zip(examples, weights, strict=True):
        segments += [Image(example.image), Text(example.prompt, 0.0), Text(example.answer, weight)]
    return Document(tuple(segments), key)


def read_page(document: Document) -> list[Example]:
    """The inverse of `page`, without kinds and weights.

    Raises:
        ValueError: if the document is not a run of [Image, Text(prompt), Text(answer)].
    """
    examples = []
    for i in range(0, len(document.segments), 3):
        match document.segments[i:i + 3]:
            case [Image(image), Text(prompt), Text(answer)]:
                examples.append(Example(image, prompt, answer))
            case other:
                names = ", ".join(type(s).__name__ for s in other)
                raise ValueError(f"document {document.key!r}: segments {i} to {i + len(other) - 1} are [{names}]; "
                                 "an example is [Image, Text, Text]")
    return examples


def few_shot_pages(
    examples: Sequence[Example], count: int, max_shots: int, max_length: int, rng: np.random.Generator, key: str,
) -> Iterator[Document]:
    """Pages of 0 to `max_shots` shots and a query, all of one kind, drawn without repeating a picture on a page.

    Kinds take part in proportion to their examples. A page that would be longer than `max_length` loses shots.

    Args:
        examples: the pool; several may share one image.
        count: number of pages.
        max_shots: the number of shots is uniform over 0 .. max_shots.
        max_length: limit in characters, where each example counts two more for the image and the end of its text.
    """
    pools = collections.defaultdict(list)
    for example in examples:
        pools[example.kind].append(example)
    kinds, shares = list(pools), np.array([len(pool) for pool in pools.values()]) / len(examples)
    for i in range(count):
        pool = pools[kinds[rng.choice(len(kinds), p=shares)]]
        drawn = rng.choice(len(pool), min(rng.integers(1, max_shots + 2), len(pool)), replace=False)
        yield page(_fitting([pool[j] for j in drawn], max_length), f"{key}/{i:06d}")


def _fitting(examples: list[Example], max_length: int) -> list[Example]:
    """The first example, and those after it that have another image and still fit."""
    kept, images, length = [], set(), 0
    for example in examples:
        length += len(example.prompt) + len(example.answer) + 2
        if kept and (length > max_length or example.image in images):
            break
        kept.append(example)
        images.add(example.image)
    return kept
