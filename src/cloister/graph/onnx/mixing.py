"""What mixes the samples of a batch, by the shapes of values and by the number of samples.

A run of two samples shows most of it, but not what happens for some inputs only (a maximum of the
batch beyond a limit), and not what happens for more samples (a batch of more than four). So a
model mixes samples, as far as is known, if a node makes a value without the batch of one that has
it, or if numbers that follow from the number of samples are no multiples of it.
"""

from collections.abc import Sequence

import numpy as np

from cloister.errors import ModelError
from cloister.graph.captures import every_node, subgraphs
from cloister.graph.graph import BATCH, Graph, Node, Size, Subgraph
from cloister.graph.inference import with_input_sizes
from cloister.graph.part import reads
from cloister.graph.passes.folding import fold_constants

MIXING = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")
"""Operators that take one scale from the whole batch, so that a run may differ by little."""
FLATTENING = ("Hardmax", "LogSoftmax", "Softmax")
ALONG_AN_AXIS = (*FLATTENING, "LayerNormalization", "LpNormalization", "TopK")
"""Operators that combine what is along an axis; the first ones, in old operator sets, what is along
all later axes too."""
SIZES = ("Shape", "Size")
BATCHES = (2, 3, 67)
"""Numbers of samples that a graph is typed for; the last is a prime above the bounds that models
set."""
SOFTMAX_OF_ONE_AXIS = 13
"""The first operator set whose Softmax does not take all later axes too."""


def mixes_samples(graph: Graph) -> bool:
    """Whether a graph with a free batch may mix its samples in a way that few runs show."""
    if any(node.op in MIXING for node in every_node(graph.nodes)):
        return True
    data = _data(graph)
    if any(_gathers(graph, node, data) or _sums(graph, node, data) for node in graph.nodes):
        return True
    if not any(node.op in (*SIZES, "If", "Loop") for node in every_node(graph.nodes)):
        return False
    try:
        found = [fold_constants(with_batch(graph, batch)) for batch in BATCHES]
    except ModelError:
        return True  # it does not take these batches, so nothing is known of what it counts
    # A branch of known condition is one for these samples; another may be taken for more.
    if len({tuple((node.op, node.outputs) for node in one.nodes) for one in found}) > 1:
        return True
    return any(_chooses(node, data) for node in found[0].nodes) or _counts(graph, found)


def with_batch(graph: Graph, batch: int) -> Graph:
    """The graph for one number of samples, typed anew."""
    sizes = {name: graph.sizes(name) or () for name in graph.inputs}
    return with_input_sizes(
        graph,
        {
            name: tuple(batch if size == BATCH else size for size in known)
            for name, known in sizes.items()
        },
    )


def carries_batch(graph: Graph, value: str) -> bool:
    """Whether a value may have an axis whose size follows from the batch."""
    if not value or value in graph.constants:
        return False
    sizes = graph.sizes(value)
    return sizes is None or any(may_be_batch(graph, size) for size in sizes)


def may_be_batch(graph: Graph, size: Size) -> bool:
    """Whether a size may follow from the batch; another free first size may be the same number."""
    first = [(graph.sizes(name) or ("",))[0] for name in graph.inputs]
    return isinstance(size, str) and (size not in graph.free_sizes or size in first)


def _data(graph: Graph) -> frozenset[str]:
    """Values that depend on what is in the batch, and not only on how many samples it has."""
    found = {name for name in graph.inputs if BATCH in (graph.sizes(name) or ())}
    for node in graph.nodes:
        if node.op not in SIZES and not found.isdisjoint(reads(node)):
            found.update(value for value in node.outputs if value)
    return frozenset(found)


def _gathers(graph: Graph, node: Node, data: frozenset[str]) -> bool:
    """Whether a node makes a value without the batch of one that has it."""
    if node.op in SIZES or not any(v in data and carries_batch(graph, v) for v in reads(node)):
        return False
    return any(value and not carries_batch(graph, value) for value in node.outputs)


def _sums(graph: Graph, node: Node, data: frozenset[str]) -> bool:
    """Whether a node combines what different samples have, and its result has the batch still."""
    if node.domain or data.isdisjoint(node.inputs):
        return False
    return any(may_be_batch(graph, size) for size in _combined(graph, node))


