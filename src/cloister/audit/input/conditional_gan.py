"""A conditional GAN: Origami's own adversary.

A generator draws images from crossing values. A discriminator sees pairs of values and images, and
learns to tell the true pairs from those that the generator drew.

Source   Narra et al. (arXiv:1912.03485); the losses are those of Isola et al., "Image-to-image
         translation with conditional adversarial networks" (arXiv:1611.07004), with the hinge of
         Lim and Ye (arXiv:1705.02894)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.trained_generator import Batch, TrainedGenerator, descend, set_pace
from cloister.audit.input.value_entry import ValueEntry, initialise, pyramid

STEPS = 600
PACE, DISCRIMINATOR_PACE = 2e-3, 5e-4
BETAS = (0.9, 0.99)
FIDELITY = 100.0
"""Weight of the L1 loss against the adversarial one."""
ALONE = 0.5
"""Of the steps, in which the generator learns by the L1 loss before it has an adversary: an
adversary of a generator that knows nothing yet teaches it little.
"""
WIDTHS = (24, 48, 96)
"""Channels of the discriminator at levels 1, 2 and 3."""
CONDITION_LEVEL = 2
"""Where the values join the image in the discriminator."""
SLOPE = 0.2
"""Of leaky rectifiers."""


class ConditionalGan:
    """Trains a generator, then generator and discriminator in turn."""

    name = "gan"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> TrainedGenerator:
        """See SplitAttack."""
        generator = torch.Generator().manual_seed(seed)
        trained = TrainedGenerator(knowledge, generator=generator)
        critic = Discriminator(trained.shapes, knowledge.image_shape, generator=generator)
        steps = max(round(STEPS * effort), 1)
        drawing = torch.optim.Adam(trained.network.parameters(), PACE, BETAS)
        judging = torch.optim.Adam(critic.parameters(), DISCRIMINATOR_PACE, BETAS)
        for step, batch in enumerate(trained.batches(steps)):
            set_pace(drawing, PACE, step / steps)
            drawn = trained.network(batch.values, batch.estimate)
            loss = FIDELITY * functional.l1_loss(drawn, batch.images)
            if step >= ALONE * steps:
                self._judge(critic, judging, batch, drawn.detach())
                loss = loss - critic(batch.values, drawn).mean()
            descend(drawing, loss)
        return trained

    def _judge(
        self, critic: "Discriminator", judging: torch.optim.Optimizer, batch: Batch, drawn: Tensor
    ) -> None:
        """One step of the discriminator; it drops what a generator's step left in its gradients."""
        true = functional.relu(1 - critic(batch.values, batch.images)).mean()
        false = functional.relu(1 + critic(batch.values, drawn)).mean()
        descend(judging, true + false)


class Discriminator(nn.Module):
    """Judges pairs of values and images, place by place: positive for true ones."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        image_shape: tuple[int, int, int],
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        sizes = pyramid(height, width)
        first, middle, last = WIDTHS
        with torch.device("meta"):
            self.entries = nn.ModuleList(
                ValueEntry(shape, sizes, level=CONDITION_LEVEL, channels=middle) for shape in shapes
            )
            self.down = nn.ModuleList(
                nn.Conv2d(before, after, 3, stride=2, padding=1)
                for before, after in ((channels, first), (first, middle))
            )
            self.joined = nn.Conv2d(2 * middle, last, 3, padding=1)
            self.judged = nn.Conv2d(last, 1, 3, padding=1)
        initialise(self, generator)

    def forward(self, values: Sequence[Tensor], images: Tensor) -> Tensor:
        """One number for each place of the values' level."""
        x = images
        for down in self.down:
            x = functional.leaky_relu(down(x), SLOPE)
        entered = zip(self.entries, values, strict=True)
        condition = torch.stack([entry(value) for entry, value in entered]).sum(0)
        x = functional.leaky_relu(torch.cat([x, condition], dim=1), SLOPE)
        judged: Tensor = self.judged(functional.leaky_relu(self.joined(x), SLOPE))
        return judged
