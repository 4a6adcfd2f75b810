"""KOSMOS-1: where images stand in the sequence, what they reach, what is differentiated."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.models.kosmos1 import Kosmos1Config

ROWS = [["titt", "it"], ["tt", "ttit"]]


@pytest.fixture(scope="module")
def kosmos():
    model = build("kosmos1", tiny_systems.config("kosmos1"))
    batch = tiny_systems.make_batch("kosmos1", ROWS, num_tokens=18, num_images=2)
    params = tiny_systems.random_params(model)
    return SimpleNamespace(model=model, batch=batch, params=params, logits=jax.jit(model.logits))


@pytest.mark.quick
@pytest.mark.parametrize("row, image", [(0, 0), (0, 1), (1, 0)])
def test_an_image_changes_its_document_from_its_first_slot_on(kosmos, row, image):
    images = kosmos.batch.images.copy()
    images[row, image] = 255 - images[row, image]
    here = np.asarray(kosmos.logits(kosmos.params, kosmos.batch))
    there = np.asarray(kosmos.logits(kosmos.params, kosmos.batch._replace(images=images)))
    place = np.argmax(kosmos.batch.image_index[row] == image)
    own = kosmos.batch.segment_ids == kosmos.batch.segment_ids[row, place]
    own[1 - row] = False
    own[row, :place] = False
    np.testing.assert_array_equal(np.any(here != there, axis=-1), own)


@pytest.mark.quick
def test_ids_under_the_slots_do_not_matter(kosmos):
    tokens = np.where(kosmos.batch.slot_index >= 0, 0, kosmos.batch.tokens)
    other = kosmos.batch._replace(tokens=tokens)
    assert np.any(tokens != kosmos.batch.tokens)
    np.testing.assert_array_equal(kosmos.logits(kosmos.params, other), kosmos.logits(kosmos.params, kosmos.batch))


@pytest.mark.quick
def test_the_connector_reads_all_tokens_at_unit_length(kosmos):
    """Scaling the tower's last norm scales every feature, class token included, and changes nothing."""
    norm = jax.tree.map(lambda a: 7.0 * a, kosmos.params["vision"]["final_norm"])
    scaled = kosmos.params | {"vision": kosmos.params["vision"] | {"final_norm": norm}}
    here, there = kosmos.logits(kosmos.params, kosmos.batch), kosmos.logits(scaled, kosmos.batch)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_only_what_trains_is_differentiated(kosmos):
    """All of the vision tower but its last layer frozen: its other blocks are scanned once, forward."""
    vision = kosmos.params["vision"]
    trainable = kosmos.params | {"vision": {"last_blocks": vision["last_blocks"]}}
    frozen = {name: value for name, value in vision.items() if name != "last_blocks"}

    def scans(trainable, frozen):
        def loss(p):
            return kosmos.model.loss(p | {"vision": frozen | p["vision"]}, kosmos.batch)[0]

        return str(jax.make_jaxpr(jax.grad(loss))(trainable)).count("length=3")

    assert scans(trainable, frozen) == 1 and scans(kosmos.params, {}) == 2


@pytest.mark.quick
def test_config_mistakes_are_named():
    c, change = tiny_systems.config("kosmos1"), dataclasses.replace
    with pytest.raises(ValueError, match="connector.input_dim=24 must equal vision.block.embed_dim=16"):
        Kosmos1Config(c.vision, change(c.connector, input_dim=24), c.lm)
    with pytest.raises(ValueError, match="connector.embed_dim=64 must equal lm.block.embed_dim=32"):
        Kosmos1Config(c.vision, change(c.connector, embed_dim=64), c.lm)
