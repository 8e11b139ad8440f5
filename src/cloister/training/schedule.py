"""The learning rate of a run: a scheduler of PyTorch's, which steps after each epoch."""

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cloister.errors import InputError

MakeScheduler = Callable[[Optimizer], LRScheduler]


class Schedule:
    """The scheduler that a program makes for a run's optimizer, or none.

    Raises   InputError for what is no scheduler, and for one that reads the loss where gradients
             have noise
    """

    def __init__(self, make: MakeScheduler | None, optimizer: Optimizer, *, noisy: bool) -> None:
        self._scheduler = None if make is None else make(optimizer)
        if not isinstance(self._scheduler, LRScheduler | None):
            raise InputError(
                f"scheduler: gives a {type(self._scheduler).__name__}; give a scheduler of "
                "torch.optim.lr_scheduler"
            )
        if noisy and isinstance(self._scheduler, ReduceLROnPlateau):
            raise InputError(
                "scheduler: ReduceLROnPlateau follows the loss of the training samples, which has "
                "no noise; use one that counts epochs"
            )

    @property
    def description(self) -> str:
        """Names it, for the name of a run."""
        return type(self._scheduler).__name__

    def step(self, loss: float) -> None:
        """An epoch is done; ReduceLROnPlateau gets its training loss."""
        if self._scheduler is None:
            return
        with warnings.catch_warnings():
            # A run that goes on between an epoch's last step and its end steps no optimizer first.
            warnings.filterwarnings("ignore", message="Detected call of", category=UserWarning)
            if isinstance(self._scheduler, ReduceLROnPlateau):
                self._scheduler.step(loss)
            else:
                self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)
