"""What a step minimises: the mean of a loss over a batch, in which classes may have weights."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from cloister.data.info import Targets
from cloister.errors import InputError
from cloister.training.settings import LossName
from cloister.training.target_losses import Loss

ClassWeights = Literal["balanced"] | Callable[[Tensor], Tensor]
"""A weight for each class, from the number of training samples of each class."""


class Objective:
    """The mean of a loss, in which each class has its weight.

    loss   gives a value per sample, or their mean

    Raises   InputError for weights of anything but classes
    """

    def __init__(
        self, loss: Loss, *, targets: Targets = "classes", class_weights: ClassWeights | None = None
    ) -> None:
        check_class_weights(class_weights)
        if class_weights is not None and targets != "classes":
            raise InputError(f"class_weights: the data set has {targets} to learn, not classes")
        self._loss = loss
        self._class_weights = class_weights
        self._weights: Tensor | None = None

    @property
    def description(self) -> str:
        """Names both, for the name of a run."""
        return f"{_name(self._loss)} {_name(self._class_weights)}"

    def weigh(self, targets: Tensor, *, classes: int) -> None:
        """Find the weights of the classes from the classes of the training samples."""
        if self._class_weights is None:
            return
        counts = torch.bincount(targets, minlength=classes).float()
        make = balanced if self._class_weights == "balanced" else self._class_weights
        weights = torch.as_tensor(make(counts), dtype=torch.float32)
        if weights.shape != counts.shape or not (weights.isfinite() & (weights >= 0)).all():
            raise InputError(
                f"class_weights: must give {classes} finite weights of at least 0, one per class"
            )
        self._weights = weights

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """One number for a batch.

        Raises   InputError when the loss gives anything but (n,) values or their mean
        """
        values = self._loss(scores, targets)
        if not isinstance(values, Tensor) or values.shape not in ((), targets.shape[:1]):
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"loss: must give one value per sample or their mean, got {given}")
        if self._weights is None:
            return values.mean()
        if values.ndim == 0:
            raise InputError(
                "loss: class_weights needs one value per sample; compute it with reduction='none'"
            )
        of_samples = self._weights[targets]
        total = of_samples.sum().clamp_min(torch.finfo(torch.float32).tiny)
        return (values * of_samples).sum() / total


def balanced(counts: Tensor) -> Tensor:
    """Weights in inverse proportion to how often a class occurs; 0 for one that does not."""
    weights = counts.sum() / (len(counts) * counts)
    return torch.where(counts > 0, weights, 0.0)


def check_class_weights(given: object) -> None:
    """Refuse weights by class number or name.

    The classes of a data set are permuted: only clients know which number is which class.

    Raises   InputError
    """
    if given is None or given == "balanced" or callable(given):
        return
    raise InputError(
        "class_weights: classes are numbered in a secret order, so a weight per class would fall "
        "on some other class; give 'balanced', or a function of the classes' counts"
    )


def check_loss(given: object) -> None:
    """Refuse what is neither the name of a loss nor a function.

    Raises   InputError
    """
    if not (given is None or callable(given) or given in get_args(LossName)):
        known = ", ".join(get_args(LossName))
        raise InputError(f"loss {given!r}: choose {known}, or give a function(scores, targets)")


def _name(given: object) -> str:
    return str(getattr(given, "__qualname__", None) or repr(given))
