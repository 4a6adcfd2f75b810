"""What libtpu makes of grouped matmul."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "compile_tpu.py"


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_no_row_is_multiplied_by_the_kernels_of_other_groups(topology):
    pytest.importorskip("libtpu")
    done = subprocess.run([sys.executable, SCRIPT, topology, "grouped_matmul"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["needed"] <= report["flops"] < 1.1 * report["needed"]
