"""Formulas of operations against XLA's own count of unrolled models, and against arithmetic by hand.

XLA counts every product whose result is used, and the small rest between them, which the tolerance covers. It sees all
pairs of attention, hidden or not: the work is that of batches in which every query sees every key.
"""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.layers import BlockConfig, MoeConfig
from mmjax.models import build
from mmjax.models.flamingo import FlamingoConfig
from mmjax.models.kosmos1 import Kosmos1Config
from mmjax.models.language import LanguageConfig
from mmjax.parts import flops
from mmjax.parts.connectors import AttentivePoolConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.gated_xattn import GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig
from mmjax.parts.vit import ViTConfig
from mmjax.training import optimizer
from tests import tiny_systems

B, T, NUM_IMAGES = 2, 24, 2
BLOCK = BlockConfig(128, 4, 512, activation="relu", norm="rms", use_bias=False)
LM = DecoderConfig(512, 3, BLOCK, positions="learned", max_positions=T, tie_embeddings=False, remat="none")
VISION = ViTConfig(image_size=16, patch_size=4, num_layers=2, num_last_layers=1, remat="none", block=BLOCK)
RESAMPLER = PerceiverConfig(128, 96, num_latents=8, num_layers=2, num_heads=4, head_dim=32, mlp_dim=384, num_frames=1)
CONFIGS = {
    "language": LanguageConfig(LM),
    "kosmos1": Kosmos1Config(VISION, AttentivePoolConfig(128, 128, 8, num_heads=4), LM),
    "flamingo": FlamingoConfig(VISION, RESAMPLER, LM, GatedXAttnConfig(128, 96, 4, 32, 512), xattn_every=2),
}
RULES = {
    "language, all": ("language", "main"),
    "kosmos1, all": ("kosmos1", "main"),
    "kosmos1, as published": ("kosmos1", "published"),
    "kosmos1, connector": ("kosmos1", "connector"),
    "flamingo, all": ("flamingo", "main"),
    "flamingo, as published": ("flamingo", "published"),
}
PUBLISHED = {"kosmos1": r"lm|connector|vision/last_blocks", "flamingo": "resampler|xattn"}


def example(num_images: int) -> Batch:
    return tiny_batch(np.ones((B, T), np.int32), num_images)


def tiny_batch(segments: np.ndarray, num_images: int) -> Batch:
    b, t = segments.shape
    ones = np.ones((b, t), np.int32)
    images = np.zeros((b, num_images, 1, 16, 16, 3), np.uint8)
    return Batch(ones, ones, ones.astype(np.float32), segments, np.cumsum(ones, 1) - 1, ones - 1, -ones, images,
                 np.ones((b, num_images), np.int32))


def xla_count(model, batch: Batch, trains) -> float:
    """FLOPs of the gradient by the compiler: loops unrolled, nothing computed twice, plain attention."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    labels = {path: "main" if trains(path) else "frozen" for path in optimizer.flatten(shapes)}
    trainable, frozen = optimizer.partition(shapes, labels)

    def loss(trainable, frozen, batch):
        return model.loss(optimizer.merge(trainable, frozen), batch)[0]

    with mock.patch("jax.lax.scan", functools.partial(jax.lax.scan, unroll=True)), \
            mock.patch("jax.checkpoint", lambda function, **_: function):
        compiled = jax.jit(jax.grad(loss)).lower(trainable, frozen, batch).compile()
    return compiled.cost_analysis()["flops"]


def trains_by(system: str, how: str):
    prefixes = {"main": "", "published": PUBLISHED.get(system, ""), "connector": "connector"}[how].split("|")
    return lambda path: any(path.startswith(p) or p.startswith(f"{path}/") for p in prefixes)


@pytest.mark.parametrize("case", RULES)
def test_formula_is_what_xla_counts(case):
    system, how = RULES[case]
    model, trains = build(system, CONFIGS[system]), trains_by(system, how)
    batch = example(0 if system == "language" else NUM_IMAGES)
    work = flops.Work.full(batch)
    cost = model.flops(work._replace(pairs=B * T * T, reads=NUM_IMAGES * B * T), trains)
    want = xla_count(model, batch, trains)
    got = sum(part.total for part in cost.values())
    assert got == pytest.approx(want, rel=0.04), cost


def test_language_model_needs_six_operations_a_weight_and_token():
    model = build("language", CONFIGS["language"])
    (cost,) = model.flops(flops.Work(tokens=1000), lambda path: True).values()
    weights = 3 * (4 * 128**2 + 2 * 128 * 512) + 128 * 512
    assert cost.total == 6 * 1000 * weights
    assert model.flops(flops.Work(pairs=10), lambda path: True)["lm"].total == 12 * 10 * 128 * 3


def test_frozen_tower_has_no_backward_pass():
    model = build("flamingo", CONFIGS["flamingo"])
    cost = model.flops(flops.Work.full(example(NUM_IMAGES)), trains_by("flamingo", "published"))
    assert cost["vision"].backward == cost["vision"].attention_backward == 0 < cost["vision"].forward
    assert cost["lm"].backward == cost["lm"].forward             # through the frozen weights, not into them


def test_gradient_ends_where_nothing_below_trains():
    late = dataclasses.replace(CONFIGS["flamingo"], xattn_offset=2)
    cost = build("flamingo", late).flops(flops.Work(tokens=10), trains_by("flamingo", "published"))
    head, block = 128 * 512, 4 * 128**2 + 2 * 128 * 512
    assert cost["lm"].forward == 2 * 10 * (3 * block + head) and cost["lm"].backward == 2 * 10 * (block + head)


def test_work_counts_what_is_there():
    batch = tiny_systems.make_batch("kosmos1", [["tti", "ttt"], ["t"]], num_tokens=16, num_images=3)
    work = flops.Work.of(batch)
    length = 2 + tiny_systems.NUM_LATENTS + 2
    assert work == (length + 3 + 1, length * (length + 1) // 2 + 6 + 1, 1, 1, tiny_systems.NUM_LATENTS)


def test_full_work_is_one_document_a_row():
    batch, images = example(NUM_IMAGES), B * NUM_IMAGES
    assert flops.Work.full(batch) == flops.Work.of(batch) == (B * T, B * T * (T + 1) / 2, images, images, B * T)


def test_a_token_pays_for_the_experts_it_meets():
    """Two of eight in every second of five layers: 2 · 2 + 3 networks instead of 5."""
    lm = DecoderConfig(16, 5, BlockConfig(8, 2, 12, activation="swiglu"))
    moe = dataclasses.replace(lm, block=dataclasses.replace(lm.block, moe=MoeConfig(8)), moe_every=2)
    work = flops.Work(tokens=100)
    dense, experts = (flops.decoder(c, work, trains=True, to_input=True) for c in (lm, moe))
    assert experts.forward - dense.forward == pytest.approx(2 * 100 * 2 * 3 * 8 * 12)
