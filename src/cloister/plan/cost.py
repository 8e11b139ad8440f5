"""The costs of a plan before anything runs: work, traffic, pads and memory, per node."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import geometry, integer, is_linear
from cloister.plan.memory import MemoryCost, memory
from cloister.plan.protection import Protection
from cloister.plan.segment_traffic import Traffic, segment_traffic

RING_BYTES = 4
PLAIN_BYTES = 2
_WEIGHTS = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
"""Which input of a convolution has its weights."""
_MATRIX_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm")
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class NodeCost:
    """One node's share, for one input."""

    node: str
    op: str
    kind: str
    protection: str
    output: str
    parameters: int
    flops: int
    bytes_to_worker: int
    bytes_from_worker: int
    pad_bytes: int


@dataclass(frozen=True)
class PlanCost:
    """All nodes and their sums, for one input, and the memory of the whole."""

    nodes: tuple[NodeCost, ...]
    memory: MemoryCost

    @property
    def trusted_memory_bytes(self) -> int:
        """Peak memory of the trusted process."""
        return self.memory.peak_bytes

    def total(self, column: str) -> int:
        """Sum of one numeric column."""
        return sum(int(getattr(node, column)) for node in self.nodes)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        columns = ("parameters", "flops", "bytes_to_worker", "bytes_from_worker", "pad_bytes")
        return {
            "nodes": [asdict(node) for node in self.nodes],
            "totals": {column: self.total(column) for column in columns},
            "trusted_memory_bytes": self.trusted_memory_bytes,
            "trusted_memory": self.memory.to_dict(),
        }


def estimate(graph: Graph, protections: Mapping[str, Protection], *, batch: int = 1) -> PlanCost:
    """Costs of running a model under these protections; `batch` inputs at a time need memory."""
    sent = segment_traffic(graph, protections)
    nodes = tuple(
        _node_cost(graph, node, protections[node.name], sent.get(node.name)) for node in graph.nodes
    )
    return PlanCost(nodes, memory(graph, protections, batch=batch))


def _node_cost(graph: Graph, node: Node, protection: Protection, sent: Traffic | None) -> NodeCost:
    linear = is_linear(graph, node)
    to_worker, from_worker = sent or Traffic(0, 0)
    pads = 0
    flops = 0 if node.is_module else _local_flops(graph, node)
    if linear:
        shape = geometry(graph, node)
        flops = 2 * shape.macs
        if protection.on_integers:
            to_worker = shape.in_elements * (RING_BYTES if protection.hidden else PLAIN_BYTES)
            from_worker = shape.out_elements * RING_BYTES
            pads = from_worker if protection.hidden else 0
    return NodeCost(
        node=node.name,
        op=node.op,
        kind="linear" if linear else "module" if node.is_module else "local",
        protection=protection.name,
        output=" ".join(_shape_text(graph, value) for value in node.outputs if value),
        parameters=sum(graph.constants[v].size for v in set(node.inputs) if v in graph.constants),
        flops=flops,
        bytes_to_worker=to_worker,
        bytes_from_worker=from_worker,
        pad_bytes=pads,
    )


def _shape_text(graph: Graph, value: str) -> str:
    known = graph.types.get(value)
    if known is None:
        return "?"
    return "x".join("n" if size is None else str(size) for size in known.shape)


def _local_flops(graph: Graph, node: Node) -> int:
    elements = sum(math.prod(_shape(graph, value)) for value in node.outputs if value)
    return max(elements, 2 * _macs(graph, node))


def _macs(graph: Graph, node: Node) -> int:
    """Multiplications of a product that is computed inside; 0 for any other node."""
    first, *others = [_shape(graph, value) for value in node.inputs] or [()]
    outputs = math.prod(_shape(graph, node.outputs[0]))
    at = _WEIGHTS.get(node.op)
    if at is not None and len(others) >= at:
        weights = others[at - 1]
        return (math.prod(first) if node.op == "ConvTranspose" else outputs) * math.prod(
            weights[1:]
        )
    if node.op in _MATRIX_PRODUCTS and first:
        return outputs * first[-2 if integer(node, "transA", 0) else -1]
    if node.op in _RECURRENT and len(others) >= 2:
        return math.prod(first[:2]) * (math.prod(others[0]) + math.prod(others[1]))
    return 0


def _shape(graph: Graph, value: str) -> tuple[int, ...]:
    """A shape for one input, as far as it is known."""
    if value in graph.constants:
        return graph.constants[value].shape
    known = graph.sizes(value)
    return (0,) if known is None else tuple(n if isinstance(n, int) else 1 for n in known)
