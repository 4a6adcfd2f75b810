"""Language models and text towers against the reference packages: weights by the tables of `checkpoint.convert`, all of
them random, float32; values, gradients, and the tensors on their way back.

Each test runs on the stored goldens and, where the packages are installed, on fresh ones. `-rP` shows the differences.
"""

import functools
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.batch import Batch
from mmjax.checkpoint.convert import text_towers, transformers_language
from mmjax.checkpoint.convert.forms import single
from mmjax.checkpoint.convert.table import Entry, Table, to_ours, to_theirs
from mmjax.checkpoint.paths import flatten
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Attention, BlockConfig, MoeConfig, init_params, router_losses, unbox
from mmjax.layers.relative import Distances, distances, sinusoids
from mmjax.parts.decoder import Decoder, DecoderConfig, text_example
from mmjax.parts.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from mmjax.parts.text_tower import TextTower, TextTowerConfig

TOLERANCE = {"t5": 1e-4}
HERE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "transformers", "open_clip", "open_flamingo", "torchscale")


@pytest.fixture(scope="session", params=[pytest.param("stored", marks=pytest.mark.quick), "fresh"])
def goldens(request, tmp_path_factory):
    """The folder of goldens: the stored one, or one drawn for this run."""
    if request.param == "stored":
        return HERE / "goldens" / "language"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; see tests/parity/requirements.txt")
    seed = random.SystemRandom().randrange(1, 2**30)
    folder = tmp_path_factory.mktemp(f"language-seed-{seed}-")         # a failure shows the folder, hence the seed
    subprocess.run([sys.executable, HERE / "language_goldens.py", "--seed", str(seed), "--out", folder], check=True)
    return folder


class Case(NamedTuple):
    """Our side of a reference.

    Attributes:
        module: unbound.
        example: arguments of its `__call__`, for the shapes of its parameters.
        run: (module, params, inputs) -> outputs by name, the one differentiated first.
        entries: of its format.
    """

    module: nn.Module
    example: tuple[Any, ...]
    run: Any
    entries: tuple[Entry, ...]


def run_decoder(module, params, inputs):
    lm, tokens = module.bind({"params": params}), inputs["tokens"]
    batch = Batch(tokens, tokens, tokens.astype(jnp.float32), jnp.ones_like(tokens),
                  jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape), *text_example()[5:])
    x, statistics = lm._features(lm.embed(tokens), batch.segment_ids, batch.positions, None, None)
    outputs = {"logits": lm._logits(x)}
    if module.config.block.moe is not None:
        outputs["balance"] = router_losses(module.config.block.moe, statistics)[1]["balance_loss"]
    return outputs


def decoder(c: dict, entries, block: dict, mlp: int | None = None, **fields) -> Case:
    config = DecoderConfig(c["vocab"], c["layers"], BlockConfig(c["width"], c["heads"], mlp or c["mlp"], **block),
                           remat="none", **fields)
    return Case(Decoder(config, parent=None), (text_example(),), run_decoder, entries(config))


LLAMA = dict(norm="rms", norm_eps=1e-6, use_bias=False, activation="swiglu")


def llama(c: dict, entries=transformers_language.llama, **block) -> Case:
    first = c["name"] == "a"
    return decoder(c, entries, LLAMA | dict(num_kv_heads=None if first else 1) | block,
                   rotary_base=1e4 if first else 5e3, tie_embeddings=first and not block)


def mixtral(c: dict) -> Case:
    moe = MoeConfig(5, top_k=2 if c["name"] == "a" else 3, balance="mixtral")
    return llama(c, transformers_language.mixtral, moe=moe)


def opt(c: dict) -> Case:
    return decoder(c, transformers_language.opt, dict(activation="relu"), positions="learned", max_positions=16,
                   position_offset=2)


def gpt_neox(c: dict) -> Case:
    return decoder(c, transformers_language.gpt_neox, dict(norm_place="parallel"), rotary_dim=2, tie_embeddings=False)


def mpt(c: dict) -> Case:
    return decoder(c, transformers_language.mpt, dict(use_bias=False), mlp=4 * c["width"], positions="alibi")


def t5(c: dict) -> Case:
    first = c["name"] == "a"
    block = BlockConfig(c["width"], c["heads"], c["mlp"], head_dim=6, activation="geglu_tanh" if first else "relu",
                        norm="rms", norm_eps=1e-6, use_bias=False, attention_scale=1.0)
    config = EncoderDecoderConfig(c["vocab"], c["layers"], c["layers"] + 1, block, num_buckets=8, max_distance=10,
                                  tie_embeddings=not first, scale_tied_logits=not first, remat="none")

    def run(module, params, inputs):
        lm = module.bind({"params": params})
        features = lm.encode(lm.embed(inputs["tokens"]), inputs["mask"])
        targets = inputs["targets"]
        logits = lm.run(lm.embed(targets), jnp.ones_like(targets), features, inputs["mask"])
        return {"logits": logits, "features": features}

    one = jnp.ones((1, 1), jnp.int32)
    return Case(EncoderDecoder(config, parent=None), (one, one), run, transformers_language.t5(config))


def tower(c: dict, entries, positions: int, block: dict, **fields) -> Case:
    config = TextTowerConfig(c["vocab"], positions, c["layers"],
                             BlockConfig(c["width"], c["heads"], c["mlp"], **block), remat="none", **fields)

    def run(module, params, inputs):
        bound = module.bind({"params": params})
        features = bound.features(inputs["tokens"], inputs.get("mask"), inputs.get("types"))
        return {"pooled": bound.pooled(features, inputs["tokens"], inputs.get("mask")), "features": features}

    return Case(TextTower(config, parent=None), (jnp.ones((1, 1), jnp.int32),), run, entries(config))


