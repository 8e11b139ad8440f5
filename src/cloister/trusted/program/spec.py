"""Which programs are legal: a list of small rules, each of which may assume those before it.

A rule yields the position of the step that breaks it, None where no single step does, and what is
wrong. The rules look at the plan and the model, never at how the compiler found the steps.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np

from cloister.errors import PlanError, ShapeError
from cloister.graph.captures import captured_values
from cloister.graph.graph import Node
from cloister.graph.layout import channels_last_shape
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.part import origins
from cloister.plan.protection import (
    ENCLAVE,
    MODULE,
    OPEN,
    assumes_honest_worker,
    shows_inputs,
)
from cloister.trusted.program.epilogue import Epilogue, absorb
from cloister.trusted.program.steps import (
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
    Step,
)

Broken = Iterator[tuple[int | None, str]]
AnyStep = TypeVar("AnyStep", bound=Step)


def check_program(program: Program) -> None:
    """Refuse a program that breaks a rule.

    Raises   PlanError, which names the rule and the step
    """
    for rule in RULES:
        for position, why in rule(program):
            where = "" if position is None else f"step {position} ({_named(program, position)}): "
            raise PlanError(f"illegal program: {where}{why} (rule {rule.__name__})")


def steps_name_what_exists(program: Program) -> Broken:
    """Every step is of a known kind and names nodes of the plan."""
    linear = range(len(program.plan.linear_nodes))
    nodes = {node.name: node for node in program.plan.graph.nodes}
    for i, step in enumerate(program.steps):
        if isinstance(step, Fused):
            if (step.node is None) == (step.source is None):
                yield i, "takes neither an answer nor a value, or both"
            indices = step.sinks if step.node is None else (step.node, *step.sinks)
            if not set(indices) <= set(linear):
                yield i, "names a linear node that the plan does not have"
            if not set(step.epilogue.covered) <= set(nodes):
                yield i, "covers a node that the model does not have"
        elif isinstance(step, Exchange):
            if step.node not in linear:
                yield i, "names a linear node that the plan does not have"
        elif isinstance(step, Local | Segment | Module):
            if any(nodes.get(node.name) is not node for node in step.nodes):
                yield i, "has a node that is not the model's"
        else:
            yield i, f"a step of kind {type(step).__name__} has no meaning"


def nodes_are_covered_once(program: Program) -> Broken:
    """Every node is computed by exactly one step, or is the concatenation of slices."""
    covered: Counter[str] = Counter(_concatenations(program))
    for i, step in enumerate(program.steps):
        for name in _covered(program, step):
            covered[name] += 1
            if covered[name] > 1:
                yield i, f"node {name!r} is computed twice"
    for node in program.plan.graph.nodes:
        if not covered[node.name]:
            yield None, f"node {node.name!r} is computed by no step"


def nodes_run_where_planned(program: Program) -> Broken:
    """Linear nodes go out under the plan's protection, open nodes in segments, all others stay.

    Modules run hidden parts, and no step but a module does.
    """
    plan = program.plan
    for i, step in enumerate(program.steps):
        if isinstance(step, Exchange):
            planned = plan.protection_of(plan.linear_nodes[step.node])
            if step.protection != planned:
                yield i, f"is {step.protection.name}, and planned as {planned.name}"
            continue
        wanted = {Segment: OPEN, Module: MODULE}.get(type(step), ENCLAVE)
        for name in _covered(program, step):
            if plan.protections[name] != wanted:
                yield i, f"node {name!r} is planned as {plan.protections[name].name}"
    for name in _concatenations(program):
        if plan.protections[name] != ENCLAVE:
            yield None, f"node {name!r} is planned as {plan.protections[name].name}"


def values_are_made_once(program: Program) -> Broken:
    """No step makes a value that exists already."""
    made = {*program.plan.graph.inputs, *program.plan.graph.constants}
    for i, step in enumerate(program.steps):
        for value in step.outputs:
            if value in made:
                yield i, f"value {value!r} is made twice"
            made.add(value)


def values_are_there_when_read(program: Program) -> Broken:
    """A step reads inputs, constants and what earlier steps made; outputs are made in the end."""
    there = {*program.plan.graph.inputs, *program.plan.graph.constants}
    for i, step in enumerate(program.steps):
        for value in step.inputs:
            if value not in there:
                yield i, f"reads value {value!r}, which no step before has made"
        there.update(step.outputs)
        # A concatenation is there when all its slices are.
        wholes = {part.whole for value, part in program.slices.items() if value in step.outputs}
        there |= {whole for whole in wholes if there.issuperset(program.parts(whole))}
    for value in program.plan.graph.outputs:
        if value not in there:
            yield None, f"output {value!r} is made by no step"


def borders_are_complete(program: Program) -> Broken:
    """A step of several nodes names all that they read from outside and only what they make."""
    constants = program.plan.graph.constants
    for i, step in enumerate(program.steps):
        if isinstance(step, Local | Segment | Module):
            made: set[str] = set()
            for node in step.nodes:
                missing = {*node.inputs, *captured_values(node)} - made - {"", *constants}
                for value in sorted(missing - set(step.inputs)):
                    yield i, f"node {node.name!r} reads value {value!r}, which does not get in"
                made.update(node.outputs)
            for value in step.outputs:
                if value not in made:
                    yield i, f"makes value {value!r}, which none of its nodes makes"


def modules_take_what_their_node_takes(program: Program) -> Broken:
    """A module runs one node, and its tensors are the node's in their order."""
    for i, step in _each(program, Module):
        borders = [(node.inputs, node.outputs) for node in step.nodes]
        if borders != [(step.inputs, step.outputs)]:
            yield i, "does not take and make what one node takes and makes"


