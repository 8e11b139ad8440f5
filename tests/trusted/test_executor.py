"""One executor over every link: the same bits, report and transcript, and what it refuses."""

import weakref
from functools import partial

import numpy as np
import pytest

import cloister.base._native as native
import nets
from byzantine.test_session import mixed_plan, with_an_open_segment
from cloister.trusted.executor import Executor
from cloister.trusted.session import Session
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.engine import Engine
from cloister.worker.serve import start_server
from trusted.links import DirectLink
from trusted.program.oracle import Oracle
from trusted.split_plans import split_plans
from trusted.test_session import POLICIES, plan_of


@pytest.fixture(scope="module")
def worker():
    link = start_local_worker()
    yield link
    link.close()


def direct(plan, feeds, **options):
    with Session(plan, workers=[DirectLink()], on_clip="ignore", **options) as session:
        return session.run(feeds)


def shapes(result):
    return [(e.direction, e.target_id, e.dtype, e.shape) for e in result.transcript.entries]


def rows(result):
    return [
        (
            row.name, row.protection, row.bytes_to_worker, row.bytes_from_worker,
            row.soundness_bits, row.clipped, row.quantised, row.clipped_share,
        )
        for row in result.report.layers
    ]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", nets.ALL)
def test_outputs_report_and_transcript_do_not_depend_on_the_link(worker, net, policy):
    model = nets.ALL[net]()
    plan = plan_of(model, policy)
    session = Session(plan, workers=[worker], on_clip="ignore")
    # Not closed, because that would close the worker; twice, because the memory is used again.
    for count, factor in ((1, 1), (3, 10), (3, 1), (1, 10)):
        feeds = nets.samples(model, count, seed=count)
        feeds = {name: np.float32(factor) * value for name, value in feeds.items()}
        expected, result = direct(plan, feeds), session.run(feeds)
        for name, value in expected.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)
        assert shapes(result) == shapes(expected)
        assert rows(result) == rows(expected)
        assert result.report.inputs_beyond == expected.report.inputs_beyond
        assert factor == 1 or result.report.inputs_beyond == tuple(range(count))
    assert session._executor._at_channels[worker].keys() == {1, 3}
    assert result.report.trusted_ms > 0
    session._executor.forget(worker)


def test_batch_sizes_take_turns_in_memory(worker):
    model = nets.residual()
    plan = plan_of(model)
    session = Session(plan, workers=[worker], threads=2)
    for count in (1, 2, 3, 4, 1, 2):
        feeds = nets.samples(model, count)
        for name, value in direct(plan, feeds).outputs.items():
            np.testing.assert_array_equal(session.run(feeds).outputs[name], value)
    assert len(session._executor._at_channels[worker]) == 2
    session._executor.forget(worker)


def test_outputs_are_not_the_executors_own_memory(worker):
    model = nets.transposed()
    session = Session(plan_of(model), workers=[worker])
    first = session.run(nets.samples(model, 1, seed=1)).outputs
    copies = {name: value.copy() for name, value in first.items()}
    session.run(nets.samples(model, 1, seed=2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, copies[name])


def test_recorded_payloads_and_mixed_plans(worker):
    plan = mixed_plan()
    feeds = nets.samples(nets.chain(), 2)
    expected = direct(plan, feeds)
    for record in (False, True):
        session = Session(plan, workers=[worker], record_payloads=record)
        result = session.run(feeds)
        for name, value in expected.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)
        assert all((e.payload is not None) == record for e in result.transcript.entries)


@pytest.fixture(scope="module")
def links(worker):
    server = start_server("127.0.0.1:0")
    rpc = RpcLink(server.address)
    yield {"shm": worker, "in-process": InProcessLink(Engine().handle), "rpc": rpc}
    rpc.close()
    server.close()


PLANS = {
    **{policy: lambda p=policy: plan_of(nets.branches(), p) for policy in (*POLICIES, "open")},
    "local nodes": lambda: plan_of(nets.sequence()),
    "hidden, then clear": mixed_plan,
    "open segment": with_an_open_segment,
}


