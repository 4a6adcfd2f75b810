"""Matching images and texts by their embeddings: zero-shot classification and retrieval.

Source: CLIP (arXiv:2103.00020), sections 3.1.2 to 3.1.4 (prompt ensembles), and appendix E.3 (retrieval).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch
from mmjax.data.documents import SUFFIX, Document, Text
from mmjax.data.packing import single_document_rows, to_features
from mmjax.data.sources import open_source
from mmjax.evals import rices
from mmjax.evals.config import EvalConfig
from mmjax.evals.fewshot import Example, read_examples
from mmjax.evals.prompts import Writer
from mmjax.evals.report import Sample
from mmjax.models.interface import Model, Params

MAX_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """One task for a model with embeddings of images and of texts.

    Attributes:
        name: under which its results stand; letters, digits, "_" and "-".
        kind: "zero_shot" chooses for each image among labels; "retrieval" finds each image's texts and each text's
            image among all of them.
        data: folder with the file `query` (.array_record) of [image, prompt, answer, ...] examples; prompts are not
            used, answers are the labels or the captions.
        labels: the answers to choose from; empty means all that occur.
        templates: texts with "{}" for the label, whose embeddings are averaged.
        ranks: K of recall at K.
        num_queries: examples taken at random; 0 takes all.
        batch_size: images or texts read at a time.
        seed: of the queries.
    """

    name: str
    kind: Literal["zero_shot", "retrieval"]
    data: str
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    ranks: tuple[int, ...] = (1, 5, 10)
    num_queries: int = 0
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        for field in ("labels", "templates", "ranks"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"eval name={self.name!r} must be letters, digits, '_' and '-'")
        if bad := [t for t in self.templates if t.count("{}") != 1]:
            raise ValueError(f"eval {self.name}: template {bad[0]!r} must have one {{}} for the label")
        if not self.templates or not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"eval {self.name}: templates={self.templates} and ranks={self.ranks} must not be empty, "
                             "and ranks count from 1")
        if self.num_queries < 0 or self.batch_size < 1:
            raise ValueError(f"eval {self.name}: num_queries={self.num_queries} must be at least 0 and "
                             f"batch_size={self.batch_size} at least 1")

    @property
    def shots(self) -> tuple[int, ...]:
        """The column of its results."""
        return (0,)


AnyEval = EvalConfig | MatchingConfig


def read_queries(config: MatchingConfig) -> list[Example]:
    """The examples of a task.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if documents have another form, or an answer is not among the labels.
    """
    source = open_source("array_record", Path(config.data) / f"query{SUFFIX}")
    count = min(config.num_queries or len(source), len(source))
    drawn = np.random.default_rng([config.seed, 0]).choice(len(source), count, replace=False)
    examples = [example for i in np.sort(drawn) for example in read_examples(source[i])]
    known = {label.strip() for label in config.labels}
    if strange := [e for e in examples if known and config.kind == "zero_shot" and e.answer.strip() not in known]:
        raise ValueError(f"eval {config.name}: the answer {strange[0].answer!r} of {strange[0].key!r} is not among the "
                         f"labels {config.labels}")
    return examples


def run_task(config: MatchingConfig, model: Model, params: Params, writer: Writer
             ) -> tuple[dict[str, float], list[Sample]]:
    """Metrics, as "task/metric/0" and "task/chance", and samples of a task.

    Metrics are `accuracy` of "zero_shot", and `text_recall_K` and `image_recall_K` of "retrieval": the share of images
    with one of their texts, and of texts with one of their images, among the K nearest. Equal texts count as one, so
    that every image with such a caption is right.
    """
    queries = read_queries(config)
    images = unit(rices.image_features(model, params, writer, queries, config.batch_size))
    if config.kind == "zero_shot":
        labels = [label.strip() for label in config.labels] or sorted({e.answer.strip() for e in queries})
        texts = class_embeddings(config, labels, model, params, writer)
        own = [{e.answer.strip()} for e in queries]
    else:
        own = [{answer.strip() for answer in e.answers} for e in queries]
        labels = sorted(set.union(*own))
        texts = unit(text_features(model, params, writer, labels, config.batch_size))
    right = np.array([[label in mine for label in labels] for mine in own])
    similarity = images @ texts.T
    nearest = [labels[j] for j in similarity.argmax(1)]
    if config.kind == "zero_shot":
        values = {"accuracy": recall(similarity, right, 1)}
    else:
        values = {f"{side}_recall_{k}": recall(s, r, k) for k in config.ranks
                  for side, s, r in (("text", similarity, right), ("image", similarity.T, right.T))}
    metrics = {f"{config.name}/chance": float(right.mean(1).mean())}
    metrics |= {f"{config.name}/{metric}/0": value for metric, value in values.items()}
    return metrics, _samples(queries, nearest, own, writer)


def recall(similarity: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of rows with a right column among the k most similar ones; of equal ones the wrong come first.

    Args:
        similarity: float[N, M].
        right: bool[N, M], at least one in each row.
    """
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return float(np.mean((~(similarity < best) & ~right).sum(1) < k))        # a NaN is before all


def class_embeddings(config: MatchingConfig, labels: Sequence[str], model: Model, params: Params, writer: Writer
                     ) -> np.ndarray:
    """float32[labels, C]: the mean of a label's embeddings in all templates, of length 1."""
    texts = [template.replace("{}", label) for label in labels for template in config.templates]
    features = unit(text_features(model, params, writer, texts, config.batch_size))
    return unit(features.reshape(len(labels), len(config.templates), -1).mean(1))


def text_features(model: Model, params: Params, writer: Writer, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """float32[N, C] embeddings of texts, in batches of one shape."""
    side, out = writer.image.size, []
    none = np.zeros((0, writer.frames, side, side, 3), np.uint8)
    encoded = [to_features(writer.template.encode(Document((Text(text),)), writer.tokenizer), none) for text in texts]
    longest = max(len(features["tokens"]) for features in encoded)
    if getattr(model.config, "text_padding", False):        # then padding is text, and its length as in training
        longest = model.config.text.max_positions
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start:start + batch_size]
        rows += rows[-1:] * (batch_size - len(rows))
        out.append(np.asarray(_text_features(model, params, single_document_rows(rows, longest, 0))))
    return np.concatenate(out)[:len(texts)]


@functools.partial(jax.jit, static_argnames="model")
def _text_features(model: Model, params: Params, batch: Batch) -> jax.Array:
    return model.text_features(params, batch).astype(jnp.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _samples(queries: Sequence[Example], nearest: Sequence[str], own: Sequence[set[str]], writer: Writer
             ) -> list[Sample]:
    made = []
    for i in np.linspace(0, len(queries) - 1, min(MAX_SAMPLES, len(queries))).astype(int):
        frames = writer.pixels([queries[i]])[0]
        made.append(Sample([frames[len(frames) // 2]], "", queries[i].answer.strip(), nearest[i], nearest[i] in own[i]))
    return made
