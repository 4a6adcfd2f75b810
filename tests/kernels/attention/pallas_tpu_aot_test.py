"""Compiles the TPU kernels for every generation without a TPU, each in its own process: libtpu reads its flags once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu: pip install 'jax[tpu]'")
ROOT = Path(__file__).parents[3]
# Spill stores of one visit to a tile, unmasked and masked: forward (256 x 256), backward (512 x 512); libtpu 0.0.42.
SPILLS = {
    "v4": dict(attention_forward=[190, 226], attention_backward=[913, 1190]),
    "v5e": dict(attention_forward=[129, 164], attention_backward=[532, 681]),
    "v5p": dict(attention_forward=[130, 166], attention_backward=[531, 680]),
    "v6e": dict(attention_forward=[96, 148], attention_backward=[373, 584]),
    "tpu7x": dict(attention_forward=[113, 150], attention_backward=[262, 486]),
}


@pytest.mark.parametrize("generation", SPILLS)
def test_kernels_compile_and_spill_no_more_than_before(generation):
    """Too much on-chip memory is an error of the compiler."""
    script = ROOT / "experiments" / "benchmarks" / "attention_tpu_static.py"
    command = [sys.executable, script, "--generations", generation, "--rows", "kosmos1-packed", "--peers", "ours"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr[-2000:]
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [r["kernel"] for r in records] == list(SPILLS[generation])
    for record in records:
        pinned = SPILLS[generation][record["kernel"]]
        assert all(got <= 1.1 * most for got, most in zip(record["spills_per_visit"], pinned, strict=True)), record
