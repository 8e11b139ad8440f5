"""Small images, their views, and what attacks are expected to make of them."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.image_score import blind_scores, score_images, summarise
from cloister.audit.input.split_attack import run_attack
from cloister.audit.input.split_view import SplitView

PUBLIC, ATTACKED = 500, 200


class Before:
    """The part of a model before a split, as functions of images."""

    def __init__(self, *functions):
        self.functions = functions

    def __call__(self, images):
        return [function(images) for function in self.functions]

    def view(self, images):
        with torch.no_grad():
            values = self(torch.from_numpy(np.ascontiguousarray(images)))
        return SplitView(tuple(value.numpy().copy() for value in values))


@cache
def digits():
    """Public images and attacked ones, (n, 1, 8, 8) in 0..1."""
    images = (load_digits().images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[:PUBLIC]], images[order[-ATTACKED:]]


@cache
def trained_layer(width=12):
    """The hidden layer of a classifier of digits: too few numbers for a linear map back."""
    found = load_digits()
    x = torch.from_numpy((found.images / 16).astype(np.float32)).flatten(1)
    labels = torch.from_numpy(found.target)
    generator = torch.Generator().manual_seed(0)
    first = (torch.randn((width, 64), generator=generator) / 8).requires_grad_()
    last = (torch.randn((10, width), generator=generator) / 4).requires_grad_()
    optimiser = torch.optim.Adam([first, last], 0.02)
    for _ in range(100):
        loss = functional.cross_entropy(torch.relu(x @ first.T) @ last.T, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.3
    weights = first.detach()
    return Before(lambda images: torch.relu(images.flatten(1) @ weights.T))


def knowledge_of(before, public):
    return AttackKnowledge(public, before.view(public), before)


def attacked_by(attack, knowledge, attacked, view, *, seed=0, effort=0.2):
    """The scores of one run, image by image."""
    found = run_attack(attack, knowledge, view, seed=seed, effort=effort)
    return score_images(attacked, found.images, blind_guess=knowledge.blind_guess)


def summary_of(scores, knowledge, attacked):
    blind = blind_scores(attacked, blind_guess=knowledge.blind_guess)
    return summarise([scores], blind)
