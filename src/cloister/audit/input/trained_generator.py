"""An image generator while it is trained on public images, and afterwards.

It starts from the best linear estimate (linear_estimate.py), which is one of its inputs too, and
adds what a linear map cannot find. During training it sees public images as they are estimated from
all others: an estimate that knew the image would teach it to trust estimates too much.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.image_generator import ImageGenerator
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView

BATCH = 32
AT_ONCE = 64
WARM_SHARE = 0.1
"""Of the steps, during which the learning rate rises; then it falls to 0 along a cosine."""


class Batch(NamedTuple):
    """Public images with what is known of them."""

    values: list[Tensor]
    estimate: Tensor
    images: Tensor


class TrainedGenerator:
    """A generator with what it learns from.

    shapes   of its values; the last one is the estimate
    """

    def __init__(self, knowledge: AttackKnowledge, *, generator: torch.Generator) -> None:
        self._generator = generator
        self._scale = FeatureScale(knowledge.view)
        self._estimate = knowledge.linear_estimate
        self._images = torch.from_numpy(knowledge.images)
        self._guess = torch.from_numpy(knowledge.blind_guess)
        self._spread = float((self._images - self._guess).square().mean().sqrt().clamp_min(1e-6))
        self._public = self._scale(knowledge.view)
        shapes = [tuple(value.shape[1:]) for value in self._public]
        self.shapes = [*shapes, knowledge.image_shape]
        network = ImageGenerator(self.shapes, knowledge.image_shape, generator=generator)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(self, steps: int) -> Iterator[Batch]:
        """Batches of public images, each image once before any comes again."""
        order = torch.empty(0, dtype=torch.int64)
        size = min(BATCH, len(self._images))
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self._images), generator=self._generator)
            chosen, order = order[:size], order[size:]
            estimate = self._estimate.left_out[chosen]
            values = [value[chosen] for value in self._public]
            yield Batch(self._with(values, estimate), estimate, self._images[chosen])

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        values, estimates = self._scale(view), self._estimate(view)
        parts = []
        with torch.no_grad():
            for start in range(0, view.count, AT_ONCE):
                estimate, *chosen = (
                    value[start : start + AT_ONCE] for value in (estimates, *values)
                )
                drawn = self.network(self._with(chosen, estimate), estimate)
                parts.append(drawn.clamp(0, 1).contiguous())
        return np.asarray(torch.cat(parts).numpy(), np.float32)

    def _with(self, values: list[Tensor], estimate: Tensor) -> list[Tensor]:
        return [*values, (estimate - self._guess) / self._spread]


def set_pace(optimiser: torch.optim.Optimizer, pace: float, progress: float) -> None:
    """The learning rate after a share of all steps."""
    warm = min(progress / WARM_SHARE, 1.0)
    cool = 0.5 * (1 + math.cos(math.pi * max(progress - WARM_SHARE, 0) / (1 - WARM_SHARE)))
    for group in optimiser.param_groups:
        group["lr"] = pace * max(warm, 0.05) * cool


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
