"""Every policy on small random models: the shapes, types and values that ONNX Runtime computes."""

import os

import numpy as np
import pytest
from hypothesis import Phase, event, given, note, reject, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.graph import onnx_import, passes
from cloister.graph.interpreter import ORT_ERRORS
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.random_models import RandomModel, models, runtime

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "60"))
"""More of them, say 5000, search for hours what a test suite has no time for."""
REFUSALS = (
    "no linear node with constant weights",
    "its shape is not known, so a worker's answer could not be bounded",
)
"""The reasons for which a model may be refused, and no other."""
EXACT, FIXED_POINT = 1e-4, 0.03

random_models = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None, phases=[p for p in Phase if p is not Phase.explain],
)  # fmt: skip


def links(count: int) -> list[InProcessLink]:
    return [InProcessLink(Engine().handle, name=f"w{i}") for i in range(count)]


def assert_same(found, wanted, peak: float, name: str) -> None:
    assert found.shape == wanted.shape, name
    assert found.dtype == wanted.dtype, name
    if wanted.dtype.kind == "f":
        assert float(np.abs(found - wanted).max(initial=0.0)) <= peak, name
    else:
        np.testing.assert_array_equal(found, wanted)


def check(net: RandomModel, policy: str, feeds, *, batch: int, lanes: int, workers=None) -> None:
    model = net.model()
    try:
        wanted = runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    try:
        graph = passes.prepare(onnx_import.from_model(model, name="random"))
        plan = policies.make(policy, graph, calibration=feeds)
        with Session(plan, workers=workers or links(lanes), batch=batch, lanes=lanes) as session:
            found = session.run(feeds).outputs
    except CloisterError as error:
        if not any(reason in str(error) for reason in REFUSALS):
            raise
        event(f"refused: {error}"[:40])
        return
    event("compared")
    assert list(found) == net.outputs
    exact = policy in ("enclave", "open")
    for name, value in zip(net.outputs, wanted, strict=True):
        peak = float(np.abs(value).max(initial=1.0)) * (EXACT if exact else FIXED_POINT)
        assert_same(found[name], value, peak, f"{policy}: {name}")


@pytest.mark.parametrize("policy", policies.NAMES)
@random_models
@given(st.data())
def test_every_policy_computes_what_onnx_runtime_does(policy, data):
    net = data.draw(models())
    batch, lanes = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 1, 2]))
    feeds = net.feeds(N=data.draw(st.integers(1, 9)), D=data.draw(st.integers(1, 6)))
    note(str(net))
    check(net, policy, feeds, batch=batch, lanes=lanes)