def _combined(graph: Graph, node: Node) -> Sequence[Size]:
    """Sizes of the axes along which a node combines entries, as far as they are known."""
    first, *others = ((graph.sizes(value) or ()) if value else () for value in node.inputs)
    if node.op == "MatMul":
        return (*first[-1:], *(others[0][-2:-1]))
    if node.op == "Gemm":
        across = bool(node.attributes.get("transA", 0)), not node.attributes.get("transB", 0)
        return tuple(
            sizes[0 if turned else -1]
            for sizes, turned in zip((first, others[0]), across, strict=True)
            if sizes
        )
    if node.op == "CumSum":
        given = graph.constants.get(node.inputs[1])
        number = int(given.item()) if given is not None and given.size == 1 else len(first)
        return (first[number],) if -len(first) <= number < len(first) else first
    if node.op in ALONG_AN_AXIS:
        old = graph.opset < SOFTMAX_OF_ONE_AXIS
        standard = 1 if old and node.op in FLATTENING else -1
        axis = node.attributes.get("axis", standard)
        later = node.op == "LayerNormalization" or (old and node.op in FLATTENING)
        if isinstance(axis, int) and -len(first) <= axis < len(first):
            return first[axis % len(first) :] if later else (first[axis],)
    return ()


def _chooses(node: Node, data: frozenset[str]) -> bool:
    """Whether a node computes the samples in one of several ways, which a run may not take."""
    if node.op not in ("If", "Loop") or data.isdisjoint(reads(node)):
        return False
    inner = [one for body in subgraphs(node) for one in every_node(body.nodes)]
    return (
        node.op == "If"
        or any(one.op in ("If", *SIZES) for one in inner)
        or not all(map(_goes_on, subgraphs(node)))
    )


def _goes_on(body: Subgraph) -> bool:
    """Whether the body of a Loop leaves its condition as it is."""
    condition, _ = body.outputs[0]
    made = {node.outputs[0]: node for node in body.nodes}
    while condition in made and made[condition].op in ("Identity", "Cast"):
        condition = made[condition].inputs[0]
    fixed = condition in body.constants or (condition in made and made[condition].op == "Constant")
    return fixed or condition == body.inputs[1][0]


def _counts(graph: Graph, found: Sequence[Graph]) -> bool:
    """Whether numbers that nodes read follow from the batch, and are no multiples of it."""
    for value in _folded(graph, found[0]):
        arrays = [one.constants[value] for one in found if value in one.constants]
        if len(arrays) == len(found) and not _is_proportional(arrays):
            return True
    return False


def _folded(graph: Graph, found: Graph) -> frozenset[str]:
    """Constants that take the place of values which nodes made."""
    made = {value for node in graph.nodes for value in node.outputs}
    return frozenset(made.intersection(found.constants))


def _is_proportional(arrays: Sequence[np.ndarray]) -> bool:
    """Whether arrays are the same for all numbers of samples, or multiples of these numbers.

    An array with an entry by sample has the same for each sample, or the sample's number.
    """
    if any(array.dtype.kind not in "fiub" for array in arrays):
        return len({array.tobytes() for array in arrays}) == 1
    if len({array.shape for array in arrays}) == 1:
        return _is_multiple(arrays)
    rows = [_rows(one, arrays[0].shape, n) for one, n in zip(arrays, BATCHES, strict=True)]
    if any(one is None for one in rows):
        return False
    by_sample = [one.astype(np.float64) for one in rows if one is not None]
    steps = [np.diff(one, axis=0) for one in by_sample]
    return (
        all((step == step[0]).all() for step in steps)
        and _is_multiple([one[0] for one in by_sample])
        and _is_multiple([one[0] for one in steps])
    )


def _is_multiple(arrays: Sequence[np.ndarray]) -> bool:
    first, *others = arrays
    wide = np.asarray(first, np.float64) / BATCHES[0]
    return all(
        bool(((one == first) | np.isclose(one, wide * batch, rtol=1e-6, atol=0)).all())
        for one, batch in zip(others, BATCHES[1:], strict=True)
    )


def _rows(array: np.ndarray, first: Sequence[int], batch: int) -> np.ndarray | None:
    """An array with its samples in front; None where no single axis has a multiple of them."""
    if array.ndim != len(first):
        return None
    axes = [i for i, size in enumerate(first) if size % BATCHES[0] == 0]
    grown = [
        i for i in axes
        if array.shape[i] == first[i] // BATCHES[0] * batch
        and (*array.shape[:i], *array.shape[i + 1 :]) == (*first[:i], *first[i + 1 :])
    ]  # fmt: skip
    if not grown:
        return None
    moved = np.moveaxis(array, grown[0], 0)
    return moved.reshape(batch, -1)
