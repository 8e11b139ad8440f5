"""A recipe: what turns a model into the same plan again, as a small file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cloister import files
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.plan.plan import Plan
from cloister.plan.policies import NAMES, Samples, from_ranges, measure_ranges
from cloister.plan.quantise import Precision

FORMAT = "cloister recipe 1"
MAX_FILE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Recipe:
    """A policy, a precision and the calibrated range of every value that becomes fixed-point."""

    policy: str
    precision: Precision = field(default_factory=Precision)
    ranges: Mapping[str, float] = field(default_factory=dict)

    def plan(self, model: Graph) -> Plan:
        """The plan for a model: equal recipes and models give equal digests."""
        return from_ranges(self.policy, model, ranges=self.ranges, precision=self.precision)

    @property
    def canonical_bytes(self) -> bytes:
        """One unambiguous description: equal recipes have equal bytes."""
        return json.dumps(self._document(), sort_keys=True).encode()

    def save(self, path: Path, **more: str) -> None:
        """Write the recipe, and what more is said about it, as JSON."""
        text = json.dumps({**self._document(), **more}, indent=2) + "\n"
        files.replace(path, text.encode(), private=False)

    def _document(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "policy": self.policy,
            "weight_bits": self.precision.weight_bits,
            "activation_bits": self.precision.activation_bits,
            "ranges": dict(self.ranges),
        }

    @staticmethod
    def load(path: Path) -> "Recipe":
        """Read a recipe. Nobody vouches for it: who loads it decides whether its policy counts.

        Raises InputError when the file is missing or is no recipe.
        """
        return from_document(read_document(path), path)


def read_document(path: Path) -> Mapping[str, object]:
    """The JSON of a recipe's file.

    Raises   InputError
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: too large for a calibration file")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a calibration file ({error})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: not a calibration file of this version")
    return document


def from_document(document: Mapping[str, object], path: Path) -> Recipe:
    """The recipe that `read_document` found.

    Raises   InputError
    """
    policy, ranges = document.get("policy"), document.get("ranges")
    weight_bits, activation_bits = document.get("weight_bits"), document.get("activation_bits")
    if not isinstance(policy, str) or not isinstance(ranges, dict):
        raise InputError(f"{path}: the calibration file lacks its policy or ranges")
    if policy not in NAMES:
        raise InputError(f"{path}: names the policy {policy!r}; known are {', '.join(NAMES)}")
    if not isinstance(weight_bits, int) or not isinstance(activation_bits, int):
        raise InputError(f"{path}: the calibration file lacks its bits")
    for value, largest in ranges.items():
        number = isinstance(largest, int | float) and not isinstance(largest, bool)
        if not number or not 0 <= largest <= float(np.finfo(np.float32).max):
            raise InputError(f"{path}: the range of {value!r} is not a finite number of float32")
    precision = Precision(weight_bits, activation_bits)
    return Recipe(policy, precision, {name: float(top) for name, top in ranges.items()})


def measure(
    model: Graph,
    *,
    policy: str,
    samples: Samples | None,
    precision: Precision,
) -> Recipe:
    """The recipe that follows from typical inputs; `enclave` and `open` need none.

    Raises PlanError when samples are needed and missing.
    """
    return Recipe(policy, precision, measure_ranges(policy, model, calibration=samples))
