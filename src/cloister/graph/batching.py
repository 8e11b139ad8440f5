"""A dynamic batch axis for models that were exported with a fixed one.

The first axis of every input is freed, and the batch baked into Reshape targets with it. The result
is kept only if shape inference proves that every output still starts with the batch, and if two
batches run together give what they give alone; otherwise the model keeps its fixed batch.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator, default_rng  # noqa: TID251  (sample inputs, no secrets)

from cloister.errors import ModelError
from cloister.graph.fed import FedSession
from cloister.graph.graph import Graph, TensorType
from cloister.graph.inference import with_types
from cloister.graph.interpreter import ORT_ERRORS

TOLERANCE = 1e-3


def with_dynamic_batch(graph: Graph) -> Graph:
    """The graph with a dynamic batch, or the same graph where that is impossible."""
    batch = _fixed_batch(graph)
    if batch is None:
        return graph
    try:
        freed = _freed(graph, batch)
        return freed if _proved(graph, freed) and agrees(graph, freed) else graph
    except ModelError:
        return graph
    except ORT_ERRORS:
        return graph


def _fixed_batch(graph: Graph) -> int | None:
    """The one size that all inputs start with; None if it is dynamic or they differ."""
    first = {graph.types[name].shape[:1] for name in graph.inputs}
    if len(first) != 1:
        return None
    size = next(iter(first))
    return size[0] if size else None


def _freed(graph: Graph, batch: int) -> Graph:
    inputs = {name: graph.types[name] for name in graph.inputs}
    types = {name: TensorType(t.dtype, (None, *t.shape[1:])) for name, t in inputs.items()}
    graph = with_types(replace(graph, types=types))
    while True:
        changed = _reshape_freed(graph, batch)
        if changed is None:
            return graph
        graph = with_types(changed)


def _reshape_freed(graph: Graph, batch: int) -> Graph | None:
    """The graph with the first Reshape freed that takes a batch and states its size."""
    made = {node.outputs[0]: node for node in graph.nodes if node.op == "Constant"}
    for i, node in enumerate(graph.nodes):
        if node.op != "Reshape" or node.attributes.get("allowzero", 0):
            continue
        target = graph.constants.get(node.inputs[1])
        if target is None and node.inputs[1] in made:
            value = made[node.inputs[1]].attributes.get("value")
            target = value if isinstance(value, np.ndarray) else None
        known = graph.types.get(node.inputs[0])
        takes_batch = known is not None and known.shape[:1] == (None,)
        if target is None or not takes_batch or target.size == 0 or target[0] != batch:
            continue
        # In a Reshape target 0 means: as in the input.
        freed = np.concatenate([[0], target[1:]]).astype(np.int64)
        name = f"{node.name}_target"
        while name in graph.types or name in graph.constants:
            name += "_"
        nodes = list(graph.nodes)
        nodes[i] = replace(node, inputs=(node.inputs[0], name))
        return replace(graph, nodes=tuple(nodes), constants={**graph.constants, name: freed})
    return None


def _proved(graph: Graph, freed: Graph) -> bool:
    for name in graph.outputs:
        before, after = graph.types.get(name), freed.types.get(name)
        if before is None or after is None or before.shape[1:] != after.shape[1:]:
            return False
        if after.shape[:1] != (None,):
            return False
    return True


def agrees(graph: Graph, freed: Graph) -> bool:
    """Whether two sample batches give the same together in `freed` as alone in `graph`."""
    rng = default_rng(0)
    parts = [{name: _sample(graph.types[name], rng) for name in graph.inputs} for _ in range(2)]
    fixed, dynamic = (FedSession(one) for one in (graph, freed))
    alone = [fixed.run(None, part) for part in parts]
    both = dynamic.run(None, {n: np.concatenate([p[n] for p in parts]) for n in graph.inputs})
    one = dynamic.run(None, {name: array[:1] for name, array in parts[0].items()})
    return all(
        _close(both[i], np.concatenate([outputs[i] for outputs in alone]))
        and _close(one[i], alone[0][i][:1])
        for i in range(len(graph.outputs))
    )


def _sample(known: TensorType, rng: Generator) -> np.ndarray:
    shape = tuple(int(size or 1) for size in known.shape)
    if known.dtype.kind == "f":
        return rng.standard_normal(shape).astype(known.dtype)
    if known.dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(known.dtype)
    raise ModelError(f"no sample values of type {known.dtype}")


def _close(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    return bool(np.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
