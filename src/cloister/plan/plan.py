"""A plan: the decision for every node of a model, checked against itself and the model."""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from cloister.base.reading import parsing
from cloister.errors import PlanError
from cloister.graph.batch import stated_sizes
from cloister.graph.canonical import Writer, as_array, read_file
from cloister.graph.graph import Graph, Node
from cloister.graph.graph_file import absent
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.graph.part import reads
from cloister.plan import plan_file
from cloister.plan.planned_split import PlannedSplit, check_order, check_split
from cloister.plan.protection import MODULE, Protection, outer_policy, protections_of
from cloister.plan.quantised import WRAP_LIMIT, Precision, QuantisedLinear, Ranges, static_bound

if TYPE_CHECKING:
    from cloister.plan.claims import Claims

SUFFIX = ".plan"
"""Of a plan's file."""


@dataclass(frozen=True)
class PlannedModule:
    """A node that a compiled module computes.

    digest    of the module (`Manifest.digest`)
    queries   how many samples the module may answer in all; None: any number
    """

    node: str
    digest: bytes
    queries: int | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Every node's protection and, for linear nodes that leave the runtime, their integers.

    precision, ranges   what the integers were made from
    split               where the policy stops to hide values; None: nowhere
    float_weights       whether those nodes' float32 weights are still there
                        (`without_float_weights`)
    template            the model whose free sizes are numbers in `graph`, with which plans for
                        other sizes are made; it is in no file
    """

    graph: Graph
    policy: str
    protections: Mapping[str, Protection]
    quantised: Mapping[str, QuantisedLinear]
    precision: Precision = field(default_factory=Precision)
    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    split: PlannedSplit | None = None
    float_weights: bool = True
    template: Graph | None = None

    def __post_init__(self) -> None:
        names = {node.name for node in self.graph.nodes}
        if names != set(self.protections):
            odd = sorted(names ^ set(self.protections))[0]
            raise PlanError(f"plan and model disagree about node {odd!r}; make the plan again")
        if not self.policy.isprintable():
            raise PlanError(f"policy {self.policy!r}: its name is not printable")
        if not set(self.quantised) <= names:
            raise PlanError("a node that is not in the model has integers")
        for node in self.graph.nodes:
            self._check_node(node)
        if outer_policy(self.policy) is not None and not self.modules:
            raise PlanError(f"policy {self.policy!r} hides the end of a model, and no node is one")
        check_split(self.graph, self.policy, self.protections, self.split)
        check_order(self.graph, self.policy, self.protections)

    def _check_node(self, node: Node) -> None:
        protection = self.protections[node.name]
        allowed = protections_of(self.policy)
        if allowed is not None and protection not in allowed:
            raise PlanError(
                f"node {node.name!r}: policy {self.policy!r} gives no node the protection "
                f"{protection.name}"
            )
        if node.is_module:
            _module_node().check_module(self.graph, node)
        if node.is_module != (protection == MODULE):
            raise PlanError(
                f"node {node.name!r} ({node.op}) is planned as {protection.name}: a hidden part, "
                f"and nothing else, is planned as {MODULE.name}"
            )
        outsourced = protection.on_integers
        if outsourced and not is_linear(self.graph, node):
            raise PlanError(
                f"node {node.name!r} ({node.op}) is not linear and cannot be {protection.name}"
            )
        if outsourced != (node.name in self.quantised):
            raise PlanError(f"node {node.name!r}: integers and protection do not fit together")
        if not outsourced:
            return
        if self.quantised[node.name].linear.geometry != geometry(self.graph, node):
            raise PlanError(f"node {node.name!r}: its integers have another geometry than the node")
        if static_bound(self.quantised[node.name]) >= WRAP_LIMIT:
            raise PlanError(f"node {node.name!r}: results may wrap around 2^32")

    @cached_property
    def linear_nodes(self) -> tuple[QuantisedLinear, ...]:
        """The outsourced linear nodes, in graph order; a node's index here is its index in pads."""
        return tuple(
            self.quantised[node.name] for node in self.graph.nodes if node.name in self.quantised
        )

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The numbers in the place of the template's free sizes; none without a template."""
        return {} if self.template is None else stated_sizes(self.template, self.graph)

    def protection_of(self, node: QuantisedLinear) -> Protection:
        """The protection of an outsourced linear node."""
        return self.protections[node.node]

    @cached_property
    def hidden_nodes(self) -> tuple[int, ...]:
        """Indices into `linear_nodes` of those whose inputs are blinded."""
        return tuple(
            i for i, node in enumerate(self.linear_nodes) if self.protection_of(node).hidden
        )

    @cached_property
    def pads_checked(self) -> bool:
        """Whether every answer that is unblinded is checked: then a wrong pad is refused too."""
        return all(self.protection_of(self.linear_nodes[i]).checked for i in self.hidden_nodes)

    @cached_property
    def modules(self) -> tuple[PlannedModule, ...]:
        """The nodes that compiled modules compute, in graph order."""
        return tuple(
            PlannedModule(
                node.name, _module_node().module_digest(node), _module_node().module_queries(node)
            )
            for node in self.graph.nodes
            if node.is_module
        )

    def claims(self, *, pinned: bool = True) -> "Claims":
        """What every role learns and can do, as this plan implies it.

        pinned   off for a plan of a file that the caller does not trust: what it tells of an audit
                 is not stated then

        Their texts are loaded when they are first asked for: running a plan needs none of them.
        """
        scaled = sum(node.x_factors is not None for node in self.linear_nodes)
        texts = importlib.import_module("cloister.plan.claims")
        limits = [module.queries for module in self.modules]
        queries = None if None in limits else max(filter(None, limits), default=None)
        claims: Claims = texts.claims_of(
            self.policy,
            self.protections,
            scaled=scaled,
            queries=queries,
            split=self.split,
            pinned=pinned,
        )
        return claims

    def _repr_html_(self) -> str:
        texts = importlib.import_module("cloister.plan.claims")
        nodes = texts.html_table(
            f"plan of policy {self.policy}",
            ((node.name, node.op, self.protections[node.name].name) for node in self.graph.nodes),
            header=("node", "operator", "protection"),
        )
        return f"{self.claims()._repr_html_()}\n{nodes}"

    def without_float_weights(self) -> "Plan":
        """The same plan, of the same digest, for running only: without weights that are integers.

        It is for the sizes it was made for only: no plan for others can be made. The float32
        weights of outsourced nodes are replaced by NaN that takes no memory. They are freed once no
        object holds this plan or its model any more.
        """
        constants = {
            name: absent(array.shape) if name in self.not_needed else array
            for name, array in self.graph.constants.items()
        }
        graph = replace(self.graph, constants=constants)
        return replace(self, graph=graph, float_weights=False, template=None)

    @cached_property
    def not_needed(self) -> frozenset[str]:
        """The float32 constants that became integers, and that nothing else reads."""
        inside = [node for node in self.graph.nodes if node.name not in self.quantised]
        kept = {name for node in inside for name in reads(node)}
        kept |= set(self.graph.outputs)
        sent = {n for node in self.graph.nodes if node.name in self.quantised for n in node.inputs}
        constants = self.graph.constants
        return frozenset(
            name for name in sent - kept
            if name in constants and constants[name].dtype == np.float32
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """The canonical bytes (plan_file.py): equal plans have equal ones, on every machine."""
        return self._written().to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Plan":
        """The plan of canonical bytes, without float32 weights; its integers are views of them.

        It is not trusted until the caller has compared its digest or its policy.

        Raises   InputError, PlanError for one that contradicts itself
        """
        return cls._of(as_array(data), "not the bytes of a plan")

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file of the canonical bytes.

        Raises   OSError
        """
        self._written().save(Path(path))

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, policy: str | None = None, digest: bytes | None = None
    ) -> "Plan":
        """The plan in a file. The writer of the file chooses the plan, unless its digest is given.

        policy   the file must hold a plan of this policy
        digest   the file must hold exactly this plan; nothing else of it is read before

        Raises   InputError, PlanError for a plan that contradicts itself or is another one
        """
        path = Path(path)
        if not isinstance(digest, bytes | None):
            raise PlanError("digest: give the 32 bytes of Plan.digest, or bytes.fromhex(text)")
        with parsing(f"{path}: not a plan that can be read"):
            data = read_file(path, plan_file.MAGIC, plan_file.VERSION)
        if digest is not None and (found := hashlib.sha256(data.data).digest()) != digest:
            raise PlanError(
                f"{path}: is not the plan {digest.hex()[:16]} that is wanted; the plan is "
                f"{found.hex()}; give the file of the other plan; pads for this one are made by "
                f"`cloister pads make {path}`"
            )
        plan = cls._of(data, f"{path}: not a plan that can be read")
        if policy is not None:
            plan.require_policy(policy, what=str(path))
        return plan

    def require_policy(self, policy: str, *, what: str) -> None:
        """Go on only with a plan of this policy; `what` begins the message.

        Raises   PlanError
        """
        if self.policy != policy:
            raise PlanError(
                f"{what}: is a plan of policy {self.policy}, and {policy} is wanted; give --policy "
                f"{self.policy} (policy={self.policy!r}) if that is the protection you want"
            )

    def _written(self) -> Writer:
        return plan_file.written(
            self.graph,
            not_needed=self.not_needed,
            policy=self.policy,
            precision=self.precision,
            protections=self.protections,
            ranges=self.ranges,
            quantised=self.quantised,
            split=self.split,
        )

    @classmethod
    def _of(cls, data: np.ndarray, what: str) -> "Plan":
        with parsing(what):
            reader, fields = plan_file.read(data)
            plan = cls(**fields)
            reader.finish(plan._written())
            return plan

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        digest = hashlib.sha256()
        for part in self._written().parts():
            digest.update(part)
        return digest.digest()


def _module_node() -> ModuleType:
    """Loaded for plans with a module only."""
    return importlib.import_module("cloister.graph.module_node")
