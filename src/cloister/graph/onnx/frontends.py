"""Models from PyTorch and Keras, by way of a temporary ONNX file.

The frameworks are imported only here and only when asked for; nothing else needs them.
"""

import importlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.errors import ModelError, UnsupportedError, one_line
from cloister.graph.graph import BATCH, Graph
from cloister.graph.onnx import read
from cloister.graph.onnx.keras_layers import faulty_layer

OPSET = 17
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
PYTORCH_SUFFIXES = (".pt", ".pt2", ".pth")


def from_torch(module: Callable[..., object], example: object) -> Graph:
    """A PyTorch module in evaluation mode, traced with one example input or a tuple of them.

    The first axis becomes the batch, of every input where it is as long as that of the first input.
    Raises UnsupportedError when PyTorch is missing or cannot export the module.
    """
    torch = _framework("torch", "pip install torch")
    if not isinstance(module, torch.nn.Module):
        raise UnsupportedError(
            f"from_torch takes a torch.nn.Module, got {type(module).__name__}; pass the model"
        )
    examples = example if isinstance(example, tuple) else (example,)
    names = [f"input_{i}" for i in range(len(examples))] if len(examples) > 1 else ["input"]
    was_training = module.training
    try:
        name = type(module).__name__
        batched = _batched(examples, names)
        return _traced(torch, module, examples, names, batched, name=name, outputs=["output"])
    finally:
        module.train(was_training)


def _batched(examples: tuple[object, ...], names: list[str]) -> list[str]:
    """Inputs that carry the batch, as far as the examples tell: states and scalars do not."""
    first = [tuple(getattr(example, "shape", ()))[:1] for example in examples]
    size = next((size for size in first if size), None)
    return [name for name, own in zip(names, first, strict=True) if own == size]


def _traced(
    torch: Any,  # noqa: ANN401  (frameworks have no types here)
    module: Any,  # noqa: ANN401
    examples: tuple[object, ...],
    names: list[str],
    batched: list[str],
    *,
    name: str,
    outputs: list[str] | None,
) -> Graph:
    """Export with the tracing exporter, which keeps one ONNX node per layer, and load the file."""
    module.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / f"{name}.onnx"
        try:
            torch.onnx.export(
                module,
                examples,
                str(path),
                input_names=names,
                output_names=outputs,
                dynamic_axes={name: {0: BATCH} for name in batched},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:
            raise UnsupportedError(
                f"PyTorch cannot export {name}: {one_line(error)}; export it to ONNX yourself and "
                "load the file"
            ) from error
        return read.load(path)


def from_keras(model: object) -> Graph:
    """A Keras 3 model, or one in a .keras or .h5 file, by way of Keras on PyTorch.

    Raises ModelError when the file is no Keras model, UnsupportedError when Keras is missing, runs
    on another backend, cannot make a layer (which is named), or cannot export the model.
    """
    if isinstance(model, str | os.PathLike):
        return _from_keras_file(Path(model))
    if not isinstance(model, _keras().Model):
        raise UnsupportedError(
            f"from_keras takes a Keras model or its file, got {type(model).__name__}"
        )
    return _exported(model, Path(f"{model.name}.keras"))


def _from_keras_file(path: Path) -> Graph:
    if path.suffix.lower() not in KERAS_SUFFIXES:
        raise ModelError(f"{path}: not a Keras file; its name must end in .keras or .h5")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; check the path")
    keras = _keras()
    fault: Exception | None = None
    try:
        # Safe mode refuses files that carry Python code.
        model = keras.models.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001  (whatever a layer's own code raises)
        fault = error
    if fault is None:
        return _exported(model, path)
    layer = faulty_layer(keras, path)
    if layer is None:
        raise ModelError(f"{path}: Keras cannot load it: {one_line(fault)}") from fault
    raise UnsupportedError(
        f"{path}: {layer}; replace the layer by one of this version of Keras, or export the model "
        "to ONNX yourself"
    ) from fault


def _exported(model: Any, path: Path) -> Graph:  # noqa: ANN401  (Keras has no types)
    torch = _framework("torch", "pip install torch")
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    for tensor, shape in zip(model.inputs, shapes, strict=True):
        if None in shape[1:]:
            axis = shape.index(None, 1)
            raise UnsupportedError(
                f"input {tensor.name!r}: axis {axis} has no fixed size; build the model with a "
                "fixed size there (only the first axis, the batch, may vary)"
            )
    names = [tensor.name for tensor in model.inputs]
    examples = tuple(
        torch.zeros(2, *shape[1:], dtype=getattr(torch, tensor.dtype))
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    )
    # Keras takes several inputs as one list; the exporter names its parts in order.
    taken = (list(examples),) if len(examples) > 1 else examples
    return _traced(torch, model, taken, names, names, name=path.stem, outputs=None)


def _keras() -> Any:  # noqa: ANN401  (Keras has no types)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = _framework("keras", "pip install keras torch")
    backend = keras.backend.backend()
    if backend != "torch":
        raise UnsupportedError(
            f"Keras runs on {backend}, but the export needs PyTorch; set KERAS_BACKEND=torch"
        )
    return keras


def _framework(name: str, remedy: str) -> Any:  # noqa: ANN401  (frameworks have no types here)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UnsupportedError(f"this needs the Python package {name!r}: {remedy}") from None
