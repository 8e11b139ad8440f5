import os
import sys
from pathlib import Path

# Tests load ONNX Runtime themselves, some before Cloister.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))

import hypothesis
import pytest

import shapes

shapes.install()

import cloister.base._native as native  # noqa: E402  (after the hook that checks its modules)
from cloister.trusted import tuning  # noqa: E402
from instruction_sets import forced  # noqa: E402

# Every run draws the same examples; where CLOISTER_EXAMPLES is set, others each time.
hypothesis.settings.register_profile("same", derandomize=True)
if "CLOISTER_EXAMPLES" not in os.environ:
    hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """Where programs keep state of their user: not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_tuning(tmp_path_factory):
    """The kernels' defaults, kept as this machine's choice: no process of a test measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for isa in native.available_isas():
            with forced(isa):
                tuning.keep(tuning.defaults())
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared models and data; the test is skipped where they are absent."""
    folder = os.environ.get("CLOISTER_DATA")
    path = Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data"
    if not (path / "models").is_dir():
        pytest.skip("no shared models and data: set CLOISTER_DATA")
    return path


@pytest.fixture(params=native.available_isas())
def isa(request):
    """Every instruction set of this machine, in force during the test."""
    with forced(request.param):
        yield request.param
