"""A plan: what happens to every node of a model, checked against itself and the model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cloister.errors import PlanError
from cloister.graph.captures import captured_values
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.table import is_linear
from cloister.plan.claims import Claims, claims_of
from cloister.plan.protection import ENCLAVE, OPEN, Protection
from cloister.plan.quantise import WRAP_LIMIT, QuantisedLinear, static_bound

FORMAT = 2


@dataclass(frozen=True, eq=False)
class Plan:
    """Every node's protection and, for linear nodes that leave the runtime, their integers.

    float_weights   whether those nodes' float32 weights are still there (`without_float_weights`)
    """

    graph: Graph
    policy: str
    protections: Mapping[str, Protection]
    quantised: Mapping[str, QuantisedLinear]
    float_weights: bool = True

    def __post_init__(self) -> None:
        names = {node.name for node in self.graph.nodes}
        if names != set(self.protections):
            odd = sorted(names ^ set(self.protections))[0]
            raise PlanError(f"plan and model disagree about node {odd!r}; make the plan again")
        for node in self.graph.nodes:
            self._check_node(node)

    def _check_node(self, node: Node) -> None:
        protection = self.protections[node.name]
        outsourced = protection not in (ENCLAVE, OPEN)
        if outsourced and not is_linear(self.graph, node):
            raise PlanError(
                f"node {node.name!r} ({node.op}) is not linear and cannot be {protection.name}"
            )
        if outsourced != (node.name in self.quantised):
            raise PlanError(f"node {node.name!r}: integers and protection do not fit together")
        if outsourced and static_bound(self.quantised[node.name]) >= WRAP_LIMIT:
            raise PlanError(f"node {node.name!r}: results may wrap around 2^32")

    @cached_property
    def linear_nodes(self) -> tuple[QuantisedLinear, ...]:
        """The outsourced linear nodes, in graph order; a node's index here is its index in pads."""
        return tuple(
            self.quantised[node.name] for node in self.graph.nodes if node.name in self.quantised
        )

    def protection_of(self, node: QuantisedLinear) -> Protection:
        """The protection of an outsourced linear node."""
        return self.protections[node.node]

    @cached_property
    def hidden_nodes(self) -> tuple[int, ...]:
        """Indices into `linear_nodes` of those whose inputs are blinded."""
        return tuple(
            i for i, node in enumerate(self.linear_nodes) if self.protection_of(node).hidden
        )

    def claims(self) -> Claims:
        """What an untrusted worker learns and can change, as this plan implies it."""
        scaled = sum(node.x_factors is not None for node in self.linear_nodes)
        return claims_of(self.policy, self.protections, scaled=scaled)

    def without_float_weights(self) -> "Plan":
        """The same plan, of the same digest, for running only: it drops what became integers.

        The float32 weights of outsourced nodes are replaced by NaN that takes no memory. They are
        freed once nobody holds this plan or its model any more.
        """
        inside = [node for node in self.graph.nodes if node.name not in self.quantised]
        kept = {name for node in inside for name in (*node.inputs, *captured_values(node))}
        kept |= set(self.graph.outputs)
        sent = {name for node in self.graph.nodes for name in node.inputs} - kept
        constants = {
            name: _absent(array) if name in sent and array.dtype == np.float32 else array
            for name, array in self.graph.constants.items()
        }
        graph = replace(self.graph, constants=constants)
        lean = replace(self, graph=graph, float_weights=False)
        lean.__dict__["canonical_bytes"] = self.canonical_bytes
        return lean

    @cached_property
    def canonical_bytes(self) -> bytes:
        """One unambiguous description: equal plans have equal bytes."""
        return json.dumps(
            {
                "format": FORMAT,
                "policy": self.policy,
                "opset": self.graph.opset,
                "inputs": self.graph.inputs,
                "outputs": self.graph.outputs,
                "types": {n: (str(t.dtype), t.shape) for n, t in self.graph.types.items()},
                "constants": {n: _digest_array(a) for n, a in self.graph.constants.items()},
                "nodes": [self._describe(node) for node in self.graph.nodes],
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.canonical_bytes).digest()

    def _describe(self, node: Node) -> dict[str, object]:
        quantised = self.quantised.get(node.name)
        return {
            "name": node.name,
            "op": [node.domain, node.op],
            "inputs": node.inputs,
            "outputs": node.outputs,
            "attributes": {k: _digest_attribute(v) for k, v in node.attributes.items()},
            "protection": self.protections[node.name].name,
            "integers": None if quantised is None else _describe_integers(quantised),
        }


def _describe_integers(node: QuantisedLinear) -> dict[str, object]:
    return {
        "geometry": node.linear.geometry.to_fields(),
        "weights": _digest_array(node.linear.weights),
        "scale": _digest_array(node.scale),
        "bias": _digest_array(node.bias),
        "x_factors": None if node.x_factors is None else _digest_array(node.x_factors),
        "x_scale": node.x_scale.hex(),
        "x_qmax": node.x_qmax,
    }


def _absent(array: np.ndarray) -> np.ndarray:
    """An array of the same type and shape that holds nothing."""
    return np.broadcast_to(np.float32(np.nan), array.shape)


def _digest_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    if array.dtype == object:
        digest.update(repr(array.tolist()).encode())
    elif array.dtype.kind in "biuf":
        # In place: weights are large, and a copy would be the peak of the process's memory.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _digest_attribute(value: object) -> str:
    if isinstance(value, np.ndarray):
        return _digest_array(value)
    serialise = getattr(value, "SerializeToString", None)
    data = serialise(deterministic=True) if serialise else repr(value).encode()
    return hashlib.sha256(data).hexdigest()
