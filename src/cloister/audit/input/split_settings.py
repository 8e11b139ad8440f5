"""What an audit of splits does; needs no PyTorch."""

from dataclasses import dataclass

from cloister.errors import InputError
from cloister.plan.split_report import LEAST_SEEDS
from cloister.plan.split_scores import ATTACKS

DEFAULT_ATTACKED = 200


@dataclass(frozen=True)
class SplitSettings:
    """The splits and attacks of an audit.

    splits    each the last nodes before it; None: every split point of the model
    attacks   of the battery
    seeds     how often an attack is made, with other weights, orders and starts
    effort    multiplies the steps of the attacks' searches
    """

    splits: tuple[tuple[str, ...], ...] | None = None
    attacks: tuple[str, ...] = ATTACKS
    seeds: int = LEAST_SEEDS
    effort: float = 1.0

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise InputError(f"attack {name!r}: choose of {', '.join(ATTACKS)}")
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise InputError(f"attacks: give different ones of {', '.join(ATTACKS)}")
        if self.splits is not None and not self.splits:
            raise InputError("splits: name one at least, or give all")
        if self.seeds < 1:
            raise InputError("seeds: give a number from 1 on")
        if not 0 < self.effort < float("inf"):
            raise InputError(f"effort {self.effort}: give a positive number; 1 is an audit's")
