"""ONNX Runtime on one graph: the fallback of the interpreter and the folder of constants."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from cloister.errors import UnsupportedError
from cloister.graph.captures import captured_values
from cloister.graph.export import to_model
from cloister.graph.graph import Graph, Node, TensorType
from cloister.graph.inference import one_line


class Engine:
    """A graph compiled by ONNX Runtime on one thread, without its own rewriting of the graph.

    Raises UnsupportedError when ONNX Runtime cannot run it.
    """

    def __init__(self, graph: Graph) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._outputs = graph.outputs
        self._name = graph.name
        try:
            data = to_model(graph).SerializeToString()
            self._session = ort.InferenceSession(data, options, ["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (its errors share no base class)
            raise UnsupportedError(
                f"{graph.name}: ONNX Runtime cannot run it: {one_line(error)}"
            ) from None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        try:
            found = self._session.run(list(self._outputs), dict(feeds))
        except Exception as error:  # noqa: BLE001  (its errors share no base class)
            raise UnsupportedError(
                f"{self._name}: ONNX Runtime failed: {one_line(error)}"
            ) from None
        return dict(zip(self._outputs, found, strict=True))


def run_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One node's outputs; `values` holds everything it reads."""
    read = [v for v in dict.fromkeys((*node.inputs, *sorted(captured_values(node)))) if v]
    inputs = [name for name in read if name not in graph.constants]
    alone = Graph(
        name=node.name,
        nodes=(node,),
        inputs=tuple(inputs),
        outputs=tuple(value for value in node.outputs if value),
        constants={name: values[name] for name in read if name not in inputs},
        types={name: TensorType(values[name].dtype, values[name].shape) for name in inputs},
        opset=graph.opset,
        domains=graph.domains,
    )
    return Engine(alone).run({name: values[name] for name in inputs})
