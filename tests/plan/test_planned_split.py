"""The order of a plan's protections: nothing in the clear follows from an unchecked answer."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import nets
from cloister.errors import InputError, PlanError
from cloister.graph.graph import Graph, Node, Subgraph
from cloister.graph.onnx import read
from cloister.graph.part import reads
from cloister.graph.passes import normalise
from cloister.graph.split import split_at
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.planned_split import (
    PlannedSplit,
    check_hidden,
    check_order,
    check_split,
)
from cloister.plan.protection import (
    BLINDED,
    BLINDED_VERIFIED,
    BY_NAME,
    ENCLAVE,
    MODULE,
    OPEN,
    SPLITTING,
    VERIFIED,
    Input,
    hiding,
)
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Segment
from trusted.split_plans import split_plans
from trusted.test_session import plan_of

UNCHECKED = (BLINDED, OPEN)


def wired(*edges: tuple[str, ...]) -> Graph:
    """A graph of nodes (name, what it reads...), each of which makes the value of its name."""
    nodes = tuple(Node(name, "Any", tuple(read), (name,)) for name, *read in edges)
    return Graph("wired", nodes, ("x",), (nodes[-1].name,), {}, {}, 17)


def refused(graph, **protections):
    """The error of the order, or None."""
    try:
        check_order(graph, "own", protections)
    except PlanError as error:
        return str(error)
    return None


# ---- the order, case by case


CHAIN = wired(("a", "x"), ("b", "a"), ("c", "b"))


@pytest.mark.parametrize("clear", [OPEN, VERIFIED])
@pytest.mark.parametrize("between", [ENCLAVE, MODULE, BLINDED, BLINDED_VERIFIED])
def test_what_is_clear_does_not_follow_an_unchecked_answer(between, clear):
    """Neither at once nor behind other nodes: a checked node multiplies the error rightly."""
    source = "b" if between == BLINDED else "a"
    said = refused(CHAIN, a=BLINDED, b=between, c=clear)
    assert said.startswith(f"node 'c': is {clear.name}")
    for text in (f"node {source!r}", "answers are not checked", "a worker that changes these"):
        assert text in said
    assert refused(CHAIN, a=BLINDED_VERIFIED, b=ENCLAVE, c=clear) is None


def test_what_is_open_may_follow_what_is_open():
    """The worker has these values anyway; not so what the trusted side computes with them."""
    assert refused(CHAIN, a=OPEN, b=OPEN, c=OPEN) is None
    assert refused(CHAIN, a=BLINDED_VERIFIED, b=OPEN, c=OPEN) is None
    assert "follows from node 'a'" in refused(CHAIN, a=OPEN, b=ENCLAVE, c=OPEN)
    assert "follows from node 'a'" in refused(CHAIN, a=OPEN, b=VERIFIED, c=ENCLAVE)
    assert "follows from node 'a'" in refused(CHAIN, a=OPEN, b=BLINDED_VERIFIED, c=OPEN)


def test_what_stays_inside_of_a_policy_that_shows_the_inputs_may_be_followed():
    """Of an open plan, the nodes that no worker can run; what a module answers is no such value."""
    stays = {"a": OPEN, "b": ENCLAVE, "c": OPEN}
    for policy in ("open", hiding("open")):
        check_order(CHAIN, policy, stays)
        with pytest.raises(PlanError, match="follows from node 'a'"):
            check_order(CHAIN, policy, {**stays, "b": MODULE})
        graph = wired(("a", "x"), ("m", "a"), ("b", "m"), ("c", "b"))
        with pytest.raises(PlanError, match="follows from node 'a'"):
            check_order(graph, policy, {**stays, "m": MODULE})
    for policy in ("origami-prefix", "slalom", "own"):
        with pytest.raises(PlanError, match="follows from node 'a'"):
            check_order(CHAIN, policy, stays)


def test_hidden_layers_may_follow_anything():
    for last in (ENCLAVE, MODULE, BLINDED, BLINDED_VERIFIED):
        for first in BY_NAME.values():
            assert refused(CHAIN, a=first, b=ENCLAVE, c=last) is None


def test_each_path_counts():
    """A residual: the direct path is checked, the other is not."""
    graph = wired(("a", "x"), ("b", "a"), ("sum", "a", "b"), ("last", "sum"))
    checked = {"a": BLINDED_VERIFIED, "sum": ENCLAVE, "last": VERIFIED}
    assert refused(graph, b=BLINDED_VERIFIED, **checked) is None
    assert "follows from node 'b'" in refused(graph, b=BLINDED, **checked)


def test_what_does_not_follow_is_free():
    """Branches that do not meet before the node in the clear."""
    graph = wired(("a", "x"), ("b", "x"), ("c", "b"), ("d", "a", "c"))
    assert refused(graph, a=BLINDED, b=BLINDED_VERIFIED, c=OPEN, d=ENCLAVE) is None
    assert "node 'd'" in refused(graph, a=BLINDED, b=BLINDED_VERIFIED, c=OPEN, d=OPEN)


def test_a_body_reads_what_it_captures():
    inner = Node("inner", "Neg", ("a",), ("y",))
    body = Subgraph("body", (inner,), (), (), {})
    graph = wired(("a", "x"), ("c", "x"))
    choice = replace(graph.nodes[1], attributes={"then_branch": body})
    graph = replace(graph, nodes=(graph.nodes[0], choice))
    assert "follows from node 'a'" in refused(graph, a=BLINDED, c=OPEN)


def test_only_the_policy_of_that_name_is_exempt():
    protections = {"a": BLINDED, "b": ENCLAVE, "c": OPEN}
    for policy in ("origami-none", hiding("origami-none")):
        check_order(CHAIN, policy, protections)
    for policy in ("origami", "origami-prefix", "blinded", "own", "origami-none2", "none", ""):
        with pytest.raises(PlanError, match="node 'c'"):
            check_order(CHAIN, policy, protections)


# ---- the order, by its definition


@st.composite
def protected_graphs(draw):
    """A random directed graph without cycles, and any protections."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 7)))]
    edges = []
    for i, name in enumerate(names):
        read = draw(st.lists(st.sampled_from(["x", *names[:i]]), max_size=3, unique=True))
        edges.append((name, *read))
    protections = {name: draw(st.sampled_from(list(BY_NAME.values()))) for name in names}
    return wired(*edges), protections


