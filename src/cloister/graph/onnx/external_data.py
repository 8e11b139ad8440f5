"""Constants stored beside a model file: read only from inside its folder, or not at all.

Tensors lie in many places of a model: among initializers, as values and indices of sparse ones, in
attributes, in the subgraphs of nodes, in local functions, in training steps. The search asks
protobuf for the fields of every message instead of naming those places, so that none is forgotten.
"""

from collections.abc import Iterator
from os import fstat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
from google.protobuf.message import Message
from onnx import TensorProto, helper

from cloister.base.reading import open_regular, require_truths
from cloister.errors import ModelError
from cloister.graph.onnx.model_file import MAX_FILE_BYTES

PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Element types of which several share a byte."""


def messages(root: Message) -> Iterator[Message]:
    """A message and all messages inside it, at any depth; the inside of tensors is left out."""
    pending = [root]
    while pending:
        message = pending.pop()
        yield message
        if isinstance(message, TensorProto):
            continue  # nothing in a tensor is a tensor, and listing its fields copies its data
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data lie outside its message, or it says so in any way."""
    return bool(tensor.data_location != TensorProto.DEFAULT or tensor.external_data)


def require_inside(model: Message, *, name: str) -> None:
    """Make sure that all data of a model are in the model.

    Raises   ModelError naming a tensor whose data are not
    """
    for message in messages(model):
        if isinstance(message, TensorProto) and is_external(message):
            raise ModelError(
                f"{name}: constant {message.name!r} lies in another file; save the model with all "
                "data inside"
            )


def require_stored_truths(model: Message, *, name: str) -> None:
    """Make sure that the truth values of a model, whose data are all inside, are 0 and 1.

    Raises   ModelError naming a tensor that has others
    """
    for message in messages(model):
        if isinstance(message, TensorProto) and message.data_type == TensorProto.BOOL:
            what = f"{name}: constant {message.name!r}"
            require_truths(np.frombuffer(message.raw_data, np.bool_), what, kind=ModelError)


def read_external_data(model: Message, *, folder: Path | None, name: str) -> None:
    """Put all external data into the model.

    Raises ModelError when a location leaves the folder or is no regular file, when the file does
    not hold exactly the tensor's data, or when a model's data exceed 2 GiB together.
    """
    total = 0
    for tensor in messages(model):
        if not isinstance(tensor, TensorProto) or not is_external(tensor):
            continue
        if tensor.data_location == TensorProto.DEFAULT:
            del tensor.external_data[:]  # left over from a model that was stored otherwise
            continue
        what = f"{name}: constant {tensor.name!r}"
        if folder is None:
            raise ModelError(f"{what} lies in another file; load the model by its path")
        nbytes = _data_bytes(tensor, what)
        total += nbytes
        if total > MAX_FILE_BYTES:
            raise ModelError(f"{what}: with it the model's data exceed 2 GiB; use a smaller model")
        tensor.raw_data = _data(tensor, folder, nbytes, what)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _data(tensor: TensorProto, folder: Path, nbytes: int, what: str) -> bytes:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(folder, fields.get("location", ""), what)
    try:
        offset = int(fields.get("offset") or 0)
        length = int(fields["length"]) if fields.get("length") else None
        with open_regular(path) as file:
            return _read(file, offset, length, nbytes, f"{what}: its external data {path.name!r}")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise ModelError(
            f"{what}: its external data {path.name!r} cannot be read ({reason}); keep the file "
            "beside the model"
        ) from None


def _read(file: BinaryIO, offset: int, length: int | None, nbytes: int, what: str) -> bytes:
    """Exactly a tensor's bytes; without a length they end with the file."""
    available = fstat(file.fileno()).st_size - offset
    length = available if length is None else length
    # Before anything is allocated: a file of holes can state any size.
    if offset < 0 or available < 0 or length > available or length != nbytes:
        raise ModelError(f"{what} holds {length} B of {available} B, its shape takes {nbytes} B")
    file.seek(offset)
    data = file.read(nbytes)
    if len(data) != nbytes:
        raise ModelError(f"{what} is too short")
    return data


def _data_bytes(tensor: TensorProto, what: str) -> int:
    """The size that type and shape state."""
    elements = 1
    for size in tensor.dims:
        elements *= size
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(f"{what}: its element type {tensor.data_type} is unknown") from None
    if dtype.hasobject:
        raise ModelError(f"{what}: texts cannot lie in another file; save them in the model")
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"{what} has an absurd shape; export the model again")
    bits = PACKED_BITS.get(TensorProto.DataType.Name(tensor.data_type), 8 * dtype.itemsize)
    return -(-elements * bits // 8)


def _inside(folder: Path, location: str, what: str) -> Path:
    """The file a location names, which must lie in the model's folder, links followed."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    root = folder.resolve()
    if not location or absolute or ".." in parts or "\0" in location:
        raise ModelError(f"{what}: external data {location!r} lies outside the model's folder")
    try:
        path = (root / location).resolve()
    except (OSError, RuntimeError):  # links that lead in a circle, a name that is too long
        raise ModelError(f"{what}: external data {location!r} is not there") from None
    if not path.is_relative_to(root):
        raise ModelError(f"{what}: external data {location!r} leads outside the model's folder")
    return path
