"""What the TPU compiler makes of the attention kernels, beside JAX's splash attention: no TPU is needed, only libtpu.

Run:     python experiments/benchmarks/attention_tpu_static.py --out=experiments/benchmarks/attention_tpu_static.json
Prints:  a row per (system, generation, kernel): VLIW bundles of one visit to a tile and head, share of the matrix
         unit's slots they use, spill stores, visited over visible pairs, bundles per 1,000 visible pairs, and the
         on-chip vector memory of the kernel.

That memory is all that the compiler lays out at once for the kernel: both buffers of every block, scratch, spills. Not
in it are operands of a few KB (bounds, positions) that XLA places on chip as a whole.

Bundles are those of the compiler's final schedule of the tile's own code, for a fixed libtpu; waiting for memory, the
steps of the grid and what is done once a block (ours: rotary) are not in them. Splash attention, which has no rotary,
is given blocks of 512 and the mask it can express: causal with segment ids for packed documents, segment ids of the
images for cross-attention, whose keys it needs as a multiple of 128.
"""

import argparse
import glob
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

DUMP = tempfile.mkdtemp()
os.environ |= dict(
    JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0", TPU_MIN_LOG_LEVEL="3", TPU_STDERR_LOG_LEVEL="3",
    LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from mmjax.kernels.attention import IntervalMask, Rotary, pallas_tpu, tiles  # noqa: E402
from mmjax.kernels.attention import mask as masks  # noqa: E402

TOPOLOGIES = {
    "v4": dict(topology_name="v4:2x2x1", chip_config_name="megacore"),
    "v5e": dict(topology_name="v5e:2x4"),
    "v5p": dict(topology_name="v5p:2x2x1"),
    "v6e": dict(topology_name="v6e:2x4"),
    "tpu7x": dict(topology_name="tpu7x:2x2x1"),
}
UNITS = ["MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU"]
NUM_HEADS = 256     # tiles do not depend on it; with few, XLA keeps whole operands on chip beside the kernel


def packed(*lengths):
    """Four documents of a row of 2,048 tokens."""
    return masks.causal(np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32))


