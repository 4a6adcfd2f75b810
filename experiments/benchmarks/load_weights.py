"""Reads a LLaMA of random bfloat16 weights, cut in shards, onto 8 virtual devices: seconds, and peak memory.

    python experiments/benchmarks/load_weights.py                  # 7B in 20 shards; writes 13.5 GB to --folder
    python experiments/benchmarks/load_weights.py --layers 4       # a quick try

On a CPU the arrays themselves lie in the memory of the host. What the reading adds to them is to be at most 1.3 times a
shard. The weights are written once and left in the folder.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

SHARDS = 20
CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=32_000, hidden_size=4096,
              intermediate_size=11_008, num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=2048,
              rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("data_cache/llama_random"))
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.folder)
    if not args.folder.exists():
        write(args.folder, args.layers)
    flags = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8")
    command = [sys.executable, __file__, "--measure", "--folder", str(args.folder)]
    result = subprocess.run(command, env=flags, check=True, capture_output=True, text=True).stdout
    print(result, end="")
    if args.out:
        args.out.write_text(result)


def write(folder: Path, layers: int):
    """A folder as published, with weights that are cheap to draw."""
    import ml_dtypes
    import numpy as np

    from mmjax.checkpoint.convert import formats, pretrained
    from mmjax.checkpoint.convert.weights import write_folder

    published = CONFIG | dict(num_hidden_layers=layers)
    config = formats.FORMATS["llama"].config.read(published)
    table = formats.FORMATS["llama"].table(config)
    from mmjax.checkpoint.paths import flatten
    shapes = {path: x.shape for path, x in flatten(pretrained.template(config)[0]).items()}

    def shape(name: str) -> tuple[int, ...]:
        place = table.places()[name]
        inner = [np.broadcast_to(np.int8(0), shapes[path][len(place.index):]) for path in place.entry.paths]
        return place.entry.form.store(inner).shape

    names = list(table.places())
    sizes = {name: 2 * int(np.prod(shape(name))) for name in names}
    noise = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)

    def tensor(name: str) -> np.ndarray:
        return np.resize(noise, shape(name))

    write_folder(folder, sizes, tensor, {"config.json": json.dumps(published).encode()},
                 max_shard_bytes=sum(sizes.values()) // (SHARDS - 1))


def measure(folder: Path):
    """Reads the folder in this process and prints the figures."""
    import jax

    from mmjax.checkpoint.convert.pretrained import from_pretrained
    from mmjax.parallel import make_mesh

    mesh = make_mesh({"fsdp": 4, "model": 2})
    jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
    before, start = _resident(), time.perf_counter()
    anonymous = Peak()
    params = jax.block_until_ready(from_pretrained(folder, "bfloat16", mesh).params)
    seconds = time.perf_counter() - start
    arrays = sum(x.nbytes for x in jax.tree.leaves(params))
    shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    more = peak - before - arrays
    print(json.dumps(dict(
        parameters=sum(x.size for x in jax.tree.leaves(params)), shards=len(shards), largest_shard=max(shards),
        arrays=arrays, peak=peak, before=before, more_than_arrays=more, in_shards=round(more / max(shards), 2),
        peak_without_file_pages=anonymous.stop(), seconds=round(seconds, 1), cpus=os.cpu_count()), indent=2))


def _resident(field: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


class Peak:
    """The most memory that is not a page of a file, looked at every 50 ms."""

    def __init__(self):
        self._done, self._most = threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._done.wait(0.05):
            self._most = max(self._most, _resident("RssAnon"))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._most


if __name__ == "__main__":
    main()
