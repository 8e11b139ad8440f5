"""The free sizes of a model's inputs that are its batch.

ONNX names a free size, and two names may mean one size: some exporters number the first axis of
every input. A model with several names is run: names of first axes that ONNX Runtime accepts with
different sizes are different, the others are one. The batch is the size of the values that most
weights multiply, since a worker is sent rows of the batch only; among equals, one that can be cut.
Values with another free size are passed whole to every part of a batch.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from cloister.errors import InputError
from cloister.graph.batch import batch_factor, computed_from
from cloister.graph.graph import BATCH, LINEAR_OPS, Graph, OpaqueType
from cloister.graph.inference import with_input_sizes
from cloister.graph.onnx.batching import runs
from cloister.graph.ops.linear_nodes import rows_per_sample


def batch_choices(graph: Graph) -> Iterator[Graph]:
    """The graph typed with each of its possible batches, in the order of the inputs.

    Its inputs are opaque, their free sizes named. At least one graph is given.
    """
    symbols = first_symbols([graph.opaque[name] for name in graph.inputs])
    while True:
        batch = _one_size(graph, symbols)
        yield _typed(graph, batch)
        symbols = [symbol for symbol in symbols if symbol not in batch]
        if not symbols:
            return


def require_free(dims: Mapping[str, int], free: Collection[str]) -> None:
    """Go on only with numbers for sizes that are free.

    Raises   InputError naming the free sizes
    """
    for name, size in dims.items():
        if name not in free:
            names = ", ".join(map(repr, free)) or "none"
            raise InputError(f"size {name!r}: the model's free sizes are {names}; name one of them")
        if not isinstance(size, int) or size < 0:
            raise InputError(f"size {name!r}: {size} is no number of elements; give 0 or more")


def linear_weights(graph: Graph) -> int:
    """How many constant weights multiply rows of the batch."""
    given = computed_from(graph, graph.inputs)
    total = 0
    for node in graph.nodes:
        if node.op not in LINEAR_OPS or len(node.inputs) < 2 or node.inputs[1] in given:
            continue
        sizes = graph.sizes(node.inputs[1]) or ()
        first = (graph.sizes(node.inputs[0]) or ())[:1]
        if first == (BATCH,) or rows_per_sample(graph, node) is not None:
            total += math.prod(size for size in sizes if isinstance(size, int))
    return total


def first_symbols(inputs: Iterable[OpaqueType]) -> list[str]:
    """The names of free first sizes, each once."""
    first = (size for known in inputs for size in (known.sizes or ())[:1])
    return list(dict.fromkeys(size for size in first if isinstance(size, str) and size))


def _one_size(graph: Graph, symbols: list[str]) -> set[str]:
    """The first symbol and those that must have its size.

    Of a model that does not run on samples nothing is known: its batch stays whole.
    """
    others = symbols[1:]
    numbers = dict.fromkeys(first_symbols([graph.opaque[name] for name in graph.inputs]), 2)
    if not others:
        return set(symbols)
    if not runs(graph, numbers) or runs(graph, {**numbers, symbols[0]: 3}):
        return {symbols[0]}
    return {symbols[0], *(name for name in others if not runs(graph, {**numbers, name: 3}))}


def _typed(graph: Graph, batch: set[str]) -> Graph:
    """The graph with the symbols of the batch as such; inputs with others stay opaque."""
    sizes = {}
    for name in graph.inputs:
        sizes[name] = tuple(
            BATCH if size in batch else size if batch_factor(size) is None else f"{size}_"
            for size in graph.opaque[name].sizes or ()
        )
    return with_input_sizes(graph, sizes)
