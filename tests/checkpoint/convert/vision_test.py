"""Published vision towers: parameters as counted by the reference packages and the papers, and every tensor's name and
shape as they have them. `tests/parity/vision_published.py` wrote what the packages build."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.checkpoint.convert import aim, eva, open_clip_vision, timm_vision, transformers_vision
from mmjax.checkpoint.convert.table import Table, check_names, under
from mmjax.checkpoint.paths import flatten
from mmjax.layers import init_params, unbox
from mmjax.parts.vision_head import VisionHead
from mmjax.parts.vision_presets import PRESETS, VisionPreset
from mmjax.parts.vision_tower import vision_tower

PUBLISHED = json.loads((Path(__file__).parents[2] / "parity" / "goldens" / "vision" / "published.json").read_text())
COUNTS = {          # of what the papers and the authors' files have, heads included
    "clip_b32": 87_849_216, "clip_l14": 303_966_208, "dfn_h14_378": 632_682_240, "eva_clip_g14": 1_012_588_928,
    "blip2_g14": 985_952_256, "eva02_clip_e14_plus": 4_348_720_896 + 1024 * 1793, "emu2_e14_448": 4_350_093_568,
    "aim_600m": 680_535_552, "aim_1b": 1_209_370_624, "aim_3b": 2_720_025_600, "aim_7b": 6_445_404_160,
    "nfnet_f0": 68_416_284, "nfnet_f6": 435_286_116,
}


def shapes_of(preset: VisionPreset) -> dict[str, tuple[int, ...]]:
    """Our parameters by path."""
    def init():
        images, key = jnp.zeros((1, preset.tower.image_size, preset.tower.image_size, 3)), jax.random.key(0)
        params = {"tower": unbox(init_params(vision_tower(preset.tower), key, images))}
        if preset.head is not None:
            tokens = jnp.zeros((1, preset.tower.num_tokens, preset.head.input_dim))
            params["head"] = unbox(init_params(VisionHead(preset.head), key, tokens))
        return params

    return {path: leaf.shape for path, leaf in flatten(jax.eval_shape(init)).items()}


def table_of(name: str, preset: VisionPreset) -> Table:
    """The format that the preset is published in."""
    tower, head = preset.tower, preset.head
    if name.startswith("clip_rn"):
        parts = open_clip_vision.resnet_tower(tower), open_clip_vision.resnet_head()
    elif name.startswith(("clip", "open_clip", "dfn")):
        parts = open_clip_vision.vit_tower(tower), open_clip_vision.vit_head()
    elif name.startswith("siglip"):
        parts = timm_vision.vit_tower(tower), timm_vision.siglip_head()
    elif name.startswith("nfnet"):
        parts = timm_vision.nfnet_tower(tower), ()
    elif name.startswith("emu2"):
        parts = eva.tower(tower), ()
    elif name.startswith("eva"):
        parts = timm_vision.eva_tower(tower), timm_vision.eva_head(head)
    elif name.startswith("blip2"):
        parts = transformers_vision.blip2_tower(tower), ()
    elif name.startswith("aimv2"):
        parts = transformers_vision.aimv2_tower(tower), ()
    else:
        parts = aim.tower(tower), ()
    return Table((*under("tower/", "", parts[0]), *under("head/", "", parts[1])))


def published_shapes(table: Table, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the table writes."""
    found = {}
    for entry in table.entries:
        inner = [shapes[path][len(entry.stack):] for path in entry.paths]
        shape = entry.form.store([np.broadcast_to(np.int8(0), s) for s in inner]).shape
        found |= {name: shape for name, _ in entry.names()}
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_parameters(name):
    shapes = shapes_of(PRESETS[name])
    statistics = sum(int(np.prod(s)) for path, s in shapes.items() if path.endswith(("/mean", "/var")))
    count = sum(int(np.prod(s)) for s in shapes.values()) - statistics
    table = table_of(name, PRESETS[name])
    theirs = published_shapes(table, shapes)
    check_names(table, theirs, shapes)                      # every parameter of ours has its entry
    assert name in PUBLISHED or name in COUNTS
    assert count == COUNTS.get(name, count) == PUBLISHED.get(name, {"parameters": count})["parameters"]
    if name in PUBLISHED:
        lines = "\n".join(sorted(f"{key} {list(shape)}" for key, shape in theirs.items()))
        assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED[name]["digest"]


@pytest.mark.quick
@pytest.mark.parametrize("name", ["eva02_ti14", "eva02_b14", "eva02_clip_b16", "eva_clip_g14"])
def test_eva_and_timm_name_the_same_tensors(name):
    """By the renaming that timm does when it reads the authors' files."""
    renames = (("mlp.ffn_ln", "mlp.norm"), ("attn.inner_attn_ln", "attn.norm"), ("mlp.w12", "mlp.fc1"),
               ("mlp.w1", "mlp.fc1_g"), ("mlp.w2", "mlp.fc1_x"), ("mlp.w3", "mlp.fc2"))
    tower = PRESETS[name].tower
    authors, timm = ({e.theirs: e.paths for e in table} for table in (eva.tower(tower), timm_vision.eva_tower(tower)))
    if PRESETS[name].tower.block.mlp_sub_norm:
        renames += (("q_bias", "q_proj.bias"), ("v_bias", "v_proj.bias"))
    renamed = {}
    for key, paths in authors.items():
        for old, new in renames:
            key = key.replace(old, new)
        renamed[key] = paths
    assert renamed == timm
