"""A model under each policy against ONNX Runtime."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx

import cloister
from cloister.errors import ClipError, PrecisionWarning
from cloister.graph.graph import Graph
from cloister.plan import policies
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from conformance.differences import difference

EXACT, FIXED_POINT = 1e-4, 2e-2
"""Stated errors of float outputs, |found - wanted| / |wanted| in L2 norms; others are equal."""
LIMITS = {
    "enclave": EXACT, "open": EXACT, "slalom": FIXED_POINT, "verified": FIXED_POINT,
    "blinded": FIXED_POINT,
}  # fmt: skip


def loaded(model: onnx.ModelProto, folder: Path) -> Graph:
    """The model as a user loads it, from a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return cloister.load(path)


def compared(
    policy: str,
    graph: Graph,
    feeds: Mapping[str, object],
    wanted: Mapping[str, object],
    *,
    values: bool = True,
    sends: bool = False,
    calibration: Mapping[str, object] | None = None,
    limits: Mapping[str, float] | None = None,
    **options: object,
) -> str:
    """What is wrong under a policy, in words; empty where nothing is.

    values        compare them, not only types and shapes
    sends         something has to go to a worker
    calibration   default: the feeds
    limits        of outputs for which the policy's own is not right; infinity: no values compared

    Raises   what Cloister raises; ClipError where a value lies outside the calibrated range
    """
    samples = None
    if policies.needs_ranges(policy):
        samples = feeds if calibration is None else calibration
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        plan = policies.make(policy, graph, calibration=samples)
    links = options.pop("workers", None) or [InProcessLink(Engine().handle)]
    with cloister.Session(plan, workers=links, on_clip="ignore", **options) as session:
        result = session.run(feeds)
    if any(row.clipped for row in result.report.layers):
        raise ClipError("values were clipped, so nothing can be compared")
    if list(result.outputs) != list(wanted):
        return f"outputs {list(result.outputs)}, not {list(wanted)}"
    for name, value in wanted.items():
        limit = (limits or {}).get(name, LIMITS[policy])
        wrong = difference(
            result.outputs[name], value, limit, values=values and math.isfinite(limit)
        )
        if wrong:
            return f"output {name!r} {wrong}"
    if sends and not any(row.bytes_to_worker for row in result.report.layers):
        return "nothing was sent to the worker"
    return ""
