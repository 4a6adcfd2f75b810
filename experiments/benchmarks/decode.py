"""Greedy decoding with a cache on a CPU: mmjax against PyTorch, in one environment and with the same numbers.

Run:     python experiments/benchmarks/decode.py --realtime
Expect:  results/decode.json

The decoder of train_step.py reads prompts of 128 tokens and writes 128 more, at batch 1 and 8. Every contestant runs
in its own process; they take turns, medians are compared, and all must write the same tokens.
"""

import argparse
import json
import os
import pathlib

import train_step_race as racing
from train_step_race import HERE, HUGE_PAGES, Contestant

PEERS = {
    "mmjax": Contestant("decode_mmjax", {}, {}),
    "torch.compile": Contestant("decode_torch", dict(compiled=True), {}),
    "torch eager": Contestant("decode_torch", dict(compiled=False), {}),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed texts of each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--realtime", action="store_true", help="go before other processes (Linux, root)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "decode.json")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.realtime:
        racing.realtime()
    result = racing.machine(args.threads) | dict(length=args.length, new_tokens=args.new_tokens)
    for rows in args.rows:
        settings = dict(rows=rows, length=args.length, new_tokens=args.new_tokens, threads=args.threads)
        contestants = {name: Contestant(c.module, c.settings | settings, HUGE_PAGES) for name, c in PEERS.items()}
        found = result[f"batch {rows}"] = racing.race(contestants, args.rounds, tolerance=0.0)
        for name, one in found.items():
            print(f"batch {rows}  {name:<14} {rows * args.new_tokens / one['median']:7.0f} tokens/s, "
                  f"{one['median'] / found['mmjax']['median']:.2f} times as long as mmjax")
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
