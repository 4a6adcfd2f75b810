"""Published folders made by ourselves: round trips, parts of systems, what is refused. `tests/parity` has the rest."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.checkpoint.convert.pretrained import (
    Pretrained,
    from_pretrained,
    is_published,
    read_config,
    read_part,
    save_pretrained,
    template,
)
from mmjax.checkpoint.convert.weights import WeightsError
from mmjax.checkpoint.paths import flatten
from mmjax.layers import BlockConfig
from mmjax.models import ClipConfig
from mmjax.parallel import make_mesh
from mmjax.parts.text_tower import TextTowerConfig
from mmjax.parts.vision_head import VisionHeadConfig

LM = dataclasses.replace(tiny_systems.LLAMA, tie_embeddings=False)
TOWER = dataclasses.replace(tiny_systems.VISION, num_layers=3)
CLIP = ClipConfig(TOWER, VisionHeadConfig(16, 24, norm_eps=1e-5),
                  TextTowerConfig(40, 12, 2, BlockConfig(32, 4, 72, activation="quick_gelu"), output_dim=24))


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes, _ = template(config)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def write(folder, kind, config):
    params = random_params(config)
    save_pretrained(folder, Pretrained(kind, config, params, {}), max_shard_bytes=20_000)
    return flatten(params)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "llama"
    return folder, write(folder, "llama", LM)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "clip"
    return folder, write(folder, "clip", CLIP)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_says_all_of_a_model(llama, tmp_path, dtype):
    folder, params = llama
    assert is_published(folder) and not is_published(tmp_path)
    model = from_pretrained(folder, dtype, make_mesh({"fsdp": 4, "model": 2}))
    got = flatten(model.params)
    assert got.keys() == params.keys()
    for path, array in got.items():
        np.testing.assert_array_equal(array, params[path].astype(dtype), err_msg=path)
    assert got["blocks/mlp/up/kernel"].sharding.spec == P(None, "fsdp", "model")


def test_tokenizer_files_come_along(llama, tmp_path):
    folder, _ = llama
    (folder / "tokenizer.json").write_text("{}")
    save_pretrained(tmp_path / "copy", from_pretrained(folder), source=folder)
    (folder / "tokenizer.json").unlink()
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "copy" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def wanted(config, mesh=None):
    sharding = mesh and NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding), template(config)[0])


def test_a_part_of_a_system_comes_from_a_larger_one(clip):
    """KOSMOS-1's tower, whose last block is a sub-tree of its own, from a whole CLIP."""
    folder, params = clip
    tower = dataclasses.replace(TOWER, num_last_layers=1, remat="none")
    got = flatten(read_part(folder, "vision", tower, wanted(tower)))
    kernel = params["vision/blocks/mlp/up/kernel"]
    np.testing.assert_array_equal(got["blocks/mlp/up/kernel"], kernel[:2])
    np.testing.assert_array_equal(got["last_blocks/mlp/up/kernel"], kernel[2:])
    np.testing.assert_array_equal(got["class_embed"], params["vision/class_embed"])


