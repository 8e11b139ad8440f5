"""Depthwise convolutions that the trusted side's fused step can compute: their window and taps.

They mix no channels and do little work per number, so that sending them to a worker may cost more
than computing them (plan/placement.py decides).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from cloister.errors import RangeError, UnsupportedError
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import float_weights, geometry, is_linear
from cloister.ring.window_geometry import WindowGeometry


@dataclass(frozen=True, eq=False)
class Depthwise:
    """One filter per channel: `window` says where it is applied."""

    window: WindowGeometry
    weights: Float32[np.ndarray, "kh kw c"]
    bias: Float32[np.ndarray, " c"]


def depthwise_window(graph: Graph, node: Node) -> WindowGeometry | None:
    """The window of a depthwise convolution on (N, C, H, W) with one filter per channel.

    None for any other node, and where a window lies outside the image.
    """
    if node.op != "Conv" or not is_linear(graph, node):
        return None
    if len(graph.types[node.inputs[0]].shape) != 4:
        return None
    try:
        shape = geometry(graph, node)
    except UnsupportedError:
        return None
    if not shape.is_depthwise or shape.out_channels != shape.in_channels or min(shape.pad) < 0:
        return None
    window = WindowGeometry(
        "depthwise", shape.kernel, shape.stride, shape.dilation, shape.pad, shape.out_size
    )
    return window if window.reads(shape.in_size) else None


def depthwise(graph: Graph, node: Node) -> Depthwise | None:
    """The convolution with its weights; None where `depthwise_window` is None.

    Raises   RangeError when a weight is NaN or infinite
    """
    window = depthwise_window(graph, node)
    if window is None:
        return None
    weights, bias = float_weights(graph, node)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise RangeError(f"node {node.name!r}: weights contain NaN or infinity; repair the model")
    return Depthwise(window, np.ascontiguousarray(weights[..., 0].transpose(1, 2, 0)), bias)
