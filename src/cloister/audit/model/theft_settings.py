"""What a thief has and does; needs no PyTorch."""

from dataclasses import dataclass
from typing import Literal

from cloister.errors import InputError

Answers = Literal["probabilities", "label"]


@dataclass(frozen=True)
class TheftSettings:
    """The thief's queries, answers and training.

    splits          numbers of hidden layers; None: every one
    queries         query budgets, each contained in the larger ones
    seeds           how often a theft is repeated, with other queries and other initial weights
    answers         the victim answers a query with probabilities, or with a label alone
    evaluated       samples that a surrogate is evaluated on at most
    steps, batch    of training one surrogate
    learning_rate   of Adam at the first step; it falls to zero along a cosine
    """

    splits: tuple[int, ...] | None = None
    queries: tuple[int, ...] = (0, 50, 100, 500)
    seeds: int = 3
    answers: Answers = "probabilities"
    evaluated: int = 2000
    steps: int = 300
    batch: int = 32
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        for name, given, least in (
            ("splits", self.splits or (1,), 1),
            ("queries", self.queries, 0),
        ):
            if not given or list(given) != sorted(set(given)) or given[0] < least:
                raise InputError(
                    f"{name}: give different numbers from {least} on, in rising order, "
                    f"not {','.join(map(str, given)) or 'nothing'}"
                )
        for name in ("seeds", "evaluated", "steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: give a number from 1 on")
        if self.queries == (0,):
            raise InputError("queries: give at least one number above 0")
