"""Plans whose last nodes a module computes: policies, what a plan refuses, its bytes and costs."""

import dataclasses
import re

import numpy as np
import pytest

import nets
from cloister.errors import CloisterError, InputError, ModelError, PlanError, UnsupportedError
from cloister.graph.graph import Graph
from cloister.graph.hidden import HiddenSplit, hide, layers
from cloister.plan import policies
from cloister.plan.cost import estimate
from cloister.plan.plan import Plan, PlannedModule
from cloister.plan.protection import (
    ENCLAVE,
    HIDING,
    MODULE,
    OPEN,
    SPLITTING,
    VERIFIED,
    hiding,
    outer_policy,
    protections_of,
)
from graph.test_graph_file import canonical, document_of, with_document
from graph.test_hidden import DIGEST, graph_of, vgg

OUTER = pytest.mark.parametrize("outer", policies.NAMES)


def plan_of_split(
    split: HiddenSplit, samples: dict[str, np.ndarray], outer: str, **named: object
) -> Plan:
    graph = split.named(DIGEST, **named)
    return policies.make(hiding(outer), graph, calibration=samples)


def module_plan(build=vgg, outer: str = "slalom", last: int = 2, **named: object) -> Plan:
    split = hide(graph_of(build()), last=last)
    return plan_of_split(split, nets.samples(build(), 4), outer, **named)


def test_policies_that_hide_an_end():
    assert HIDING == (
        "slalom+ennclave", "verified+ennclave", "blinded+ennclave", "enclave+ennclave", "ennclave",
        "origami+ennclave", "origami-prefix+ennclave", "origami-none+ennclave",
    )  # fmt: skip
    for outer in (*policies.NAMES, *SPLITTING):
        assert outer_policy(hiding(outer)) == outer
        assert outer_policy(outer) is None
        assert protections_of(hiding(outer)) == protections_of(outer) | {MODULE}
    for other in ("open+ennclave", "ennclave+ennclave", "+ennclave", "own+ennclave"):
        assert outer_policy(other) is protections_of(other) is None


@OUTER
@pytest.mark.parametrize("name", nets.ALL)
def test_the_nodes_before_an_end_are_planned_as_without_it(name, outer):
    """All of them, also where the end has most of the layers."""
    build = nets.ALL[name]
    graph, samples = graph_of(build()), nets.samples(build(), 4)
    whole = policies.make(outer, graph, calibration=samples)
    plan = module_plan(build, outer, last=min(2, len(layers(graph)) - 1))
    assert plan.policy == hiding(outer)
    module = plan.graph.nodes[-1]
    assert plan.protections == {
        **{node.name: whole.protections[node.name] for node in plan.graph.nodes[:-1]},
        module.name: MODULE,
    }
    assert plan.ranges == {n: whole.ranges[n] for n in plan.quantised}
    for node, numbers in plan.quantised.items():
        np.testing.assert_array_equal(numbers.linear.weights, whole.quantised[node].linear.weights)


def test_a_hidden_end_is_made_in_one_call():
    graph, samples = graph_of(vgg()), nets.samples(vgg(), 4)
    made = policies.ennclave(
        graph, module_digest=DIGEST, last=2, outer="slalom", queries=9, calibration=samples
    )
    assert made.digest == module_plan(queries=9).digest
    alone = policies.ennclave(graph, module_digest=DIGEST, first=layers(graph)[-1].name)
    assert alone.policy == "ennclave"
    assert set(alone.protections.values()) == {OPEN, MODULE}


def test_a_plan_says_which_modules_it_has():
    assert module_plan(queries=9).modules == (PlannedModule("module", DIGEST, 9),)
    assert module_plan().modules == (PlannedModule("module", DIGEST, None),)
    assert policies.enclave(graph_of(vgg())).modules == ()


def test_an_end_of_everything_sends_nothing_out():
    plan = module_plan(outer="open", last=5)
    assert plan.protections == {"module": MODULE}
    with pytest.raises(UnsupportedError, match="left before the hidden end; hide fewer layers"):
        module_plan(outer="slalom", last=5)


def test_the_digest_covers_module_and_queries():
    digests = {
        module_plan(queries=queries, last=last).digest
        for queries in (None, 1, 2)
        for last in (1, 2)
    }
    split, samples = hide(graph_of(vgg()), last=2), nets.samples(vgg(), 4)
    other = policies.make(hiding("slalom"), split.named(bytes(32)), calibration=samples)
    assert len({*digests, other.digest}) == 7


@OUTER
def test_a_plan_with_a_module_comes_back_whole(outer, tmp_path):
    plan = module_plan(outer=outer, queries=7)
    plan.save(tmp_path / "a.plan")
    again = Plan.load(tmp_path / "a.plan", policy=hiding(outer), digest=plan.digest)
    assert again.to_bytes() == plan.to_bytes() == (tmp_path / "a.plan").read_bytes()
    assert again.modules == plan.modules
    assert again.protections == plan.protections
    assert again.without_float_weights().digest == plan.digest


@OUTER
def test_the_bytes_have_nothing_of_the_end(outer):
    graph, samples = graph_of(vgg()), nets.samples(vgg(), 4)
    split = hide(graph, last=2)
    data = plan_of_split(split, samples, outer).to_bytes()
    for node in split.hidden.nodes:
        assert f'"{node.name}"'.encode() not in data
    for array in split.hidden.constants.values():
        assert array.tobytes()[:12] not in data


