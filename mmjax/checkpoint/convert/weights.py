"""A folder of published weights: `model.safetensors`, or shards that `model.safetensors.index.json` lists.

Nothing but safetensors and JSON is ever read. A pickle, whatever its name, is recognised by its first bytes and
refused: reading one can run any program.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SINGLE = (WEIGHTS, "open_clip_model.safetensors")
MAX_JSON_BYTES = 64 << 20
_PICKLES = {b"\x80": "a pickle", b"PK": "a zip archive, as torch.save writes pickles"}
_PICKLE_NAMES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


_DTYPES = {"BF16": "bfloat16", "F16": "float16"}


class WeightsError(ValueError):
    """A folder is not one of published weights, or its files are damaged."""


class WeightFolder:
    """What a folder holds, checked: every shard's header is read, no tensor yet.

    Attributes:
        path: the folder.
        files: {file name: the names of its tensors}.
        dtype: of the last file's first tensor.

    Raises:
        WeightsError: if there is no such folder, it has no safetensors, the index and the shards disagree, or a file
            is damaged or a pickle.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder).expanduser()
        if not self.path.is_dir():
            raise WeightsError(f"{self.path} is not a folder; give the one that holds {CONFIG} and {WEIGHTS}")
        is_listed = (self.path / INDEX).is_file() and not (self.path / WEIGHTS).is_file()
        self.files = self._listed() if is_listed else self._single()
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file, names in self.files.items():
            self._check(file, names)

    @property
    def names(self) -> list[str]:
        """All tensors."""
        return [name for names in self.files.values() for name in names]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        file = next(file for file, names in self.files.items() if name in names)
        with opened(self.path / file) as tensors:
            return tensors.get_tensor(name)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor in turn. A file is opened for each anew: what was read of it does not stay in memory."""
        for file, names in self.files.items():
            for name in names:
                with opened(self.path / file) as tensors:
                    tensor = tensors.get_tensor(name)
                yield name, tensor

    def _single(self) -> dict[str, list[str]]:
        for name in SINGLE:
            if (self.path / name).is_file():
                with opened(self.path / name) as tensors:
                    return {name: list(tensors.keys())}
        found = sorted(p.name for pattern in _PICKLE_NAMES for p in self.path.glob(pattern))
        if found:
            raise WeightsError(f"{self.path} has no {WEIGHTS}, only {found[0]}: reading a pickle can run any program, "
                               "so it is refused. Save the model as safetensors where you trust it "
                               "(transformers: save_pretrained(folder, safe_serialization=True))")
        raise WeightsError(f"{self.path} has neither {WEIGHTS} nor {INDEX}; it holds {_some(os.listdir(self.path))}")

    def _listed(self) -> dict[str, list[str]]:
        where = read_json(self.path / INDEX).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
            raise WeightsError(f"{self.path / INDEX} has no weight_map from tensor names to file names")
        files: dict[str, list[str]] = {}
        for name, file in where.items():
            if file != os.path.basename(file) or file in ("", ".", ".."):
                raise WeightsError(f"{self.path / INDEX} names the file {file!r}; shards lie in the folder itself")
            files.setdefault(file, []).append(name)
        return dict(sorted(files.items()))

    def _check(self, file: str, names: list[str]) -> None:
        if not (self.path / file).is_file():
            raise WeightsError(f"{self.path / INDEX} names the shard {file}, which is not there")
        with opened(self.path / file) as tensors:
            held = set(tensors.keys())
            if missing := [name for name in names if name not in held]:
                raise WeightsError(f"{self.path / file} lacks the tensor {missing[0]!r}, which {INDEX} places there")
            self.dtype = _DTYPES.get(tensors.get_slice(names[0]).get_dtype(), "float32")
            self._shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of moderate size.

    Raises:
        WeightsError: if the file is absent, too large, or no JSON object.
    """
    if not path.is_file():
        raise WeightsError(f"{path.parent} has no {path.name}; it holds {_some(os.listdir(path.parent))}")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise WeightsError(f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def write_folder(folder: str | os.PathLike, sizes: Mapping[str, int], tensor: Callable[[str], np.ndarray],
                 files: Mapping[str, bytes], max_shard_bytes: int = 5_000_000_000, single: str = WEIGHTS) -> None:
    """Writes tensors and other files as a folder that appears when it is complete.

    Args:
        folder: to make; it must not exist, or be empty.
        sizes: bytes of each tensor, in the order of writing.
        tensor: gives a tensor by name; one shard of them is held at a time.
        files: what else the folder has, by name.
        max_shard_bytes: of tensors in a file; a larger one has a file of its own.
        single: name of the file if one is enough.

    Raises:
        WeightsError: if the folder holds anything.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} exists and is not an empty folder; choose another, or remove it")
    shards = list(_shards(sizes, max_shard_bytes))
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    try:
        where = {}
        for number, names in enumerate(shards, 1):
            file = single if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            save({name: tensor(name) for name in names}, draft / file)
            where |= dict.fromkeys(names, file)
        if len(shards) > 1:
            index = dict(metadata=dict(total_size=sum(sizes.values())), weight_map=dict(sorted(where.items())))
            (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for name, content in files.items():
            (draft / name).write_bytes(content)
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save(tensors: dict[str, np.ndarray], path: Path, **metadata: str) -> None:
    """Writes a safetensors file that whoever may read the folder can read; the library's own is for its owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    path.chmod(mode)


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    names, total = [], 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def opened(path: Path) -> Any:
    """A safetensors file to read; WeightsError if it is damaged or a pickle."""
    with open(path, "rb") as file:
        start = file.read(2)
    for magic, kind in _PICKLES.items():
        # The length of a header, with which safetensors start, may begin with the same byte.
        if start.startswith(magic) and not _is_header(path):
            raise WeightsError(f"{path} is {kind}, whatever its name: reading one can run any program. Save the model "
                               "as safetensors where you trust it")
    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}; fetch it again") from error


def _is_header(path: Path) -> bool:
    """Whether the file starts with the length of a JSON object, as safetensors do."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and int.from_bytes(start[:8], "little") < path.stat().st_size and start[8:] == b"{"


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return (", ".join(names[:limit]) + (", ..." if len(names) > limit else "")) or "nothing"
