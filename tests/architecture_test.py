"""The floors of the library: which file may import what, and how a file may not be named."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("batch", "kernels", "parallel", "layers", "losses", "parts", "models", "data", "checkpoint", "training",
          "decoding", "evals", "plan", "cli")
# (files bound by the rule, what they must not import, files it spares, imports it spares, why)
RULES = (
    ("mmjax", "flax", ("mmjax.layers", "mmjax.parts", "mmjax.models"), (), "only layers, parts and models see Flax"),
    ("mmjax", "ml_collections", ("mmjax.cli", "mmjax.training.config"), (), "only cli and training/config.py see it"),
    ("mmjax", "torch", ("mmjax.cli.compare",), (), "the core has no torch"),
    ("mmjax", "tensorflow", (), (), "the core has no TensorFlow"),
    ("mmjax.batch", "jax", (), (), "the batch contract knows no JAX"),
    ("mmjax.data", "jax", (), (), "data knows no JAX"),
    ("mmjax.data", "mmjax", (), ("mmjax.data", "mmjax.batch"), "data knows nothing of models"),
    ("mmjax.models", "mmjax.models", ("mmjax.models.__init__",), ("mmjax.models.interface",),
     "models never import each other: what two share is a part"),
    ("mmjax.training", "mmjax.models", (), ("mmjax.models.interface",), "training imports no named model"),
    ("mmjax.training", "mmjax.data", (), (), "training imports no data source"),
)
BAD_NAMES = {"util", "utils", "helper", "helpers"}


def inside(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the file, relative imports made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[:-node.level] if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """'file:line: rule' for everything in `source` that its place, `path` from the root, does not allow."""
    module = path.removesuffix(".py").replace("/", ".")
    found = [f"{path}:1: a file is named after its idea, never '{p}'" for p in module.split(".") if p in BAD_NAMES]
    floor = (*module.split("."), "")[1]
    if floor not in (*FLOORS, "__init__"):
        return [*found, f"{path}:1: mmjax.{floor} is no floor of the library; the floors are {', '.join(FLOORS)}"]
    for line, name in imports(ast.parse(source), module):
        where = f"{path}:{line}: imports {name}, but"
        other = (*name.split("."), "")[1] if inside(name, "mmjax") else ""
        if other in FLOORS and (floor == "__init__" or FLOORS.index(other) > FLOORS.index(floor)):
            found.append(f"{where} {other} lies above {floor}; a file imports its own floor and lower ones")
        for who, what, spared_files, spared_imports, why in RULES:
            bound = inside(module, who) and not inside(module, *spared_files)
            if bound and inside(name, what) and not inside(name, *spared_imports):
                found.append(f"{where} {why}")
    return found


def test_every_file_keeps_to_its_floor():
    files = sorted(ROOT.glob("mmjax/**/*.py"))
    assert len(files) > 20
    found = [v for f in files for v in violations(str(f.relative_to(ROOT)), f.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["tests", "experiments", "data_pipelines"])
def test_no_file_is_named_utils(folder):
    assert not [f for f in ROOT.glob(f"{folder}/**/*.py") if BAD_NAMES & set(f.relative_to(ROOT).with_suffix("").parts)]


@pytest.mark.parametrize("path, source, line, words", [
    ("mmjax/kernels/a.py", "import jax\nfrom mmjax.parallel import shard", 2, "parallel lies above kernels"),
    ("mmjax/batch.py", "from mmjax import data", 1, "data lies above batch"),
    ("mmjax/__init__.py", "from mmjax.models import build", 1, "models lies above __init__"),
    ("mmjax/kernels/a.py", "def f():\n    import flax.linen", 2, "see Flax"),
    ("mmjax/parallel/mesh.py", "import ml_collections", 1, "only cli and training/config.py"),
    ("mmjax/data/loader.py", "\nimport jax.numpy as jnp", 2, "data knows no JAX"),
    ("mmjax/data/loader.py", "from mmjax.parallel import shard", 1, "data knows nothing of models"),
    ("mmjax/models/blip2.py", "from . import flamingo", 1, "never import each other"),
    ("mmjax/models/blip2.py", "from mmjax.training import loop", 1, "training lies above models"),
    ("mmjax/training/loop.py", "from mmjax.models import build", 1, "no named model"),
    ("mmjax/training/loop.py", "from ..data import documents", 1, "no data source"),
    ("mmjax/checkpoint/convert.py", "import torch", 1, "no torch"),
    ("mmjax/parts/utils.py", "", 1, "never 'utils'"),
    ("mmjax/misc/a.py", "", 1, "no floor"),
])
def test_a_broken_rule_is_named_with_file_and_line(path, source, line, words):
    (found,) = violations(path, source)
    assert found.startswith(f"{path}:{line}: ") and words in found


def test_what_the_rules_spare_is_allowed():
    assert not violations("mmjax/models/__init__.py", "from mmjax.models.flamingo import Flamingo\nimport flax")
    assert not violations("mmjax/models/clip.py", "from mmjax.models.interface import Model\nimport mmjax.parts.vit")
    assert not violations("mmjax/training/config.py", "import ml_collections\nimport jax, numpy")
    assert not violations("mmjax/data/first_light/pages.py", "from . import glyphs\nfrom mmjax.batch import Batch")
