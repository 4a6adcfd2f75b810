"""Settings every test shares: CPU, eight virtual devices, cheap compilation."""

import importlib.metadata
import os

# Before jax is imported anywhere. Eight virtual devices let mesh tests run in the same process.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
flags = os.environ.get("XLA_FLAGS", "")
flags += " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jax").startswith("0.10."):       # the older way to compile fusions takes half the time
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = flags

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags as absl_flags  # noqa: E402

absl_flags.FLAGS.mark_as_parsed()  # Grain workers refuse to start before


@pytest.fixture(autouse=True, scope="module")
def _clear_caches():
    """Compiled programs pile up at about 10 MB a test; drop them after each file."""
    yield
    jax.clear_caches()
