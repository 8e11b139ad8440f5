"""Constants of a file that are inputs too: a caller may give them, and need not.

A file that lists the weights of its layers as inputs lists all its constants, as every file had to
before the fourth version of the format: these are no inputs here. In other files such a constant is
an input with a default.
"""

from collections.abc import Sequence
from dataclasses import replace

from cloister.graph.graph import LINEAR_OPS, Graph, OpaqueType
from cloister.graph.inference import with_types

LAYERS = frozenset(
    (
        *LINEAR_OPS, "BatchNormalization", "ConvInteger", "GRU", "LSTM", "MatMulInteger",
        "QLinearConv", "QLinearMatMul", "RNN",
    )
)  # fmt: skip
WEIGHTS = slice(1, 3)
"""The inputs of a layer among which its weights are."""


def with_default_inputs(graph: Graph, listed: Sequence[str]) -> Graph:
    """The graph with those constants as inputs that are `listed` among the inputs of its file.

    Its inputs are opaque, and so they are afterwards.
    """
    defaults = {name: graph.constants[name] for name in listed if name in graph.constants}
    if not defaults or _are_weights(graph, frozenset(defaults)):
        return graph
    given = {name: OpaqueType(a.dtype, a.shape) for name, a in defaults.items()}
    return with_types(
        replace(
            graph,
            inputs=tuple(name for name in listed if name in graph.inputs or name in defaults),
            constants={n: a for n, a in graph.constants.items() if n not in defaults},
            types={},
            opaque={**graph.opaque, **given},
            defaults=defaults,
        )
    )


def _are_weights(graph: Graph, names: frozenset[str]) -> bool:
    """Whether a layer's weights are among these constants, or computed from them."""
    found, fixed = set(names), {*graph.constants, ""}
    for node in graph.nodes:
        if node.op in LAYERS and not found.isdisjoint(node.inputs[WEIGHTS]):
            return True
        if fixed.issuperset(node.inputs):
            fixed.update(node.outputs)
            if not found.isdisjoint(node.inputs):
                found.update(node.outputs)
    return False
