"""Compiles a kernel for a TPU that is not there, and prints what the compiler says of it as JSON.

    python compile_tpu.py v5e:2x2 grouped_matmul

libtpu may be loaded by one process only unless told otherwise, and never by one whose platform is another: so tests
run this in a process of its own.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(
    JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", JAX_OPTIMIZATION_LEVEL="O0", TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0",
    TPU_MIN_LOG_LEVEL="3", TPU_STDERR_LOG_LEVEL="3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402


def grouped_matmul():
    """Forward and backward pass; needs the operations of its three products."""
    from mmjax.kernels.grouped_matmul import grouped_matmul

    m, d, f, g = 1024, 256, 512, 8

    def run(x, kernels, sizes, d_out):
        out, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation="ragged"), x, kernels)
        return out, vjp(d_out)

    shapes = ((m, d), jnp.bfloat16), ((g, d, f), jnp.bfloat16), ((g,), jnp.int32), ((m, f), jnp.bfloat16)
    return run, shapes, 3 * 2 * m * d * f


def decode():
    """A token for 8 rows of a layer of a cache whose length is no multiple of a block; needs the cache's bytes."""
    from mmjax.kernels.attention import IntervalMask
    from mmjax.kernels.decode import cached_attention

    layers, b, n, kv, h, s = 2, 8, 16, 4, 96, 1000

    def run(q, k, v, layer, start, stop):
        mask = IntervalMask(start, stop)
        return cached_attention(q, k, v, layer, mask=mask, soft_cap=30.0, implementation="pallas_tpu")

    cache, bound = ((layers, b, s, kv * h), jnp.bfloat16), ((b, 1), jnp.int32)
    return run, (((b, n, h), jnp.bfloat16), cache, cache, ((), jnp.int32), bound, bound), 4 * layers * b * s * kv * h


def main(topology: str, case: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,))
    run, shapes, needed = globals()[case]()
    args = [jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(mesh, P())) for shape in shapes]
    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(*args).compile()
    text = compiled.as_text()
    print(json.dumps(dict(
        flops=compiled.cost_analysis()["flops"], needed=needed, kernels=text.count("tpu_custom_call"),
        temp=compiled.memory_analysis().temp_size_in_bytes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
