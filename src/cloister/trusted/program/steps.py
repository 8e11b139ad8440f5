"""The steps of a program, which the executor runs in their order.

    Fused     native, one step over memory: unblind, check, dequantise, add, clamp, pool, quantise,
              blind
    Exchange  one message to a worker and its answer: one linear node
    Segment   open nodes, run whole by a worker on plain float32 values
    Local     nodes ONNX Runtime computes inside the trusted runtime
    Module    a hidden part, run inside by a compiled module in a process of its own

Code that runs steps names each kind and refuses others; a new kind gets a rule in the spec, a case
in the interpreter and a stage in the executor.

Concatenating channels is no step: fused steps write their results into slices of one value.

`inputs` and `outputs` of a step are the float32 values it reads and makes; messages and answers
belong to the linear node they are of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from cloister.graph.certain_sizes import with_certain_sizes
from cloister.graph.graph import Graph, Node
from cloister.plan.plan import Plan
from cloister.plan.protection import Protection
from cloister.trusted.program.epilogue import Epilogue


@dataclass(frozen=True)
class Fused:
    """From an answer (`node`) or a stored value (`source`) to its consumers, natively.

    `size` is (h, w, c) of the source, `out_size` of the result; `stored` says whether the result is
    kept as float32; `sinks` are the linear nodes whose requests it writes. `factors` multiply the
    source (plan/input_factors.py).
    """

    name: str
    node: int | None
    source: str | None
    epilogue: Epilogue
    size: tuple[int, int, int]
    out_size: tuple[int, int, int]
    channels_first: bool
    stored: bool
    sinks: tuple[int, ...]
    factors: np.ndarray | None = field(default=None, compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The float32 values the step reads."""
        return tuple(value for value in (self.source, self.epilogue.residual) if value is not None)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The float32 values later steps may read."""
        return (self.epilogue.value,) if self.stored else ()


@dataclass(frozen=True)
class Exchange:
    """Linear node `node` (index into `plan.linear_nodes`) on a worker, under `protection`."""

    node: int
    protection: Protection
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Segment:
    """Nodes a worker runs whole, in the clear; `target` is its number on the wire."""

    target: int
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"open segment {self.nodes[0].name}"


@dataclass(frozen=True)
class Local:
    """Nodes ONNX Runtime computes inside."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"local {self.nodes[0].name}"


@dataclass(frozen=True)
class Module:
    """One node, which a compiled module computes; inputs and outputs are the node's own."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Step = Fused | Exchange | Segment | Local | Module


@dataclass(frozen=True)
class ChannelSlice:
    """A value that is written as channels `offset`... of `whole`, which has `channels` in all."""

    whole: str
    offset: int
    channels: int


@dataclass(frozen=True)
class Program:
    """The steps of a plan, in order, and the values that are slices of others."""

    plan: Plan
    steps: tuple[Step, ...]
    slices: Mapping[str, ChannelSlice]

    @cached_property
    def linear(self) -> tuple[Node, ...]:
        """The graph's nodes of `plan.linear_nodes`, in their order."""
        return tuple(node for node in self.plan.graph.nodes if node.name in self.plan.quantised)

    @cached_property
    def runtime_graph(self) -> Graph:
        """The plan's graph with the sizes that ONNX Runtime is sure to find."""
        return with_certain_sizes(self.plan.graph)

    def parts(self, whole: str) -> tuple[str, ...]:
        """The values that are slices of another, in the order of their channels."""
        found = [(part.offset, value) for value, part in self.slices.items() if part.whole == whole]
        return tuple(value for _, value in sorted(found))