def paths(graph, end):
    """Every path of nodes that ends at one."""
    makers = {value: node for node in graph.nodes for value in node.outputs if value}
    yield [end.name]
    for value in reads(end):
        if value in makers:
            for path in paths(graph, makers[value]):
                yield [*path, end.name]


def broken(graph, protections):
    """The nodes in the clear at the end of a path that begins with an unchecked answer.

    A path of open nodes alone is the worker's own computation.
    """
    found = set()
    for node in graph.nodes:
        if protections[node.name].input is not Input.CLEAR:
            continue
        for path in paths(graph, node):
            first, *_ = path
            kinds = {protections[name] for name in path}
            if len(path) > 1 and protections[first] in UNCHECKED and kinds != {OPEN}:
                found.add(node.name)
    return found


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(protected_graphs())
def test_the_order_is_that_of_its_definition(drawn):
    graph, protections = drawn
    wanted = broken(graph, protections)
    said = refused(graph, **protections)
    event("refused" if wanted else "taken")
    if wanted:
        assert said is not None
        assert said.split("'")[1] in wanted
    else:
        assert said is None


# ---- both sides of a split


@dataclass(frozen=True)
class Edit:
    """A change to the protections of a chain that is split behind its second node."""

    policy: str
    protections: dict
    said: str
    until: tuple[str, ...] | None = ("b",)


