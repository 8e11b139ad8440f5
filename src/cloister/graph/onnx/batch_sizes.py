"""Sizes that follow from the batch where shape inference cannot follow them.

Exporters compute shapes with nodes: the batch times the number of steps, the end of a slice that
takes all samples. For a batch of a given number these nodes are constants. So the sizes are found
for three numbers, and an axis that has k times each of them has k times the batch. A value that has
other sizes for another batch stops the request that meets it (trusted/values.py).
"""

from collections.abc import Sequence
from dataclasses import replace

from cloister.errors import ModelError
from cloister.graph.batch import times_batch
from cloister.graph.graph import BATCH, Graph, OpaqueType, Size, TensorType
from cloister.graph.inference import is_known, with_input_sizes, with_types
from cloister.graph.passes.folding import folded_types

BATCHES = (2, 3, 5)
"""Without a common factor, and none is the 1 that ONNX broadcasts."""


def with_batch_sizes(graph: Graph) -> Graph:
    """The graph with the shapes of more values, in numbers and multiples of the batch."""
    made = (value for node in graph.nodes for value in node.outputs if value)
    unknown = [value for value in made if not is_known(graph.sizes(value))]
    if not unknown:
        return graph
    batches = BATCHES if graph.batch is None else BATCHES[:1]
    try:
        found = [folded_types(_with_batch(graph, batch)) for batch in batches]
    except ModelError:
        return graph  # a batch that the model does not take
    stated = {}
    for value in unknown:
        types = [one[value] for one in found if value in one]
        sizes = _sizes(types, batches) if len(types) == len(batches) else None
        if sizes is not None:
            stated[value] = OpaqueType(types[0].dtype, sizes)
    return with_types(replace(graph, opaque={**graph.opaque, **stated})) if stated else graph


def _with_batch(graph: Graph, batch: int) -> Graph:
    """The graph for one number of samples, typed anew."""
    sizes = {name: graph.sizes(name) or () for name in graph.inputs}
    return with_input_sizes(
        graph,
        {
            name: tuple(batch if size == BATCH else size for size in known)
            for name, known in sizes.items()
        },
    )


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
