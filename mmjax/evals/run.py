"""Runs the evaluations of a config."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmjax.data.images import ImageSpec
from mmjax.data.templates import Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals import metrics, rices
from mmjax.evals.captions import generate_answers
from mmjax.evals.check import check_evals
from mmjax.evals.cider import cider_d
from mmjax.evals.classification import score_labels
from mmjax.evals.config import EvalConfig
from mmjax.evals.fewshot import ZERO_SHOT_TEXTS, Example, Task, choose_shots, other_examples, read_task, shot_orders
from mmjax.evals.matching import AnyEval, MatchingConfig, run_task
from mmjax.evals.prompts import Prompt, Writer
from mmjax.evals.report import SWAPPED, Sample
from mmjax.models.interface import Model, Params


class Results(NamedTuple):
    """What came out.

    Attributes:
        metrics: "task/metric/shots" -> value, and "task/chance". Metrics of a classification: accuracy; of a
            captioning: exact_match and cider; each with "_swapped" for the control. Those of `matching` see there.
        samples: "task/shots" -> some of the true (not swapped) answers.
    """

    metrics: dict[str, float]
    samples: dict[str, list[Sample]]


class _Answers(NamedTuple):
    """Metrics of one pass over the queries, what was said, and which of it counts as right."""

    metrics: dict[str, float]
    said: list[str]
    correct: np.ndarray


def run_evals(configs: Sequence[AnyEval], model: Model, params: Params, tokenizer: Tokenizer, template: Template,
              image: ImageSpec, frames: int = 1, progress: bool = True) -> Results:
    """Evaluates a model on every task, at every number of shots, with true and with swapped images.

    Args:
        configs: the tasks; their names must differ.
        model, params: the system.
        tokenizer, template, image, frames: how its documents were made in training.
        progress: whether to show a progress bar.

    Returns:
        The `Results`.

    Raises:
        FileNotFoundError: if the data of a task is not there.
        ValueError: if it does not fit its config, or its prompts do not fit the model.
    """
    writer, results = Writer(tokenizer, template, image, frames), Results({}, {})
    check_evals(configs, model, writer)
    with tqdm(total=sum(len(c.shots) * (1 + getattr(c, "swapped", 0)) for c in configs), desc="evaluate", unit="pass",
              disable=not progress) as bar:
        for config in configs:
            if isinstance(config, MatchingConfig):
                bar.set_postfix_str(config.name)
                values, results.samples[f"{config.name}/0"] = run_task(config, model, params, writer)
                results.metrics.update(values)
                bar.update()
            else:
                _run_task(config, model, params, writer, results, bar)
    return results


def _run_task(config: EvalConfig, model: Model, params: Params, writer: Writer, results: Results, bar: tqdm):
    task = read_task(config)
    answer = _classifier(task, config, model, params, writer) if config.kind == "classification" else (
        _captioner(task, config, model, params, writer))
    nearest = _nearest(task, config, model, params, writer) if config.selection == "rices" else None
    if config.kind == "classification":
        results.metrics[f"{config.name}/chance"] = float(np.mean([1 / len(labels) for labels in task.labels]))
    for k in config.shots:
        bar.set_postfix_str(f"{config.name}, {k} shots")
        shots = choose_shots(task, config, k or ZERO_SHOT_TEXTS, nearest if k else None)
        orders = [[writer.prompt(own, query, as_text=k == 0) for own, query in zip(order, task.queries, strict=True)]
                  for order in shot_orders(shots, config)]
        true = answer(orders)
        bar.update()
        results.metrics.update({f"{config.name}/{name}/{k}": v for name, v in true.metrics.items()})
        results.samples[f"{config.name}/{k}"] = _samples(config, task.queries, shots, orders[0], writer, true)
        if config.swapped:
            others = other_examples(task, config, k)
            control = answer([[prompt.with_last_image(other) for prompt, other in zip(prompts, others, strict=True)]
                              for prompts in orders])
            bar.update()
            results.metrics.update({f"{config.name}/{name}{SWAPPED}/{k}": v for name, v in control.metrics.items()})


def _nearest(task: Task, config: EvalConfig, model: Model, params: Params, writer: Writer) -> np.ndarray:
    """int[N, k] the k support examples most like each query, for the largest k."""
    queries, support = (rices.image_features(model, params, writer, examples, config.batch_size)
                        for examples in (task.queries, task.support))
    return np.asarray(rices.nearest(queries, support, max(config.shots)))


def _classifier(task: Task, config: EvalConfig, model: Model, params: Params, writer: Writer
                ) -> Callable[[list[list[Prompt]]], _Answers]:
    truth = np.array([own.index(query.answer) for own, query in zip(task.labels, task.queries, strict=True)])

    def answer(orders: list[list[Prompt]]) -> _Answers:
        scores = np.mean([score_labels(model, params, writer, prompts, task.labels, config)
                          for prompts in orders], axis=0)
        best = scores.argmax(axis=1)
        said = [own[j].strip() for own, j in zip(task.labels, best, strict=True)]
        return _Answers({"accuracy": metrics.accuracy(scores, truth)}, said, best == truth)

    return answer


def _captioner(task: Task, config: EvalConfig, model: Model, params: Params, writer: Writer
               ) -> Callable[[list[list[Prompt]]], _Answers]:
    references = [query.answers for query in task.queries]

    def answer(orders: list[list[Prompt]]) -> _Answers:
        said = generate_answers(model, params, writer, orders[0], config)
        correct = metrics.exact_match(said, references)
        return _Answers({"exact_match": float(correct.mean()), "cider": float(cider_d(said, references).mean())}, said,
                        correct)

    return answer


def _samples(config: EvalConfig, queries: Sequence[Example], shots: Sequence[Sequence[Example]],
             prompts: Sequence[Prompt], writer: Writer, answers: _Answers) -> list[Sample]:
    """Some of the queries at equal distances, with the pixels the model saw."""
    made = []
    for i in np.linspace(0, len(queries) - 1, min(config.num_samples, len(queries))).astype(int):
        images = [frames[len(frames) // 2] for frames in writer.pixels(prompts[i].shown)]
        lines = [*(e.prompt + e.answer for e in shots[i]), queries[i].prompt]
        made.append(Sample(images, "\n".join(lines), queries[i].answer.strip(), answers.said[i],
                           bool(answers.correct[i])))
    return made
