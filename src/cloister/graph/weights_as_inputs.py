"""A graph in ONNX Runtime that costs no memory for its weights.

Given a model's constants, ONNX Runtime and the message they travel in hold them several times over:
for VGG16's 0.55 GB of weights, 2.9 GB more at the peak. Passed as inputs of every run they stay
where they are. The price is kernels that cannot rearrange weights beforehand, up to a half slower:
right for calibration and for proofs by example, wrong for models that run more often.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnxruntime import RunOptions

from cloister.graph.graph import Graph, TensorType
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session

LARGE_BYTES = 1 << 16


class WeightsAsInputs:
    """Runs a graph's outputs, or the ones named, in float32.

    Raises   one of ORT_ERRORS when ONNX Runtime does not take the graph
    """

    def __init__(
        self,
        graph: Graph,
        *,
        outputs: Sequence[str] | None = None,
        threads: int = 1,
        optimised: bool = False,
    ) -> None:
        wanted = graph.outputs if outputs is None else tuple(outputs)
        large = _large(graph, wanted)
        self._large = {name: np.ascontiguousarray(array) for name, array in large.items()}
        model = model_without_weights(graph, wanted)
        self._session = runtime_session(model, threads=threads, optimised=optimised)

    def run(
        self,
        wanted: Sequence[str] | None,
        feeds: Mapping[str, np.ndarray],
        *,
        options: RunOptions | None = None,
    ) -> list[np.ndarray]:
        """The values named, default all outputs."""
        names = None if wanted is None else list(wanted)
        return list(self._session.run(names, {**self._large, **feeds}, options))


def model_without_weights(
    graph: Graph, outputs: Collection[str], *, inferred: bool = False
) -> bytes:
    """A graph as a model that takes its weights as inputs; `inferred` as of `model_bytes`."""
    large = _large(graph, outputs)
    types = {name: TensorType(array.dtype, array.shape) for name, array in large.items()}
    skeleton = replace(
        graph,
        inputs=(*graph.inputs, *large),
        constants={name: a for name, a in graph.constants.items() if name not in large},
        types={**graph.types, **types},
    )
    return model_bytes(skeleton, outputs=tuple(outputs), inferred=inferred)


def _large(graph: Graph, outputs: Collection[str]) -> dict[str, np.ndarray]:
    """The constants that become inputs."""
    return {
        name: array
        for name, array in graph.constants.items()
        # An output cannot be an input, and only numbers are known to be shared, not copied.
        if array.nbytes > LARGE_BYTES and array.dtype.kind in "fiu" and name not in outputs
    }
