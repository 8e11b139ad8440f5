"""Weights stored beside a model file: read only from inside its folder."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from cloister.errors import ModelError


def read_external_data(model: onnx.ModelProto, *, folder: Path | None, name: str) -> None:
    """Put all external data into the model.

    Raises ModelError when a location leaves the folder, or the file does not hold the data.
    """
    for tensor in _tensors_of_graph(model.graph):
        _read(tensor, folder, name)
    for function in model.functions:
        for tensor in _tensors_of_nodes(function.node):
            _read(tensor, folder, name)


def _read(tensor: TensorProto, folder: Path | None, name: str) -> None:
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    fields = {entry.key: entry.value for entry in tensor.external_data}
    what = f"{name}: constant {tensor.name!r}"
    if folder is None:
        raise ModelError(f"{what} lies in another file; load the model by its path")
    path = _inside(folder, fields.get("location", ""), what)
    try:
        offset = int(fields.get("offset") or 0)
        available = path.stat().st_size - offset
        length = int(fields["length"]) if fields.get("length") else available
        if offset < 0 or not 0 <= length <= available:
            raise ModelError(f"{what}: its external data file {path.name!r} is too short")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError) as error:
        reason = type(error).__name__
        raise ModelError(
            f"{what}: its external data {path.name!r} cannot be read ({reason}); keep the file "
            "beside the model"
        ) from None
    tensor.raw_data = data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _inside(folder: Path, location: str, what: str) -> Path:
    """The file a location names, which must lie in the model's folder, links followed."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    root = folder.resolve()
    if not location or absolute or ".." in parts or "\0" in location:
        raise ModelError(f"{what}: external data {location!r} lies outside the model's folder")
    path = (root / location).resolve()
    if not path.is_relative_to(root):
        raise ModelError(f"{what}: external data {location!r} leads outside the model's folder")
    return path


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(subgraph)
