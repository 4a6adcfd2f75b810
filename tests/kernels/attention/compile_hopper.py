"""Compiles the Hopper kernels for an H200 that is not there, and prints what the assembler says of each as JSON.

Run:     python tests/kernels/attention/compile_hopper.py FORM,HEAD_DIM,T,S,N,K ...
         where FORM is plain, rotary, xpos or soft_cap
Needs:   pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, in the version of jax
"""

import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

DUMP = Path(tempfile.mkdtemp())
os.environ.update(JAX_PLATFORMS="cpu", MOSAIC_GPU_DUMP_TO=str(DUMP), MOSAIC_GPU_DUMP_PTXAS="1", MOSAIC_GPU_DUMP_PTX="1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.topologies import get_topology_desc  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from mmjax.kernels.attention.mask import IntervalMask  # noqa: E402
from mmjax.kernels.attention.pallas_gpu import pallas_gpu  # noqa: E402
from mmjax.kernels.attention.rotary import Rotary  # noqa: E402

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_address_bits: 64 device_vendor: "NVIDIA Corporation" name: "NVIDIA H200"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200"
"""


def compile_case(mesh: Mesh, form: str, head_dim: int, t: int, s: int, n: int, k: int) -> None:
    """Forward and backward of one shape."""
    where = NamedSharding(mesh, PartitionSpec())

    def struct(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def run(q, k, v, mask, rotary, d_out):
        soft_cap = 50.0 if form == "soft_cap" else None
        call = functools.partial(pallas_gpu, mask=mask, rotary=rotary, bias=None, scale=0.1, soft_cap=soft_cap)
        out, vjp = jax.vjp(call, q, k, v)
        return out, vjp(d_out)

    queries, keys = struct(2, t, n, head_dim), struct(2, s, k, head_dim)
    q_index, k_index = struct(2, t, dtype=jnp.int32), struct(2, s, dtype=jnp.int32)
    mask = IntervalMask(q_index, q_index)
    rotary = {
        "rotary": Rotary(q_index, k_index),
        "xpos": Rotary(q_index, k_index, layout="interleaved", xpos_scale_base=512.0),
    }.get(form)
    with jax.set_mesh(mesh):
        jax.jit(run).lower(queries, keys, keys, mask, rotary, queries).compile()


def report(dump: Path) -> list[dict[str, int]]:
    """What the assembler and the compiler said of each kernel, in the order of their compilation."""
    kernels = []
    for path in sorted(dump.glob("*.ptxas"), key=lambda path: int(path.stem.split("_")[-1])):
        said, code = path.read_text(), path.with_suffix(".ptx").read_text()
        needs = path.with_name(f"{path.stem}.resources.txt").read_text()
        kernels.append({
            "registers": int(re.search(r"Used (\d+) registers", said)[1]),
            "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", said)[1]),
            "shared_bytes": int(re.search(r"smem_scratch_bytes=(\d+)", needs)[1]),
            "wgmma": code.count("wgmma.mma_async"),
            "bulk_copies": code.count("cp.async.bulk.tensor"),
        })
    return kernels


def main(cases: list[str]) -> None:
    topology = get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    seen = 0
    for case in cases:
        form, *size = case.split(",")
        compile_case(mesh, form, *map(int, size))
        kernels = report(DUMP)
        print(json.dumps({"case": case, "kernels": kernels[seen:]}), flush=True)
        seen = len(kernels)


if __name__ == "__main__":
    main(sys.argv[1:])
