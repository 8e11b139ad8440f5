"""The public description of a data set, which is the same for all parties."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cloister.base.reading import parsing
from cloister.data.encoding import Encoding
from cloister.errors import EncryptionError, InputError
from cloister.ring.bounds import MAX_SAMPLES, check_sample

Mode = Literal["budgeted", "paper"]
"""budgeted: a request beyond a sample's budget is refused. paper: it is counted and answered."""

Targets = Literal["classes", "labels", "numbers"]
"""What a sample has to learn. classes: one of several. labels: any of several (multi-label).
numbers: measured values (regression)."""
TARGETS: tuple[Targets, ...] = get_args(Targets)

RING_LIMIT = 2**31
"""Answers are centred modulo 2^32, so a released value must stay below this magnitude."""

PICTURE_SIZE = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS = ("budget_rank", "classes", "encoding", "mode", "name", "samples", "shape")


@dataclass(frozen=True)
class DatasetInfo:
    """The public description of one encrypted data set; everyone sees the same bytes.

    classes   width of a target: its classes, labels or numbers
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    encoding: Encoding
    samples: int
    budget_rank: int
    mode: Mode = "budgeted"
    targets: Targets = "classes"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"data set {self.name!r}: a name is 1 to 64 letters, digits, '.', '_' or '-'"
            )
        check_described(self.name, self.shape, self.classes, self.targets)
        if not 0 <= self.samples <= MAX_SAMPLES:
            raise InputError(
                f"data set {self.name}: holds 0 to {MAX_SAMPLES} samples, not {self.samples}"
            )
        if not 0 <= self.budget_rank <= self.dim:
            raise InputError(
                f"data set {self.name}: its budget is 0 to {self.dim} functions, "
                f"not {self.budget_rank}"
            )
        if self.mode not in ("budgeted", "paper"):
            raise InputError(f"data set {self.name}: mode must be budgeted or paper: {self.mode!r}")

    @property
    def dim(self) -> int:
        """Elements of one sample."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_picture(self) -> bool:
        """Large enough in both directions to be taken for a picture, which has smooth functions."""
        return min(self.shape[:2]) >= PICTURE_SIZE

    @property
    def default_budget(self) -> int:
        """The rank that an owner gives away who decides nothing: see docs/adr/0007.

        One function at least: small tables would be of no use to a training server without it.
        """
        return max(1, self.dim // (16 if self.is_picture else 4))

    @property
    def row_norm_limit(self) -> int:
        """Largest sum of |weights| of one function for which |A x| stays below 2^31."""
        return (RING_LIMIT - 1) // self.encoding.bound

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, no spaces, ASCII; equal descriptions are equal bytes."""
        fields: dict[str, Any] = {
            "budget_rank": self.budget_rank,
            "classes": self.classes,
            "encoding": {
                "bits": self.encoding.bits,
                "offset": float(self.encoding.offset),
                "scale": float(self.encoding.scale),
            },
            "mode": self.mode,
            "name": self.name,
            "samples": self.samples,
            "shape": list(self.shape),
            **targets_field(self.targets),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")

    @staticmethod
    def from_json(data: bytes) -> "DatasetInfo":
        """Inverse of `to_json`; takes only bytes that `to_json` would write.

        Raises EncryptionError.
        """
        try:
            with parsing("data set description: is damaged", kind=EncryptionError):
                info = _from_fields(json.loads(data.decode("ascii")))
        except InputError as error:
            raise EncryptionError(f"data set description: {error}") from error
        if info.to_json() != data:
            raise EncryptionError("data set description: not in canonical form; export it again")
        return info


def check_described(name: str, shape: tuple[int, int, int], classes: int, targets: Targets) -> None:
    """Refuse samples and targets that no data set may hold.

    Raises   InputError
    """
    if targets not in TARGETS:
        raise InputError(f"data set {name}: targets must be {', '.join(TARGETS)}: {targets!r}")
    check_sample(name, shape, classes, least=2 if targets == "classes" else 1)


def targets_field(targets: Targets) -> dict[str, Targets]:
    """The field of a description in JSON; classes are what a description without it means."""
    return {} if targets == "classes" else {"targets": targets}


@dataclass(frozen=True)
class PartInfo:
    """One client's part: samples `first` to `first + samples`, as registered at the authority."""

    part: str
    first: int
    samples: int
    sha256: str

    @property
    def last(self) -> int:
        """The id behind the last sample."""
        return self.first + self.samples


Register = Callable[[str, int, str, bytes], int]
"""(part, samples, sha256, pad key) -> first id, once the authority has recorded the part."""


def _from_fields(fields: dict[str, Any]) -> DatasetInfo:
    if not isinstance(fields, dict) or tuple(sorted(fields.keys() - {"targets"})) != _FIELDS:
        raise ValueError(f"needs exactly the fields {', '.join(_FIELDS)}")
    encoding = fields["encoding"]
    shape = tuple(_whole(size, "shape") for size in fields["shape"])
    if len(shape) != 3:
        raise ValueError("shape must hold three sizes")
    if fields["mode"] not in ("budgeted", "paper"):
        raise ValueError("mode must be budgeted or paper")
    return DatasetInfo(
        name=str(fields["name"]),
        shape=shape,
        classes=_whole(fields["classes"], "classes"),
        encoding=Encoding(
            float(encoding["scale"]), float(encoding["offset"]), _whole(encoding["bits"], "bits")
        ),
        samples=_whole(fields["samples"], "samples"),
        budget_rank=_whole(fields["budget_rank"], "budget_rank"),
        mode=fields["mode"],
        targets=fields.get("targets", "classes"),
    )


def _whole(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{name} must be a whole number")
    return value
