"""Exit codes and output of several processes; that they train together is a test of parallel/processes."""

import re
import signal
import subprocess
import sys
import time

import pytest

from mmjax.cli import launch
from mmjax.cli.main import FAILED, USAGE, main

SHOW = "import os; print(*(os.environ[n] for n in ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_LOCAL_DEVICE_IDS')))"


@pytest.fixture
def start(monkeypatch):
    """Starts Python code in place of mmjax, one text per process."""
    real = subprocess.Popen

    def python(argv, **kwargs):
        return real([sys.executable, "-c", argv[-1]], **kwargs)

    def run(*codes):
        monkeypatch.setattr(subprocess, "Popen", python)
        return [launch.start([code], index, len(codes), 2, 1234) for index, code in enumerate(codes)]

    return run


@pytest.mark.quick
def test_each_process_learns_its_place_and_its_lines_carry_its_number(start, capfd):
    assert launch.wait(start(SHOW, SHOW)) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] 2 0 0,1", "[1] 2 1 2,3"]


@pytest.mark.quick
@pytest.mark.parametrize("code, want", [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_one_that_fails_decides_the_exit_code_and_the_rest_is_ended(start, monkeypatch, capfd, code, want):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    begin = time.monotonic()
    assert launch.wait(start("import time; time.sleep(60)", code)) == want
    assert time.monotonic() - begin < 30
    assert ("process 1 was ended by SIGKILL" in capfd.readouterr().err) == (want == 137)


@pytest.mark.quick
def test_signals_reach_all(start):
    children = start(*["import signal, time; signal.signal(15, lambda *_: exit(143)); print(1); time.sleep(60)"] * 2)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.alarm(3)
    assert launch.wait(children) == 143
    assert [child.process.returncode for child in children] == [143, 143]


@pytest.mark.quick
@pytest.mark.parametrize("argv, words", [
    (["--processes=2"], "nothing to run; write it after --"),
    (["--processes=0", "--", "train"], "--processes=0 and --devices=1 must be positive"),
    (["--processes=2", "--device=2", "--", "train"], "no flag '--device'; .* did you mean '--devices'"),
])
def test_mistakes_are_named(argv, words, capfd):
    assert main(["launch", *argv]) == USAGE
    err = capfd.readouterr().err
    assert re.search(words, err), err


@pytest.mark.quick
def test_commands_of_one_process_refuse_to_be_several(monkeypatch, capfd):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert main(["generate", "--workdir=x"]) == FAILED
    assert "mmjax generate runs in one process, but Open MPI started several" in capfd.readouterr().err
