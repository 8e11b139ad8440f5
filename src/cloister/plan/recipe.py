"""A recipe: what turns a model into the same plan again, as a small file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.plan.accuracy import warn_of_errors
from cloister.plan.plan import Plan
from cloister.plan.policies import NAMES, from_ranges, measure_ranges
from cloister.plan.quantise import Precision, Ranges
from cloister.plan.samples import Samples, as_samples

FORMAT = "cloister recipe 2"
MAX_FILE_BYTES = 16 * 2**20
MAX_RANGES = 2**20
MAX_RANGE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Recipe:
    """A policy, a precision and the calibrated ranges of what every node on the worker reads.

    `samples` are those the ranges were measured on; a recipe from a file has none.
    """

    policy: str
    precision: Precision = field(default_factory=Precision)
    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    samples: Samples | None = field(default=None, compare=False, repr=False)

    def plan(self, model: Graph) -> Plan:
        """The plan for a model: equal recipes and models give equal digests.

        Warns (PrecisionWarning) when a layer's error on the samples exceeds a bound; a recipe from
        a file has nothing to measure it on.
        """
        plan = from_ranges(self.policy, model, ranges=self.ranges, precision=self.precision)
        if self.samples is not None:
            warn_of_errors(plan, as_samples(model, self.samples))
        return plan

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
            "ranges": {name: list(ranges) for name, ranges in self.ranges.items()},
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
    with parsing(f"{path}: not a calibration file"):
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path}: too large for a calibration file")
        document = json.loads(data)
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
    for name, found in ranges.items():
        if not isinstance(found, list) or not 1 <= len(found) <= MAX_RANGES:
            raise InputError(f"{path}: node {name!r} needs a list of 1 to {MAX_RANGES} ranges")
        if not all(type(top) in (int, float) and 0 <= top <= MAX_RANGE for top in found):
            raise InputError(f"{path}: a range of node {name!r} is not a finite number")
    precision = Precision(weight_bits, activation_bits)
    return Recipe(policy, precision, {n: tuple(map(float, tops)) for n, tops in ranges.items()})


def measure(
    model: Graph,
    *,
    policy: str,
    samples: Samples | None,
    precision: Precision,
    by_channel: bool = True,
) -> Recipe:
    """The recipe that follows from typical inputs; `enclave` and `open` need none.

    `by_channel` gives raw input channels scales of their own, which the worker learns as powers of
    two: turn it off where the samples are the very inputs to be hidden.
    Raises PlanError when samples are needed and missing.
    """
    ranges = measure_ranges(policy, model, calibration=samples, by_channel=by_channel)
    return Recipe(policy, precision, ranges, samples)
