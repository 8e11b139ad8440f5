"""The protection of a node: one value on three axes.

    input     where the node runs and whether its input is hidden
    checked   whether a wrong output is detected
    weights   whether its weights are public or hidden from the operator of the trusted side

Six of the combinations mean something; each has a name, and no other can be made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from cloister.errors import PlanError


class Input(Enum):
    """Where a node runs, and whether its input is hidden there."""

    CLEAR = "on a worker, in the clear"
    BLINDED = "on a worker, under one-time pads"
    INSIDE = "inside the trusted side"


class Weights(Enum):
    """Whether a node's weights are public or hidden."""

    PUBLIC = "public"
    HIDDEN = "hidden"


@dataclass(frozen=True)
class Protection:
    """Where a node runs, whether its output is checked, and whether its weights are hidden.

    Raises   PlanError for a combination that means nothing
    """

    input: Input
    checked: bool = False
    weights: Weights = Weights.PUBLIC

    def __post_init__(self) -> None:
        if self.input is Input.INSIDE and self.checked:
            raise PlanError(
                "protection: a node inside is not checked, because no other party computes it"
            )
        if self.weights is Weights.HIDDEN and self.input is not Input.INSIDE:
            raise PlanError(
                "protection: a worker reads the weights that it computes with; hidden weights stay "
                "inside, in a module"
            )

    @property
    def on_worker(self) -> bool:
        """Whether a worker computes the node."""
        return self.input is not Input.INSIDE

    @property
    def hidden(self) -> bool:
        """Whether no worker reads the node's input."""
        return self.input is not Input.CLEAR

    @property
    def on_integers(self) -> bool:
        """Whether a worker computes the node on integers; only a linear node can be."""
        return self.on_worker and (self.hidden or self.checked)

    @property
    def name(self) -> str:
        """The constant's name, for people and files."""
        return _NAMES[self]


ENCLAVE = Protection(Input.INSIDE)
OPEN = Protection(Input.CLEAR)
VERIFIED = Protection(Input.CLEAR, checked=True)
BLINDED = Protection(Input.BLINDED)
BLINDED_VERIFIED = Protection(Input.BLINDED, checked=True)
MODULE = Protection(Input.INSIDE, weights=Weights.HIDDEN)

BY_NAME: Mapping[str, Protection] = {
    "blinded+verified": BLINDED_VERIFIED,
    "blinded": BLINDED,
    "verified": VERIFIED,
    "open": OPEN,
    "enclave": ENCLAVE,
    "module": MODULE,
}
"""Every protection there is."""
_NAMES = {protection: name for name, protection in BY_NAME.items()}

OUTSOURCED: Mapping[str, Protection] = {
    "slalom": BLINDED_VERIFIED,
    "verified": VERIFIED,
    "blinded": BLINDED,
}
"""Policies that send linear nodes to the worker, and how; all other nodes stay inside."""
EVERYWHERE: Mapping[str, Protection] = {"enclave": ENCLAVE, "open": OPEN}
"""Policies that treat all nodes alike, but for those that no worker can run (openable.py)."""


@dataclass(frozen=True)
class Halves:
    """How a policy protects linear nodes before and after a split."""

    before: Protection
    after: Protection


SPLITTING: Mapping[str, Halves] = {
    "origami": Halves(BLINDED_VERIFIED, VERIFIED),
    "origami-prefix": Halves(BLINDED_VERIFIED, OPEN),
    "origami-none": Halves(BLINDED, OPEN),
}
"""Policies that hide what comes before a split, and how. Nodes that are not linear stay inside,
except after a split where the linear ones are open."""
INTEGRITY: Mapping[str, str] = {
    "full": "origami",
    "prefix": "origami-prefix",
    "none": "origami-none",
}
"""What is checked, and the policy of that name."""
UNCHECKED_SPLIT = INTEGRITY["none"]
"""The one policy that sends in the clear what follows from unchecked answers."""


HIDDEN_END = "ennclave"
"""Policy that hides the end of a model in a module and treats all other nodes as `open`."""


def hiding(policy: str) -> str:
    """The policy that hides the end of a model and treats all other nodes as this one does."""
    return HIDDEN_END if policy == "open" else f"{policy}+{HIDDEN_END}"


def outer_policy(policy: str) -> str | None:
    """The policy of the nodes outside a hidden end; None for a policy that hides none."""
    return _OUTER.get(policy)


def assumes_honest_worker(policy: str) -> bool:
    """Whether a policy hides values only from a worker that follows the protocol."""
    return (outer_policy(policy) or policy) == UNCHECKED_SPLIT


def shows_inputs(policy: str) -> bool:
    """Whether a policy shows the inputs to a worker, and so all that follows from them."""
    return (outer_policy(policy) or policy) == "open"


_OUTER = {hiding(policy): policy for policy in (*OUTSOURCED, *EVERYWHERE, *SPLITTING)}
HIDING = tuple(_OUTER)
"""Policies that hide the end of a model."""


def protections_of(policy: str) -> frozenset[Protection] | None:
    """The protections that a policy gives to nodes; None for a policy that is not Cloister's."""
    if policy in _OUTER:
        return (protections_of(_OUTER[policy]) or frozenset()) | {MODULE}
    if policy in EVERYWHERE:
        return frozenset({ENCLAVE, EVERYWHERE[policy]})
    if policy in SPLITTING:
        return frozenset({ENCLAVE, SPLITTING[policy].before, SPLITTING[policy].after})
    return frozenset({ENCLAVE, OUTSOURCED[policy]}) if policy in OUTSOURCED else None
