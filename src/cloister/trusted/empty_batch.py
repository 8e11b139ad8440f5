"""The outputs of a batch without a sample: nothing is sent to anybody."""

import numpy as np

from cloister.errors import RangeError
from cloister.graph.batch import Feeds, batch_axis, bound_size, bound_sizes, element_type
from cloister.graph.graph import Graph
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.weights_as_inputs import WeightsAsInputs
from cloister.plan.plan import Plan


def empty_outputs(plan: Plan, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs of no sample by name, of the model's types and sizes.

    Where a size or a value is known only from a run, ONNX Runtime runs the whole model inside.

    Raises   RangeError if that is not possible
    """
    graph = plan.template or plan.graph
    stated = _stated(graph, feeds)
    if stated is not None:
        return stated
    unknown = "no inputs: the batch is empty, and this model needs a sample to tell its outputs"
    if plan.modules or not plan.float_weights:
        raise RangeError(unknown)
    try:
        found = WeightsAsInputs(graph).run(None, feeds)
    except ORT_ERRORS:
        raise RangeError(unknown) from None
    return dict(zip(graph.outputs, found, strict=True))


def _stated(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray] | None:
    """Outputs that follow from the model's shapes; None if one of them does not."""
    if graph.batch is not None or not graph.separable:
        return None
    bound = bound_sizes(graph, feeds)
    outputs = {}
    for name in graph.outputs:
        whole = feeds.get(name, graph.constants.get(name))
        if whole is not None:
            outputs[name] = np.array(whole)
            continue
        known, axis = graph.sizes(name), batch_axis(graph, name)
        if known is None or axis is None:
            return None
        sizes = [bound_size(size, bound) for size in known]
        sizes[axis] = 0
        if None in sizes:
            return None
        outputs[name] = np.zeros([size or 0 for size in sizes], element_type(graph, name))
    return outputs
