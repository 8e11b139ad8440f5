"""Sizes that follow from the batch where shape inference cannot follow them.

Exporters compute shapes with nodes: the batch times the number of steps, the end of a slice that
takes all samples. For a batch of a given number these nodes are constants. So the sizes are found
for a few numbers, and an axis that has k times each of them has k times the batch. A value that has
other sizes for another batch stops the request that meets it (trusted/values.py).

A value whose size follows from the batch in another way - the first eight samples, all pairs -
keeps the batch whole.
"""

from collections.abc import Sequence
from dataclasses import replace

from cloister.errors import ModelError
from cloister.graph.batch import times_batch
from cloister.graph.graph import Graph, OpaqueType, Size, TensorType
from cloister.graph.inference import is_known, with_types
from cloister.graph.onnx.mixing import BATCHES, with_batch
from cloister.graph.passes.folding import folded_types

ONE_AND_MORE = (1, *BATCHES)
"""Of one sample too, which a model may treat apart."""


def with_batch_sizes(graph: Graph) -> Graph:
    """The graph with the shapes of more values, in numbers and multiples of the batch.

    It is not separable where a shape is found that is neither.
    """
    made = (value for node in graph.nodes for value in node.outputs if value)
    unknown = [v for v in made if not is_known(graph.sizes(v)) and not _is_no_tensor(graph, v)]
    if not unknown:
        return graph
    batches = ONE_AND_MORE if graph.batch is None else ONE_AND_MORE[:1]
    try:
        found = [folded_types(with_batch(graph, batch)) for batch in batches]
    except ModelError:
        return graph  # a batch that the model does not take
    stated, separable = {}, graph.separable
    for value in unknown:
        types = [one[value] for one in found if value in one]
        if len(types) == len(batches):
            sizes = _sizes(types, batches)
            separable = separable and sizes is not None
            if sizes is not None:
                stated[value] = OpaqueType(types[0].dtype, sizes)
    graph = replace(graph, separable=separable, opaque={**graph.opaque, **stated})
    return with_types(graph) if stated else graph


def _is_no_tensor(graph: Graph, value: str) -> bool:
    return value in graph.opaque and bool(graph.opaque[value].proto)


def _sizes(types: Sequence[TensorType], batches: Sequence[int]) -> tuple[Size, ...] | None:
    """Sizes that hold for every batch; None where one is neither a number nor a multiple."""
    if len({(one.dtype, len(one.shape)) for one in types}) != 1:
        return None
    sizes: list[Size] = []
    for axis in zip(*(one.shape for one in types), strict=True):
        factor = (axis[0] or 0) // batches[0]
        if None not in axis and len(set(axis)) == 1:
            sizes.append(axis[0] or 0)
        elif axis == tuple(factor * batch for batch in batches):
            sizes.append(times_batch(factor))
        else:
            return None
    return tuple(sizes)
