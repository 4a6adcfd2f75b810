"""Prompts: pages as in training, [image, prompt, answer] for every shot and [image, prompt] for the query."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.batch import Batch
from mmjax.data.documents import Document, Text
from mmjax.data.images import ImageError, ImageSpec, decode_visuals
from mmjax.data.packing import single_document_rows, to_features
from mmjax.data.templates import Encoded, Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.fewshot import Example


class Prompt(NamedTuple):
    """The tokens of a prompt, and the examples whose images it shows, the query's last."""

    encoded: Encoded
    shown: tuple[Example, ...]

    def with_last_image(self, other: Example) -> "Prompt":
        """The prompt with the query's image replaced by another's."""
        return self._replace(shown=(*self.shown[:-1], other))


@dataclasses.dataclass(frozen=True)
class Writer:
    """How prompts become batches: what a model was trained with.

    Attributes:
        tokenizer, template: as in training; augmentations of the template are left out.
        image: how pixels are made.
        frames: F per visual item.
    """

    tokenizer: Tokenizer
    template: Template
    image: ImageSpec
    frames: int = 1

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token with which the template ends an answer, `<EOC>` say; none if it ends documents with nothing."""
        text = Document((Text("a"),))
        start = len(self.template.encode(text, self.tokenizer, prompt=True).tokens)
        return tuple(self.template.encode(text, self.tokenizer).tokens[start:start + 1].tolist())

    def candidates(self, labels: Sequence[str]) -> list[list[int]]:
        """Token ids of each label and the end of an answer, without which "six" would beat "sixteen"."""
        return [[*self.tokenizer.encode(label), *self.end_ids] for label in labels]

    def prompt(self, shots: Sequence[Example], query: Example, as_text: bool = False) -> Prompt:
        """Writes one prompt.

        Args:
            shots: in order.
            query: its answer is left out.
            as_text: the shots are text alone, without their images.
        """
        shown = () if as_text else tuple(shots)
        segments = [s for e in shown for s in (e.visual, Text(e.prompt, 0.0), Text(e.answer, 0.0))]
        document = Document((*segments, query.visual, Text(query.prompt, 0.0)), query.key)
        encoded = self.template.encode(document, self.tokenizer, prompt=True)
        return Prompt(self._with_texts(encoded, shots) if as_text else encoded, (*shown, query))

    def pixels(self, examples: Sequence[Example]) -> np.ndarray:
        """uint8[N, F, H, W, 3]; ValueError names the example whose image cannot be used."""
        return np.stack([_pixels(e, self.image, self.frames) for e in examples])

    def batches(self, prompts: Sequence[Prompt], batch_size: int) -> Iterator[tuple[slice, Batch]]:
        """Batches of one shape, as long as the longest prompt; the last one is filled up with its last prompt.

        Images are decoded batch by batch.

        Yields:
            Which prompts the first rows hold, and the batch.
        """
        seq_len, num_images = max(len(p.encoded.tokens) for p in prompts), max(len(p.shown) for p in prompts)
        for start in range(0, len(prompts), batch_size):
            rows = [to_features(p.encoded, self.pixels(p.shown)) for p in prompts[start:start + batch_size]]
            where = slice(start, start + len(rows))
            yield where, single_document_rows(rows + rows[-1:] * (batch_size - len(rows)), seq_len, num_images)

    def _with_texts(self, encoded: Encoded, shots: Sequence[Example]) -> Encoded:
        """Puts shots as text alone after the first token, each ended by `<EOC>`, or a line break where there is none.

        As open_flamingo writes them; a template ends text by `<EOC>` only before an image.
        """
        encode, eoc = self.tokenizer.encode, self.template.tokens.get("eoc")
        bos = len(self.template.encode(Document((Text(""),)), self.tokenizer, prompt=True).tokens)
        end = [self.tokenizer.id(eoc)] if eoc else encode("\n")
        ids = [i for e in shots for i in (*encode(e.prompt), *encode(e.answer), *end)]
        put = lambda x, value: np.concatenate([x[:bos], np.asarray(value, x.dtype), x[bos:]])  # noqa: E731
        none = [-1] * len(ids)
        return encoded._replace(tokens=put(encoded.tokens, ids), weights=put(encoded.weights, [0.0] * len(ids)),
                                image_index=put(encoded.image_index, none), slot_index=put(encoded.slot_index, none),
                                spans=encoded.spans + len(ids))


@functools.lru_cache(maxsize=1024)      # shots come back in other prompts, and queries in the control
def _pixels(example: Example, image: ImageSpec, frames: int) -> np.ndarray:
    try:
        return decode_visuals([example.visual], image, frames)[0]
    except ImageError as e:
        raise ValueError(f"image of evaluation example {example.key!r}: {e}") from e
