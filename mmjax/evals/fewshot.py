"""Few-shot tasks: their examples, and which of them become shots."""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data.documents import SUFFIX, Document, Image, Text, Video
from mmjax.data.sources import open_source
from mmjax.evals.config import EvalConfig

ZERO_SHOT_TEXTS = 2


@dataclasses.dataclass(frozen=True)
class Example:
    """An image and something to say about it.

    Attributes:
        visual: the image or video.
        prompt: text before the answer.
        answers: what may be said, each with its leading space; as a shot the example shows the first.
        key: names it in messages.
    """

    visual: Image | Video
    prompt: str
    answers: tuple[str, ...]
    key: str = ""

    @property
    def answer(self) -> str:
        return self.answers[0]


class Task(NamedTuple):
    """What is asked, and what the shots are taken from.

    Attributes:
        queries: the N examples to answer.
        support: examples that may be shots of any query; empty for pages.
        own: for pages, the examples that each query brings, in order; else empty.
        labels: the answers each query may choose from.
    """

    queries: list[Example]
    support: list[Example]
    own: list[list[Example]]
    labels: list[tuple[str, ...]]


def read_examples(document: Document, prompt: str = "") -> list[Example]:
    """Examples of a document of [image, prompt, answer, further right answers ...] once or several times.

    Args:
        document: the document.
        prompt: replaces that of the document unless empty.

    Raises:
        ValueError: if the document has another form.
    """
    groups: list[tuple[Image | Video, list[str]]] = []
    for segment in document.segments:
        if not isinstance(segment, Text):
            groups.append((segment, []))
        elif groups:
            groups[-1][1].append(segment.text)
    if not groups or isinstance(document.segments[0], Text) or any(len(texts) < 2 for _, texts in groups):
        kinds = ", ".join(type(s).__name__ for s in document.segments[:8])
        raise ValueError(f"document {document.key!r} is [{kinds}{', ...' if len(document.segments) > 8 else ''}]; an "
                         "example is an image, the prompt and one or more answers")
    return [Example(visual, prompt or texts[0], tuple(texts[1:]), document.key) for visual, texts in groups]


def read_task(config: EvalConfig) -> Task:
    """Reads the examples of a task and draws its queries.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if the documents have another form, or are too few for the shots.
    """
    rng, path = np.random.default_rng([config.seed, 0]), Path(config.data)
    source = open_source("array_record", path if config.selection == "page" else path / f"query{SUFFIX}")
    count = min(config.num_queries or len(source), len(source))
    drawn = [read_examples(source[i], config.prompt) for i in np.sort(rng.choice(len(source), count, replace=False))]
    if config.selection == "page":
        queries, support, own = [page[-1] for page in drawn], [], [page[:-1] for page in drawn]
        available = min(map(len, own))
    else:
        queries, own = [e for examples in drawn for e in examples], []
        documents = open_source("array_record", path / f"support{SUFFIX}")
        support = [e for d in documents for e in read_examples(d, config.prompt)]
        available = len(support)
    answers = [tuple(sorted({e.answer for e in pool})) for pool in own or [support]]
    labels = [config.labels] * len(queries) if config.labels else answers if own else answers * len(queries)
    needed = max(ZERO_SHOT_TEXTS, *config.shots)
    if available < needed:
        raise ValueError(f"eval {config.name}: shots={config.shots} need {needed} examples; {path} has {available} to "
                         f"choose from{' on its shortest page' if own else ''}")
    return Task(queries, support, own, labels)


def choose_shots(task: Task, config: EvalConfig, k: int, nearest: np.ndarray | None = None) -> list[list[Example]]:
    """The k shots of every query, in the order of the prompt.

    Random shots of a query at a smaller k are among those at a larger one.

    Args:
        task, config: the task.
        k: how many.
        nearest: int[N, >= k] for selection "rices": support examples by increasing similarity to each query.
    """
    if task.own:
        return [page[:k] for page in task.own]
    occurrence = [e.answer for e in task.support]
    chosen = []
    for i in range(len(task.queries)):
        rng = np.random.default_rng([config.seed, 1, i])
        order = rng.permutation(len(task.support))
        if config.selection == "balanced":
            order = rng.permutation(_in_rounds(order, occurrence)[:k])
        if nearest is not None:
            order = nearest[i, nearest.shape[1] - k:]
        chosen.append([task.support[j] for j in order[:k]])
    return chosen


def _in_rounds(order: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Reorders so that every label comes once, then every label again, and so on."""
    seen = collections.Counter()
    rounds = []
    for j in order:
        rounds.append(seen[labels[j]])
        seen[labels[j]] += 1
    return order[np.argsort(rounds, kind="stable")]


def shot_orders(shots: Sequence[Sequence[Example]], config: EvalConfig) -> list[list[list[Example]]]:
    """The shots of every query as they are, and again in a random order for each further permutation."""
    orders = [[list(own) for own in shots]]
    for p in range(1, config.permutations):
        rngs = (np.random.default_rng([config.seed, 3, i, p]) for i in range(len(shots)))
        orders.append([[own[j] for j in rng.permutation(len(own))] for own, rng in zip(shots, rngs, strict=True)])
    return orders


def other_examples(task: Task, config: EvalConfig, k: int) -> list[Example]:
    """For every query an example with another answer, if possible to the same prompt: its image goes to the control.

    From a page it is taken from what comes after the k shots, if that has one.

    Raises:
        ValueError: if all answers are the same.
    """
    others = []
    for i, query in enumerate(task.queries):
        rng = np.random.default_rng([config.seed, 2, i])
        pools = [task.own[i][k:], task.own[i]] if task.own else [task.queries]
        shuffled = [pool[j] for pool in pools for j in rng.permutation(len(pool))]
        fits = (e for e in shuffled if not set(e.answers) & set(query.answers))
        first = next(fits, None)
        if first is None:
            raise ValueError(f"eval {config.name}: no example has another answer than {query.answer!r} of "
                             f"{query.key!r}; the swapped control needs one (or set swapped=False)")
        others.append(next((e for e in itertools.chain([first], fits) if e.prompt == query.prompt), first))
    return others
