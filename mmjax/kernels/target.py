"""The platform that a program is traced for, which need not be that of this process.

A step compiled ahead of time for another machine is traced under the mesh of devices that are not at hand.
"""

import jax

CAPABILITIES = {"A100": "8.0", "H100": "9.0", "H200": "9.0", "B200": "10.0"}     # of GPUs that are not at hand


def platform() -> str:
    """One of cpu, gpu and tpu: that of the current mesh's devices, or without a mesh the default of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def compute_capability() -> str | None:
    """Of the GPU that the program is for, such as "9.0"; None without a GPU, or for one that nobody knows."""
    if platform() != "gpu":
        return None
    if jax.default_backend() == "gpu":
        return getattr(jax.local_devices()[0], "compute_capability", None)
    kind = jax.sharding.get_abstract_mesh().abstract_device.device_kind
    return next((capability for name, capability in CAPABILITIES.items() if name in kind), None)
