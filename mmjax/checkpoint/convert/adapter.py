"""Everything a run trained beside frozen weights as one small folder: low-rank adapters and connectors together.

`adapter_model.safetensors` holds every trained parameter. Adapters of a language model that has a published form stand
under the names of Hugging Face PEFT, so that PEFT can load them onto the published weights; all else under our paths.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.checkpoint.convert import formats
from mmjax.checkpoint.convert.forms import linear
from mmjax.checkpoint.convert.table import Entry, Place, Table, load, store
from mmjax.checkpoint.convert.weights import WeightsError, opened, read_json, save
from mmjax.checkpoint.paths import flatten
from mmjax.layers.low_rank import Choose, is_adapter, kernel_of

FILE, CONFIG, OWN = "adapter_model.safetensors", "adapter_config.json", "mmjax."
PEFT = "base_model.model."


def save_adapter(folder: str | os.PathLike, trained: Mapping[str, Any], low_rank: Choose | None, kind: str = "",
                 config: Any = None, part: str = "lm") -> None:
    """Writes the trained parameters of a run.

    Args:
        folder: to make; it must not exist, or be empty.
        trained: nested dict of them.
        low_rank: which kernels have adapters.
        kind, config: published format and config of the language model at `part`, if it has one.

    Raises:
        WeightsError: if the folder holds anything, or adapters differ in rank or alpha, which PEFT's config cannot say.
    """
    folder, arrays = Path(folder).expanduser(), flatten(trained)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} exists and is not an empty folder; choose another, or remove it")
    chosen = {low_rank(kernel_of(path)) for path in arrays if is_adapter(path)} if low_rank else set()
    if len(chosen) > 1:
        raise WeightsError(f"the adapters differ: {', '.join(map(str, chosen))}; a folder has one rank and one alpha")
    places = _places(kind, config, part)
    tensors = {name: np.asarray(store(place, arrays), order="C") for name, place in places.items()
               if place.entry.ours in arrays}
    named = {place.entry.ours for name, place in places.items() if name in tensors}
    tensors |= {OWN + path: np.asarray(x) for path, x in arrays.items() if path not in named}
    targets = sorted({name.removeprefix(PEFT).split(".lora_")[0].rpartition(".")[2] for name in tensors
                      if name.startswith(PEFT)})
    about: dict[str, Any] = dict(peft_type="LORA", task_type="CAUSAL_LM", bias="none", target_modules=targets)
    for adapter in chosen:
        about |= dict(r=adapter.rank, lora_alpha=adapter.alpha)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
    draft = folder / f".{FILE}.partial"
    save(tensors, draft, mmjax_kind=kind, mmjax_part=part)
    os.replace(draft, folder / FILE)


def is_adapter_folder(folder: str | os.PathLike) -> bool:
    """Whether a folder holds what `save_adapter` writes."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def read_adapter(folder: str | os.PathLike, shapes: Mapping[str, Any], config: Any = None,
                 low_rank: Choose | None = None) -> dict[str, np.ndarray]:
    """{path: array} of what `save_adapter` wrote.

    Args:
        shapes: our parameters, of anything that has a shape; the folder may hold some of them only.
        config: of the system; needed for names of PEFT.
        low_rank: which kernels have adapters here; their rank and alpha must be those of the folder.

    Raises:
        WeightsError: if the folder is not one, or holds what is no parameter here, or of another shape.
    """
    folder = Path(folder).expanduser()
    said = read_json(folder / CONFIG)
    wanted, params = {p: tuple(x.shape) for p, x in flatten(shapes).items()}, {}
    filled: dict[str, int] = {}
    with opened(folder / FILE) as tensors:
        about = tensors.metadata() or {}
        part = about.get("mmjax_part", "lm")
        places = _places(about.get("mmjax_kind", ""), getattr(config, part, None), part)
        for name in list(tensors.keys()):
            tensor = tensors.get_tensor(name)
            place = places.get(name) or Place(Entry(name.removeprefix(OWN), name), ())
            if (path := place.entry.ours) not in wanted:
                raise WeightsError(f"{folder / FILE} has {name!r}, which is no parameter of this model; do rules and "
                                   "rank of the config agree with those it was trained under?")
            for _, piece in load(name, place, tensor, wanted):
                params.setdefault(path, np.empty(wanted[path], tensor.dtype))[place.index] = piece
                filled[path] = filled.get(path, 0) + piece.size
    for path, array in params.items():
        if filled[path] < array.size:
            raise WeightsError(f"{folder / FILE} has only a part of the layers of {path!r}")
        adapter = low_rank(kernel_of(path)) if low_rank and is_adapter(path) else None
        if adapter and (adapter.rank, adapter.alpha) != (said.get("r"), said.get("lora_alpha")):
            raise WeightsError(f"{folder / CONFIG} has r={said.get('r')}, lora_alpha={said.get('lora_alpha')}, but the "
                               f"rules give {path!r} rank={adapter.rank}, alpha={adapter.alpha}")
    return params


def _places(kind: str, config: Any, part: str) -> dict[str, Place]:
    """PEFT's name of every adapter that a format's linear maps may have."""
    if kind not in formats.FORMATS or config is None:
        return {}
    entries = []
    for entry in formats.FORMATS[kind].entries(config):
        if isinstance(entry.ours, str) and entry.ours.endswith("/kernel") and "head/" not in entry.ours:
            base, theirs = f"{part}/{entry.ours.removesuffix('kernel')}", PEFT + entry.theirs.removesuffix("weight")
            inputs = 2 if entry.ours.endswith("attention/out/kernel") else 1
            entries += [Entry(f"{base}lora_a", f"{theirs}lora_A.weight", linear(inputs), entry.stack),
                        Entry(f"{base}lora_b", f"{theirs}lora_B.weight", linear(), entry.stack)]
    return Table(tuple(entries)).places()
