"""The split of a plan, and the order that every plan keeps.

What is sent in the clear tells the worker what its own earlier answers did. If one of these goes
unchecked, the worker adds an error of its choice to a blinded layer's answer and reads what becomes
of it. So nothing is sent in the clear that follows from an unchecked answer, unless the policy is
the one that assumes a worker which follows the protocol.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import PlanError
from cloister.graph.graph import Graph
from cloister.graph.part import origins, reads
from cloister.graph.split import Split, split_at
from cloister.plan.protection import (
    BLINDED,
    ENCLAVE,
    OPEN,
    SPLITTING,
    Input,
    Protection,
    assumes_honest_worker,
    outer_policy,
    shows_inputs,
)

DIGEST_BYTES = 32


@dataclass(frozen=True)
class SplitEvidence:
    """What an audit found at a split, for the claims; the report itself is named by its digest.

    attacks          the battery
    data_sha256      of the images; `images` of them were attacked
    candidates       images among which the true one was sought
    identification   how often it was found, ssim and explained: the upper ends of the 95 %
                     intervals of the strongest attack

    Raises   PlanError for what no audit finds
    """

    report: bytes
    attacks: tuple[str, ...]
    data: str
    data_sha256: str
    images: int
    candidates: int
    identification: float
    ssim: float
    explained: float

    def __post_init__(self) -> None:
        texts = (*self.attacks, self.data, self.data_sha256)
        if len(self.report) != DIGEST_BYTES or not self.attacks or not all(texts):
            raise PlanError("the evidence of a split names no report, attack or data")
        if not "".join(texts).isprintable():
            raise PlanError("the evidence of a split has a name that is not printable")
        figures = (self.identification, self.ssim, self.explained)
        if not (1 < self.candidates <= self.images and all(map(math.isfinite, figures))):
            raise PlanError("the evidence of a split has figures that no audit finds")
        if not (0 <= self.identification <= 1 and abs(self.ssim) <= 2 and self.explained <= 1):
            raise PlanError("the evidence of a split has figures that no audit finds")


@dataclass(frozen=True)
class PlannedSplit:
    """Where a plan is split: after these nodes and what they depend on.

    evidence   None: nobody measured what the crossing values tell of the input
    """

    until: tuple[str, ...]
    evidence: SplitEvidence | None = None


def check_split(
    graph: Graph, policy: str, protections: Mapping[str, Protection], split: PlannedSplit | None
) -> None:
    """Refuse protections that are not those of the policy on either side of the split.

    Raises   PlanError naming the node, InputError for a split that the model does not have
    """
    halves = SPLITTING.get(outer_policy(policy) or policy)
    if split is None:
        if halves is not None:
            for name, protection in protections.items():
                if protection.input is Input.CLEAR:
                    raise PlanError(
                        f"node {name!r}: is {protection.name}, and policy {policy!r} names no split"
                    )
        return
    if halves is None:
        raise PlanError(f"policy {policy!r} has no split, and the plan names one")
    found = split_at(graph, split.until)
    for name, protection in protections.items():
        wrong = halves.after if name in found.before else halves.before
        if protection == wrong:
            where = "before" if name in found.before else "after"
            raise PlanError(
                f"node {name!r}: is {protection.name} {where} the split at {found.name!r}"
            )
    check_hidden(graph, found, protections)


def check_hidden(graph: Graph, split: Split, protections: Mapping[str, Protection]) -> None:
    """Refuse a split where a value is hidden from the worker by one node and shown by another.

    Raises   PlanError naming the value, and where to split instead
    """
    origin = origins(graph)
    hidden = {
        value: node.name
        for node in graph.nodes
        if protections[node.name].on_worker and protections[node.name].hidden
        for value in map(origin, node.inputs)
        if value not in graph.constants
    }
    for node in graph.nodes:
        if protections[node.name].input is Input.CLEAR:
            for value in map(origin, reads(node)):
                if value in hidden:
                    raise PlanError(
                        f"the split at {split.name!r}: node {node.name!r} would show value "
                        f"{value!r}, which node {hidden[value]!r} hides; split where {value!r} is "
                        "made, or after a node that follows both"
                    )


def check_order(graph: Graph, policy: str, protections: Mapping[str, Protection]) -> None:
    """Refuse what is sent in the clear and follows from an unchecked answer.

    Where the policy shows the inputs, what follows from them inside is shown already.

    Raises   PlanError naming both nodes
    """
    if assumes_honest_worker(policy):
        return
    opened: dict[str, str] = {}  # values of open nodes: the worker has them anyway
    unchecked: dict[str, str] = {}
    for node in graph.nodes:
        protection = protections[node.name]
        read = reads(node)
        source = next((unchecked[value] for value in read if value in unchecked), None)
        shown = protection == ENCLAVE and shows_inputs(policy)
        if protection != OPEN and not shown:
            source = source or next((opened[value] for value in read if value in opened), None)
        if source is not None and protection.input is Input.CLEAR:
            raise PlanError(
                f"node {node.name!r}: is {protection.name}, so it would show what follows from "
                f"node {source!r}, whose answers are not checked; a worker that changes these "
                "would read what becomes of hidden values"
            )
        if protection == OPEN or (shown and source is None):
            opened.update(dict.fromkeys(node.outputs, node.name))
        elif protection == BLINDED:
            unchecked.update(dict.fromkeys(node.outputs, node.name))
        elif source is not None:
            # A checked node multiplies the error of its input rightly.
            unchecked.update(dict.fromkeys(node.outputs, source))