def images(number):
    return masks.per_image((np.arange(2048, dtype=np.int32) * number // 2048)[None], 64)


# system and mask -> mask, S, H, xPos scale base or None
ROWS = {
    "kosmos1-dense": (packed(2048), 2048, 64, 512.0),
    "kosmos1-packed": (packed(700, 300, 600, 448), 2048, 64, 512.0),
    "flamingo80b-5-images": (images(5), 320, 128, None),
    "flamingo80b-30-frames": (images(30), 1920, 128, None),
    "mm1-30b-packed (shape ours)": (packed(700, 300, 600, 448), 2048, 128, None),
    "emu2-dense": (packed(2048), 2048, 128, None),
    "emu2-packed": (packed(700, 300, 600, 448), 2048, 128, None),
}


def compile_for(generation: str, run, *args) -> None:
    """Compiles the forward and backward pass; an error if it does not fit."""
    devices = topologies.get_topology_desc(platform="tpu", **TOPOLOGIES[generation]).devices
    sharding = NamedSharding(Mesh(np.array(devices[:1]), "x"), P())

    def passes(q, k, v, d_out, *rest):
        out, vjp = jax.vjp(lambda q, k, v: run(q, k, v, *rest), q, k, v)
        return out, vjp(d_out)

    args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in args]
    jax.jit(passes).trace(*args).lower(lowering_platforms=("tpu",)).compile()


def schedules(kernel: str) -> dict[str, tuple[int, list[dict]]]:
    """Name of each dumped kernel -> bytes of vector memory, and its straight pieces of code that multiply matrices.

    Of a piece the bundles, and the uses of each unit.
    """
    found = {}
    for path in sorted(glob.glob(f"{DUMP}/*{kernel}*final_hlo-static-per-bundle-utilization.txt")):
        name = re.search(rf"-({kernel}\w*)", path)[1]
        lines = [line.split() for line in _lines(path) if re.match(r"[\d ]+$", line)]
        uses = np.array(lines[1:], int)     # the first line is the capacity
        stem = re.sub(r"\d+-final_hlo-static.*", "", path)
        (bundles,) = (p for p in glob.glob(glob.escape(stem) + "*-final_bundles.txt") if "schedule" not in p)
        cuts = {0, len(uses)}
        for line in _lines(bundles):
            if mark := re.match(r"\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?:?[ >]*", line):
                cuts |= {int(mark[1], 0)} if mark[2] else set()
                cuts |= {int(mark[1], 0) + 5} if "sbr.rel" in line else set()   # a jump has four more bundles
        cuts = sorted(c for c in cuts if c <= len(uses))
        pieces = [uses[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        (layout,) = glob.glob(glob.escape(stem) + "*-post-bundle-packing-post-ra.txt")
        placed = re.findall(r"space=vmem, size = (\w+), offset = (\w+)", pathlib.Path(layout).read_text())
        found[name] = max(int(size, 0) + int(offset, 0) for size, offset in placed), [
            dict(bundles=len(x), **dict(zip(UNITS, x.sum(0).tolist(), strict=True)))
            for x in pieces if len(x) and x[:, 0].sum() > len(x) / 4]
    shutil.rmtree(DUMP)
    os.makedirs(DUMP)
    return found


def _lines(path: str) -> list[str]:
    return pathlib.Path(path).read_text().splitlines()


def ours(generation, mask, num_keys, head_dim, xpos):
    q, k = (jax.ShapeDtypeStruct((1, n, NUM_HEADS, head_dim), jnp.bfloat16) for n in (2048, num_keys))
    bound, keys = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (2048, num_keys))

    def run(q, k, v, start, stop, q_positions, k_positions):
        rotary = Rotary(q_positions, k_positions, layout="interleaved" if xpos else "split", xpos_scale_base=xpos)
        return pallas_tpu.pallas_tpu(q, k, v, mask=IntervalMask(start, stop), rotary=rotary, bias=None, scale=0.1,
                                     soft_cap=None)

    compile_for(generation, run, q, k, k, q, bound, bound, bound, keys)
    for name, (vmem, pieces) in schedules("attention").items():
        form = pallas_tpu.plan(q, k, is_backward="backward" in name)
        visible, full = tiles.tiles(mask, num_keys, form.block_queries, form.block_keys)
        counts = int((visible & full).sum()), int((visible & ~full).sum())
        whole, part = pieces    # without and with a mask, in the order of the code
        yield name, vmem, [(n, piece) for n, piece in zip(counts, (whole, part), strict=True)], form.heads, \
            form.block_queries * form.block_keys * sum(counts)


def splashed(generation, mask, num_keys, head_dim, xpos):
    num_keys, causal = -(-num_keys // 128) * 128, num_keys == 2048
    size = 512 if num_keys % 512 == 0 else num_keys if num_keys < 512 else 384
    sizes = splash.BlockSizes(**{f"block_{x}": 512 for x in ("q", "q_dkv", "q_dq")}, **{
        f"block_kv{x}": size for x in ("", "_compute", "_dkv", "_dkv_compute", "_dq")})
    shape = 2048, num_keys
    one = splash_mask.CausalMask(shape) if causal else splash_mask.FullMask(shape)
    kernel = splash.make_splash_mha(mask=splash_mask.MultiHeadMask([one] * NUM_HEADS), head_shards=1, q_seq_shards=1,
                                    block_sizes=sizes)
    q, k = (jax.ShapeDtypeStruct((NUM_HEADS, n, head_dim), jnp.bfloat16) for n in shape)
    q_ids, k_ids = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in shape)

    def run(q, k, v, q_ids, k_ids):
        return kernel(q, k, v, segment_ids=splash.SegmentIds(q_ids, k_ids))

    compile_for(generation, run, q, k, k, q, q_ids, k_ids)
    i, j = np.indices((4, num_keys // size))
    visits = int((j * size <= i * 512 + 511).sum()) if causal else i.size
    for name, (vmem, pieces) in schedules("splash").items():
        yield name, vmem, [(visits, pieces[0])], 1, visits * 512 * size


def measure(generation: str, row: str, peer) -> list[dict]:
    mask, num_keys, head_dim, xpos = ROWS[row]
    pairs = int(np.asarray(masks.to_dense(mask, num_keys)).sum())
    records = []
    for name, vmem, visits, heads, visited in peer(generation, mask, num_keys, head_dim, xpos):
        bundles = sum(n * piece["bundles"] for n, piece in visits) / heads
        uses = sum(n * piece["MXU"] for n, piece in visits) / heads
        records.append(dict(
            row=row, generation=generation, kernel=name, visited_over_visible=round(visited / pairs, 3),
            bundles_per_visit=[round(piece["bundles"] / heads) for _, piece in visits],
            spills_per_visit=[round(piece["SPILL"] / heads) for _, piece in visits],
            mxu=round(uses / bundles / (4 if generation in ("v4", "v5e", "v5p") else 2), 3),
            bundles_per_1000_pairs=round(1000 * bundles / pairs, 3), vmem_bytes=vmem))
        print(json.dumps(records[-1]), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", nargs="+", choices=TOPOLOGIES, default=["v5e", "v6e"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--peers", nargs="+", choices=["ours", "splash"], default=["ours", "splash"])
    parser.add_argument("--out", help="file of all rows, as JSON")
    args = parser.parse_args()
    peers = dict(ours=ours, splash=splashed)
    records = [r for g in args.generations for row in args.rows for p in args.peers for r in measure(g, row, peers[p])]
    if args.out:
        versions = dict(jax=jax.__version__, python=sys.version.split()[0])
        with open(args.out, "w") as file:
            json.dump(dict(versions=versions, records=records), file, indent=1)
    shutil.rmtree(DUMP)


if __name__ == "__main__":
    main()
