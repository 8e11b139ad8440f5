"""Plans of models that are split, at every place where they may be."""

from collections.abc import Iterator
from itertools import combinations

import onnx

import nets
from cloister.errors import InputError, PlanError
from cloister.graph.graph import Graph
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.graph.split import Split, split_at
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit


def every_split(graph: Graph, *, ends: int = 2) -> list[Split]:
    """All splits that are named by so many nodes at most."""
    found: dict[frozenset[str], Split] = {}
    for count in range(1, ends + 1):
        for names in combinations([node.name for node in graph.nodes], count):
            try:
                split = split_at(graph, names)
            except InputError:
                continue
            found.setdefault(split.before, split)
    return list(found.values())


def split_plans(model: onnx.ModelProto, policy: str, *, ends: int = 2) -> Iterator[Plan]:
    """The plans of a policy at all splits that it takes."""
    graph = normalise.prepare(read.from_model(model, name="net"))
    samples, count = nets.samples(model, 4), 0
    for split in every_split(graph, ends=ends):
        try:
            plan = policies.make(
                policy, graph, calibration=samples, split=PlannedSplit(split.until)
            )
        except PlanError:
            continue  # one value would be hidden and shown
        count += 1
        yield plan
    assert count, "no split was taken, so nothing would be tested"
