"""What a user wants of a plan, and which policies and plans meet it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cloister.errors import InputError, PlanError
from cloister.graph.graph import Graph
from cloister.graph.split import split_at
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import INTEGRITY, OUTSOURCED, SPLITTING, Input, Protection

PREFIX, FULL, NONE = "prefix", "full", "none"


class InputHiding(StrEnum):
    """How the inputs are hidden from workers."""

    EMPIRICAL = "empirical"
    PROVEN = "proven"


class Objective(StrEnum):
    """What the planner makes small: the time until an answer, or trusted time for each input."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Goals:
    """What a plan has to keep, and what is made small among those that do.

    hide_input       proven: no value that follows from an input is sent in the clear; empirical: or
                     only what an audit accepts; None: values may be sent in the clear
    integrity        full: every answer is checked; prefix: those before a split; none: no answer
                     need be, and a worker is trusted to follow the protocol; None: no answer need
                     be, but no worker learns more by lying
    max_trusted_ms   trusted time for an input, at most

    Raises   InputError for goals that contradict each other
    """

    hide_input: InputHiding | None = None
    integrity: str | None = None
    max_trusted_ms: float | None = None
    objective: Objective = Objective.THROUGHPUT

    def __post_init__(self) -> None:
        if self.integrity not in (None, *INTEGRITY):
            raise InputError(f"--integrity {self.integrity}: choose one of {', '.join(INTEGRITY)}")
        if self.integrity == PREFIX and self.hide_input is not InputHiding.EMPIRICAL:
            raise InputError(
                "--integrity prefix: is about a split, and only --hide-input empirical allows one; "
                "give full or none"
            )
        if self.max_trusted_ms is not None and not self.max_trusted_ms > 0:
            raise InputError(f"--max-trusted-ms {self.max_trusted_ms:g}: give more than 0")

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies whose plans may meet the goals, the strongest first."""
        full = self.integrity == FULL
        unchecked = self.integrity in (None, NONE)
        proven = self.hide_input is InputHiding.PROVEN
        empirical = self.hide_input is InputHiding.EMPIRICAL
        wanted = {
            "enclave": True,
            "slalom": True,
            INTEGRITY[FULL]: empirical,
            INTEGRITY[PREFIX]: empirical and not full,
            # Its inputs are hidden from a worker that follows the protocol only.
            INTEGRITY[NONE]: empirical and self.integrity == NONE,
            "blinded": unchecked,
            "verified": not proven and not empirical,
            "open": not proven and not empirical and unchecked,
        }
        return tuple(policy for policy, allowed in wanted.items() if allowed)

    @property
    def protections(self) -> tuple[Protection, ...]:
        """Under which linear nodes go to a worker in plans that may meet the goals."""
        found: list[Protection] = []
        for policy in self.policies:
            if policy in OUTSOURCED:
                found.append(OUTSOURCED[policy])
            elif policy in SPLITTING:
                found += [SPLITTING[policy].before, SPLITTING[policy].after]
        return tuple(p for p in dict.fromkeys(found) if p.on_integers)

    def require_met(
        self,
        graph: Graph,
        protections: Mapping[str, Protection],
        split: PlannedSplit | None,
    ) -> None:
        """Go on only with protections that meet the goals, but for the time.

        Raises   PlanError naming the node that does not
        """
        before = frozenset(protections) if split is None else split_at(graph, split.until).before
        for name, protection in protections.items():
            clear = protection.input is Input.CLEAR
            unchecked = protection.on_worker and not protection.checked
            if clear and self.hide_input is InputHiding.PROVEN:
                raise PlanError(f"node {name!r}: is {protection.name}, and inputs are to be hidden")
            if clear and self.hide_input is InputHiding.EMPIRICAL:
                audited = split is not None and split.evidence is not None
                if name in before or not audited:
                    raise PlanError(
                        f"node {name!r}: is {protection.name} where no audit accepts a split"
                    )
            if unchecked and (
                self.integrity == FULL or (self.integrity == PREFIX and name in before)
            ):
                raise PlanError(f"node {name!r}: is {protection.name}, and is to be checked")
