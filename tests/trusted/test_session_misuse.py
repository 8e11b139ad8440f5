"""Sessions used as they should not be: forks, threads, foreign pads, odd models."""

import os
import threading
import traceback

import numpy as np
import pytest
from onnx import TensorProto, helper

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import (
    InputError,
    PadReusedError,
    PlanError,
    ProtocolError,
    RangeError,
    VerificationError,
)
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted import executor
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.store import PadStore
from cloister.trusted.session import Session
from cloister.wire.messages import Unchecked
from cloister.wire.shm.shm_link import connect_local_worker
from trusted.links import DirectLink
from trusted.test_session import flip_one, plan_of
from trusted.test_transcript_is_uniform import ALARM, p_value


def in_a_fork(action) -> bool:
    """Whether an action raises nothing in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:  # noqa: BLE001  (the child must not run on into pytest)
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_of_a_session_cannot_use_the_same_pads_again():
    plan = plan_of(nets.chain())
    pads = InlinePads(plan, rng=SystemRandom())
    session = Session(plan, workers=[DirectLink()], pads=pads)

    def run_in_the_child():
        with pytest.raises(PlanError, match="another process"):
            session.run(nets.samples(nets.chain(), 1))
        with pytest.raises(PadReusedError, match="another process"):
            pads.take(1)
        session.close()

    assert in_a_fork(run_in_the_child)
    session.run(nets.samples(nets.chain(), 1))


def test_threads_take_turns():
    model = nets.residual()
    feeds = [nets.samples(model, 2, seed=i) for i in range(4)]
    with Session(plan_of(model), workers=[DirectLink()]) as session:
        expected = [session.run(feed).outputs for feed in feeds]
        found: dict[int, dict[str, np.ndarray]] = {}

        def work(i):
            for _ in range(5):
                found[i] = session.run(feeds[i]).outputs

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, outputs in enumerate(expected):
        for name, value in outputs.items():
            np.testing.assert_array_equal(found[i][name], value)


def test_pads_of_another_plan_are_refused():
    other = InlinePads(plan_of(nets.residual()), rng=SystemRandom())
    with pytest.raises(PlanError, match="make pads for this plan"):
        Session(plan_of(nets.chain()), workers=[DirectLink()], pads=other)


@pytest.mark.parametrize("policy", ["verified", "enclave", "open"])
def test_pads_that_a_plan_would_not_use_are_refused(policy, tmp_path):
    """Whoever hands in pads expects inputs to be hidden; a plan that was swapped must not run."""
    plan = plan_of(nets.chain(), policy)
    for digest, text in ((plan.digest, "blinds nothing"), (bytes(32), "make pads for this plan")):
        pads = PadStore.create(
            tmp_path / "pads", plan_digest=digest, layout=PadLayout.of(plan), sealed=True,
            key_file=tmp_path / digest.hex()[:8], rng=SystemRandom(),
        )  # fmt: skip
        link = DirectLink()
        with pytest.raises(PlanError, match=text):
            Session(plan, workers=[link], pads=pads)
        assert not link.maps


def test_one_worker_under_two_entries_is_refused():
    with pytest.raises(PlanError, match="twice"):
        Session(plan_of(nets.chain()), workers=[DirectLink("a"), DirectLink("a")])


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1:7001", "localhost:7001"), ("127.0.0.1:7001", "0.0.0.0:7001"),
     ("[::1]:7001", "127.0.0.2:7001"), ("203.0.113.1:7001", "[::ffff:203.0.113.1]:7001"),
     ("127.0.0.1:7001", "127.0.0.1:7001")],
)  # fmt: skip
def test_one_worker_under_two_addresses_is_refused(first, second):
    plan = plan_of(nets.chain())
    named = [DirectLink("a", address=first), DirectLink("b", address=second)]
    for workers in ([first, second], named, [first, named[1]]):
        with pytest.raises(PlanError, match="twice"):
            Session(plan, workers=workers)


def test_workers_on_several_ports_of_one_machine_are_several():
    plan = plan_of(nets.chain())
    Session(plan, workers=["127.0.0.1:7001", "localhost:7002", "203.0.113.1:7001"]).close()


def test_a_worker_whose_name_leads_nowhere_is_refused_beside_another():
    with pytest.raises(InputError, match="does not resolve"):
        Session(plan_of(nets.chain()), workers=["127.0.0.1:7001", "ipv4:127.0.0.1:7001"])


def test_connections_to_one_process_under_two_names_are_refused():
    links = connect_local_worker(2)
    links[1].name = "another"
    try:
        with pytest.raises(PlanError, match="twice"):
            Session(plan_of(nets.chain()), workers=links)
    finally:
        for link in links:
            link.close()


def not_a_number_inside():
    """sqrt of a negative number on the way to a residual sum."""
    net = nets.Net()
    x = net.conv(net.input("image", 2, 5, 6), 2, 4, (1, 1))
    y = net.op("Sqrt", net.op("Mul", x, net.constant(np.float32(-1))))
    z = net.op("Add", net.conv(x, 4, 4, (1, 1)), y)
    return net.model(net.conv(z, 4, 3, (1, 1)))


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_not_a_number_inside_is_an_error_not_a_result(value):
    model = not_a_number_inside()
    graph = normalise.prepare(read.from_model(model, name="net"))
    ranges = {node.name: (4.0,) for node in graph.nodes}
    plan = policies.from_ranges("slalom", graph, ranges=ranges)
    feeds = {"image": np.full((1, 2, 5, 6), value, np.float32)}
    session = Session(plan, workers=[DirectLink()])
    with session, pytest.raises(RangeError, match="NaN"):
        session.run(feeds)


ODD = np.array([255, 0, 2], np.uint8).view(np.bool_)
"""Truth values of which compiled code makes 257 rows of memory that nobody wrote."""


def truths(net):
    net.inputs.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, [3]))
    return "chosen"


def uncalibrated(model, policy):
    for output in model.graph.output:
        output.type.Clear()
    graph = normalise.prepare(read.from_model(model, name="net"))
    return policies.make(policy, graph, calibration=None)


@pytest.mark.parametrize("policy", ["enclave", "open"])
def test_truth_values_of_a_caller_are_0_or_1(policy):
    net = nets.Net()
    rows = net.op("Compress", net.input("rows", 4), truths(net), axis=0)
    plan = uncalibrated(net.model(net.op("ReduceSum", rows, keepdims=1)), policy)
    feeds = {"rows": np.ones((3, 4), np.float32), "chosen": ODD}
    with (
        Session(plan) as session,
        pytest.raises(RangeError, match="input 'chosen' holds truth values"),
    ):
        session.run(feeds)


class OddTruth(DirectLink):
    """Answers an open segment with truth values that are none."""

    def load_segment(self, target_id: int, model: bytes) -> None:
        pass

    def submit(self, request_id: int, target_id: int, tensors, expect) -> None:
        assert [(spec.dtype, spec.shape) for spec in expect] == [(ODD.dtype, ODD.shape)]

    def receive(self, request_id: int, *, timeout_s: float):
        return (Unchecked(ODD),)


def test_truth_values_of_a_worker_are_0_or_1():
    net = nets.Net()
    plan = uncalibrated(net.model(net.op("Not", truths(net))), "open")
    with (
        Session(plan, workers=[OddTruth("odd")]) as session,
        pytest.raises(ProtocolError, match=r"worker odd: .* holds truth values"),
    ):
        session.run({"chosen": np.array([True, False, True])})


def picks_a_row():
    """A linear layer chooses an index: a wrong answer can leave the table."""
    net = nets.Net()
    x = net.gemm(net.input("row", 4), 4, 1)
    index = net.op("Cast", net.op("Mul", x, net.constant(np.float32(0))), to=7)
    table = net.constant(np.eye(3, 5, dtype=np.float32))
    return net.model(net.op("Flatten", net.op("Gather", table, index, axis=0)))


def test_local_nodes_that_fail_raise_our_error_without_values(capfd):
    model = picks_a_row()
    plan = plan_of(model, "blinded")
    huge = DirectLink(lie=lambda _, answer: answer + np.uint32(2**30))
    feeds = nets.samples(model, 1)
    with Session(plan, workers=[DirectLink()]) as session:
        session.run(feeds)
    # The factor zero is folded into the layer's weights, so its answer is the index itself.
    with (
        Session(plan, workers=[huge]) as session,
        pytest.raises(RangeError, match="cannot compute"),
    ):
        session.run(feeds)
    assert capfd.readouterr().err == ""


def test_every_session_draws_its_own_coefficients():
    plan = plan_of(nets.chain())
    first, second = (Session(plan, workers=[DirectLink()]) for _ in range(2))
    one, two = (session._executor.checks.vectors(0) for session in (first, second))
    for name in ("a", "b", "rows"):
        assert np.mean(getattr(one, name) == getattr(two, name)) < 0.1
    assert "[" not in repr(one)


def test_an_interrupted_redraw_is_made_up_for(monkeypatch):
    plan = plan_of(nets.chain())
    feeds = nets.samples(nets.chain(), 1)
    links = [DirectLink("liar", lie=flip_one), DirectLink("b"), DirectLink("c")]
    with Session(plan, workers=links) as session:
        with pytest.raises(VerificationError):
            session.run(feeds)
        before = session._executor.checks.vectors(0)
        with monkeypatch.context() as patch:

            def interrupted(*_, **__):
                raise MemoryError

            patch.setattr(executor, "Checks", interrupted)
            with pytest.raises(MemoryError):
                session.run(feeds)
        assert before.rows.any(), "coefficients in use are never zero"
        session.run(feeds)
        assert session._executor.checks.vectors(0) is not before


def test_replies_under_blinding_are_uniform_too():
    """Defect 22 of the published prototype: logits left in the clear."""
    plan = plan_of(nets.residual())
    link = DirectLink()
    with Session(plan, workers=[link], on_clip="ignore") as session:
        session.run(nets.samples(nets.residual(), 200))
    for index, node in enumerate(plan.linear_nodes):
        answers = np.concatenate([a.ravel() for target, a in link.answered if target == index])
        # A linear map of a uniform vector is uniform where it has full rank: the last layer has.
        if index == len(plan.linear_nodes) - 1 or node.linear.geometry.kernel == (3, 3):
            assert p_value(answers) > ALARM, node.node


@pytest.mark.parametrize("again", ["run", "close"])
def test_a_progress_callback_cannot_wait_for_its_own_run(again):
    model = nets.chain()
    feeds = nets.samples(model, 2)
    with Session(plan_of(model), workers=[DirectLink()]) as session:
        calls = {"run": lambda: session.run(feeds), "close": session.close}
        with pytest.raises(PlanError, match="progress callback"):
            session.run(feeds, progress=lambda done, total: calls[again]())
