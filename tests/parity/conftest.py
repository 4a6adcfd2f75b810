"""Lets the files of this folder import each other, as they do when `make_goldens.py` runs as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
