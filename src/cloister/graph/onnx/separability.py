"""Whether a model treats the samples of a batch separately.

Most do: then a batch may be run in parts. A model that mixes samples (a mean or a softmax over the
first axis, say) gives other outputs for the parts, so its batches must stay whole.
"""

from dataclasses import replace

from cloister.errors import ModelError
from cloister.graph.captures import captured_values
from cloister.graph.graph import BATCH, ML, Graph, Node
from cloister.graph.ml_operators import computes_by_rows
from cloister.graph.onnx.batching import joining_axes
from cloister.graph.onnx.mixing import carries_batch, may_be_batch
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.ort_session import ORT_ERRORS

# Where inputs and outputs with a batch have it first, these work sample by sample, whatever their
# attributes: the first row with any inputs of the output's rank, the second if no input but the
# first one has a batch.
ALIGNED = frozenset(("Add", "Div", "Mul", "PRelu", "Sub"))
SEPARATE = frozenset(
    (
        "AveragePool", "BatchNormalization", "Cast", "Clip", "Conv", "ConvTranspose", "Dropout",
        "Elu", "Erf", "Flatten", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
        "HardSwish", "Identity", "LeakyRelu", "LRN", "MaxPool", "Neg", "Relu", "Reshape", "Sigmoid",
        "Sqrt", "Squeeze", "Tanh", "Unsqueeze",
    )
)  # fmt: skip
SEPARATE_OFF_AXIS_0 = {"Concat": 0, "Softmax": -1, "LogSoftmax": -1}


def with_separability(graph: Graph) -> Graph:
    """The graph with `separable` and `joins` set: by its operators, or else by running two samples.

    A graph that is known not to be separable stays so.

    The run compares two samples together with each alone; where it cannot be made, the batch is
    kept whole.
    """
    if graph.batch is not None or not graph.separable:
        return graph
    if any((graph.sizes(name) or ()).count(BATCH) > 1 for name in graph.inputs):
        return replace(graph, separable=False)
    if all(_is_separate(graph, node) for node in graph.nodes):
        maps = {value for node in graph.nodes if _makes_maps(node) for value in node.outputs}
        return replace(graph, joins={name: 0 for name in graph.outputs if name in maps})
    if any(array.dtype.kind != "f" for array in graph.defaults.values()):
        # Another axis or size than that of the default might mix samples.
        return replace(graph, separable=False)
    joins = _joins(graph)
    return replace(graph, separable=joins is not None, joins=joins or {})


def _joins(graph: Graph) -> dict[str, int] | None:
    try:
        return joining_axes(graph, graph)
    except ModelError:
        return None
    except ORT_ERRORS:
        return None


def _is_separate(graph: Graph, node: Node) -> bool:
    read = (*node.inputs, *captured_values(node))
    carrying = [i for i, value in enumerate(read) if carries_batch(graph, value)]
    if not carrying:
        return True
    values = [read[i] for i in carrying]
    values += [value for value in node.outputs if value and not _makes_maps(node)]
    if not all(_has_batch_first(graph, value) for value in values):
        return False
    if computes_by_rows(node, graph.sizes(node.inputs[0])):
        return carrying == [0]
    # In training, batch normalisation has the mean and variance of the batch.
    if node.domain or node.attributes.get("training_mode", 0):
        return False
    rank = len(graph.sizes(node.outputs[0]) or ())
    if node.op in SEPARATE or is_linear(graph, node):
        return carrying == [0]
    if any(len(graph.sizes(read[i]) or ()) != rank for i in carrying):
        return False
    if node.op in SEPARATE_OFF_AXIS_0:
        axis = node.attributes.get("axis", SEPARATE_OFF_AXIS_0[node.op])
        return isinstance(axis, int) and axis % rank != 0
    return node.op in ALIGNED


def _makes_maps(node: Node) -> bool:
    """Whether a node makes a list with a map for each sample."""
    return (node.domain, node.op) == (ML, "ZipMap")


def _has_batch_first(graph: Graph, value: str) -> bool:
    """Whether a value has the batch first, and nowhere else."""
    first, *others = graph.sizes(value) or ("",)
    return first == BATCH and not any(may_be_batch(graph, size) for size in others)
