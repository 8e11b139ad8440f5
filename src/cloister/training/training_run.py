"""One run of training on an encrypted data set, from its file to what every party could learn."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from cloister.authority.key_service import KeyService, Receiver
from cloister.authority.records import Part, Summary
from cloister.authority.request_log import ReleaseLog
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.feature_noise import GaussianNoise
from cloister.data.writer import check_registered
from cloister.errors import AuthorityUnavailable, EncryptionError, ServiceUnavailable
from cloister.plan.claims import Claims
from cloister.training import models
from cloister.training.accuracy_plot import check_name, write_curve
from cloister.training.checkpoint import EpochResult
from cloister.training.ciphertexts import CiphertextServer
from cloister.training.claims import claims
from cloister.training.data_owner import Note, Update, absence, registered
from cloister.training.settings import FirstLayer
from cloister.training.trainer import Trainer


@dataclass(frozen=True)
class RunSettings:
    """How a run trains.

    optimizer          sgd has momentum 0.9
    learning_rate      None: 0.001 for adam, 0.05 for sgd
    seed               of weights and order
    checkpoint         the folder that keeps the run, and from which it goes on
    checkpoint_every   steps; a checkpoint is also written after every epoch
    patience_s         how long an authority or a ciphertext host may be away
    """

    epochs: int = 5
    batch: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float | None = None
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int = 200
    patience_s: float = 60.0
    threads: int = 1

    def optimize(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser of a model's parameters."""
        if self.optimizer == "sgd":
            return SGD(parameters, lr=self.learning_rate or 0.05, momentum=0.9)
        return Adam(parameters, lr=self.learning_rate or 1e-3)


@dataclass(frozen=True)
class Disclosure:
    """Who learns what in a run; see `cloister.training.settings.Settings`.

    first_layer         None: frozen where the server unmasks within a budget, else trainable
    rank                functions of a sample that a frozen layer uses; None: the whole budget
    unmask_to           who receives the unmasking terms: trusted needs a token of that role
    host                with unmask_to trusted: who makes the products on ciphertexts
    offload_gradients   let that host see each sample's output gradient as well
    noise               on gradients, with unmask_to trusted
    """

    first_layer: FirstLayer | None = None
    rank: int | None = None
    unmask_to: Receiver = "server"
    allow_unbounded_leakage: bool = False
    host: CiphertextServer | None = None
    offload_gradients: bool = False
    noise: GaussianNoise | None = None


@dataclass(frozen=True)
class RunFiles:
    """What a run leaves beside its checkpoint.

    curve         the learning curve, .svg or .png
    release_log   what the training server learns, for an audit
    request_log   what the authority is asked, for an audit
    """

    curve: Path | None = None
    release_log: Path | None = None
    request_log: Path | None = None


@dataclass(frozen=True, eq=False)
class TrainingOutcome:
    """Everything that a run found out.

    trained   the model, with what stands for its first layer
    spent     the data set's budget; None: the authority was away at the end
    """

    trained: nn.Module
    dataset: str
    model: str
    first_layer: FirstLayer
    unmask_to: Receiver
    mode: str
    rank: int | None
    dim: int
    epochs: tuple[EpochResult, ...]
    authority_requests: int
    authority_s: float
    server_s: float
    claims: Claims
    spent: Summary | None
    remarks: tuple[str, ...]

    @property
    def test_accuracy(self) -> float | None:
        """Of the last epoch, on the encrypted test part."""
        return self.epochs[-1].test_accuracy if self.epochs else None


