"""Published folders in and out: `config.json`, safetensors, and whatever lies beside them, such as a tokenizer."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.checkpoint.convert import formats, streaming
from mmjax.checkpoint.convert.table import Entry, Table
from mmjax.checkpoint.convert.weights import CONFIG, WeightFolder, WeightsError, read_json, write_folder
from mmjax.checkpoint.paths import flatten, nest
from mmjax.layers import axes_of, init_params, unbox
from mmjax.models.clip import Clip, ClipConfig
from mmjax.parallel import param_shardings
from mmjax.parts.decoder import Decoder, DecoderConfig, text_example
from mmjax.parts.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from mmjax.parts.nfnet import NFNet, NFNetConfig
from mmjax.parts.text_tower import TextTower, TextTowerConfig
from mmjax.parts.vision_tower import VisionConfig
from mmjax.parts.vit import ViT, ViTConfig

# Fields of our configs that say how a model runs or starts, not what it computes.
RUN_FIELDS = {"remat", "budget", "num_last_layers", "dtype", "dropout", "embed_dropout", "patch_dropout", "init_gain",
              "init_scale", "init_bias", "balance_weight", "z_weight", "capacity_factor", "head_dim", "num_kv_heads"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
                   "chat_template.jinja", "generation_config.json", "preprocessor_config.json",
                   "processor_config.json", "added_tokens.json", "vocab.json", "merges.txt")


class Pretrained(NamedTuple):
    """A published model.

    Attributes:
        kind: its `model_type`, a key of `formats.FORMATS`.
        config: of the part or system it is.
        params: nested dict of arrays.
        published: its `config.json`.
    """

    kind: str
    config: Any
    params: dict[str, Any]
    published: dict[str, Any]


def is_published(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a published model, and not a run: its `config.json` has a `model_type`."""
    path = config_path(folder)
    return path.is_file() and not {"model_type", "model_cfg", "architecture"}.isdisjoint(read_json(path))


def config_path(folder: str | os.PathLike) -> Path:
    """The config of a folder: `config.json`, or open_clip's own where that is not there."""
    path, other = (Path(folder).expanduser() / name for name in (CONFIG, formats.OPEN_CLIP_CONFIG))
    return other if other.is_file() and not path.is_file() else path


def read_config(folder: str | os.PathLike) -> tuple[str, Any, dict[str, Any]]:
    """(kind, our config, published config) of a folder, without its weights.

    Raises:
        WeightsError: if there is no config.json, its architecture is unknown, or has options that we do not compute.
    """
    path = config_path(folder)
    if not path.parent.is_dir():
        raise WeightsError(f"{path.parent} is not a folder; give the one that holds {CONFIG}")
    published = read_json(path)
    kind, form = formats.find(published, str(path))
    try:
        return kind, form.read(published, str(path)), published
    except WeightsError:
        raise
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not describe a {kind}: {error}") from error


def from_pretrained(folder: str | os.PathLike, dtype: str | None = "float32", mesh: Mesh | None = None) -> Pretrained:
    """Reads a published model.

    Args:
        folder: with config.json and model.safetensors, or shards and their index.
        dtype: of all parameters; None for that of the files.
        mesh: if given, parameters come split over it by the common rules, each tensor straight to its devices.

    Raises:
        WeightsError: if the folder is not one, its architecture unknown or its files damaged.
        ValueError: if tensors are missing, left over or of other shapes.
    """
    kind, config, published = read_config(folder)
    weights = WeightFolder(folder)
    dtype = dtype or weights.dtype
    shapes, axes = template(config)
    if mesh is None:
        leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes)
    else:
        leaves = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s), shapes,
                              param_shardings(axes, shapes, mesh))
    params = streaming.read(weights, formats.FORMATS[kind].table(config), leaves)
    return Pretrained(kind, config, params, published)