# ---- plans that contradict themselves


def replanned(plan: Plan, **changes: object) -> Plan:
    return dataclasses.replace(plan, **changes)


@pytest.mark.parametrize("other", [ENCLAVE, OPEN])
def test_a_module_that_is_planned_as_something_else_is_refused(other):
    plan = module_plan()
    protections = {**plan.protections, "module": other}
    with pytest.raises(PlanError, match=r"'module' \(Module\) is planned as"):
        replanned(plan, policy="own", protections=protections)


def test_a_node_that_is_no_module_is_not_planned_as_one():
    plan = module_plan(outer="enclave")
    protections = {**plan.protections, plan.graph.nodes[0].name: MODULE}
    with pytest.raises(PlanError, match=r"\(Conv\) is planned as module: a hidden part"):
        replanned(plan, protections=protections)


def test_a_policy_that_hides_has_a_module():
    plan = policies.enclave(graph_of(vgg()))
    with pytest.raises(PlanError, match="hides the end of a model, and no node is one"):
        replanned(plan, policy="enclave+ennclave")


@pytest.mark.parametrize("policy", ["slalom", "enclave", "verified+ennclave"])
def test_a_policy_names_no_protection_that_it_does_not_give(policy):
    with pytest.raises(PlanError, match="gives no node the protection"):
        replanned(module_plan(), policy=policy)


def test_a_module_without_a_digest_is_refused():
    plan = module_plan()
    module = dataclasses.replace(plan.graph.nodes[-1], attributes={})
    graph = dataclasses.replace(plan.graph, nodes=(*plan.graph.nodes[:-1], module))
    with pytest.raises(ModelError, match="names no module"):
        replanned(plan, graph=graph)


@pytest.mark.parametrize("policy", policies.NAMES)
def test_a_model_with_a_hidden_part_needs_a_policy_that_hides(policy):
    outer = hide(graph_of(vgg()), last=2).named(DIGEST)
    message = re.escape(f"has none; use policy {hiding(policy)!r}")
    with pytest.raises(PlanError, match=message):
        policies.make(policy, outer, calibration=nets.samples(vgg(), 2))


@pytest.mark.parametrize("policy", HIDING)
def test_a_policy_that_hides_needs_to_know_what(policy):
    with pytest.raises(PlanError, match="hides the end of a model: say which"):
        policies.make(policy, graph_of(vgg()), calibration=nets.samples(vgg(), 2))


def test_a_layer_behind_a_module_is_not_calibrated():
    plan = module_plan(last=1)
    module, hidden = plan.graph.nodes[-1], hide(graph_of(vgg()), last=1).hidden
    types = {**plan.graph.types, **hidden.types, "m": plan.graph.types[module.inputs[0]]}
    moved = dataclasses.replace(module, outputs=("m",))
    gemm = dataclasses.replace(hidden.nodes[0], inputs=("m", *hidden.nodes[0].inputs[1:]))
    graph = dataclasses.replace(
        plan.graph,
        nodes=(*plan.graph.nodes[:-1], moved, gemm, *hidden.nodes[1:]),
        constants={**plan.graph.constants, **hidden.constants},
        types=types,
    )
    with pytest.raises(PlanError, match="reads what a hidden part makes"):
        policies.make("slalom+ennclave", graph, calibration=nets.samples(vgg(), 2))


@pytest.mark.parametrize("change", [
    lambda m: m.update(op="Other"),
    lambda m: m.update(domain=""),
    lambda m: m.update(inputs=[]),
    lambda m: m.update(outputs=["elsewhere"]),
    lambda m: m.update(attributes={}),
    lambda m: m["attributes"].update(digest={"bytes": "00"}),
    lambda m: m["attributes"].update(digest="00" * 32),
    lambda m: m["attributes"].update(queries=0),
    lambda m: m["attributes"].update(queries=-1),
    lambda m: m["attributes"].update(queries="5"),
    lambda m: m["attributes"].update(other=1),
])  # fmt: skip
def test_a_file_with_another_module_is_refused(change):
    data = module_plan(queries=3).to_bytes()
    document = document_of(data)
    Plan.from_bytes(with_document(data, canonical(document)))
    change(document["graph"]["nodes"][-1])
    with pytest.raises(CloisterError) as caught:
        Plan.from_bytes(with_document(data, canonical(document)))
    assert isinstance(caught.value, InputError | PlanError)


def test_costs_have_one_line_for_a_module():
    plan = module_plan()
    cost = estimate(plan.graph, plan.protections)
    (line,) = (node for node in cost.nodes if node.kind == "module")
    assert (line.node, line.op, line.protection) == ("module", "Module", "module")
    assert (line.parameters, line.bytes_to_worker, line.pad_bytes) == (0, 0, 0)


def test_a_graph_without_modules_is_its_own():
    graph: Graph = graph_of(vgg())
    assert not any(node.is_module for node in graph.nodes)
    plan = policies.make("verified", graph, calibration=nets.samples(vgg(), 2))
    assert VERIFIED in plan.protections.values()
