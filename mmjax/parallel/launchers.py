"""Whether this process is one of several, and what `jax.distributed.initialize` must be told about it.

SLURM, Open MPI and the TPU pods of GKE (which xpk starts) leave marks in the environment that JAX reads by itself.
Every other way to start processes sets three plain variables, which JAX does not read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

PLAIN = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")


class Place(NamedTuple):
    """One process among several.

    Attributes:
        launcher: who started it, for messages.
        arguments: of `jax.distributed.initialize`; what is absent JAX finds out.
    """

    launcher: str
    arguments: dict[str, Any]


def find(env: Mapping[str, str]) -> Place | None:
    """Reads an environment; None for a process alone.

    Raises:
        ValueError: if the plain variables are incomplete or contradict each other.
    """
    for prefix in ("", "JAX_"):
        if prefix + PLAIN[0] in env:
            return _plain(env, *(prefix + name for name in PLAIN))
    several = {
        "SLURM": "SLURM_PROCID" in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1,
        "Open MPI": int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1,
        "a TPU pod": "," in env.get("TPU_WORKER_HOSTNAMES", "") or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1,
    }
    return next((Place(name, {}) for name, is_so in several.items() if is_so), None)


def _plain(env: Mapping[str, str], address: str, count: str, index: str) -> Place | None:
    missing = [name for name in (count, index) if not env.get(name)]
    if missing:
        raise ValueError(f"{address}={env[address]} is set, but not {' and '.join(missing)}; set all of {address}, "
                         f"{count} and {index}, or none for a process alone")
    try:
        num_processes, process_id = int(env[count]), int(env[index])
    except ValueError:
        num_processes = process_id = -1
    if not 0 <= process_id < num_processes:
        raise ValueError(f"{index}={env[index]} must be a number from 0 to {count}-1, with {count}={env[count]}")
    if ":" not in env[address]:
        raise ValueError(f"{address}={env[address]} must be host:port of process 0, such as 10.0.0.1:8476")
    if num_processes == 1:
        return None
    arguments = dict(coordinator_address=env[address], num_processes=num_processes, process_id=process_id)
    return Place(f"{address}, {count} and {index}", arguments | dict(cluster_detection_method="deactivate"))
