"""Vision towers and heads against the reference packages: weights by the tables of `checkpoint.convert`, all of them
random, float32; values, gradients, and the tensors on their way back.

Each test runs on the stored goldens and, where the packages are installed, on fresh ones. `-rP` shows the differences.
"""

import functools
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.checkpoint.convert import aim, open_clip_vision, timm_vision, transformers_vision
from mmjax.checkpoint.convert.forms import linear
from mmjax.checkpoint.convert.table import Entry, Table, norm, to_ours, to_theirs, under
from mmjax.checkpoint.paths import flatten
from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.parts.aim import PixelHead, PixelHeadConfig, aim_loss
from mmjax.parts.nfnet import NFNetConfig
from mmjax.parts.position_resize import resize_positions
from mmjax.parts.resnet import ResNetConfig
from mmjax.parts.vision_head import VisionHead, VisionHeadConfig
from mmjax.parts.vision_presets import HALF, IMAGENET
from mmjax.parts.vision_tower import VisionConfig, vision_tower
from mmjax.parts.vit import ViT, ViTConfig

TOLERANCE = {"nfnet": 1e-4}
HERE = Path(__file__).parent
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})   # half the time
PACKAGES = ("torch", "torchvision", "transformers", "timm", "open_clip", "open_flamingo", "torchscale")


@pytest.fixture(scope="session", params=["stored", "fresh"])
def goldens(request, tmp_path_factory):
    """The folder of goldens: the stored one, or one drawn for this run."""
    if request.param == "stored":
        return HERE / "goldens" / "vision"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; see tests/parity/requirements.txt")
    seed = random.SystemRandom().randrange(1, 2**30)
    folder = tmp_path_factory.mktemp(f"vision-seed-{seed}-")           # a failure shows the folder, hence the seed
    subprocess.run([sys.executable, HERE / "vision_goldens.py", "--seed", str(seed), "--out", folder], check=True)
    return folder


class Case(NamedTuple):
    """Our side of a reference."""

    tower: VisionConfig
    head: VisionHeadConfig | None
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()


def case(name: str, c: dict) -> Case:
    """The config of a golden's shape and its table, with the tower's parameters below "tower" and the head's below
    "head"."""
    return CASES[name](c)


def vit(c: dict, block: dict, **fields) -> ViTConfig:
    block = BlockConfig(c["width"], c["heads"], c["mlp"], **block)
    return ViTConfig(c["image_size"], c["patch_size"], c["layers"], block, remat="none", **fields)


def joined(tower, head=()) -> tuple[Entry, ...]:
    return (*under("tower/", "", tower), *under("head/", "", head))


def open_clip_vit(c: dict) -> Case:
    tower = vit(c, dict(activation="quick_gelu" if c["name"] == "b" else "gelu"))
    return Case(tower, VisionHeadConfig(c["width"], 9),
                joined(open_clip_vision.vit_tower(tower), open_clip_vision.vit_head()))


def siglip(c: dict, activation="gelu_tanh") -> Case:
    tower = vit(c, dict(activation=activation, norm_eps=1e-6), class_token=False, patch_bias=True, pre_norm=False,
                **HALF)
    head = VisionHeadConfig(c["width"], pool="latent", num_heads=c["heads"], mlp_dim=c["mlp"], activation=activation)
    return Case(tower, head, joined(transformers_vision.siglip_tower(tower), transformers_vision.siglip_head(head)))


def siglip_timm(c: dict) -> Case:
    tower, head, _, _ = siglip(c, "gelu")
    return Case(tower, head, joined(timm_vision.vit_tower(tower), timm_vision.siglip_head()))


def blip2(c: dict) -> Case:
    tower = vit(c, dict(norm_eps=1e-6), patch_bias=True, pre_norm=False)
    return Case(tower, None, joined(transformers_vision.blip2_tower(tower)))


def aimv2(c: dict) -> Case:
    tower = vit(c, dict(activation="swiglu", norm="rms", use_bias=False), class_token=False, patch_bias=True,
                pre_norm=False, patch_norm=True, positions="sincos" if c["name"] == "b" else "learned")
    return Case(tower, None, joined(transformers_vision.aimv2_tower(tower)))


def eva(c: dict, head: VisionHeadConfig, final_norm=True, rotary_grid=0, **block) -> Case:
    tower = vit(c, dict(norm_eps=1e-6, key_bias=False) | block, patch_bias=True, pre_norm=False, final_norm=final_norm,
                rotary_grid=rotary_grid)
    return Case(tower, head, joined(timm_vision.eva_tower(tower), timm_vision.eva_head(head)))


