"""What libtpu makes of the decoding kernel."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "compile_tpu.py"


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_it_compiles_and_copies_no_cache(topology):
    pytest.importorskip("libtpu")
    done = subprocess.run([sys.executable, SCRIPT, topology, "decode"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kernels"] == 1 and report["temp"] < 0.1 * report["needed"]
