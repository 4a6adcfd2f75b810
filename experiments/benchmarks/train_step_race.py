"""Races programs that each live in a process of their own: they take turns, and each times itself.

A contestant is a function `make(**settings)` of a module beside this file. It gives a function without arguments,
which does the work once and returns a few numbers that say what came out: all contestants' must agree.
"""

import contextlib
import importlib
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).parent
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}     # what malloc gets from the kernel comes in huge pages


class Contestant(NamedTuple):
    """What to run and how.

    Attributes:
        module: its file beside this one, without ".py".
        settings: arguments of its `make`, JSON values.
        env: environment variables that differ.
    """

    module: str
    settings: dict[str, Any]
    env: dict[str, str]


class Runner:
    """A contestant in its process, warm after its first two turns."""

    def __init__(self, contestant: Contestant):
        command = [sys.executable, __file__, contestant.module, json.dumps(contestant.settings)]
        self._process = subprocess.Popen(command, env=os.environ | contestant.env, text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)
        self.versions = self._answer()
        self.first_seconds = self.turn()["seconds"]
        self.turn()

    def turn(self) -> dict[str, Any]:
        """Does the work once: `seconds` of wall time, `cpu` seconds of the process, `foreign` cores that others used
        meanwhile, and what came out, `result`."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contestant ended with exit code {self._process.wait()}; what it said is above")
        return json.loads(line)


def race(contestants: dict[str, Contestant], rounds: int, tolerance: float) -> dict[str, dict[str, Any]]:
    """Times all of them, a, b, c, a, b, c, ...

    Args:
        contestants: by name; what comes out of the first is what the others' must equal.
        rounds: turns of each.
        tolerance: largest relative difference of a result.

    Raises:
        ValueError: if a contestant computes something else.
    """
    with contextlib.ExitStack() as stack:
        runners, turns, results = {}, {name: [] for name in contestants}, {}
        for name, contestant in contestants.items():
            runners[name] = Runner(contestant)
            stack.callback(runners[name].close)
        for _ in range(rounds):
            for name, runner in runners.items():
                turns[name].append(runner.turn())
        for name, found in turns.items():
            results[name] = [turn["result"] for turn in found]
            _compare(name, results[name], next(iter(results.values())), tolerance)
        return {name: dict(
            median=statistics.median(turn["seconds"] for turn in found), seconds=[turn["seconds"] for turn in found],
            foreign=[turn["foreign"] for turn in found], cpu=statistics.median(turn["cpu"] for turn in found),
            first=runners[name].first_seconds, peak_bytes=found[-1]["peak_bytes"], env=contestants[name].env,
            versions=runners[name].versions) for name, found in turns.items()}


def _compare(name: str, got: list[list[float]], want: list[list[float]], tolerance: float) -> None:
    for turn, (mine, first) in enumerate(zip(got, want, strict=True)):
        if not all(abs(a - b) <= tolerance * abs(b) for a, b in zip(mine, first, strict=True)):
            raise ValueError(f"{name} computes something else: {mine} in turn {turn}, where the first has {first}")


def machine(threads: int) -> dict[str, Any]:
    """Where this runs, for the result."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return dict(machine=cpu[1] if cpu else platform.processor(), cores=os.cpu_count(), threads=threads,
                python=platform.python_version(), load=os.getloadavg()[0], command=" ".join(sys.argv))


def realtime() -> None:
    """This process and those it starts go before others of the machine; for root on Linux."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _serve(module: str, settings: dict[str, Any]) -> None:
    """The contestant's process: a turn for every line of its input."""
    answers, sys.stdout = sys.stdout, sys.stderr        # libraries may print what they like
    found = importlib.import_module(module)
    run = found.make(**settings)
    print(json.dumps(found.versions()), file=answers, flush=True)
    for _ in sys.stdin:
        before, begin = _busy_seconds(), time.perf_counter()
        result = run()
        seconds, after = time.perf_counter() - begin, _busy_seconds()
        own, everyone = (b - a for a, b in zip(before, after, strict=True))
        peak = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
        print(json.dumps(dict(seconds=seconds, cpu=own, foreign=max(everyone - own, 0) / seconds, peak_bytes=peak,
                              result=result)), file=answers, flush=True)


def _busy_seconds() -> tuple[float, float]:
    """Processor seconds so far of this process, and of the whole machine."""
    user, nice, system, _, _, irq, softirq, _, _ = map(int, pathlib.Path("/proc/stat").read_text().split()[1:10])
    times = os.times()
    return times.user + times.system, (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]      # runs from a clone that is not installed
    _serve(sys.argv[1], json.loads(sys.argv[2]))
