"""`mmjax launch`: several processes of a command on this machine, to try here what will run on many."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from mmjax.cli import arguments
from mmjax.parallel.launchers import PLAIN
from mmjax.training.structure import require

GRACE = 60.0        # seconds for the others to end by themselves once one has failed


def run(argv: Sequence[str]) -> int:
    """Starts the processes and waits; the first exit code that is not 0, or 0."""
    argv = list(argv)
    parser = arguments.make_parser("launch", "Run a command as several processes of this machine: mmjax launch "
                                   "--processes=4 -- train --config=FILE.py --workdir=DIR")
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, default=1, help="devices of each process: GPUs, or virtual ones on CPU")
    parser.add_argument("command", nargs="*", help="after --, what to run; without the word mmjax")
    split = argv.index("--") if "--" in argv else len(argv)
    args, command = arguments.parse(parser, argv[:split]), argv[split + 1:]
    require(args.processes > 0 and args.devices > 0,
            f"--processes={args.processes} and --devices={args.devices} must be positive")
    require(command and not args.command, "nothing to run; write it after --, as in: "
                                          "mmjax launch --processes=4 -- train --config=FILE.py --workdir=DIR")
    port = free_port()
    return wait([start(command, index, args.processes, args.devices, port) for index in range(args.processes)])


class Child(NamedTuple):
    """A process, and the threads that print what it says."""

    process: subprocess.Popen
    printers: tuple[threading.Thread, ...]


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command: Sequence[str], index: int, count: int, devices: int, port: int) -> Child:
    """Starts process `index`, in a session of its own so that Ctrl-C reaches it through this process alone."""
    own = dict(zip(PLAIN, (f"127.0.0.1:{port}", str(count), str(index)), strict=True))
    own |= {"JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_LOCAL_DEVICE_IDS": ",".join(str(index * devices + i) for i in range(devices))}
    process = subprocess.Popen([sys.executable, "-m", "mmjax.cli.main", *command], env=os.environ | own, text=True,
                               start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    printers = tuple(threading.Thread(target=_print, args=(source, sink, f"[{index}] "), daemon=True)
                     for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)))
    for printer in printers:
        printer.start()
    return Child(process, printers)


def wait(children: Sequence[Child]) -> int:
    """Waits for all; passes SIGTERM and Ctrl-C on, and ends what is left `GRACE` seconds after a failure."""
    processes = [child.process for child in children]

    def stop(*_):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    first, deadline = None, None            # to fail
    try:
        while any(process.poll() is None for process in processes):
            first = first or next((p for p in processes if p.poll()), None)
            deadline = deadline or (first and time.monotonic() + GRACE)
            if deadline and time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for printer in itertools.chain.from_iterable(child.printers for child in children):
            printer.join(timeout=1)         # a data worker that outlives its parent a little may hold the pipe
        for signum, handler in old.items():
            signal.signal(signum, handler)
    first = first or next((p for p in processes if p.returncode), None)
    if first is None:
        return 0
    if first.returncode > 0:
        return first.returncode
    signum, index = signal.Signals(-first.returncode), processes.index(first)
    print(f"mmjax: process {index} was ended by {signum.name}, and the others with it", file=sys.stderr)
    return 128 + signum


def _print(source: TextIO, sink: TextIO, prefix: str) -> None:
    for line in source:
        sink.write(prefix + line)
        sink.flush()
