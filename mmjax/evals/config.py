"""What is evaluated, and how."""

import dataclasses
import re
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One task, at several numbers of shots.

    Attributes:
        name: under which its results stand; letters, digits, "_" and "-".
        kind: "classification" chooses among given answers by their likelihood; "captioning" generates, for captions
            and for open-ended questions.
        data: folder with the files `support` and `query` (.array_record) of one example each, or, for selection
            "page", a file of pages whose last example is the query and whose others, in order, are its shots.
        labels: the answers to choose from; empty means all answers in the support set, or on the page.
        prompt: text between image and answer; empty keeps that of the data.
        shots: numbers of shots. 0 stands for two examples as text alone, without their images, as in Flamingo.
        selection: "random", "balanced" (as many of each label as possible, in random order), "rices" (the most
            similar images, the closest last) or "page".
        permutations: orders of the shots over which log-likelihoods are averaged (6 in Flamingo's prompt ensembling).
        num_queries: queries taken at random; 0 takes all.
        batch_size: prompts read at a time.
        seed: of queries, shots and orders.
        swapped: whether to repeat everything with each query's image replaced by that of another example with
            another answer, to see whether the model looks at it.
        max_new_tokens: longest generated answer.
        num_beams: beam size of generation.
        length_penalty: see `decoding.beam_search`.
        labels_together: see `together` of `decoding.score_candidates`.
        num_samples: answers to show.
    """

    name: str
    kind: Literal["classification", "captioning"]
    data: str
    labels: tuple[str, ...] = ()
    prompt: str = ""
    shots: tuple[int, ...] = (0, 2, 4, 8)
    selection: Literal["random", "balanced", "rices", "page"] = "random"
    permutations: int = 1
    num_queries: int = 0
    batch_size: int = 32
    seed: int = 0
    swapped: bool = True
    max_new_tokens: int = 64
    num_beams: int = 3
    length_penalty: float = 1.0
    labels_together: int = 1
    num_samples: int = 8

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "shots", tuple(self.shots))
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"eval name={self.name!r} must be letters, digits, '_' and '-'")
        for field, known in (("kind", ("classification", "captioning")),
                             ("selection", ("random", "balanced", "rices", "page"))):
            if getattr(self, field) not in known:
                raise ValueError(f"eval {self.name}: {field}={getattr(self, field)!r} is unknown; known: "
                                 f"{', '.join(known)}")
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"eval {self.name}: shots={self.shots} must be different numbers of at least 0")
        for field, least in dict(permutations=1, num_queries=0, batch_size=1, seed=0, max_new_tokens=1, num_beams=1,
                                 labels_together=1, num_samples=0).items():
            if getattr(self, field) < least:
                raise ValueError(f"eval {self.name}: {field}={getattr(self, field)} must be at least {least}")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"eval {self.name}: labels={self.labels} must be two or more different answers, or none")
        if self.kind == "captioning" and (self.labels or self.permutations > 1):
            raise ValueError(f"eval {self.name}: labels and permutations belong to kind='classification'")