def fused_steps_compute_their_nodes(program: Program) -> Broken:
    """A fused step computes its nodes, one after the other."""
    nodes = {node.name: node for node in program.plan.graph.nodes}
    for i, step in _each(program, Fused):
        start = step.source or "" if step.node is None else program.linear[step.node].outputs[0]
        found: Epilogue | None = Epilogue(start)
        for name in step.epilogue.covered:
            found = found and absorb(
                program.plan.graph, nodes[name], found, channels_first=step.channels_first
            )
        if found is None or not _same(found, step.epilogue):
            yield i, f"does not compute the nodes that follow value {start!r}"
        only_sent = step.source and not step.stored and not step.epilogue.covered
        if step.factors is not None and not only_sent:
            yield i, "multiplies by factors a value that does not only become a message"


def exchanges_are_paired(program: Program) -> Broken:
    """One fused step writes a message, one exchange sends it, one fused step reads the answer."""
    written: set[int] = set()
    sent: set[int] = set()
    read: set[int] = set()
    for i, step in enumerate(program.steps):
        if isinstance(step, Exchange):
            if step.node not in written:
                yield i, "sends a message that no step before has written"
            if step.node in sent:
                yield i, "sends a message twice: its pad would serve twice"
            sent.add(step.node)
        elif isinstance(step, Fused):
            if step.node is not None:
                if step.node not in sent:
                    yield i, "reads an answer that no exchange before has fetched"
                if step.node in read:
                    yield i, "reads an answer a second time"
                read.add(step.node)
            for index in step.sinks:
                if index in written:
                    yield i, f"writes the message of linear node {index} a second time"
                written.add(index)
    for index in range(len(program.plan.linear_nodes)):
        if index not in read:
            yield None, f"the answer of linear node {index} is read by no step"


def clear_messages_wait_for_checks(program: Program) -> Broken:
    """While a checked answer is not compared yet, nothing is sent in the clear.

    Otherwise the worker would read what its own wrong answer did to a value it may not know.
    """
    for i, step, waits in _before_checks(program):
        if _is_clear(step):
            yield i, f"sends in the clear before step {waits} is checked"


def clear_messages_follow_checked_answers(program: Program) -> Broken:
    """Nothing is sent in the clear that follows from an answer which no check covers.

    Otherwise the worker adds an error of its choice to that answer and reads what becomes of it.
    A segment may read what an earlier one made: the worker has it anyway. So it has what follows
    inside from the inputs, where the policy shows these. The policy that assumes a worker which
    follows the protocol is exempt.
    """
    if assumes_honest_worker(program.plan.policy):
        return
    # By value, or by the linear node whose message or answer it is: the step it follows from.
    sources: dict[str | int, int] = {}
    opened: dict[str, int] = {}
    for i, step in enumerate(program.steps):
        read: tuple[str | int | None, ...] = step.inputs
        if isinstance(step, Exchange | Fused):
            read = (*read, step.node)
        followed = [sources[one] for one in read if one is not None and one in sources]
        shown = isinstance(step, Local) and shows_inputs(program.plan.policy)
        if not isinstance(step, Segment) and not shown:
            followed += [opened[value] for value in step.inputs if value in opened]
        if followed and _is_clear(step):
            yield i, f"sends in the clear what follows from step {followed[0]}, which is unchecked"
        if isinstance(step, Segment) or (shown and not followed):
            opened.update(dict.fromkeys(step.outputs, i))
        elif isinstance(step, Exchange):
            if not step.protection.checked:
                sources[step.node] = i
        elif followed:
            wholes = [program.slices[v].whole for v in step.outputs if v in program.slices]
            sinks = step.sinks if isinstance(step, Fused) else ()
            sources.update(dict.fromkeys((*step.outputs, *wholes, *sinks), followed[0]))


