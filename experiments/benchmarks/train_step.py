"""A train step on a CPU: mmjax against PyTorch and plain JAX, in one environment and with the same numbers.

Run:     python experiments/benchmarks/train_step.py --realtime
Expect:  results/train_step.json

A decoder of 6 layers, D = 384, 6 heads, vocabulary 8192, T = 512, B = 8, float32, AdamW. Every contestant runs in its
own process on all threads; they take turns, medians are compared, and the losses of every turn must agree.
"""

import argparse
import json
import os
import pathlib

import train_step_race as racing
from train_step_race import HERE, HUGE_PAGES, Contestant


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--peers", nargs="+", choices=list(peers(2)), help="all by default")
    parser.add_argument("--pages", nargs="+", choices=("huge", "small"), default=["huge", "small"],
                        help="with huge pages for all contestants' malloc; without")
    parser.add_argument("--realtime", action="store_true",
                        help="go before other processes of the machine (Linux, root)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "train_step.json")
    return parser.parse_args()


def peers(threads: int) -> dict[str, Contestant]:
    return {
        "mmjax": Contestant("train_step_mmjax", {}, {}),
        "mmjax, a device per core": Contestant("train_step_mmjax", {}, {"JAX_NUM_CPU_DEVICES": str(threads)}),
        "jax, einsum": Contestant("train_step_jax", dict(attention="einsum"), {}),
        "jax, jax.nn": Contestant("train_step_jax", dict(attention="library"), {}),
        "torch eager": Contestant("train_step_torch", dict(compiled=False), {}),
        "torch.compile": Contestant("train_step_torch", dict(compiled=True), {}),
    }


def main() -> None:
    args = parse()
    if args.realtime:
        racing.realtime()
    chosen = peers(args.threads)
    chosen = {name: chosen[name] for name in args.peers or chosen}
    shape = dict(rows=args.rows, length=args.length, threads=args.threads)
    result = racing.machine(args.threads) | shape
    for pages in args.pages:
        env = HUGE_PAGES if pages == "huge" else {}
        contestants = {name: Contestant(c.module, c.settings | shape, c.env | env) for name, c in chosen.items()}
        found = result[f"{pages} pages"] = racing.race(contestants, args.rounds, tolerance=1e-4)
        first = next(iter(found.values()))["median"]
        print(f"{pages} pages" + " " * 18 + "seconds   of the first   cores of others   peak")
        for name, one in found.items():
            print(f"  {name:<26} {one['median']:.3f}     {one['median'] / first:5.2f}          "
                  f"{max(one['foreign']):.2f}              {one['peak_bytes'] / 2**30:.2f} GiB")
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
