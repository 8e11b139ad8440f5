"""The model of a preset with the samples to run it on; trained ones are kept in a folder.

    NAME.onnx    the model
    NAME.npz     x, y: test samples and their classes, as `cloister audit model` takes them
    NAME.json    how it was trained, its test accuracy and the digests of the two other files

A folder of another recipe is trained anew.
"""

import hashlib
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.load import load
from cloister.graph.passes.normalise import prepare
from cloister.splits.net_builder import Network
from cloister.splits.preset_data import PresetData, read_data
from cloister.splits.presets import WORDS, Recipe, preset

Progress = Callable[[str, int, int], None]
KEPT_SAMPLES = 2000
RANDOM_SAMPLES = 4
_SEED = 3


@dataclass(frozen=True, eq=False)
class SweptModel:
    """A model to sweep, and where its numbers come from.

    inputs     some samples of its inputs
    origin     of the inputs; weights: of the parameters
    accuracy   on test samples; None: not measured
    """

    graph: Graph
    inputs: dict[str, np.ndarray]
    origin: str
    weights: str
    accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class _Trained:
    graph: Graph
    x: np.ndarray
    y: np.ndarray
    accuracy: float


def preset_model(name: str, *, cache: Path | None, progress: Progress) -> SweptModel:
    """A preset with real samples if it is trained, else with random ones.

    Raises   InputError when the data or PyTorch are missing, or the folder holds something else
    """
    chosen = preset(name)
    network = chosen.build()
    if chosen.recipe is None:
        graph = prepare(network.graph)
        inputs = _random_inputs(graph)
        return SweptModel(graph, inputs, "random", "random, never trained")
    if cache is None:
        found = _train(name, network, chosen.recipe, progress)
    else:
        found = _kept(cache, name) or _keep(
            cache, name, _train(name, network, chosen.recipe, progress)
        )
    return SweptModel(
        found.graph,
        {found.graph.inputs[0]: found.x},
        f"test samples of {chosen.recipe.data}",
        f"trained on {chosen.recipe.data}",
        found.accuracy,
    )


def _train(name: str, network: Network, recipe: Recipe, progress: Progress) -> _Trained:
    training = _training()
    data = read_data(name)
    graph = training.train(network, data, recipe, progress)
    accuracy = training.accuracy(network, graph, data.test, progress)
    x, y = _spread(data)
    return _Trained(prepare(graph), x, y, accuracy)


def _spread(data: PresetData) -> tuple[np.ndarray, np.ndarray]:
    """Test samples from all of the test set: files may hold one class after the other."""
    count = min(KEPT_SAMPLES, len(data.test))
    which = np.linspace(0, len(data.test) - 1, count).astype(np.int64)
    return data.test.rows(which), data.test.y[which]


def _training() -> Any:  # noqa: ANN401  (a module that needs PyTorch)
    try:
        return importlib.import_module("cloister.splits.preset_training")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            "training a preset needs PyTorch: pip install 'cloister[train]'"
        ) from error


def _random_inputs(graph: Graph) -> dict[str, np.ndarray]:
    (name,) = graph.inputs
    known = graph.types[name]
    shape = (RANDOM_SAMPLES, *(size or 1 for size in known.shape[1:]))
    words = np.frombuffer(
        InsecureSeededRandom(_SEED).random_bytes(4 * int(np.prod(shape))), np.uint32
    )
    values = words % WORDS if known.dtype.kind == "i" else words / np.float32(2**32)
    return {name: values.reshape(shape).astype(known.dtype)}


# ---- the folder


def _recipe(name: str) -> dict[str, object]:
    """What a kept model must have been trained with."""
    chosen = preset(name)
    return {**_structure(name), "recipe": None if chosen.recipe is None else asdict(chosen.recipe)}


@cache
def _structure(name: str) -> dict[str, object]:
    network = preset(name).build()
    digest = hashlib.sha256(model_bytes(network.graph)).hexdigest()
    return {"structure": digest, "dropouts": network.dropouts}


def _keep(folder: Path, name: str, found: _Trained) -> _Trained:
    buffer = io.BytesIO()
    # Data sets have the channels of pictures last.
    np.savez_compressed(buffer, x=_moved(found.x, last=True), y=found.y)
    parts = {f"{name}.onnx": model_bytes(found.graph), f"{name}.npz": buffer.getvalue()}
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in parts.items():
        files.replace(folder / part, content, private=False)
    described = {
        "recipe": _recipe(name),
        "accuracy": found.accuracy,
        "sha256": {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()},
    }
    # Last: a folder with it is complete.
    text = json.dumps(described, indent=2) + "\n"
    files.replace(folder / f"{name}.json", text.encode(), private=False)
    # As others load it: a report about a model names its digest.
    return replace(found, graph=load(folder / f"{name}.onnx"))


def _moved(x: np.ndarray, *, last: bool) -> np.ndarray:
    """Pictures with their channels last, or first."""
    if x.ndim != 4:
        return x
    return np.ascontiguousarray(np.moveaxis(x, *((1, -1) if last else (-1, 1))))


def _kept(folder: Path, name: str) -> _Trained | None:
    """The model in the folder; None where it has none of this recipe."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    with parsing(f"{path}: does not describe a trained preset; delete it"):
        described = json.loads(_read(path))
        if described["recipe"] != _recipe(name):
            return None
        contents = {part: _read(folder / part) for part in (f"{name}.onnx", f"{name}.npz")}
        for part, content in contents.items():
            if hashlib.sha256(content).hexdigest() != described["sha256"][part]:
                raise InputError(f"{folder / part}: is not the one that {path.name} describes; "
                                 f"delete {path.name} to train it anew")  # fmt: skip
        with np.load(io.BytesIO(contents[f"{name}.npz"]), allow_pickle=False) as arrays:
            x, y = _moved(arrays["x"], last=False), arrays["y"]
        return _Trained(load(folder / f"{name}.onnx"), x, y, float(described["accuracy"]))


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()
