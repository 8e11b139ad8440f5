"""Pooling over windows of an image."""

from cloister.codegen.lower_elementwise import clip_bounds
from cloister.codegen.lowering import Layer, Lowering, literal, of_type, words
from cloister.codegen.views import channels_last
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.windows import pool_geometry


def pool(low: Lowering, node: Node) -> None:
    """MaxPool, AveragePool and the global ones, with a Relu or Clip behind them."""
    of_type(node, low.view(node.inputs[0]))
    shape = low.shape(node.inputs[0])
    window = pool_geometry(low.graph, node)
    if window is None or len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}): only pooling over one or two axes is compiled, with "
            "every window inside the image and its padding, and without indices"
        )
    rank = len(shape)
    nodes: tuple[Node, ...] = (node,)
    output, lo, hi = node.outputs[0], "-POSITIVE_INFINITY", "POSITIVE_INFINITY"
    follower = low.only_reader(output)
    bounds = None if follower is None else clip_bounds(low, follower)
    if follower is not None and bounds is not None:
        low.absorb(follower)
        nodes, output = (node, follower), follower.outputs[0]
        lo, hi = literal(bounds[0]), literal(bounds[1])
    h, w = (1, shape[2]) if rank == 3 else shape[2:]
    names = {
        "H": h, "W": w, "C": shape[1], "OUT_H": window.out_size[0], "OUT_W": window.out_size[1],
        "WINDOW_H": window.kernel[0], "WINDOW_W": window.kernel[1],
        "STRIDE_H": window.stride[0], "STRIDE_W": window.stride[1],
        "DILATION_H": window.dilation[0], "DILATION_W": window.dilation[1],
        "PAD_TOP": window.pad[0], "PAD_LEFT": window.pad[1],
    }  # fmt: skip
    arguments = ", ".join(names)
    if window.kind == "average":
        names["COUNTED"] = window.kernel[0] * window.kernel[1] if window.count_include_pad else 0
        arguments += ", COUNTED"
    reads = {"x": low.image(node.inputs[0])}
    writes = {"y": low.new(output, channels_last(rank))}
    images = shape[0]
    at_x, at_y = (" + n * (H * W * C)", " + n * (OUT_H * OUT_W * C)") if images > 1 else ("", "")
    body = [f"pool2d_{window.kind}(x{at_x}, y{at_y}, {arguments}, {lo}, {hi});"]
    if images > 1:
        names["IMAGES"] = images
        body = ["for (int n = 0; n < IMAGES; n++)", f"    {body[0]}"]
    name = f"{window.kind}_pool"
    low.add(Layer(words(*nodes), name, names, reads, writes, body, ("pool2d.c",)))


TABLE = dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), pool)
