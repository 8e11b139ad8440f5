"""Ridge regression from crossing values to pixels: the floor that trained attacks have to beat."""

import numpy as np

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.linear_estimate import LinearEstimate
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView


class RidgeDecoder:
    """The best linear estimate. Neither seed nor effort changes anything."""

    name = "ridge"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> "RidgeMap":
        """See SplitAttack."""
        return RidgeMap(knowledge.linear_estimate)


class RidgeMap:
    """A fitted map."""

    def __init__(self, estimate: LinearEstimate) -> None:
        self._estimate = estimate

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        return np.asarray(self._estimate(view).clamp(0, 1).numpy(), np.float32)
