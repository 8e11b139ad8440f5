"""Sessions whose plan has a hidden part: what they compute, what they refuse, who is charged."""

import dataclasses

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import (
    BudgetError,
    EngineError,
    PlanError,
    UnsupportedError,
    VerificationError,
)
from cloister.graph.interpreter import interpret
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.protection import MODULE
from cloister.trusted import module_engines
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.trusted.executor import Executor
from cloister.trusted.program.steps import Module
from cloister.trusted.query_counter import QueryCounter
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker.engine import Engine
from graph.test_hidden import vgg
from trusted.links import DirectLink, DyingLink
from trusted.modules import InProcessEngine, Planned, Started, onnx_module, planned_end
from trusted.program.oracle import Oracle

OUTER = pytest.mark.parametrize("outer", policies.NAMES)
CHECKED = pytest.mark.parametrize("outer", ["slalom", "verified"])


@pytest.fixture
def started(monkeypatch) -> Started:
    made = Started()
    monkeypatch.setattr(module_engines, "start_engine", made)
    return made


@pytest.fixture
def counter(tmp_path) -> QueryCounter:
    return QueryCounter.create(tmp_path / "counter")


def link():
    return InProcessLink(Engine().handle)


def session_of(planned: Planned, *, worker=None, **options) -> Session:
    return Session(
        planned.plan, workers=[worker or link()], modules=planned.modules, on_clip="ignore",
        **options,
    )  # fmt: skip


# ---- what is computed


@OUTER
@pytest.mark.parametrize("net", nets.ALL)
def test_a_session_does_what_the_interpreter_says(net, outer, started):
    """Bit for bit: outputs, messages, answers; on all nets, behind every policy."""
    model = nets.ALL[net]()
    planned = planned_end(model, outer)
    name = planned.plan.modules[0].node
    oracle = Oracle(planned.plan, modules={name: planned.function})
    assert sum(isinstance(step, Module) for step in oracle.program.steps) == 1
    with oracle.session(link(), modules=planned.modules) as session:
        for count in (3, 1):
            feeds = nets.samples(model, count, seed=count)
            oracle.assert_explains(session.run(feeds), feeds)
    assert started.calls == [2, 1, 1]


@pytest.mark.parametrize("last", [1, 2, 3])
def test_over_shared_memory(last, started):
    model = nets.residual()
    planned = planned_end(model, last=last)
    oracle = Oracle(planned.plan, modules={planned.plan.modules[0].node: planned.function})
    (local,) = connect_local_worker(1)
    with oracle.session(local, modules=planned.modules) as session:
        feeds = nets.samples(model, 3)
        oracle.assert_explains(session.run(feeds), feeds)


@OUTER
def test_outputs_are_close_to_float32(outer, started):
    model = vgg()
    planned = planned_end(model, outer, last=2)
    feeds = nets.samples(model, 5)
    with session_of(planned, batch=2) as session:
        result = session.run(feeds)
    for name, expected in interpret(planned.whole, feeds).items():
        np.testing.assert_allclose(result.outputs[name], expected, atol=0.02)
    assert started.calls == [2, 2, 1]


def test_a_whole_model_that_is_hidden_needs_no_worker(started):
    model = vgg()
    planned = planned_end(model, "open", last=5)
    feeds = nets.samples(model, 3)
    with Session(planned.plan, modules=planned.modules) as session:
        result = session.run(feeds)
    assert result.report.workers == ()
    (expected,) = interpret(planned.whole, feeds).values()
    np.testing.assert_allclose(next(iter(result.outputs.values())), expected, atol=1e-5)


@OUTER
def test_a_saved_plan_gives_the_same_bits(outer, started):
    planned = planned_end(vgg(), outer, last=2)
    feeds = nets.samples(vgg(), 3)
    found = []
    for plan in (planned.plan, Plan.from_bytes(planned.plan.to_bytes())):
        with session_of(dataclasses.replace(planned, plan=plan)) as session:
            found.append(session.run(feeds).outputs)
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])


def test_lanes_share_the_engine_of_a_module(started, counter):
    planned = planned_end(vgg(), last=2, queries=20)
    feeds = nets.samples(vgg(), 12)
    links = [DirectLink("one"), DirectLink("two")]
    with Session(
        planned.plan, workers=links, modules=planned.modules, counter=counter, batch=2,
        on_clip="ignore",
    ) as session:  # fmt: skip
        result = session.run(feeds)
    assert len(started.engines) == 1
    assert sorted(started.calls) == [2] * 6
    assert (result.report.queries_used, result.report.queries_left) == (12, 8)
    for name, expected in interpret(planned.whole, feeds).items():
        np.testing.assert_allclose(result.outputs[name], expected, atol=0.02)


