"""Models from PyTorch and Keras, by way of a temporary ONNX file.

The frameworks are imported only here and only when asked for; nothing else needs them.
"""

import importlib
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import ModelError, TracingWarning, UnsupportedError, one_line
from cloister.graph.graph import BATCH, Graph
from cloister.graph.onnx import read
from cloister.graph.onnx.example_inputs import ExampleInputs, leaves_of, with_leaves
from cloister.graph.onnx.keras_layers import faulty_layer
from cloister.graph.onnx.symbols import require_free

OPSET = 17
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
PYTORCH_SUFFIXES = (".pt", ".pt2", ".pth")


def from_torch(module: Callable[..., object], example: object) -> Graph:
    """A PyTorch module in evaluation mode, traced with an example.

    The example is one input, a tuple of them, or a mapping of keyword arguments; an input may be a
    list, tuple or mapping of tensors. The first axis becomes the batch, of every tensor where it is
    as long as that of the first. A module that decides on values or sizes is exported with the
    decisions for the example; a TracingWarning names the place.

    Raises UnsupportedError when PyTorch is missing or cannot export the module.
    """
    torch = _framework("torch", "pip install torch")
    if not isinstance(module, torch.nn.Module):
        raise UnsupportedError(
            f"from_torch takes a torch.nn.Module, got {type(module).__name__}; pass the model"
        )
    was_training = module.training
    try:
        name = type(module).__name__
        return _traced(torch, module, ExampleInputs.of(example), name=name, outputs=["output"])
    finally:
        module.train(was_training)


def _batched(tensors: Mapping[str, Any]) -> list[str]:
    """Inputs that carry the batch, as far as the examples tell: states and scalars do not."""
    first = {name: tuple(tensor.shape)[:1] for name, tensor in tensors.items()}
    size = next((size for size in first.values() if size), None)
    return [name for name, own in first.items() if own == size]


