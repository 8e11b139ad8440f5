"""A model for inputs of certain sizes: numbers in the place of its free sizes.

Types are inferred anew, and the passes run again: with all sizes known, shapes that the model
computes are constants, and linear nodes behind them have a geometry. Nodes keep their names.
"""

from collections.abc import Mapping
from dataclasses import replace

from cloister.graph.graph import BATCH, Graph
from cloister.graph.inference import with_input_sizes
from cloister.graph.onnx.batch_sizes import with_batch_sizes
from cloister.graph.onnx.separability import with_separability
from cloister.graph.onnx.symbols import require_free
from cloister.graph.passes.normalise import prepare
from cloister.graph.passes.padding import with_explicit_padding


def specialise(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The model with these numbers for free sizes, of which BATCH may be one.

    Raises   InputError for a size that is not free, ModelError for sizes that do not go together
    """
    if not sizes:
        return graph
    require_free(sizes, [*([BATCH] if graph.batch is None else []), *graph.free_sizes])
    inputs = {name: graph.sizes(name) or () for name in graph.inputs}
    bound = with_input_sizes(
        graph,
        {
            name: tuple(sizes.get(one, one) if isinstance(one, str) else one for one in known)
            for name, known in inputs.items()
        },
    )
    tried = bound.separable and bound.batch is None
    if not tried:
        # Sizes that were tried may not have fitted, or operators not have been known to be linear.
        bound = replace(bound, separable=True, joins={})
    bound = with_batch_sizes(bound)
    if not tried:
        bound = with_separability(bound)
    return prepare(with_explicit_padding(bound))
