"""How long a train step of 48 layers takes to compile, against one of 6: a scan compiles its body once.

Run:     python experiments/benchmarks/train_step_compile.py
Expect:  results/train_step_compile.json

Tracing, lowering and compiling in this process, by processor time, the depths in turns; without a compilation cache.
"""

import json
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]      # runs from a clone that is not installed

import jax  # noqa: E402
import train_step_mmjax  # noqa: E402
import train_step_race as racing  # noqa: E402

DEPTHS, ROUNDS = (6, 48), 3


def main() -> None:
    times = {depth: [] for depth in DEPTHS}
    for turn in range(ROUNDS + 1):
        for depth in DEPTHS:
            plan, step, _ = train_step_mmjax.plan_of(train_step_mmjax.model_of(depth))
            batches = {"text": train_step_mmjax.batch(8, 512)}
            jax.clear_caches()
            begin = time.process_time()
            step.lower(plan.template, batches, jax.random.key(0)).compile()
            if turn:                        # the first one warms up
                times[depth].append(time.process_time() - begin)
    few, many = (statistics.median(times[depth]) for depth in DEPTHS)
    result = racing.machine(1) | dict(cpu_seconds=times, ratio=many / few)
    out = HERE / "results" / "train_step_compile.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{DEPTHS[0]} layers {few:.2f} s, {DEPTHS[1]} layers {many:.2f} s of CPU, {many / few:.2f} times; {out}")


if __name__ == "__main__":
    main()
