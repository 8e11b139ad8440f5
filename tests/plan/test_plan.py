import numpy as np
import pytest

import nets
from cloister.errors import PlanError
from cloister.graph.onnx_import import from_model
from cloister.graph.passes import prepare
from cloister.plan import policies
from cloister.plan.compare import compare
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine


def planned(build, policy: str):
    model = build()
    samples = next(iter(nets.samples(model, 2).values()))
    graph = prepare(from_model(model, name="net"))
    return policies.make(policy, graph, calibration=samples), samples


def float_bytes(plan) -> int:
    arrays = [a for a in plan.graph.constants.values() if a.dtype == np.float32]
    return sum(array.nbytes for array in arrays if any(array.strides) or array.size == 1)


@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("name", ["chain", "residual"])
def test_a_plan_without_float_weights_is_the_same_plan(name, policy):
    plan, samples = planned(nets.ALL[name], policy)
    lean = plan.without_float_weights()
    assert lean.digest == plan.digest
    assert lean.claims() == plan.claims()
    if plan.quantised:
        assert float_bytes(lean) < float_bytes(plan) / 2
    else:
        assert float_bytes(lean) == float_bytes(plan)
    found = []
    for one in (plan, lean):
        with Session(one, workers=[InProcessLink(Engine().handle)]) as session:
            found.append(session.run(samples).outputs)
    for output, expected in found[1].items():
        np.testing.assert_array_equal(found[0][output], expected)


def test_nothing_is_compared_with_weights_that_are_gone():
    plan, samples = planned(nets.chain, "slalom")
    with pytest.raises(PlanError, match="let go of its float32 weights"):
        compare(plan.without_float_weights(), samples)
    assert compare(plan, samples).inputs == 2
