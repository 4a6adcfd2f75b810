"""Machines that need not be at hand: their devices for the compiler, and what joins them."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from mmjax.parallel.chips import CHIPS, Chip
from mmjax.plan import targets
from mmjax.training.structure import ConfigError, choices

EXAMPLES = {"v4": "v4:8x12x16", "v5e": "v5e:16x16", "v5p": "v5p:8x8x16", "v6e": "v6e:16x16", "v7x": "v7x:4x4x8",
            "h100": "h100:8x32", "h200": "h200:8x16", "b200": "b200:8x16", "cpu": "cpu:8"}
_CPU = Chip("cpu", 0.5e12, 64 * 2**30, 40e9, 10e9, 10e9, 1, "rough figures of two cores")
# libtpu asks the network for the machine it is on, unless these say so.
_TPU_ENVIRONMENT = dict(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost",
                        TPU_WORKER_ID="0", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_MIN_LOG_LEVEL="3",
                        TPU_STDERR_LOG_LEVEL="3")


class Machine(NamedTuple):
    """Devices, and the chip they are of.

    Attributes:
        name: as the user gave it.
        chip: what one device can do.
        devices: to make a mesh of.
        dims: chips along each side of a slice of TPUs; GPUs of a host and hosts.
        slices: of TPUs, joined by the data centre's network.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    dims: tuple[int, ...]
    slices: int = 1

    @property
    def platform(self) -> str:
        return self.devices[0].platform

    def bandwidth(self, group: Sequence[int]) -> float:
        """Bytes a second that one device sends when these of `devices` exchange in a ring.

        A ring within a slice of TPUs uses both links along every side of the torus that it goes round as a whole, and
        one along a part. GPUs of one host have NVLink, those of several the network cards of all that take part.
        """
        chip = self.chip
        if self.platform == "gpu":
            hosts = {i // self.dims[0] for i in group}
            return chip.link if len(hosts) == 1 else min(chip.link, chip.network * len(group) / len(hosts))
        if self.platform != "tpu":
            return chip.link
        devices = [self.devices[i] for i in group]
        slices = {getattr(d, "slice_index", 0) for d in devices}
        if len(slices) > 1:
            return chip.network * len(devices) / len(slices)
        coordinates = np.array([d.coords for d in devices]).T
        links = [2 if len(set(along)) == size and self._is_ring(size) else 1
                 for along, size in zip(coordinates, self.dims, strict=False) if len(set(along)) > 1]
        return chip.link * max(sum(links), 1)

    def _is_ring(self, size: int) -> bool:
        """Whether the last chip along a side is wired to the first."""
        if len(self.dims) == 2:
            return size == 16
        return all(side % 4 == 0 for side in self.dims)


def find(text: str) -> Machine:
    """The machine of a topology such as "v5p:8x8x16", "v5e:16x16*2" (two slices), "h100:8x32" (hosts of 8 GPUs).

    Raises:
        ConfigError: for a name that is not known, or sizes that no such machine has.
        ImportError: if the compiler for it is not installed; the message names the extra.
    """
    known = ", ".join(EXAMPLES.values())
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})(?:\*(\d+))?", text)
    if found is None or found[1] not in EXAMPLES:
        hint = choices(text.partition(":")[0], EXAMPLES) if found else "a topology is a name and sizes"
        raise ConfigError(f"unknown topology {text!r}; {hint} (such as {known})")
    name, dims, slices = found[1], tuple(int(d) for d in found[2].split("x")), int(found[3] or 1)
    if name == "cpu":
        return Machine(text, _CPU, _some(jax.devices("cpu"), math.prod(dims), text), dims)
    if name in targets.GPUS:
        return Machine(text, CHIPS[name], _gpus(name, dims, text), dims)
    return Machine(text, CHIPS[name], _tpus(name, dims, slices, text), dims, slices)


def check_dcn(machine: Machine, dcn: Mapping[str, int]) -> None:
    """Checks that a config's `dcn` cuts its mesh where the machine has its slower network.

    Raises:
        ConfigError: if it has another number of parts than there are slices of TPUs, or hosts of GPUs.
    """
    asked, count, what = math.prod(dcn.values()), machine.slices, "slice" if machine.platform == "tpu" else "host"
    if machine.platform == "gpu":
        count = len(machine.devices) // machine.dims[0]
    if asked == count or asked == 1 and machine.platform == "gpu":      # NVLink or not, GPUs see one network
        return
    wanted = f"set dcn so that its sizes multiply to {count}, such as dcn.data={count}" if count > 1 else "leave it out"
    raise ConfigError(f"dcn={dict(dcn)} cuts the mesh into {asked} parts, but {machine.name} has "
                      f"{count} {what}{'s' if count > 1 else ''}; {wanted}, or take another topology")


def _some(devices: Sequence[Any], count: int, text: str) -> Sequence[Any]:
    if len(devices) < count:
        raise ConfigError(f"topology {text} wants {count} devices and this process has {len(devices)}; start it with "
                          f"XLA_FLAGS=--xla_force_host_platform_device_count={count}")
    return devices[:count]


def _tpus(name: str, dims: tuple[int, ...], slices: int, text: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(f"to plan for {text}, install the compiler for TPUs: pip install 'mmjax[tpu]'")
    for variable, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = dict(num_slices=slices) if slices > 1 else {}
    if name == "v4":
        options["chip_config_name"] = "megacore"        # both cores of a chip as one device, as JAX has it
    if math.prod(dims) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    xla_name = f"{'tpu7x' if name == 'v7x' else name}:{'x'.join(map(str, dims))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=xla_name, **options).devices
    except Exception as error:
        sides = 2 if name in ("v5e", "v6e") else 3
        raise ConfigError(f"there is no machine {text}: {str(error).splitlines()[0]}; {name} has {sides} sides, for "
                          f"example {EXAMPLES[name]}") from error


def _gpus(name: str, dims: tuple[int, ...], text: str) -> Sequence[Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ImportError(f"to plan for {text}, install the compiler for NVIDIA GPUs: pip install 'mmjax[cuda]'")
    if len(dims) > 2:
        raise ConfigError(f"topology {text} must be GPUs of a host x hosts, for example {EXAMPLES[name]}")
    per_host, hosts = dims[0], dims[1] if len(dims) == 2 else 1
    return topologies.get_topology_desc(platform="cuda", target_config=targets.text(name),
                                        topology=f"1x{hosts}x{per_host}").devices
