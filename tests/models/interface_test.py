"""What holds for every system: decoding equals reading, training lowers the loss, documents never meet."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.parallel import RULES

ROWS = {
    "flamingo": [["ttittitttttt"], ["tittttttttt"]],
    "kosmos1": [["titi" + "tttt"], ["itttttttt"]],
    "language": [["tttttttttttt"], ["tttttttttt"]],
}


@pytest.fixture(scope="module", params=tiny_systems.SYSTEMS)
def system(request):
    """A tiny model with random parameters, a batch of one document per row, and its jitted functions.

    Between them the three systems have rotary, xPos and learned positions.
    """
    name = request.param
    model = build(name, tiny_systems.config(name, **(dict(lm=tiny_systems.GPT) if name == "language" else {})))
    batch = tiny_systems.make_batch(name, ROWS[name], num_tokens=20, num_images=2)
    return SimpleNamespace(
        name=name, model=model, batch=batch, params=tiny_systems.random_params(model), logits=jax.jit(model.logits),
        value_and_grad=jax.jit(jax.value_and_grad(model.loss, has_aux=True)), decode=jax.jit(model.decode),
        prefill=jax.jit(model.prefill, static_argnums=2))


@pytest.mark.quick
def test_every_parameter_dimension_has_a_name_with_a_rule(system):
    shapes = jax.eval_shape(system.model.init, jax.random.key(0))
    jax.tree.map(lambda a, names: check_names(a.shape, names), shapes, system.model.axes)


def check_names(shape, names):
    assert len(shape) == len(names) and all(name in RULES for name in names)


@pytest.mark.quick
def test_prefill_and_decode_equal_one_forward_pass(system):
    """Rows of different lengths, a prompt wider than the cache, several tokens at once, rows taken again."""
    full = np.asarray(system.logits(system.params, system.batch))
    tokens, ends = system.batch.tokens, (system.batch.segment_ids > 0).sum(1)
    prompt = system.batch._replace(segment_ids=np.where(np.arange(20) < ends[:, None] - 4, system.batch.segment_ids, 0))
    got, cache = system.prefill(system.params, prompt, 18)      # exactly as long as the longest row becomes
    np.testing.assert_array_equal(cache.lengths, ends - 4)
    for row in range(2):
        close(got[row, :ends[row] - 4], full[row, :ends[row] - 4])

    new = np.stack([tokens[row, ends[row] - 4:ends[row]] for row in range(2)])
    want = np.stack([full[row, ends[row] - 4:ends[row]] for row in range(2)])
    got, cache = system.decode(system.params, new[:, :2], cache)
    close(got, want[:, :2])
    got, after = system.decode(system.params, new[:, 2:], cache)
    close(got, want[:, 2:])
    np.testing.assert_array_equal(after.lengths, ends)

    twice = cache.take(jnp.array([1, 1]))
    got, twice = system.decode(system.params, np.stack([new[1, 2:], tokens[0, :2]]), twice)
    close(got[0], want[1, 2:])
    assert np.abs(got[1] - want[1, 2:]).max() > 1e-3
    np.testing.assert_array_equal(twice.lengths, [ends[1], ends[1]])


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_a_step_down_the_gradient_lowers_the_loss(system):
    (loss, metrics), gradient = system.value_and_grad(system.params, system.batch)
    assert metrics["loss"] == loss and metrics["tokens"] == system.batch.loss_weights.sum() > 0
    jax.tree.map_with_path(lambda path, g: check_gradient(path, g), gradient)
    stepped = jax.tree.map(lambda p, g: p - 3e-3 * g, system.params, gradient)
    assert system.value_and_grad(stepped, system.batch)[0][0] < loss - 1e-3


def check_gradient(path, gradient):
    """Every array of parameters gets a finite gradient that is not 0, but the time embedding of a frame never seen."""
    assert np.isfinite(gradient).all() and np.any(gradient), jax.tree_util.keystr(path)


def test_rows_without_any_image(system):
    """I = 0 equals rows whose image slots are all unused, in reading and in decoding."""
    rows = [["tttttt", "ttt"], ["tttttttttt"]]
    unused = tiny_systems.make_batch(system.name, rows, num_tokens=20, num_images=2)
    none = unused._replace(images=unused.images[:, :0], image_segment_ids=unused.image_segment_ids[:, :0])
    want = system.logits(system.params, unused)
    close(jax.jit(system.model.logits)(system.params, none), want)
    prompt = none._replace(segment_ids=np.where(np.arange(20) < 4, none.segment_ids, 0))
    got, cache = system.prefill(system.params, prompt, 18)
    close(got[:, :4], want[:, :4])
    got, _ = system.decode(system.params, none.tokens[:, 4:6], cache)
    close(got, want[:, 4:6])


@pytest.fixture(scope="module", params=["flamingo", "kosmos1"])
def packed(request):
    """1,000 tokens of text packed beside 50 more, an image, and 50 more.

    Every position has a row of its own in the token table. Returns the batch, and a function from loss weights to the
    gradient.
    """
    name = request.param
    config = tiny_systems.config(name)
    t = 1100 + (1 if name == "flamingo" else tiny_systems.NUM_LATENTS + 2)
    lm = dataclasses.replace(config.lm, vocab_size=t, num_layers=2, max_positions=1000, tie_embeddings=False)
    model = build(name, dataclasses.replace(config, lm=lm))
    params = tiny_systems.random_params(model)
    batch = tiny_systems.make_batch(name, [["t" * 1000, "t" * 50 + "i" + "t" * 50]], num_tokens=t, num_images=1)
    batch = batch._replace(tokens=np.arange(t, dtype=np.int32)[None])
    gradient = jax.jit(jax.grad(lambda params, weights: model.loss(params, batch._replace(loss_weights=weights))[0]))
    return batch, lambda weights: gradient(params, batch.loss_weights * weights)


@pytest.mark.parametrize("first", [True, False], ids=["text", "image and text"])
def test_packed_documents_have_no_gradient_to_each_other(packed, first):
    batch, gradient = packed
    own = (batch.segment_ids[0] == 1) == first
    grads = gradient(own)
    table = np.asarray(grads["lm"]["token_embed"]["table"])
    assert np.all(table[~own] == 0)
    learned = own & (batch.loss_weights[0] > 0)
    assert learned.sum() >= 99 and np.all(np.any(table[learned] != 0, axis=1))
    seen = [np.any(leaf) for leaf in jax.tree.leaves(grads["vision"])]
    assert not any(seen) if first else all(seen)


def test_text_before_the_first_image_has_no_gradient_to_it(packed):
    batch, gradient = packed
    grads = gradient(np.arange(batch.tokens.shape[1]) < 1050)
    sources = {name: grads[name] for name in grads.keys() & {"vision", "resampler", "connector"}}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(sources))


@pytest.mark.quick
def test_unknown_systems_and_foreign_configs_are_named():
    with pytest.raises(ValueError, match="unknown system 'flamngo'; choose from clip, flamingo, kosmos1, language"):
        build("flamngo", tiny_systems.config("flamingo"))
    with pytest.raises(ValueError, match="system 'kosmos1' takes a Kosmos1Config, not a FlamingoConfig"):
        build("kosmos1", tiny_systems.config("flamingo"))
