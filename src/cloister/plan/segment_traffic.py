"""What open nodes are sent and answer, as one segment that a worker runs whole."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from cloister.graph.graph import Graph
from cloister.graph.part import made_by, reads
from cloister.plan.protection import OPEN, Protection


class Traffic(NamedTuple):
    """Bytes for one input."""

    to_worker: int
    from_worker: int


def segment_traffic(graph: Graph, protections: Mapping[str, Protection]) -> dict[str, Traffic]:
    """By open node: the values that it is the first to read, and those of its own that return."""
    opened = [node for node in graph.nodes if protections[node.name] == OPEN]
    there = {*made_by(opened), *graph.constants}
    inside = (node for node in graph.nodes if protections[node.name] != OPEN)
    wanted = {*graph.outputs, *(value for node in inside for value in reads(node))}
    found = {}
    for node in opened:
        sent = set(reads(node)) - there
        there |= sent
        returned = wanted.intersection(node.outputs)
        found[node.name] = Traffic(_nbytes(graph, sent), _nbytes(graph, returned))
    return found


def _nbytes(graph: Graph, values: set[str]) -> int:
    known = [graph.types[value] for value in values if value in graph.types]
    return sum(math.prod(size or 1 for size in one.shape) * one.dtype.itemsize for one in known)
