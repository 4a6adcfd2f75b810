"""`mmjax doctor`: what this machine has, and whether it computes."""

import collections
import importlib.metadata
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mmjax
from mmjax.cli import arguments
from mmjax.kernels.attention import attention
from mmjax.kernels.attention import mask as masks
from mmjax.parallel import batch_sharding, make_mesh

LEAST_FREE_GB = 5
PLUGINS = {"jax[tpu]": "libtpu", "jax[cuda13]": "jax-cuda13-plugin"}    # what an extra of jax stands for


def run(argv: Sequence[str]) -> int:
    """Prints the report; 1 if something that every run needs is missing or wrong."""
    parser = arguments.make_parser("doctor", "Check this machine: versions, devices, extras, disk space, and a small "
                                   "computation.")
    parser.add_argument("--workdir", type=Path, default=Path(), help="where runs will be written; here by default")
    args = arguments.parse(parser, argv)
    (_, core), *extras = requirements().items()
    problems = [f"{name} is missing; reinstall mmjax" for name in core if not version(name)]
    print(f"python     {platform.python_version()}  {sys.executable}  {platform.platform()}")
    print(f"mmjax      {mmjax.__version__}  {Path(mmjax.__file__).parent}")
    print("packages   " + ", ".join(f"{name} {version(name)}" for name in core if version(name)))
    for extra, names in extras:
        print(f"extra      {extra.ljust(11)}{extra_text(extra, names)}")
    checks = {"devices": check_devices, "disk": lambda: check_disk(args.workdir), "attention": check_attention,
              "mesh": check_mesh}
    for title, check in checks.items():
        try:
            print(f"{title.ljust(10)} {check()}")
        except Exception as error:      # whatever is broken, the report gets to its end
            problems.append(f"{title}: {error}")
    for problem in problems:
        print(f"PROBLEM    {problem}")
    return 1 if problems else 0


def requirements() -> dict[str, list[str]]:
    """Extra ("" for the core, which comes first) -> packages, from the installed mmjax's own metadata."""
    found = collections.defaultdict(list, {"": []})
    for text in importlib.metadata.requires("mmjax") or ():
        extra = re.search(r"extra == ['\"](\w+)['\"]", text)
        name = re.match(r"[\w.-]+(\[\w+\])?", text)[0]
        found[extra[1] if extra else ""].append(PLUGINS.get(name, name))
    return dict(found)


def version(package: str) -> str | None:
    """Its installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def extra_text(extra: str, names: Iterable[str]) -> str:
    """What is installed of an extra, and how to get the rest."""
    missing = [name for name in names if not version(name)]
    if missing:
        return f"lacks {', '.join(missing)}: pip install 'mmjax[{extra}]'"
    return ", ".join(f"{name} {version(name)}" for name in names)


def check_devices() -> str:
    """'8 x TPU v5 lite, platform tpu, 15.7 GiB each, in 1 process'."""
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    memory = f"{stats['bytes_limit'] / 2**30:.1f} GiB each, " if "bytes_limit" in stats else ""
    return (f"{len(devices)} x {devices[0].device_kind}, platform {devices[0].platform}, {memory}"
            f"in {jax.process_count()} process(es)")


def check_disk(folder: Path) -> str:
    """Free space where `folder` is or will be; ValueError if it is too little for checkpoints."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < LEAST_FREE_GB:
        raise ValueError(f"{free:.1f} GB free at {folder}, less than {LEAST_FREE_GB}; free some or choose another disk")
    return f"{free:.0f} GB free at {folder}"


def check_attention() -> str:
    """Compiles causal attention on the first device and compares it with NumPy; ValueError if they differ."""
    b, t, n, h = 2, 16, 2, 8
    q, k, v = (np.asarray(jax.random.normal(key, (b, t, n, h))) for key in jax.random.split(jax.random.key(0), 3))
    begin = time.perf_counter()
    mask = masks.causal(jnp.ones((b, t), jnp.int32))
    with jax.default_matmul_precision("float32"):
        got = np.asarray(jax.jit(attention)(q, k, v, mask=mask))
    seconds = time.perf_counter() - begin
    logits = np.where(np.tri(t, dtype=bool), np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(h), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    want = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    difference = float(np.abs(got - want).max())
    if not difference < 1e-4:
        raise ValueError(f"attention differs from NumPy by {difference:.1e}; the limit is 1e-4")
    return f"compiled and ran in {seconds:.1f} s, differs from NumPy by {difference:.0e}"


def check_mesh() -> str:
    """Sums an array that lies over all devices; ValueError if the sum is wrong."""
    mesh = make_mesh({"data": -1})
    count = mesh.size
    x = jax.device_put(np.arange(count, dtype=np.int32), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        total = int(jax.jit(jnp.sum)(x))
    if total != count * (count - 1) // 2:
        raise ValueError(f"the sum of 0..{count - 1} over {count} devices is {total}")
    return f"a sum over {count} device(s) is right"
