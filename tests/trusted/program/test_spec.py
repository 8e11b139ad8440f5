"""Every program the compiler makes is legal; every rule refuses a program that breaks it alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

import nets
import unequal
from byzantine.test_session import mixed_plan, with_an_open_segment
from cloister.errors import PlanError
from cloister.graph.batch import computed_from
from cloister.graph.split import split_at
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.protection import BLINDED, OPEN, SPLITTING, VERIFIED, outer_policy
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.spec import RULES, check_program
from cloister.trusted.program.steps import (
    ChannelSlice,
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
)
from trusted.modules import planned_end
from trusted.split_plans import split_plans
from trusted.test_channel_scales import graph_of
from trusted.test_session import plan_of


@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("net", nets.ALL)
def test_what_the_compiler_makes_is_legal(net, policy):
    program = compile_plan(plan_of(nets.ALL[net](), policy))
    for rule in RULES:
        assert list(rule(program)) == []


@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("net", nets.ALL)
def test_what_the_compiler_makes_of_a_hidden_end_is_legal(net, policy):
    """The module is the last step: everything that is checked is checked before."""
    program = compile_plan(planned_end(nets.ALL[net](), policy).plan)
    assert places(program, Module) == [len(program.steps) - 1]
    for rule in RULES:
        assert list(rule(program)) == []


@pytest.mark.parametrize("policy", SPLITTING)
@pytest.mark.parametrize("net", nets.ALL)
def test_what_the_compiler_makes_of_a_split_is_legal(net, policy):
    for plan in split_plans(nets.ALL[net](), policy):
        program = compile_plan(plan)
        for rule in RULES:
            assert list(rule(program)) == []


@pytest.mark.parametrize("policy", ["origami-prefix", "origami-none"])
@pytest.mark.parametrize("net", nets.ALL)
def test_what_follows_a_split_is_one_segment(net, policy):
    """One message with all that crosses, wherever the model's order has the nodes."""
    for plan in split_plans(nets.ALL[net](), policy):
        program = compile_plan(plan)
        (at,) = places(program, Segment)
        opened = {name for name, one in plan.protections.items() if one == OPEN}
        assert {node.name for node in program.steps[at].nodes} == opened
        crossing = split_at(plan.graph, plan.split.until).values
        constant = set(program.steps[at].inputs) - set(crossing)
        assert set(crossing) <= set(program.steps[at].inputs)
        assert not constant & computed_from(plan.graph, frozenset(plan.graph.inputs))


@pytest.mark.parametrize("net", nets.ALL)
def test_only_the_policy_of_that_name_sends_what_follows_from_unchecked_answers(net):
    for plan in split_plans(nets.ALL[net](), "origami-none"):
        program = compile_plan(plan)
        object.__setattr__(plan, "policy", "mixed")  # a plan refuses it
        with pytest.raises(PlanError, match=r"\(rule clear_messages_follow_checked_answers\)"):
            check_program(program)


def test_a_plan_of_several_protections_is_legal():
    check_program(compile_plan(mixed_plan()))


def test_a_hidden_value_is_hidden_in_every_shape():
    net = nets.Net()
    x = net.input("image", 3, 4, 5)
    hidden = net.conv(x, 3, 4)
    clear = net.gemm(net.op("Flatten", x), 60, 2)
    plan = plan_of(net.model(hidden, clear))
    check_program(compile_plan(plan))
    conv, gemm = (node.node for node in plan.linear_nodes)
    for weaker, other in ((gemm, conv), (conv, gemm)):
        protections = {**plan.protections, weaker: VERIFIED}
        with pytest.raises(PlanError, match="in the clear, which another step hides"):
            compile_plan(replace(plan, policy="own", protections=protections))
        protections[other] = VERIFIED
        check_program(compile_plan(replace(plan, policy="own", protections=protections)))


# ---- programs with one fault


def places(program: Program, kind: type) -> list[int]:
    return [i for i, step in enumerate(program.steps) if isinstance(step, kind)]


def with_step(program: Program, position: int, **changes) -> Program:
    steps = list(program.steps)
    steps[position] = replace(steps[position], **changes)
    return replace(program, steps=tuple(steps))


def with_epilogue(program: Program, position: int, **changes) -> Program:
    epilogue = replace(program.steps[position].epilogue, **changes)
    return with_step(program, position, epilogue=epilogue)


def without(program: Program, *positions: int) -> Program:
    kept = [step for i, step in enumerate(program.steps) if i not in positions]
    return replace(program, steps=tuple(kept))