@pytest.mark.parametrize("name", PLANS)
def test_every_link_gives_the_same_bits_and_the_same_transcript(links, name):
    plan = PLANS[name]()
    inputs = {value: plan.graph.types[value].shape[1:] for value in plan.graph.inputs}
    rng = np.random.default_rng(3)
    feeds = {value: rng.standard_normal((3, *shape), np.float32) for value, shape in inputs.items()}
    results = {}
    for kind, link in links.items():
        # Not closed, because that would close the link.
        session = Session(plan, workers=[link], on_clip="ignore")
        results[kind] = [session.run(feeds) for _ in range(2)][-1]
    shared = results.pop("shm")
    assert len(shared.transcript) > 0
    for other in results.values():
        for value, array in shared.outputs.items():
            np.testing.assert_array_equal(other.outputs[value], array)
        assert shapes(other) == shapes(shared)
        assert rows(other) == rows(shared)


def test_a_plan_with_an_open_segment_is_exchanged_natively(links):
    plan = with_an_open_segment()
    session = Session(plan, workers=[links["shm"]])
    session.run(nets.samples(nets.chain(), 1))
    exchanges = session._executor._at_channels[links["shm"]][1].exchanges
    assert sum(exchange is not None for exchange in exchanges) == 3
    kinds = [type(step).__name__ for step in session._executor.program.steps]
    assert kinds.count("Segment") == 1


@pytest.mark.parametrize("policy", ["origami-prefix", "origami-none"])
@pytest.mark.parametrize("net", nets.ALL)
def test_at_every_split_every_link_does_what_the_interpreter_says(links, net, policy):
    """The native executor exchanges the segments of one value, a link those of several."""
    model = nets.ALL[net]()
    for plan in split_plans(model, policy):
        for link in links.values():
            oracle = Oracle(plan)
            # Not closed, because that would close the link.
            session = oracle.session(link, record=False)
            for count in (3, 1):
                feeds = nets.samples(model, count, seed=count)
                result = session.run(feeds)
                oracle.assert_explains(result, feeds)
            (sent,) = [row for row in result.report.layers if row.name.startswith("open segment")]
            crossed = result.transcript.messages(target_id=len(plan.linear_nodes))
            assert sent.bytes_to_worker + sent.bytes_from_worker == sum(e.nbytes for e in crossed)


def test_a_segment_gets_the_same_bits_on_every_instruction_set(links, isa):
    model = nets.chain()
    for plan in split_plans(model, "origami-prefix"):
        oracle = Oracle(plan)
        feeds = nets.samples(model, 3)
        oracle.assert_explains(oracle.session(links["shm"], record=False).run(feeds), feeds)


class Tracking(DirectLink):
    """Counts the arrays that are still held of those it lent and those it answered with."""

    def __init__(self):
        super().__init__()
        self._arrays = []
        self.held = []

    def send_buffer(self, spec):
        buffer = super().send_buffer(spec)
        self._arrays.append(weakref.ref(buffer))
        return buffer

    def receive(self, request_id, *, timeout_s):
        self.held.append(sum(array() is not None for array in self._arrays))
        (reply,) = super().receive(request_id, timeout_s=timeout_s)
        self._arrays.append(weakref.ref(reply.expose_unchecked()))
        return (reply,)


@pytest.mark.parametrize("policy", POLICIES)
def test_messages_and_answers_of_a_link_are_not_held_longer_than_needed(policy):
    link = Tracking()
    with Session(plan_of(nets.chain(), policy), workers=[link]) as session:
        session.run(nets.samples(nets.chain(), 2))
    assert link.held == [1, 1, 1]


class Counting(DirectLink):
    """Keeps the ids of its requests; the user interrupts the first one."""

    def __init__(self):
        super().__init__()
        self.ids = []

    def receive(self, request_id, *, timeout_s):
        self.ids.append(request_id)
        if len(self.ids) == 1:
            raise KeyboardInterrupt
        return super().receive(request_id, timeout_s=timeout_s)


