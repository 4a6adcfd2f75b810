"""A toy system and a toy loader that keep to the interfaces and compile in a moment."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.losses import token_cross_entropy
from mmjax.parts import flops
from mmjax.training.config import GroupConfig, StageConfig

VOCAB, DIM, SIDE = 16, 8, 2


class ToyModel:
    """A bigram table plus a linear map of the mean image, with dropout, so that everything of a batch matters."""

    config = None

    def init(self, key):
        keys = jax.random.split(key, 3)
        return {"lm": {"embed": jax.random.normal(keys[0], (VOCAB, DIM)),
                       "head": {"w": 0.1 * jax.random.normal(keys[1], (DIM, VOCAB)), "bias": jnp.zeros(VOCAB)}},
                "vision": {"w": jax.random.normal(keys[2], (SIDE * SIDE * 3, DIM))}}

    @property
    def axes(self):
        return {"lm": {"embed": ("vocab", "embed"), "head": {"w": ("embed", "vocab"), "bias": ("vocab",)}},
                "vision": {"w": ("patch", "embed")}}

    def logits(self, params, batch, key=None):
        x = params["lm"]["embed"][batch.tokens]
        if batch.images.shape[1]:
            pixels = batch.images.astype(jnp.float32).mean((1, 2)).reshape(len(batch.images), -1) / 255
            x = x + (pixels @ params["vision"]["w"])[:, None]
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.9, x.shape)
        head = params["lm"]["head"]
        return (x @ head["w"] + head["bias"]).astype(jnp.float32)

    def loss(self, params, batch, key=None):
        return token_cross_entropy(self.logits(params, batch, key), batch.targets, batch.loss_weights)

    def flops(self, work, trains):
        head = flops.product(work.tokens, DIM * VOCAB, trains("lm"), trains("lm/embed") or trains("vision"))
        return {"lm": head, "vision": flops.product(work.items, SIDE * SIDE * 3 * DIM, trains("vision"), False)}


def make_batch(seed, rows=8, length=6, images=1):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, length), dtype=np.int32)
    ints = np.ones((rows, length), np.int32)
    return Batch(tokens, (tokens * 3 + 1) % VOCAB, rng.random((rows, length), np.float32), ints,
                 np.tile(np.arange(length, dtype=np.int32), (rows, 1)), 0 * ints - 1, 0 * ints - 1,
                 rng.integers(0, 256, (rows, images, 1, SIDE, SIDE, 3), dtype=np.uint8),
                 np.ones((rows, images), np.int32))


class ToyLoader:
    """Endless batches of two sets, a function of their number; `events` maps a number to a call before it is given.

    Batches whose number is in `bad` have a loss that is not finite.
    """

    def __init__(self, events=None, bad=(), end=None):
        self.number, self.events, self.bad, self.end, self.given = 0, events or {}, set(bad), end, []

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.end:
            raise StopIteration
        self.events.get(self.number, lambda: None)()
        pages, text = make_batch(self.number), make_batch(1000 + self.number, length=4, images=0)
        if self.number in self.bad:
            pages.loss_weights[0, 0] = np.nan
        self.given.append(self.number)
        self.number += 1
        return {"pages": pages, "text": text}

    def metrics(self):
        return {"data/pages/toy/records": float(len(self.given))}

    def get_state(self):
        return json.dumps(self.number).encode()

    def set_state(self, state):
        self.number = json.loads(state)

    def close(self):
        pass


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A config without fields."""


def make_stage(**changes):
    values = dict(system="toy", model=Nothing(), data=Nothing(), total_steps=10, mesh={"fsdp": 4, "model": 2},
                  log_every=1, checkpoint_every=5, rules=(("lm/embed", "frozen"), (".*/bias", "plain"), (".*", "main")),
                  groups={"main": GroupConfig(), "plain": GroupConfig(weight_decay=0.0)})
    return StageConfig(**values | changes)


@pytest.fixture(scope="session")
def toy():
    """The names above, for test files, which cannot import this one."""
    return type("toy", (), dict(Model=ToyModel, Loader=ToyLoader, batch=staticmethod(make_batch),
                                stage=staticmethod(make_stage)))
