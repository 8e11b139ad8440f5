"""The figures that an audit of splits measures: of one attack on one split, with intervals."""

import math
from dataclasses import dataclass

from cloister.errors import InputError

ATTACKS = ("gan", "decoder", "optimise", "ridge")
"""The battery. A split is accepted only if all of them were run on it."""
ROUNDING = 1e-9
"""By which the formulas of an interval may miss the mean where both are at the end of a scale."""


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.mean, self.low, self.high))):
            raise InputError("an estimate holds NaN or infinity")
        if not self.low - ROUNDING <= self.mean <= self.high + ROUNDING:
            raise InputError(
                f"an estimate of {self.mean} lies outside its interval {self.low} to {self.high}"
            )


@dataclass(frozen=True)
class AttackScores:
    """What one attack reached on one split, over all seeds.

    ssim             structural similarity, in -1..1
    psnr             decibels
    explained        1 - MSE over the MSE of the blind guess, the mean of the public images
    identification   how often the true image is the best match among `candidates`
    seeds            how many runs were made
    cpu_s            processor time of all of them
    """

    attack: str
    ssim: Estimate
    psnr: Estimate
    explained: Estimate
    identification: Estimate
    seeds: int
    cpu_s: float

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise InputError(f"attack {self.attack!r}: the battery has {', '.join(ATTACKS)}")
        for name, given, low, high in (
            ("ssim", self.ssim.mean, -1.0, 1.0),
            ("explained", self.explained.mean, -math.inf, 1.0),
            ("identification", self.identification.mean, 0.0, 1.0),
        ):
            if not low - ROUNDING <= given <= high + ROUNDING:
                raise InputError(f"attack {self.attack}: {name} lies outside {low:g} to {high:g}")
        if self.seeds < 1 or not 0 <= self.cpu_s < math.inf:
            raise InputError(f"attack {self.attack}: was run {self.seeds} times")


@dataclass(frozen=True)
class SplitScores:
    """One split; the one at the input is a control and has depth 0.

    until      the last nodes before it, as `--until` takes them
    values     what crosses
    elements   how many numbers cross for each input
    depth      linear nodes before it
    """

    until: tuple[str, ...]
    values: tuple[str, ...]
    elements: int
    depth: int
    attacks: tuple[AttackScores, ...]

    def __post_init__(self) -> None:
        names = [scores.attack for scores in self.attacks]
        if len(set(names)) < len(names):
            raise InputError(f"split {self.name!r}: has scores of one attack twice")
        if self.elements < 0 or self.depth < 0:
            raise InputError(f"split {self.name!r}: has a size below 0")

    @property
    def name(self) -> str:
        """Its name for people."""
        return ",".join(self.until) or "input"

    def attack(self, name: str) -> AttackScores | None:
        """The scores of one attack; None where it was not run."""
        return next((scores for scores in self.attacks if scores.attack == name), None)
