"""All policies on random models with branches, bodies, free sizes and operators of every kind."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, note, reject, settings
from hypothesis import strategies as st

from conformance.random_checks import outcomes

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "100"))
"""`python -m benchmarks random_graphs` runs 2,000, other ones every time."""

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


# The check of array shapes in tests draws which item of a list it looks at.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
@given(st.data())
def test_every_policy_computes_what_onnx_runtime_does(folder, data):
    found = data.draw(outcomes(folder))
    if found is None:
        reject()
    note(str(found.net))
    assert {**found.faults, **found.broken} == {}
