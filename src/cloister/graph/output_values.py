"""Outputs of every kind that ONNX Runtime returns.

An output is an array, a list for a sequence, a dictionary for a map, or None for an optional value
that is not there; a classifier's probabilities are often a list of one map for each sample.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def owned(value: Any) -> Any:  # noqa: ANN401  (whatever ONNX Runtime returns)
    """A copy of an output, which no later request changes."""
    match value:
        case np.ndarray():
            return value.copy()
        case list():
            return [owned(entry) for entry in value]
        case dict():
            return dict(value)
        case _:
            return value


def are_maps(value: object) -> bool:
    """Whether an output is a list of maps, one for each sample."""
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def flat_arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as arrays of numbers and text, without Python objects.

    Entries of lists and maps have their places in their names; a value that is not there has none.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            found |= flat_arrays({f"{name}[{key}]": entry for key, entry in value.items()})
        elif are_maps(value) and value and all(one.keys() == value[0].keys() for one in value):
            columns = {f"{name}[{key}]": np.array([one[key] for one in value]) for key in value[0]}
            found |= flat_arrays(columns)
        elif isinstance(value, list):
            found |= flat_arrays({f"{name}[{i}]": entry for i, entry in enumerate(value)})
        elif value is not None:
            array = np.asarray(value)
            found[name] = array.astype(np.str_) if array.dtype == np.object_ else array
    return found


def described(value: object) -> str:
    """What an output is, without its contents."""
    if isinstance(value, np.ndarray):
        return f"{'text' if value.dtype == np.object_ else value.dtype} {value.shape}"
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'map'} of {len(value)}"
    return "no value" if value is None else str(value)
