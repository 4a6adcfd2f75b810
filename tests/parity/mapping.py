"""From the parameter names of the references to our parameter trees, as tables.

A row of a table is `(names, path, form)`: the reference's parameter, or one per layer where ours are stacked; the path
in our tree; and what becomes of one array before it takes our shape. Every array of a reference must be used and every
parameter of ours filled, so a table with a gap fails.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
    """One parameter of ours; see the module."""

    names: tuple[str, ...]
    path: str
    form: Callable[[np.ndarray], np.ndarray]
    stacked: bool


def same(w: np.ndarray) -> np.ndarray:
    return w


def linear(w: np.ndarray) -> np.ndarray:
    """torch stores [out, in], we store [in, out]."""
    return w.T


def conv(w: np.ndarray) -> np.ndarray:
    """[D, 3, p, p] to [p * p * 3, D]: our patches are flattened as rows, columns, colours."""
    return w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])


def fused(index: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """One of `count` matrices or biases that the reference keeps as one, such as q, k and v."""
    return lambda w: np.split(w, count)[index].T


def rows_from(start: int) -> Callable[[np.ndarray], np.ndarray]:
    """The table without its first rows, which OPT reserves."""
    return lambda w: w[start:]


Table = tuple[tuple[str, str, Callable], ...]


def norm(name: str, path: str) -> Table:
    return (f"{name}.weight", f"{path}/scale", same), (f"{name}.bias", f"{path}/bias", same)


def dense(name: str, path: str) -> Table:
    return (f"{name}.weight", f"{path}/kernel", linear), (f"{name}.bias", f"{path}/bias", same)


def rows(prefix: str, path: str, table: Table) -> list[Row]:
    """A table with a prefix before every name and every path."""
    return [Row((prefix + name,), path + ours, form, stacked=False) for name, ours, form in table]


def layers(prefix: str, path: str, indices: Iterable[int], table: Table) -> list[Row]:
    """A table of one layer for several, stacked in this order; "{}" in `prefix` is the layer's number."""
    prefixes = [prefix.format(i) for i in indices]
    return [Row(tuple(p + name for p in prefixes), path + ours, form, stacked=True) for name, ours, form in table]


def copy_weights(weights: dict[str, np.ndarray], table: list[Row], params: Any) -> dict[str, Any]:
    """Our parameters with the values of a reference.

    Args:
        weights: the reference's parameters by name.
        table: where they go.
        params: our tree, of arrays or shapes.

    Raises:
        ValueError: if a reference parameter is left over or a parameter of ours is not filled.
    """
    shapes = {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    used = {name for row in table for name in row.names}
    if used != weights.keys() or {row.path for row in table} != shapes.keys():
        raise ValueError(f"not in both the table and the reference: {sorted(used ^ weights.keys())}; "
                         f"not in both the table and our parameters: {sorted({r.path for r in table} ^ shapes.keys())}")
    tree: dict[str, Any] = {}
    for row in table:
        arrays = [row.form(weights[name]) for name in row.names]
        *folders, leaf = row.path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = (np.stack(arrays) if row.stacked else arrays[0]).reshape(shapes[row.path])
    return tree


# One layer each. Where our attention splits heads, the reshape to our shape does it.

SELF_ATTENTION = (*dense("q_proj", "q"), *dense("k_proj", "k"), *dense("v_proj", "v"))

CLIP_LAYER = (
    *norm("layer_norm1", "attention_norm"),
    *((f"self_attn.{n}", f"attention/{p}", f) for n, p, f in (*SELF_ATTENTION, *dense("out_proj", "out"))),
    *norm("layer_norm2", "mlp_norm"),
    *dense("mlp.fc1", "mlp/up"),
    *dense("mlp.fc2", "mlp/down"),
)

OPEN_CLIP_LAYER = (
    *norm("ln_1", "attention_norm"),
    *((f"attn.in_proj_{kind}", f"attention/{name}/{ours}", fused(i, 3))
      for i, name in enumerate("qkv") for kind, ours in (("weight", "kernel"), ("bias", "bias"))),
    *dense("attn.out_proj", "attention/out"),
    *norm("ln_2", "mlp_norm"),
    *dense("mlp.c_fc", "mlp/up"),
    *dense("mlp.c_proj", "mlp/down"),
)

OPT_LAYER = (
    *norm("self_attn_layer_norm", "attention_norm"),
    *((f"self_attn.{n}", f"attention/{p}", f) for n, p, f in (*SELF_ATTENTION, *dense("out_proj", "out"))),
    *norm("final_layer_norm", "mlp_norm"),
    *dense("fc1", "mlp/up"),
    *dense("fc2", "mlp/down"),
)

TORCHSCALE_LAYER = (
    *norm("self_attn_layer_norm", "attention_norm"),
    *((f"self_attn.{n}", f"attention/{p}", f) for n, p, f in (
        *SELF_ATTENTION, *norm("inner_attn_ln", "inner_norm"), *dense("out_proj", "out"))),
    *norm("final_layer_norm", "mlp_norm"),
    *dense("ffn.fc1", "mlp/up"),
    *norm("ffn.ffn_layernorm", "mlp/inner_norm"),
    *dense("ffn.fc2", "mlp/down"),
)

LLAMA_LAYER = (
    ("input_layernorm.weight", "attention_norm/scale", same),
    *((f"self_attn.{name}_proj.weight", f"attention/{path}/kernel", linear)
      for name, path in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))),
    ("post_attention_layernorm.weight", "mlp_norm/scale", same),
    *((f"mlp.{name}_proj.weight", f"mlp/{name}/kernel", linear) for name in ("gate", "up", "down")),
)

