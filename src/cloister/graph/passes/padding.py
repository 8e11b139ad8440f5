"""Windows as ONNX Runtime lays them, stated in numbers.

ONNX's shape inference and ONNX Runtime read some combinations of `auto_pad` and `ceil_mode`
differently, and ONNX Runtime refuses others. A node with explicit padding has one meaning:

    SAME              Conv, MaxPool, AveragePool: ceil(size / stride) windows, or fewer where
                      pooling is dilated
    SAME              ConvTranspose: size * stride, or all there is if that is less, output_padding
                      included
    output_shape      ConvTranspose: the padding that leaves this size
    ceil_mode         no window starts behind the image and the padding before it

The odd row goes behind the image for SAME_UPPER, before it for SAME_LOWER.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, integers, stated_pads
from cloister.graph.passes.rewrite import Rewrite

POOLS = ("MaxPool", "AveragePool")
WINDOWED = (*POOLS, "Conv", "ConvTranspose")
Sizes = tuple[int, ...]


def with_explicit_padding(graph: Graph) -> Graph:
    """The graph with numbers in place of words, wherever the sizes they depend on are known."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.domain or node.op not in WINDOWED or not rewrite.is_untouched(node):
            continue
        found = _stated(rewrite, node)
        if found == [node]:
            continue
        rewrite.swap([node], found)
        if node.op != "Conv":
            # The nodes behind it may have other sizes than were inferred.
            rewrite = Rewrite(rewrite.finish())
    return rewrite.finish()


def _stated(rewrite: Rewrite, node: Node) -> list[Node]:
    """The node with numbers, behind another one if need be."""
    size = _image(rewrite.graph, node.inputs[0])
    kernel = integers(node, "kernel_shape")
    if not kernel and node.op not in POOLS:
        kernel = _image(rewrite.graph, node.inputs[1]) or ()
    if size is None or len(kernel) != len(size):
        return [node]
    stated = stated_pads(node, len(size))
    if node.op in POOLS:
        pads = _pooled_pads(node, size, kernel, stated)
        return [node] if pads == stated else _with_pads(rewrite, node, size, pads)
    return [node] if stated is not None else [_convolved(node, size, kernel)]


def _convolved(node: Node, size: Sizes, kernel: Sizes) -> Node:
    """A convolution with the padding its words ask for; unchanged where no numbers do."""
    stride, reach = _steps(node, kernel)
    total = _total(node, size, stride, reach)
    kept = {k: v for k, v in node.attributes.items() if k not in ("auto_pad", "output_shape")}
    if min(total) < 0 and "output_shape" in node.attributes:
        # More than there is: rows behind the image, of which a stride has fewer than its length.
        own = integers(node, "output_padding") or (0,) * len(size)
        extra = tuple(e - min(t, 0) for e, t in zip(own, total, strict=True))
        if any(e >= s for e, s in zip(extra, stride, strict=True)):
            return node
        kept["output_padding"] = extra
    pads = _halves(node, [max(rows, 0) for rows in total])
    return replace(node, attributes=kept | {"pads": pads})


def _pooled_pads(node: Node, size: Sizes, kernel: Sizes, stated: Sizes | None) -> Sizes:
    """Padding of a pooling node without a late window; negative where rows are left out."""
    stride, reach = _steps(node, kernel)
    # SAME does not make room for what dilation adds to a window.
    pads = stated or _halves(node, _total(node, size, stride, kernel))
    begin, end = pads[: len(size)], list(pads[len(size) :])
    ceil = bool(integer(node, "ceil_mode", 0))
    for i in range(len(size)):
        room = size[i] + begin[i] + end[i] - reach[i]
        last = max(room // stride[i], 0)
        if ceil and (last + 1) * stride[i] >= size[i] + begin[i]:
            end[i] -= room % stride[i] if room > 0 else 0
        elif ceil and room % stride[i]:
            last += 1
        # Averages leave rows out even if a window reaches them.
        if end[i] < 0 and node.op == "MaxPool":
            end[i] = max(end[i], last * stride[i] + reach[i] - size[i] - begin[i])
    return (*begin, *end)


def _with_pads(rewrite: Rewrite, node: Node, size: Sizes, pads: Sizes) -> list[Node]:
    """A pooling node with this padding; rows that are left out are cut off before it."""
    padding = tuple(max(rows, 0) for rows in pads)
    kept = {k: v for k, v in node.attributes.items() if k != "auto_pad"} | {"pads": padding}
    if padding == pads:
        return [replace(node, attributes=kept)]
    cropped = rewrite.name(f"{node.name}_read")
    starts = [-min(rows, 0) for rows in pads[: len(size)]]
    stops = [n + min(rows, 0) for n, rows in zip(size, pads[len(size) :], strict=True)]
    bounds = [
        rewrite.constant(f"{cropped}_{name}", np.array(values, np.int64))
        for name, values in (("from", starts), ("to", stops), ("axes", range(2, 2 + len(size))))
    ]
    crop = Node(rewrite.name(f"{node.name}_crop"), "Slice", (node.inputs[0], *bounds), (cropped,))
    return [crop, replace(node, inputs=(cropped,), attributes=kept)]


def _halves(node: Node, total: Sequence[int]) -> Sizes:
    """(before..., behind...): of an odd number of rows, the last goes where `auto_pad` says."""
    upper = node.attributes.get("auto_pad") == "SAME_UPPER"
    begin = [int((rows if upper else rows + 1) / 2) for rows in total]
    return (*begin, *(rows - before for rows, before in zip(total, begin, strict=True)))


def _steps(node: Node, kernel: Sizes) -> tuple[Sizes, Sizes]:
    """Stride and reach of a window: its size with the gaps that dilation makes."""
    one = (1,) * len(kernel)
    dilation = integers(node, "dilations") or one
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return integers(node, "strides") or one, reach


def _image(graph: Graph, value: str) -> tuple[int, ...] | None:
    """Sizes behind the first two axes, if they are known."""
    known = (graph.sizes(value) or ())[2:]
    sizes = tuple(size for size in known if isinstance(size, int))
    return sizes if sizes and len(sizes) == len(known) else None


def _total(node: Node, size: Sizes, stride: Sizes, window: Sizes) -> list[int]:
    """Rows of padding on each axis that give the size asked for; negative where none does."""
    axes = range(len(size))
    if node.op != "ConvTranspose":
        return [(-(-size[i] // stride[i]) - 1) * stride[i] + window[i] - size[i] for i in axes]
    extra = integers(node, "output_padding") or (0,) * len(size)
    wanted = integers(node, "output_shape")[-len(size) :] or [
        n * s for n, s in zip(size, stride, strict=True)
    ]
    return [(size[i] - 1) * stride[i] + extra[i] + window[i] - wanted[i] for i in axes]
