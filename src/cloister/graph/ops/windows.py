"""The window of a pooling node, from its attributes."""

from typing import Literal

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import stated_pads
from cloister.ring.window_geometry import WindowGeometry


def pool_geometry(graph: Graph, node: Node) -> WindowGeometry | None:
    """The window of a pooling node on (N, C, H, W) or (N, C, L); None where it has none.

    That is any other rank, no elements, or windows that only ONNX Runtime defines.
    """
    before, after = graph.types.get(node.inputs[0]), graph.types.get(node.outputs[0])
    if before is None or after is None or len(before.shape) not in (3, 4):
        return None
    size, out_size = _pair(before.shape[2:]), _pair(after.shape[2:])
    if size is None or out_size is None or 0 in (*size, *out_size):
        return None
    kind: Literal["max", "average"] = "max" if "Max" in node.op else "average"
    if node.op.startswith("Global"):
        return WindowGeometry(kind, size, (1, 1), (1, 1), (0, 0), out_size)
    kernel = _attribute(node, "kernel_shape", (1, 1))
    stride = _attribute(node, "strides", (1, 1))
    dilation = _attribute(node, "dilations", (1, 1))
    pads = stated_pads(node, len(before.shape) - 2)
    if pads is None:
        return None
    pads = (0, pads[0], 0, pads[1]) if len(pads) == 2 else pads
    counted = node.op == "AveragePool" and bool(node.attributes.get("count_include_pad", 0))
    begin, end = (pads[0], pads[1]), (pads[2], pads[3])
    window = WindowGeometry(kind, kernel, stride, dilation, begin, out_size, counted)
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
