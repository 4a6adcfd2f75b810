"""What several processes of a run must have in common, checked before they start."""

import hashlib
import json
import platform
from pathlib import Path

import jax

import mmjax
from mmjax.cli import stages
from mmjax.cli.stages import Stages
from mmjax.data.state import fingerprint
from mmjax.parallel import processes
from mmjax.training.structure import leaves, require


def check_start(resolved: Stages) -> None:
    """Checks that all processes have the same config, code and devices, and nothing to do that only one can.

    Raises:
        ConfigError: if the run evaluates, which takes one process.
        Disagreement: naming the fields.
    """
    count = jax.process_count()
    for name, config in resolved:
        field = f"{name}.evals" if name else "evals"
        require(count == 1 or not config.evals,
                f"{field} cannot run in {count} processes; train with --config.{field}='()', then run "
                "mmjax evaluate --config=... --workdir=... in one process")
    facts = {f"config.{path}": value for path, value in leaves(json.loads(stages.to_json(resolved)))}
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    processes.agree(facts | {"devices": devices, "code": code_digest(), "jax": jax.__version__,
                             "python": platform.python_version()})


def check_data(resolved: Stages) -> None:
    """Checks that all processes see the same data; by tokenizer, and by names and sizes of files.

    Raises:
        Disagreement: naming the fields.
    """
    facts = {}
    for name, config in resolved:
        found = fingerprint(config.data, config.data.make_tokenizer().fingerprint(), streams=0)
        facts |= {f"{name}.data.{field}" if name else f"data.{field}": value for field, value in found.items()}
    processes.agree(facts)


def code_digest() -> str:
    """The source files of mmjax as one short number."""
    digest, root = hashlib.sha256(), Path(mmjax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
