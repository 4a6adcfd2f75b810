"""Lets the tests of this folder import what they share with others: `tiny_systems` and `numpy_oracle`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
