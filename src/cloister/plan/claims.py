"""Claims: what a worker learns and can change, derived from the plan and nothing else."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cloister.plan.protection import (
    BLINDED,
    BLINDED_VERIFIED,
    ENCLAVE,
    OPEN,
    VERIFIED,
    Protection,
)
from cloister.ring.freivalds import SOUNDNESS_BITS


@dataclass(frozen=True)
class Claim:
    """One statement about a set of nodes under one protection."""

    protection: str
    nodes: int
    worker_learns: str
    worker_can_change: str
    assumes: str


@dataclass(frozen=True)
class Claims:
    """All statements of a plan; `str()` is for people, `to_dict()` for machines."""

    policy: str
    inputs_hidden: bool
    outputs_checked: bool
    soundness_bits: float | None
    statements: tuple[Claim, ...]
    always_visible: str

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"policy {self.policy}"]
        for claim in self.statements:
            lines += [
                f"  {claim.nodes} nodes {claim.protection}",
                f"    the worker learns   {claim.worker_learns}",
                f"    the worker can      {claim.worker_can_change}",
                f"    assuming            {claim.assumes}",
            ]
        lines.append(f"  the worker always sees {self.always_visible}")
        return "\n".join(lines)


_NOTHING = "nothing about this input or the values computed from it"
_CHEAT = f"change an answer unnoticed with probability at most 2^-{SOUNDNESS_BITS:.1f} per layer"
_TEXT: Mapping[Protection, tuple[str, str, str]] = {
    BLINDED_VERIFIED: (
        f"{_NOTHING}: each message is uniform",
        _CHEAT,
        "AES-256-CTR is a pseudorandom generator; check coefficients stay secret",
    ),
    BLINDED: (
        f"{_NOTHING}, from the messages it is sent; it may learn from what the caller does with "
        "results it has changed",
        "change every answer unnoticed",
        "AES-256-CTR is a pseudorandom generator; the worker answers honestly",
    ),
    VERIFIED: (
        "these layers' inputs, exactly, in fixed point",
        _CHEAT,
        "check coefficients stay secret",
    ),
    OPEN: (
        "the inputs and every value, exactly",
        "change every answer unnoticed",
        "the worker is honest and discreet",
    ),
    ENCLAVE: (
        "nothing",
        "not change anything",
        "the machine of the trusted runtime is trustworthy",
    ),
}


SENT: Mapping[str, str] = {
    "Hello": "the protocol's version",
    "LoadLinear": "shapes, strides, padding and integer weights of the layers it computes, in "
    "their order",
    "LoadSegment": "the operators, weights, names and notes of the open part of the model",
    "Apply": "the number of inputs in each message and the time between messages",
}
"""What every kind of message to a worker shows besides the tensors of `Apply`, which are the
statements' subject; by the message's class in `cloister.wire.messages`."""
SCALED = (
    "the coarse scale of raw input channels in the calibration samples, by which the weights of "
    "{count} of these layers are divided in powers of two"
)
"""What `LoadLinear` shows besides, where layers have factors (`input_factors`)."""


@dataclass(frozen=True)
class _Context:
    """What holds for the plan as a whole; it decides what can be said of each part."""

    hidden: bool
    checked: bool


def _statement(protection: Protection, nodes: int, plan: _Context) -> Claim:
    learns, changes, assumes = _TEXT[protection]
    if protection is ENCLAVE and not plan.hidden:
        learns = "their results wherever a node it computes in the clear reads them"
    if protection is ENCLAVE and not plan.checked:
        changes = "change their inputs, where these follow from answers that nobody checks"
    if protection is BLINDED_VERIFIED and not plan.hidden:
        learns = "nothing from these nodes' messages; what later nodes send in the clear, it sees"
    if protection is BLINDED and not plan.hidden:
        learns = (
            "from later nodes in the clear, what they are sent, and how its own changes to "
            "these unchecked answers alter that"
        )
    return Claim(protection.name, nodes, learns, changes, assumes)


def claims_of(policy: str, protections: Mapping[str, Protection], *, scaled: int = 0) -> Claims:
    """The claims that follow from a plan's protections, `scaled` nodes having input factors."""
    used = list(protections.values())
    outside = [protection for protection in used if protection is not ENCLAVE]
    checked = any(protection.checked for protection in outside)
    plan = _Context(
        hidden=all(protection.hidden for protection in outside),
        checked=all(protection.checked for protection in outside),
    )
    return Claims(
        policy=policy,
        inputs_hidden=plan.hidden,
        outputs_checked=plan.checked,
        soundness_bits=SOUNDNESS_BITS if checked else None,
        statements=tuple(
            _statement(protection, used.count(protection), plan)
            for protection in _TEXT
            if protection in used
        ),
        always_visible=_always_visible(outside, scaled),
    )


def _always_visible(outside: list[Protection], scaled: int) -> str:
    if not outside:
        return "nothing; there is no worker"
    kinds = ["Hello"]
    if any(protection is not OPEN for protection in outside):
        kinds.append("LoadLinear")
    if OPEN in outside:
        kinds.append("LoadSegment")
    seen = [SENT[kind] for kind in (*kinds, "Apply")]
    if scaled:
        seen.insert(-1, SCALED.format(count=scaled))
    return f"{', '.join(seen[:-1])}, and {seen[-1]}; so does whoever reads the network"
