"""Questions about images with their answers, in the JSON of VQA v2, with the images in a folder."""

import collections
import os
from typing import Any

import numpy as np

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources.identifiers import ById
from mmjax.data.sources.images import ImageFolder
from mmjax.data.sources.index import cached_index
from mmjax.data.sources.interface import Dropped, FileSource, file_fingerprint, sample_digest
from mmjax.data.sources.records import open_json, take

ANSWERS = ("most_common", "each")


class VqaSource(FileSource):
    """Questions {"questions": [{"question_id", "image_id", "question"}]} and their annotations, in the form of VQA v2.

    A document is [Image, Text(question, weight 0), Text(answer)] of the roles user, user and assistant; its key is the
    question's id, and under `each` that and the number of the answer.

    Args:
        path: the questions, `.json`.
        annotations: {"annotations": [{"question_id", "multiple_choice_answer", "answers": [{"answer"}]}]}.
        images: folder of the images.
        image_name: name of an image, with {image_id}; for COCO "COCO_train2014_{image_id:012d}.jpg".
        question, answer: what becomes of them, with {question} and {answer}. Templates without roles want, for
            example, "Question: {question} Short answer:" and " {answer}".
        answers: `most_common` takes "multiple_choice_answer", or what most people said, the first of equals; `each`
            makes a document of every answer, with the share of people who gave it as the weight.
        on_bad_shard: see FileSource.

    Source: VQA v2 (arXiv:1612.00837); the weights of `each` are those of ALBEF and BLIP (arXiv:2201.12086).
    """

    suffixes = (".json",)

    def __init__(self, path: str | os.PathLike, *, annotations: str, images: str, image_name: str,
                 question: str = "{question}", answer: str = "{answer}", answers: str = "most_common",
                 on_bad_shard: str = "raise"):
        if answers not in ANSWERS:
            raise ValueError(f"vqa answers={answers!r} is unknown; known: {', '.join(ANSWERS)}")
        _check_pattern("image_name", image_name, image_id=1)
        _check_pattern("question", question, question="")
        _check_pattern("answer", answer, answer="")
        self._annotations, self._answers = annotations, answers
        self._folder, self._patterns = ImageFolder(images), (image_name, question, answer)
        super().__init__(path, on_bad_shard=on_bad_shard)
        self._fingerprint += [file_fingerprint(annotations)]

    def open_shard(self, file: str) -> "_Vqa":
        return _Vqa(file, self._annotations, self._folder, self._patterns, self._answers == "each")


def _check_pattern(option: str, pattern: str, **fields: Any):
    try:
        pattern.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as e:
        raise ValueError(f"vqa {option}={pattern!r} may hold {{{next(iter(fields))}}} only: {e!r}") from e


class _Vqa:
    def __init__(self, file: str, annotations: str, folder: ImageFolder, patterns: tuple[str, str, str], each: bool):
        self._questions, self._annotations = open_json(file, "questions"), open_json(annotations, "annotations")
        self._by_id = ById(annotations, "annotations", "question_id", self._annotations)
        self._folder, self._patterns, self._each, self.dropped = folder, patterns, each, Dropped()
        self._question = np.arange(len(self._questions))
        self._answer = np.zeros(len(self._questions), np.int64)
        if each:
            kind = f"answers-{sample_digest(annotations)[:12]}"
            counts = cached_index(file, kind, lambda f: dict(counts=np.array(
                [self._count(k) for k in range(len(self._questions))], np.int64)))["counts"]
            self._question = np.repeat(self._question, counts)
            self._answer = np.arange(len(self._question)) - np.repeat(np.cumsum(counts) - counts, counts)

    def _count(self, k: int) -> int:
        """Documents that question k becomes; one, damaged when it is read, if its answers cannot be had."""
        try:
            return len(_shares(self._by_id.object(take(self._questions.object(k), "question_id", int))))
        except DocumentError:
            return 1

    def __len__(self) -> int:
        return len(self._question)

    def read(self, k: int) -> Document:
        question, n = self._questions.object(int(self._question[k])), int(self._answer[k])
        number = take(question, "question_id", int)
        annotation = self._by_id.object(number)
        answer, weight = list(_shares(annotation).items())[n] if self._each else (_most_common(annotation), 1.0)
        pattern, ask, say = self._patterns
        image_id = take(question, "image_id", int, str)
        try:
            name = pattern.format(image_id=image_id)
        except ValueError as e:                     # {image_id:012d} of an image_id that is text
            raise DocumentError(f"image_id={image_id!r} does not fit image_name={pattern!r}: {e}") from e
        image = self._folder.read(name)
        return Document((Image(image, "user"),
                         Text(ask.format(question=take(question, "question", str)), 0.0, "user"),
                         Text(say.format(answer=answer), weight, "assistant")),
                        f"{number}/{n}" if self._each else str(number))


def _shares(annotation: dict[str, Any]) -> dict[str, float]:
    """Answer -> share of the people who gave it, in order of first appearance."""
    answers = take(annotation, "answers", list)
    if not answers or not all(isinstance(a, dict) for a in answers):
        raise DocumentError("field 'answers' must be a list of one or more objects")
    counts = collections.Counter(take(a, "answer", str) for a in answers)
    return {answer: count / len(answers) for answer, count in counts.items()}


def _most_common(annotation: dict[str, Any]) -> str:
    if isinstance(annotation.get("multiple_choice_answer"), str):
        return annotation["multiple_choice_answer"]
    shares = _shares(annotation)
    return max(shares, key=shares.__getitem__)
