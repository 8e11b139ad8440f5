"""Plans that are split, against the slow interpreter, bit for bit, and against float32."""

import numpy as np
import pytest
from hypothesis import event, given, note, reject, settings
from hypothesis import strategies as st

import nets
from cloister.errors import CloisterError, InputError, PlanError
from cloister.graph.onnx import read
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import OPEN, SPLITTING
from cloister.trusted.program.steps import Segment
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker.engine import Engine
from cloister.worker.serve import start_server
from trusted.program.oracle import Oracle
from trusted.program.test_step_interpreter import inputs
from trusted.random_models import models, runtime
from trusted.split_plans import every_split, split_plans
from trusted.test_random_models import EXAMPLES, FIXED_POINT, batches, is_listed, random_models
from trusted.test_session import plain


def one_message(program) -> bool:
    """Whether what is open is one step."""
    opened = any(one == OPEN for one in program.plan.protections.values())
    return sum(isinstance(step, Segment) for step in program.steps) == opened


@pytest.mark.parametrize("policy", SPLITTING)
@pytest.mark.parametrize("net", nets.ALL)
def test_every_split_of_every_model(net, policy):
    """Batches in parts and whole, inputs beyond the calibrated range."""
    model = nets.ALL[net]()
    for plan in split_plans(model, policy):
        oracle = Oracle(plan)
        with oracle.session(InProcessLink(Engine().handle)) as session:
            for count, factor in ((3, 1), (1, 10)):
                feeds = inputs(model, count, factor=factor)
                oracle.assert_explains(session.run(feeds), feeds)
            feeds = nets.samples(model, 4)  # those that set the ranges
            outputs = session.run(feeds).outputs
        for found, wanted in zip(outputs.values(), plain(model, feeds), strict=True):
            tolerance = FIXED_POINT * np.abs(wanted).max(initial=1.0)
            np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def connect():
    """A new link of one kind; links of one kind share a worker."""
    local = connect_local_worker(len(nets.ALL) * len(SPLITTING))
    server = start_server("127.0.0.1:0")
    made = []

    def link(kind):
        made.append(local.pop() if kind == "shm" else RpcLink(server.address))
        return made[-1]

    yield link
    for one in (*made, *local):
        one.close()
    server.close()


@pytest.mark.parametrize("kind", ["shm", "rpc"])
@pytest.mark.parametrize("policy", SPLITTING)
@pytest.mark.parametrize("net", nets.ALL)
def test_over_every_link(connect, net, policy, kind):
    """One split in the middle; memory is used again by smaller batches."""
    model = nets.ALL[net]()
    plans = list(split_plans(model, policy, ends=1))
    oracle = Oracle(plans[len(plans) // 2])
    with oracle.session(connect(kind)) as session:
        for count in (3, 1, 4):
            feeds = inputs(model, count)
            oracle.assert_explains(session.run(feeds), feeds)


def check(data, policy, link):
    net = data.draw(models())
    feeds = net.feeds(N=data.draw(st.integers(1, 5)), D=data.draw(st.integers(1, 4)))
    note(str(net))
    model = net.model()
    try:
        runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    graph = normalise.prepare(read.from_model(model, name="random"))
    splits = every_split(graph)
    if not splits:
        event("no place to split")
        return
    split = data.draw(st.sampled_from(splits))
    note(split.name)
    try:
        plan = policies.make(policy, graph, calibration=feeds, split=PlannedSplit(split.until))
    except PlanError as error:
        if "split where" not in str(error):
            raise
        event("one value would be hidden and shown")
        return
    except InputError as error:
        # A pass adds a Reshape that the model with numbers in the place of its sizes needs not.
        if "the model has none of that name" not in str(error) or "_reshape" not in split.name:
            raise
        event("the split is at a node of a pass")
        return
    except CloisterError as error:
        if not is_listed(error, net):
            raise
        event(f"refused: {error}"[:40])
        return
    try:
        oracle = Oracle(plan, batch=data.draw(batches(plan)))
        assert one_message(oracle.program)
        with oracle.session(link) as session:
            result = session.run(feeds)
    except CloisterError as error:
        if not is_listed(error, net):
            raise
        event(f"refused: {error}"[:40])
        return
    event("compared")
    oracle.assert_explains(result, feeds)


@pytest.mark.parametrize("policy", SPLITTING)
@settings(random_models, max_examples=4 * EXAMPLES)
@given(st.data())
def test_random_models_at_random_splits(policy, data):
    check(data, policy, InProcessLink(Engine().handle))


@random_models
@given(st.data())
def test_random_models_over_shared_memory(data):
    check(data, data.draw(st.sampled_from(sorted(SPLITTING))), None)
