"""Attention of the seven systems, and of plain lengths, against every peer that is installed; on any platform.

Run:     python experiments/benchmarks/attention.py
Expect:  results/attention_cpu.json has a CPU; on GPUs and TPUs it has not run yet.

Every row runs forward, and forward and backward. A contestant is compiled, its results are compared with the float32
reference, and only then it is timed: a, b, c, a, b, c, ..., medians. FLOP/s count visible query-key pairs only (two
products forward, five more backward); the peak is that of a matrix product measured in the same run. Contestants
without rotary of their own get queries and keys turned outside, inside the timed region. On a CPU, JAX's contestants
run with one device and XLA's threads, and with one device per core and the heads split; on the others on one device.
Block masks of FlexAttention are made before the clock starts. Memory is that of temporaries, where it is known.

The JSON is written after every row. Where time is limited: --rows for a part, then --add for the next.
"""

import argparse
import contextlib
import os
import pathlib
import re
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # runs from a clone that is not installed

import jax  # noqa: E402
import numpy as np  # noqa: E402

TOLERANCES = {"float32": (2e-5, 5e-5), "bfloat16": (2e-2, 3e-2)}  # relative error in the 2-norm: forward, gradients


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", nargs="+", default=["systems", "lengths", "lengths128"], metavar="GRID",
                        help="systems, lengths (T = 512 to 16,384, head_dim 64), lengths128; all by default")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--peers", default="", metavar="REGEX", help="only contestants whose name matches")
    parser.add_argument("--passes", nargs="+", choices=["forward", "both"], default=["forward", "both"],
                        help="forward alone; forward and backward")
    parser.add_argument("--scale", type=float,
                        help="factor of batch and heads; lengths and masks stay. Default 1, on a CPU 1/16")
    parser.add_argument("--dtype", choices=sorted(TOLERANCES), help="default bfloat16, on a CPU float32")
    parser.add_argument("--seconds", type=float, default=4.0,
                        help="of timing per row and pass, all contestants together; at least 3 repeats, 2 of long ones")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="cores on a CPU: PyTorch's threads and JAX's devices")
    parser.add_argument("--realtime", action="store_true",
                        help="real-time priority while the clock runs, for a machine that others use (Linux, root)")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; the plot goes beside it. "
                        "Default results/attention_PLATFORM.json beside this file")
    parser.add_argument("--add", action="store_true", help="keep the rows that the JSON file already has")
    return parser.parse_args()


def main() -> None:
    args, command = parse(), " ".join(sys.argv)
    del sys.argv[1:]  # tokamax would read them
    jax.config.update("jax_num_cpu_devices", args.threads)
    import attention_jax
    import attention_report as report
    from attention_rows import GRIDS

    peers, extra_versions, matmuls = attention_jax.peers(), {}, [_jax_matmul]
    try:
        import attention_torch
        import torch
        torch.set_num_threads(args.threads)
        peers += attention_torch.peers()
        extra_versions = attention_torch.versions()
        matmuls.append(attention_torch.matmul)
    except ImportError as error:
        print(f"without PyTorch: {error}")

    platform = jax.default_backend()
    on_cpu = platform == "cpu"
    scale = args.scale or (1 / 16 if on_cpu else 1.0)
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    out = args.out or HERE / "results" / f"attention_{platform}.json"
    rows = [row.scaled(scale) for grid in args.grid for row in GRIDS[grid] if re.search(args.rows, row.name)]
    peers = [peer for peer in peers if re.search(args.peers, peer.name)]
    priority = realtime if args.realtime else contextlib.nullcontext
    with priority():
        peak = max(_rate(make, 2048 if on_cpu else 8192, dtype) for make in matmuls)
    result = dict(report.machine(platform, args.threads), **extra_versions, dtype=dtype, scale=scale,
                  peak_flops=peak, rows=report.load(out)["rows"] if args.add and out.exists() else [])
    print(f"{result['machine']}, {dtype}, scale {scale:g}; matrix product: {peak / 1e12:.2f} TFLOP/s\n")
    for row in rows:
        arrays = row.inputs()
        for backward in (name == "both" for name in args.passes):
            record = race(row, arrays, dtype, backward, peers, args.seconds, priority)
            for entry in record["contestants"].values():
                if "seconds" in entry:
                    entry["flops"] = record["flops"] / entry["seconds"]
                    entry["share_of_peak"] = entry["flops"] / peak
            record["command"] = command
            result["rows"] = [r for r in result["rows"] if (r["name"], r["pass"]) != (record["name"], record["pass"])]
            result["rows"].append(record)
            report.show(record)
            report.save(result, out)
    report.plot(result, out.with_suffix(".png"))
    report.summarise(result)
    print(f"wrote {out} and {out.with_suffix('.png').name}")


