"""The model under attack: its answers, and the two parts of each split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
from jaxtyping import Float, Float32, Float64, Shaped

from cloister.audit.model.linear_recovery import MAX_FEATURES, is_linear
from cloister.errors import UnsupportedError
from cloister.graph.graph import Graph
from cloister.graph.hidden import HiddenSplit, hide, layers
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.graph.passes.rewrite import without_unused

AT_ONCE = 256
"""Samples that a model is run on together."""


@dataclass(frozen=True, eq=False)
class Victim:
    """A classifier without the softmax at its end: its output is one number for each class."""

    graph: Graph
    layers: int
    classes: int
    threads: int

    def logits(self, x: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n c"]:
        """The outputs for samples."""
        session = runtime_session(model_bytes(self.graph), threads=self.threads, optimised=True)
        (found,) = in_parts(session, [x])
        return found

    def split(self, hidden_layers: int) -> "ExposedPart":
        """The model with so many hidden layers, as a thief sees it."""
        return ExposedPart(hide(self.graph, last=hidden_layers), self.threads)


class ExposedPart:
    """What a split leaves in the clear: the layers before the hidden ones.

    hidden      the hidden part, of which the thief knows the architecture
    known       constants of the hidden part that exposed nodes read too
    features    how many numbers enter the hidden part
    is_linear   whether the hidden part is a linear map that can be solved for
    """

    def __init__(self, parts: HiddenSplit, threads: int) -> None:
        self.hidden = parts.hidden
        outside = parts.outer.nodes[:-1]
        self.known = frozenset(value for node in outside for value in node.inputs)
        self.features = sum(_elements(parts.hidden, value) for value in parts.hidden.inputs)
        self.is_linear = is_linear(parts.hidden) and self.features <= MAX_FEATURES
        self._session = None
        if outside:
            model = model_bytes(parts.outer, nodes=outside, outputs=parts.hidden.inputs)
            self._session = runtime_session(model, threads=threads, optimised=True)

    def values(self, x: Shaped[np.ndarray, "n ..."]) -> list[Shaped[np.ndarray, "n ..."]]:
        """The values that enter the hidden part."""
        return [x] if self._session is None else in_parts(self._session, [x])

    def logits(self, values: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n c"]:
        """The outputs of a hidden part of one input, for values that a thief chooses."""
        (found,) = in_parts(runtime_session(model_bytes(self.hidden)), [values])
        return found

    def weights(self) -> Float64[np.ndarray, "d c"]:
        """The matrix of a linear hidden part, from its values at the unit vectors and at zero."""
        shape = self.hidden.types[self.hidden.inputs[0]].shape[1:]
        units = np.eye(self.features + 1, self.features, dtype=np.float32)
        found = self.logits(units.reshape(-1, *(size or 1 for size in shape)))
        return np.asarray(found[:-1].astype(np.float64) - found[-1])


def _elements(graph: Graph, value: str) -> int:
    return math.prod(size or 1 for size in graph.types[value].shape[1:])


def victim(graph: Graph, *, threads: int = 1) -> Victim:
    """A model as the attacks need it.

    Raises   UnsupportedError for what is no classifier with one input and a free batch
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph.batch is not None:
        raise UnsupportedError(
            f"{graph.name}: the attacks need a model of one input, one output and a free batch"
        )
    graph = _without_softmax(graph)
    shape = graph.types[graph.outputs[0]].shape if graph.outputs[0] in graph.types else ()
    if len(shape) != 2 or shape[1] is None or shape[1] < 2:
        raise UnsupportedError(
            f"output {graph.outputs[0]!r}: the attacks need one number for each class, as (n, "
            "classes) with two classes or more"
        )
    return Victim(graph, len(layers(graph)), shape[1], threads)


def probabilities(logits: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
    """Softmax, in the precision in which a module answers."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def in_parts(
    session: ort.InferenceSession, inputs: Sequence[Shaped[np.ndarray, "n ..."]]
) -> list[np.ndarray]:
    """A session's outputs for many samples."""
    names = [one.name for one in session.get_inputs()]
    parts = [
        session.run(None, {n: x[i : i + AT_ONCE] for n, x in zip(names, inputs, strict=True)})
        for i in range(0, len(inputs[0]), AT_ONCE)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _without_softmax(graph: Graph) -> Graph:
    """Softmax adds nothing to the logits but their normalisation, which training adds again."""
    last = next((node for node in graph.nodes if graph.outputs[0] in node.outputs), None)
    if last is None or last.op not in ("Softmax", "LogSoftmax"):
        return graph
    return without_unused(replace(graph, outputs=(last.inputs[0],)))
