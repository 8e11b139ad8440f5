"""Whether a model treats the samples of a batch separately.

Most do: then a batch may be run in parts. A model that mixes samples (a mean or a softmax over the
first axis, say) gives other outputs for the parts, so its batches must stay whole.
"""

from dataclasses import replace

from cloister.errors import ModelError
from cloister.graph.batching import agrees
from cloister.graph.graph import Graph, Node
from cloister.graph.interpreter import ORT_ERRORS
from cloister.graph.ops import is_linear

# With a batch-first output these work sample by sample, whatever their attributes.
SEPARATE = frozenset(
    (
        "Add", "AveragePool", "BatchNormalization", "Clip", "Conv", "ConvTranspose", "Div",
        "Dropout", "Elu", "Erf", "Flatten", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LRN", "MaxPool", "Mul", "Neg",
        "PRelu", "Relu", "Reshape", "Sigmoid", "Sqrt", "Squeeze", "Sub", "Tanh", "Unsqueeze",
    )
)  # fmt: skip
SEPARATE_OFF_AXIS_0 = {"Concat": 0, "Softmax": -1, "LogSoftmax": -1}


def with_separability(graph: Graph) -> Graph:
    """The graph with `separable` set: by its operators, or else by running two samples.

    The run compares two samples together with each alone; where it cannot be made, the batch is
    kept whole.
    """
    if graph.batch is not None or all(_is_separate(graph, node) for node in graph.nodes):
        return graph
    try:
        return replace(graph, separable=agrees(graph, graph))
    except ModelError:
        return replace(graph, separable=False)
    except ORT_ERRORS:
        return replace(graph, separable=False)


def _is_separate(graph: Graph, node: Node) -> bool:
    for value in node.outputs:
        known = graph.types.get(value)
        if value and (known is None or known.shape[:1] != (None,)):
            return not any(_carries_batch(graph, name) for name in node.inputs)
    if node.op in SEPARATE_OFF_AXIS_0:
        axis = node.attributes.get("axis", SEPARATE_OFF_AXIS_0[node.op])
        rank = len(graph.types[node.outputs[0]].shape)
        return isinstance(axis, int) and axis % rank != 0
    return not node.domain and (node.op in SEPARATE or is_linear(graph, node))


def _carries_batch(graph: Graph, name: str) -> bool:
    known = graph.types.get(name)
    return bool(name) and name not in graph.constants and (known is None or None in known.shape)
