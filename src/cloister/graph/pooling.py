"""Shape of a window over an image, and that of a pooling node from its attributes."""

from dataclasses import dataclass

from cloister.graph.graph import Graph, Node
from cloister.graph.linear_nodes import stated_pads

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
    if node.attributes.get("ceil_mode", 0) and _leaves(
        node, pads, size, out_size, kernel, stride, dilation
    ):
        return None
    return PoolGeometry(
        kind,
        kernel,
        stride,
        dilation,
        (pads[0], pads[1]),
        out_size,
        bool(node.attributes.get("count_include_pad", 0)),
    )


def _leaves(
    node: Node,
    pads: tuple[int, ...],
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> bool:
    """Whether the windows that ceil mode adds need more than `PoolGeometry` says.

    One that starts behind the image does not exist for ONNX Runtime, though shape inference counts
    it before operator set 22; one that is cut off by the padding's end divides by fewer positions.
    """
    counted = node.op == "AveragePool" and node.attributes.get("count_include_pad", 0)
    for i in (0, 1):
        start = (out_size[i] - 1) * stride[i] - pads[i]
        reach = (kernel[i] - 1) * dilation[i] + 1
        if start >= size[i] or (counted and start + reach > size[i] + pads[i + 2]):
            return True
    return False


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
