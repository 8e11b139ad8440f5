"""Models from files and frameworks, ready for planning."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path

from cloister.errors import UnsupportedError
from cloister.graph.graph import BATCH, Graph
from cloister.graph.onnx import frontends, read
from cloister.graph.onnx.specialise import specialise
from cloister.graph.passes.normalise import prepare


def load(path: str | PathLike[str], *, dims: Mapping[str, int] | None = None) -> Graph:
    """The model in an ONNX file, or in a Keras file by its suffix (which needs Keras and PyTorch).

    `dims` has numbers for free sizes, by the names that the file gives them, or "batch" for the
    batch. A free size that gets none has that of the inputs.

    Raises ModelError, UnsupportedError naming the file or node and what to do, InputError for
    numbers of sizes that are not free.
    """
    suffix = Path(path).suffix.lower()
    if suffix in frontends.KERAS_SUFFIXES:
        return from_keras(path, dims=dims)
    if suffix in frontends.PYTORCH_SUFFIXES:
        raise UnsupportedError(
            f"{fspath(path)}: is a PyTorch file, by its name; export the module with "
            "torch.onnx.export, or pass it to cloister.from_torch"
        )
    own, batch = _parted(dims)
    return specialise(prepare(read.load(fspath(path), dims=own)), batch)


def from_torch(module: Callable[..., object], example: object) -> Graph:
    """A PyTorch module, exported with an example; needs PyTorch.

    The example is one input, a tuple of them, or a mapping of keyword arguments.
    """
    return prepare(frontends.from_torch(module, example))


def from_keras(
    model: object, example: object = None, *, dims: Mapping[str, int] | None = None
) -> Graph:
    """A Keras model, or the file of one; needs Keras and PyTorch.

    A model that does not state its inputs needs an example; `dims` is that of `load`, where "x[1]"
    is axis 1 of input x.
    """
    own, batch = _parted(dims)
    return specialise(prepare(frontends.from_keras(model, example, dims=own)), batch)


def _parted(dims: Mapping[str, int] | None) -> tuple[dict[str, int], dict[str, int]]:
    """The number for the batch apart from the others."""
    own = dict(dims or {})
    return own, {BATCH: own.pop(BATCH)} if BATCH in own else {}
