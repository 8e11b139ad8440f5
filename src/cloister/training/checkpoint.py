"""Checkpoints: a run that was killed continues bit for bit.

Everything the next step depends on is in the file: parameters, optimiser, scheduler, callbacks, the
generator's state, the key of its noise, and the place in the epoch (its order follows from seed and
epoch). A file is written beside the old one, brought to the disk and renamed over it, so there is
always a whole one.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import EncryptionError, InputError
from cloister.training.metrics import GoodnessOfFit

FORMAT = 4
NAME = "checkpoint.pt"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to; the test's figures are None where nothing was evaluated.

    accuracies   of classes and labels; None for numbers
    fits         of numbers; None for classes and labels
    """

    epoch: int
    loss: float
    train_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    train_fit: GoodnessOfFit | None = None
    test_fit: GoodnessOfFit | None = None

    @property
    def train_quality(self) -> float | None:
        """Accuracy, or of numbers the mean coefficient of determination: more is better."""
        return self.train_accuracy if self.train_fit is None else self.train_fit.mean_r2

    @property
    def test_quality(self) -> float | None:
        """The same on the encrypted test split."""
        return self.test_accuracy if self.test_fit is None else self.test_fit.mean_r2


@dataclass
class Position:
    """Where a run stands: `step` steps of epoch `epoch` are done; sums are of that epoch.

    sums   of `metrics.batch_sums`
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    sums: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Checkpoint:
    """A run's whole state; `run` says which run it is: a digest of each thing that decides it.

    callbacks   the class and the state of each, in order
    noise_key   of the noise in the steps that follow, new in every checkpoint. Secret: a party that
                has it can test guesses at the sums that these steps hide.
    """

    run: dict[str, str]
    position: Position
    history: list[EpochResult]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    callbacks: list[tuple[str, dict[str, Any]]]
    generator: torch.Tensor
    noise_key: bytes = b""


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the folder's checkpoint.

    Raises   InputError when it cannot be written: the old one is still there
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    state = {
        "format": FORMAT,
        "run": checkpoint.run,
        "position": asdict(checkpoint.position),
        "history": [asdict(result) for result in checkpoint.history],
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "scheduler": checkpoint.scheduler,
        "callbacks": checkpoint.callbacks,
        "generator": checkpoint.generator,
        "noise_key": checkpoint.noise_key.hex(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace(folder / NAME, buffer.getvalue())


def load(folder: Path, *, run: dict[str, str]) -> Checkpoint | None:
    """The folder's checkpoint, None when it has none; nothing in it is executed.

    Raises   EncryptionError when the file is damaged or belongs to another run
    """
    files.remove_leftovers(folder)
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] != FORMAT:
            raise EncryptionError(f"{path}: written by another version; start a new --checkpoint")
        checkpoint = Checkpoint(
            dict(state["run"]),
            Position(**state["position"]),
            [_result(result) for result in state["history"]],
            state["model"],
            state["optimizer"],
            state["scheduler"],
            state["callbacks"],
            state["generator"],
            bytes.fromhex(state["noise_key"]),
        )
    except EncryptionError:
        raise
    except Exception as error:  # PyTorch's reader fails in many ways
        raise EncryptionError(f"{path}: damaged; remove it to start anew") from error
    others = [name for name, digest in run.items() if checkpoint.run.get(name) != digest]
    if others:
        raise EncryptionError(
            f"{path}: of another run, with another {' and another '.join(others)}; use another "
            "--checkpoint, or give what it began with"
        )
    return checkpoint


def _result(fields: dict[str, Any]) -> EpochResult:
    fits = {
        name: GoodnessOfFit(**fields[name])
        for name in ("train_fit", "test_fit")
        if fields[name] is not None
    }
    return EpochResult(**fields | fits)


def check_state(what: str, state: object) -> None:
    """Refuse a state that a checkpoint could not give back, before a run depends on it.

    Raises   InputError
    """
    buffer = io.BytesIO()
    with parsing(f"{what}: its state_dict must hold numbers, texts, tensors, lists and dicts"):
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)


def replace(path: Path, content: bytes) -> None:
    """Write a file for its owner alone; after any crash the old or the new content is there, whole.

    Raises   InputError naming the file
    """
    with writing(path):
        files.replace(path, content, private=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written is the user's to mend, by name.

    Raises   InputError
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "--checkpoint, then run the same command again"
        ) from None
