"""The losses of a run, each a value per sample, and how these become one number.

    classes   cross-entropy          -log softmax(scores)[class]
              mse                    |P - Y|^2 / 2 with P = sigmoid(scores) and Y one-hot:
                                     CryptoNN's own setting
    labels    binary-cross-entropy   mean over labels of -log(P or 1 - P), P = sigmoid(scores)
              mse                    |P - Y|^2 / 2
    numbers   mse                    mean over numbers of (score - y)^2, y from -1 to 1
              l1                     mean over numbers of |score - y|

The first of each kind is its default. The derivative of |P - Y|^2 / 2 by P is P - Y, the step that
the paper calls secure evaluation.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cloister.data.info import Targets
from cloister.errors import InputError
from cloister.training.settings import LossName

Loss = Callable[[Tensor, Tensor], Tensor]
"""From scores (n, classes) and targets, (n,) of classes, (n, classes) of labels and numbers, to a
value per sample (n,), or to their mean."""
ClassWeights = Literal["balanced"] | Callable[[Tensor], Tensor]
"""A weight for each class, from the number of training samples of each class."""


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


def loss_of(targets: Targets, name: LossName | None) -> Loss:
    """The loss of a name for targets of a kind; by default the first of the kind.

    Raises   InputError for the loss of another kind
    """
    known = LOSSES[targets]
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise InputError(
            f"loss {name}: the data set has {targets} to learn; choose {' or '.join(known)}"
        )
    return known[chosen]


class TrainingObjective:
    """What a step minimises: the mean of a loss, in which each class has its weight.

    Raises   InputError
    """

    def __init__(
        self,
        loss: Loss | LossName | None = None,
        *,
        targets: Targets = "classes",
        class_weights: ClassWeights | None = None,
    ) -> None:
        self._loss = loss if callable(loss) else loss_of(targets, loss)
        check_class_weights(class_weights)
        if class_weights is not None and targets != "classes":
            raise InputError(
                f"class_weights: the data set has {targets} to learn, which have no weights; leave "
                "class_weights out, or give a loss of your own"
            )
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
        if self._loss is cross_entropy and self._weights is None:
            # PyTorch's own mean: gradients have the same bits, after two operations less.
            return nn.functional.cross_entropy(scores, targets)
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
