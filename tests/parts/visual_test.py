"""Images are encoded whatever their row, once each, and unused slots not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.parallel import batch_sharding, make_mesh, put_rows
from mmjax.parts.visual import visual_tokens

ROWS, SLOTS, FRAMES, SIDE = 8, 3, 2, 4
# The images of eight rows: one row full, three without any.
USED = np.array([[1, 1, 2], [0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], np.int32)


@pytest.fixture(scope="module")
def images():
    images = np.random.default_rng(0).integers(0, 256, (ROWS, SLOTS, FRAMES, SIDE, SIDE, 3), np.uint8)
    images[USED == 0] = 0
    return images


def encode(items):
    """[N, F, H, H, 3] -> two tokens of width 3 an item."""
    return jnp.tanh(items.astype(jnp.float32).mean(3) / 255).reshape(len(items), 2, -1)[..., :3] + items.shape[1]


@pytest.mark.quick
@pytest.mark.parametrize("budget", [1, 4, 9, 16, 24, 100])
def test_every_budget_gives_the_tokens_of_all_slots_at_once(images, budget):
    want = jax.jit(visual_tokens, static_argnums=0)(encode, images, USED)
    got = jax.jit(visual_tokens, static_argnums=(0, 3))(encode, images, USED, budget)
    assert got.shape == want.shape == (ROWS, SLOTS, 2, 3)
    np.testing.assert_array_equal(got[USED > 0], want[USED > 0])


@pytest.mark.quick
@pytest.mark.parametrize("budget, used, calls", [
    (4, USED, 3), (9, USED, 1), (8, USED, 2), (8, 0 * USED, 0), (0, USED, 1)])
def test_only_as_many_steps_run_as_there_are_images(images, budget, used, calls):
    sizes = []

    def counted(items):
        jax.debug.callback(lambda: sizes.append(len(items)))
        return encode(items)

    jax.block_until_ready(jax.jit(lambda: visual_tokens(counted, images, used, budget))())
    jax.effects_barrier()
    assert sizes == [budget or ROWS * SLOTS] * calls


@pytest.mark.quick
def test_images_of_one_row_are_spread_over_all_devices():
    mesh, seen = make_mesh({"data": 2, "fsdp": 4}), []
    rng = np.random.default_rng(0)
    images, used = rng.integers(0, 256, (8, 8, 1, SIDE, SIDE, 3), np.uint8), np.zeros((8, 8), np.int32)
    used[3] = 1

    def watched(items):
        jax.debug.inspect_array_sharding(items, callback=lambda s: seen.append(s.shard_shape(items.shape)))
        return encode(items)

    with jax.set_mesh(mesh):
        rows = [put_rows(x, mesh) for x in (images, used)]
        got = jax.jit(lambda *args: visual_tokens(watched, *args, 8))(*rows)
        assert got.sharding.is_equivalent_to(batch_sharding(mesh), got.ndim)
        with pytest.raises(ValueError, match="vision.budget=12 images must be a multiple of the 8 devices .* 8 or 16"):
            jax.eval_shape(lambda *args: visual_tokens(encode, *args, 12), *rows)
    assert seen == [(1, 1, SIDE, SIDE, 3)]
    np.testing.assert_allclose(got[3], visual_tokens(encode, images, used)[3], rtol=1e-6)


@pytest.mark.parametrize("system", ["flamingo", "kosmos1"])
def test_loss_and_gradients_do_not_depend_on_the_budget(system):
    first = ["titttt", "itt"] if system == "flamingo" else ["tit", "ttt"]
    batch = tiny_systems.make_batch(system, [first, ["ttttt"], ["titt"]], num_tokens=12, num_images=2)

    def run(budget):
        vision = dataclasses.replace(tiny_systems.VISION, num_layers=1, budget=budget)
        model = build(system, tiny_systems.config(system, vision=vision))
        step = jax.jit(jax.value_and_grad(lambda p: model.loss(p, batch)[0]))
        return step(tiny_systems.random_params(model))

    (want, want_gradient), (got, gradient) = run(0), run(2)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(float(np.abs(b).max()), 1e-3)),
                 gradient, want_gradient)
