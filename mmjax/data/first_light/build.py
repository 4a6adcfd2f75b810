"""The default data set: digits, photographs and drawn scenes, as documents, with nothing to download."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmjax.data.documents import SUFFIX, Document, write_documents
from mmjax.data.first_light import digits, pages, photos, scenes, texts
from mmjax.data.first_light.manifest import Manifest, build_once

NAME, VERSION = "first_light", 1
SUPPORT_PER_LABEL = 32  # Flamingo's support sets (arXiv:2204.14198, appendix A.2)
OPEN_SUPPORT = 320
TASKS = {  # task -> source and kinds of example
    "digits": ("digits", {"digit"}),
    "photos": ("photos", {"photo"}),
    "scenes": ("scenes", {"shape"}),
    "questions": ("scenes", {"colour", "size", "place", "count", "relation"}),
    "captions": ("scenes", {"caption"}),
}
LABELS = {"digits": digits.LABELS, "photos": photos.LABELS, "scenes": scenes.LABELS}  # one prompt, few answers
HELD_OUT_SCENES = 4  # drawn for each query asked for, since a third of the scenes show one thing and its shape
Examples = list[pages.Example]
Plan = dict[str, tuple[int, Iterable[Document]]]  # file without its suffix -> number of documents, the documents


@dataclasses.dataclass(frozen=True)
class FirstLightConfig:
    """How much of everything.

    Attributes:
        image_size: side of the square pictures in pixels.
        scenes: drawn training scenes; each bears two to five examples.
        crops: training crops, half of them of each photograph.
        pages: interleaved training pages of digits and of scenes; of photographs a quarter as many.
        max_shots: most shots on a page before its query.
        page_length: most characters on a page, each example counting two more; longer pages lose shots.
        texts: text-only training documents.
        queries: held-out examples of each evaluation task, where there is no natural number of them.
        seed: for everything random; the split of the scans does not depend on it.
    """

    image_size: int = 32
    scenes: int = 3000
    crops: int = 800
    pages: int = 2500
    max_shots: int = 8
    page_length: int = 250
    texts: int = 20_000
    queries: int = 400
    seed: int = 0


def build(folder: str | os.PathLike, config: FirstLightConfig | None = None, progress: bool = True) -> Manifest:
    """Builds the data set into `folder`; does nothing if it already stands there.

    Training: `train/{digits,scenes,photos}_{pairs,pages}.array_record` and `train/text.array_record`; a pair is one
    [Image, Text(prompt), Text(answer)], a page 0 to `max_shots` of them as shots and one more.
    Evaluation: `{digits,scenes,photos,questions,captions}/{support,query}.array_record`, one example a record.
    Queries are held out: scans, regions of the photographs and scenes that no training record shows. Shots
    (`support`) come from the training examples, 32 of each label where the answers are a closed set.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if the folder holds anything else.
    """
    config = FirstLightConfig() if config is None else config
    return build_once(folder, NAME, VERSION, config, lambda work: _fill(work, config, progress))


def _fill(work: Path, config: FirstLightConfig, progress: bool) -> tuple[dict[str, int], dict[str, list[str]]]:
    train, held_out = _examples(config)
    plan = _training(config, train)
    for number, (task, (source, kinds)) in enumerate(TASKS.items()):
        pool, queries = ([e for e in part[source] if e.kind in kinds] for part in (train, held_out))
        rng = np.random.default_rng([config.seed, 2, number])
        if task in LABELS:
            groups = [[e for e in pool if e.answer == label] for label in LABELS[task]]
            shots = [e for group in groups for e in _sample(group, SUPPORT_PER_LABEL, rng)]
        else:
            shots = _sample(pool, OPEN_SUPPORT, rng)
        plan[f"{task}/support"] = _singles(shots, f"{task}/support")
        plan[f"{task}/query"] = _singles(_sample(queries, config.queries, rng), f"{task}/query")
    return _write(work, plan, progress), {task: list(labels) for task, labels in LABELS.items()}


def _write(work: Path, plan: Plan, progress: bool) -> dict[str, int]:
    records = {}
    with tqdm(total=sum(count for count, _ in plan.values()), desc=NAME, unit="doc", disable=not progress) as bar:
        for name, (_, documents) in plan.items():
            records[name + SUFFIX] = write_documents(work / (name + SUFFIX), _counted(documents, bar))
    return records


def _counted(documents: Iterable[Document], bar: tqdm) -> Iterator[Document]:
    for document in documents:
        yield document
        bar.update()


def _examples(config: FirstLightConfig) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """(training, held-out) examples by source."""
    rng, size = np.random.default_rng([config.seed, 0]), config.image_size
    train, held_out = {}, {}
    train["digits"], held_out["digits"] = digits.examples(size)
    train["photos"] = photos.examples(config.crops, size, False, rng)
    held_out["photos"] = photos.examples(config.queries, size, True, rng)
    train["scenes"] = _draw_scenes(config.scenes, size, rng, frozenset())
    seen = frozenset(e.image for e in train["scenes"])
    held_out["scenes"] = _draw_scenes(HELD_OUT_SCENES * config.queries, size, rng, seen)
    return train, held_out


def _draw_scenes(count: int, size: int, rng: np.random.Generator, seen: frozenset[bytes]) -> Examples:
    """The examples of `count` random scenes, none of whose pictures is among `seen`."""
    made = []
    for _ in range(count):
        while (examples := scenes.examples(scenes.random_scene(rng), size))[0].image in seen:
            pass
        made += examples
    return made


def _training(config: FirstLightConfig, train: dict[str, Examples]) -> Plan:
    plan = {}
    for number, (source, examples) in enumerate(train.items()):
        rng = np.random.default_rng([config.seed, 1, number])
        count = config.pages if source != "photos" else -(-config.pages // 4)
        made = pages.few_shot_pages(examples, count, config.max_shots, config.page_length, rng, f"{source}/page")
        plan[f"train/{source}_pairs"] = _singles(examples, f"{source}/pair")
        plan[f"train/{source}_pages"] = (count, made)
    plan["train/text"] = (config.texts, texts.documents(config.texts, np.random.default_rng([config.seed, 3]), "text"))
    return plan


def _singles(examples: Examples, key: str) -> tuple[int, Iterator[Document]]:
    return len(examples), (pages.page([e], f"{key}/{i:06d}") for i, e in enumerate(examples))


def _sample(examples: Examples, count: int, rng: np.random.Generator) -> Examples:
    """At most `count` of the examples, each once, in their order."""
    kept = rng.choice(len(examples), min(count, len(examples)), replace=False)
    return [examples[i] for i in np.sort(kept)]
