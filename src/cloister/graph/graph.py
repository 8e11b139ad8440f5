"""A model as typed, shape-checked nodes. Frozen data, no behaviour.

Operators, attributes and tensor layouts are ONNX's own (images are (N, C, H, W)); what an operator
means is defined in ops/, how a file becomes a Graph in onnx/read.py, how a Graph becomes bytes in
graph_file.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

BATCH = "batch"
"""The symbol of a free batch in ONNX shapes; no other symbol of a graph has this name."""
MODULE_DOMAIN, MODULE_OP = "cloister", "Module"
"""The operator of a node that a compiled module computes (module_node.py)."""
ML = "ai.onnx.ml"
"""The domain of ONNX's operators for classical models."""
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
SAMPLES = "cloister.samples"
"""The entry of a file's metadata that becomes `Graph.samples`."""
LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Size = int | str


@dataclass(frozen=True)
class TensorType:
    """dtype and shape of a value; the size of the axis that carries a free batch is `None`."""

    dtype: np.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OpaqueType:
    """A type that no TensorType can state; with none of its fields, nothing is known.

    dtype   element type of a tensor
    sizes   of a tensor of known rank: numbers, BATCH, other symbols, "" for unknown ones
    proto   ONNX's message for the type of what is no tensor; then the others are not there
    """

    dtype: np.dtype | None = None
    sizes: tuple[Size, ...] | None = None
    proto: bytes = b""


@dataclass(frozen=True, eq=False)
class LongList:
    """The entries of an attribute with very many, as of a tree ensemble.

    values   int64 or float32; where there are texts, the position of each entry among these
    texts    of a list of texts, each one once
    """

    values: np.ndarray
    texts: tuple[str | bytes, ...] = ()


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: `outputs = op(inputs, **attributes)`; an absent optional input is ''.

    An attribute is an int, float, str, bytes, array, OpaqueType or Subgraph, a tuple of one of
    these, or a LongList.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    domain: str = ""

    @property
    def is_module(self) -> bool:
        """Whether a compiled module computes the node."""
        return (self.domain, self.op) == (MODULE_DOMAIN, MODULE_OP)


@dataclass(frozen=True, eq=False)
class Subgraph:
    """The body of a node (If, Loop, Scan), which may read values of the graph around it."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[tuple[str, OpaqueType], ...]
    outputs: tuple[tuple[str, OpaqueType], ...]
    constants: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Graph:
    """A model: nodes in topological order, constants and the type of every value.

    A value that is no tensor, or whose shape depends on more than one axis of the batch, has no
    entry in `types`; `opaque` keeps what ONNX knows of it. `opset` is the version of ONNX's own
    operators, `domains` the versions of the others in use. `separable`: each sample's outputs
    depend on that sample alone, so a free batch may be run in parts; `joins` has the axis on which
    the parts of an output are joined that shape inference did not find (batch.py). `defaults` has
    inputs that a caller may leave out, with their values then; they carry no batch. `samples` is
    what the file says of its owner's units (sample_form.py), for readers of files alone.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    types: Mapping[str, TensorType]
    opset: int
    opaque: Mapping[str, OpaqueType] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)
    separable: bool = True
    joins: Mapping[str, int] = field(default_factory=dict)
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)
    samples: str = ""

    @cached_property
    def required_inputs(self) -> tuple[str, ...]:
        """The inputs without a default."""
        return tuple(name for name in self.inputs if name not in self.defaults)

    def sizes(self, value: str) -> tuple[Size, ...] | None:
        """A shape: numbers, BATCH, other symbols, "" for unknown sizes; None: of unknown rank."""
        if value not in self._sizes:
            known, opaque = self.types.get(value), self.opaque.get(value)
            if known is not None:
                self._sizes[value] = tuple(BATCH if n is None else n for n in known.shape)
            else:
                self._sizes[value] = None if opaque is None else opaque.sizes
        return self._sizes[value]

    @cached_property
    def _sizes(self) -> dict[str, tuple[Size, ...] | None]:
        """Shapes that were asked for: every request asks for those of its inputs."""
        return {}

    @cached_property
    def batch_axes(self) -> dict[str, int | None]:
        """See `batch.batch_axis`; of the inputs and outputs."""
        return {name: self._batch_axis(name) for name in (*self.inputs, *self.outputs)}

    def _batch_axis(self, value: str) -> int | None:
        if value in self.defaults:
            return None
        known = self.sizes(value) or ()
        if self.batch is None:
            return known.index(BATCH) if known.count(BATCH) == 1 else self.joins.get(value)
        return 0 if known and known[0] == self.shared_size else None

    @cached_property
    def free_sizes(self) -> tuple[str, ...]:
        """The symbols in the inputs' shapes besides the batch, in their order."""
        sizes = (size for name in self.inputs for size in self.sizes(name) or ())
        return tuple(dict.fromkeys(s for s in sizes if isinstance(s, str) and s != BATCH))

    @cached_property
    def shared_size(self) -> Size | None:
        """First size of all required inputs that have axes, where it is the same."""
        first = {known[0] for name in self.required_inputs if (known := self.sizes(name))}
        return first.pop() if len(first) == 1 else None

    @cached_property
    def batch(self) -> int | None:
        """First size of the values that linear nodes take: `None` when the batch is free.

        Otherwise the largest number of which every first size of theirs, and the one that the
        inputs share, is a multiple.
        """
        if any(BATCH in (self.sizes(name) or ()) for name in self.inputs):
            return None
        first = [self.shared_size] if isinstance(self.shared_size, int) else []
        for node in self.nodes:
            if node.op in LINEAR_OPS and len(node.inputs) > 1 and node.inputs[1] in self.constants:
                sizes = self.sizes(node.inputs[0]) or ()
                first += [size for size in sizes[:1] if isinstance(size, int) and len(sizes) > 1]
        return math.gcd(*first) or 1
