"""White-box optimisation: the image whose crossing values are those that were seen.

The attacker runs the part of the model before the split on a guess, compares, and follows the
gradient to a better one. What the values leave open, a prior on images decides; the prior and its
weight are chosen on public images, whose reconstructions the attacker can compare with the truth.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.image_priors import (
    DeepImagePrior,
    ImagePrior,
    ImageVariation,
    PublicCovariance,
    TotalVariation,
)
from cloister.audit.input.linear_estimate import LinearEstimate
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView
from cloister.errors import ShapeError

STEPS = 240
"""Of the search that is continued for each image, after those from all its starts."""
FIRST_STEPS = 30
"""Of the search from each start."""
TRIALS = 16
"""Public images on which the prior is chosen."""
NEAREST = 1
"""Starts at public images of similar values; others are the linear estimate, the blind guess and
noise."""
TOTAL_VARIATIONS = (0.003, 0.1)
COVARIANCES = (0.001, 0.03)
AT_ONCE = 128


class InputOptimisation:
    """Searches for the input by gradients, from several starts."""

    name = "optimise"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> "InputSearch":
        """See SplitAttack."""
        generator = torch.Generator().manual_seed(seed)
        public = torch.from_numpy(knowledge.images)
        order = torch.randperm(len(public), generator=generator)
        trials, others = order[:TRIALS], order[TRIALS:]
        # A trial image does not count among the public images of its own search.
        search = _Search(knowledge, others, effort, generator)
        variation = ImageVariation(public[others])
        priors: list[ImagePrior] = [
            *(TotalVariation(weight) for weight in TOTAL_VARIATIONS),
            *(PublicCovariance(variation, weight) for weight in COVARIANCES),
            DeepImagePrior(knowledge.image_shape, generator=generator),
        ]
        errors = []
        for prior in priors:
            view = knowledge.view.of(trials.numpy())
            found = search.run(prior, view, knowledge.linear_estimate.left_out[trials])
            errors.append(float((found - public[trials]).square().mean()))
        return InputSearch(search, priors[int(np.argmin(errors))], knowledge.linear_estimate)


class InputSearch:
    """A search with the prior that was best on public images."""

    def __init__(self, search: "_Search", prior: ImagePrior, estimate: LinearEstimate) -> None:
        self._search, self.prior, self._estimate = search, prior, estimate

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        parts = []
        for start in range(0, view.count, AT_ONCE):
            part = view.of(np.arange(start, min(start + AT_ONCE, view.count)))
            parts.append(self._search.run(self.prior, part, self._estimate(part)))
        return np.asarray(torch.cat(parts).numpy(), np.float32)


class _Search:
    """Searches one batch of images from several starts and follows the best one of each image."""

    def __init__(
        self,
        knowledge: AttackKnowledge,
        neighbours: Tensor,
        effort: float,
        generator: torch.Generator,
    ) -> None:
        self._before, self._generator = knowledge.before, generator
        # What is sent may be on another scale than what the model makes: each has its own.
        self._seen_scale = FeatureScale(knowledge.view)
        self._own_scale = FeatureScale(knowledge.before.view(knowledge.images))
        self._first_steps = max(round(FIRST_STEPS * effort), 1)
        self._steps = max(round(STEPS * effort), 1)
        self._guess = torch.from_numpy(knowledge.blind_guess)
        self._neighbours = torch.from_numpy(knowledge.images)[neighbours]
        self._neighbour_rows = self._seen_scale.rows(knowledge.view)[neighbours]

    def run(self, prior: ImagePrior, view: SplitView, estimate: Tensor) -> Tensor:
        """The images of a view, of which there are estimates."""
        seen = self._seen_scale.rows(view)
        states = [
            self._descend(
                prior, prior.begin(start, generator=self._generator), seen, self._first_steps
            )
            for start in self._starts(estimate, seen)
        ]
        best = functools.reduce(_State.better, states)
        last = self._descend(prior, best.searched, seen, self._steps)
        with torch.no_grad():
            return prior.images(last.searched).clamp(0, 1)

    def _starts(self, estimate: Tensor, seen: Tensor) -> list[Tensor]:
        apart = torch.cdist(seen, self._neighbour_rows)
        count = min(NEAREST, len(self._neighbours))
        nearest = apart.topk(count, dim=1, largest=False).indices
        guess = self._guess.expand(len(seen), -1, -1, -1)
        noise = torch.rand(guess.shape, generator=self._generator)
        near = [self._neighbours[nearest[:, i]] for i in range(count)]
        return [estimate.clamp(0, 1), guess, noise, *near]

    def _descend(
        self, prior: ImagePrior, searched: Sequence[Tensor], seen: Tensor, steps: int
    ) -> "_State":
        searched = [tensor.detach().clone().requires_grad_() for tensor in searched]
        optimiser = torch.optim.Adam(searched, prior.pace)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = prior.pace * 0.5 * (1 + math.cos(math.pi * step / steps))
            losses = self._losses(prior, searched, seen)
            optimiser.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            return _State(searched, self._losses(prior, searched, seen))

    def _losses(self, prior: ImagePrior, searched: Sequence[Tensor], seen: Tensor) -> Tensor:
        images = prior.images(searched)
        values = self._own_scale.scaled(self._before(images))
        rows = torch.cat([value.flatten(1) for value in values], dim=1)
        if rows.shape != seen.shape:
            raise ShapeError(
                f"the part before the split makes {rows.shape[1]} numbers, the view has "
                f"{seen.shape[1]}"
            )
        return (rows - seen).square().mean(1) + prior.penalty(searched, images)


@dataclass(frozen=True, eq=False)
class _State:
    """What a search has found, and how well it fits, image by image."""

    searched: Sequence[Tensor]
    losses: Tensor

    def better(self, other: "_State") -> "_State":
        """Of each image the one that fits better."""
        mine = self.losses <= other.losses
        searched = [
            torch.where(mine.view(-1, *(1,) * (a.dim() - 1)), a, b)
            for a, b in zip(self.searched, other.searched, strict=True)
        ]
        return _State(searched, torch.minimum(self.losses, other.losses))