def appended(program: Program, *steps) -> Program:
    return replace(program, steps=(*program.steps, *steps))


def inserted(program: Program, position: int, step) -> Program:
    return replace(program, steps=(*program.steps[:position], step, *program.steps[position:]))


def swapped(program: Program, one: int, other: int) -> Program:
    steps = list(program.steps)
    steps[one], steps[other] = steps[other], steps[one]
    return replace(program, steps=tuple(steps))


def first(program: Program, kind: type, wanted: Callable = lambda _: True) -> int:
    return next(i for i in places(program, kind) if wanted(program.steps[i]))


def replanned(program: Program, **protections) -> Program:
    """The program under a plan that gives one node another protection."""
    plan = program.plan
    protections = {**plan.protections, **protections}
    return replace(program, plan=replace(plan, policy="mixed", protections=protections))


def replanned_exchange(program: Program, position: int, protection) -> Program:
    node = program.linear[program.steps[position].node].name
    return with_step(replanned(program, **{node: protection}), position, protection=protection)


def with_slices(program: Program, **changes) -> Program:
    """The slices, in their order, with some fields of one changed or left out (None)."""
    slices = dict(program.slices)
    for name, change in zip(sorted(slices), changes.values(), strict=False):
        slices[name] = replace(slices[name], **change)
    return replace(program, slices=slices)


def later_check(program: Program) -> Program:
    """The clear exchange goes out before the step that checks the answer before it.

    Each message has its own writer, so that nothing else is out of order.
    """
    at = first(program, Exchange)
    check, clear = program.steps[at + 1], program.steps[at + 2]
    assert isinstance(clear, Exchange)
    assert check.sinks == (clear.node,)
    writer = program.steps[at - 1]
    steps = (
        *program.steps[: at - 1],
        replace(writer, sinks=(*writer.sinks, clear.node)),
        program.steps[at],
        clear,
        replace(check, sinks=()),
        *program.steps[at + 3 :],
    )
    return replace(program, steps=steps)


def two_layers() -> Plan:
    """Two dense layers of two inputs: one hidden and unchecked, the other in the clear."""
    net = nets.Net()
    outputs = [net.gemm(net.input(name, 6), 6, 6) for name in ("secret", "public")]
    plan = plan_of(net.model(*outputs))
    hidden, clear = (node.node for node in plan.linear_nodes)
    protections = {**plan.protections, hidden: BLINDED, clear: VERIFIED}
    return replace(plan, policy="mixed", protections=protections)


def other_writer(program: Program) -> Program:
    """The step that reads the hidden layer's answer writes the message in the clear."""
    answer = first(program, Fused, lambda step: step.node == 0)
    writer = first(program, Fused, lambda step: step.sinks == (1,))
    assert writer > answer
    program = with_step(program, answer, sinks=(1,))
    return without(program, writer)


def local_output(program: Program) -> str:
    """A value that ONNX Runtime computes inside from values of layers."""
    makers = {value: i for i, step in enumerate(program.steps) for value in step.outputs}
    for step in program.steps:
        if isinstance(step, Local) and any(value in makers for value in step.inputs):
            return step.outputs[0]
    raise AssertionError("no step is local")


def with_outputs(program: Program, outputs: tuple[str, ...]) -> Program:
    graph = replace(program.plan.graph, outputs=outputs)
    return replace(program, plan=replace(program.plan, graph=graph))


@dataclass(frozen=True)
class Fault:
    """A change to a legal program and the rule that refuses it."""

    rule: str
    change: Callable[[Program], Program]
    net: str = "chain"
    policy: str = "slalom"
    plan: Callable[[], Plan] | None = None


def is_windowed(step: Fused) -> bool:
    return step.epilogue.window is not None


def is_stored(step: Fused) -> bool:
    return step.stored


def from_reply(step: Fused) -> bool:
    return step.node is not None


def is_added(step: Fused) -> bool:
    return step.epilogue.residual is not None


def is_depthwise(step: Fused) -> bool:
    return step.epilogue.depthwise is not None


def within(step: Local | Segment) -> tuple:
    return step.nodes, step.inputs, step.outputs


def concatenations(program: Program) -> tuple:
    return tuple(node for node in program.plan.graph.nodes if node.op == "Concat")


def other_window(program: Program) -> Program:
    at = first(program, Fused, is_windowed)
    window = replace(program.steps[at].epilogue.window, pad=(0, 0))
    return with_epilogue(program, at, window=window)


