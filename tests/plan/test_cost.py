"""What is stated before anything runs, against what then happens."""

import onnx
import pytest

import cloister.base._native as native
import nets
from benchmarks.first_request import measure_plan
from benchmarks.networks import build
from benchmarks.peak import measure_peak
from cloister.cli.speed import random_input
from cloister.errors import CloisterError
from cloister.graph.onnx.load import load
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan.cost import estimate
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.policies import NAMES, assign, make
from cloister.plan.protection import SPLITTING
from cloister.planner.session_memory import session_memory
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.split_plans import split_plans
from trusted.test_session import plan_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network of middle size as a file, and its calibration."""
    folder = tmp_path_factory.mktemp("memory")
    model, plan = folder / "resnet18.onnx", folder / "resnet18.plan"
    onnx.save(build("resnet18"), model)
    graph = load(model)
    samples = random_input(graph, 1)
    make("slalom", graph, calibration=samples).save(plan)
    return graph, model, plan


@pytest.mark.parametrize("batch", [1, 8])
def test_the_stated_memory_is_within_15_percent_of_the_measured_peak(place, batch):
    graph, model, plan = place
    stated = estimate(graph, assign(graph, "slalom"), batch=batch).trusted_memory_bytes
    measured = measure_peak(model, plan, batch=batch)
    assert stated == pytest.approx(measured["trusted_peak_bytes"], rel=0.15)
    assert 0 < measured["serving_peak_bytes"] <= measured["trusted_peak_bytes"]
    residents = [stage["resident_bytes"] for stage in measured["stages"]]
    assert max(residents) <= measured["trusted_peak_bytes"]


@pytest.mark.parametrize("batch", [1, 8])
def test_what_a_session_takes_is_stated_within_15_percent(place, batch):
    graph, _, plan = place
    protections = assign(graph, "slalom")
    cost = estimate(graph, protections, batch=batch)
    stated = session_memory(graph, "slalom", protections, cost, batch=batch)
    measured = measure_plan(plan, batch=batch)
    assert stated.private == pytest.approx(measured["private_bytes"], rel=0.15)
    assert stated.shared == pytest.approx(measured["shared_bytes"], rel=0.15)
    assert stated.worker == pytest.approx(measured["worker_bytes"], rel=0.15)
    assert stated.pads_per_input == PadLayout.of(Plan.load(plan)).words * 4


def test_the_child_s_own_error_is_passed_on(place, tmp_path):
    with pytest.raises(CloisterError, match=r"none\.plan: no such file"):
        measure_peak(place[1], tmp_path / "none.plan")


@pytest.mark.parametrize("policy", ["origami-prefix", "origami-none"])
def test_the_memory_of_a_split_is_stated_as_well(place, policy, tmp_path):
    graph, model, _ = place
    split = PlannedSplit(split_points(graph)[4].until)
    plan = make(policy, graph, calibration=random_input(graph, 1), split=split)
    plan.save(tmp_path / "split.plan")
    stated = estimate(graph, plan.protections).trusted_memory_bytes
    measured = measure_peak(model, tmp_path / "split.plan")["trusted_peak_bytes"]
    assert stated == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("policy", [*SPLITTING, "open"])
@pytest.mark.parametrize("net", nets.ALL)
def test_the_stated_traffic_is_what_crosses(net, policy):
    model = nets.ALL[net]()
    plans = [plan_of(model, policy)] if policy == "open" else split_plans(model, policy, ends=1)
    for plan in plans:
        cost = estimate(plan.graph, plan.protections)
        with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
            transcript = session.run(nets.samples(model, 1)).transcript
        assert cost.total("bytes_to_worker") == transcript.nbytes("to_worker")
        assert cost.total("bytes_from_worker") == transcript.nbytes("from_worker")


@pytest.mark.parametrize("policy", NAMES)
def test_the_peak_is_the_largest_phase_and_every_item_counts(policy):
    graph = prepare(from_model(nets.residual(), name="net"))
    cost = estimate(graph, assign(graph, policy))
    phases = cost.to_dict()["trusted_memory"]
    sums = {name: sum(items.values()) for name, items in phases.items()}
    assert cost.trusted_memory_bytes == max(sums.values()) == sums[cost.memory.peak_phase]
    assert min(value for items in phases.values() for value in items.values()) >= 0


def test_protections_cost_what_they_need():
    graph = prepare(from_model(nets.residual(), name="net"))
    serving = {
        policy: estimate(graph, assign(graph, policy)).memory.phases["serving requests"]
        for policy in NAMES
    }
    for item, who in (
        ("check vectors", {"slalom", "verified"}),
        ("unblinding terms", {"slalom", "blinded"}),
        ("weights packed for making pads", {"slalom", "blinded"}),
        ("integer weights", {"slalom", "verified", "blinded"}),
    ):
        assert {policy for policy in NAMES if serving[policy][item]} == who


def test_check_vectors_are_small_wherever_there_are_vector_units():
    graph = prepare(from_model(build("vgg16"), name="net"))
    before, stated = native.isa(), {}
    try:
        for isa in native.available_isas():
            native.force_isa(isa)
            phases = estimate(graph, assign(graph, "verified")).memory.phases
            stated[isa] = phases["serving requests"]["check vectors"]
    finally:
        native.force_isa(before)
    portable = stated.pop("portable")
    assert portable > 60e6
    assert all(0 < nbytes < portable / 4 for nbytes in stated.values())


def test_more_inputs_need_more_memory_for_messages_only():
    graph = prepare(from_model(nets.chain(), name="net"))
    one, four = (
        estimate(graph, assign(graph, "slalom"), batch=batch).memory.phases["serving requests"]
        for batch in (1, 4)
    )
    grown = {name for name in one if one[name] != four[name]}
    assert grown == {"unblinding terms", "messages and answers", "values between layers"}
    assert all(four[name] == 4 * one[name] for name in grown)
