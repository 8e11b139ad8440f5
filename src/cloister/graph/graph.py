"""A model as typed, shape-checked nodes. Frozen data, no behaviour.

Operators, attributes and tensor layouts are ONNX's own (images are (N, C, H, W)); what an operator
means is defined in ops.py, how a file becomes a Graph in onnx_import.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx


@dataclass(frozen=True)
class TensorType:
    """dtype and shape of a value; a dynamic batch axis is `None` and always first."""

    dtype: np.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: `outputs = op(inputs, **attributes)`; an absent optional input is ''."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    domain: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """A model: nodes in topological order, constants and the type of every value.

    A value that is no tensor, or whose shape depends on more than the batch, has no entry in
    `types`; `opaque` keeps what ONNX knows of it. `opset` is the version of ONNX's own operators,
    `domains` the versions of the others in use. `separable`: each sample's outputs depend on that
    sample alone, so a batch may be run in parts.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    types: Mapping[str, TensorType]
    opset: int
    opaque: Mapping[str, onnx.TypeProto] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)
    separable: bool = True

    @property
    def batch(self) -> int | None:
        """First size of the inputs: `None` when it is free, 1 when there is no input."""
        shapes = [self.types[name].shape for name in self.inputs if name in self.types]
        first = [shape[0] for shape in shapes if shape]
        return None if None in first else (first[0] if first else 1)
