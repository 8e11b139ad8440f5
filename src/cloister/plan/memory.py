"""The memory that the trusted process needs, item by item, before anything runs.

Memory peaks in one of three phases: while the model is read and its constants are folded, while
weights become integers beside their float32 originals, or while requests are served. The figures
are of a process that reads its calibration from a file, opens the session with
`plan.without_float_weights()` and holds the model nowhere else.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import cloister.base._native as native
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.plan.protection import OPEN, Protection
from cloister.plan.segment_traffic import segment_traffic
from cloister.ring.freivalds import coefficient_count, keeps_factors
from cloister.ring.linear import Geometry

BASE_BYTES = 88 * 2**20
"""A Python process with NumPy, ONNX Runtime and Cloister loaded."""
KEPT_BYTES = 28 * 2**20
"""Pages of freed memory that the allocator keeps, and what sessions and links hold themselves."""
SERVING = "serving requests"
"""The last phase; three of its items have names of their own, because they can be known better."""
KEPT, MESSAGES, VALUES = "kept by the allocator", "messages and answers", "values between layers"
FLOAT_BYTES = 4
RING_BYTES = 4
CHECK_BYTES = 8
WEIGHT_BYTES = 2
QUANTISING_ELEMENTS = 2**22
QUANTISING_BYTES = 32
"""Temporary arrays, per element, of the part of a layer's weights made integers at a time."""
LOCAL_COPIES = 5
"""Of a local segment's constants: as a message, as bytes, and ONNX Runtime's own three."""
SENT_COPIES = 2
"""Of an open segment's constants while a worker gets them: as a message, and in shared memory."""


@dataclass(frozen=True)
class MemoryCost:
    """Bytes by phase and item; all items of a phase exist at the same time."""

    phases: Mapping[str, Mapping[str, int]]

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak_bytes(self) -> int:
        """Most memory the process needs at any time."""
        return sum(self.phases[self.peak_phase].values())

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {name: dict(items) for name, items in self.phases.items()}


def memory(graph: Graph, protections: Mapping[str, Protection], *, batch: int = 1) -> MemoryCost:
    """The trusted process's memory; pads are made inline, the worker is another process."""
    sent = [n for n in graph.nodes if protections[n.name].on_integers]
    sent = [node for node in sent if is_linear(graph, node)]
    shapes = [(geometry(graph, node), protections[node.name]) for node in sent]
    hidden = [shape for shape, protection in shapes if protection.hidden]
    weights = [math.prod(shape.weight_shape) for shape, _ in shapes]
    packed = sum(math.prod(shape.weight_shape) for shape in hidden)
    floats = sum(array.nbytes for array in graph.constants.values())
    gone = sum(graph.constants[name].nbytes for name in _only_read_by(graph, sent))
    base = {"Python, NumPy, ONNX Runtime": BASE_BYTES}
    integers = {"integer weights": WEIGHT_BYTES * sum(weights)}
    serving = {
        **base,
        KEPT: KEPT_BYTES,
        **integers,
        "float32 constants kept inside": floats - gone,
        "their copies in ONNX Runtime": LOCAL_COPIES
        * _constant_bytes(graph, [n for n in graph.nodes if not protections[n.name].on_worker]),
        "weights packed for making pads": WEIGHT_BYTES * packed,
        "check vectors": CHECK_BYTES * sum(_coefficients(s) for s, p in shapes if p.checked),
    }
    opened = [node for node in graph.nodes if protections[node.name] == OPEN]
    segment = segment_traffic(graph, protections).values()
    loading = {
        "largest layer on its way to the worker": WEIGHT_BYTES * max(weights, default=0),
        "open layers on their way to the worker": SENT_COPIES * _constant_bytes(graph, opened),
    }
    running = {
        "unblinding terms": RING_BYTES * batch * sum(s.out_elements for s in hidden),
        MESSAGES: batch * max([sum(map(sum, segment)), *(_traffic(s, p) for s, p in shapes)]),
        VALUES: batch * _values(graph, protections),
    }
    part = min(QUANTISING_ELEMENTS, max(weights, default=0))
    largest = max((array.nbytes for array in graph.constants.values()), default=0)
    return MemoryCost(
        {
            "reading the model": {
                **base, "float32 constants": floats, "the largest of them, rearranged": largest,
            },
            "planning": {
                **base, "float32 constants": floats, **integers,
                "temporary arrays": QUANTISING_BYTES * part,
            },
            "opening the session": {**serving, **loading},
            SERVING: {**serving, **running},
        }
    )  # fmt: skip


def _only_read_by(graph: Graph, nodes: list[Node]) -> Iterator[str]:
    names = {node.name for node in nodes}
    others = {name for node in graph.nodes if node.name not in names for name in node.inputs}
    inner = {name for node in nodes for name in node.inputs} - others - set(graph.outputs)
    return (name for name in inner if name in graph.constants)


def _constant_bytes(graph: Graph, nodes: Iterable[Node]) -> int:
    read = {value for node in nodes for value in node.inputs}
    return sum(graph.constants[value].nbytes for value in read if value in graph.constants)


def _coefficients(shape: Geometry) -> int:
    # Where there are vector units, those that are products are kept once more, as digits
    # (docs/adr/0008).
    digits = keeps_factors(shape) and native.isa() != "portable"
    return coefficient_count(shape) * (2 if digits else 1)


def _traffic(shape: Geometry, protection: Protection) -> int:
    request = shape.in_elements * (RING_BYTES if protection.hidden else WEIGHT_BYTES)
    return request + shape.out_elements * RING_BYTES


def _values(graph: Graph, protections: Mapping[str, Protection]) -> int:
    """The largest values a node inside reads and writes, for one input."""
    sizes = [0]
    for node in graph.nodes:
        if not protections[node.name].on_worker:
            names = {*node.inputs, *node.outputs} - set(graph.constants)
            known = [graph.types[name] for name in names if name in graph.types]
            sizes.append(sum(FLOAT_BYTES * math.prod(s or 1 for s in t.shape) for t in known))
    return max(sizes)
