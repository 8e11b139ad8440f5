"""Is a graph well-formed, and can anything run all of its nodes?"""

import math

from cloister.errors import ModelError, UnsupportedError, printable
from cloister.graph.captures import every_node
from cloister.graph.graph import Graph, Node
from cloister.graph.ort_session import runtime_operators
from cloister.graph.part import reads

READS_A_FILE = ("EPContext",)
"""Operators of ONNX Runtime's that open a file which an attribute names."""
OPEN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
MICROSOFT_DOMAIN = "com.microsoft"
MICROSOFT_OPERATORS = frozenset(
    {
        "Attention", "BiasGelu", "DequantizeLinear", "DynamicQuantizeMatMul",
        "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu",
        "GroupQueryAttention", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16",
        "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "NhwcMaxPool", "QAttention",
        "QGemm", "QLinearAdd",
        "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
        "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax",
        "QLinearWhere", "QuantizeLinear", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "TransposeMatMul",
    }
)  # fmt: skip
"""The operators that ONNX Runtime's own quantiser and optimiser write: arithmetic on inputs. Other
operators of that domain are refused, such as `EPContext`, whose attribute names a file."""
MAX_ELEMENTS = 2**33
"""No value of one input is larger: such a size is a damaged or hostile file."""


def runs_on_worker(domain: str, op: str) -> bool:
    """Whether a worker runs an operator of a segment: those that only compute."""
    return domain in OPEN_DOMAINS or (domain == MICROSOFT_DOMAIN and op in MICROSOFT_OPERATORS)


def check(graph: Graph) -> None:
    """Order, names, definitions and types.

    Raises ModelError naming the node or value.
    """
    made = {*graph.inputs, *graph.constants}
    if len(graph.inputs) + len(graph.constants) != len(made):
        raise ModelError(f"{graph.name}: an input and a constant have the same name")
    names: set[str] = set()
    for node in graph.nodes:
        if node.name != printable(node.name):
            raise ModelError(f"node {node.name!r} ({node.op}): its name is not printable")
        if not node.name or node.name in names:
            raise ModelError(f"node {node.name!r} ({node.op}): its name is not unique")
        names.add(node.name)
        for value in reads(node):
            if value not in made:
                raise ModelError(f"node {node.name!r} reads {value!r}, which no earlier node makes")
        for value in node.outputs:
            if value in made:
                raise ModelError(f"node {node.name!r} makes {value!r} a second time")
            if value:
                made.add(value)
    for value in graph.outputs:
        if value not in made:
            raise ModelError(f"output {value!r} is made by no node")
    _check_types(graph)
    for value, array in graph.defaults.items():
        if value not in graph.inputs or graph.sizes(value) != array.shape:
            raise ModelError(f"input {value!r}: its default is not of its shape")


def _check_types(graph: Graph) -> None:
    made = (value for node in graph.nodes for value in node.outputs if value)
    for value in (*graph.inputs, *graph.constants, *made):
        if value not in graph.types and value not in graph.opaque:
            raise ModelError(f"value {value!r} has no type and is not marked as opaque")
    for value, known in graph.types.items():
        if any(size is not None and size < 0 for size in known.shape):
            raise ModelError(f"value {value!r} has a negative size: {known.shape}")
        if math.prod(size or 1 for size in known.shape) > MAX_ELEMENTS:
            raise ModelError(f"value {value!r}: absurd shape {known.shape}; the file is damaged")
    for value, array in graph.constants.items():
        stated = graph.types[value]
        if (stated.dtype, stated.shape) != (array.dtype, array.shape):
            raise ModelError(f"constant {value!r} is not of its stated type")


def unsupported(graph: Graph) -> list[tuple[str, str, str]]:
    """Nodes that Cloister cannot run: (node, why, what to do), all of them at once."""
    found = []
    for node in graph.nodes:
        reason = _reason(graph, node)
        if reason is not None:
            found.append((node.name, *reason))
    return found


def require_supported(graph: Graph) -> None:
    """Go on only with a model that something here can run.

    Raises UnsupportedError naming all the nodes that nothing can
    """
    found = unsupported(graph)
    if found:
        listed = "; ".join(f"node {node!r}: {why}, {remedy}" for node, why, remedy in found)
        raise UnsupportedError(listed)


def require_sizes(graph: Graph, what: str, *, remedy: str = "") -> None:
    """Go on only with a model without free sizes besides the batch.

    what     needs their numbers; it begins the message
    remedy   another one than to load the model with numbers

    Raises   UnsupportedError naming the first of them
    """
    if graph.free_sizes:
        name = graph.free_sizes[0]
        raise UnsupportedError(
            f"{what} needs a number for the model's free size {name!r}: {remedy}load the model "
            f"with dims={{{name!r}: SIZE}} (--dim {name}=SIZE)"
        )


def _reason(graph: Graph, node: Node) -> tuple[str, str] | None:
    if node.is_module:
        return None  # the plan checks it: a module has to be named
    unknown = [one for one in every_node((node,)) if not _is_known(one)]
    if unknown:
        return (
            f"operator {unknown[0].domain or 'ai.onnx'}.{unknown[0].op} has no implementation",
            "replace it with standard ONNX operators before exporting",
        )
    if any(one.op in READS_A_FILE for one in every_node((node,))):
        return f"{node.op} reads a file", "export the model with standard operators"
    if any(one.is_module for one in every_node((node,))):
        return f"{node.op} has a hidden part in a body", "hide nodes of the model itself"
    return None


def _is_known(node: Node) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return node.is_module or (domain, node.op) in runtime_operators()
