"""Powers of two that bring a linear node's input channels to one scale (docs/adr/0009).

A node's input has one fixed-point scale. Where its channels' ranges differ and its weights make up
for that, as with the raw columns of a table, the small channels would vanish. So channel c is
multiplied by f[c] inside and its weights are divided by f[c]: the same result, since x f and W / f
are exact.

    M[o] = max over c of |W[o, c]| * range[c]             the largest part of output o
    f[c] = 2^floor(log2(max over o of |W[o, c]| * max(range) / (HEADROOM * M[o]))), at least 1

One step of channel c then moves an output by at most 2 * HEADROOM / qmax of its largest part, and a
channel is clipped only beyond HEADROOM times that part. Calibration says nothing of a channel that
was always zero: M is the largest part of all outputs for it. All operations are single, correctly
rounded ones, so every machine finds the same factors for the same ranges.
"""

import numpy as np
from jaxtyping import Float32

from cloister.graph.captures import captured_values
from cloister.graph.graph import Graph, Node
from cloister.ring.fixed_point import MAX_EXPONENT
from cloister.ring.linear import Geometry

HEADROOM = 4
PART_ELEMENTS = 2**22


def reads_raw(graph: Graph, node: Node, sent: frozenset[str]) -> bool:
    """Whether a node's input follows from the model's inputs through nodes inside alone.

    Other nodes read results of layers on the worker: their channels are left as they are, because a
    fused step writes their requests from the answer.
    """
    maker = {value: one for one in graph.nodes for value in one.outputs if value}
    open_values, seen = [node.inputs[0]], set[str]()
    while open_values:
        one = maker.get(open_values.pop())
        if one is None or one.name in seen:
            continue
        if one.name in sent:
            return False
        seen.add(one.name)
        open_values += (*one.inputs, *captured_values(one))
    return True


def largest(
    x: Float32[np.ndarray, "n h w c"], shape: tuple[int, int, int]
) -> Float32[np.ndarray, "fh fw c"]:
    """Largest magnitude of each channel, or of each element."""
    axes = (0, 1, 2) if shape[:2] == (1, 1) else (0,)
    peaks: np.ndarray = np.max(np.abs(x), axis=axes, initial=0.0).reshape(shape)
    return peaks


def input_factors(
    weights: Float32[np.ndarray, "oc kh kw terms"], shape: Geometry, ranges: np.ndarray
) -> Float32[np.ndarray, "fh fw c"] | None:
    """The factors of a node whose input has these ranges; None where all of them are 1."""
    top = float(ranges.max())
    if ranges.size == 1 or ranges.min() * 2 * HEADROOM > top or top == 0.0:
        return None
    by_group = _by_group(ranges, shape)
    wanted, peaks, most = np.zeros(by_group.shape), np.zeros(by_group.shape), 0.0
    step = max(1, PART_ELEMENTS // weights[:1].size)
    for start in range(0, len(weights), step):
        group = _groups(shape)[start : start + step]
        rows = np.abs(weights[start : start + step].astype(np.float64))
        if ranges.shape[:2] == (1, 1):
            rows = rows.max(axis=(1, 2), keepdims=True)
        parts = (rows * by_group[group]).max(axis=(1, 2, 3), keepdims=True)
        most = max(most, float(parts.max()))
        needs = np.divide(rows * top, HEADROOM * parts, out=np.zeros_like(rows), where=parts > 0)
        for one in np.unique(group):
            wanted[one] = np.maximum(wanted[one], needs[group == one].max(axis=0))
            peaks[one] = np.maximum(peaks[one], rows[group == one].max(axis=0))
    if most > 0:
        wanted = np.where(by_group > 0, wanted, peaks * top / (HEADROOM * most))
    _, exponents = np.frexp(wanted)
    exponents = np.clip(exponents - 1, 0, MAX_EXPONENT)
    if not exponents.any():
        return None
    factors = np.ldexp(np.float32(1), exponents).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(factors.reshape(ranges.shape), np.float32)


def divisors(factors: Float32[np.ndarray, "fh fw c"], shape: Geometry, part: slice) -> np.ndarray:
    """The divisors of some rows of the weights, for broadcasting."""
    rows: np.ndarray = _by_group(factors, shape)[_groups(shape)[part]]
    return rows


def _by_group(channels: np.ndarray, shape: Geometry) -> np.ndarray:
    """(fh, fw, c) as (groups, fh, fw, c / groups) in float64."""
    split = channels.astype(np.float64).reshape(*channels.shape[:2], shape.groups, -1)
    return split.transpose(2, 0, 1, 3)


def _groups(shape: Geometry) -> np.ndarray:
    """The group that each output channel belongs to."""
    return np.repeat(np.arange(shape.groups), shape.out_channels // shape.groups)
