"""Whether evaluations can run, seen before hours of training and not after."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.data.documents import Document, Text
from mmjax.evals.config import EvalConfig
from mmjax.evals.fewshot import ZERO_SHOT_TEXTS, Task, choose_shots, other_examples, read_task
from mmjax.evals.matching import AnyEval, MatchingConfig, read_queries
from mmjax.evals.prompts import Writer
from mmjax.models.interface import Model


def check_evals(configs: Sequence[AnyEval], model: Model, writer: Writer) -> None:
    """Reads the data of every task and encodes all prompts; no parameter is needed and no image decoded.

    Raises:
        FileNotFoundError: if the data of a task is not there.
        ValueError: if two tasks have one name, data does not fit its config, or prompts do not fit the model.
    """
    names = [c.name for c in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"evals {names} must have different names")
    for config in configs:
        if isinstance(config, MatchingConfig):
            _check_matching(config, model, writer)
            continue
        task = read_task(config)
        if config.kind == "classification":
            _check_labels(config, task)
        if config.swapped:
            other_examples(task, config, max(config.shots))
        if config.selection == "rices":
            images = jax.ShapeDtypeStruct((1, writer.image.size, writer.image.size, 3), jnp.uint8)
            jax.eval_shape(lambda key, x: model.image_features(model.init(key), x), jax.random.key(0), images)
        _check_lengths(config, task, model, writer)


def _check_matching(config: MatchingConfig, model: Model, writer: Writer) -> None:
    """Reads the examples, and traces the reading of their longest text."""
    queries = read_queries(config)
    if not hasattr(model, "text_features"):
        raise ValueError(f"eval {config.name}: kind={config.kind!r} compares embeddings of images and texts, which "
                         "this system does not have; use 'classification' or 'captioning'")
    answers = {answer.strip() for answer in (*config.labels, *(a for e in queries for a in e.answers))}
    texts = [template.replace("{}", answer) for answer in answers for template in config.templates]
    longest = max(len(writer.template.encode(Document((Text(t),)), writer.tokenizer).tokens) for t in texts)
    read = lambda key, batch: model.text_features(model.init(key), batch)  # noqa: E731
    try:
        jax.eval_shape(read, jax.random.key(0), _example(longest, 0, writer))
    except ValueError as e:
        raise ValueError(f"eval {config.name} has texts of up to {longest} tokens: {e}") from e


def _check_labels(config: EvalConfig, task: Task) -> None:
    for query, labels in zip(task.queries, task.labels, strict=True):
        if query.answer not in labels:
            raise ValueError(f"eval {config.name}: the answer {query.answer!r} of {query.key!r} is not among the "
                             f"labels {labels}; a label begins with the same space as in the data")


def _check_lengths(config: EvalConfig, task: Task, model: Model, writer: Writer) -> None:
    """Traces the reading of the longest prompt. (The nearest pictures may have longer texts than the random ones.)"""
    longest = {k: max(len(writer.prompt(own, query, as_text=k == 0).encoded.tokens) for own, query in
                      zip(choose_shots(task, config, k or ZERO_SHOT_TEXTS), task.queries, strict=True))
               for k in config.shots}
    k = max(longest, key=longest.get)
    room = config.max_new_tokens
    if config.kind == "classification":
        room = max(len(ids) for labels in set(task.labels) for ids in writer.candidates(labels))
    read = lambda key, batch: model.prefill(model.init(key), batch, longest[k] + room)  # noqa: E731
    try:
        jax.eval_shape(read, jax.random.key(0), _example(longest[k], k + 1, writer))
    except ValueError as e:
        raise ValueError(f"eval {config.name} at {k} shots has prompts of up to {longest[k]} tokens and answers of "
                         f"{room}: {e}") from e


def _example(seq_len: int, num_images: int, writer: Writer) -> Batch:
    """The shapes of a batch of one prompt."""
    row = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
    images = (1, num_images, writer.frames, writer.image.size, writer.image.size, 3)
    return Batch(row, row, jax.ShapeDtypeStruct((1, seq_len), jnp.float32), row, row, row, row,
                 jax.ShapeDtypeStruct(images, jnp.uint8), jax.ShapeDtypeStruct((1, num_images), jnp.int32))
