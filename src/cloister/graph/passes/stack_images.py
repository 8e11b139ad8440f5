"""One convolution over the k images of a sample, which lie below each other in one image.

Each image gets so many rows of zeros before and behind it that no window meets two images, and
that the next one begins where a window begins: its rows are a multiple of the stride (of a
transposed convolution: of its result). Of the result, the rows of each image are read.

    Conv            reach = dilation (kernel - 1) + 1; an image takes ceil((pads + H) / stride)
                    strides, and its result the first of as many rows
    ConvTranspose   an image takes ceil(((H - 1) stride + reach + output_padding) / stride) rows;
                    its result begins behind the padding that the node cuts off
"""

from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import integers, stated_pads
from cloister.graph.passes.chain import Chain


def stack_images(chain: Chain, node: Node, each: int) -> None:
    """A convolution over (k N, C, H, W), or (k N, C, L) as images of one row, up to its sizes."""
    graph = chain.graph
    before, after = (
        [size for size in (graph.sizes(value) or ())[1:] if isinstance(size, int)]
        for value in (node.inputs[0], node.outputs[0])
    )
    channels, height, width = before[0], before[1] if len(before) == 3 else 1, before[-1]
    made, rows, columns = after[0], after[1] if len(after) == 3 else 1, after[-1]
    weights = graph.constants[node.inputs[1]]
    names = node.inputs[1:]
    if weights.ndim == 3:
        flat = chain.rewrite.constant(f"{node.name}_weights", weights[:, :, None])
        names = (flat, *names[1:])
    kernel = weights.shape[2] if weights.ndim == 4 else 1
    stride, dilation, extra = (
        _two(node, name, default)
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    top, left, bottom, right = _pads(node, weights.ndim - 2)
    reach = dilation[0] * (kernel - 1) + 1
    if node.op == "Conv":
        step = -(-(top + height + bottom) // stride[0])
        zeros, first, spaced = (top, step * stride[0] - top - height), 0, step * stride[0]
    else:
        step = -(-((height - 1) * stride[0] + reach + extra[0]) // stride[0])
        zeros, first, spaced, step = (0, step - height), top, step, step * stride[0]
    chain.reshape([-1, each, channels, height, width])
    chain.pad(3, *zeros)
    chain.transpose((0, 2, 1, 3, 4))
    chain.reshape([-1, channels, each * spaced, width])
    kept = {name: value for name, value in node.attributes.items() if name == "group"}
    if node.op == "ConvTranspose":
        kept["output_padding"] = (max(stride[0] - reach, 0), extra[1])
    chain.linear(
        node.op, *names, kernel_shape=(kernel, weights.shape[-1]), strides=stride,
        dilations=dilation, pads=(0, left, max(reach - stride[0], 0), right), **kept,
    )  # fmt: skip
    chain.reshape([-1, made, each, step, columns])
    chain.slice(3, first, first + rows)
    chain.transpose((0, 2, 1, 3, 4))


def _two(node: Node, name: str, default: int) -> tuple[int, int]:
    """A number for each axis of an image; that of the only row is the default."""
    values = integers(node, name) or (default,)
    return (values[0], values[-1]) if len(values) == 2 else (default, values[0])


def _pads(node: Node, axes: int) -> tuple[int, int, int, int]:
    stated = stated_pads(node, axes) or (0,) * (2 * axes)
    if axes == 1:
        return 0, stated[0], 0, stated[1]
    return stated[0], stated[1], stated[2], stated[3]
