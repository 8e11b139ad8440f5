"""Free sizes of a model that is planned: those of the samples it is calibrated on.

A linear node goes out only if its shape is known. Of the free sizes, the batch can stay free: a
worker is sent any number of samples. If more weights go out with the batch as a number too, because
a shape inside follows from it in a way that cannot be stated, the batch is bound as well.
"""

from collections.abc import Mapping

import numpy as np

from cloister.graph.batch import bound_sizes, cut
from cloister.graph.graph import BATCH, LINEAR_OPS, Graph, Node
from cloister.graph.onnx.specialise import specialise
from cloister.graph.ops.linear_nodes import is_linear
from cloister.plan.quantise import CALIBRATION_BATCH
from cloister.plan.quantised import Ranges

PRODUCTS = (*LINEAR_OPS, "Einsum")
Feeds = Mapping[str, np.ndarray]


def bound_parts(model: Graph, samples: Feeds) -> list[tuple[Graph, Feeds]]:
    """The model with the sizes of samples, and these samples.

    With a batch that is bound there are several: one for each part of the samples.
    """
    others = {name: n for name, n in bound_sizes(model, samples).items() if name != BATCH}
    graph = specialise(model, others)
    # A hidden end takes one sample after the other.
    stays = graph.batch is not None or any(node.is_module for node in graph.nodes)
    if stays or not any(_stays_inside(graph, node) for node in graph.nodes):
        return [(graph, samples)]
    known: dict[int, Graph] = {}
    parts: list[tuple[Graph, Feeds]] = []
    for part in cut(graph, samples, CALIBRATION_BATCH):
        sizes = bound_sizes(model, part)
        count = sizes[BATCH]
        if count not in known:
            known[count] = specialise(model, sizes)
        if not parts and _weights_sent(known[count]) <= _weights_sent(graph):
            return [(graph, samples)]
        parts.append((known[count], part))
    return parts


def largest(measured: list[dict[str, Ranges]]) -> dict[str, Ranges]:
    """The largest ranges of each node, over parts of the samples."""
    found = dict(measured[0])
    for ranges in measured[1:]:
        for name, part in ranges.items():
            before = found.get(name, part)
            same = len(before) == len(part)
            pairs = zip(before, part, strict=True) if same else [(*before, *part)]
            found[name] = tuple(map(max, pairs))
    return found


def _stays_inside(graph: Graph, node: Node) -> bool:
    """Whether a product with a constant matrix is not known to be linear over the batch."""
    if node.domain or node.op not in PRODUCTS or is_linear(graph, node):
        return False
    constants = [graph.constants[value] for value in node.inputs[:2] if value in graph.constants]
    return any(array.dtype.kind == "f" for array in constants)


def _weights_sent(graph: Graph) -> int:
    linear = (node for node in graph.nodes if is_linear(graph, node))
    return sum(graph.constants[node.inputs[1]].size for node in linear)
