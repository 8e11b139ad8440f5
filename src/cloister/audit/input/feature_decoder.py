"""A decoder: a network that is trained to draw an image from its crossing values."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.image_generator import ImageGenerator
from cloister.audit.input.image_score import ssim
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView

STEPS = 800
BATCH = 32
PACE = 2e-3
WARM_SHARE = 0.1
"""Of the steps, during which the learning rate rises; then it falls to 0 along a cosine."""
AT_ONCE = 64


class FeatureDecoder:
    """Learns from public images by L1 and structural similarity."""

    name = "decoder"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> "TrainedGenerator":
        """See SplitAttack."""
        generator = torch.Generator().manual_seed(seed)
        trained = TrainedGenerator(knowledge, generator=generator)
        network = trained.network
        steps = max(round(STEPS * effort), 1)
        optimiser = torch.optim.Adam(network.parameters(), PACE)
        for step, (values, images) in enumerate(
            batches(trained.public, knowledge.images, steps, generator=generator)
        ):
            set_pace(optimiser, PACE, step / steps)
            drawn = network(values)
            loss = functional.l1_loss(drawn, images) + 0.5 * (1 - ssim(drawn, images).mean())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return trained


class TrainedGenerator:
    """An image generator with the scale of its values.

    public   the values that it learns from
    """

    def __init__(self, knowledge: AttackKnowledge, *, generator: torch.Generator) -> None:
        self._scale = FeatureScale(knowledge.view)
        self.public = self._scale(knowledge.view)
        self.shapes = [tuple(value.shape[1:]) for value in self.public]
        guess = torch.from_numpy(knowledge.blind_guess)
        self.network = ImageGenerator(self.shapes, guess, generator=generator)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        values = self._scale(view)
        parts = []
        with torch.no_grad():
            for start in range(0, view.count, AT_ONCE):
                drawn = self.network([value[start : start + AT_ONCE] for value in values])
                parts.append(drawn.clamp(0, 1).contiguous())
        return np.asarray(torch.cat(parts).numpy())


def batches(
    values: Sequence[Tensor], images: Images, steps: int, *, generator: torch.Generator
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Batches of values and their images, each image once before any comes again."""
    pixels = torch.from_numpy(images)
    order = torch.empty(0, dtype=torch.int64)
    size = min(BATCH, len(pixels))
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(pixels), generator=generator)
        chosen, order = order[:size], order[size:]
        yield [value[chosen] for value in values], pixels[chosen]


def set_pace(optimiser: torch.optim.Optimizer, pace: float, progress: float) -> None:
    """The learning rate after a share of all steps."""
    warm = min(progress / WARM_SHARE, 1.0)
    cool = 0.5 * (1 + math.cos(math.pi * max(progress - WARM_SHARE, 0) / (1 - WARM_SHARE)))
    for group in optimiser.param_groups:
        group["lr"] = pace * max(warm, 0.05) * cool
