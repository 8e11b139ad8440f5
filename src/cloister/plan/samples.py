"""Inputs as a caller gives them, checked against the model's."""

from collections.abc import Mapping

import numpy as np

from cloister.base.reading import require_truths
from cloister.errors import RangeError, ShapeError
from cloister.graph.batch import bound_sizes, element_type
from cloister.graph.graph import Graph, Size

Samples = np.ndarray | Mapping[str, np.ndarray]


def as_samples(model: Graph, samples: Samples) -> dict[str, np.ndarray]:
    """Samples by input name, checked against the model's inputs.

    Raises ShapeError when inputs are missing, unknown or of another shape, or hold different
    numbers of samples.
    """
    if not isinstance(samples, np.ndarray | Mapping):
        raise ShapeError(
            f"inputs must be a NumPy array or a mapping of them by name, not "
            f"{type(samples).__name__}"
        )
    if isinstance(samples, np.ndarray):
        if len(model.inputs) != 1:
            names = ", ".join(model.inputs) or "none"
            raise ShapeError(f"the model has inputs {names}; pass a mapping by name")
        samples = {model.inputs[0]: samples}
    if set(samples) != set(model.inputs):
        odd = sorted(set(samples) ^ set(model.inputs))[0]
        names = ", ".join(map(repr, model.inputs))
        raise ShapeError(f"input {odd!r}: the model's inputs are {names}, all of them needed")
    for name, array in samples.items():
        _check_sample(model, name, array)
    bound_sizes(model, samples)
    return {name: np.asarray(samples[name], order="C") for name in model.inputs}


def _check_sample(model: Graph, name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"input {name!r}: expected a NumPy array, got {type(array).__name__}")
    wanted = element_type(model, name)
    if array.dtype != wanted:
        raise ShapeError(f"input {name!r}: the model takes {wanted}, got {array.dtype}")
    require_truths(array, f"input {name!r}", kind=RangeError)
    sizes = model.sizes(name) or ()
    fits = len(array.shape) == len(sizes) and all(
        isinstance(want, str) or want == got for want, got in zip(sizes, array.shape, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"input {name!r}: the model takes shape {sizes}, got {array.shape}"
            + _fixed_batch_remedy(model, sizes, array.shape)
        )


def _fixed_batch_remedy(model: Graph, sizes: tuple[Size, ...], shape: tuple[int, ...]) -> str:
    """What to do about samples that are more or fewer than a model of fixed batch takes."""
    if model.batch is None or not sizes or sizes[1:] != shape[1:]:
        return ""
    return f"; give {model.batch} at a time, or export the model with a first axis of any size"
