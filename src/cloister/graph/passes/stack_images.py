"""One convolution over the k images of a sample, which lie below each other in one image.

Each image gets so many rows of zeros before and behind it that no window meets two images, and
that the next one begins where a window begins: its rows are a multiple of the stride (of a
transposed convolution: of its result). Of the result, the rows of each image are read.

    Conv            reach = dilation (kernel - 1) + 1; an image takes ceil((pads + H) / stride)
                    strides, and its result the first of as many rows
    ConvTranspose   an image takes ceil(((H - 1) stride + reach + output_padding) / stride) rows;
                    its result begins behind the padding that the node cuts off
"""

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, integers, stated_pads
from cloister.graph.passes.chain import Chain


def stack_images(chain: Chain, graph: Graph, node: Node, each: int) -> None:
    """A convolution over (k N, C, H, W), or (k N, C, L) as images of one row, up to its sizes."""
    (channels, height, width), (made, rows, columns) = (
        _image(graph, value) for value in (node.inputs[0], node.outputs[0])
    )
    weights = graph.constants[node.inputs[1]]
    bias = graph.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    flat = weights[:, :, None] if weights.ndim == 3 else weights
    kernel = flat.shape[2:]
    stride, dilation, extra = (
        _two(node, name, default)
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    top, left, bottom, right = _pads(node, weights.ndim - 2)
    reach = dilation[0] * (kernel[0] - 1) + 1
    attributes: dict[str, object] = {"group": integer(node, "group", 1)}
    if node.op == "Conv":
        step, before, first = -(-(top + height + bottom) // stride[0]), top, 0
        pitch = step * stride[0]
    else:
        pitch, before, first = (
            -(-((height - 1) * stride[0] + reach + extra[0]) // stride[0]),
            0,
            top,
        )
        step = pitch * stride[0]
        attributes["output_padding"] = (max(stride[0] - reach, 0), extra[1])
    chain.regroup(-1, each, channels, height, width)
    chain.pad(3, before, pitch - before - height)
    chain.transpose((0, 2, 1, 3, 4))
    chain.reshape(channels, each * pitch, width)
    chain.linear(
        node.op, (None, made, each * step, columns), flat, bias, kernel_shape=kernel,
        strides=stride, dilations=dilation, pads=(0, left, max(reach - stride[0], 0), right),
        **attributes,
    )  # fmt: skip
    chain.reshape(made, each, step, columns)
    chain.slice(3, first, first + rows)
    chain.transpose((0, 2, 1, 3, 4))


def _image(graph: Graph, value: str) -> tuple[int, int, int]:
    """Channels, height and width; a value with one axis behind its channels has one row."""
    sizes = [size for size in (graph.sizes(value) or ())[1:] if isinstance(size, int)]
    return sizes[0], sizes[1] if len(sizes) == 3 else 1, sizes[-1]


def _two(node: Node, name: str, default: int) -> tuple[int, int]:
    """A number for each axis of an image; that of the only row is the default."""
    values = integers(node, name) or (default,)
    return (values[0], values[-1]) if len(values) == 2 else (default, values[0])


def _pads(node: Node, axes: int) -> tuple[int, int, int, int]:
    stated = stated_pads(node, axes) or (0,) * (2 * axes)
    if axes == 1:
        return 0, stated[0], 0, stated[1]
    return stated[0], stated[1], stated[2], stated[3]
