"""`mmjax plan` end to end: on CPU devices, and for a TPU that nobody has here."""

import json
import os
import subprocess
import sys

import pytest

from mmjax.cli.main import main

CONFIG = """
    import ml_collections

    def get_config(layers="2"):
        c = ml_collections.ConfigDict()
        c.system = "language"
        c.model = dict(lm=dict(vocab_size=64, num_layers=int(layers), max_positions=128, block=dict(
            embed_dim=128, num_heads=2, mlp_dim=256, activation="relu", norm="rms", use_bias=False, dtype="bfloat16")))
        c.data = dict(sets=dict(text=dict(sources=(dict(path="data/none"),), batch_size=16, seq_len=128)))
        c.total_steps = 10
        c.mesh = dict(data=2, fsdp=-1)
        return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.py"
    path.write_text("\n".join(line.removeprefix("    ") for line in CONFIG.splitlines()))
    return path


def test_a_plan_is_printed_and_saved(config, tmp_path, capsys):
    assert main(["plan", f"--config={config}", "--topology=cpu:8", f"--out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "mesh data=2 x fsdp=4" in text and "fits" in text and "MFU" in text and "all-gather" in text
    (path,), (picture,) = tmp_path.glob("*.json"), tmp_path.glob("*.png")
    (plan,) = json.loads(path.read_text())
    assert picture.stat().st_size > 10_000
    groups = ("trainable", "frozen", "optimizer", "gradients", "batch", "rest")
    memory = plan["memory"]
    assert sum(memory[g] for g in groups) == pytest.approx(memory["needed"])
    weights = 64 * 128 + 2 * (4 * 128**2 + 2 * 128 * 256)
    norms = 128 * (2 * 2 + 1)                                           # scales lie whole on every device
    assert memory["trainable"] == 4 * (weights / 4 + norms) and memory["optimizer"] == pytest.approx(
        2 * memory["trainable"], abs=100)
    pairs = 16 * 128 * 129 / 2
    assert plan["model_flops"]["lm"] == 6 * 16 * 128 * weights + 12 * pairs * 128 * 2
    assert plan["executed_flops"] > plan["model_flops"]["lm"]
    assert {"fsdp"} in [set(c["axes"]) for c in plan["collectives"]] and plan["assumptions"]


@pytest.mark.parametrize("flags, words", [
    (["--topology=v99:4x4"], ["v99:4x4", "v5p:8x8x16"]),
    (["--topology=cpu:8", "--config.mesh.fsdp=1", "--config.mesh.data=8", "--config.data.sets.text.batch_size=12"],
     ["data.sets.text.batch_size=12", "8 devices", "try 8 or 16"]),
    (["--topology=cpu:8", "--config.mesh.fsdp=1", "--config.mesh.data=1", "--config.mesh.model=8"],
     ["kv_heads", "= 2", "8 devices", "model", "1, 2"]),
    (["--topology=cpu:8", "--config.mesh.fsdp=3"], ["6 devices but 8"]),
    (["--topology=cpu:8", "--stage=first"], ["first"]),
])
def test_what_does_not_fit_together_is_named(config, flags, words, capsys):
    assert main(["plan", f"--config={config}", *flags]) in (1, 2)
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


COUNT = """
import sys
from pathlib import Path
from mmjax.cli import arguments, plan, stages
from mmjax.parallel import make_mesh
from mmjax.plan import lowering, machine
import jax
jax.config.update("jax_optimization_level", "O0")
for layers, topology in (("2", "v5e:2x2"), ("8", "v5e:2x2"), ("2", "v5e:4x4")):
    (name, config), = stages.resolve(arguments.load_config([f"--config={sys.argv[1]}:{layers}"]))
    report, _ = plan.plan_one("small", name, config, machine.find(topology))
    print("RESULT", report.compile["instructions"], report.fits, int(report.memory["needed"]), report.traffic > 0)
(name, config), = stages.resolve(arguments.load_config([f"--config={sys.argv[1]}", "--config.model.lm.remat=offload"]))
mesh = make_mesh(config.mesh, machine.find("v5e:2x2").devices)
step = lowering.trace(config, mesh)
with jax.set_mesh(mesh):
    compiled = step.traced.lower().compile()
print("OFFLOAD", compiled.memory_analysis().host_temp_size_in_bytes)
"""


def test_a_tpu_that_is_not_here_has_a_plan_that_does_not_grow_with_layers_or_chips(config):
    pytest.importorskip("libtpu")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", COUNT, str(config)], env=environment, capture_output=True, text=True)
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(rows) == 3, done.stderr[-3000:]
    shallow, deep, wide = (float(row[0]) for row in rows)
    assert deep < 1.05 * shallow and wide < 1.3 * shallow
    assert all(fits == traffic == "True" and 0 < int(needed) < 2**30 for _, fits, needed, traffic in rows)
    # Products wait on the host: at least the residual stream of both layers, 16 rows over 4 chips, in bfloat16.
    on_host, = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("OFFLOAD"))
    assert on_host >= 2 * (16 // 4) * 128 * 128 * 2
