"""Several processes as one run: joining, agreeing before the start, waiting for each other, ending together.

In a process alone every function here does nothing.
"""

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # its key-value store and barriers have no public name

from mmjax.parallel import launchers
from mmjax.parallel.watch import Watch

HEARTBEAT = 50                          # seconds until JAX ends a process by itself, should our own watch fail
LONGEST = 24 * 3600 * 1000              # of a barrier, in ms: the watch ends it earlier if anyone is gone


class Disagreement(ValueError):
    """Processes of one run that were started with different settings."""


class _Group:
    """This process and the others."""

    def __init__(self, store: Any, index: int, count: int):
        self.store, self.index, self.count = store, index, count
        self.watch = Watch(store, index, count)
        self.numbers = itertools.count()        # all processes pass the same barriers in the same order


_group: _Group | None = None


def join(env: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes if a launcher started several (see `launchers.find`). Call it before using a device.

    Raises:
        ValueError: if the environment contradicts itself.
        RuntimeError: if the others cannot be reached.
    """
    global _group
    place = launchers.find(env)
    if place is None or _group is not None:
        return
    try:
        jax.distributed.initialize(**place.arguments, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:
        raise RuntimeError(f"cannot join the processes that {place.launcher} started: {error}") from error
    state = distributed.global_state
    if state.num_processes > 1:
        _group = _Group(state.client, state.process_id, state.num_processes)


def leave() -> None:
    """Waits until all processes have come here and parts from them."""
    global _group
    if _group is not None:
        barrier()
        _group.watch.stop()
        _group = None
        jax.distributed.shutdown()


def fail(error: BaseException, text: str, code: int) -> None:
    """Ends all processes because of an error in this one, and shows on all of them what was the first error.

    Args:
        error: the error.
        text: what it says.
        code: exit code of this process; that of the others is 1.
    """
    if _group is not None:
        _group.watch.fail(text, code, lost_contact=isinstance(error, jax.errors.JaxRuntimeError))


def barrier() -> None:
    """Waits for all processes."""
    if _group is not None:
        _group.store.wait_at_barrier(f"mmjax/{next(_group.numbers)}", LONGEST)


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """Runs its body in process 0, then in all others: they find what the first one made, unless disks are apart."""
    if _group is not None and _group.index:
        barrier()
        yield
    else:
        yield
        barrier()


def agree(facts: Mapping[str, Any]) -> None:
    """Compares what each process was started with; all of them must call it.

    Args:
        facts: field -> JSON value.

    Raises:
        Disagreement: in processes that differ from process 0; names the fields. The others do not go on, either.
    """
    if _group is None:
        return
    me, key = {"host": socket.gethostname(), "facts": dict(facts)}, f"mmjax/facts/{next(_group.numbers)}"
    if _group.index == 0:
        _group.store.key_value_set(key, json.dumps(me))
    else:
        first = json.loads(_group.store.blocking_key_value_get(key, LONGEST))
        _compare(json.loads(json.dumps(me)), first)
    barrier()


def _compare(me: dict[str, Any], first: dict[str, Any]) -> None:
    here, there = me["facts"], first["facts"]
    differ = [name for name in sorted(here.keys() | there.keys())
              if here.get(name, "absent") != there.get(name, "absent")]
    if differ:
        shown = "; ".join(f"{name} is {json.dumps(here.get(name, 'absent'))} here and "
                          f"{json.dumps(there.get(name, 'absent'))} there" for name in differ[:5])
        more = f"; and {len(differ) - 5} more fields" if len(differ) > 5 else ""
        raise Disagreement(f"started with other settings than process 0 on {first['host']}: {shown}{more}; "
                           "start all processes with the same command, code and data")
