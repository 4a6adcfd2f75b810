"""A golden: a reference module's weights, inputs and outputs in one safetensors file, readable without torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

GROUPS = ("weights", "inputs", "outputs")


class Golden(NamedTuple):
    """One run of a reference.

    Attributes:
        weights: every parameter under the reference's own name.
        inputs, outputs: what went in and what came out.
        config: the shape of the module, under the names that its case in `make_goldens.py` gives.
        about: reference, versions and seed.
    """

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    config: dict[str, Any]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        arrays = {f"{group}/{name}": np.array(a, order="C") for group in GROUPS
                  for name, a in getattr(self, group).items()}
        # One entry, because safetensors writes several in any order and the file should depend on nothing but the run.
        save_file(arrays, path, metadata={"golden": json.dumps({"config": self.config, "about": self.about})})

    @classmethod
    def load(cls, path: Path) -> "Golden":
        groups = {group: {} for group in GROUPS}
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 -- a file handle, not a dict
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
            return cls(**groups, **json.loads(file.metadata()["golden"]))
