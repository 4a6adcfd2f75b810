"""Real processes of two devices each on this machine: they train as one, and none outlives another.

All runs are `mmjax train` on files. The data comes in four streams, so that 1, 2 and 4 processes see the same batches.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.checkpoint import manager
from mmjax.cli.launch import free_port
from mmjax.cli.main import USAGE, main
from mmjax.data.documents import Document, Text, write_documents
from mmjax.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
STEPS, SAVED = 8, 4
CONFIG = """
import ml_collections

def get_config():
    c = ml_collections.ConfigDict()
    c.system = "language"
    block = dict(embed_dim=16, num_heads=4, mlp_dim=32, use_bias=False, norm="rms", dropout=0.1)
    c.model = dict(lm=dict(vocab_size=264, num_layers=1, block=block, max_positions=32, remat="none"))
    c.data = dict(sets=dict(text=dict(sources=(dict(path="{folder}/text.array_record"),), batch_size=8, seq_len=32,
                                      packing_buffer=3)), streams=4)
    c.optimizer = dict(lr=1e-3, warmup_steps=2)
    c.total_steps, c.log_every, c.checkpoint_every, c.mesh = {steps}, 1, {saved}, dict(fsdp=-1)
    return c
"""
# Process 3 dies by SIGKILL when it has read six batches and the checkpoint, which is written meanwhile, is whole; the
# others are then in a collective, or soon will be.
KILLED = """
import os, signal, time
from mmjax.checkpoint import manager
from mmjax.data.loader import Loader

def next_batches(self, given=Loader.__next__, count=[0]):
    count[0] += 1
    if count[0] > 6 and os.environ.get("PROCESS_ID") == "3":
        while not manager.steps("{folder}/four"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return given(self)

Loader.__next__ = next_batches
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data and the config files."""
    folder = tmp_path_factory.mktemp("processes")
    write_documents(folder / "text.array_record", [Document((Text(f"text {i} " * (1 + i % 4)),)) for i in range(40)])
    config = CONFIG.format(folder=folder, steps=STEPS, saved=SAVED)
    (folder / "config.py").write_text(config)
    (folder / "killed.py").write_text(KILLED.format(folder=folder) + config)
    settings = {"jax_compilation_cache_dir": str(folder / "compiled"), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}     # the runs in this process share their programs
    jax.tree.map(jax.config.update, list(settings), list(settings.values()))
    yield folder
    jax.tree.map(jax.config.update, list(before), list(before.values()))


@pytest.fixture(scope="module")
def alone(folder):
    """The run directory of one process."""
    assert main(train(folder, "alone")) == 0
    return folder / "alone"


def train(folder, name, *overrides, config="config.py"):
    return ["train", f"--config={folder / config}", f"--workdir={folder / name}", *overrides]


def mmjax(*argv, **env):
    """`mmjax ...` as a process."""
    fast = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]     # that of the tests
    env = os.environ | {"XLA_FLAGS": " ".join(fast), "PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen([sys.executable, "-m", "mmjax.cli.main", *argv], env=env, cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start_all(commands, devices=2):
    """Processes that find each other by plain environment variables, without the launcher."""
    address = f"127.0.0.1:{free_port()}"
    return [mmjax(*command, COORDINATOR_ADDRESS=address, NUM_PROCESSES=str(len(commands)), PROCESS_ID=str(i),
                  JAX_NUM_CPU_DEVICES=str(devices)) for i, command in enumerate(commands)]


def end_all(processes, timeout):
    """[(exit code, stderr)], all within `timeout` seconds."""
    deadline, ended = time.monotonic() + timeout, []
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            _, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            ended.append((process.returncode, err))
    return ended


def losses(workdir):
    return {row["step"]: [row["loss"], row["grad_norm"], row["tokens/text"]] for row in read_rows(workdir)}


def assert_same_losses(workdir, alone, steps):
    got, want = losses(workdir), losses(alone)
    assert list(got) == list(range(1, steps + 1))
    np.testing.assert_allclose([got[s] for s in got], [want[s] for s in got], rtol=1e-5)


def test_two_launched_processes_train_as_one_and_one_goes_on(folder, alone):
    # The model is split over all four devices, so both processes read all rows.
    (code, err), = end_all([mmjax("launch", "--processes=2", "--devices=2", "--",
                                  *train(folder, "two", f"--config.total_steps={SAVED}", "--config.mesh.fsdp=1",
                                         "--config.mesh.model=4"))], 300)
    assert code == 0, err
    assert err.count("step 4/4") == 1 and "[0] language  step 4/4" in err and "mesh model=4" in err
    files = {p.name for p in (folder / f"two/checkpoints/{SAVED}/data").iterdir()}
    assert {"process_0-of-2", "process_1-of-2"} <= files
    assert main(train(folder, "two")) == 0                   # here, in one process of eight devices
    assert_same_losses(folder / "two", alone, STEPS)


def test_one_of_four_is_killed_and_all_end_with_its_name(folder, alone):
    begin = time.monotonic()
    processes = start_all([train(folder, "four", config="killed.py")] * 4)
    processes[3].wait(timeout=300)
    died = time.monotonic()
    ended = end_all(processes, 60)
    print(f"4 processes: killed after {died - begin:.1f} s, all ended {time.monotonic() - died:.1f} s later")
    assert [code for code, _ in ended] == [1, 1, 1, -9]
    for _, err in ended[:3]:
        assert re.search(r"error: process 3 of 4 on \S+ has shown no sign of life for \d+ s: it was killed", err), err
    assert_same_losses(folder / "four", alone, 6)
    assert manager.steps(folder / "four") == [SAVED]
    assert main(train(folder, "four")) == 0
    assert_same_losses(folder / "four", alone, STEPS)


def test_processes_that_disagree_end_with_the_fields(folder):
    odd = train(folder, "odd", "--config.seed=7", "--config.optimizer.lr=0.5")
    ended = end_all(start_all([train(folder, "odd"), odd]), 120)
    for code, err in ended:
        assert code == 1 and re.search(r"process 1 of 2 on \S+: started with other settings than process 0 on \S+: "
                                       r"config.optimizer.lr is 0.5 here and 0.001 there; config.seed is 7 here and 0 "
                                       r"there; start all processes with the same command", err), err
    assert not (folder / "odd").exists()


def test_a_run_in_processes_does_not_evaluate(folder, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert main(train(folder, "evals", "--config.evals=({'name':'x','kind':'captioning','data':'y'},)")) == USAGE
    assert "evals cannot run in 2 processes; train with --config.evals='()'" in capfd.readouterr().err
    assert not (folder / "evals").exists()