class TrainingAuthority(KeyService, Protocol):
    """The authority as a run of training sees it."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        ...

    def parts(self, dataset: str) -> tuple[Part, ...]:
        """The registered parts of a data set."""
        ...

    def summary(self, dataset: str) -> Summary:
        """The budget of a data set in figures."""
        ...


def train(
    dataset: EncryptedDataset | Path | str,
    *,
    authority: TrainingAuthority,
    model: nn.Module | str = "mlp",
    run: RunSettings | None = None,
    disclosure: Disclosure | None = None,
    keep: RunFiles | None = None,
    note: Note = lambda text: None,
    update: Update = lambda what, done, total: None,
) -> TrainingOutcome:
    """Train a model on samples that stay encrypted.

    model          a model, or mlp, lenet5 or FILE.py; a model's own weights are where it begins
    note, update   are told each remark as it arises, and how far the run is

    Raises   EncryptionError when the file is not the authority's, before any key is asked for;
             BudgetError; AuthorityUnavailable; in the last two cases after a checkpoint
    """
    run, disclosure, keep = run or RunSettings(), disclosure or Disclosure(), keep or RunFiles()
    opened = dataset if isinstance(dataset, EncryptedDataset) else EncryptedDataset.open(dataset)
    if keep.curve is not None:
        check_name(keep.curve)
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        note(text)

    _check_origin(opened, authority, remark)
    with ExitStack() as stack:
        trainer = _trainer(opened, authority, model, run, disclosure, keep, stack)
        with _kept(run.checkpoint):
            trainer.prepare(lambda done, total: update("samples", done, total))
            history = trainer.fit(
                run.epochs, update=lambda done, total: update("steps", done, total)
            )
        name = model if isinstance(model, str) else type(model).__name__
        spent = _spent(authority, opened.name, remark)
    if keep.curve is not None:
        write_curve(history, keep.curve, title=f"{name} on {opened.name}, encrypted")
    return _outcome(trainer, history, name=name, spent=spent, remarks=remarks)


def _trainer(
    opened: EncryptedDataset,
    authority: TrainingAuthority,
    model: nn.Module | str,
    run: RunSettings,
    disclosure: Disclosure,
    keep: RunFiles,
    stack: ExitStack,
) -> Trainer:
    log, requests = (
        None if path is None else stack.enter_context(closing(ReleaseLog(path)))
        for path in (keep.release_log, keep.request_log)
    )
    first_layer = disclosure.first_layer
    if first_layer is None:
        bounded = disclosure.unmask_to == "server" and not disclosure.allow_unbounded_leakage
        first_layer = "frozen" if bounded else "trainable"
    torch.manual_seed(run.seed)
    if isinstance(model, str):
        model = models.build(model, opened.shape, classes=opened.classes)
    return Trainer(
        model,
        opened,
        keys=authority,
        rng=SystemRandom(),
        first_layer=first_layer,
        unmask_to=disclosure.unmask_to,
        allow_unbounded_leakage=disclosure.allow_unbounded_leakage,
        noise=disclosure.noise,
        server=disclosure.host,
        optimizer=run.optimize,
        checkpoint_dir=run.checkpoint,
        release_log=log,
        request_log=requests,
        offload_gradients=disclosure.offload_gradients,
        batch=run.batch,
        seed=run.seed,
        rank=disclosure.rank,
        checkpoint_every=run.checkpoint_every,
        patience_s=run.patience_s,
        threads=run.threads,
    )


def _check_origin(dataset: EncryptedDataset, authority: TrainingAuthority, note: Note) -> None:
    """Refuse a file of another authority, or with parts that this one has not registered so.

    Raises   EncryptionError naming file and part
    """
    if dataset.authority_fingerprint != authority.fingerprint:
        raise EncryptionError(
            f"{dataset.path}: belongs to authority {dataset.authority_fingerprint[:16]}, not "
            f"{authority.fingerprint[:16]}; give that one's --authority and --pin"
        )
    absent = check_registered(dataset, registered(authority.parts(dataset.name)))
    if absent:
        note(absence(dataset.path, absent))


@contextmanager
def _kept(checkpoint: Path | None) -> Iterator[None]:
    """Say what is left of a run whose authority stays away."""
    try:
        yield
    except ServiceUnavailable as error:
        left = "nothing of the run is kept: name a --checkpoint FOLDER"
        if checkpoint is not None:
            left = f"the run is kept in {checkpoint}: the same command goes on with it"
        raise type(error)(f"{error}; {left}") from None


def _outcome(
    trainer: Trainer,
    history: Sequence[EpochResult],
    *,
    name: str,
    spent: Summary | None,
    remarks: Sequence[str],
) -> TrainingOutcome:
    settings, counters = trainer.settings, trainer.products.counters
    return TrainingOutcome(
        trained=trainer.model,
        dataset=trainer.info.name,
        model=name,
        first_layer=settings.first_layer,
        unmask_to=settings.unmask_to,
        mode=settings.mode,
        rank=trainer.projection.rank if trainer.projection else None,
        dim=trainer.info.dim,
        epochs=tuple(history),
        authority_requests=counters.requests,
        authority_s=counters.authority_s,
        server_s=counters.server_s,
        claims=claims(trainer, epochs=len(history)),
        spent=spent,
        remarks=tuple(remarks),
    )


def _spent(authority: TrainingAuthority, dataset: str, note: Note) -> Summary | None:
    """The data set's budget.

    A frozen run needs no authority any more at its end, and must not be lost for want of one.
    """
    try:
        return authority.summary(dataset)
    except AuthorityUnavailable as error:
        note(f"what is spent is not shown: {error}")
        return None
