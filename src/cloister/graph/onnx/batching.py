"""A dynamic batch axis for models that were exported with a fixed one.

The first axis of every input but scalars is freed, and the batch baked into Reshape targets with
it. The result is kept only if shape inference proves that every output that depends on the batch
still starts with it, and if two batches run together give the same outputs as alone; otherwise the
model keeps its fixed batch.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, cycle, islice

import numpy as np
import onnxruntime as ort
from numpy.random import Generator, default_rng  # noqa: TID251  (sample inputs, no secrets)

from cloister.errors import ModelError
from cloister.graph.batch import batch_axis, batched_values, element_type, part
from cloister.graph.graph import BATCH, Graph, LongList
from cloister.graph.inference import with_input_sizes, with_types
from cloister.graph.onnx.mixing import mixes_samples
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.output_values import are_maps
from cloister.graph.weights_as_inputs import WeightsAsInputs

TOLERANCE = 1e-3
MAX_TRIED_ELEMENTS = 1 << 26
"""Of one value: 256 MiB in float32."""
TRIED_S = 60.0
"""Of one run, after which a model's batch stays as it is; a Loop may have no end."""
MOST_DRAWS, MOST_DRAWN_ELEMENTS = 16, 1 << 24
COUNTS = (3, 1, 20, 2)
"""Samples of a batch that is tried: of few, the last ones may be all."""
FREE_SIZES = (3, 64, 1024, 16384)
"""Sizes that are tried where only the caller knows them; unlike those of one and of two samples.
The larger ones are for models whose windows do not fit into the smaller."""
MAX_SAMPLE_ELEMENTS = 1 << 20
"""Of one input with a size that is tried."""


def with_dynamic_batch(graph: Graph) -> Graph:
    """The graph with a dynamic batch, or the same graph where that is impossible."""
    if not isinstance(graph.shared_size, int):
        return graph
    try:
        freed = _freed(graph, graph.shared_size)
        proved = _proved(graph, freed) and joining_axes(graph, freed) is not None
        return freed if proved else graph
    except ModelError:
        return graph
    except ORT_ERRORS:
        return graph


def _freed(graph: Graph, batch: int) -> Graph:
    sizes = {name: known for name in graph.required_inputs if (known := graph.sizes(name))}
    graph = with_input_sizes(graph, {name: (BATCH, *known[1:]) for name, known in sizes.items()})
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
        takes_batch = (graph.sizes(node.inputs[0]) or ())[:1] == (BATCH,)
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
    batched = batched_values(freed)
    for name in graph.outputs:
        before, after = graph.sizes(name), freed.sizes(name)
        if before is None or after is None or before[1:] != after[1:]:
            return False
        if after[:1] != ((BATCH,) if name in batched else before[:1]):
            return False
        if any(isinstance(size, str) and size not in graph.free_sizes for size in before[1:]):
            return False
    return True


def joining_axes(graph: Graph, freed: Graph) -> dict[str, int] | None:
    """Axes on which the outputs of two batches are joined to those of both in one.

    The two are run alone in `graph` and together in `freed`. None if an output of theirs differs,
    and for operators that mix samples by an amount which the comparison may not see.
    """
    if mixes_samples(freed):
        return None
    _require_tryable(graph)
    fixed = WeightsAsInputs(graph)
    dynamic = fixed if freed is graph else WeightsAsInputs(freed)
    for size in _tried(graph):
        # Of sizes that are too small for one sample, some kernels end the process with several.
        if graph.free_sizes and not _runs(graph, fixed, {BATCH: 1}, size):
            continue
        try:
            return _joins(graph, freed, fixed, dynamic, size)
        except ORT_ERRORS:
            continue
    return None


def _joins(
    graph: Graph, freed: Graph, fixed: WeightsAsInputs, dynamic: WeightsAsInputs, size: int
) -> dict[str, int] | None:
    """See `joining_axes`; `size` is that of the other free sizes."""
    rng = default_rng(0)
    free = dict.fromkeys(graph.free_sizes, size)
    found = []
    for count in islice(cycle(COUNTS), _draws(graph, size)):
        found.append(_joining_axes(graph, freed, fixed, dynamic, {BATCH: count, **free}, rng))
        # One draw that mixes samples is enough, and runs of a model may take long.
        if found[-1] is None or found[-1] != found[0]:
            return None
    return found[0]


