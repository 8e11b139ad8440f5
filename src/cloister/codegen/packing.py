"""Weights in the order in which the C kernels read them; nothing is packed when a module runs.

A panel holds the weights of 16 output channels, the channel running fastest; zeros fill the last
panel up. All builds read the same panels, whatever the width of their vectors.
"""

import math

import numpy as np
from jaxtyping import Float32

PANEL = 16
"""Output channels of a panel, as in `c/tile.c`."""
BLOCK_ROWS, BLOCK_TAPS = 96, 576
"""How much of an image `c/conv2d.c` gathers at a time: pixels, and numbers of each."""
_LINE = 16
"""Floats of a line of the cache."""


def pack_conv(
    weights: Float32[np.ndarray, "oc c kh kw"], groups: int
) -> Float32[np.ndarray, "groups panels kh kw c 16"]:
    """Filters for `conv2d`."""
    channels, own, kh, kw = weights.shape
    columns = weights.reshape(groups, channels // groups, own, kh, kw).transpose(0, 3, 4, 2, 1)
    panels = _panels(columns.reshape(groups, -1, channels // groups))
    return panels.reshape(groups, -1, kh, kw, own, PANEL)


def pack_depthwise(weights: Float32[np.ndarray, "c kh kw"]) -> Float32[np.ndarray, "kh kw c"]:
    """Filters for `depthwise2d`."""
    return np.ascontiguousarray(weights.transpose(1, 2, 0))


def pack_dense(weights: Float32[np.ndarray, "k n"]) -> Float32[np.ndarray, "panels k 16"]:
    """A matrix for `dense`."""
    panels: Float32[np.ndarray, "panels k 16"] = _panels(weights[None])[0]
    return panels


def conv_scratch_floats(
    *, channels: int, groups: int, out_size: tuple[int, int], kernel: tuple[int, int]
) -> int:
    """Floats of scratch memory that `conv2d` needs; its `division` says how they are used."""
    own = channels // groups
    parts = -(-own // BLOCK_TAPS)
    part = own if parts == 1 else -(-own // (parts * _LINE)) * _LINE
    fit = BLOCK_TAPS // part
    step = min(fit if fit < kernel[1] else fit // kernel[1] * kernel[1], math.prod(kernel))
    row = (-(-step * part // _LINE) | 1) * _LINE
    return min(BLOCK_ROWS, math.prod(out_size)) * row


def dense_scratch_floats(*, rows: int, inputs: int) -> int:
    """Floats of scratch memory that `dense` needs."""
    if rows == 1:
        return 0
    return conv_scratch_floats(channels=inputs, groups=1, out_size=(1, rows), kernel=(1, 1))


def _panels(columns: Float32[np.ndarray, "g k n"]) -> Float32[np.ndarray, "g panels k 16"]:
    groups, k, n = columns.shape
    count = -(-n // PANEL)
    padded = np.zeros((groups, k, count * PANEL), np.float32)
    padded[:, :, :n] = columns
    return np.ascontiguousarray(padded.reshape(groups, k, count, PANEL).transpose(0, 2, 1, 3))