FULL = {"a": BLINDED_VERIFIED, "b": ENCLAVE, "c": VERIFIED, "d": ENCLAVE}
EDITS = {
    "a layer before the split in the clear": Edit(
        "origami", {**FULL, "a": VERIFIED}, "node 'a': is verified before the split at 'b'"
    ),
    "a layer after the split hidden": Edit(
        "origami", {**FULL, "c": BLINDED_VERIFIED}, "node 'c': is blinded+verified after the split"
    ),
    "no split": Edit(
        "origami", FULL, "node 'c': is verified, and policy 'origami' names no split", None
    ),
    "a policy without one": Edit("slalom", FULL, "policy 'slalom' has no split"),
    "a policy that is not Cloister's": Edit("own", FULL, "policy 'own' has no split"),
    "an open layer before the split": Edit(
        "origami-prefix",
        {"a": OPEN, "b": OPEN, "c": OPEN, "d": OPEN},
        "node 'a': is open before the split",
    ),
    "an unchecked layer after the split": Edit(
        "origami-none",
        {"a": BLINDED, "b": ENCLAVE, "c": BLINDED, "d": OPEN},
        "node 'c': is blinded after the split",
    ),
}


@pytest.fixture(scope="module")
def chain():
    """Two dense layers, each with what follows it."""
    net = nets.Net()
    x = net.op("Relu", net.gemm(net.input("x", 6), 6, 6))
    model = net.model(net.op("Tanh", net.gemm(x, 6, 6)))
    graph = normalise.prepare(read.from_model(model, name="chain"))
    renamed = dict(zip((node.name for node in graph.nodes), "abcd", strict=True))
    return replace(graph, nodes=tuple(replace(n, name=renamed[n.name]) for n in graph.nodes))


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_split_is_refused(chain, name):
    edit = EDITS[name]
    split = None if edit.until is None else PlannedSplit(edit.until)
    with pytest.raises(PlanError, match=re.escape(edit.said)):
        check_split(chain, edit.policy, edit.protections, split)


def test_the_split_of_each_policy_is_taken(chain):
    for policy, halves in SPLITTING.items():
        after = OPEN if halves.after == OPEN else ENCLAVE
        protections = {"a": halves.before, "b": ENCLAVE, "c": halves.after, "d": after}
        check_split(chain, policy, protections, PlannedSplit(("b",)))
        check_split(chain, policy, dict.fromkeys("abcd", ENCLAVE), None)


def test_a_split_that_the_model_does_not_have(chain):
    with pytest.raises(InputError, match="node 'z': the model has none of that name"):
        check_split(chain, "origami", FULL, PlannedSplit(("z",)))


@pytest.mark.parametrize(
    "policy", ["slalom", "verified", "blinded", "enclave", "origami", "origami-prefix"]
)
def test_a_policy_names_all_that_its_plans_may_do(policy):
    """A plan whose name was changed to that of a stronger policy is refused."""
    weak = list(split_plans(nets.chain(), "origami-none", ends=1))[1]
    for split in (weak.split, None):
        with pytest.raises(PlanError):
            replace(weak, policy=policy, split=split)
    prefix = list(split_plans(nets.chain(), "origami-prefix", ends=1))[1]
    if policy != "origami-prefix":
        with pytest.raises(PlanError):
            replace(prefix, policy=policy)


# ---- hidden by one node, shown by another


def test_a_value_that_one_node_hides_is_shown_by_no_other():
    """The second convolution reads it inside a block; the sum reads it after the split."""
    graph = normalise.prepare(read.from_model(nets.residual(), name="residual"))
    first, second, third = [node for node in graph.nodes if node.op == "Conv"][:3]
    relu = next(node for node in graph.nodes if node.inputs[:1] == first.outputs)
    inner = next(node for node in graph.nodes if node.inputs[:1] == second.outputs)
    assert third.inputs[0] == inner.outputs[0]
    split = PlannedSplit((inner.name,))
    said = (
        f"the split at '{inner.name}': node .* would show value '{relu.outputs[0]}', which node "
        f"'{second.name}' hides"
    )
    for policy in SPLITTING:
        with pytest.raises(PlanError, match=said):
            policies.make(policy, graph, calibration=nets.samples(nets.residual(), 4), split=split)
    # The advice: where the value is made, or after a node that follows both.
    add = next(node for node in graph.nodes if node.op == "Add")
    for instead in (relu, add):
        policies.make(
            "origami-prefix",
            graph,
            calibration=nets.samples(nets.residual(), 4),
            split=PlannedSplit((instead.name,)),
        )


