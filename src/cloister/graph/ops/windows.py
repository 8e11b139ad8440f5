"""Shape of a window over an image, and that of a pooling node from its attributes."""

from dataclasses import dataclass

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import stated_pads

KINDS = ("max", "avg", "depthwise")
"""By the number the native pass knows them by."""


@dataclass(frozen=True)
class PoolGeometry:
    """A two-dimensional window; every pair is (height, width), `pad` counts before the first."""

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    out_size: tuple[int, int]
    count_include_pad: bool = False

    def reads(self, size: tuple[int, int]) -> bool:
        """Whether every window reads something of an image of this size."""
        for i in (0, 1):
            starts = np.arange(self.out_size[i]) * self.stride[i] - self.pad[i]
            at = starts[:, None] + np.arange(self.kernel[i]) * self.dilation[i]
            if not ((at >= 0) & (at < size[i])).any(axis=1).all():
                return False
        return True

    def is_cut_off(self, size: tuple[int, int], end: tuple[int, int]) -> bool:
        """Whether the last window reaches beyond an image and the padding behind it.

        ONNX Runtime counts fewer positions in such a window than it has.
        """
        for i in (0, 1):
            start = (self.out_size[i] - 1) * self.stride[i] - self.pad[i]
            if start + (self.kernel[i] - 1) * self.dilation[i] >= size[i] + end[i]:
                return True
        return False

    def to_tuple(self) -> tuple[int, ...]:
        """The integers the native pass takes: the kind, then the fields in order."""
        return (
            KINDS.index(self.kind), *self.kernel, *self.stride, *self.dilation, *self.pad,
            *self.out_size, int(self.count_include_pad),
        )  # fmt: skip


def pool_geometry(graph: Graph, node: Node) -> PoolGeometry | None:
    """The window of a pooling node on (N, C, H, W) or (N, C, L); None where it has none.

    That is any other rank, or windows that only ONNX Runtime defines.
    """
    before, after = graph.types.get(node.inputs[0]), graph.types.get(node.outputs[0])
    if before is None or after is None or len(before.shape) not in (3, 4):
        return None
    size, out_size = _pair(before.shape[2:]), _pair(after.shape[2:])
    if size is None or out_size is None:
        return None
    kind = "max" if "Max" in node.op else "avg"
    if node.op.startswith("Global"):
        return PoolGeometry(kind, size, (1, 1), (1, 1), (0, 0), out_size)
    kernel = _attribute(node, "kernel_shape", (1, 1))
    stride = _attribute(node, "strides", (1, 1))
    dilation = _attribute(node, "dilations", (1, 1))
    pads = stated_pads(node, len(before.shape) - 2)
    if pads is None:
        return None
    pads = (0, pads[0], 0, pads[1]) if len(pads) == 2 else pads
    counted = node.op == "AveragePool" and bool(node.attributes.get("count_include_pad", 0))
    begin, end = (pads[0], pads[1]), (pads[2], pads[3])
    window = PoolGeometry(kind, kernel, stride, dilation, begin, out_size, counted)
    if not window.reads(size) or (counted and window.is_cut_off(size, end)):
        return None
    return window


def _attribute(node: Node, name: str, default: tuple[int, int]) -> tuple[int, int]:
    values = node.attributes.get(name)
    return _pair(tuple(values)) or default if values else default  # type: ignore[arg-type]


def _pair(values: tuple[int | None, ...]) -> tuple[int, int] | None:
    if any(value is None for value in values):
        return None
    known = tuple(int(value) for value in values if value is not None)
    if len(known) == 1:
        return (1, known[0])
    return (known[0], known[1]) if len(known) == 2 else None
