"""Inputs as a caller gives them, checked against the model's."""

from collections.abc import Mapping

import numpy as np

from cloister.errors import ShapeError
from cloister.graph.graph import Graph

Samples = np.ndarray | Mapping[str, np.ndarray]


def as_samples(model: Graph, samples: Samples) -> dict[str, np.ndarray]:
    """Samples by input name, checked against the model's inputs.

    Raises ShapeError when inputs are missing, unknown or of another shape.
    """
    if not isinstance(samples, np.ndarray | Mapping):
        raise ShapeError(
            f"inputs must be a NumPy array or a mapping of them by name, not "
            f"{type(samples).__name__}"
        )
    if isinstance(samples, np.ndarray):
        if len(model.inputs) != 1:
            raise ShapeError(
                f"the model has inputs {', '.join(model.inputs)}; pass a mapping by name"
            )
        samples = {model.inputs[0]: samples}
    if set(samples) != set(model.inputs):
        odd = sorted(set(samples) ^ set(model.inputs))[0]
        names = ", ".join(map(repr, model.inputs))
        raise ShapeError(f"input {odd!r}: the model's inputs are {names}, all of them needed")
    for name, array in samples.items():
        _check_sample(model, name, array)
    return {name: np.ascontiguousarray(samples[name]) for name in model.inputs}


def _check_sample(model: Graph, name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"input {name!r}: expected a NumPy array, got {type(array).__name__}")
    expected = model.types[name]
    if array.dtype != expected.dtype:
        raise ShapeError(f"input {name!r}: the model takes {expected.dtype}, got {array.dtype}")
    fits = len(array.shape) == len(expected.shape) and all(
        want is None or want == got for want, got in zip(expected.shape, array.shape, strict=True)
    )
    if not fits:
        want = tuple("batch" if size is None else size for size in expected.shape)
        raise ShapeError(f"input {name!r}: the model takes shape {want}, got {array.shape}")
