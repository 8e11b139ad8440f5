"""The one interface of all attacks on a split: Transcript -> Reconstruction -> Score.

observe (split_view.py)        from the wire's transcript to the view of a worker
run_attack (here)              from the view to a reconstruction
score_images (image_score.py)  from the reconstruction to scores
"""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.split_view import SplitView
from cloister.errors import InputError

Images = Float32[np.ndarray, "n c h w"]


class FittedAttack(Protocol):
    """An attack that has learned what it can without the view that it attacks."""

    def reconstruct(self, view: SplitView) -> Images:
        """The images that a view is of, in 0..1, in its order."""
        ...


class SplitAttack(Protocol):
    """A way to get images back from what a worker sees of them."""

    @property
    def name(self) -> str:
        """Its name in reports and on the command line."""
        ...

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> FittedAttack:
        """Learn from public images.

        seed     decides every random choice
        effort   multiplies the steps of the attack's searches; 1 is meant for an audit
        """
        ...


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What one attack made of one view, and the processor time that it took."""

    images: Images
    cpu_s: float


def run_attack(
    attack: SplitAttack,
    knowledge: AttackKnowledge,
    view: SplitView,
    *,
    seed: int,
    effort: float = 1.0,
) -> Reconstruction:
    """Fit an attack and reconstruct the images of a view.

    Raises   InputError when the view is of another split than the public one, or an effort is not
             positive
    """
    if view.shapes != knowledge.view.shapes:
        raise InputError(
            f"the view has values of shapes {view.shapes}, the public one {knowledge.view.shapes}"
        )
    if not effort > 0:
        raise InputError(f"effort: {effort}; give a positive number, 1 for an audit")
    started = time.process_time()
    images = attack.fit(knowledge, seed=seed, effort=effort).reconstruct(view)
    return Reconstruction(images, time.process_time() - started)