def eva_clip(c: dict, **fields) -> Case:
    return eva(c, VisionHeadConfig(c["width"], 9, use_bias=True), **fields)


def eva02(c: dict, **fields) -> Case:
    head = VisionHeadConfig(c["width"], pool="mean", norm=True, num_class_tokens=1)
    return eva(c, head, final_norm=False, rotary_grid=16, activation="swiglu", **fields)


def eva02_clip(c: dict) -> Case:
    return eva_clip(c, rotary_grid=16, activation="swiglu", sub_norm=True, mlp_sub_norm=True)


def nfnet(c: dict) -> Case:
    tower = NFNetConfig(c["image_size"], tuple(c["depths"]), tuple(c["widths"]), c["stem"], c["group"],
                        num_features=c["features"], remat="none")
    return Case(tower, None, joined(timm_vision.nfnet_tower(tower)))


def clip_resnet(c: dict) -> Case:
    tower = ResNetConfig(c["image_size"], tuple(c["depths"]), c["width"], remat="none")
    head = VisionHeadConfig(tower.num_features, 9, "mean_query", num_heads=c["heads"], num_tokens=tower.num_tokens)
    return Case(tower, head, joined(open_clip_vision.resnet_tower(tower), open_clip_vision.resnet_head()))


CASES = {
    "open_clip_vit": open_clip_vit, "siglip": siglip, "siglip_timm": siglip_timm, "blip2": blip2, "aimv2": aimv2,
    "eva_giant": eva_clip, "eva02_tiny": eva02, "eva02_base": functools.partial(eva02, mlp_sub_norm=True),
    "eva02_clip": eva02_clip, "eva02_enormous": functools.partial(eva_clip, norm_place="branch"), "nfnet": nfnet,
    "clip_resnet": clip_resnet,
}


@pytest.mark.parametrize("shape", ["a", "b"])
@pytest.mark.parametrize("name", CASES)
def test_towers_are_the_references(goldens, name, shape):
    g = golden.Golden.load(goldens / f"{name}_{shape}.safetensors")
    tower, head, entries, ignored = case(name, g.config)
    table = Table(entries, ignored)
    shapes = parameter_shapes(tower, head)
    params = to_ours(table, g.weights, shapes)
    back = to_theirs(table, params)
    assert back.keys() == g.weights.keys()
    for key, tensor in g.weights.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)
    cotangent = g.inputs.get("cotangent")
    outputs, grads = run(tower, head, cotangent is not None, params, g.inputs["images"], cotangent)
    tolerance = TOLERANCE.get(name, 2e-5)
    tokens = g.outputs.get("tokens")
    if tokens is not None:
        check(f"{name} {shape} tokens", outputs["tokens"][:, -tokens.shape[1]:], tokens, tolerance)
    if "pooled" in g.outputs:
        check(f"{name} {shape} pooled", outputs["pooled"], g.outputs["pooled"], tolerance)
    if grads is not None:
        check_gradients(f"{name} {shape}", grads, table, shapes, g, tolerance)


@functools.cache
def parameter_shapes(tower: VisionConfig, head: VisionHeadConfig | None):
    """Our parameters, "tower" and "head"."""
    def init():
        images = jnp.zeros((1, tower.image_size, tower.image_size, 3), jnp.uint8)
        module, key = vision_tower(tower), jax.random.key(0)
        params = {"tower": unbox(init_params(module, key, images))}
        if head is not None:
            tokens = module.apply({"params": params["tower"]}, images)
            params["head"] = unbox(init_params(VisionHead(head, parent=None), key, tokens))
        return params

    return jax.eval_shape(init)


@functools.partial(compiled, static_argnums=(0, 1, 2))
def run(tower, head, with_gradient, params, images, cotangent):
    """Outputs by name, and the gradient of the first one's product with `cotangent`."""
    def forward(params):
        tokens = vision_tower(tower).apply({"params": params["tower"]}, images)
        if head is None:
            return tokens, {"tokens": tokens}
        pooled = VisionHead(head, parent=None).apply({"params": params["head"]}, tokens)
        return pooled, {"tokens": tokens, "pooled": pooled}

    if not with_gradient:
        return forward(params)[1], None

    def scalar(params):
        first, outputs = forward(params)
        return (first * cotangent).sum(), outputs

    (_, outputs), grads = jax.value_and_grad(scalar, has_aux=True)(params)
    return outputs, grads


