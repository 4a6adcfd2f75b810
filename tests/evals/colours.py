"""Pictures of four labels, and a model that names what it sees."""

import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from mmjax.data.documents import Image, Text

LABELS = (" blue", " red", " redder", " two red stars")
SIZE, STEP = 8, 40


def png(value: int) -> bytes:
    """A plain picture; label i has values STEP * i and a little more."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (SIZE, SIZE), (value,) * 3).save(out, "PNG")
    return out.getvalue()


def segments(label: int, shade: int = 0) -> tuple:
    return Image(png(STEP * label + shade)), Text("Output:", 0.0), Text(LABELS[label])


class Namer(NamedTuple):
    """Says the label of the last picture of each prompt, or " red" if `blind`, and then `<EOC>`."""

    answers: tuple[tuple[int, ...], ...]
    vocab_size: int
    blind: bool = False

    def init(self, key):
        return {}

    def prefill(self, params, batch, max_len):
        used = (batch.image_segment_ids > 0).sum(axis=1)
        pixels = jnp.take_along_axis(batch.images[:, :, 0, 0, 0, 0], used[:, None] - 1, axis=1)[:, 0]
        label = jnp.where(self.blind, 1, pixels // STEP)
        lengths = (batch.segment_ids > 0).sum(axis=1).astype(jnp.int32)
        logits = self._logits(label[:, None], jnp.zeros_like(batch.tokens))
        return logits, NamerCache(lengths, label, jnp.zeros_like(lengths))

    def decode(self, params, tokens, cache):
        place = cache.said[:, None] + 1 + jnp.arange(tokens.shape[1])
        said = cache.said + tokens.shape[1]
        return self._logits(cache.label[:, None], place), cache._replace(said=said)

    def image_features(self, params, images):
        angle = images[:, 0, 0, 0] / 255 * jnp.pi
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)

    def _logits(self, label, place):
        longest = max(map(len, self.answers))
        table = np.array([ids + ids[-1:] * (longest - len(ids)) for ids in self.answers])
        token = jnp.asarray(table)[label, jnp.minimum(place, longest - 1)]
        return 8 * jax.nn.one_hot(token, self.vocab_size)


class NamerCache(NamedTuple):
    lengths: jax.Array
    label: jax.Array
    said: jax.Array

    def take(self, rows):
        return NamerCache(*(x[rows] for x in self))