@pytest.mark.parametrize("again", [False, True])
def test_no_request_id_is_used_twice_whatever_is_interrupted(monkeypatch, again):
    link = Counting()
    feeds = nets.samples(nets.chain(), 1)
    with Session(plan_of(nets.chain()), workers=[link]) as session:
        with monkeypatch.context() as patch:
            if again:

                def interrupted(*_):
                    raise KeyboardInterrupt

                patch.setattr(Executor, "_end", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.run(feeds)
        session.run(feeds)
    assert len(link.ids) == 4 == len(set(link.ids))


# ---- the native executor


def shape_of(sinks=()):
    return native.FusedShape(height=1, width=1, channels=1, sinks=sinks)


ONE = np.ones(1, np.float32)
COEFFICIENTS = np.ones(1, np.uint64)


def add_fused(executor, step, **changes):
    given = {
        "node": None, "unblinds": False, "binds": True, "reply": None, "residual": None,
        "store_pre": None, "store_post": None, "sink_nodes": [], "messages": [], "clipped": [],
    }  # fmt: skip
    executor.add_fused(step, **(given | changes))


def reading(node):
    return {"node": node, "reply": np.zeros((1, 1, 1, 1), np.uint32)}


def writing(node):
    return {"sink_nodes": [node], "messages": [None], "clipped": [np.zeros(1, np.uint64)]}


def test_a_checked_step_cannot_be_built_without_coefficients():
    scales = {"scale": ONE, "bias": ONE}
    for wrong in ({}, {"a": COEFFICIENTS}, {"b": COEFFICIENTS}, {"a": None, "b": None}):
        with pytest.raises(TypeError):
            native.FusedStep.checked(shape_of(), **scales, **wrong)
    with pytest.raises(ValueError, match="a needs 1 values"):
        native.FusedStep.checked(shape_of(), **scales, a=COEFFICIENTS[:0], b=COEFFICIENTS)
    for wrong in ({}, {"rows": None, "columns": None}, {"columns": COEFFICIENTS}):
        with pytest.raises(TypeError):
            native.Sink.checked(inv_scale=1.0, qmax=1, **wrong)
    step = native.FusedStep.checked(shape_of(), **scales, a=COEFFICIENTS, b=COEFFICIENTS)
    assert step.is_checked
    assert not native.FusedStep.unchecked(shape_of(), **scales).is_checked
    assert not [name for name in dir(step) if name.startswith("set_")]


def test_the_executor_refuses_steps_without_coefficients_for_checked_nodes():
    executor = native.Executor(checked=[True, False], batch=1, threads=1)
    scales = {"scale": ONE, "bias": ONE}
    believes = native.FusedStep.unchecked(shape_of(), **scales)
    compares = native.FusedStep.checked(shape_of(), **scales, a=COEFFICIENTS, b=COEFFICIENTS)
    plain = native.Sink.unchecked(inv_scale=1.0, qmax=1)
    summed = native.Sink.checked(
        inv_scale=1.0, qmax=1, rows=COEFFICIENTS.reshape(1, 1, 1), columns=None
    )
    for step, node in ((believes, 0), (compares, 1)):
        with pytest.raises(ValueError, match="checked node needs a checked step"):
            add_fused(executor, step, **reading(node))
    for sink, node in ((plain, 0), (summed, 1)):
        with pytest.raises(ValueError, match="needs coefficients"):
            add_fused(executor, native.FusedStep.of_values(shape_of([sink])), **writing(node))
    for step, node in ((compares, 0), (believes, 1)):
        add_fused(executor, step, **reading(node))
    for sink, node in ((summed, 0), (plain, 1)):
        add_fused(executor, native.FusedStep.of_values(shape_of([sink])), **writing(node))


def test_a_step_out_of_order_sends_nothing():
    executor = native.Executor(checked=[False], batch=1, threads=1)
    executor.add_exchange(
        node=0, packet=bytes(16), answer=bytes(16), id_offset=4, staged=None, place=None
    )
    for begun in (False, True):
        if begun:
            executor.begin()
        with pytest.raises(RuntimeError, match="not there"):
            executor.run(0, next_request_id=1, descriptor=-1, timeout_s=1.0, max_packet_bytes=64)


def test_an_answer_of_another_size_is_not_read():
    executor = native.Executor(checked=[False], batch=1, threads=1)
    plain = native.Sink.unchecked(inv_scale=1.0, qmax=1)
    add_fused(executor, native.FusedStep.of_values(shape_of([plain])), **writing(0))
    executor.add_outside(node=0)
    step = native.FusedStep.unchecked(shape_of(), scale=ONE, bias=ONE)
    add_fused(executor, step, node=0, binds=False)
    executor.begin()
    run = partial(
        executor.run, next_request_id=1, descriptor=-1, timeout_s=1.0, max_packet_bytes=64
    )
    assert run(0).why == "unbound"
    message, value = np.zeros((1, 1, 1, 1), np.int16), np.ones((1, 1, 1, 1), np.float32)
    executor.bind(0, source=value, residual=None, messages=[message], pads=[None])
    assert (run(0).why, run(1).why) == ("outside", "outside")
    for wrong in (np.zeros((2, 1, 1, 1), np.uint32), np.zeros((1, 1, 1, 1), np.int32)):
        with pytest.raises(ValueError, match="another type or size"):
            executor.answered(1, wrong)
    executor.answered(1, np.zeros((1, 1, 1, 1), np.uint32))
    assert run(2).why == "done"


def unblinding(executor, node, step=None):
    executor.add_outside(node=node)
    step = step or native.FusedStep.unchecked(shape_of(), scale=ONE, bias=ONE)
    reply = np.zeros((1, 1, 1, 1), np.uint32)
    add_fused(executor, step, node=node, binds=False, unblinds=True, reply=reply)


def pads(words=16, mask_key=None, images=1):
    return {
        "keys": [bytes(32)] * images,
        "pad_ids": range(images),
        "terms": [np.zeros(words, np.uint32)] * images,
        "mask_keys": [mask_key] * images,
    }


@pytest.mark.parametrize("offset", [-16, 8, 16, 32])
def test_terms_lie_inside_a_pad_set(offset):
    with pytest.raises(ValueError, match="multiple of 16 words"):
        native.Executor(checked=[False], batch=1, threads=1, pad_offsets={0: offset}, pad_words=16)


def test_an_answer_without_terms_is_not_unblinded():
    executor = native.Executor(
        checked=[False, False], batch=1, threads=1, pad_offsets={0: 0}, pad_words=16
    )
    unblinding(executor, 0)
    with pytest.raises(ValueError, match="needs its terms"):
        unblinding(executor, 1)


def test_pads_of_another_size_or_number_are_refused():
    executor = native.Executor(
        checked=[False], batch=1, threads=1, pad_offsets={0: 0}, pad_words=16
    )
    for wrong in (pads(15), pads(17), {**pads(), "keys": []}, {**pads(), "mask_keys": []}):
        with pytest.raises(ValueError, match="terms"):
            executor.begin(**wrong)
    with pytest.raises(ValueError, match="one pad set per image"):
        executor.begin(**pads(images=2))
    for key in (bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            executor.begin(**{**pads(), "keys": [key]})
        with pytest.raises(ValueError, match="32 bytes"):
            executor.begin(**pads(mask_key=key))
    executor.begin(**pads())


def test_masked_terms_are_refused_where_an_answer_is_unblinded_unchecked():
    executor = native.Executor(
        checked=[True, False], batch=1, threads=1, pad_offsets={0: 0, 1: 16}, pad_words=32
    )
    with pytest.raises(ValueError, match="not checked"):
        executor.begin(**pads(32, mask_key=bytes(32)))
    executor.begin(**pads(32))


def test_the_callers_time_counts_for_the_step_that_stopped():
    executor = native.Executor(checked=[], batch=1, threads=1)
    executor.add_outside()
    executor.add_outside()
    run = partial(
        executor.run, next_request_id=1, descriptor=-1, timeout_s=1.0, max_packet_bytes=64
    )
    executor.begin()
    costs = np.full((2, 3), -1, np.int64)
    assert [run(first).step for first in range(3)] == [0, 1, 2]
    sums = executor.costs(costs, 2)
    assert np.all(costs[:, [0, 2]] > 0)
    assert not costs[:, 1].any()
    assert sums == tuple(costs.sum(axis=0))
    assert executor.costs(costs, 1) == tuple(costs[0])
    executor.begin()
    executor.costs(costs, 2)
    assert not costs.any()
    with pytest.raises(ValueError, match="room for three numbers"):
        executor.costs(np.zeros((1, 3), np.int64), 1)


def test_python_is_part_of_the_trusted_time():
    with Session(plan_of(nets.chain()), workers=[DirectLink()]) as session:
        report = session.run(nets.samples(nets.chain(), 2)).report
    assert 0 < report.python_ms < report.trusted_ms
