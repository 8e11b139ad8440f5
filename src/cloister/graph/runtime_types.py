"""Types of what ONNX Runtime's own operators make, which ONNX's shape inference does not know."""

from collections.abc import Collection

import onnx

from cloister.graph.element_types import ELEMENT_TYPES
from cloister.graph.graph import MICROSOFT, Graph, OpaqueType, Size
from cloister.graph.ort_session import ORT_ERRORS, runtime_session


def runtime_types(model: onnx.ModelProto, values: Collection[str]) -> dict[str, OpaqueType]:
    """The types of these values of a model; without those that ONNX Runtime does not know.

    The model is loaded and never run: its large constants may be inputs.
    """
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    try:
        session = runtime_session(asked.SerializeToString())
    except ORT_ERRORS:
        return {}
    found = ((one.name, _type(one.type, one.shape)) for one in session.get_outputs())
    return {name: known for name, known in found if known is not None}


def unknown_values(graph: Graph, found: dict[str, OpaqueType]) -> list[str]:
    """Values of ONNX Runtime's own operators whose shapes are not found."""
    return [
        value
        for node in graph.nodes
        if node.domain == MICROSOFT
        for value in node.outputs
        if value and found.get(value, OpaqueType()).sizes is None
    ]


def _type(text: str, shape: list[int | str | None]) -> OpaqueType | None:
    """A type as a session states it: tensor(float) and [2, 'batch', None]."""
    dtype = _BY_NAME.get(text)
    sizes: list[Size] = ["" if size is None else size for size in shape]
    return None if dtype is None else OpaqueType(dtype, tuple(sizes))


_BY_NAME = {
    f"tensor({onnx.TensorProto.DataType.Name(number).lower()})": dtype
    for number, dtype in ELEMENT_TYPES.items()
    if number in onnx.TensorProto.DataType.values()
}
