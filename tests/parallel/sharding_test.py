"""Logical names to mesh axes, and arrays that really lie where the rules say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.parallel import (
    AXES,
    RULES,
    batch_sharding,
    make_mesh,
    param_shardings,
    partition_spec,
    put_rows,
    shard,
    share_of_rows,
    tower,
    use_towers,
)

pytestmark = pytest.mark.quick


def test_every_rule_names_mesh_axes():
    assert all(axis in AXES for axes in RULES.values() for axis in axes)


def test_names_become_mesh_axes():
    assert partition_spec(("layers", "embed", "heads", "head_dim")) == P(None, "fsdp", "model", None)
    assert partition_spec(("batch", "seq", None)) == P(("data", "fsdp"), "seq", None)
    assert partition_spec(()) == P()
    with pytest.raises(ValueError, match="unknown logical axis 'emebd'; the names are layers, embed"):
        partition_spec(("emebd",))


def test_parameters_and_batches_split_over_the_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
    params = {"a": {"kernel": jnp.zeros((6, 4, 3)), "bias": jnp.zeros((4, 3))}, "scale": jnp.zeros(5)}
    axes = {"a": {"kernel": ("embed", "heads", "head_dim"), "bias": ("heads", "head_dim")}, "scale": ("norm",)}
    placed = jax.device_put(params, param_shardings(axes, params, mesh))
    assert jax.tree.map(piece, placed) == {"a": {"kernel": (3, 2, 3), "bias": (2, 3)}, "scale": (5,)}
    assert piece(jax.device_put(jnp.zeros((8, 7)), batch_sharding(mesh))) == (2, 7)


def piece(x: jax.Array) -> tuple[int, ...]:
    """Shape of what one device holds."""
    return x.addressable_shards[0].data.shape


def test_a_dimension_that_does_not_divide_is_named():
    mesh, shapes = make_mesh({"fsdp": 4, "model": 2}), {"lm": {"q": jax.ShapeDtypeStruct((6, 2), jnp.float32)}}
    message = (r"parameter lm/q \(6, 2\): dimension 'embed' = 6 must be a multiple of the 4 devices on mesh axis fsdp; "
               "it divides over 1, 2, 3, 6")
    with pytest.raises(ValueError, match=message):
        param_shardings({"lm": {"q": ("embed", "heads")}}, shapes, mesh)


@pytest.mark.parametrize("explicit", [False, True])
def test_shard_lays_out_activations_and_does_nothing_without_a_mesh(explicit):
    x = jnp.zeros((8, 4, 6))
    assert shard(x, "batch", "seq", "act_mlp") is x
    with jax.set_mesh(make_mesh({"fsdp": 4, "model": 2}, explicit=explicit)):
        y = jax.jit(lambda x: shard(x + 1, "batch", "seq", "act_mlp"))(x)
        assert piece(y) == (2, 4, 3)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        assert shard(x, "batch", "seq", "act_mlp") is x


def test_shard_leaves_whole_what_does_not_divide():
    with jax.set_mesh(make_mesh({"fsdp": 4, "model": 2})):
        assert piece(jax.jit(lambda x: shard(x + 1, "batch", "seq", "act_heads"))(jnp.zeros((1, 4, 6)))) == (1, 4, 3)


def test_shard_names_an_unknown_axis():
    with jax.set_mesh(make_mesh({"fsdp": 8})), pytest.raises(ValueError, match="unknown logical axis 'btach'"):
        shard(jnp.zeros(8), "btach")


def test_a_tower_lies_by_rules_of_its_own():
    mesh = make_mesh({"fsdp": 4, "model": 2})
    shapes = {part: {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)} for part in ("vision", "resampler", "lm")}
    axes = dict.fromkeys(shapes, {"w": ("embed", "mlp")})
    towers = {"vision": "replicated", "resampler": {"mlp": (), "embed": ("fsdp", "model")}}
    specs = jax.tree.map(lambda s: s.spec, param_shardings(axes, shapes, mesh, towers))
    assert specs == {"vision": {"w": P(None, None)}, "resampler": {"w": P(("fsdp", "model"), None)},
                     "lm": {"w": P("fsdp", "model")}}
    with jax.set_mesh(mesh), use_towers(towers):
        def layout(x):
            with tower("vision"):
                inside = shard(x + 1, "batch", None, "act_mlp")
            return inside, shard(x + 1, "batch", None, "act_mlp")

        assert [piece(x) for x in jax.jit(layout)(jnp.zeros((8, 4, 6)))] == [(2, 4, 6), (2, 4, 3)]


@pytest.mark.parametrize("towers, message", [
    ({"visoin": "replicated"}, "the model has no part 'visoin'; its parts are vision"),
    ({"vision": {"mpl": ()}}, "sharding.vision: unknown logical axis 'mpl'"),
    ({"vision": {"mlp": ("modle",)}}, "sharding.vision.mlp: unknown mesh axis 'modle'"),
    ({"vision": {"embed": ("model",)}}, r"vision/w \(8, 4\): both 'embed' and 'mlp' are split over mesh axis 'model'"),
])
def test_mistakes_in_the_rules_of_a_tower_are_named(towers, message):
    shapes, axes = {"vision": {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}, {"vision": {"w": ("embed", "mlp")}}
    with pytest.raises(ValueError, match=message):
        param_shardings(axes, shapes, make_mesh({"fsdp": 4, "model": 2}), towers)


def test_one_process_reads_all_rows_and_lays_them_out_in_order():
    mesh, x = make_mesh({"data": 2, "fsdp": 2, "model": 2}), np.arange(24).reshape(8, 3)
    assert share_of_rows(mesh) == (0, 1)
    placed = put_rows(x, mesh)
    assert placed.sharding == batch_sharding(mesh) and (np.asarray(placed) == x).all()
