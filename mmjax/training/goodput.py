"""Where the wall time of a run goes, and a look inside some of its steps."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

PHASES = ("start", "compile", "data", "checkpoint", "evaluation")


class Goodput:
    """Shares of the wall time since it was made; what no phase claims is training, the goodput.

    Phases: start (parameters made or restored), compile (with the first step), data (waiting for it), checkpoint (as
    far as the steps wait for it), evaluation.
    """

    def __init__(self):
        self._begin = time.perf_counter()
        self._spent = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside as of phase `name`, also if it ends by an exception."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - begin

    def shares(self) -> dict[str, float]:
        """`time/goodput` and `time/<phase>`, which add up to 1."""
        total = max(time.perf_counter() - self._begin, 1e-9)
        shares = {f"time/{name}": spent / total for name, spent in self._spent.items()}
        return {"time/goodput": max(1 - sum(shares.values()), 0.0)} | shares

    def text(self) -> str:
        """The shares for a person, those below one per cent left out."""
        shares = {name.removeprefix("time/"): share for name, share in self.shares().items()}
        rest = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != "goodput" and share >= 0.01)
        return f"{shares['goodput']:.0%} of the time in steps" + (f" ({rest})" if rest else "")


class Profile:
    """Records what the devices do from one step to another, for `xprof` or TensorBoard.

    Args:
        steps: (first, last), counted from 1; None records nothing.
        folder: where the trace goes.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._is_on = steps, folder, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Starts the trace if `step` is the first to record."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def after(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        """Ends the trace if `step` is the last to record, once its `metrics` are there; says where it is."""
        if not self._is_on or step < self._steps[1]:
            return None
        jax.block_until_ready(metrics)
        self._stop()
        return f"steps {self._steps[0]} to {step} are in {self._folder}: xprof {self._folder}"

    def _stop(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
