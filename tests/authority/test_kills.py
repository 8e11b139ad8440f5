import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "authority_kills.py"


@pytest.fixture(scope="module")
def kills():
    # Imported under its own name, so that the processes it starts can import it too.
    sys.path.insert(0, str(BENCHMARK.parent))
    try:
        specification = importlib.util.find_spec("authority_kills")
        module = importlib.util.module_from_spec(specification)
        sys.modules["authority_kills"] = module
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARK.parent))


def test_no_answer_is_forgotten_by_a_killed_authority(kills, tmp_path):
    found = kills.measure(5, 3, 2000, tmp_path)
    assert found["answers_held"] > 0
    assert kills.faults(found) == 0, found