def _traced(
    torch: Any,  # noqa: ANN401  (frameworks have no types here)
    module: Any,  # noqa: ANN401
    example: ExampleInputs,
    *,
    name: str,
    outputs: list[str] | None,
) -> Graph:
    """Export with the tracing exporter, which keeps one ONNX node per layer, and load the file."""
    module.eval()
    kinds = (torch.Tensor, np.ndarray)
    tensors = {leaf: torch.as_tensor(a) for leaf, a in example.leaves if isinstance(a, kinds)}
    if not tensors:
        raise UnsupportedError(f"{name}: the example has no tensor; give one for each input")
    taken = len(inspect.signature(module.forward).parameters)
    if len(example.places) != taken or not all(
        isinstance(place, kinds) for place in example.places
    ):
        module = _with_flat_inputs(torch, module, example, tuple(tensors))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        path = Path(folder) / f"{name}.onnx"
        try:
            torch.onnx.export(
                module,
                tuple(tensors.values()),
                str(path),
                input_names=[*tensors],
                output_names=outputs,
                dynamic_axes={one: {0: BATCH} for one in _batched(tensors)},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:
            raise UnsupportedError(
                f"PyTorch cannot export {name}: {one_line(error)}; export it to ONNX yourself and "
                "load the file"
            ) from error
        graph = read.load(path)
    _warn_of_decisions(
        name,
        [
            f"{one.filename}:{one.lineno}"
            for one in noted
            if issubclass(one.category, torch.jit.TracerWarning) and not _is_framework(one.filename)
        ],
    )
    return graph


def _with_flat_inputs(
    torch: Any,  # noqa: ANN401
    module: Any,  # noqa: ANN401
    example: ExampleInputs,
    names: tuple[str, ...],
) -> Any:  # noqa: ANN401
    """The module with its tensors as arguments, one by one: these the exporter can name."""

    class FlatInputs(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: object) -> object:
            return example.call(self.module, dict(zip(names, tensors, strict=True)))

    return FlatInputs().eval()


def _is_framework(filename: str) -> bool:
    """Whether a file is the framework's own, whose layers are made to be traced."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in ("torch", "keras"))
    return any(file and Path(filename).is_relative_to(Path(file).parent) for file in files)


def _warn_of_decisions(name: str, noted: Iterable[str]) -> None:
    """Warn once of what tracing keeps from the example."""
    places = list(dict.fromkeys(noted))
    if places:
        more = f" and {len(places) - 1} more places" if places[1:] else ""
        warnings.warn(
            f"{name}: {places[0]}{more}: Python reads a tensor's value or size there, and the "
            "exported model keeps what it was for the example; compare outputs for other inputs, "
            "or compute it with tensors alone (torch.where)",
            TracingWarning,
            stacklevel=5,
        )


def from_keras(
    model: object, example: object = None, *, dims: Mapping[str, int] | None = None
) -> Graph:
    """A Keras 3 model, or one in a .keras or .h5 file, by way of Keras on PyTorch.

    A model that does not state its inputs (a subclass of keras.Model) needs an example, as
    `from_torch` takes it. `dims` has numbers for free sizes: "x[1]" is axis 1 of input x.

    Raises ModelError when the file is no Keras model, UnsupportedError when Keras is missing, runs
    on another backend, cannot make a layer (which is named), or cannot export the model.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return _exported(_from_keras_file(path), path.stem, example, dims or {})
    if not isinstance(model, _keras().Model):
        raise UnsupportedError(
            f"from_keras takes a Keras model or its file, got {type(model).__name__}"
        )
    return _exported(model, str(model.name), example, dims or {})


def _from_keras_file(path: Path) -> Any:  # noqa: ANN401  (Keras has no types)
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
        return model
    layer = faulty_layer(keras, path)
    if layer is None:
        raise ModelError(f"{path}: Keras cannot load it: {one_line(fault)}") from fault
    raise UnsupportedError(
        f"{path}: {layer}; replace the layer by one of this version of Keras, or export the model "
        "to ONNX yourself"
    ) from fault


def _exported(
    model: Any,  # noqa: ANN401  (Keras has no types)
    name: str,
    example: object,
    dims: Mapping[str, int],
) -> Graph:
    torch = _framework("torch", "pip install torch")
    inputs = _stated_inputs(model)
    if example is not None:
        given = ExampleInputs.of(example)
        try:
            # Keras makes missing weights in the first call; the exporter crashes if it is that one.
            given.call(model, {})
        except Exception as error:
            raise UnsupportedError(
                f"Keras model {name!r} does not take the example: {one_line(error)}"
            ) from error
    elif inputs is not None:
        tensors = leaves_of(inputs)
        zeros = _zeros(torch, tensors, dims)
        names = (str(tensor.name) for tensor in tensors)
        places = (with_leaves(inputs, iter(zeros)),)
        given = ExampleInputs(places, {}, tuple(zip(names, zeros, strict=True)))
    else:
        raise UnsupportedError(
            f"Keras model {name!r} does not state its inputs; pass an example of them too: "
            "from_keras(model, example)"
        )
    return _traced(torch, model, given, name=name, outputs=None)


def _stated_inputs(model: Any) -> object:  # noqa: ANN401
    """A model's inputs as it takes them; None for a subclass, which does not say."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    return getattr(model, "input", inputs[0] if len(inputs) == 1 else inputs)


def _zeros(torch: Any, tensors: Sequence[Any], dims: Mapping[str, int]) -> list[object]:  # noqa: ANN401
    """Two samples of each input.

    Raises   UnsupportedError for a free size that `dims` leaves out, InputError for one it invents
    """
    free = {
        f"{tensor.name}[{axis}]"
        for tensor in tensors
        for axis, size in enumerate(tensor.shape)
        if axis and size is None
    }
    require_free(dims, free)
    for one in sorted(free - set(dims)):
        raise UnsupportedError(
            f"input size {one!r} is free, and Keras' layers are exported for one size; give it a "
            f'number: --dim "{one}=SIZE", dims={{"{one}": SIZE}}'
        )
    return [
        torch.zeros(
            2,
            *(
                dims[f"{tensor.name}[{axis}]"] if size is None else size
                for axis, size in enumerate(tensor.shape)
                if axis
            ),
            dtype=getattr(torch, tensor.dtype),
        )
        for tensor in tensors
    ]


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
