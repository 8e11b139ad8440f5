"""Callbacks: a program's own code after each step and each epoch of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from cloister.errors import InputError
from cloister.training.checkpoint import EpochResult
from cloister.training.settings import Settings

Monitored = Literal["test_quality", "train_quality", "loss"]


@dataclass(frozen=True)
class StepResult:
    """What one step came to: step `step` of `steps` in epoch `epoch`, all counted from 1."""

    epoch: int
    step: int
    steps: int
    loss: float


class Training(Protocol):
    """The run that a callback is called from: a `Trainer`."""

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    history: list[EpochResult]

    @property
    def has_test_samples(self) -> bool:
        """Whether epochs end with an evaluation."""
        ...

    def restore(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Give the model the weights that it had after an epoch."""
        ...


class Callback:
    """Does nothing; a callback overrides what it needs.

    Its state goes into the checkpoint: after `kill -9` a callback continues where the run does.
    What it sees and writes is for the eyes of the trainer: losses and accuracies follow from the
    samples, whatever noise the model has.
    """

    def before_training(self, training: Training) -> None:
        """Called at the beginning of `fit`, also of a run that goes on."""

    def after_step(self, training: Training, result: StepResult) -> None:
        """Called after each step, before a checkpoint is written."""

    def after_epoch(self, training: Training, result: EpochResult) -> None:
        """Called after each epoch and its evaluation, before the checkpoint is written."""

    def after_training(self, training: Training) -> None:
        """Called at the end of `fit`, whether or not a callback ended the run."""

    @property
    def finished(self) -> bool:
        """True ends the run before its next epoch."""
        return False

    def state_dict(self) -> Mapping[str, Any]:
        """What the checkpoint keeps: numbers, texts, tensors, and lists and dicts of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


class EarlyStopping(Callback):
    """Ends a run when what it monitors has not improved for `patience` evaluated epochs.

    monitor        qualities are accuracies, or R2 of numbers; test_quality needs encrypted test
                   samples. loss is the training loss
    min_delta      a smaller change is no improvement
    restore_best   at the end of `fit`, early or not, the model gets the weights of its best epoch;
                   False: it has those of its last one

    Raises   InputError
    """

    def __init__(
        self,
        patience: int = 5,
        *,
        monitor: Monitored = "test_quality",
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise InputError(f"EarlyStopping: patience must be at least 1, got {patience}")
        if monitor not in get_args(Monitored):
            known = ", ".join(get_args(Monitored))
            raise InputError(f"EarlyStopping: monitor is one of {known}, not {monitor!r}")
        self.patience, self.monitor, self.min_delta = patience, monitor, min_delta
        self.restore_best = restore_best
        self._best, self._best_epoch, self._waited = -math.inf, 0, 0
        self._weights: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The epoch with the best value so far, counted from 1; 0 before the first."""
        return self._best_epoch

    @property
    def finished(self) -> bool:
        """See Callback."""
        return self._waited >= self.patience

    def before_training(self, training: Training) -> None:
        """See Callback.

        Raises   InputError when there is nothing to monitor, or when stopping would tell more of
                 the training samples than the epsilon of the run allows
        """
        if self.monitor == "test_quality":
            if not training.has_test_samples:
                raise InputError(
                    "EarlyStopping: the run evaluates no test samples; encrypt some "
                    "(--test-fraction) or use monitor='loss'"
                )
        elif training.settings.noise is not None:
            raise InputError(
                f"EarlyStopping: when a run ends by its {self.monitor}, that depends on the "
                "training samples without noise; use monitor='test_quality'"
            )

    def after_epoch(self, training: Training, result: EpochResult) -> None:
        """See Callback."""
        value = getattr(result, self.monitor)
        if value is None:
            return
        quality = -value if self.monitor == "loss" else value
        if quality > self._best + self.min_delta:
            self._best, self._best_epoch, self._waited = quality, result.epoch, 0
            if self.restore_best:
                state = training.model.state_dict()
                self._weights = {name: value.clone() for name, value in state.items()}
        else:
            self._waited += 1

    def after_training(self, training: Training) -> None:
        """See Callback."""
        if self.restore_best and self._weights:
            training.restore(self._best_epoch, self._weights)

    def state_dict(self) -> Mapping[str, Any]:
        """See Callback."""
        return {
            "best": self._best, "best_epoch": self._best_epoch, "waited": self._waited,
            "weights": self._weights,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Callback."""
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        self._waited, self._weights = state["waited"], state["weights"]
