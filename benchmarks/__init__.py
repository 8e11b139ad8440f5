"""Everything that measures Cloister: `python -m benchmarks NAME`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_START = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def python(module: str) -> list[str]:
    """The command that runs a module of this folder from any folder, without the caller's path."""
    return [sys.executable, "-P", "-c", _START, str(ROOT), f"benchmarks.{module}"]
