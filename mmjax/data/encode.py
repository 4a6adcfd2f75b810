"""Encoding: from a record that was drawn to tokens, by nothing but the record, the settings and the draw."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import images, packing, templates
from mmjax.data.config import DataSetConfig
from mmjax.data.documents import DocumentError, Image
from mmjax.data.mixture import Draw
from mmjax.data.sources import DocumentSource
from mmjax.data.templates import Encoded
from mmjax.data.tokenizer import Tokenizer

KEPT, TRUNCATED = "kept", "truncated"
DAMAGED, TOO_LONG, LEFT_OUT = "document damaged", "too long", "left out"
POLICY = (TOO_LONG, LEFT_OUT)           # left out on purpose; what else is left out somebody should mend


class Item(NamedTuple):
    """What became of a draw: `encoded` is None if it was left out, and `outcome` the reason."""

    draw: Draw
    outcome: str
    encoded: Encoded | None = None
    detail: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of its encoded images."""
        visuals = self.encoded.visuals if self.encoded else ()
        return sum(len(v.data) if isinstance(v, Image) else sum(map(len, v.frames)) for v in visuals)


class Encoder:
    """Reads, tokenises and cuts records of a data set; images stay encoded, but what their headers say is checked.

    Args:
        config: of the data set.
        sources: of the data set, opened.
        tokenizer: of the data set.
        seed: of augmentation.

    Raises:
        ValueError: if the tokenizer lacks a special token of the template.
    """

    def __init__(self, config: DataSetConfig, sources: Sequence[DocumentSource], tokenizer: Tokenizer, seed: int):
        self._config, self._sources, self._tokenizer, self._seed = config, sources, tokenizer, seed
        self._template = config.make_template()
        templates.check_specials(self._template, tokenizer)

    def __call__(self, draw: Draw) -> Item:
        try:
            encoded, cut = self._encode(draw)
        except images.ImageError as e:
            return Item(draw, e.reason, detail=str(e))
        except DocumentError as e:
            return Item(draw, DAMAGED, detail=str(e))
        except packing.TooLong as e:
            return Item(draw, TOO_LONG, detail=str(e))
        except templates.TemplateSkip as e:
            return Item(draw, LEFT_OUT, detail=str(e))
        return Item(draw, TRUNCATED if cut else KEPT, encoded)

    def name(self, draw: Draw) -> str:
        """The file and the record in it."""
        return self._sources[draw.source].name(draw.index)

    def _encode(self, draw: Draw) -> tuple[Encoded, bool]:
        c, rng = self._config, np.random.default_rng([self._seed, *draw])
        encoded = self._template.encode(self._sources[draw.source][draw.index], self._tokenizer, rng)
        if not len(encoded.tokens):
            raise DocumentError("the document has no tokens")
        encoded, cut = packing.fit(encoded, c.max_tokens or c.seq_len, c.max_images or c.images_per_row,
                                   c.too_long, rng)
        images.check_visuals(encoded.visuals, c.image, c.frames)
        return encoded, cut
