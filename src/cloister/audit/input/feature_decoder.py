"""A decoder: a network that is trained to draw an image from its crossing values."""

import torch
from torch.nn import functional

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.image_score import ssim
from cloister.audit.input.trained_generator import TrainedGenerator, descend, set_pace

STEPS = 600
PACE = 2e-3
STRUCTURE = 0.5
"""Weight of 1 - SSIM against the L1 loss."""


class FeatureDecoder:
    """Learns from public images by L1 and structural similarity."""

    name = "decoder"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> TrainedGenerator:
        """See SplitAttack."""
        generator = torch.Generator().manual_seed(seed)
        trained = TrainedGenerator(knowledge, generator=generator)
        steps = max(round(STEPS * effort), 1)
        optimiser = torch.optim.Adam(trained.network.parameters(), PACE)
        for step, batch in enumerate(trained.batches(steps)):
            set_pace(optimiser, PACE, step / steps)
            drawn = trained.network(batch.values, batch.estimate)
            unlike = 1 - ssim(drawn, batch.images).mean()
            descend(optimiser, functional.l1_loss(drawn, batch.images) + STRUCTURE * unlike)
        return trained
