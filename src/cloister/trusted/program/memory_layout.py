"""The places of all values that fused steps and exchanges write, decided once per batch size.

Values, messages and answers live from the step that writes them to the last step that reads them;
values that are not alive at the same time may share memory.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.graph.graph import Graph
from cloister.plan.plan import Plan
from cloister.trusted.program.steps import Exchange, Fused, Program, Segment
from cloister.wire.messages import TensorSpec

# Of a page: the worker maps shared memory by pages, and vector loads stay within cache lines.
ALIGNMENT = 4096

# A float32 value by name and by whether it is channels-first in ONNX.
ValueKey = tuple[str, bool]


@dataclass
class _Lifetime:
    nbytes: int
    first: int
    last: int


@dataclass
class Block:
    """Offsets into one block of memory, by what lies there."""

    offsets: dict[Hashable, int]
    nbytes: int


@dataclass
class Lifetimes:
    """Things by key with the steps between which they are alive."""

    _lifetimes: dict[Hashable, _Lifetime] = field(default_factory=dict)

    def extend(self, key: Hashable, step: int, nbytes: int = 0) -> None:
        """Something is written or read at a step."""
        life = self._lifetimes.setdefault(key, _Lifetime(nbytes, step, step))
        life.nbytes = max(life.nbytes, nbytes)
        life.last = max(life.last, step)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._lifetimes

    def place(self) -> Block:
        """First fit at the lowest address, in the order of the steps."""
        placed: list[tuple[int, int, _Lifetime]] = []
        offsets: dict[Hashable, int] = {}
        total = 0
        for key, life in sorted(self._lifetimes.items(), key=lambda item: item[1].first):
            size = padded(life.nbytes)
            offset = 0
            alive = sorted((b, e) for b, e, other in placed if other.last >= life.first)
            for begin, end in alive:
                if begin - offset >= size:
                    break
                offset = max(offset, end)
            placed.append((offset, offset + size, life))
            offsets[key] = offset
            total = max(total, offset + size)
        return Block(offsets, total)


@dataclass
class MemoryLayout:
    """The memory of a program for one batch size.

    `shared` has the key ("message", target) and ("answer", target) of every exchange, for links
    whose worker reads shared memory; `private` the values, and ("staged", node) of messages that
    wait for a check in private memory. The message of a segment waits as the value that it is;
    `crossing` has its key, for every segment that sends one such value and gets one of known size.
    """

    shared: Block
    private: Block
    shapes: Mapping[ValueKey, tuple[int, ...]]
    messages: Mapping[int, TensorSpec]
    answers: Mapping[int, TensorSpec]
    staged: frozenset[int]
    crossing: Mapping[int, ValueKey]


def padded(nbytes: int) -> int:
    """Bytes that something takes up in a layout."""
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT


def value_key(program: Program, name: str, channels_first: bool) -> ValueKey:
    """The memory a value lies in: its own, or that of the concatenation it is a slice of."""
    part = program.slices.get(name)
    return (part.whole if part else name, channels_first)


def lay_out(program: Program, batch: int) -> MemoryLayout:
    """Lay out the memory of a program."""
    plan = program.plan
    hides = bool(plan.hidden_nodes)
    shared, private = Lifetimes(), Lifetimes()
    shapes: dict[ValueKey, tuple[int, ...]] = {}
    messages: dict[int, TensorSpec] = {}
    answers: dict[int, TensorSpec] = {}
    staged: set[int] = set()
    crossing: dict[int, ValueKey] = {}
    for i, step in enumerate(program.steps):
        if isinstance(step, Fused):
            if step.stored:
                key = value_key(program, step.epilogue.value, step.channels_first)
                shapes[key] = (batch, *_whole_size(program, step))
                private.extend(key, i, 4 * int(np.prod(shapes[key])))
            if step.node is not None:
                shared.extend(("answer", step.node), i)
            for index in step.sinks:
                messages[index] = _message(plan, index, batch)
                if hides and messages[index].dtype == np.int16:
                    staged.add(index)
                    private.extend(("staged", index), i, messages[index].nbytes)
                else:
                    shared.extend(("message", index), i, messages[index].nbytes)
        elif isinstance(step, Exchange):
            geometry = plan.linear_nodes[step.node].linear.geometry
            answers[step.node] = TensorSpec(np.dtype(np.uint32), (batch, *geometry.out_shape))
            shared.extend(("message", step.node), i, messages[step.node].nbytes)
            shared.extend(("answer", step.node), i, answers[step.node].nbytes)
            if step.node in staged:
                private.extend(("staged", step.node), i)
        elif isinstance(step, Segment):
            stored = _crossing(program, step, shapes)
            if stored is not None:
                target = step.target
                crossing[target] = stored
                messages[target] = _plain(plan.graph, step.inputs[0], batch)
                answers[target] = _plain(plan.graph, step.outputs[0], batch)
                shared.extend(("message", target), i, messages[target].nbytes)
                # It is read after the native executor has stopped, which may be in the end.
                shared.extend(("answer", target), i, answers[target].nbytes)
                shared.extend(("answer", target), len(program.steps))
        for name in step.inputs:
            _read(program, private, name, i)
    for name in plan.graph.outputs:
        _read(program, private, name, len(program.steps))
    return MemoryLayout(
        shared.place(), private.place(), shapes, messages, answers, frozenset(staged), crossing
    )


def _message(plan: Plan, index: int, batch: int) -> TensorSpec:
    node = plan.linear_nodes[index]
    dtype = np.uint32 if plan.protection_of(node).hidden else np.int16
    return TensorSpec(np.dtype(dtype), (batch, *node.linear.geometry.in_shape))


def _crossing(
    program: Program, step: Segment, shapes: Mapping[ValueKey, tuple[int, ...]]
) -> ValueKey | None:
    """The one stored value that a segment takes, if it makes one float32 value of known size."""
    if len(step.inputs) != 1 or len(step.outputs) != 1:
        return None
    made = program.runtime_graph.types.get(step.outputs[0])
    if made is None or made.dtype != np.float32:
        return None
    keys = [value_key(program, step.inputs[0], first) for first in (True, False)]
    return next((key for key in keys if key in shapes), None)


def _plain(graph: Graph, value: str, batch: int) -> TensorSpec:
    known = graph.types[value]
    return TensorSpec(known.dtype, tuple(batch if size is None else size for size in known.shape))


def _whole_size(program: Program, step: Fused) -> tuple[int, ...]:
    part = program.slices.get(step.epilogue.value)
    return (*step.out_size[:2], part.channels) if part else step.out_size


def _read(program: Program, private: Lifetimes, name: str, step: int) -> None:
    for channels_first in (False, True):
        key = value_key(program, name, channels_first)
        if key in private:
            private.extend(key, step)
