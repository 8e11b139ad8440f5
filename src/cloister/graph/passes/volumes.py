"""The pass that turns convolutions over three axes into convolutions over images.

One of the three axes, the depth, is taken apart: the taps of a window along it become channels, and
the depths of the result lie one below the other in one high image, so far apart that no window
reads two of them:

    stack       (N, C, D, H, W) -> (N, C taps, depths pitch, W)
    convolve    -> (N, O phases, depths out_pitch, OW)
    cut         -> (N, O, OD, OH, OW)

A transposed convolution with a stride along the depth is one convolution for each phase, the
remainder of a depth of the result modulo the stride. The depth is the axis for which the fewest
numbers cross the border. A node for which they are more than MAX_GROWTH times as many stays inside.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, integers, stated_pads, why_not_weighted
from cloister.graph.passes.chain import Chain
from cloister.graph.passes.rewrite import Rewrite

MAX_GROWTH = 8
AXES = 3


@dataclass(frozen=True)
class Axis:
    """A window along one axis; `extra` is a transposed convolution's output padding."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int
    behind: int
    extra: int

    @property
    def reach(self) -> int:
        """Rows that a window covers."""
        return (self.kernel - 1) * self.dilation + 1


@dataclass(frozen=True)
class Stack:
    """How the depths lie in one image.

    depth, height, width    the axes of the node; `order` has their places in it
    rows                    (taps, depths): the depths of x that are read; x.size: one of zeros
    pitch, out_pitch        rows of the image, and of its result, for each depth
    window                  of the convolution of the image along its height
    lead                    rows of zeros before each depth, which belong to its pitch
    first                   the row of a depth's result that is kept as its first
    """

    order: tuple[int, ...]
    depth: Axis
    height: Axis
    width: Axis
    rows: np.ndarray
    pitch: int
    out_pitch: int
    window: Axis
    lead: int = 0
    phases: int = 1
    first: int = 0

    def crossing(self, channels: int, out_channels: int) -> int:
        """Numbers that cross the border for one input."""
        taps, depths = self.rows.shape
        sent = channels * taps * self.pitch * self.width.size
        answered = out_channels * self.phases * self.out_pitch * self.width.out
        total: int = depths * (sent + answered)
        return total