XATTN_LAYER = (
    *norm("attn.norm", "attention_norm"),
    ("attn.to_q.weight", "attention/q/kernel", linear),
    ("attn.to_kv.weight", "attention/k/kernel", fused(0, 2)),
    ("attn.to_kv.weight", "attention/v/kernel", fused(1, 2)),
    ("attn.to_out.weight", "attention/out/kernel", linear),
    ("attn_gate", "attention_gate", same),
    *norm("ff.0", "mlp_norm"),
    ("ff.1.weight", "mlp/up/kernel", linear),
    ("ff.3.weight", "mlp/down/kernel", linear),
    ("ff_gate", "mlp_gate", same),
)

RESAMPLER_LAYER = (
    *norm("0.norm_media", "feature_norm"),
    *norm("0.norm_latents", "latent_norm"),
    ("0.to_q.weight", "attention/q/kernel", linear),
    ("0.to_kv.weight", "attention/k/kernel", fused(0, 2)),
    ("0.to_kv.weight", "attention/v/kernel", fused(1, 2)),
    ("0.to_out.weight", "attention/out/kernel", linear),
    *norm("1.0", "mlp_norm"),
    ("1.1.weight", "mlp/up/kernel", linear),
    ("1.3.weight", "mlp/down/kernel", linear),
)


# Whole parts: `prefix` stands before the reference's names, `path` before ours.


def resampler(prefix: str, path: str, num_layers: int, num_frames: int) -> list[Row]:
    """open_flamingo's PerceiverResampler."""
    top = (("latents", "latents", same), *norm("norm", "final_norm"))
    if num_frames:
        top += (("frame_embs", "time_embed", same),)
    return rows(prefix, path, top) + layers(
        f"{prefix}layers.{{}}.", f"{path}layers/", range(num_layers), RESAMPLER_LAYER)


def clip_vision(prefix: str, path: str, num_layers: int, num_last_layers: int = 0) -> list[Row]:
    """The vision towers of transformers' CLIP and Kosmos2."""
    names, first = f"{prefix}encoder.layers.{{}}.", num_layers - num_last_layers
    top = (("embeddings.class_embedding", "class_embed", same),
           ("embeddings.patch_embedding.weight", "patch_embed/kernel", conv),
           ("embeddings.position_embedding.weight", "position_embed", same),
           *norm("pre_layrnorm", "pre_norm"), *norm("post_layernorm", "final_norm"))
    table = rows(prefix, path, top) + layers(names, f"{path}blocks/", range(first), CLIP_LAYER)
    if num_last_layers:
        table += layers(names, f"{path}last_blocks/", range(first, num_layers), CLIP_LAYER)
    return table


def open_clip_vision(prefix: str, path: str, num_layers: int) -> list[Row]:
    """open_clip's VisionTransformer without its projection."""
    top = (("class_embedding", "class_embed", same), ("conv1.weight", "patch_embed/kernel", conv),
           ("positional_embedding", "position_embed", same),
           *norm("ln_pre", "pre_norm"), *norm("ln_post", "final_norm"))
    return rows(prefix, path, top) + layers(
        f"{prefix}transformer.resblocks.{{}}.", f"{path}blocks/", range(num_layers), OPEN_CLIP_LAYER)


def opt(prefix: str, path: str, num_layers: int, layer: str = "layers.{}.") -> list[Row]:
    """transformers' OPT; open_flamingo wraps its layers, and `layer` then names the wrapped one."""
    top = (("embed_tokens.weight", "token_embed/table", same),
           ("embed_positions.weight", "position_embed/table", rows_from(2)), *norm("final_layer_norm", "final_norm"))
    prefix += "model.decoder."
    return rows(prefix, path, top) + layers(prefix + layer, f"{path}blocks/", range(num_layers), OPT_LAYER)


def llama(prefix: str, path: str, num_layers: int) -> list[Row]:
    """transformers' LlamaForCausalLM, untied."""
    top = (("model.embed_tokens.weight", "token_embed/table", same), ("model.norm.weight", "final_norm/scale", same),
           ("lm_head.weight", "head/kernel", linear))
    return rows(prefix, path, top) + layers(
        f"{prefix}model.layers.{{}}.", f"{path}blocks/", range(num_layers), LLAMA_LAYER)


def torchscale_decoder(prefix: str, path: str, num_layers: int) -> list[Row]:
    """torchscale's Decoder with Sub-LN and a tied head."""
    top = (("embed_tokens.weight", "token_embed/table", same), *norm("layer_norm", "final_norm"))
    return rows(prefix, path, top) + layers(
        f"{prefix}layers.{{}}.", f"{path}blocks/", range(num_layers), TORCHSCALE_LAYER)


def kosmos_connector(prefix: str, path: str) -> list[Row]:
    """transformers' Kosmos2ImageToTextProjection."""
    attention = (*SELF_ATTENTION, *dense("out_proj", "out"))
    return rows(prefix, path, (*dense("dense", "input_proj"), ("latent_query", "latents", same))) + rows(
        f"{prefix}x_attn.", f"{path}attention/", attention)
