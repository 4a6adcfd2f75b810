"""What one accelerator can do: the denominators of utilisation and of a roofline."""

from typing import NamedTuple

GB, GIB, TERA = 1e9, 2**30, 1e12


class Chip(NamedTuple):
    """One JAX device of an accelerator.

    Attributes:
        kind: what JAX calls it, or how that begins.
        flops: products and sums a second in bfloat16, dense.
        memory: bytes of high-bandwidth memory that a program may have.
        bandwidth: its bytes a second.
        link: bytes a second one way along one link to a neighbour (TPU), or to all GPUs of the machine together.
        network: bytes a second one way beyond the slice (TPU) or the machine (GPU).
        devices: JAX devices that share the chip; the figures are those of one.
        source: where the figures are from.
    """

    kind: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    devices: int
    source: str


_TPU = "cloud.google.com/tpu/docs, system architecture of each generation; DCN 25 GB/s a host (jax-ml/scaling-book)"
_GPU = "NVIDIA data sheet (dense, SXM), memory as in openxla/xla target_config/specs; 400 Gb/s network card per GPU"
# Memory: on TPUs what libtpu leaves a program of the chip's 32, 16, 95, 32 and 192 GiB. v7x has two devices a chip.
CHIPS = {
    "v4": Chip("TPU v4", 275 * TERA, 30.75 * GIB, 1228 * GB, 50 * GB, 6.25 * GB, 1, _TPU),
    "v5e": Chip("TPU v5 lite", 197 * TERA, 15.75 * GIB, 819 * GB, 50 * GB, 3.125 * GB, 1, _TPU),
    "v5p": Chip("TPU v5", 459 * TERA, 95 * GIB, 2765 * GB, 100 * GB, 6.25 * GB, 1, _TPU),
    "v6e": Chip("TPU v6 lite", 918 * TERA, 31.25 * GIB, 1638 * GB, 100 * GB, 6.25 * GB, 1, _TPU),
    "v7x": Chip("TPU7x", 2307 * TERA / 2, 94.75 * GIB, 7380 * GB / 2, 50 * GB, 3.125 * GB, 2, _TPU),
    "h100": Chip("NVIDIA H100", 989 * TERA, 84_942_979_072, 3350 * GB, 450 * GB, 50 * GB, 1, _GPU),
    "h200": Chip("NVIDIA H200", 989 * TERA, 151_397_597_184, 4800 * GB, 450 * GB, 50 * GB, 1, _GPU),
    "b200": Chip("NVIDIA B200", 2250 * TERA, 191_514_411_008, 8000 * GB, 900 * GB, 50 * GB, 1, _GPU),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None if it is not in the table."""
    fitting = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
