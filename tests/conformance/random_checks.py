"""Random models under all policies against ONNX Runtime."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper

from cloister.errors import ClipError, RangeError, UnsupportedError
from cloister.graph.ort_session import ORT_ERRORS
from cloister.plan import policies
from cloister.plan.protection import EVERYWHERE
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from conformance.policies_compared import EXACT, LIMITS, compared, loaded
from conformance.random_graphs import LINEAR, SIZES, RandomGraph, every_node, graphs, runtime

STEP = 2.0**-9
"""Half a step of twelve bits, twice: what becomes an integer may be that far off."""
HALF = 4e-3
OTHER_SIZES = {"N": 7, "T": 5, "H": 8, "D": 3}


@dataclass
class Outcome:
    """What came of a model, by policy; `faults` are foreign errors and differences."""

    net: RandomGraph
    feeds: Mapping[str, np.ndarray]
    calibration: Mapping[str, np.ndarray]
    options: Mapping[str, int]
    compared: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> dict[str, str]:
        """Refusals of policies that run whatever ONNX Runtime runs."""
        return {name: text for name, text in self.refused.items() if name in EVERYWHERE}


@st.composite
def outcomes(draw, folder: Path) -> Outcome | None:
    """A random model and what every policy makes of it; None where ONNX Runtime does not run it."""
    net = draw(graphs())
    free = any(isinstance(size, str) for shape, _ in net.inputs.values() for size in shape)
    sizes = [*SIZES, OTHER_SIZES] if free else [SIZES[0]]
    feeds = net.feeds(draw(st.sampled_from(sizes)))
    # Of other sizes at times, and then larger, so that few values lie outside its range.
    calibration = net.feeds(draw(st.sampled_from(sizes)), 2) if draw(st.booleans()) else feeds
    options = {"batch": draw(st.integers(1, 4)), "lanes": draw(st.sampled_from([1, 1, 2]))}
    try:
        wanted = _run(net.model, feeds)
        _run(net.model, calibration)
        limits = _limits(net, feeds, wanted)
    except ORT_ERRORS:
        return None
    found = Outcome(net, feeds, calibration, options)
    try:
        graph = loaded(net.model, folder)
    except Exception as error:  # noqa: BLE001  (of any class, it is a fault)
        found.faults["load"] = _text(error)
        return found
    for policy in policies.NAMES:
        exact = policy in EVERYWHERE
        links = [InProcessLink(Engine().handle, name=f"worker {i}") for i in range(2)]
        try:
            wrong = compared(
                policy, graph, feeds, wanted, calibration=calibration,
                limits=_exact(net, wanted) if exact else limits, workers=links,
                **options,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  (the same)
            refuses = isinstance(error, UnsupportedError | RangeError | ClipError)
            (found.refused if refuses else found.faults)[policy] = _text(error)
        else:
            found.compared.append(policy)
            if wrong:
                found.faults[policy] = wrong
    return found


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, object]:
    names = [value.name for value in model.graph.output]
    return dict(zip(names, runtime(model).run(None, feeds), strict=True))


def _exact(net: RandomGraph, wanted: Mapping[str, object]) -> dict[str, float]:
    """What an output may be off where nothing becomes an integer."""
    limits = {name: HALF if name in net.half else EXACT for name in wanted}
    return {name: math.inf if name in net.half_jumping else one for name, one in limits.items()}


def _limits(
    net: RandomGraph, feeds: Mapping[str, np.ndarray], wanted: Mapping[str, object]
) -> dict[str, float]:
    """What an output may be off: exact before any linear node, by its sensitivity after one."""
    found = _exact(net, wanted)
    for name in net.rough:
        found[name] = math.inf if name in net.jumping else max(found[name], LIMITS["slalom"])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        moved = _run(_moved(net.model, rng), {n: _beside(a, rng) for n, a in feeds.items()})
        for name in net.rough:
            found[name] = max(found[name], 8 * _change(wanted[name], moved[name]))
    # Where so much may change, nothing can be said.
    return {name: limit if limit < 0.5 else math.inf for name, limit in found.items()}


def _change(value: object, other: object) -> float:
    """By how much a float output moves, of its size; infinity where that cannot be said."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != other.shape:
        return math.inf
    change = np.linalg.norm(other.astype(np.float64) - value)
    size = max(np.linalg.norm(value.astype(np.float64)), 1e-30)
    return float(change / size) if np.isfinite(change) else math.inf


def _moved(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The model with other weights, each beside its own."""
    moved = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = list(every_node(moved.graph.node))
    weights = {name for node in nodes if node.op_type in LINEAR for name in node.input[:2]}
    bodies = [attribute.g for node in nodes for attribute in node.attribute]
    for tensor in (tensor for graph in (moved.graph, *bodies) for tensor in graph.initializer):
        if tensor.name in weights:
            array = _beside(numpy_helper.to_array(tensor), rng)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return moved


def _beside(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    step = STEP * np.abs(array).max(initial=0.0)
    return np.asarray(array + step * rng.uniform(-1, 1, array.shape), array.dtype)
