"""Tables, JSON and the plot of the attention benchmark."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess

import jax

OURS = "mmjax"


def machine(kind: str, threads: int) -> dict:
    """Machine and versions."""
    device = jax.devices()[0].device_kind
    if kind == "cpu":
        info = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
        model = re.search(r"model name\s*: (.*)", info)
        device = f"{model[1] if model else platform.processor()}, {threads} threads"
    packages = {}
    for name in ("jax", "jaxlib", "tokamax", "torch", "flash-attn", "libtpu", "numpy"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=pathlib.Path(__file__).parent, check=False).stdout.strip()
    return dict(machine=device, platform=kind, python=platform.python_version(), versions=packages, commit=commit,
                date=datetime.date.today().isoformat())


def load(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def save(result: dict, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def show(record: dict) -> None:
    """One table: a row of the grid and a pass."""
    size = "B={batch} T={num_queries} S={num_keys} N={num_heads} K={num_kv_heads} H={head_dim}".format(**record)
    print(f"{record['name']}, {record['pass']}: {size}, {record['kind']}, rotary {record['rotary']}")
    peer = fastest(record, lambda library: library != OURS)
    for name, entry in sorted(record["contestants"].items(), key=lambda item: item[1].get("seconds", 1e9)):
        if "refused" in entry:
            print(f"  {name:32s} refused: {entry['refused'][:110]}")
            continue
        memory = entry["temporary_bytes"]
        memory = "       -" if memory is None else f"{memory / 1e6:8.1f}"
        ratio = f"{peer / entry['seconds']:6.2f}" if peer else "     -"
        print(f"  {name:32s} {entry['seconds'] * 1e3:10.3f} ms {entry['flops'] / 1e12:8.3f} TFLOP/s "
              f"{entry['share_of_peak']:6.1%} of peak {memory} MB {ratio} x best peer")
    print(flush=True)


def fastest(record: dict, of) -> float | None:
    """Seconds of the fastest contestant whose library passes `of`."""
    timed = (entry for entry in record["contestants"].values() if "seconds" in entry)
    return min((entry["seconds"] for entry in timed if of(entry["library"])), default=None)


def ratios(record: dict) -> dict[str, float]:
    """Library -> its fastest time over ours."""
    ours = fastest(record, lambda library: library == OURS)
    libraries = {entry["library"] for entry in record["contestants"].values()} - {OURS}
    found = {library: fastest(record, lambda other, library=library: other == library) for library in libraries}
    return {library: seconds / ours for library, seconds in sorted(found.items()) if seconds and ours}


def summarise(result: dict) -> None:
    print("fastest time of each library over ours (above 1: ours is faster)")
    for record in result["rows"]:
        parts = ", ".join(f"{library} {ratio:.2f}" for library, ratio in ratios(record).items())
        print(f"  {record['name']:32s} {record['pass']:8s} {parts}")


def plot(result: dict, path: pathlib.Path) -> None:
    """Achieved FLOP/s of the fastest contestant of each library, a panel per pass; without matplotlib, no plot."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    passes = [name for name in ("forward", "both") if any(r["pass"] == name for r in result["rows"])]
    longest = max(sum(r["pass"] == name for r in result["rows"]) for name in passes)
    figure, axes = pyplot.subplots(len(passes), 1, figsize=(3 + 0.45 * longest, 4.5 * len(passes)), squeeze=False)
    libraries = sorted({e["library"] for r in result["rows"] for e in r["contestants"].values() if "flops" in e})
    libraries.sort(key=lambda library: library != OURS)
    for axis, name in zip(axes[:, 0], passes, strict=True):
        records = [r for r in result["rows"] if r["pass"] == name]
        for i, library in enumerate(libraries):
            best = [max((e["flops"] for e in r["contestants"].values() if e["library"] == library and "flops" in e),
                        default=float("nan")) / 1e12 for r in records]
            axis.plot(range(len(records)), best, "o" if library == OURS else "x+sd^v"[i % 6], label=library,
                      markersize=8 if library == OURS else 6)
        axis.axhline(result["peak_flops"] / 1e12, color="gray", linewidth=1, label="matrix product")
        axis.set_xticks(range(len(records)), [r["name"] for r in records], rotation=60, ha="right", fontsize=7)
        axis.set(yscale="log", ylabel="TFLOP/s of visible pairs",
                 title="forward" if name == "forward" else "forward and backward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    figure.suptitle(f"{result['machine']}, {result['dtype']}, {result['date']}\n{versions}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
