"""Where a model may be split: the nodes before, and the values that cross.

A split is named by the last nodes before it. Before it is everything that these nodes depend on.
What crosses is every value that a node before the split makes and a node after it reads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloister.errors import InputError
from cloister.graph.batch import computed_from
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.part import part, reads

SIZES = ("Shape", "Size")
"""Operators whose outputs tell how large a value is, and nothing else of it."""
SHOWN = 8
"""Nodes that a message names at most."""


@dataclass(frozen=True)
class Split:
    """A model in two parts.

    until    the last nodes before the split, by name and in the model's order; none: the split
             is at the model's inputs
    before   the names of all nodes before the split
    values   what crosses, in the order in which it is made
    """

    until: tuple[str, ...]
    before: frozenset[str]
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name for people, and for `--until`."""
        return ",".join(self.until) or "input"


def split_at(graph: Graph, until: Sequence[str]) -> Split:
    """The split after some nodes.

    until   names of nodes; what they depend on is before the split as well

    Raises   InputError for a node that the model does not have, for one around which an input of
             the model gets past the split, itself or through nodes that are not linear, and where
             no linear node is before it or after it
    """
    if not until:
        raise InputError("the split: name the last nodes before it")
    before = nodes_before(graph, until)
    after = [node for node in graph.nodes if node.name not in before]
    depends = computed_from(graph, frozenset(graph.inputs))
    for nodes, where, policy in (
        ((node for node in graph.nodes if node.name in before), "before", "verified"),
        (after, "after", "slalom"),
    ):
        if not any(is_linear(graph, node) for node in nodes):
            raise InputError(
                f"the split after {', '.join(map(repr, until))}: no linear node is {where} it; use "
                f"policy {policy}"
            )
    raw = _raw_values(graph)
    for node in after:
        for value in reads(node):
            if value in raw:
                what = "the input" if value in graph.inputs else "the input as"
                raise InputError(
                    f"the split after {', '.join(map(repr, until))}: node {node.name!r} reads "
                    f"{what} {value!r} around it; name a node on that path as well"
                )
    read = {value for node in after for value in reads(node)}
    crossing = tuple(
        value
        for node in graph.nodes
        if node.name in before
        for value in node.outputs
        if value in read and value in depends
    )
    last = {value for node in graph.nodes if node.name in before for value in reads(node)}
    ends = (node for node in graph.nodes if node.name in until and last.isdisjoint(node.outputs))
    return Split(tuple(node.name for node in ends), before, crossing)


def nodes_before(graph: Graph, until: Sequence[str]) -> frozenset[str]:
    """The names of some nodes and of all that they depend on.

    Raises   InputError for a node that the model does not have
    """
    makers = {value: node for node in graph.nodes for value in node.outputs if value}
    return _ancestors(makers, [_named(graph, name) for name in until])


def split_points(graph: Graph) -> tuple[Split, ...]:
    """Every place where one value crosses, from the input on, as late as the next linear node lets.

    What follows a linear node up to the next one is before the split: it tells less, and the
    trusted side computes it in passing. An output of the model that was made by then is too.
    """
    depends = computed_from(graph, frozenset(graph.inputs))
    raw = _raw_values(graph)
    last_read = {value: i for i, node in enumerate(graph.nodes) for value in reads(node)}
    linear = [i for i, node in enumerate(graph.nodes) if is_linear(graph, node)]
    found: dict[int, Split] = {}
    live: set[str] = set(graph.inputs)
    ends: list[str] = []
    for i, node in enumerate(graph.nodes):
        live |= {value for value in node.outputs if value in depends}
        live = {value for value in live if last_read.get(value, -1) > i}
        passed = sum(at <= i for at in linear)
        crosses = len(live) == 1 and live <= set(node.outputs) and live.isdisjoint(raw)
        if crosses and 0 < passed < len(linear):
            found[passed] = split_at(graph, (*ends, node.name))
        if last_read.keys().isdisjoint(node.outputs) and not depends.isdisjoint(node.outputs):
            ends.append(node.name)
    return tuple(found.values())


def part_before(graph: Graph, split: Split) -> Graph:
    """The nodes before a split as a graph, whose outputs are what crosses."""
    nodes = tuple(node for node in graph.nodes if node.name in split.before)
    return part(graph, nodes, graph.inputs, split.values)


def _raw_values(graph: Graph) -> frozenset[str]:
    """The inputs, and what follows from nothing but them with no linear node between: the inputs in
    another form. Sizes alone are none.
    """
    depends = computed_from(graph, frozenset(graph.inputs))
    found = set(graph.inputs)
    for node in graph.nodes:
        read = depends.intersection(reads(node))
        if read and read <= found and node.op not in SIZES and not is_linear(graph, node):
            found.update(value for value in node.outputs if value)
    return frozenset(found)


def _named(graph: Graph, name: str) -> Node:
    for node in graph.nodes:
        if node.name == name:
            return node
    known = [split.name for split in split_points(graph)]
    shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    raise InputError(f"node {name!r}: the model has none of that name; it can be split at {shown}")


def _ancestors(makers: dict[str, Node], ends: Iterable[Node]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [makers[value] for value in reads(node) if value in makers]
    return frozenset(found)
