"""Flamingo: the frozen language model at step 0, what each token sees of the images, what is differentiated."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.models.flamingo import FlamingoConfig
from mmjax.parts import flops
from mmjax.parts.nfnet import NFNetConfig

# Row 0: text, two images in one document, then a document with one. Row 1: text alone, then an image at once.
ROWS = [["tttittitt", "titt"], ["ttttt", "ittt"]]


@pytest.fixture(scope="module")
def flamingo():
    """The model with open gates, a packed batch and the jitted logits."""
    model = build("flamingo", tiny_systems.config("flamingo"))
    batch = tiny_systems.make_batch("flamingo", ROWS, num_tokens=18, num_images=3)
    params = tiny_systems.random_params(model)
    return SimpleNamespace(model=model, batch=batch, params=params, logits=jax.jit(model.logits))


def with_other_image(batch, row: int, image: int):
    images = batch.images.copy()
    images[row, image] = 255 - images[row, image]
    return batch._replace(images=images)


@pytest.mark.parametrize("jit", [pytest.param(True, marks=pytest.mark.quick), False], ids=["jit", "eager"])
def test_step_0_is_the_language_model_bit_for_bit(flamingo, jit):
    gates = {name: jnp.zeros(2) for name in ("attention_gate", "mlp_gate")}       # as they start
    params = flamingo.params | {"xattn": flamingo.params["xattn"] | gates}
    language = build("language", tiny_systems.config("language"))
    wrap = jax.jit if jit else lambda f: f
    want = wrap(language.logits)({"lm": params["lm"]}, flamingo.batch)
    np.testing.assert_array_equal(wrap(flamingo.model.logits)(params, flamingo.batch), want)


@pytest.mark.quick
def test_text_before_the_first_image_sees_none(flamingo):
    before = np.array([[True] * 3 + [False] * 15, [True] * 5 + [False] * 13])
    here = np.asarray(flamingo.logits(flamingo.params, flamingo.batch))
    other = flamingo.batch._replace(images=255 - flamingo.batch.images)
    there = np.asarray(flamingo.logits(flamingo.params, other))
    np.testing.assert_array_equal(here[before], there[before])
    assert np.all(np.any(here != there, axis=-1)[flamingo.batch.image_index >= 0])


@pytest.mark.quick
@pytest.mark.parametrize("row, image", [(0, 0), (0, 1), (0, 2), (1, 0)])
def test_an_image_changes_its_document_from_its_place_on(flamingo, row, image):
    here = np.asarray(flamingo.logits(flamingo.params, flamingo.batch))
    there = np.asarray(flamingo.logits(flamingo.params, with_other_image(flamingo.batch, row, image)))
    place = np.argmax(flamingo.batch.image_index[row] == image)
    own = flamingo.batch.segment_ids == flamingo.batch.segment_ids[row, place]
    own[1 - row] = False
    own[row, :place] = False
    np.testing.assert_array_equal(np.any(here != there, axis=-1), own)


@pytest.mark.quick
@pytest.mark.parametrize("row, image", [(0, 0), (0, 1), (0, 2)])
def test_a_token_reads_its_last_image_only(flamingo, row, image):
    """With self-attention silent, tokens do not mix, so that only direct readers of the image can change."""
    params = jax.tree.map(lambda a: a, flamingo.params)
    out = params["lm"]["blocks"]["attention"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])
    here = np.asarray(flamingo.logits(params, flamingo.batch))
    there = np.asarray(flamingo.logits(params, with_other_image(flamingo.batch, row, image)))
    readers = flamingo.batch.image_index == image
    readers[1 - row] = False
    np.testing.assert_array_equal(np.any(here != there, axis=-1), readers)


def test_only_what_trains_is_differentiated(flamingo):
    """With vision and language model frozen: one scan over the vision blocks, no gradient of a weight of either."""
    trainable = {name: flamingo.params[name] for name in ("resampler", "xattn")}
    frozen = {name: flamingo.params[name] for name in ("vision", "lm")}
    part = gradient_jaxpr(flamingo, trainable, frozen)
    whole = gradient_jaxpr(flamingo, trainable | frozen, {})
    lm_mlp, vision_mlp, xattn_mlp = {32, 64}, {16, 40}, {32, 48}
    assert scan_lengths(whole).count(3) == 2 and scan_lengths(part).count(3) == 1
    assert all(sizes in matrix_products(whole) for sizes in (lm_mlp, vision_mlp, xattn_mlp))
    assert lm_mlp not in matrix_products(part) and vision_mlp not in matrix_products(part)
    assert xattn_mlp in matrix_products(part)


def gradient_jaxpr(flamingo, trainable, frozen):
    return jax.make_jaxpr(jax.grad(lambda p: flamingo.model.loss(frozen | p, flamingo.batch)[0]))(trainable)


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def scan_lengths(jaxpr) -> list[int]:
    return [eqn.params["length"] for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "scan"]


def matrix_products(jaxpr) -> list[set[int]]:
    """Sizes of the results of all matrix products that have two dimensions: gradients of kernels."""
    outputs = (eqn.outvars[0].aval.shape for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general")
    return [set(shape) for shape in outputs if len(shape) == 2]


@pytest.mark.quick
@pytest.mark.parametrize("offset, count", [(0, 3), (1, 2)])
def test_number_of_cross_attention_layers(offset, count):
    """Five blocks, n = 2: before blocks 0, 2, 4 as published, before 1, 3 under OpenFlamingo's rule."""
    lm = dataclasses.replace(tiny_systems.LLAMA, num_layers=5)
    model = build("flamingo", tiny_systems.config("flamingo", lm=lm, xattn_offset=offset))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert shapes["xattn"]["attention_gate"].shape == (count,)


