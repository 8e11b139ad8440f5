"""The batch: which inputs and outputs carry it, on which axis, and how it is cut and joined.

A batch is free where the first axis of an input has no fixed size; all sizes of its symbol are the
number of samples (symbols.py). Values without that symbol - scalars, states, masks of one, tables,
constants - are the same for all samples, and so they are passed whole to every part of a batch. A
graph without a free batch runs whole.

An inner value may have a multiple of the batch on an axis: the rows of all time steps, or of all
heads. The symbol of that size is "7*batch".
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cloister.errors import RangeError, ShapeError, UnsupportedError
from cloister.graph.graph import BATCH, Graph, Size
from cloister.graph.part import reads

Feeds = Mapping[str, np.ndarray]
_MULTIPLE = re.compile(rf"([1-9][0-9]{{0,9}})\*{BATCH}")


def times_batch(factor: int) -> Size:
    """The size that is a multiple of the batch."""
    return BATCH if factor == 1 else f"{factor}*{BATCH}"


def batch_factor(size: Size) -> int | None:
    """How many times the batch a size is; None for a number and for other symbols."""
    if size == BATCH:
        return 1
    found = _MULTIPLE.fullmatch(size) if isinstance(size, str) else None
    return None if found is None else int(found[1])


def bound_size(size: Size, sizes: Mapping[str, int]) -> int | None:
    """The number that a size is for a request; None where the request's inputs do not tell."""
    if isinstance(size, int):
        return size
    factor = batch_factor(size)
    if factor is not None and BATCH in sizes:
        return factor * sizes[BATCH]
    return sizes.get(size)


def element_type(graph: Graph, value: str) -> np.dtype:
    """Element type of a tensor.

    Raises   UnsupportedError for what is none
    """
    known = graph.types.get(value)
    if known is not None:
        return known.dtype
    dtype = graph.opaque[value].dtype
    if dtype is None:
        raise UnsupportedError(f"value {value!r}: is no tensor of a known element type")
    return dtype


def is_other(graph: Graph, value: str) -> bool:
    """Whether a value is a sequence, a map or optional, and no tensor."""
    return bool(value in graph.opaque and graph.opaque[value].proto)


def batch_axis(graph: Graph, value: str) -> int | None:
    """Axis on which an input or output carries the batch; None where it does not.

    In a graph of fixed sizes the batch is the first size that all inputs share.
    """
    return graph.batch_axes[value]


def batched_values(graph: Graph) -> frozenset[str]:
    """Inputs with a free batch, and every value that is computed from one."""
    return computed_from(graph, [n for n in graph.inputs if BATCH in (graph.sizes(n) or ())])


def computed_from(graph: Graph, sources: Iterable[str]) -> frozenset[str]:
    """These values, and every value that depends on one of them."""
    found = set(sources)
    for node in graph.nodes:
        if not found.isdisjoint(reads(node)):
            found.update(value for value in node.outputs if value)
    return frozenset(found)


def bound_sizes(graph: Graph, feeds: Feeds) -> dict[str, int]:
    """The numbers that a request puts in the place of the inputs' symbols.

    Raises   ShapeError naming the input and axis that contradict an earlier one
    """
    bound: dict[str, tuple[int, str]] = {}
    for name in graph.inputs:
        known = graph.sizes(name)
        if known is None:
            continue
        for axis, (size, given) in enumerate(zip(known, feeds[name].shape, strict=True)):
            if not isinstance(size, str):
                continue
            wanted, first = bound.setdefault(size, (given, name))
            if given != wanted:
                raise ShapeError(
                    f"input {name!r}: axis {axis} ({size}) has size {given}, but {wanted} in "
                    f"input {first!r}; give both the same size"
                )
    return {symbol: size for symbol, (size, _) in bound.items()}


def stated_sizes(free: Graph, bound: Graph) -> dict[str, int]:
    """The numbers that a graph's inputs have in the place of another one's symbols."""
    return {
        symbol: size
        for name in free.inputs
        for symbol, size in zip(free.sizes(name) or (), bound.sizes(name) or (), strict=True)
        if isinstance(symbol, str) and isinstance(size, int)
    }


def sample_count(graph: Graph, feeds: Feeds) -> int:
    """How many samples a request holds; one when no input carries a batch."""
    for name in graph.inputs:
        axis = batch_axis(graph, name)
        if axis is not None:
            return int(feeds[name].shape[axis])
    return bound_sizes(graph, feeds).get(BATCH, 1)


def row_count(graph: Graph, feeds: Feeds) -> int:
    """How many rows the linear nodes of a request take."""
    return sample_count(graph, feeds) if graph.batch is None else graph.batch


def rows_of(graph: Graph, size: int) -> int | None:
    """How many rows a request of `size` samples has; None where it has all samples of its call."""
    if graph.batch is not None:
        return graph.batch
    return size if graph.separable else None


def cut(graph: Graph, feeds: Feeds, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Requests of at most `size` samples; a single one where the batch has to stay whole.

    Raises   RangeError when there is no sample
    """
    total = sample_count(graph, feeds)
    if total == 0:
        raise RangeError("no inputs: the batch is empty")
    if graph.batch is not None or not graph.separable:
        yield dict(feeds)
        return
    axes = {name: batch_axis(graph, name) for name in feeds}
    for start in range(0, total, size):
        yield {
            name: array if (axis := axes[name]) is None else part(array, axis, start, start + size)
            for name, array in feeds.items()
        }


def part(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """Some of the samples that an array carries on an axis."""
    return np.asarray(array[(slice(None),) * axis + (slice(start, stop),)], order="C")


def where_not_finite(graph: Graph, feeds: Feeds) -> str:
    """The first input that has NaN or infinity, to end an error that it may be the cause of."""
    for name, array in feeds.items():
        if (
            isinstance(array, np.ndarray)
            and array.dtype.kind == "f"
            and not np.isfinite(array).all()
        ):
            axis = batch_axis(graph, name)
            bad = np.argwhere(~np.isfinite(array))
            which = "it" if axis is None else f"sample {bad[:, axis].min()}"
            return f" (input {name!r}: {which} contains NaN or infinity)"
    return ""


def sizes_remedy(graph: Graph, feeds: Feeds) -> str:
    """What to do about sizes that a model may not take, to end an error; empty if none is free."""
    bound = bound_sizes(graph, feeds)
    sizes = ", ".join(f"{symbol}={bound[symbol]}" for symbol in graph.free_sizes)
    return sizes and (
        f"; the model may not take inputs of {sizes}: give others, pictures by --resize H,W"
    )


def joined(graph: Graph, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The outputs of a batch from those of its parts, in order.

    An output without the batch is the same for every part, or the graph would not be separable. One
    that has an entry by sample, such as the maps of a classifier, is a list.

    Raises   ShapeError when the parts of an output do not fit together
    """
    outputs: dict[str, Any] = {}
    for name in graph.outputs:
        found, axis = [part[name] for part in parts], batch_axis(graph, name)
        if axis is None or len(found) == 1:
            outputs[name] = found[0]
        elif isinstance(found[0], np.ndarray):
            rests = {(a.ndim, *a.shape[:axis], *a.shape[axis + 1 :]) for a in found}
            if len(rests) > 1 or found[0].ndim <= axis:
                raise ShapeError(
                    f"output {name!r}: the parts of the batch have different sizes; run one sample "
                    "at a time"
                )
            outputs[name] = np.concatenate(found, axis)
        else:
            outputs[name] = [entry for one in found for entry in one]
    return outputs