def test_a_value_that_is_hidden_is_shown_in_no_other_shape():
    """The plan compares what values are, as the program does, and not their names alone."""
    net = nets.Net()
    x = net.op("Relu", net.conv(net.input("image", 3, 4, 5), 3, 4, (1, 1)))
    rows = net.op("Reshape", x, net.constant(np.array([0, 4, 20])))
    y = net.op("Relu", net.conv(x, 4, 4, (1, 1)))
    model = net.model(net.op("MatMul", rows, net.weights(20, 3)), net.conv(y, 4, 2, (1, 1)))
    graph = normalise.prepare(read.from_model(model, name="net"))
    ends = tuple(node.name for node in graph.nodes if {rows, y} & set(node.outputs))
    for policy in SPLITTING:
        with pytest.raises(PlanError, match=r"would show value .*, which node .* hides"):
            policies.make(
                policy, graph, calibration=nets.samples(model, 4), split=PlannedSplit(ends)
            )


def test_constants_are_no_values_of_an_input(chain):
    """A weight that two layers share, one on each side of the split."""
    shared = replace(chain.nodes[2], inputs=(chain.nodes[2].inputs[0], chain.nodes[0].inputs[1]))
    graph = replace(chain, nodes=(*chain.nodes[:2], shared, chain.nodes[3]))
    check_hidden(graph, split_at(graph, ("b",)), FULL)


# ---- what a plan's file may say


def test_a_plan_whose_split_was_moved_is_refused():
    """Names, sides and order are checked again when a file is read."""
    plan = list(split_plans(nets.chain(), "origami", ends=1))[1]
    again = Plan.from_bytes(plan.to_bytes())
    assert (again.split, again.digest) == (plan.split, plan.digest)
    assert plan.split.until == ("Relu_1",)
    data = plan.to_bytes()
    written, moved = b'"until":["Relu_1"]', b'"until":["Relu_4"]'
    assert data.count(written) == 1
    with pytest.raises(PlanError, match="node 'Conv_3': is verified before the split at 'Relu_4'"):
        Plan.from_bytes(data.replace(written, moved))


def test_outputs_of_the_model_from_before_the_split_stay_inside():
    """An early output is returned to the caller with the others; no segment makes it."""
    graph = normalise.prepare(read.from_model(nets.several(), name="several"))
    early = graph.outputs[2]
    (maker,) = [node.name for node in graph.nodes if early in node.outputs]
    found = 0
    for plan in split_plans(nets.several(), "origami-prefix"):
        if maker in split_at(plan.graph, plan.split.until).before:
            (segment,) = [step for step in compile_plan(plan).steps if isinstance(step, Segment)]
            assert early not in segment.outputs
            found += 1
    assert found


def test_what_the_program_refuses_the_plan_refuses_first():
    """Random protections: the order of a plan and that of its program are the same."""
    plan = plan_of(nets.residual())
    rng = np.random.default_rng(0)
    linear = [node.node for node in plan.linear_nodes]
    seen = set()
    for _ in range(60):
        kinds = rng.choice(3, len(linear), p=[0.2, 0.6, 0.2])
        chosen = {
            name: (BLINDED, BLINDED_VERIFIED, VERIFIED)[kind]
            for name, kind in zip(linear, kinds, strict=True)
        }
        protections = {**plan.protections, **chosen}
        wanted = broken(plan.graph, protections)
        try:
            made = replace(plan, policy="own", protections=protections)
        except PlanError as error:
            assert wanted
            assert "answers are not checked" in str(error)
            seen.add("refused")
            continue
        assert not wanted
        try:
            compile_plan(made)
            seen.add("taken")
        except PlanError as error:
            assert "which another step hides" in str(error)
    assert seen == {"refused", "taken"}