def save_pretrained(folder: str | os.PathLike, model: Pretrained, source: str | os.PathLike | None = None,
                    max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a model as it was published.

    Args:
        folder: to make; it must not exist, or be empty.
        model: `published` is written as it is; if it is empty, what `config` says.
        source: a folder whose tokenizer files are copied.
        max_shard_bytes: size of a shard.

    Raises:
        WeightsError: if the folder is not empty, or the format cannot say the config.
    """
    form = formats.FORMATS[model.kind]
    published = model.published or form.write(model.config)
    if lost := differences(form.read(published, "config.json"), model.config):
        lines = "; ".join(f"{field} would be {a!r} for {b!r}" for field, a, b in lost)
        raise WeightsError(f"the format {model.kind!r} cannot say this config: {lines}")
    if form.config_file == CONFIG and "architecture" not in published:
        published = published | {"model_type": model.kind}
    sizes, tensor = streaming.pieces(form.table(model.config), model.params)
    files = {form.config_file: (json.dumps(published, indent=2) + "\n").encode()}
    if source is not None:
        beside = [Path(source) / name for name in TOKENIZER_FILES]
        files |= {path.name: path.read_bytes() for path in beside if path.is_file()}
    write_folder(folder, sizes, tensor, files, max_shard_bytes, form.weights_file)


def read_part(folder: str | os.PathLike, part: str, config: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a part of a system from a published folder.

    Args:
        folder: of a model that is this part, or a system with a part of the same name (a CLIP's "vision").
        part: path of the part in the system's parameters, such as "lm"; "" for all.
        config: of that part.
        wanted: its parameters as `jax.ShapeDtypeStruct` with shardings. Rows of token tables that the published model
            does not have, for tokens that were added, come as the mean of those it has.

    Raises:
        WeightsError: if the folder is not one or holds another model; names the fields that differ.
        ValueError: if tensors are missing, left over or of other shapes.
    """
    table, rows = table_of_part(folder, part, config)
    leaves = {path: _with_rows(path, leaf, rows) for path, leaf in flatten(wanted).items()}
    params = flatten(streaming.read(WeightFolder(folder), table, nest(leaves)))
    return nest({path: params[path] if leaves[path].shape == leaf.shape else _grow(params[path], leaf)
                 for path, leaf in flatten(wanted).items()})


def table_of_part(folder: str | os.PathLike, part: str, config: Any) -> tuple[Table, int]:
    """The names of a part's parameters in a published folder, and the size of the vocabulary there; see `read_part`."""
    kind, theirs, _ = read_config(folder)
    form, name = formats.FORMATS[kind], part.rpartition("/")[2]
    if isinstance(getattr(theirs, name, None), type(config)):
        whole = form.table(dataclasses.replace(theirs, **{name: config}))
        theirs, table = getattr(theirs, name), _only(whole, f"{name}/")
    else:
        table = form.table(config if type(theirs) is type(config) else theirs)
    if different := differences(theirs, config):
        lines = "; ".join(f"{field} is {a!r} there and {b!r} here" for field, a, b in different)
        raise WeightsError(f"{folder} holds another model than {part or 'the config'}: {lines}")
    return table, getattr(theirs, "vocab_size", 0)


def differences(theirs: Any, ours: Any) -> list[tuple[str, Any, Any]]:
    """(field, their value, our value) of what two configs compute differently."""
    if type(theirs) is not type(ours):
        return [("the kind of model", type(theirs).__name__, type(ours).__name__)]
    out = []
    for field in dataclasses.fields(theirs):
        a, b = getattr(theirs, field.name), getattr(ours, field.name)
        if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
            out += [(f"{field.name}.{path}", x, y) for path, x, y in differences(a, b)]
        elif field.name == "vocab_size":
            out += [("vocab_size", a, b)] if b < a else []
        elif field.name == "max_positions" and getattr(ours, "positions", "learned") != "learned":
            out += [("max_positions", a, b)] if b > a else []
        elif field.name not in RUN_FIELDS and a != b:
            out.append((field.name, a, b))
    if hasattr(theirs, "heads") and theirs.heads != ours.heads:
        out.append(("heads (N, K, H)", theirs.heads, ours.heads))
    return out


def template(config: Any) -> tuple[Any, Any]:
    """(shapes, logical axes) of the parameters of a part or system."""
    boxed = jax.eval_shape(_INITS[type(config)](config), jax.random.key(0))
    if isinstance(config, ClipConfig):
        return boxed, Clip(config).axes
    return unbox(boxed), axes_of(boxed)


def _init_of(module: Callable[..., Any], *example: Any) -> Callable[[Any], Callable[[jax.Array], Any]]:
    return lambda config: lambda key: init_params(module(config, parent=None), key, *(
        e(config) if callable(e) else e for e in example))


def _image(config: VisionConfig) -> jax.Array:
    return jnp.zeros((1, config.image_size, config.image_size, 3), jnp.uint8)


_INITS: dict[type, Callable[[Any], Callable[[jax.Array], Any]]] = {
    DecoderConfig: _init_of(Decoder, lambda _: text_example()),
    EncoderDecoderConfig: _init_of(EncoderDecoder, lambda _: jnp.ones((1, 1), jnp.int32),
                                   lambda _: jnp.ones((1, 1), jnp.int32)),
    TextTowerConfig: _init_of(TextTower, lambda _: jnp.ones((1, 1), jnp.int32)),
    ViTConfig: _init_of(ViT, _image),
    NFNetConfig: _init_of(NFNet, _image),
    ClipConfig: lambda config: Clip(config).init,
}


def _only(table: Table, prefix: str) -> Table:
    """The entries of one part, with paths from there; the tensors of the others are ignored."""
    def inside(entry: Entry) -> bool:
        return all(path.startswith(prefix) for path in entry.paths)

    def moved(entry: Entry) -> Entry:
        paths = tuple(path.removeprefix(prefix) for path in entry.paths)
        return dataclasses.replace(entry, ours=paths if len(paths) > 1 else paths[0])

    kept = tuple(moved(e) for e in table.entries if inside(e))
    names = {name for e in table.entries if inside(e) for name, _ in e.names()}
    others = [re.escape(name) for name in table.places() if name not in names]
    return Table(kept, (*table.ignored, *others))


def _with_rows(path: str, leaf: Any, rows: int) -> Any:
    """A leaf with as many rows, or columns of a head, as the published vocabulary has."""
    axis = {"token_embed/table": 0, "head/kernel": 1}.get(path)
    if axis is None or leaf.shape[axis] == rows:
        return leaf
    shape = tuple(rows if i == axis else n for i, n in enumerate(leaf.shape))
    return jax.ShapeDtypeStruct(shape, leaf.dtype)      # not split: it need not divide


def _grow(array: jax.Array, leaf: Any) -> jax.Array:
    """The array with rows added that are the mean of those there are."""
    axis = next(i for i, (n, m) in enumerate(zip(array.shape, leaf.shape, strict=True)) if n != m)

    def grow(x):
        mean = x.astype(jnp.float32).mean(axis, keepdims=True).astype(x.dtype)
        more = jnp.repeat(mean, leaf.shape[axis] - x.shape[axis], axis)
        return jnp.concatenate([x, more], axis)

    return jax.jit(grow, out_shardings=leaf.sharding)(array)