def bert(c: dict) -> Case:
    return tower(c, text_towers.bert, 15, dict(norm_place="post", norm_eps=1e-12), causal=False, pool="first",
                 output_dim=c["width"], output_bias=True, output_tanh=True, num_token_types=2, embed_norm=True,
                 final_norm=False)


def clip_text(c: dict) -> Case:
    pool = dict(pool="largest_id") if c["name"] == "a" else dict(pool="eos", eos_id=5)
    return tower(c, text_towers.clip, 15, dict(activation="quick_gelu"), output_dim=9, **pool)


def open_clip_text(c: dict) -> Case:
    return tower(c, text_towers.open_clip, c["length"], {}, output_dim=9)


def siglip_text(c: dict) -> Case:
    return tower(c, text_towers.siglip, c["length"], dict(activation="gelu_tanh", norm_eps=1e-6), causal=False,
                 pool="last", output_dim=11, output_bias=True)


def xlnet_attention(c: dict) -> Case:
    n, h = c["heads"], c["width"] // c["heads"]
    module = Attention(c["width"], n, n, h, kv_dim=c["width"], use_bias=False, relative=True, parent=None)
    out = single(lambda w, _: w.transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1))
    entries = (*(Entry(f"{ours}/kernel", ours) for ours in "qkv"), Entry("distance/kernel", "r"),
               Entry("out/kernel", "o", out), Entry("content_bias", "r_w_bias"), Entry("distance_bias", "r_r_bias"))
    one = jnp.zeros((1, 1), jnp.int32)
    example = (jnp.zeros((1, 1, c["width"])), masks.all_keys(1, 1, 1), None, None, Distances(sinusoids(1, c["width"]),
                                                                                            one[None]))

    def run(module, params, inputs):
        b, t, d = inputs["x"].shape
        index = distances(jnp.arange(t, dtype=jnp.int32)[None], t)
        bias = Distances(sinusoids(t, d), jnp.maximum(index, 0))
        mask = masks.causal(jnp.ones((b, t), jnp.int32))
        return {"y": module.apply({"params": params}, inputs["x"], mask, bias=bias)}

    return Case(module, example, run, entries)


CASES = {f.__name__: f for f in (llama, mixtral, opt, gpt_neox, mpt, t5, bert, clip_text, open_clip_text, siglip_text,
                                 xlnet_attention)}


@pytest.mark.parametrize("shape", ["a", "b"])
@pytest.mark.parametrize("name", CASES)
def test_models_are_the_references(goldens, name, shape):
    g = golden.Golden.load(goldens / f"{name}_{shape}.safetensors")
    table, shapes, run = ours(name, tuple(g.config.items()), "cotangent" in g.inputs)
    params = to_ours(table, g.weights, shapes)
    back = to_theirs(table, params)
    assert back.keys() == g.weights.keys()
    for key, tensor in g.weights.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)
    inputs = {n: x.astype(np.int32) if x.dtype == np.int64 else x for n, x in g.inputs.items()}
    (_, outputs), grads = run(params, inputs)
    tolerance = TOLERANCE.get(name, 2e-5)
    for key, got in outputs.items():
        if key in g.outputs:
            check(f"{name} {shape} {key}", got, g.outputs[key], tolerance, real_rows(key, inputs))
    if grads is not None:
        check_gradients(f"{name} {shape}", grads, table, shapes, g, tolerance)


@functools.cache        # stored and fresh goldens have the same shapes
def ours(name: str, config: tuple, with_gradient: bool):
    """The table of a case; its parameters' shapes; (params, inputs) -> ((_, outputs by name), gradient or None).

    The gradient is that of the first output's product with the cotangent.
    """
    case = CASES[name](dict(config))

    def scalar(params, inputs):
        outputs = case.run(case.module, params, inputs)
        return (next(iter(outputs.values())) * inputs.get("cotangent", 0.0)).sum(), outputs

    shapes = jax.eval_shape(lambda: unbox(init_params(case.module, jax.random.key(0), *case.example)))
    run = jax.value_and_grad(scalar, has_aux=True) if with_gradient else lambda *args: (scalar(*args), None)
    return Table(case.entries), shapes, jax.jit(run)


def real_rows(key: str, inputs) -> np.ndarray | None:
    """Where features count: padding has other ones here and there."""
    return inputs["mask"] > 0 if key == "features" and "mask" in inputs else None


def check_gradients(name, grads, table: Table, shapes, g: golden.Golden, tolerance: float) -> None:
    """Each tensor's gradient, relative to its largest entry or a thousandth of the largest of all; that of a key bias,
    which is 0 but for rounding because no softmax sees it, relative to the largest of all."""
    theirs = {key: g.outputs[f"grad.{key}"] for key in g.weights}
    want, got = flatten(to_ours(table, theirs, shapes)), flatten(jax.tree.map(np.asarray, grads))
    largest = max(np.abs(w).max() for w in want.values())
    worst = {path: np.abs(got[path] - w).max() / (largest if path.endswith("k/bias") else
                                                  max(np.abs(w).max(), 1e-3 * largest)) for path, w in want.items()}
    path, difference = max(worst.items(), key=lambda entry: entry[1])
    print(f"{name} gradient: {difference:.1e} at {path}")
    assert difference <= tolerance, (name, path)


def check(name: str, got: jax.Array, want: np.ndarray, tolerance: float, where: np.ndarray | None = None) -> None:
    assert got.shape == want.shape, name
    apart = np.abs(got - want)
    difference = float((apart if where is None else apart[where]).max() / np.abs(want).max())
    print(f"{name}: {difference:.1e}")
    assert difference <= tolerance, name
