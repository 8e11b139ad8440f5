"""A compiled module against its graph in float64, within a bound that follows from the model.

The bound is found as in stochastic arithmetic (CESTAC): the graph is evaluated in float64 with
every node's inputs and output moved by what rounding to float32 may move them, in random
directions, and the largest effect on an output is taken SAFETY times. A product of k terms moves
by (1 + sqrt k) u |A| |x| with u = 2^-24 (Higham and Mary, 2019), every other node by 4 u |y|.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloister.base.rng import Csprng
from cloister.codegen.compile_module import one_sample
from cloister.errors import VerificationError
from cloister.graph.element_types import element_number
from cloister.graph.graph import LINEAR_OPS, Graph, Node, TensorType
from cloister.graph.inference import with_types
from cloister.graph.interpreter import evaluate

UNIT = 2.0**-24
DRAWS, SAFETY = 3, 8.0
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Float64Check:
    """The largest difference from float64 over all outputs and samples, and its bound."""

    difference: float
    bound: float


def check_module(
    hidden: Graph, run: Run, *, samples: Sequence[Mapping[str, np.ndarray]], rng: Csprng
) -> Float64Check:
    """Compare a compiled module with its graph on samples (arrays with a batch axis of one).

    run   the module: from its inputs, in the graph's order, to its outputs

    Raises   VerificationError when an output is further from float64 than the bound, or an index is
             another one although no value is near
    """
    graph = in_float64(one_sample(hidden))
    difference = bound = 0.0
    for sample in samples:
        exact = _outputs(graph, sample, None)
        moved = [_outputs(graph, sample, rng) for _ in range(DRAWS)]
        found = run([sample[name] for name in graph.inputs])
        for name, value in zip(graph.outputs, found, strict=True):
            off = _difference(value, exact[name])
            allowed = SAFETY * max(_difference(one[name], exact[name]) for one in moved)
            if _is_float(exact[name]):
                allowed = max(allowed, UNIT * float(np.max(np.abs(exact[name]), initial=0.0)))
            if not off <= allowed:
                raise VerificationError(
                    f"output {name!r}: the compiled module is {off:.3g} from float64, more than "
                    f"{allowed:.3g}; the compiler is wrong, report it with the model's graph"
                )
            difference, bound = max(difference, off), max(bound, allowed)
    return Float64Check(difference, bound)


def in_float64(graph: Graph) -> Graph:
    """The graph with float64 in the place of float32."""
    constants = {
        name: array.astype(DOUBLE) if array.dtype == SINGLE else array
        for name, array in graph.constants.items()
    }
    types = dict(graph.types)
    for name in graph.inputs:
        if types[name].dtype == SINGLE:
            types[name] = TensorType(DOUBLE, types[name].shape)
    nodes = tuple(_widened(node) for node in graph.nodes)
    return with_types(replace(graph, nodes=nodes, constants=constants, types=types))


def _widened(node: Node) -> Node:
    if node.op != "Cast" or node.attributes.get("to") != element_number(SINGLE):
        return node
    return replace(node, attributes={**node.attributes, "to": element_number(DOUBLE)})


def _outputs(
    graph: Graph, sample: Mapping[str, np.ndarray], rng: Csprng | None
) -> dict[str, np.ndarray]:
    """The graph's outputs in float64; with a random source, moved as rounding may move them."""
    values = dict(graph.constants)
    for name in graph.inputs:
        array = sample[name]
        values[name] = array.astype(DOUBLE) if array.dtype == SINGLE else array
    for node in graph.nodes:
        read = values if rng is None else {**values, **_moved_inputs(node, graph, values, rng)}
        made = evaluate(graph, node, read)
        if rng is not None:
            scale = _rounding(graph, node, values, made)
            made = {name: _moved(one, scale.get(name, 0.0), rng) for name, one in made.items()}
        values.update(made)
    return {name: values[name] for name in graph.outputs}


def _moved_inputs(
    node: Node, graph: Graph, values: Mapping[str, np.ndarray], rng: Csprng
) -> dict[str, np.ndarray]:
    """What a node computes on the way from its inputs is rounded too."""
    if node.op in LINEAR_OPS:
        return {}
    return {
        name: _moved(values[name], UNIT * np.abs(values[name]), rng)
        for name in node.inputs
        if name and name not in graph.constants
    }


def _rounding(
    graph: Graph, node: Node, values: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """How far rounding may move each output of a node."""
    if node.op not in LINEAR_OPS:
        return {name: 4 * UNIT * np.abs(one) for name, one in made.items() if _is_float(one)}
    sizes = {name: np.abs(values[name]) for name in node.inputs if name}
    terms = _terms(node, values)
    summed = evaluate(graph, node, sizes)
    return {name: (1 + math.sqrt(terms)) * UNIT * one for name, one in summed.items()}


def _terms(node: Node, values: Mapping[str, np.ndarray]) -> int:
    """How many products are added to one number."""
    weights = values[node.inputs[1]]
    if node.op == "Conv":
        return int(np.prod(weights.shape[1:]))
    if node.op == "ConvTranspose":
        return int(weights.shape[0] * np.prod(weights.shape[2:]))
    return int(max(weights.shape[-2:]))


def _moved(value: np.ndarray, scale: np.ndarray | float, rng: Csprng) -> np.ndarray:
    if not _is_float(value):
        return value
    bits = np.frombuffer(rng.random_bytes(-(-value.size // 8)), np.uint8)
    signs = np.unpackbits(bits, count=value.size).reshape(value.shape) * 2.0 - 1.0
    return np.asarray(value + signs * scale)


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind == "f"


def _difference(value: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference; infinities and NaN have to be the same."""
    value, exact = value.astype(DOUBLE), exact.astype(DOUBLE)
    same = (value == exact) | (np.isnan(value) & np.isnan(exact))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(value - exact))
    return math.inf if np.isnan(off).any() else float(off.max(initial=0.0))