def modules_wait_for_checks(program: Program) -> Broken:
    """While a checked answer is not compared yet, no module runs.

    Otherwise a worker's wrong answer would be a query to the hidden part, and be charged.
    """
    for i, step, waits in _before_checks(program):
        if isinstance(step, Module):
            yield i, f"runs before step {waits} is checked"


def _before_checks(program: Program) -> Iterator[tuple[int, Step, int]]:
    """Steps that come while the answer of an earlier one is not compared, and that one's place."""
    unchecked: dict[int, int] = {}
    for i, step in enumerate(program.steps):
        if unchecked:
            yield i, step, min(unchecked.values())
        if isinstance(step, Exchange) and step.protection.checked:
            unchecked[step.node] = i
        elif isinstance(step, Fused) and step.node is not None:
            unchecked.pop(step.node, None)


def hidden_values_stay_hidden(program: Program) -> Broken:
    """No exchange and no segment sends in the clear a value that another exchange hides.

    The same numbers in another shape are the same value.
    """
    origin = origins(program.plan.graph)
    exchanges = [step for step in program.steps if isinstance(step, Exchange)]
    hidden = {origin(program.linear[s.node].inputs[0]) for s in exchanges if s.protection.hidden}
    for i, value in _sent_in_the_clear(program):
        if origin(value) in hidden:
            yield i, f"sends value {value!r} in the clear, which another step hides"


def modules_answer_inside(program: Program) -> Broken:
    """No worker gets a module's answer in the clear: its owner counts who gets answers."""
    origin = origins(program.plan.graph)
    made = {value for _, step in _each(program, Module) for value in step.outputs}
    for i, value in _sent_in_the_clear(program):
        if origin(value) in made:
            yield i, f"sends value {value!r} in the clear, which a module makes"


def _is_clear(step: Step) -> bool:
    """Whether a step sends a worker something that is not blinded."""
    return isinstance(step, Segment) or (isinstance(step, Exchange) and not step.protection.hidden)


def _sent_in_the_clear(program: Program) -> Broken:
    """Values that workers get in the clear, with the steps that send them."""
    for i, step in enumerate(program.steps):
        if isinstance(step, Segment):
            yield from ((i, value) for value in step.inputs)
        elif isinstance(step, Exchange) and not step.protection.hidden:
            yield i, program.linear[step.node].inputs[0]


def sizes_agree(program: Program) -> Broken:
    """A fused step takes the size of its source and makes the size that its window leaves."""
    for i, step in _each(program, Fused):
        found: tuple[int, int, int] | None
        if step.node is not None:
            found = program.plan.linear_nodes[step.node].linear.geometry.out_shape
            if step.channels_first != _channels_first(program.linear[step.node]):
                yield i, "takes an answer in the other layout"
        else:
            found = _size(program, step.source or "", step.channels_first)
        if found != step.size:
            yield i, f"takes {step.size}, and its source is {found}"
        window = step.epilogue.window
        out_size = (*window.out_size, step.size[2]) if window else step.size
        if out_size != step.out_size:
            yield i, f"makes {out_size}, and its result is taken for {step.out_size}"
        value = step.epilogue.value
        if step.stored and out_size != _size(program, value, step.channels_first):
            yield i, f"makes {out_size}, which is no value {value!r}"


def messages_fit_their_nodes(program: Program) -> Broken:
    """A sink reads the step's result, in its layout and size, times the node's own factors."""
    for i, step in _each(program, Fused):
        for index in step.sinks:
            vector = len(program.plan.graph.types[step.epilogue.value].shape) == 2
            node, numbers = program.linear[index], program.plan.linear_nodes[index]
            if node.inputs[0] != step.epilogue.value:
                yield i, f"node {node.name!r} reads value {node.inputs[0]!r}, not the result"
            if not vector and step.channels_first != _channels_first(node):
                yield i, f"node {node.name!r} reads the other layout"
            if step.out_size != numbers.linear.geometry.in_shape:
                yield i, f"node {node.name!r} takes {numbers.linear.geometry.in_shape}"
            if not _equal(step.factors, numbers.x_factors):
                yield i, f"node {node.name!r}: the factors of its input are not the plan's"


