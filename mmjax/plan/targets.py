"""What XLA has to know of a GPU that is not at hand: a GpuTargetConfigProto in text form.

The figures are those of openxla/xla, xla/backends/gpu/target_config/specs/{h100_sxm,h200,b200}.txtpb.
"""

from typing import NamedTuple


class _Gpu(NamedTuple):
    name: str
    cores: int
    clock_ghz: float
    bandwidth: int
    memory: int
    cache: int
    capability: int


GPUS = {
    "h100": _Gpu("NVIDIA H100 80GB HBM3", 132, 1.98, 3_352_320_000_000, 84_942_979_072, 52_428_800, 9),
    "h200": _Gpu("NVIDIA H200", 132, 1.98, 4_800_000_000_000, 151_397_597_184, 52_428_800, 9),
    "b200": _Gpu("NVIDIA B200", 148, 1.965, 7_672_320_000_000, 191_514_411_008, 132_644_864, 10),
}


def text(name: str) -> str:
    """The target of a GPU, a key of `GPUS`."""
    gpu = GPUS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: {gpu.cores} fpus_per_core: 128 clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache} device_memory_size: {gpu.memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: ACCELERATED_FEATURES }}
  device_address_bits: 64 device_vendor: "NVIDIA Corporation" name: "{gpu.name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{gpu.name}"
"""
