"""A model in two parts: the outer one, and the hidden one that is compiled to a module.

A layer is a node with weights (WEIGHTED) and what follows it, in the order of the model's nodes, up
to the next such node. Nodes before the first layer belong to it. The hidden part is an end of that
order: since no node reads a value of a later one, only outputs of the model leave it.
"""

from dataclasses import dataclass, replace

import numpy as np

from cloister.errors import InputError, UnsupportedError
from cloister.graph.batch import computed_from
from cloister.graph.captures import every_node
from cloister.graph.graph import LINEAR_OPS, MODULE_DOMAIN, MODULE_OP, Graph, Node
from cloister.graph.legality import check, require_sizes
from cloister.graph.module_node import (
    DIGEST,
    QUERIES,
    check_border,
    check_module,
)
from cloister.graph.part import made_by, part, reads

WEIGHTED = frozenset(
    (
        *LINEAR_OPS, "BatchNormalization", "GRU", "Gather", "GroupNormalization",
        "InstanceNormalization", "LSTM", "LayerNormalization", "RNN",
    )
)  # fmt: skip
"""Operators that begin a layer where one of their inputs is a constant of floating point; Gather is
then an embedding."""
NODE_NAME = "module"
SHOWN = 8
"""Nodes that a message names at most."""


@dataclass(frozen=True, eq=False)
class HiddenSplit:
    """A model in two parts.

    whole    the model itself
    outer    the model with its hidden part as one node, `node`, that names no module yet (`named`);
             of the hidden part, it has nothing but the types of what enters and leaves
    hidden   the hidden part: its inputs are the values that enter, its outputs those that leave
    """

    whole: Graph
    outer: Graph
    hidden: Graph
    node: str

    def named(self, digest: bytes, *, queries: int | None = None) -> Graph:
        """The outer part, whose hidden node names the module that computes it.

        queries   how many samples the module may answer in all

        Raises   ModelError
        """
        named = {DIGEST: digest} if queries is None else {DIGEST: digest, QUERIES: queries}
        *before, last = self.outer.nodes
        outer = replace(self.outer, nodes=(*before, replace(last, attributes=named)))
        check_module(outer, outer.nodes[-1])
        return outer


def layers(graph: Graph) -> tuple[Node, ...]:
    """The nodes that begin layers, in the model's order."""
    return tuple(graph.nodes[i] for i in _starts(graph))


def hide(graph: Graph, *, last: int | None = None, first: str | None = None) -> HiddenSplit:
    """Hide the end of a model: its last layers, or every node from one on.

    last    how many layers; as many as the model has: all nodes
    first   the name of the first hidden node

    Raises   InputError for an end that the model does not have, UnsupportedError for a hidden part
             that no module can compute
    """
    require_sizes(graph, "a hidden part")
    at = _position(graph, last, first)
    if graph.batch is None and not graph.separable:
        raise UnsupportedError(
            "the model does not compute each sample of a batch by itself, and a hidden part "
            "takes one sample at a time; export the model so that it does"
        )
    outside, inside = graph.nodes[:at], graph.nodes[at:]
    for node in every_node(inside):
        if node.is_module:
            raise InputError(f"node {node.name!r}: is a hidden part already; give the whole model")
    read = dict.fromkeys(value for node in inside for value in reads(node))
    made = made_by(inside)
    inputs = tuple(v for v in read if v not in made and v not in graph.constants)
    outputs = tuple(value for value in graph.outputs if value in made)
    check_border(graph, inputs, outputs)
    _refuse_public_weights(graph, outside, inside)
    hidden = part(graph, inside, inputs, outputs)
    name = _free_name(outside)
    module = Node(name, MODULE_OP, inputs, outputs, domain=MODULE_DOMAIN)
    outer = part(graph, (*outside, module), graph.inputs, graph.outputs)
    check(hidden)
    check(outer)
    return HiddenSplit(graph, outer, hidden, name)


def without_modules(graph: Graph) -> Graph:
    """The graph without modules and what depends on them; itself where it has none."""
    made = made_by(node for node in graph.nodes if node.is_module)
    if not made:
        return graph
    gone = computed_from(graph, made)
    nodes = tuple(node for node in graph.nodes if gone.isdisjoint(node.outputs))
    outputs = tuple(value for value in graph.outputs if value not in gone)
    return part(graph, nodes, graph.inputs, outputs)


def _position(graph: Graph, last: int | None, first: str | None) -> int:
    """Where the hidden part begins in the order of the nodes."""
    if (last is None) == (first is None):
        raise InputError("the hidden part: give the number of its layers, or its first node")
    starts = _starts(graph)
    if last is not None:
        if not 1 <= last <= len(starts):
            raise InputError(
                f"the last {last} layers cannot be hidden: the model has {len(starts)} layers with "
                "weights"
            )
        return 0 if last == len(starts) else starts[-last]
    for i, node in enumerate(graph.nodes):
        if node.name == first:
            if not any(start >= i for start in starts):
                raise InputError(f"node {first!r}: no node from it on has weights to hide")
            return i
    shown = ", ".join(repr(graph.nodes[i].name) for i in starts[-SHOWN:])
    raise InputError(f"node {first!r}: the model has none of that name; its last layers: {shown}")


def _starts(graph: Graph) -> tuple[int, ...]:
    return tuple(i for i, node in enumerate(graph.nodes) if _weights(graph, node))


def _weights(graph: Graph, node: Node) -> list[str]:
    """The constants of floating point that a node with weights reads."""
    if node.op not in WEIGHTED or node.domain not in ("", "ai.onnx"):
        return []
    constants = [value for value in node.inputs if value in graph.constants]
    return [v for v in constants if graph.types[v].dtype.kind == "f" and graph.types[v].shape]


def _refuse_public_weights(
    graph: Graph, outside: tuple[Node, ...], inside: tuple[Node, ...]
) -> None:
    """Weights that a node outside reads too would be public.

    A constant of one number, repeated, may be a bias of zeros that a tool has stored once for all
    layers.

    Raises   InputError naming the nodes
    """
    readers = {value: node.name for node in outside for value in reads(node)}
    for node in inside:
        for value in _weights(graph, node):
            public = value in graph.outputs or value in readers
            if public and not _repeats(graph.constants[value]):
                where = f"node {readers[value]!r}" if value in readers else "the model's output"
                raise InputError(
                    f"node {node.name!r}: {where} shows its weights {value!r}, so they would not "
                    "be hidden; let the hidden part begin there, or store them twice"
                )


def _repeats(array: np.ndarray) -> bool:
    """Whether a constant of one axis has one number only."""
    return array.ndim == 1 and bool((array == array[:1]).all())


def _free_name(nodes: tuple[Node, ...]) -> str:
    """A name that no node has."""
    taken, name = {node.name for node in nodes}, NODE_NAME
    while name in taken:
        name += "_"
    return name
