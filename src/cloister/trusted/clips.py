"""The rule by which clipped values lead to a warning, and its text.

A fused step clips values beyond the calibrated range and counts them (native/src/fused/). A few
clips are normal on data that calibration has not seen. An input counts as *outside the calibrated
range* if, in one linear layer, more than SHARE of its values were clipped, and at least LEAST of
them unless the layer reads the model's inputs. Measured on photos that calibration did not see,
eight for calibration: at most 0.4 % of an input's values in any layer of MobileNet v1 and v2,
SqueezeNet and ResNet-20; at twice the range 23 to 55 % in half of the inputs.

The session applies the rule after the request, on the trusted side alone: messages are the same
whatever is clipped.
"""

from enum import StrEnum

import numpy as np
from jaxtyping import UInt64

import cloister.base._native as native
from cloister.graph.part import reads
from cloister.plan.plan import Plan
from cloister.trusted.report import Report

SHARE = 0.01
LEAST = 4
_NAMED = 3


class OnClip(StrEnum):
    """What a session does about inputs outside the calibrated range."""

    WARN = "warn"
    RAISE = "raise"
    IGNORE = "ignore"


class ClipRule:
    """Judges the counts of one plan's requests."""

    def __init__(self, plan: Plan) -> None:
        nodes = plan.linear_nodes
        elements = np.array([node.linear.geometry.in_elements for node in nodes], np.int64)
        first = _first_layers(plan)
        least = np.array([1 if node.node in first else LEAST for node in nodes], np.int64)
        # The smallest count that is too much.
        limits = np.maximum(least, np.floor(SHARE * elements).astype(np.int64) + 1)
        self._limits = limits.astype(np.uint64)

    def beyond(self, clipped: UInt64[np.ndarray, "nodes inputs"]) -> tuple[int, ...]:
        """The inputs outside the calibrated range."""
        if not native.reaches(clipped, self._limits):
            return ()
        above = clipped >= self._limits[:, None]
        return tuple(above.any(axis=0).nonzero()[0].tolist())


def _first_layers(plan: Plan) -> set[str]:
    """Linear nodes whose input no other linear node has a part in."""
    computed: set[str] = set()
    first: set[str] = set()
    for node in plan.graph.nodes:
        follows = not computed.isdisjoint(reads(node))
        if node.name in plan.quantised and not follows:
            first.add(node.name)
        if node.name in plan.quantised or follows:
            computed.update(node.outputs)
    return first


def clip_text(report: Report) -> str | None:
    """One line about inputs outside the calibrated range; None if there are none."""
    beyond = report.inputs_beyond
    if not beyond:
        return None
    which = f"input {beyond[0]} lies"
    if len(beyond) > 1:
        which = f"{len(beyond)} of {report.inputs} inputs (the first: {beyond[0]}) lie"
    worst = sorted(report.layers, key=lambda row: row.clipped_share, reverse=True)[:_NAMED]
    shares = ", ".join(
        f"{100 * row.clipped_share:.1f} % in layer {row.name!r}"
        for row in worst
        if row.clipped_share > SHARE
    )
    return (
        f"{which} outside the calibrated range, so outputs may be wrong; of an input's values were "
        f"clipped up to {shares}; calibrate on inputs like these, or scale them alike"
    )