def _draws(graph: Graph, size: int) -> int:
    """How often a model is run: outputs that are truths or positions may agree by chance."""
    if graph.free_sizes and size > FREE_SIZES[1]:
        return 1
    made = (math.prod(size or 1 for size in known.shape) for known in graph.types.values())
    return max(1, min(MOST_DRAWS, MOST_DRAWN_ELEMENTS // max(sum(made), 1)))


def _tried(graph: Graph) -> tuple[int, ...]:
    """The sizes to try for a graph's free sizes; any one where it has none."""
    shapes = [graph.sizes(name) or () for name in graph.inputs]

    def largest(size: int) -> int:
        return max(math.prod(size if isinstance(s, str) else s for s in shape) for shape in shapes)

    if not graph.free_sizes:
        return FREE_SIZES[:1]
    return tuple(
        size for size in FREE_SIZES if size == FREE_SIZES[0] or largest(size) <= MAX_SAMPLE_ELEMENTS
    )


def _joining_axes(
    graph: Graph,
    freed: Graph,
    fixed: WeightsAsInputs,
    dynamic: WeightsAsInputs,
    sizes: Mapping[str, int],
    rng: Generator,
) -> dict[str, int] | None:
    """See `joining_axes`; `sizes` are those of free axes."""
    axes = {name: batch_axis(freed, name) for name in graph.inputs}
    first = {name: _sample(graph, name, rng, sizes) for name in graph.inputs}
    other = {
        name: first[name] if axes[name] is None else _sample(graph, name, rng, sizes)
        for name in graph.inputs
    }
    pairs = {name: [first[name], other[name]] for name in graph.inputs}
    begin = {n: a if (axis := axes[n]) is None else part(a, axis, 0, 1) for n, a in first.items()}
    alone = [_run(fixed, feeds) for feeds in (first, other)]
    together = {name: _joined(pairs[name], axes[name]) for name in graph.inputs}
    both = _run(dynamic, together)
    one = _run(dynamic, begin)
    batched = batched_values(freed)
    joins: dict[str, int] = {}
    for i, name in enumerate(graph.outputs):
        apart = [outputs[i] for outputs in alone]
        axis = batch_axis(freed, name)
        if axis is None and name in batched:
            axis = _growing_axis(apart, both[i])
            if axis is None:
                return None
        if not _agree(apart, both[i], one[i], axis):
            return None
        if axis is not None:
            joins[name] = axis
    return joins


def runs(graph: Graph, numbers: Mapping[str, int]) -> bool:
    """Whether ONNX Runtime computes a graph with these numbers for its inputs' symbols."""
    try:
        _require_tryable(graph)
        session = WeightsAsInputs(graph)
        return any(_runs(graph, session, numbers, size) for size in _tried(graph))
    except ModelError:
        return False
    except ORT_ERRORS:
        return False


def _runs(graph: Graph, session: WeightsAsInputs, numbers: Mapping[str, int], size: int) -> bool:
    sizes = {**dict.fromkeys(graph.free_sizes, size), **numbers}
    feeds = {name: _sample(graph, name, default_rng(0), sizes) for name in graph.inputs}
    try:
        _run(session, feeds)
    except ORT_ERRORS:
        return False
    return True


def _require_tryable(graph: Graph) -> None:
    """Refuse to run what a small file may make large: then the batch stays as it is.

    Raises   ModelError
    """
    made = (shape.shape for name, shape in graph.types.items() if name not in graph.constants)
    largest = max((math.prod(size or 1 for size in shape) for shape in made), default=0)
    if largest > MAX_TRIED_ELEMENTS:
        raise ModelError(f"a value of {largest} elements is too large to be tried")


def _joined(arrays: list[np.ndarray], axis: int | None) -> np.ndarray:
    return arrays[0] if axis is None else np.concatenate(arrays, axis)


def _growing_axis(alone: list[np.ndarray], both: np.ndarray) -> int | None:
    """The one axis that is twice as long for both as for each alone."""
    if are_maps(both):
        return 0 if len(both) == sum(map(len, alone)) else None
    if not isinstance(both, np.ndarray) or alone[0].shape != alone[1].shape:
        return None
    if both.ndim != alone[0].ndim:
        return None
    grown = np.flatnonzero(np.not_equal(both.shape, alone[0].shape))
    if len(grown) != 1 or both.shape[grown[0]] != 2 * alone[0].shape[grown[0]]:
        return None
    return int(grown[0])


def _agree(alone: list[np.ndarray], both: np.ndarray, one: np.ndarray, axis: int | None) -> bool:
    """Whether two batches are in `both` what they are alone, and `one` is the first's beginning."""
    if axis == 0 and all(map(are_maps, (*alone, both, one))):
        maps = list(chain.from_iterable(alone))
        pairs = [*zip(both, maps, strict=True), *zip(one, alone[0], strict=False)]
        return all(_close_maps(found, wanted) for found, wanted in pairs)
    if not all(isinstance(array, np.ndarray) for array in (*alone, both, one)):
        return False
    if axis is None:
        return all(_close(found, alone[0]) for found in (alone[1], both, one))
    if len({(*a.shape[:axis], *a.shape[axis + 1 :]) for a in (*alone, both, one)}) != 1:
        return False
    begin = part(alone[0], axis, 0, one.shape[axis])
    return _close(both, np.concatenate(alone, axis)) and _close(one, begin)


def _sample(graph: Graph, name: str, rng: Generator, numbers: Mapping[str, int]) -> np.ndarray:
    if name in graph.defaults:
        return graph.defaults[name]
    sizes = graph.sizes(name) or ()
    shape = [numbers[size] if isinstance(size, str) else size for size in sizes]
    dtype = element_type(graph, name)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    if dtype.kind in "iub":
        return np.asarray(rng.integers(0, 2, shape), dtype)
    if dtype.kind == "O":
        return np.asarray(rng.choice(_words(graph), shape), dtype)
    raise ModelError(f"no sample values of type {dtype}")


def _words(graph: Graph) -> list[str]:
    """Texts that a model tells apart: others would all have one output."""
    values = (value for node in graph.nodes for value in node.attributes.values())
    lists = (value.texts if isinstance(value, LongList) else value for value in values)
    words = (one for value in lists if isinstance(value, tuple) for one in value)
    return [word for word in words if isinstance(word, str)] or ["a", "b"]


def _close_maps(found: Mapping[object, object], wanted: Mapping[object, object]) -> bool:
    return found.keys() == wanted.keys() and all(
        _close(np.asarray(found[key]), np.asarray(wanted[key])) for key in wanted
    )


def _close(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    # Of outputs that are small, and not all alike: probabilities of many classes, say.
    finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64))
    small = TOLERANCE * min(1.0, float(finite.mean()) if finite.size else 1.0)
    return bool(np.allclose(found, wanted, rtol=TOLERANCE, atol=small, equal_nan=True))


def _run(session: WeightsAsInputs, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, or one of ORT_ERRORS after a time, though a Loop has no end."""
    options = ort.RunOptions()
    timer = threading.Timer(TRIED_S, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return session.run(None, feeds, options=options)
    finally:
        timer.cancel()