def slices_tile_their_whole(program: Program) -> Broken:
    """The slices of a value are its concatenation's inputs, side by side, and no other values."""
    stored = {step.epilogue.value: step for _, step in _each(program, Fused) if step.stored}
    makers = {value: node for node in program.plan.graph.nodes for value in node.outputs}
    for whole in dict.fromkeys(part.whole for part in program.slices.values()):
        node, parts, end = makers.get(whole), program.parts(whole), 0
        if node is None or node.op != "Concat" or node.attributes.get("axis") != 1:
            yield None, f"value {whole!r} is no concatenation of channels"
        elif node.inputs != parts:
            yield None, f"value {whole!r} does not have its slices in their order"
        for value in parts:
            step = stored.get(value)
            if step is None or not step.channels_first:
                yield None, f"value {value!r} is a slice that no step stores channels-first"
            elif program.slices[value].offset != end:
                yield None, f"value {value!r} leaves a gap in {whole!r} or overlaps"
            elif step.out_size[:2] != stored[parts[0]].out_size[:2]:
                yield None, f"value {value!r} has another height or width than {whole!r}"
            else:
                end += step.out_size[2]
        if any(program.slices[value].channels != end for value in parts):
            yield None, f"value {whole!r} does not have the {end} channels of its slices"
    for i, reader in enumerate(program.steps):
        for value in reader.inputs:
            if value in program.slices:
                yield i, f"reads value {value!r}, which is only a slice"
    for value in program.plan.graph.outputs:
        if value in program.slices:
            yield None, f"output {value!r} is only a slice"


def targets_are_distinct(program: Program) -> Broken:
    """No two linear nodes or segments have one number on the wire."""
    taken = set(range(len(program.linear)))
    for i, step in _each(program, Segment):
        if step.target in taken:
            yield i, f"target {step.target} is taken"
        taken.add(step.target)


RULES: tuple[Callable[[Program], Broken], ...] = (
    steps_name_what_exists,
    nodes_are_covered_once,
    nodes_run_where_planned,
    values_are_made_once,
    values_are_there_when_read,
    borders_are_complete,
    fused_steps_compute_their_nodes,
    exchanges_are_paired,
    clear_messages_wait_for_checks,
    clear_messages_follow_checked_answers,
    modules_wait_for_checks,
    hidden_values_stay_hidden,
    modules_answer_inside,
    sizes_agree,
    messages_fit_their_nodes,
    slices_tile_their_whole,
    targets_are_distinct,
    modules_take_what_their_node_takes,
)


def _named(program: Program, position: int) -> str:
    """A step's kind and the first node it computes, for people; the step may name anything."""
    step = program.steps[position]
    name = ""
    if isinstance(step, Fused):
        name = step.name
    elif isinstance(step, Exchange):
        name = "".join(node.name for i, node in enumerate(program.linear) if i == step.node)
    elif isinstance(step, Local | Segment | Module) and step.nodes:
        name = step.nodes[0].name
    return f"{type(step).__name__} {name}".strip()


def _covered(program: Program, step: Step) -> tuple[str, ...]:
    """The names of the nodes that a step computes."""
    if isinstance(step, Fused):
        return step.epilogue.covered
    if isinstance(step, Exchange):
        return (program.linear[step.node].name,)
    return tuple(node.name for node in step.nodes)


def _concatenations(program: Program) -> list[str]:
    """The names of the nodes that make values of which others are slices."""
    wholes = {part.whole for part in program.slices.values()}
    return [node.name for node in program.plan.graph.nodes if wholes & set(node.outputs)]


def _each(program: Program, kind: type[AnyStep]) -> Iterator[tuple[int, AnyStep]]:
    return ((i, step) for i, step in enumerate(program.steps) if isinstance(step, kind))


def _same(one: Epilogue, other: Epilogue) -> bool:
    """Whether two steps compute the same; their filters are compared by value."""
    mine, theirs = one.depthwise, other.depthwise
    if mine is None or theirs is None:
        return one == other
    bare = replace(one, depthwise=None) == replace(other, depthwise=None)
    filters = _equal(mine.weights, theirs.weights) and _equal(mine.bias, theirs.bias)
    return bare and filters and mine.window == theirs.window


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _channels_first(node: Node) -> bool:
    return node.op not in LAST_AXIS_OPS


def _size(program: Program, value: str, channels_first: bool) -> tuple[int, int, int] | None:
    """(h, w, c) of one image of a value; None where it has no such form."""
    known = program.plan.graph.types.get(value)
    if known is None or known.dtype != np.float32:
        return None
    try:
        return channels_last_shape(known.shape, channels_first=channels_first)
    except ShapeError:
        return None