@pytest.mark.parametrize("build", [vgg, nets.residual])
def test_a_real_engine_gives_the_same_bits(build):
    """ONNX Runtime in a locked process of its own."""
    model = build()
    planned = planned_end(model, last=2)
    feeds = nets.samples(model, 3)
    function = InProcessEngine(planned.module, optimised=True).run
    oracle = Oracle(planned.plan, modules={"module": function})
    with oracle.session(link(), modules=planned.modules, engine="onnxruntime") as session:
        result = session.run(feeds)
        oracle.assert_explains(result, feeds)
    (row,) = (row for row in result.report.layers if row.protection == MODULE.name)
    assert row.module_ms == result.report.module_ms > 0
    assert row.worker_ms == row.bytes_to_worker == 0


# ---- wrong answers of workers stop before the module


@CHECKED
@pytest.mark.parametrize("net", ["chain", "residual", "separable", "several", "text"])
def test_a_lie_reaches_no_module_and_charges_nothing(net, outer, started, counter):
    """Whichever answer is wrong, the last one before the module too."""
    model = nets.ALL[net]()
    planned = planned_end(model, outer, queries=100)
    for lying in range(len(planned.plan.linear_nodes)):

        def lie(target, answer, lying=lying):
            if target == lying:
                answer.flat[answer.size // 2] += np.uint32(1)
            return answer

        worker = DirectLink(lie=lie)
        with (
            session_of(planned, worker=worker, counter=counter) as session,
            pytest.raises(VerificationError),
        ):
            session.run(nets.samples(model, 2))
    assert started.calls == []
    assert counter.used(planned.module.manifest.digest) == 0


def test_an_answer_that_nobody_checks_reaches_the_module(started, counter):
    """Blinded and open plans say that a worker's lies are believed: the module answers them."""
    planned = planned_end(vgg(), "blinded", last=2, queries=100)
    worker = DirectLink(lie=lambda _, answer: answer + np.uint32(1))
    with session_of(planned, worker=worker, counter=counter) as session:
        session.run(nets.samples(vgg(), 2))
    assert counter.used(planned.module.manifest.digest) == 2


def test_a_repeated_micro_batch_is_charged_once(started, counter):
    planned = planned_end(vgg(), last=2, queries=100)
    workers = [DyingLink("dies", fatal=2), DirectLink("lives")]
    with Session(
        planned.plan, workers=workers, modules=planned.modules, counter=counter, lanes=1,
        on_clip="ignore",
    ) as session:  # fmt: skip
        result = session.run(nets.samples(vgg(), 3))
    assert result.report.workers_lost == ("dies",)
    assert counter.used(planned.module.manifest.digest) == 3


# ---- queries


def test_queries_are_counted_over_sessions(started, counter):
    planned = planned_end(vgg(), last=2, queries=5)
    feeds = nets.samples(vgg(), 2)
    for used in (2, 4):
        with session_of(planned, counter=counter) as session:
            report = session.run(feeds).report
        assert (report.queries_used, report.queries_left) == (2, 5 - used)
    with session_of(planned, counter=counter) as session:
        with pytest.raises(BudgetError, match="1 of its 5 queries are left, and 2 are asked for"):
            session.run(feeds)
        assert session.run({n: x[:1] for n, x in feeds.items()}).report.queries_left == 0
        with pytest.raises(BudgetError, match="0 of its 5 queries"):
            session.run({n: x[:1] for n, x in feeds.items()})
    assert started.calls == [2, 2, 1]


def test_a_request_that_is_too_large_is_refused_before_anything_is_sent(started, counter):
    planned = planned_end(vgg(), last=2, queries=5)
    worker = DirectLink()
    with (
        session_of(planned, worker=worker, counter=counter, batch=2) as session,
        pytest.raises(BudgetError),
    ):
        session.run(nets.samples(vgg(), 6))
    assert worker.seen == []
    assert counter.used(planned.module.manifest.digest) == 0


def test_queries_that_another_process_took_meanwhile_are_not_answered(started, counter):
    """Charged when the module runs, and not when the request begins."""
    planned = planned_end(vgg(), last=2, queries=5)
    digest = planned.module.manifest.digest

    def elsewhere(target, answer):
        if counter.used(digest) < 5:
            counter.charge(digest, 5, limit=5)
        return answer

    with session_of(planned, worker=DirectLink(lie=elsewhere), counter=counter) as session:
        with pytest.raises(BudgetError, match="0 of its 5"):
            session.run(nets.samples(vgg(), 2))
        assert session._lanes.lied is False
    assert started.calls == []


def test_a_plan_without_a_limit_counts_what_it_used(started):
    planned = planned_end(vgg(), last=2)
    with session_of(planned) as session:
        report = session.run(nets.samples(vgg(), 3)).report
    assert (report.queries_used, report.queries_left) == (3, None)
    with Session(policies.enclave(planned.whole)) as session:
        report = session.run(nets.samples(vgg(), 3)).report
    assert (report.queries_used, report.queries_left) == (0, None)


# ---- what a session refuses


def refused(planned: Planned, message: str, **options) -> None:
    given = {"modules": planned.modules, **options}
    with pytest.raises(PlanError, match=message):
        Session(planned.plan, workers=[link()], **given)


def test_a_module_has_to_be_given(started):
    planned = planned_end(vgg(), last=2)
    refused(planned, "node 'module': a module computes it; give modules=", modules=None)
    refused(planned, "node 'module': a module computes it; give modules=", modules={})
    refused(planned, "no hidden part 'other'", modules={**planned.modules, "other": planned.module})
    with pytest.raises(PlanError, match="no module was given that runs it"):
        Executor(planned.plan, rng=SystemRandom())


def test_another_module_is_refused(started):
    planned = planned_end(vgg(), last=2)
    other = onnx_module(planned.hidden, salt=bytes(31) + b"1")
    refused(planned, "give the module that the plan was made with", modules={"module": other})
    assert started.engines == []


@pytest.mark.parametrize("change", [
    lambda m: {"inputs": m.inputs * 2},
    lambda m: {"inputs": tuple(dataclasses.replace(t, name="other") for t in m.inputs)},
    lambda m: {"inputs": tuple(dataclasses.replace(t, shape=(1, *t.shape)) for t in m.inputs)},
    lambda m: {"inputs": tuple(dataclasses.replace(t, dtype="int32") for t in m.inputs)},
    lambda m: {"outputs": ()},
    lambda m: {"outputs": tuple(dataclasses.replace(t, shape=(4,)) for t in m.outputs)},
])  # fmt: skip
def test_a_module_of_other_tensors_is_refused(change, started):
    """Its digest is what the plan names, so only a vendor's mistake makes such a plan."""
    planned = planned_end(vgg(), last=2)
    manifest = planned.module.manifest
    module = dataclasses.replace(
        planned.module, manifest=dataclasses.replace(manifest, **change(manifest))
    )
    node = planned.plan.graph.nodes[-1]
    named = {"digest": module.manifest.digest}
    nodes = (*planned.plan.graph.nodes[:-1], dataclasses.replace(node, attributes=named))
    graph = dataclasses.replace(planned.plan.graph, nodes=nodes)
    plan = dataclasses.replace(planned.plan, graph=graph)
    other = dataclasses.replace(planned, plan=plan, module=module)
    refused(other, "of its module are not those of the plan")


def test_a_limit_needs_a_counter_and_a_counter_a_limit(started, counter):
    refused(planned_end(vgg(), last=2, queries=5), "limits how many queries .* give counter=")
    refused(planned_end(vgg(), last=2), "limits no module's queries", counter=counter)


@pytest.mark.parametrize("option", ["modules", "engine", "counter", "padding"])
def test_a_plan_without_a_hidden_part_takes_none_of_it(option, counter):
    values = {"modules": {}, "engine": "native", "counter": counter, "padding": PaddingProfile()}
    plan = policies.enclave(planned_end(vgg()).whole)
    with pytest.raises(PlanError, match=f"has no hidden part; leave out {option}="):
        Session(plan, **{option: values[option]})


def test_an_unknown_engine_is_refused(started):
    refused(planned_end(vgg()), "engine= takes native, wasm, onnxruntime", engine="gpu")


class BrokenEngine(InProcessEngine):
    def run(self, inputs):
        raise EngineError("module 'module', engine native: its process was killed")


class OddEngine(InProcessEngine):
    def run(self, inputs):
        return tuple(array[:, :1] for array in super().run(inputs))


@pytest.mark.parametrize("engine", [BrokenEngine, OddEngine])
def test_a_fault_of_an_engine_is_no_lie_of_the_worker(engine, monkeypatch):
    monkeypatch.setattr(module_engines, "start_engine", lambda module, kind, **_: engine(module))
    planned = planned_end(vgg(), last=2)
    with session_of(planned) as session:
        for _ in range(2):
            with pytest.raises(EngineError):
                session.run(nets.samples(vgg(), 2))
        assert session._lanes.workers
        assert not session._lanes.lied


def test_engines_end_with_the_session_and_when_it_cannot_open(started):
    planned = planned_end(vgg(), last=2)
    with session_of(planned):
        assert not started.engines[0].closed
    assert started.engines[0].closed
    with pytest.raises(PlanError, match="workers= is empty"):
        Session(planned.plan, workers=[], modules=planned.modules)
    assert started.engines[1].closed


def test_hidden_ends_of_models_that_no_module_takes():
    net = nets.Net()
    model = net.model(net.op("Cast", net.gemm(net.input("x", 4), 4, 3), to=6))
    with pytest.raises(UnsupportedError, match="cannot make int32"):
        planned_end(model)
