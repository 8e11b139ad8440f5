"""Plain NumPy evaluation of a graph, node by node: the meaning of a model.

Operators outside the table, and variants the table leaves open, are evaluated by ONNX Runtime one
node at a time.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cloister.errors import ModelError, ShapeError, UnsupportedError
from cloister.graph.captures import captured_values
from cloister.graph.graph import Graph, Node
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ops import table
from cloister.graph.ops.call import Call, NotCovered
from cloister.graph.ort_session import ORT_ERRORS, runtime_session


def interpret(
    graph: Graph, feeds: Mapping[str, np.ndarray], *, wanted: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """All outputs of a model and the `wanted` values, by name.

    Raises ShapeError for missing inputs, ModelError when a node's inputs do not fit together,
    UnsupportedError for a node that cannot be evaluated.
    """
    missing = [name for name in graph.required_inputs if name not in feeds]
    if missing:
        raise ShapeError(f"input {missing[0]!r}: no value given")
    values: dict[str, np.ndarray] = {**graph.constants, **graph.defaults, **feeds}
    for node in graph.nodes:
        values.update(evaluate(graph, node, values))
    unknown = [name for name in wanted if name not in values]
    if unknown:
        raise ModelError(f"value {unknown[0]!r}: the model has no such value")
    return {name: values[name] for name in (*graph.outputs, *wanted)}


def evaluate(graph: Graph, node: Node, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of one node, from the values it reads."""
    spec = table.find(node)
    if spec is not None:
        inputs = [values[name] if name else None for name in node.inputs]
        outputs = sum(1 for name in node.outputs if name)
        try:
            # As in ONNX Runtime, a result may be NaN or infinite.
            with np.errstate(all="ignore"):
                result = spec.evaluate(Call(inputs, node.attributes, outputs, graph.opset))
        except NotCovered:
            pass
        except (ValueError, TypeError, IndexError, np.exceptions.AxisError) as error:
            raise ModelError(f"node {node.name!r} ({node.op}): {_line(error)}") from error
        else:
            return {node.outputs[0]: result}
    return evaluate_with_runtime(graph, node, values)


def evaluate_with_runtime(
    graph: Graph, node: Node, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of one node, by ONNX Runtime.

    Raises UnsupportedError when it cannot run the node.
    """
    read = dict.fromkeys(
        name
        for name in (*node.inputs, *sorted(captured_values(node)))
        if name and name not in graph.constants
    )
    outputs = [name for name in node.outputs if name]
    try:
        model = model_bytes(graph, nodes=(node,), inputs=tuple(read), outputs=tuple(outputs))
        session = runtime_session(model)
        found = session.run(outputs, {name: values[name] for name in read})
    except ORT_ERRORS as error:
        raise UnsupportedError(
            f"node {node.name!r} ({node.domain or 'ONNX'} {node.op}): ONNX Runtime cannot run it: "
            f"{_line(error)}"
        ) from error
    return dict(zip(outputs, found, strict=True))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
