"""Tensors of a folder in sharded arrays, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.checkpoint.convert import streaming
from mmjax.checkpoint.convert.table import Entry, Table, dense, norm, to_ours, under
from mmjax.checkpoint.convert.weights import WeightFolder, write_folder
from mmjax.checkpoint.paths import flatten
from mmjax.parallel import make_mesh

LAYERS, D, F = 3, 8, 16
TABLE = Table((Entry("embed", "wte.weight"),
               *under("blocks/", "h.{layer}.", (*norm("norm", "ln"), *dense("up", "fc")), layer=range(LAYERS))),
              ignored=("buffer",))
SHAPES = {"embed": (12, D), "blocks/norm/scale": (LAYERS, D), "blocks/norm/bias": (LAYERS, D),
          "blocks/up/kernel": (LAYERS, D, F), "blocks/up/bias": (LAYERS, F)}
SPECS = {"embed": P("model", "fsdp"), "blocks/up/kernel": P(None, "fsdp", "model"), "blocks/up/bias": P(None, "model")}


def tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (12, D)}
    for i in range(LAYERS):
        shapes |= {f"h.{i}.ln.weight": (D,), f"h.{i}.ln.bias": (D,), f"h.{i}.fc.weight": (F, D), f"h.{i}.fc.bias": (F,)}
    drawn = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return drawn | {"buffer": np.zeros(3, dtype)}


def write(folder, tensors):
    write_folder(folder, {n: x.nbytes for n, x in tensors.items()}, tensors.__getitem__, {}, max_shard_bytes=600)
    return WeightFolder(folder)


def template(dtype, mesh=None):
    tree = {}
    for path, shape in SHAPES.items():
        sharding = mesh and NamedSharding(mesh, SPECS.get(path, P()))
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return tree


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tensors_arrive_on_their_devices(tmp_path, dtype):
    source = tensors()
    folder = write(tmp_path / "w", source)
    assert len(folder.files) > 2
    mesh = make_mesh({"fsdp": 4, "model": 2})
    got = flatten(streaming.read(folder, TABLE, template(dtype, mesh)))
    want = flatten(to_ours(TABLE, {n: x for n, x in source.items()}, template(dtype)))
    assert got.keys() == want.keys()
    for path, array in got.items():
        assert array.dtype == dtype and array.sharding == NamedSharding(mesh, SPECS.get(path, P()))
        np.testing.assert_array_equal(array, want[path].astype(dtype))


def test_what_was_read_is_written_back_bit_for_bit(tmp_path):
    source = {name: x for name, x in tensors().items() if name != "buffer"}
    params = streaming.read(write(tmp_path / "a", source), TABLE, template(jnp.float32, make_mesh({"fsdp": 8})))
    sizes, tensor = streaming.pieces(TABLE, params)
    assert sizes == {name: x.nbytes for name, x in source.items()}
    for name, want in source.items():
        np.testing.assert_array_equal(tensor(name), want)


def test_faults_are_found_before_anything_is_read(tmp_path):
    source = tensors()
    with pytest.raises(ValueError, match="missing tensors: 'h.1.ln.bias'.*left over: 'h.1.ln.bos'"):
        streaming.read(write(tmp_path / "a", {n.replace("1.ln.bias", "1.ln.bos"): x for n, x in source.items()}),
                       TABLE, template(jnp.float32))
    with pytest.raises(ValueError, match=r"'h.2.fc.bias' has shape \[15\], but blocks/up/bias \[3, 16\] needs \[16\]"):
        streaming.read(write(tmp_path / "b", source | {"h.2.fc.bias": np.zeros(15, np.float32)}), TABLE,
                       template(jnp.float32))
