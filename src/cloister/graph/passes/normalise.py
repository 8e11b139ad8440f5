"""Passes: pure functions from graph to graph that keep what the model computes."""

from collections.abc import Callable, Sequence

from cloister.graph.graph import Graph
from cloister.graph.legality import check
from cloister.graph.passes.biases import detach_biases
from cloister.graph.passes.flatten import fold_flatten
from cloister.graph.passes.float32_products import widen_halves
from cloister.graph.passes.folding import fold_constants, remove_identities
from cloister.graph.passes.fuse_linear import fold_batch_norm, fold_pads
from cloister.graph.passes.fused_operators import expand_fused
from cloister.graph.passes.integer_products import integer_products
from cloister.graph.passes.matrix_products import lower_products
from cloister.graph.passes.pool_means import fold_means
from cloister.graph.passes.range_scalars import scalar_ranges
from cloister.graph.passes.rewrite import without_unused
from cloister.graph.passes.split_rows import split_rows
from cloister.graph.passes.transposes import fold_transposes
from cloister.graph.passes.volumes import lower_volumes

Pass = Callable[[Graph], Graph]


def remove_unused(graph: Graph) -> Graph:
    """The graph without nodes and constants that no output depends on."""
    return without_unused(graph)


standard_passes: tuple[Pass, ...] = (
    fold_constants,
    scalar_ranges,
    integer_products,
    remove_identities,
    expand_fused,
    widen_halves,
    detach_biases,
    lower_products,
    fold_transposes,
    fold_pads,
    fold_batch_norm,
    lower_volumes,
    fold_flatten,
    fold_means,
    split_rows,
    remove_unused,
)


def run_passes(graph: Graph, passes: Sequence[Pass]) -> Graph:
    """All passes in order, with a legality check after each one.

    Raises ModelError naming the node that is not well-formed.
    """
    check(graph)
    for one in passes:
        graph = one(graph)
        check(graph)
    return graph


def prepare(graph: Graph) -> Graph:
    """The graph as planning wants it: constants, scales and padding folded, nothing unused."""
    return run_passes(graph, standard_passes)
