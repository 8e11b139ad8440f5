"""The losses of each kind of targets, each a value per sample.

    classes   cross-entropy   -log softmax(scores)[class]
              mse             |P - Y|^2 / 2 with P = sigmoid(scores) and Y one-hot: CryptoNN's own
    labels    binary-cross-entropy   mean over labels of -log P of what is true, P = sigmoid(scores)
              mse             |P - Y|^2 / 2
    numbers   mse             mean over numbers of (score - y)^2, in half ranges
              l1              mean over numbers of |score - y|

The first of each kind is its default.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cloister.data.info import Targets
from cloister.errors import InputError
from cloister.training.settings import LossName

Loss = Callable[[Tensor, Tensor], Tensor]
"""From scores (n, classes) and targets, (n,) for classes, else (n, classes), to values (n,)."""


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample."""
    return nn.functional.cross_entropy(scores, targets, reduction="none")


def class_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of sigmoid(scores) to the one-hot target, of every sample."""
    # Not one_hot: it reads its values, which no vmap of gradients per sample allows.
    wanted = (torch.arange(scores.shape[1]) == targets.unsqueeze(1)).to(scores.dtype)
    return label_error(scores, wanted)


def binary_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of the labels of every sample."""
    with_logits = nn.functional.binary_cross_entropy_with_logits
    return with_logits(scores, targets, reduction="none").mean(1)


def label_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of sigmoid(scores) to the labels of every sample."""
    return (scores.sigmoid() - targets).square().sum(1) / 2


def squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the numbers of every sample."""
    return (scores - targets).square().mean(1)


def absolute_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of the numbers of every sample."""
    return (scores - targets).abs().mean(1)


LOSSES: Mapping[Targets, Mapping[LossName, Loss]] = {
    "classes": {"cross-entropy": cross_entropy, "mse": class_error},
    "labels": {"binary-cross-entropy": binary_cross_entropy, "mse": label_error},
    "numbers": {"mse": squared_error, "l1": absolute_error},
}


def loss_of(targets: Targets, name: LossName | None, *, dataset: str) -> Loss:
    """The loss of a name for targets of a kind; by default the first of the kind.

    Raises   InputError for the loss of another kind
    """
    known = LOSSES[targets]
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise InputError(
            f"loss {name}: data set {dataset!r} has {targets} to learn; choose {' or '.join(known)}"
        )
    return known[chosen]