def race(row, arrays, dtype: str, backward: bool, peers: list, seconds: float, priority) -> dict:
    """Times every contestant that computes the row; the others get the reason why not."""
    import attention_jax

    expected = attention_jax.expected(row, arrays, dtype, backward)
    entries, ready = {}, {}
    for peer in peers:
        entry = entries[peer.name] = dict(library=peer.library)
        try:
            one = peer.prepare(row, arrays, dtype, backward, limit=_free_bytes())
            got = attention_jax.visible_part(row, one.arrays(one.wait(one.call())))
            entry["errors"] = [_error(*pair) for pair in zip(got, expected, strict=True)]
            worst = [error / TOLERANCES[dtype][i > 0] for i, error in enumerate(entry["errors"])]
            if not max(worst) <= 1:
                raise attention_jax.Refused(f"computes something else: relative errors {entry['errors']}")
            entry["temporary_bytes"] = one.temporary_bytes
            ready[peer.name] = one
        except Exception as error:  # whatever it is, the others run
            text = str(error).strip() or repr(error)
            entry["refused"] = f"{type(error).__name__}: {text.splitlines()[0][:300]}".removeprefix("Refused: ")
    with priority():
        times = interleave(ready, seconds)
    for name, found in times.items():
        entries[name] |= dict(seconds=statistics.median(found), repeats=len(found), fastest=min(found))
    return dict(name=row.name, kind=row.kind, batch=row.batch, num_queries=row.num_queries, num_keys=row.num_keys,
                num_heads=row.num_heads, num_kv_heads=row.num_kv_heads, head_dim=row.head_dim, rotary=row.rotary,
                visible_pairs=row.visible_pairs(), flops=row.flops(backward), contestants=entries,
                **{"pass": "both" if backward else "forward"})


def interleave(ready: dict, seconds: float) -> dict[str, list[float]]:
    """Seconds of a run of each, a, b, c, a, b, c, ... On an accelerator, as many runs in flight as last 20 ms."""
    first = {name: _seconds(one, 1) for name, one in ready.items()}
    runs = {name: 1 if jax.default_backend() == "cpu" else max(int(0.02 / t), 1) for name, t in first.items()}
    repeats = int(seconds / max(sum(first[name] * runs[name] for name in ready), 1e-9))
    times = {name: [t] if runs[name] == 1 else [] for name, t in first.items()}
    least = 3 if sum(first.values()) < 20 else 2
    for _ in range(min(max(repeats, least), 25) - 1):
        for name, one in ready.items():
            times[name].append(_seconds(one, runs[name]))
    return times


def _seconds(one, runs: int) -> float:
    begin = time.perf_counter()
    for _ in range(runs):
        result = one.call()
    one.wait(result)
    return (time.perf_counter() - begin) / runs


def _error(got: np.ndarray, want: np.ndarray) -> float:
    size = max(float(np.linalg.norm(want)), 1e-30)
    return float(f"{np.linalg.norm(got - want) / size:.2g}")


def _rate(make, size: int, dtype: str) -> float:
    """FLOP/s of a matrix product."""
    run = make(size, dtype)
    run()
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def _jax_matmul(size: int, dtype: str):
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    run = jax.jit(jax.numpy.matmul)
    return lambda: run(a, b).block_until_ready()


def _free_bytes() -> int:
    """Memory that a program may take: on a CPU what is available, elsewhere what the device has left."""
    if jax.default_backend() == "cpu":
        kilobytes = re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]
        return int(0.9 * 1024 * int(kilobytes))
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 2**63) - stats.get("bytes_in_use", 0)


@contextlib.contextmanager
def realtime():
    """Every thread of this process goes before those of others."""
    def schedule(policy, priority):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    schedule(os.SCHED_RR, 5)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


if __name__ == "__main__":
    main()
