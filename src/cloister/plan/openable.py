"""The nodes that no worker can run in the clear, whatever the policy: they stay inside.

A message carries tensors of numbers. Sequences, maps, optional values and text do not leave, and so
the nodes that read or make one stay. A worker also refuses operators that may do more than compute.
"""

from cloister.base.tensor_limits import DTYPES, MAX_RANK
from cloister.graph.captures import every_node
from cloister.graph.graph import Graph, Node
from cloister.graph.legality import runs_on_worker
from cloister.graph.onnx.export import known_type
from cloister.graph.part import reads


def kept_inside(graph: Graph) -> dict[str, str]:
    """Why nodes stay inside that a policy would have in the clear on a worker, by their names."""
    others = (node for node in graph.nodes if not node.is_module)
    found = ((node.name, _why(graph, node)) for node in others)
    return {name: why for name, why in found if why is not None}


def _why(graph: Graph, node: Node) -> str | None:
    for inner in every_node((node,)):
        if not runs_on_worker(inner.domain, inner.op):
            return f"a worker runs no operator {inner.domain}.{inner.op}"
    for value in (*reads(node), *filter(None, node.outputs)):
        if value not in graph.constants and not _is_carried(graph, value):
            return f"no message carries value {value!r}"
    return None


def _is_carried(graph: Graph, value: str) -> bool:
    """Whether a value is a tensor of numbers that a message can carry."""
    known = known_type(graph, value)
    # NumPy takes None for float64.
    return known.dtype is not None and known.dtype in DTYPES and len(known.sizes or ()) <= MAX_RANK