def test_aim_trunk_mask_and_pixel_loss(goldens):
    """Against the module written for it: see `vision_goldens.Aim`."""
    for shape in "ab":
        g = golden.Golden.load(goldens / f"aim_{shape}.safetensors")
        c = g.config
        tower = vit(c, dict(norm_eps=1e-6, use_bias=False, norm_bias=True), class_token=False, patch_bias=True,
                    pre_norm=False, patch_norm=True, positions="sincos", **IMAGENET)
        head = PixelHeadConfig(c["width"], tower.grid, c["patch_size"], num_layers=2, embed_dim=8)
        table = aim_table(tower)
        tokens, key = jnp.zeros((1, tower.num_tokens, c["width"])), jax.random.key(0)
        shapes = {"vision": parameter_shapes(tower, None)["tower"],
                  "head": jax.eval_shape(lambda h=head, x=tokens, k=key: unbox(init_params(PixelHead(h), k, x)))}
        params = to_ours(table, g.weights, shapes)
        back = to_theirs(table, params)
        assert all(np.array_equal(back[key], tensor) for key, tensor in g.weights.items())
        prefix = jnp.asarray(c["prefix"], jnp.int32)
        outputs, grads = run_aim(tower, head, "cotangent" in g.inputs, params, g.inputs["images"], prefix)
        for key in ("tokens", "masked", "loss"):
            check(f"aim {shape} {key}", outputs[key], g.outputs[key], 2e-5)
        assert np.abs(g.outputs["masked"] - g.outputs["tokens"]).max() > 0.1
        if grads is not None:
            grads = jax.tree.map(lambda d, by=g.inputs["cotangent"]: d * by, grads)
            check_gradients(f"aim {shape}", grads, table, shapes, g, 2e-5)


def aim_table(tower: ViTConfig) -> Table:
    block = (*norm("norm", "norm"), Entry("mlp/up/kernel", "up", linear()), Entry("mlp/down/kernel", "down", linear()))
    head = (Entry("input_proj/kernel", "input_proj", linear()), Entry("output_proj/kernel", "output_proj", linear()),
            *norm("final_norm", "final_norm"), *under("blocks/", "blocks.{layer}.", block, layer=range(2)))
    return Table((*under("vision/", "", aim.tower(tower)), *under("head/", "", head)))


@functools.partial(compiled, static_argnums=(0, 1, 2))
def run_aim(tower, head, with_gradient, params, images, prefix):
    vision = {"params": params["vision"]}
    outputs = {"tokens": ViT(tower).apply(vision, images), "masked": ViT(tower).apply(vision, images, prefix=prefix)}
    loss = functools.partial(aim_loss, tower, head)
    value, grads = (jax.value_and_grad(loss)(params, images, prefix) if with_gradient
                    else (loss(params, images, prefix), None))
    return outputs | {"loss": value}, grads


def test_position_tables_are_resized_as_the_references_do(goldens):
    g = golden.Golden.load(goldens / "interpolation.safetensors")
    grid = g.inputs["grid"]
    first = np.arange(6, dtype=np.float32)[None]
    for name, want in g.outputs.items():
        size, _, form = name.partition(".")
        got = resize_positions(np.concatenate([first, grid]), 5, int(size), antialias=form == "antialias")
        np.testing.assert_array_equal(got[:1], first)
        check(f"interpolation {name}", got[1:], want, 2e-6)


def check_gradients(name, grads, table: Table, shapes, g: golden.Golden, tolerance: float) -> None:
    """Each tensor's gradient, relative to its largest entry or a thousandth of the largest of all; that of a key bias,
    which is 0 but for rounding because no softmax sees it, relative to the largest of all."""
    theirs = {key: g.outputs.get(f"grad.{key}", np.zeros_like(w)) for key, w in g.weights.items()}
    want, got = to_ours(table, theirs, shapes), jax.tree.map(np.asarray, grads)
    largest = max(np.abs(w).max() for w in jax.tree.leaves(want))
    want, got = flatten(want), flatten(got)
    worst = {path: np.abs(got[path] - w).max() / (largest if path.endswith("k/bias") else
                                                  max(np.abs(w).max(), 1e-3 * largest)) for path, w in want.items()}
    path, difference = max(worst.items(), key=lambda entry: entry[1])
    print(f"{name} gradient: {difference:.1e} at {path}")
    assert difference <= tolerance, (name, path)


def check(name: str, got: jax.Array, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape, name
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"{name}: {difference:.1e}")
    assert difference <= tolerance, name