def test_tokens_that_were_added_start_at_the_mean(llama):
    folder, params = llama
    mesh = make_mesh({"fsdp": 8})
    larger = dataclasses.replace(LM, vocab_size=LM.vocab_size + 3)
    got = flatten(read_part(folder, "lm", larger, wanted(larger, mesh)))
    table, head = params["token_embed/table"], params["head/kernel"]
    np.testing.assert_array_equal(got["token_embed/table"][:-3], table)
    np.testing.assert_allclose(got["token_embed/table"][-3:], np.tile(table.mean(0), (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(got["head/kernel"][:, :-3], head)
    np.testing.assert_allclose(got["head/kernel"][:, -3:], np.tile(head.mean(1), (3, 1)).T, atol=1e-6)
    assert got["head/kernel"].sharding == NamedSharding(mesh, P())


@pytest.mark.quick
@pytest.mark.parametrize("changes, said", [
    (dict(vocab_size=40), "vocab_size is 48 there and 40 here"),
    (dict(rotary_base=5e5), "rotary_base is 10000.0 there and 500000.0 here"),
    (dict(num_layers=5, tie_embeddings=True), "num_layers is 4 there and 5 here; tie_embeddings is False there and"),
    (dict(max_positions=4096), "max_positions is 64 there and 4096 here"),
    (dict(block=dataclasses.replace(LM.block, num_kv_heads=4)), r"block.heads \(N, K, H\) is \(4, 2, 8\) there"),
])
def test_another_model_is_refused_by_field(llama, changes, said):
    config = dataclasses.replace(LM, **changes)
    with pytest.raises(WeightsError, match=f"holds another model than lm: {said}"):
        read_part(llama[0], "lm", config, wanted(config))


@pytest.mark.quick
def test_run_fields_may_differ(llama):
    config = dataclasses.replace(LM, remat="none", max_positions=32, block=dataclasses.replace(
        LM.block, dtype="bfloat16", dropout=0.1, head_dim=8))
    assert read_part(llama[0], "lm", config, wanted(config))


@pytest.mark.quick
@pytest.mark.parametrize("changes, said", [
    (dict(model_type="bloom"), "model_type='bloom', which cannot be read; known: llama, mistral"),
    (dict(hidden_act="gelu"), "hidden_act='gelu', but only 'silu' or None can be read"),
    (dict(rope_scaling=dict(factor=2.0)), "rope_scaling={'factor': 2.0}, but only None can be read"),
    (dict(hidden_size=None), "has no 'hidden_size'"),
    (dict(hidden_size=33, head_dim=None), "does not describe a llama: embed_dim=33 must be a multiple of num_heads=4"),
    (dict(vocab_size=...), "has no 'vocab_size'"),
])
def test_configs_that_cannot_be_read_are_named(llama, tmp_path, changes, said):
    published = json.loads((llama[0] / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in published.items() if v is not ...}))
    with pytest.raises(WeightsError, match=said):
        read_config(tmp_path)


@pytest.mark.quick
def test_folders_without_a_config_are_named(tmp_path):
    with pytest.raises(WeightsError, match="is not a folder; give the one that holds config.json"):
        read_config(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="has no config.json; it holds model.safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.quick
def test_a_config_that_a_format_cannot_say_is_refused(tmp_path):
    config = dataclasses.replace(LM, block=dataclasses.replace(LM.block, activation="gelu"))
    with pytest.raises(WeightsError, match="this format has block.activation='swiglu', but the model has 'gelu'"):
        save_pretrained(tmp_path / "x", Pretrained("llama", config, random_params(config), {}))


@pytest.mark.quick
@pytest.mark.parametrize("kind, config, said", [
    ("llama", dataclasses.replace(LM, scale_embedding=True), "scale_embedding would be False for True"),
    ("llama", dataclasses.replace(LM, rotary_dim=4), "rotary_dim would be None for 4"),
    ("llama", dataclasses.replace(LM, block=dataclasses.replace(LM.block, sub_norm=True)), "block.sub_norm would be"),
    ("llama", dataclasses.replace(LM, block=dataclasses.replace(LM.block, norm_place="post")), "block.norm_place wo"),
])
def test_what_a_format_would_lose_is_refused(tmp_path, kind, config, said):
    with pytest.raises(WeightsError, match=f"the format '{kind}' cannot say this config: {said}"):
        save_pretrained(tmp_path / "x", Pretrained(kind, config, random_params(config), {}))
    assert not (tmp_path / "x").exists()


def test_a_tied_head_in_the_file_must_be_the_table(tmp_path):
    params = write(tmp_path / "untied", "llama", LM)
    published = json.loads((tmp_path / "untied" / "config.json").read_text())
    for file in (tmp_path / "untied").iterdir():
        file.rename(tmp_path / file.name)
    (tmp_path / "config.json").write_text(json.dumps(published | dict(tie_word_embeddings=True)))
    with pytest.raises(ValueError, match="'lm_head.weight' differs from 'model.embed_tokens.weight'; set tie_"):
        from_pretrained(tmp_path)
    assert params
