"""Windows as ONNX Runtime lays them, stated in numbers.

`auto_pad` and `ceil_mode` leave room: ONNX's shape inference and ONNX Runtime read some of their
combinations differently, and some ONNX Runtime does not compute at all. A node with numbers instead
means one thing to everybody:

    SAME              Conv, MaxPool, AveragePool: ceil(size / stride) windows
    SAME              ConvTranspose: size * stride, or all there is if that is less, output_padding
                      included
    output_shape      ConvTranspose: the padding that leaves this size
    ceil_mode         no window starts behind the image and the padding before it

The odd row goes behind the image for SAME_UPPER, before it for SAME_LOWER.
"""

from collections.abc import Sequence
from dataclasses import replace

from cloister.graph.graph import Graph, Node
from cloister.graph.inference import with_types
from cloister.graph.linear_nodes import integer, integers, stated_pads

POOLS = ("MaxPool", "AveragePool")
REPLACED = ("auto_pad", "ceil_mode", "output_shape")
WINDOWED = (*POOLS, "Conv", "ConvTranspose")


def with_explicit_padding(graph: Graph) -> Graph:
    """The graph with numbers in place of words, wherever the sizes they depend on are known."""
    for i, node in enumerate(graph.nodes):
        attributes = _stated(graph, node)
        if attributes is None:
            continue
        nodes = list(graph.nodes)
        nodes[i] = replace(node, attributes=attributes)
        graph = replace(graph, nodes=tuple(nodes))
        if node.op == "ConvTranspose" or "ceil_mode" in node.attributes:
            # The nodes behind it may have other sizes than were inferred.
            graph = with_types(graph)
    return graph


def _stated(graph: Graph, node: Node) -> dict[str, object] | None:
    """A node's attributes with numbers; None where they have none to state."""
    if node.domain or node.op not in WINDOWED:
        return None
    size = _image(graph, node.inputs[0])
    kernel = integers(node, "kernel_shape")
    if not kernel and node.op not in POOLS:
        kernel = _image(graph, node.inputs[1]) or ()
    if size is None or len(kernel) != len(size):
        return None
    one = (1,) * len(size)
    stride = integers(node, "strides") or one
    dilation = integers(node, "dilations") or one
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = stated_pads(node, len(size))
    if "output_shape" in node.attributes or pads is None:
        if node.op in POOLS and any(s > r for s, r in zip(stride, reach, strict=True)):
            return None  # ONNX leaves open which rows are skipped: ONNX Runtime decides
        total = _total(node, size, stride, reach)
        return _spread(node, total)
    if node.op in POOLS and integer(node, "ceil_mode", 0):
        return _without_late_windows(node, pads, size, stride, reach)
    return None


def _spread(node: Node, total: Sequence[int]) -> dict[str, object] | None:
    """Attributes with this padding on each axis; None where it would be negative."""
    if "output_shape" in node.attributes and min(total) < 0:
        return None
    total = [max(rows, 0) for rows in total]
    upper = node.attributes.get("auto_pad") == "SAME_UPPER"
    begin = [rows // 2 if upper else rows - rows // 2 for rows in total]
    end = [rows - before for rows, before in zip(total, begin, strict=True)]
    kept = {k: v for k, v in node.attributes.items() if k not in REPLACED}
    return kept | {"pads": (*begin, *end)}


def _image(graph: Graph, value: str) -> tuple[int, ...] | None:
    """Sizes behind the first two axes, if they are known."""
    known = (graph.sizes(value) or ())[2:]
    sizes = tuple(size for size in known if isinstance(size, int))
    return sizes if sizes and len(sizes) == len(known) else None


def _total(
    node: Node, size: Sequence[int], stride: Sequence[int], reach: Sequence[int]
) -> list[int]:
    """Rows of padding on each axis that give the size asked for; negative where none does."""
    axes = range(len(size))
    if node.op != "ConvTranspose":
        return [(-(-size[i] // stride[i]) - 1) * stride[i] + reach[i] - size[i] for i in axes]
    extra = integers(node, "output_padding") or (0,) * len(size)
    wanted = integers(node, "output_shape")[-len(size) :] or [
        n * s for n, s in zip(size, stride, strict=True)
    ]
    return [(size[i] - 1) * stride[i] + extra[i] + reach[i] - wanted[i] for i in axes]


def _without_late_windows(
    node: Node,
    pads: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    reach: Sequence[int],
) -> dict[str, object] | None:
    """Attributes that give the same windows to those who count late ones; None if there is none."""
    begin, end = pads[: len(size)], list(pads[len(size) :])
    late = rounded_up = False
    for i in range(len(size)):
        room = size[i] + begin[i] + end[i] - reach[i]
        fitting = room // stride[i]
        if room % stride[i] == 0:
            continue
        if (fitting + 1) * stride[i] < size[i] + begin[i]:
            rounded_up = True
        else:
            late = True
            end[i] -= room % stride[i]
    if not late:
        return None
    if not rounded_up:
        return {k: v for k, v in node.attributes.items() if k != "ceil_mode"}
    return {**node.attributes, "pads": (*begin, *end)} if min(end) >= 0 else None
