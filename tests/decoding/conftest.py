"""Tiny random systems and prompts, and the full forward pass as the oracle."""

import functools

import jax
import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.layers import BlockConfig
from mmjax.models import build
from mmjax.models.flamingo import FlamingoConfig
from mmjax.models.kosmos1 import Kosmos1Config
from mmjax.models.language import LanguageConfig
from mmjax.parts.connectors import AttentivePoolConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.gated_xattn import GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig
from mmjax.parts.vit import ViTConfig

VOCAB, WIDTH, SLOTS = 6, 16, 2
LENGTHS = (5, 9, 7)                     # tokens of the three prompts
SEEDS = {"language": 15, "flamingo": 18, "kosmos1": 15}      # under which greedy text is varied, not one token for ever
IMAGES = (((1, 3),), ((0, 2), (5, 7)), ())      # where the images of each prompt stand in it


class System:
    """A model with random parameters, three prompts, and next-token log-probabilities without a cache."""

    def __init__(self, name: str):
        lm = DecoderConfig(VOCAB, 2, BlockConfig(WIDTH, 2, 24, num_kv_heads=2, norm="rms"), max_positions=32,
                           tie_embeddings=False)
        vit = ViTConfig(image_size=8, patch_size=4, num_layers=1, block=BlockConfig(WIDTH, 2, 24))
        self.name = name
        self.model = build(name, {
            "language": LanguageConfig(lm),
            "flamingo": FlamingoConfig(vit, PerceiverConfig(WIDTH, WIDTH, SLOTS, 1, 2, 8, 24), lm,
                                       GatedXAttnConfig(WIDTH, WIDTH, 2, 8, 24)),
            "kosmos1": Kosmos1Config(vit, AttentivePoolConfig(WIDTH, WIDTH, SLOTS, 2), lm),
        }[name])
        rng = np.random.default_rng(SEEDS[name])

        def shaken(path, x):        # gates and biases too, so that every path carries signal
            noise = 0.3 * rng.normal(size=x.shape)
            table = rng.normal(size=x.shape) if "token_embed" in jax.tree_util.keystr(path) else 0
            return (np.asarray(x) + noise + table).astype(np.float32)

        self.params = jax.tree_util.tree_map_with_path(shaken, jax.jit(self.model.init)(jax.random.key(0)))
        self.prompts = prompts(name, rng)
        self._log_probs = jax.jit(lambda params, batch: jax.nn.log_softmax(self.model.logits(params, batch)))

    def log_probs(self, rows: list[list[int]]) -> list[np.ndarray]:
        """Of each row's prompt with `rows[b]` after it: float[len(rows[b]) + 1, V], of these tokens and the next."""
        logp = np.asarray(self._log_probs(self.params, extended(self.prompts, rows, 8)))
        return [logp[b, n - 1:n + len(row)] for b, (n, row) in enumerate(zip(LENGTHS, rows, strict=True))]


def prompts(name: str, rng: np.random.Generator) -> Batch:
    """Three right-padded prompts with 1, 2 and 0 images; the language model gets their text only."""
    b, t = len(LENGTHS), max(LENGTHS)
    segment_ids = (np.arange(t) < np.array(LENGTHS)[:, None]).astype(np.int32)
    image_index, slot_index = np.full((b, t), -1, np.int32), np.full((b, t), -1, np.int32)
    for row, places in enumerate(IMAGES):
        for i, (start, stop) in enumerate(places):
            if name == "flamingo":
                image_index[row, start:LENGTHS[row]] = i
            elif name == "kosmos1":
                image_index[row, start:stop] = i
                slot_index[row, start:stop] = np.arange(stop - start)
    num_images = 0 if name == "language" else 2
    images = rng.integers(0, 256, (b, num_images, 1, 8, 8, 3)).astype(np.uint8)
    used = np.array([[i < len(places) for i in range(num_images)] for places in IMAGES], np.int32)
    tokens = (rng.integers(0, VOCAB, (b, t)) * segment_ids).astype(np.int32)
    return Batch(tokens, tokens, np.zeros((b, t), np.float32), segment_ids, np.arange(t, dtype=np.int32) * segment_ids,
                 image_index, slot_index, images, used.reshape(b, num_images))


def extended(batch: Batch, rows: list[list[int]], room: int) -> Batch:
    """The batch with tokens written after each row's prompt, in `room` more columns."""
    wide = [np.pad(np.asarray(x), ((0, 0), (0, room)), constant_values=-1 if x is batch.slot_index else 0)
            for x in batch[:7]]
    tokens, _, _, segment_ids, positions, image_index, slot_index = wide
    image_index[:, -room:] = -1
    for b, (n, row) in enumerate(zip(LENGTHS, rows, strict=True)):
        new = slice(n, n + len(row))
        tokens[b, new], segment_ids[b, new], positions[b, new] = row, 1, np.arange(n, n + len(row))
        image_index[b, new] = image_index[b, n - 1] if (slot_index < 0).all() else -1
    return Batch(*wide, *batch[7:])


@functools.cache
def _system(name: str) -> System:
    return System(name)


@pytest.fixture(params=["language", "flamingo", "kosmos1"])
def system(request) -> System:
    return _system(request.param)


@pytest.fixture
def language() -> System:
    return _system("language")


@pytest.fixture
def flamingo() -> System:
    return _system("flamingo")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
