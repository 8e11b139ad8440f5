from dataclasses import replace

import pytest
from onnx import TensorProto, helper

import nets
from cloister.errors import InputError, PlanError, UnsupportedError
from cloister.graph.hidden import hide
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.planner.find_plan import accepted_splits, find_plan
from cloister.planner.goals import Goals, InputHiding, Objective
from plan.split_reports import report_of
from planner.priced import deep, graph_of

PROVEN, EMPIRICAL = InputHiding.PROVEN, InputHiding.EMPIRICAL


def test_a_small_model_is_measured_and_planned():
    graph = graph_of(nets.residual)
    seen = []
    found = find_plan(graph, Goals(PROVEN, "full"), repeats=1, progress=lambda *at: seen.append(at))
    assert {one.policy for one in found.plans} == {"enclave", "slalom"}
    assert found.chosen in found.best
    assert all(one.cost.trusted_ms > 0 for one in found.plans)
    stages = dict.fromkeys(stage for stage, _, _ in seen)
    assert list(stages) == ["measuring", "searching"]
    assert all(done <= total for _, done, total in seen)


def test_splits_come_from_the_audit():
    graph = graph_of(deep)
    until = graph.nodes[5].name
    found = find_plan(
        graph, Goals(EMPIRICAL, "full"), audit=report_of(graph, accepted=until), repeats=1
    )
    split = {one.split.until for one in found.plans if one.split is not None}
    assert (until,) in split
    assert (graph.nodes[3].name,) not in split
    assert all(one.split.evidence for one in found.plans if one.split is not None)
    slalom = [one for one in found.plans if one.policy == "slalom"]
    assert all(one.split is None for one in slalom)


def test_an_audit_that_accepts_nothing_leaves_plans_without_a_split():
    graph = graph_of(deep)
    found = find_plan(
        graph, Goals(EMPIRICAL, "full"), audit=report_of(graph, accepted=None), repeats=1
    )
    assert {one.policy for one in found.plans} == {"enclave", "slalom"}


def test_splits_inside_a_hidden_end_are_left_out():
    graph = graph_of(deep)
    report = report_of(graph, accepted=graph.nodes[3].name)
    every = accepted_splits(graph, report, audited=graph)
    outer = hide(graph, last=3).named(bytes(32))
    fewer = accepted_splits(outer, report, audited=graph)
    assert 0 < len(fewer) < len(every)
    assert fewer == every[: len(fewer)]


def test_an_audit_of_another_model_is_refused():
    graph, other = graph_of(deep), graph_of(nets.chain)
    with pytest.raises(PlanError, match="audit this model"):
        find_plan(graph, Goals(EMPIRICAL), audit=report_of(other, accepted=None))
    report = report_of(graph, accepted=graph.nodes[3].name)
    with pytest.raises(PlanError, match="audit this model"):
        find_plan(graph, Goals(EMPIRICAL), audit=replace(report, model_sha256="0" * 64))


def test_a_model_of_fixed_batch_takes_its_own():
    net = nets.Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 6]))
    mean = net.op("ReduceMean", "x", axes=[0], keepdims=1)
    y = net.gemm(net.op("Sub", "x", mean), 6, 4)
    graph = normalise.prepare(read.from_model(net.model(y), name="mixed"))
    assert graph.batch == 3
    found = find_plan(graph, Goals(PROVEN, "full"), repeats=1, batch=5)
    assert {one.policy for one in found.plans} == {"enclave", "slalom"}


def test_goals_and_audit_belong_together():
    graph = graph_of(nets.chain)
    with pytest.raises(InputError, match="--hide-input empirical: needs --audit"):
        find_plan(graph, Goals(EMPIRICAL))
    with pytest.raises(InputError, match="--audit: goes with --hide-input empirical"):
        find_plan(graph, Goals(PROVEN), audit=report_of(graph, accepted=None))


def test_a_hidden_end_is_part_of_every_plan():
    graph = graph_of(nets.chain)
    found = find_plan(
        graph, Goals(PROVEN, "full", objective=Objective.LATENCY), hidden=hide(graph, last=1),
        repeats=1,
    )  # fmt: skip
    for one in found.plans:
        assert one.cost.module_ms > 0
        assert [p.name for p in one.protections.values()].count("module") == 1


def test_a_model_that_is_hidden_as_a_whole_leaves_nothing_to_plan():
    graph = graph_of(nets.chain)
    with pytest.raises(UnsupportedError, match="--hide-weights: all layers are hidden"):
        find_plan(graph, Goals(), hidden=hide(graph, last=3))


def test_the_open_policy_is_measured_as_one_segment():
    found = find_plan(graph_of(nets.chain), Goals(), repeats=1)
    (one,) = [plan for plan in found.plans if plan.policy == "open"]
    assert one.cost.worker_ms > 0
    assert one.hidden_nodes == frozenset()
