"""Every policy on small random models: the shapes, types and values that ONNX Runtime computes."""

import os

import numpy as np
import pytest
from hypothesis import Phase, assume, event, given, note, reject, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.graph.graph import BATCH
from cloister.graph.onnx import read
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.protection import EVERYWHERE, OUTSOURCED
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.random_models import RandomModel, models, runtime

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "60"))
"""CLOISTER_EXAMPLES=5000 searches for an hour, with other models every time."""
EXACT, FIXED_POINT = 1e-4, 0.03

random_models = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
)


def is_listed(error: CloisterError, net: RandomModel) -> bool:
    """Whether a model may be refused for this reason."""
    if "no linear node with constant weights" in str(error):
        return not net.has_linear_node
    return False


def batches(plan: Plan) -> st.SearchStrategy[int]:
    """Samples for each micro-batch; pads of a plan with a bound batch are for that many alone."""
    return st.just(plan.sizes[BATCH]) if BATCH in plan.sizes else st.integers(1, 3)


def check(net: RandomModel, policy: str, feeds, *, workers=None, **options) -> None:
    model = net.model()
    try:
        wanted = runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    graph = normalise.prepare(read.from_model(model, name="random"))
    try:
        plan = policies.make(policy, graph, calibration=feeds)
        with Session(plan, workers=workers, **options) as session:
            found = session.run(feeds).outputs
    except CloisterError as error:
        if not is_listed(error, net):
            raise
        event(f"refused: {error}"[:40])
        return
    event("compared")
    assert list(found) == net.outputs
    tolerance = EXACT if policy in EVERYWHERE else FIXED_POINT
    for name, value in zip(net.outputs, wanted, strict=True):
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        if value.dtype.kind == "f":
            difference = np.abs(found[name] - value).max(initial=0.0)
            assert difference <= tolerance * np.abs(value).max(initial=1.0), name
        else:
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("policy", policies.NAMES)
@random_models
@given(st.data())
def test_every_policy_computes_what_onnx_runtime_does(policy, data):
    net = data.draw(models())
    feeds = net.feeds(N=data.draw(st.integers(1, 9)), D=data.draw(st.integers(1, 6)))
    batch, lanes = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 1, 2]))
    note(str(net))
    links = [InProcessLink(Engine().handle, name=f"worker {i}") for i in range(lanes)]
    check(net, policy, feeds, workers=links, batch=batch, lanes=lanes)


@settings(random_models, max_examples=max(EXAMPLES // 10, 1))
@given(st.data())
def test_shared_memory_changes_nothing(data):
    net = data.draw(models())
    assume(net.has_linear_node)
    feeds = net.feeds(N=data.draw(st.integers(1, 9)), D=data.draw(st.integers(1, 6)))
    policy = data.draw(st.sampled_from(sorted(OUTSOURCED)))
    batch, lanes = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 2]))
    note(str(net))
    check(net, policy, feeds, batch=batch, lanes=lanes)
