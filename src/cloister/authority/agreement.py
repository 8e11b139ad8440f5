"""The agreement of a data set's clients, and when one agreement protects as well as another.

The first client of a data set decides its description and terms for all that follow. A later client
states the agreement that its own options would have made, and joins the data set only if the data
set gives away no more than that (`enrolment.enrol`). So no client's samples come under terms that
the client did not ask for.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from cloister.authority.records import Terms
from cloister.data.info import DatasetInfo
from cloister.errors import InputError

IDENTITY = ("name", "shape", "classes", "targets")
"""Fields of description and terms by which a data set is the one that is meant."""
SILENT = ("samples", "notes")
"""Fields that give nothing away."""


@dataclass(frozen=True)
class Agreement:
    """The description of a data set, whatever samples it has by now, and its terms."""

    info: DatasetInfo
    terms: Terms

    @property
    def digest(self) -> str:
        """Its name: 64 hexadecimal digits. A part is registered under it."""
        described = replace(self.info, samples=0).to_json()
        decided = json.dumps(asdict(self.terms), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(described + b"\0" + decided.encode()).hexdigest()


@dataclass(frozen=True, repr=False)
class Known:
    """A data set as its authority tells it to clients.

    Secret   label_key
    """

    agreement: Agreement
    label_key: bytes


EXPOSURE: dict[str, Callable[[Agreement], float]] = {
    "encoding": lambda agreed: agreed.info.encoding.bits,
    "mode": lambda agreed: agreed.info.mode == "paper",
    "labels_to_server": lambda agreed: agreed.terms.labels_to_server,
    "budget_rank": lambda agreed: agreed.info.budget_rank,
    "max_bits": lambda agreed: _or_infinity(agreed.terms.limits(agreed.info).max_bits),
    "value_bits": lambda agreed: agreed.terms.limits(agreed.info).value_bits,
    "one_function": lambda agreed: not agreed.terms.limits(agreed.info).one_function,
    "evaluations": lambda agreed: _or_infinity(agreed.terms.limits(agreed.info).evaluations),
}
"""All other fields: how much each gives away, with the defaults filled in. More is weaker.

The scale and the offset of an encoding choose units; its bits decide how fine a value is.
"""
_OF_PAPER = ("encoding", "mode", "labels_to_server", "evaluations")
"""Mode paper has no limits to compare."""


@dataclass(frozen=True)
class Excess:
    """A field by which an agreement gives away more than another, and how much each does."""

    field: str
    found: float
    accepted: float


def excesses(found: Agreement, accepted: Agreement) -> tuple[Excess, ...]:
    """Where `found` gives away more than `accepted`; none: it protects at least as well.

    Raises   InputError when they are not about one data set
    """
    for field in IDENTITY:
        one, other = getattr(found.info, field), getattr(accepted.info, field)
        if one != other:
            raise InputError(f"data set {found.info.name}: its {field} is {one}, not {other}")
    fields = _OF_PAPER if found.info.mode == "paper" else EXPOSURE
    pairs = ((field, EXPOSURE[field](found), EXPOSURE[field](accepted)) for field in fields)
    beyond = tuple(Excess(field, one, other) for field, one, other in pairs if one > other)
    # Sums over labels follow from labels.
    labels = any(excess.field == "labels_to_server" for excess in beyond)
    return tuple(excess for excess in beyond if not labels or excess.field != "evaluations")


def check(found: Agreement, accepted: Agreement) -> None:
    """Refuse an agreement that gives away more than was accepted.

    Raises   InputError naming every such field
    """
    beyond = excesses(found, accepted)
    if beyond:
        listed = ", ".join(f"{x.field} ({x.found:g} instead of {x.accepted:g})" for x in beyond)
        raise InputError(
            f"data set {found.info.name}: gives away more than was accepted: {listed}; accept "
            "that, or choose another name"
        )


def _or_infinity(limit: int | None) -> float:
    return math.inf if limit is None else limit
