"""Prompts: pages as in training, [image, prompt, answer] for every shot and [image, prompt] for the query."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.batch import Batch
from mmjax.data.documents import Document, Text
from mmjax.data.images import ImageError, ImageSpec, decode_visuals
from mmjax.data.packing import Features, single_document_rows, to_features
from mmjax.data.templates import Encoded, Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.fewshot import Example


@dataclasses.dataclass(frozen=True)
class Writer:
    """How prompts become features: what a model was trained with.

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

    def prompt(self, shots: Sequence[Example], query: Example, as_text: bool = False) -> Features:
        """Features of one prompt, as `packing.to_features` gives them.

        Args:
            shots: in order.
            query: its answer is left out.
            as_text: the shots are text alone, without their images.
        """
        shown = [] if as_text else shots
        segments = [s for e in shown for s in (e.visual, Text(e.prompt, 0.0), Text(e.answer, 0.0))]
        document = Document((*segments, query.visual, Text(query.prompt, 0.0)), query.key)
        encoded = self.template.encode(document, self.tokenizer, prompt=True)
        if as_text:
            encoded = self._with_texts(encoded, shots)
        return to_features(encoded, self.pixels([*shown, query]))

    def pixels(self, examples: Sequence[Example]) -> np.ndarray:
        """uint8[N, F, H, W, 3]; ValueError names the example whose image cannot be used."""
        out = []
        for example in examples:
            try:
                out.append(decode_visuals([example.visual], self.image, self.frames))
            except ImageError as e:
                raise ValueError(f"image of evaluation example {example.key!r}: {e}") from e
        return np.concatenate(out)

    def _with_texts(self, encoded: Encoded, shots: Sequence[Example]) -> Encoded:
        """Puts shots as text alone after the first token, each ended by `<EOC>`, or a line break where there is none.

        As open_flamingo writes them; a template ends text by `<EOC>` only before an image.
        """
        encode, eoc, bos = self.tokenizer.encode, getattr(self.template, "eoc", ""), int(bool(self.template.bos))
        end = [self.tokenizer.id(eoc)] if eoc else encode("\n")
        ids = [i for e in shots for i in (*encode(e.prompt), *encode(e.answer), *end)]
        put = lambda x, value: np.concatenate([x[:bos], np.asarray(value, x.dtype), x[bos:]])  # noqa: E731
        none = [-1] * len(ids)
        return encoded._replace(tokens=put(encoded.tokens, ids), weights=put(encoded.weights, [0.0] * len(ids)),
                                image_index=put(encoded.image_index, none), slot_index=put(encoded.slot_index, none),
                                spans=encoded.spans + len(ids))


def swap_last_image(prompt: Features, pixels: np.ndarray) -> Features:
    """The prompt with other pixels uint8[F, H, W, 3] for its last image, the query's."""
    return prompt | dict(images=np.concatenate([prompt["images"][:-1], pixels[None]]))


def batches(prompts: Sequence[Features], batch_size: int) -> Iterator[tuple[slice, Batch]]:
    """Batches of one shape, as long as the longest prompt; the last one is filled up with its last prompt.

    Yields:
        Which prompts the first rows hold, and the batch.
    """
    seq_len, num_images = (max(len(p[name]) for p in prompts) for name in ("tokens", "images"))
    for start in range(0, len(prompts), batch_size):
        rows = list(prompts[start:start + batch_size])
        where = slice(start, start + len(rows))
        yield where, single_document_rows(rows + rows[-1:] * (batch_size - len(rows)), seq_len, num_images)
