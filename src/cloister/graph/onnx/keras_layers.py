"""The layer of a Keras file that Keras cannot make, found by making each one alone.

Keras names a layer's class at best, and often only the model's.
"""

import importlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloister.errors import one_line

CONFIG = "config.json"
"""In a .keras file, which is a zip archive."""
INPUT = "InputLayer"
"""It has nothing that could be unknown, and Keras makes it with the model only."""
BATCH_SHAPE = "batch_input_shape"
"""Keras 2 wrote it into the first layer; Keras makes an InputLayer of it."""
MAX_BYTES = 64 << 20
"""No model has a larger configuration."""


def faulty_layer(keras: Any, path: Path) -> str | None:  # noqa: ANN401  (Keras has no types)
    """The first layer that Keras cannot make, and why; None where the fault is not a layer's."""
    try:
        config = _config(path)
    except Exception:  # noqa: BLE001  (a damaged file: Keras has said so)
        return None
    for layer in _layers(config):
        if layer["class_name"] == INPUT:
            continue
        try:
            _make(keras, layer)
        except Exception as error:  # noqa: BLE001  (whatever a layer's own code raises)
            name = layer["config"].get("name", "without a name")
            reason, _, _ = one_line(_cause(error)).partition(". ")
            return f"layer {name!r} ({layer['class_name']}): {reason}"
    return None


def _make(keras: Any, layer: dict[str, Any]) -> None:  # noqa: ANN401  (Keras has no types)
    if "module" in layer:
        keras.layers.deserialize(layer)
        return
    # An .h5 file has Keras' own classes by their names alone.
    kind = getattr(keras.layers, layer["class_name"], None)
    if kind is None:
        raise LookupError("Keras has no layer of this class")
    given = {name: value for name, value in layer["config"].items() if name != BATCH_SHAPE}
    kind.from_config(given)


def _config(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, archive.open(CONFIG) as file:
            return json.loads(file.read(MAX_BYTES))
    h5py = importlib.import_module("h5py")  # a dependency of Keras
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["model_config"])


def _layers(config: object) -> Iterator[dict[str, Any]]:
    """The layers of a model, and those of models inside it, in its order."""
    inner = config.get("config") if isinstance(config, Mapping) else None
    if not isinstance(config, dict) or not isinstance(inner, Mapping):
        return
    if isinstance(inner.get("layers"), list):
        for one in inner["layers"]:
            yield from _layers(one)
    else:
        yield config


def _cause(error: Exception) -> Exception:
    """Keras wraps the first error in others, which quote whole configurations."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return error
