"""Worker processes that die, hang or lose their parent."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.image_spec import ImageError, ImageSpec
from mmjax.data.images import decode_visuals
from mmjax.data.loader import Loader
from mmjax.data.watch import Stuck
from mmjax.data.worker import Pixels
from mmjax.data.workers import Worker, WorkerDied


def jpeg(rng, side=24):
    out = io.BytesIO()
    pil.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    write_documents(folder / "p.array_record", [Document((Image(jpeg(rng)), Text(f"page {i}"))) for i in range(40)])
    return LoaderConfig(dict(pages=DataSetConfig((Source(str(folder)),), 2, 32, images_per_row=3,
                                                 image=ImageSpec(size=8), template="flamingo")), workers=1)


def pids(loader):
    return [worker.pid for worker in loader._decoder._images._workers]


def drain(loader, seconds):
    """Takes batches until one fails; gives the error and how long that took."""
    begin = time.monotonic()
    with pytest.raises((WorkerDied, Stuck)) as e:
        while time.monotonic() < begin + seconds:
            next(loader)
    return str(e.value), time.monotonic() - begin


def test_pixels_of_a_worker_are_those_of_this_process():
    rng, spec = np.random.default_rng(0), ImageSpec(size=8)
    documents = [(Image(jpeg(rng)), Image(jpeg(rng))), (), (Image(b"no"),), (Image(jpeg(rng)),)]
    worker = Worker(0, {"a": Pixels(spec, 2)}, {"a": 3})
    for _ in range(2):
        with worker.decoded("a", documents, str) as found:
            assert isinstance(found.pop(2), ImageError)
            for got, want in zip(found, (documents[0], (), documents[3]), strict=True):
                np.testing.assert_array_equal(got, decode_visuals(want, spec, 2))
    worker.close()


@pytest.mark.quick
def test_a_killed_worker_is_named_with_its_signal_and_record(config):
    with Loader(config) as loader:
        next(loader)
        pid, = pids(loader)
        os.kill(pid, signal.SIGKILL)
        message, seconds = drain(loader, 10)
        with pytest.raises(WorkerDied):                 # there is no batch after it
            next(loader)
    assert seconds < 10
    assert f"data worker 0 (pid {pid}) was ended by SIGKILL while it decoded " in message
    assert "p.array_record record " in message


def test_a_worker_that_hangs_is_found_out(config):
    with Loader(config) as loader:
        next(loader)
        loader._watch._limit = 1                        # not before: on a busy machine a worker takes longer to start
        pid, = pids(loader)
        os.kill(pid, signal.SIGSTOP)
        message, _ = drain(loader, 30)
    assert "p.array_record record " in message and "has taken more than watchdog=1 seconds" in message
    assert f"data worker 0 (pid {pid})\n(it does not answer)" in message
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_record_that_hangs_in_a_thread_is_named_with_the_stack(config, monkeypatch):
    release, stuck = threading.Event(), []

    def hang(visuals, spec, frames):
        stuck.append(1)
        release.wait(60)

    monkeypatch.setattr("mmjax.data.decode.decode_visuals", hang)
    with Loader(LoaderConfig(config.sets, watchdog=1)) as loader:
        message, _ = drain(loader, 30)
        release.set()
    assert stuck and "p.array_record record " in message and "in hang" in message


def test_workers_end_with_a_parent_that_is_killed(config, tmp_path):
    """One of them while somebody else still holds its connection, so that it waits for a row that never comes."""
    script = tmp_path / "trainer.py"
    script.write_text(f"""
import os, signal, subprocess
from mmjax.data.config import *
loader = __import__("mmjax.data.loader", fromlist=["Loader"]).Loader(LoaderConfig(dict(pages=DataSetConfig(
    (Source({config.sets["pages"].sources[0].path!r}),), 2, 32, images_per_row=3, image=ImageSpec(size=8),
    template="flamingo")), workers=2))
next(loader)
workers = loader._decoder._images._workers
subprocess.Popen(["sleep", "20"], pass_fds=[workers[0]._pipe.fileno()], stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL)
print(*[worker.pid for worker in workers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    with (tmp_path / "out").open("w+") as out:              # a pipe would be waited for until the workers close it too
        done = subprocess.run([sys.executable, str(script)], stdout=out, stderr=out, timeout=60,
                              env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    said = (tmp_path / "out").read_text()
    assert done.returncode == -9, said
    workers, deadline = list(map(int, said.split())), time.monotonic() + 10
    assert len(workers) == 2
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