@pytest.mark.quick
def test_config_mistakes_are_named():
    vision, lm = tiny_systems.VISION, tiny_systems.LLAMA
    resampler, xattn = tiny_systems.RESAMPLER, tiny_systems.XATTN
    change = dataclasses.replace
    mistakes = (
        (dict(resampler=change(resampler, input_dim=8)), "resampler.input_dim=8 must equal vision.output_dim=16"),
        (dict(xattn=change(xattn, visual_dim=25)), "xattn.visual_dim=25 must equal resampler.embed_dim=24"),
        (dict(xattn=change(xattn, embed_dim=8)), "xattn.embed_dim=8 must equal lm.block.embed_dim=32"),
        (dict(xattn_every=0), "xattn_every=0 must be at least 1"),
        (dict(xattn_offset=4), r"xattn_offset=4 in 0..3, the blocks of the language model"),
    )
    for fields, message in mistakes:
        with pytest.raises(ValueError, match=message):
            FlamingoConfig(**dict(vision=vision, resampler=resampler, lm=lm, xattn=xattn) | fields)


def test_the_papers_tower_of_convolutions():
    """An NFNet in place of the ViT: gradients reach what trains, and images that change the loss by their pixels."""
    tower = NFNetConfig(IMAGE := tiny_systems.IMAGE_SIZE, (1, 1), (8, 16), 8, 4, num_features=16, remat="none")
    model = build("flamingo", tiny_systems.config("flamingo", vision=tower))
    params = tiny_systems.random_params(model)
    params["vision"] = jax.tree.map(lambda x: 5 * x, params["vision"])      # gains of 0.2 let nothing through
    batch = tiny_systems.make_batch("flamingo", [["titt", "tit"], ["ttit"]], 12, 2)
    step = jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b)[0]))
    loss, gradient = step(params, batch)
    other, _ = step(params, batch._replace(images=255 - batch.images))
    assert np.isfinite(loss) and abs(loss - other) > 1e-5
    assert all(np.any(x) for x in jax.tree.leaves(gradient["vision"]))
    work = flops.Work(tokens=10, pairs=30, items=2, frames=2, reads=6)
    assert model.flops(work, lambda part: part != "lm")["vision"].forward > 2 * IMAGE**2