def lower_volumes(graph: Graph) -> Graph:
    """Conv and ConvTranspose over three axes, with constant weights: over images."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op not in ("Conv", "ConvTranspose") or why_not_weighted(graph, node):
            continue
        axes = _axes(graph, node)
        if axes is None:
            continue
        x, y = (graph.types[value].shape for value in (node.inputs[0], node.outputs[0]))
        channels, out_channels = x[1] or 0, y[1] or 0
        arrange = _stacked if node.op == "Conv" else _spread
        found = (arrange(axes, depth) for depth in range(AXES))
        stack = min(found, key=lambda one: one.crossing(channels, out_channels))
        given = channels * math.prod(one.size for one in axes)
        given += out_channels * math.prod(one.out for one in axes)
        if stack.crossing(channels, out_channels) <= MAX_GROWTH * given:
            _lower(rewrite, node, stack)
    return rewrite.finish()


def _axes(graph: Graph, node: Node) -> list[Axis] | None:
    """The windows of a node on three axes of known size; None for any other node."""
    before, after = (graph.types.get(value) for value in (node.inputs[0], node.outputs[0]))
    pads = stated_pads(node, AXES)
    if before is None or after is None or pads is None or len(before.shape) != AXES + 2:
        return None
    if before.shape[0] != graph.batch or not all((*before.shape[1:], *after.shape[1:])):
        return None
    ones, none = (1,) * AXES, (0,) * AXES
    columns = (
        before.shape[2:],
        after.shape[2:],
        graph.constants[node.inputs[1]].shape[2:],
        integers(node, "strides") or ones,
        integers(node, "dilations") or ones,
        pads[:AXES],
        pads[AXES:],
        integers(node, "output_padding") or none,
    )
    return [Axis(*(int(n or 0) for n in one)) for one in zip(*columns, strict=True)]


def _in_order(axes: Sequence[Axis], depth: int) -> tuple[tuple[int, ...], list[Axis]]:
    order = (depth, *(axis for axis in range(AXES) if axis != depth))
    return order, [axes[axis] for axis in order]


def _stacked(axes: Sequence[Axis], at: int) -> Stack:
    """A convolution; a window begins at a multiple of its stride in the rows of every depth."""
    order, (depth, height, width) = _in_order(axes, at)
    taps, depths = np.arange(depth.kernel)[:, None], np.arange(depth.out)
    rows = depths * depth.stride + taps * depth.dilation - depth.before
    rows = np.where((rows < 0) | (rows >= depth.size), depth.size, rows)
    if depth.out == 1:
        return Stack(order, depth, height, width, rows, height.size, height.out, height)
    # The padding before a depth also lies behind the one above it, unless whole windows are in it.
    lead = height.before if height.before >= height.reach else 0
    before = height.before - lead
    last = (height.out - 1) * height.stride + height.reach - before
    out_pitch = -(-max(height.size + lead + before, last) // height.stride)
    behind = max(height.reach - height.stride - before, 0)
    return Stack(
        order, depth, height, width, rows, out_pitch * height.stride, out_pitch,
        replace(height, before=before, behind=behind), lead=lead,
    )  # fmt: skip


def _spread(axes: Sequence[Axis], at: int) -> Stack:
    """A transposed convolution, whose result is computed whole along the height and then cut."""
    order, (depth, height, width) = _in_order(axes, at)
    taps = -(-depth.reach // depth.stride)
    begin = depth.before // depth.stride
    end = -(-(depth.before + depth.out) // depth.stride)
    rows = np.arange(begin, end) - np.arange(taps)[:, None]
    rows = np.where((rows < 0) | (rows >= depth.size), depth.size, rows)
    whole = max((height.size - 1) * height.stride + height.reach, height.before + height.out)
    pitch = -(-whole // height.stride)
    over = height.reach - height.stride
    return Stack(
        order, depth, height, width, rows, pitch, pitch * height.stride,
        replace(height, before=0, behind=max(over, 0), extra=max(-over, 0)),
        phases=depth.stride, first=height.before,
    )  # fmt: skip


def _lower(rewrite: Rewrite, node: Node, stack: Stack) -> None:
    graph = rewrite.graph
    shape = graph.types[node.inputs[0]].shape
    channels, out_channels = shape[1] or 0, graph.types[node.outputs[0]].shape[1] or 0
    taps, depths = stack.rows.shape
    order = (0, 1, *(2 + axis for axis in stack.order))
    chain = Chain(rewrite, node, node.inputs[0], shape)
    chain.transpose(order)
    if (stack.rows == stack.depth.size).any():
        chain.pad(2, 0, 1)
    chain.pad(3, stack.lead, stack.pitch - stack.lead - stack.height.size)
    if not np.array_equal(stack.rows, np.arange(chain.known(2))[None]):
        chain.gather(2, stack.rows)
    chain.reshape((0, channels * taps, depths * stack.pitch, stack.width.size))

    weights = graph.constants[node.inputs[1]].transpose(order)
    bias = graph.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    if node.op == "ConvTranspose":
        weights = _by_phase(weights, stack)
        bias = None if bias is None else np.repeat(bias, stack.phases)
    high, wide = stack.window, stack.width
    attributes: dict[str, object] = {
        "kernel_shape": (high.kernel, wide.kernel),
        "strides": (high.stride, wide.stride),
        "dilations": (high.dilation, wide.dilation),
        "pads": (high.before, wide.before, high.behind, wide.behind),
        "group": integer(node, "group", 1),
    }
    if node.op == "ConvTranspose":
        attributes["output_padding"] = (high.extra, wide.extra)
    kernel = weights.reshape(channels * taps, -1, high.kernel, wide.kernel)
    if node.op == "Conv":
        kernel = weights.reshape(out_channels, -1, high.kernel, wide.kernel)
    inputs = [chain.constant("weights", kernel)]
    if bias is not None:
        inputs.append(chain.constant("bias", bias))
    chain.linear(node.op, *inputs, **attributes)

    rows = stack.height.out
    chain.reshape((0, out_channels * stack.phases, depths, stack.out_pitch, wide.out))
    chain.slice(3, stack.first, stack.first + rows)
    if stack.phases > 1:
        chain.reshape((0, out_channels, stack.phases, depths, rows, wide.out))
        chain.transpose((0, 1, 3, 2, 4, 5))
        chain.reshape((0, out_channels, depths * stack.phases, rows, wide.out))
    before = stack.depth.before % stack.phases
    chain.slice(2, before, before + stack.depth.out)
    chain.transpose(np.argsort(order).tolist())
    chain.replace()


def _by_phase(weights: np.ndarray, stack: Stack) -> np.ndarray:
    """(C, O, kd, kh, kw) as (C, taps, O, phases, kh, kw): tap t of phase r is at r + t stride."""
    taps, axis = len(stack.rows), stack.depth
    c, oc, _, kh, kw = weights.shape
    made = np.zeros((c, oc, taps * axis.stride, kh, kw), weights.dtype)
    made[:, :, : axis.reach : axis.dilation] = weights
    return made.reshape(c, oc, taps, axis.stride, kh, kw).transpose(0, 2, 1, 3, 4, 5)
