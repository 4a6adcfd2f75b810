"""A run that was interrupted ends as one that never was: real `mmjax train` processes on real files, bit for bit.

The tiny Flamingo has everything whose state could be lost: two data sets per update, mixtures, packing, augmentation,
dropout, a warm-up that outlasts the interruption, trained and frozen parameters.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image as pil

from mmjax.checkpoint import manager
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.training.goodput import PHASES
from mmjax.training.metrics import read_rows

CONFIG = """
    import ml_collections

    def get_config():
        c = ml_collections.ConfigDict()
        c.system, c.model = "flamingo", flamingo()
        c.data = dict(sets=dict(pages=data_set(1.0, long=2, short=1), pairs=data_set(0.2, pairs=1, short=1)), workers=0)
        c.rules, c.groups = (("lm/.*", "frozen"), (".*", "main")), dict(main=dict(weight_decay=0.1))
        c.optimizer = dict(lr=1e-2, schedule="constant", warmup_steps=8)
        c.total_steps, c.log_every, c.checkpoint_every = 10, 1, 5
        return c

    def data_set(loss_weight, **weights):
        sources = tuple(dict(path=f"{folder}/{{name}}.array_record", weight=w) for name, w in weights.items())
        return dict(sources=sources, batch_size=2, seq_len=96, images_per_row=6, image=dict(size=16), packing_buffer=3,
                    template="flamingo", template_options=dict(p_next=0.5, prepend_space=0.5), loss_weight=loss_weight)

    def flamingo():
        small = dict(embed_dim=8, num_heads=2, mlp_dim=16)
        return dict(
            vision=dict(image_size=16, patch_size=8, num_layers=2, block=small, remat="none"),
            resampler=dict(input_dim=8, embed_dim=8, num_latents=2, num_layers=2, num_heads=2, head_dim=4, mlp_dim=16,
                           num_frames=1),
            lm=dict(vocab_size=262, num_layers=2, block=dict(small, embed_dim=16, dropout=0.1), max_positions=96,
                    remat="none"),
            xattn=dict(embed_dim=16, visual_dim=8, num_heads=2, head_dim=8, mlp_dim=32), xattn_every=1)
"""

STANDSTILL = """
    import time
    from mmjax.training.metrics import MetricWriter

    def write(self, step, values, write=MetricWriter.write):
        write(self, step, values)
        if step == 7:
            time.sleep(600)     # with steps of milliseconds a kill from outside would else come after the end

    MetricWriter.write = write
"""

STEPS = 10
# What no two runs share.
CLOCK = {"seconds_per_step", "tokens_per_second", "images_per_second", "data_wait", "model_flops_per_second"} | {
    f"time/{name}" for name in ("goodput", *PHASES)}


def page(rng, name, images):
    """A document of `images` noisy JPEGs, each with a text."""
    segments = []
    for k in range(images):
        jpeg = io.BytesIO()
        pil.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(jpeg, "JPEG")
        segments += [Image(jpeg.getvalue()), Text(f"{name} {k} " * rng.integers(1, 3))]
    return Document(tuple(segments), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sources and two config files: as it is, and one whose run stands still after the row of step 7."""
    folder, rng = tmp_path_factory.mktemp("resume"), np.random.default_rng(0)
    for name, images in (("long", 3), ("short", 2), ("pairs", 1)):
        write_documents(folder / f"{name}.array_record", (page(rng, f"{name}{i}", images) for i in range(23)))
    write_config(folder / "config.py", CONFIG.format(folder=folder))
    write_config(folder / "standstill.py", STANDSTILL + CONFIG.format(folder=folder))
    return folder


def write_config(path, text):
    path.write_text(text.replace("\n    ", "\n"))


def command(config, workdir, workers, steps):
    """`mmjax train` in a new process, on one device; what one process compiled serves the others."""
    args = ["-m", "mmjax.cli.main", "train", f"--config={config}", f"--workdir={workdir}",
            f"--config.data.workers={workers}", f"--config.total_steps={steps}"]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0",
                        "JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled"),
                        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return dict(args=[sys.executable, *args], env=env, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)


def train(*args):
    done = subprocess.run(**command(*args), timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def straight(folder):
    """The run directory of ten straight steps."""
    train(folder / "config.py", folder / "straight", 0, STEPS)
    return folder / "straight"


def metrics(workdir):
    """The rows of a run but for what depends on the clock."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in read_rows(workdir)]


def assert_same_run(workdir, wanted):
    """Every logged number, every parameter and the position in the data, bit for bit."""
    rows = metrics(wanted)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and len({row["loss"] for row in rows}) == STEPS
    assert metrics(workdir) == rows
    got, want = manager.restore_params(workdir, step=STEPS), manager.restore_params(wanted, step=STEPS)
    assert want.keys() == {"vision", "resampler", "xattn", "lm"} and np.any(want["xattn"]["attention_gate"])
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), *jax.device_get((got, want)))
    assert jax.tree.all(same), same
    assert data_state(workdir) == data_state(wanted)


def data_state(workdir):
    return json.loads((workdir / f"checkpoints/{STEPS}/data/process_0-of-1").read_text())


def test_five_steps_and_five_in_a_new_process_equal_ten(folder, straight):
    """The second process decodes its images in two workers; those are no part of the order of the data."""
    workdir = folder / "halves"
    train(folder / "config.py", workdir, 0, 5)
    assert manager.steps(workdir) == [5]
    train(folder / "config.py", workdir, 2, STEPS)
    assert_same_run(workdir, straight)
    for sets in data_state(workdir)["streams"]["0"].values():
        assert sum(source["records"] for source in sets["counters"]) > 2 * STEPS      # rows hold several


def test_a_run_killed_between_checkpoints_equals_one_left_alone(folder, straight):
    workdir = folder / "killed"
    with subprocess.Popen(**command(folder / "standstill.py", workdir, 2, STEPS)) as process:
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)        # SIGKILL
            give_up = time.monotonic() + 600
            while not (manager.steps(workdir) == [5] and metrics(workdir)[-1]["step"] >= 6):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < give_up
                time.sleep(0.1)
        process.communicate(timeout=60)         # returns when the data workers, which hold the pipe too, have ended
    assert process.returncode == -9 and manager.steps(workdir) == [5]
    train(folder / "config.py", workdir, 2, STEPS)
    assert_same_run(workdir, straight)
