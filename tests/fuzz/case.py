"""Hostile cases against one part of the library, each made from a seed."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fuzz.bounds import FindingError, judge


@dataclass(frozen=True)
class Case:
    """One attempt.

    how    the kind of damage
    data   what is kept of it where it is a finding
    """

    how: str
    data: bytes
    run: Callable[[], object]


Maker = Callable[[np.random.Generator], Case]


@dataclass
class Tally:
    """What became of the cases: their number by kind, those accepted by kind, and the findings."""

    tried: Counter = field(default_factory=Counter)
    accepted: Counter = field(default_factory=Counter)
    found: list[tuple[FindingError, Case, tuple[int, int]]] = field(default_factory=list)


def attack(make: Maker, *, seed: int, numbers: Iterable[int]) -> Tally:
    """Try the cases of these numbers; a finding does not end it."""
    tally = Tally()
    for number in numbers:
        case = make(np.random.default_rng([seed, number]))
        tally.tried[case.how] += 1
        try:
            tally.accepted[case.how] += judge(case.run)
        except FindingError as finding:
            tally.found.append((finding, case, (seed, number)))
    return tally
