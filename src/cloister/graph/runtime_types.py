"""The types that ONNX Runtime infers: it knows operators of its own, which ONNX does not."""

import re
from collections.abc import Sequence

from cloister.graph.element_types import ELEMENT_TYPES
from cloister.graph.graph import Graph, OpaqueType, Size
from cloister.graph.ort_session import ORT_ERRORS, output_types
from cloister.graph.weights_as_inputs import model_without_weights

_ELEMENTS = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "string": 8, "bool": 9, "float16": 10, "double": 11, "uint32": 12, "uint64": 13,
    "bfloat16": 16,
}  # fmt: skip
"""ONNX's numbers of element types by ONNX Runtime's names."""
_TENSOR = re.compile(r"tensor\((\w+)\)")


def runtime_types(graph: Graph, values: Sequence[str]) -> dict[str, OpaqueType]:
    """What ONNX Runtime knows of these values; nothing of a graph that it does not take."""
    try:
        outputs = output_types(model_without_weights(graph, values, inferred=True))
    except ORT_ERRORS:
        return {}
    found = {}
    for name, kind, shape in outputs:
        tensor = _TENSOR.fullmatch(kind)
        if tensor is not None and tensor[1] in _ELEMENTS:
            found[name] = OpaqueType(ELEMENT_TYPES[_ELEMENTS[tensor[1]]], _sizes(shape))
    return found


def _sizes(shape: Sequence[int | str | None]) -> tuple[Size, ...] | None:
    """Sizes as ONNX Runtime states them: none for a scalar, and none for an unknown rank."""
    return tuple("" if size is None else size for size in shape) if shape else None
