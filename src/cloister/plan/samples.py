"""Inputs as a caller gives them, as arrays by name, checked against the model's.

A caller may give

    an array      for a model with one input (array_conversion.py: NumPy's, a list, a number, a
                  tensor of another library)
    a mapping     of arrays by the inputs' names, in any order
    a table       a data frame or a structured array; its columns are the inputs of the same names,
                  or, for a model with one input, the features in the table's order
    anything      for an input that is a sequence (a list of arrays), a map or an optional value,
                  which go to ONNX Runtime as they are
    an iterator   of any of these, or a list of mappings: each item is one sample or one batch
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cloister.errors import InputError, RangeError, ShapeError
from cloister.graph.array_conversion import as_array, as_input, as_other, convert, is_input
from cloister.graph.batch import batch_axis, bound_sizes, element_type, is_other, sample_count
from cloister.graph.graph import Graph

Samples = object
"""Anything of the above. Types of other libraries are told by their protocols, at run time."""


def as_samples(model: Graph, samples: Samples) -> dict[str, np.ndarray]:
    """Samples by input name, checked against the model's inputs; the items of an iterator together.

    Raises ShapeError when inputs are missing, unknown or of another shape, or hold different
    numbers of samples; RangeError for a number that the model's type does not hold.
    """
    if _is_stream(samples):
        (only,) = sample_groups(model, samples, sys.maxsize)
        return only
    return _whole(model, samples)


def _whole(model: Graph, samples: Samples) -> dict[str, np.ndarray]:
    """Samples that are no stream."""
    if len(model.inputs) == 1 and isinstance(samples, np.ndarray):
        (only,) = model.inputs
        if is_input(model, only, samples):  # as most samples are
            arrays = {only: samples}
            bound_sizes(model, arrays)
            return arrays
    named = _by_name(model, samples)
    if model.defaults:
        named = {**model.defaults, **named}
    if set(named) != set(model.inputs):
        odd = sorted(set(named) ^ set(model.inputs), key=str)[0]
        names = ", ".join(map(repr, model.inputs))
        needed = ", ".join(map(repr, model.required_inputs)) if model.defaults else "all of them"
        raise ShapeError(f"input {odd!r}: the model's inputs are {names}, {needed} needed")
    arrays = {name: _input(model, name, named[name]) for name in model.inputs}
    bound_sizes(model, arrays)
    return arrays


def sample_groups(model: Graph, samples: Samples, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Samples by input name, in parts that a caller need not hold together in memory.

    An array or a mapping is one part. The items of an iterator are read as they are needed, and
    gathered to parts of at least `size` samples, except for the last. Where outputs depend on all
    samples of a batch, all items are one part.

    Raises   see `as_samples`; RangeError when an iterator gives nothing, InputError for items that
             cannot be one batch
    """
    if not _is_stream(samples):
        yield _whole(model, samples)
        return
    whole: dict[str, np.ndarray] | None = None
    group: list[dict[str, np.ndarray]] = []
    count = 0
    for number, item in enumerate(_items(model, samples)):
        if whole is None:
            whole = {name: item[name] for name in item if batch_axis(model, name) is None}
        _require_joinable(model, item, whole, number)
        group.append(item)
        count += sample_count(model, item)
        if model.separable and count >= size:
            yield _together(model, group)
            group, count = [], 0
    if group:
        yield _together(model, group)
    elif whole is None:
        raise RangeError("no inputs: the iterator gave no item")


def _is_stream(samples: Samples) -> bool:
    """Whether samples come one by one, and are not an array or a table."""
    if isinstance(samples, np.ndarray | dict):
        return False
    if isinstance(samples, list | tuple):
        return bool(samples) and isinstance(samples[0], Mapping)
    known = ("__array__", "__array_interface__", "__dlpack__", "columns")
    if isinstance(samples, Mapping | Sequence) or any(hasattr(samples, one) for one in known):
        return False
    return isinstance(samples, Iterable)


def _items(model: Graph, samples: Samples) -> Iterator[dict[str, np.ndarray]]:
    given = iter(samples)  # type: ignore[call-overload]
    for number, item in enumerate(given):
        try:
            yield as_samples(model, item)
        except InputError as error:
            raise type(error)(f"item {number}: {error}") from None


def _require_joinable(
    model: Graph, item: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray], number: int
) -> None:
    if number and model.batch is not None:
        raise InputError(
            f"item {number}: the model takes {model.batch} samples at a time; call run once for "
            "each item"
        )
    for name, first in whole.items():
        if item[name] is not first and not _equal(item[name], first):
            raise InputError(
                f"item {number}: input {name!r} holds for all samples, and differs from that of "
                "item 0; call run once for each item"
            )


def _equal(one: object, other: object) -> bool:
    """Whether two values hold the same; NaN is NaN."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other


def _together(model: Graph, items: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Items as one batch.

    Raises   ShapeError if their samples have different sizes
    """
    if len(items) == 1:
        return items[0]
    made = {}
    for name in model.inputs:
        arrays, axis = [item[name] for item in items], batch_axis(model, name)
        if axis is None:
            made[name] = arrays[0]
            continue
        if len({a.shape[:axis] + a.shape[axis + 1 :] for a in arrays}) > 1:
            raise ShapeError(
                f"input {name!r}: the items' samples have different sizes; call run once for each"
            )
        made[name] = np.concatenate(arrays, axis)
    return made


def _by_name(model: Graph, samples: Samples) -> Mapping[str, object]:
    if isinstance(samples, Mapping):
        return samples
    columns = _columns(samples)
    if columns is not None and (
        len(model.required_inputs) > 1 or set(columns) >= set(model.required_inputs)
    ):
        return columns
    if len(model.required_inputs) != 1:
        names = ", ".join(model.inputs) or "none"
        raise ShapeError(f"the model has inputs {names}; pass a mapping by name")
    (name,) = model.required_inputs
    return {name: samples if columns is None else _features(model, name, columns)}


def _columns(samples: Samples) -> dict[str, object] | None:
    """The columns of a data frame or structured array; None for what is no table."""
    if isinstance(samples, np.ndarray):
        return {name: samples[name] for name in samples.dtype.names or ()} or None
    # PyArrow's `columns` are the columns themselves.
    names = getattr(samples, "column_names", getattr(samples, "columns", None))
    if names is None or callable(names):
        return None
    names = list(names)
    if not names or not all(isinstance(name, str) for name in names):
        return None
    if len(set(names)) < len(names):
        raise ShapeError("two columns of the table have one name; rename one")
    return {name: samples[name] for name in names}  # type: ignore[index]


def _features(model: Graph, name: str, columns: Mapping[str, object]) -> np.ndarray:
    """The columns of a table as the features of one input, in the table's order."""
    wanted = element_type(model, name)
    arrays = []
    for column, given in columns.items():
        what = f"input {name!r}, column {column!r}"
        array = as_array(given, what)
        if array.ndim != 1:
            raise ShapeError(f"{what}: has shape {array.shape}, and no single number per sample")
        arrays.append(convert(array, wanted, what, 0))
    return np.stack(arrays, axis=1)


def _input(model: Graph, name: str, given: object) -> Any:  # noqa: ANN401  (an array, or other)
    what = f"input {name!r}"
    if is_other(model, name):
        return as_other(given, what)
    return as_input(model, name, as_array(given, what), what)