def other_filter(program: Program) -> Program:
    at = first(program, Fused, is_depthwise)
    filters = program.steps[at].epilogue.depthwise
    filters = replace(filters, weights=filters.weights + np.float32(1))
    return with_epilogue(program, at, depthwise=filters)


def backwards(program: Program) -> Program:
    at = first(program, Fused, is_windowed)
    covered = program.steps[at].epilogue.covered
    assert len(covered) > 1
    return with_epilogue(program, at, covered=covered[::-1])


class Unknown:
    """A kind of step that has no meaning."""

    inputs = outputs = ()


def last_as(program: Program, kind: type) -> Program:
    """The last step as one of another kind."""
    *before, last = program.steps
    step = kind(99, *within(last)) if kind is Segment else kind(*within(last))
    return replace(program, steps=(*before, step))


FAULTS = {
    "a step of no known kind": Fault("steps_name_what_exists", lambda p: appended(p, Unknown())),
    "a linear node too many": Fault(
        "steps_name_what_exists", lambda p: with_step(p, first(p, Exchange), node=99)
    ),
    "a negative linear node": Fault(
        "steps_name_what_exists", lambda p: with_step(p, first(p, Exchange), node=-1)
    ),
    "a sink too many": Fault("steps_name_what_exists", lambda p: with_step(p, 0, sinks=(0, 99))),
    "a reply and a value": Fault(
        "steps_name_what_exists", lambda p: with_step(p, first(p, Fused, from_reply), source="x")
    ),
    "neither a reply nor a value": Fault(
        "steps_name_what_exists", lambda p: with_step(p, 0, source=None)
    ),
    "an unknown node in a fused step": Fault(
        "steps_name_what_exists", lambda p: with_epilogue(p, 0, covered=("nobody",))
    ),
    "a node of another model": Fault(
        "steps_name_what_exists",
        lambda p: with_step(p, 0, nodes=(replace(p.steps[0].nodes[0]),)),
        policy="enclave",
    ),
    "a node twice": Fault(
        "nodes_are_covered_once",
        lambda p: appended(p, p.steps[first(p, Exchange)]),
    ),
    "a node left out": Fault(
        "nodes_are_covered_once", lambda p: without(p, len(p.steps) - 1), net="several"
    ),
    "a concatenation that is computed as well": Fault(
        "nodes_are_covered_once",
        lambda p: appended(p, Local(concatenations(p), (), ())),
        net="branches",
    ),
    "a hidden message in the clear": Fault(
        "nodes_run_where_planned", lambda p: with_step(p, first(p, Exchange), protection=VERIFIED)
    ),
    "a checked answer unchecked": Fault(
        "nodes_run_where_planned", lambda p: with_step(p, first(p, Exchange), protection=BLINDED)
    ),
    "an inner node on the worker": Fault(
        "nodes_run_where_planned",
        lambda p: replace(p, steps=(Segment(99, *within(p.steps[0])), *p.steps[1:])),
        policy="enclave",
    ),
    "an open node inside": Fault(
        "nodes_run_where_planned",
        lambda p: replace(p, steps=tuple(Local(*within(s)) for s in p.steps)),
        policy="open",
    ),
    "a hidden part that ONNX Runtime runs": Fault(
        "nodes_run_where_planned", lambda p: last_as(p, Local), policy="slalom+ennclave"
    ),
    "a hidden part that a worker runs": Fault(
        "nodes_run_where_planned", lambda p: last_as(p, Segment), policy="ennclave"
    ),
    "an inner node that a module runs": Fault(
        "nodes_run_where_planned", lambda p: last_as(p, Module), policy="enclave"
    ),
    "an open concatenation inside": Fault(
        "nodes_run_where_planned",
        lambda p: replanned(p, **{node.name: OPEN for node in concatenations(p)}),
        net="branches",
    ),
    "an input made again": Fault(
        "values_are_made_once",
        lambda p: with_step(p, 0, outputs=("image", *p.steps[0].outputs)),
        policy="enclave",
    ),
    "a value that is not stored": Fault(
        "values_are_there_when_read",
        lambda p: with_step(p, first(p, Fused, lambda s: s.stored and s.sinks), stored=False),
        net="residual",
    ),
    "a step too early": Fault(
        "values_are_there_when_read", lambda p: swapped(p, -1, 0), net="several"
    ),
    "an output that is not stored": Fault(
        "values_are_there_when_read", lambda p: with_step(p, len(p.steps) - 1, stored=False)
    ),
    "half a concatenation": Fault(
        "values_are_there_when_read",
        lambda p: with_step(p, first(p, Fused, is_stored), stored=False),
        net="branches",
    ),
    "a value that does not get in": Fault(
        "borders_are_complete", lambda p: with_step(p, 0, inputs=()), policy="enclave"
    ),
    "a value that a segment does not get": Fault(
        "borders_are_complete", lambda p: with_step(p, 0, inputs=()), policy="open"
    ),
    "a value from nowhere": Fault(
        "borders_are_complete",
        lambda p: with_step(p, 0, outputs=(*p.steps[0].outputs, "nothing")),
        policy="enclave",
    ),
    "another clamp": Fault(
        "fused_steps_compute_their_nodes",
        lambda p: with_epilogue(p, first(p, Fused, is_windowed), lo=-1.0),
    ),
    "another window": Fault("fused_steps_compute_their_nodes", other_window),
    "another residual": Fault(
        "fused_steps_compute_their_nodes",
        lambda p: with_epilogue(p, first(p, Fused, is_added), residual="image"),
        net="residual",
    ),
    "no residual": Fault(
        "fused_steps_compute_their_nodes",
        lambda p: with_epilogue(p, first(p, Fused, is_added), residual=None),
        net="residual",
    ),
    "nodes in another order": Fault("fused_steps_compute_their_nodes", backwards),
    "another filter": Fault("fused_steps_compute_their_nodes", other_filter, net="depthwise"),
    "factors of a value that is kept": Fault(
        "fused_steps_compute_their_nodes",
        lambda p: with_step(
            p, first(p, Fused, is_stored), factors=np.full((1, 1, 1), 2, np.float32)
        ),
    ),
    "a message nobody wrote": Fault("exchanges_are_paired", lambda p: with_step(p, 0, sinks=())),
    "a message written twice": Fault(
        "exchanges_are_paired",
        lambda p: with_step(p, first(p, Fused, from_reply), sinks=(0, 1)),
    ),
    "an answer read before it is there": Fault(
        "exchanges_are_paired", lambda p: swapped(p, first(p, Exchange), first(p, Exchange) + 1)
    ),
    "an answer that no step reads": Fault(
        "exchanges_are_paired",
        lambda p: with_outputs(without(p, len(p.steps) - 1), ()),
        net="sequence",
    ),
    "an answer read twice": Fault(
        "exchanges_are_paired",
        lambda p: appended(p, replace(p.steps[-1], stored=False)),
        net="sequence",
    ),
    "a clear message before a check": Fault(
        "clear_messages_wait_for_checks", later_check, plan=mixed_plan
    ),
    "a segment behind an unchecked answer": Fault(
        "clear_messages_follow_checked_answers",
        lambda p: appended(p, Segment(99, (), p.plan.graph.outputs, ())),
        policy="blinded",
    ),
    "a segment behind a part of a concatenation": Fault(
        "clear_messages_follow_checked_answers",
        lambda p: appended(p, Segment(99, (), (next(iter(p.slices.values())).whole,), ())),
        net="branches",
        policy="blinded",
    ),
    "a segment behind what is computed inside": Fault(
        "clear_messages_follow_checked_answers",
        lambda p: appended(p, Segment(99, (), (local_output(p),), ())),
        net="several",
        policy="blinded",
    ),
    "a segment behind a layer behind a segment": Fault(
        "clear_messages_follow_checked_answers",
        lambda p: appended(p, Segment(99, (), p.plan.graph.outputs, ())),
        plan=with_an_open_segment,
    ),
    "a clear message behind an unchecked answer": Fault(
        "clear_messages_follow_checked_answers", other_writer, plan=two_layers
    ),
    "a segment before a check": Fault(
        "clear_messages_wait_for_checks",
        lambda p: inserted(p, first(p, Exchange) + 1, Segment(99, (), ("image",), ())),
        policy="verified",
    ),
    "a hidden value in the clear": Fault(
        "hidden_values_stay_hidden",
        lambda p: replanned_exchange(p, places(p, Exchange)[1], VERIFIED),
        net="sequence",
    ),
    "a hidden value in a segment": Fault(
        "hidden_values_stay_hidden",
        lambda p: appended(p, Segment(99, (), ("image",), ())),
    ),
    "a module before a check": Fault(
        "modules_wait_for_checks",
        lambda p: inserted(p, first(p, Exchange) + 1, Module((), ("image",), ())),
        policy="slalom+ennclave",
    ),
    "a module's answer in a segment": Fault(
        "modules_answer_inside",
        lambda p: appended(p, Segment(99, (), p.plan.graph.outputs, ())),
        policy="slalom+ennclave",
    ),
    "a value too many for a module": Fault(
        "modules_take_what_their_node_takes",
        lambda p: with_step(p, len(p.steps) - 1, inputs=(*p.steps[-1].inputs, "image")),
        policy="slalom+ennclave",
    ),
    "a module's values in another order": Fault(
        "modules_take_what_their_node_takes",
        lambda p: with_step(p, len(p.steps) - 1, inputs=p.steps[-1].inputs[::-1]),
        net="residual",
        policy="slalom+ennclave",
    ),
    "a module of no node": Fault(
        "modules_take_what_their_node_takes",
        lambda p: appended(p, Module((), ("image",), ())),
        policy="verified+ennclave",
    ),
    "a source of another size": Fault(
        "sizes_agree", lambda p: with_step(p, 0, size=(10, 13, 3), out_size=(10, 13, 3))
    ),
    "an answer of another size": Fault(
        "sizes_agree", lambda p: with_step(p, first(p, Fused, is_windowed), size=(10, 13, 8))
    ),
    "a result of another size": Fault(
        "sizes_agree", lambda p: with_step(p, first(p, Fused, is_windowed), out_size=(6, 7, 8))
    ),
    "an answer in the other layout": Fault(
        "sizes_agree",
        lambda p: with_step(p, len(p.steps) - 1, channels_first=True),
        net="sequence",
    ),
    "another node's message": Fault(
        "messages_fit_their_nodes",
        lambda p: with_step(with_step(p, 0, sinks=(0, 1)), first(p, Fused, from_reply), sinks=()),
    ),
    "no factors": Fault(
        "messages_fit_their_nodes", lambda p: with_step(p, 0, factors=None), net="unequal"
    ),
    "other factors": Fault(
        "messages_fit_their_nodes",
        lambda p: with_step(p, 0, factors=2 * p.steps[0].factors),
        net="unequal",
    ),
    "a gap between slices": Fault(
        "slices_tile_their_whole",
        lambda p: with_slices(p, one={}, two={"offset": 9}),
        net="branches",
    ),
    "slices that overlap": Fault(
        "slices_tile_their_whole",
        lambda p: with_slices(p, one={}, two={"offset": 7}),
        net="branches",
    ),
    "slices in another order": Fault(
        "slices_tile_their_whole",
        lambda p: with_slices(p, one={"offset": 8}, two={"offset": 0}),
        net="branches",
    ),
    "a whole of other channels": Fault(
        "slices_tile_their_whole",
        lambda p: with_slices(p, one={"channels": 20}, two={"channels": 20}),
        net="branches",
    ),
    "a slice that is read": Fault(
        "slices_tile_their_whole",
        lambda p: appended(p, Local((), (sorted(p.slices)[0],), ())),
        net="branches",
    ),
    "a slice of what is no concatenation": Fault(
        "slices_tile_their_whole",
        lambda p: replace(p, slices={"left": ChannelSlice("nothing", 0, 4)}),
        net="several",
    ),
    "a segment under a linear node's number": Fault(
        "targets_are_distinct", lambda p: appended(p, Segment(0, (), (), ()))
    ),
    "two segments of one number": Fault(
        "targets_are_distinct",
        lambda p: appended(p, *[Segment(99, (), (), ())] * 2),
    ),
}


def program_of(fault: Fault) -> Program:
    if fault.plan is not None:
        return compile_plan(fault.plan())
    if fault.net == "unequal":
        model = unequal.table()
        return compile_plan(
            policies.make("slalom", graph_of(model), calibration=unequal.samples(model, 16))
        )
    outer = outer_policy(fault.policy)
    if outer is not None:
        return compile_plan(planned_end(nets.ALL[fault.net](), outer, last=2).plan)
    return compile_plan(plan_of(nets.ALL[fault.net](), fault.policy))


@pytest.mark.parametrize("name", FAULTS)
def test_a_program_with_a_fault_is_refused_by_its_rule(name):
    fault = FAULTS[name]
    program = program_of(fault)
    check_program(program)
    with pytest.raises(PlanError, match=f"illegal program: .*rule {fault.rule}"):
        check_program(fault.change(program))


def test_every_rule_has_a_fault():
    assert {rule.__name__ for rule in RULES} == {fault.rule for fault in FAULTS.values()}
