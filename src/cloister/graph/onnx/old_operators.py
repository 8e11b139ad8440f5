"""Models of ONNX's operators before version 7, converted.

In version 7 arithmetic began to broadcast as NumPy does. Before, its second operand lay along an
axis that an attribute named, and PRelu's slopes along the second axis. ONNX's converter reads such
an axis as the first one, so these operands get the axes that they lack before it runs.
"""

import copy

import onnx
from onnx import NodeProto, helper, shape_inference, version_converter

from cloister.errors import UnsupportedError, one_line
from cloister.graph.onnx.external_data import messages

OLDEST = 7
"""The oldest version that is not converted."""
ARITHMETIC = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


def with_standard_operators(model: onnx.ModelProto, *, name: str) -> onnx.ModelProto:
    """The model, which may be changed, with operators of version 7 where it had older ones.

    Raises   UnsupportedError where that is impossible
    """
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    if opset >= OLDEST:
        return model
    inputs = {value.name: copy.deepcopy(value) for value in model.graph.input}
    _fix_free_sizes(model)
    try:
        # Shape inference knows most operators from version 6 on.
        converted = version_converter.convert_version(model, OLDEST - 1)
        _state_operands(converted, name)
        converted = version_converter.convert_version(converted, OLDEST)
    except (
        version_converter.ConvertError, shape_inference.InferenceError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        raise UnsupportedError(
            f"{name}: opset {opset} cannot be converted to {OLDEST} ({one_line(error)}); export "
            f"the model with opset {OLDEST} or newer"
        ) from None
    for value in converted.graph.input:
        value.CopyFrom(inputs[value.name])
    return converted


def _fix_free_sizes(model: onnx.ModelProto) -> None:
    """Give free sizes the number that the converter takes beside any other: it compares sizes."""
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_value = 1


def _state_operands(model: onnx.ModelProto, name: str) -> None:
    """Give second operands along an axis all the axes behind it.

    Raises   UnsupportedError for one whose place is not known
    """
    bodies = (message for message in messages(model.graph) if isinstance(message, onnx.GraphProto))
    for node in (node for body in bodies if body is not model.graph for node in body.node):
        if _axis(node) is not None:
            raise _unplaced(node, name)
    ranks = _ranks(model)
    stated: list[NodeProto] = []
    for i, node in enumerate(model.graph.node):
        axis = _axis(node)
        if axis is not None:
            first, second = (ranks.get(value) for value in node.input)
            if first is None or second is None or not 0 <= axis <= first - second:
                raise _unplaced(node, name)
            axes = list(range(second, first - axis))
            if axes:
                operand = f"{node.output[0]}_operand_{i}"
                stated.append(helper.make_node("Unsqueeze", [node.input[1]], [operand], axes=axes))
                node.input[1] = operand
            _remove(node, "axis")
        stated.append(node)
    kept = [copy.deepcopy(node) for node in stated]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _axis(node: NodeProto) -> int | None:
    """The axis of the first operand on which the second begins, unless they end on the same."""
    if node.domain or node.op_type not in (*ARITHMETIC, "PRelu"):
        return None
    if node.op_type == "PRelu":
        return 1
    return next((one.i for one in node.attribute if one.name == "axis"), None)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """How many axes values have, as far as it can be inferred."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    for node in own.graph.node:
        if _axis(node) is not None:
            # A result has the shape of the first operand.
            node.input[1] = node.input[0]
            _remove(node, "axis")
    graph = shape_inference.infer_shapes(own).graph
    found = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    return found | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _remove(node: NodeProto, attribute: str) -> None:
    kept = [copy.deepcopy(one) for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)


def _unplaced(node: NodeProto, name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name}: node {node.name!r} ({node.op_type}) of an opset before {OLDEST}: the axis of its "
        f"second operand is not known; export the model with opset {OLDEST} or newer"
    )
