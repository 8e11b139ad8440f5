"""One run of training on an encrypted data set, from its file to the claims for every party."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cloister.authority.answer_keys import clients_fingerprint
from cloister.authority.records import Summary
from cloister.authority.request_log import ReleaseLog
from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.errors import (
    AuthorityUnavailable,
    CloisterError,
    InputError,
    ServiceUnavailable,
)
from cloister.plan.claims import Claims
from cloister.training.accuracy_plot import check_name, write_curve
from cloister.training.callbacks import Callback
from cloister.training.checkpoint import EpochResult
from cloister.training.ciphertexts import CiphertextServer
from cloister.training.data_owner import Note, Update, absence, check_origin
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.kept_model import kept_model, require_room
from cloister.training.metrics import GoodnessOfFit
from cloister.training.model_definition import ModelDefinition, define
from cloister.training.run_page import run_page
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer
from cloister.training.training_authority import TrainingAuthority
from cloister.training.training_claims import claims


@dataclass(frozen=True)
class RunFiles:
    """The files and results that a run leaves.

    model         the folder that keeps the trained `EncryptedModel`, also that of a run that stops
    checkpoint    the folder that keeps the run, and from which it continues
    curve         the learning curve, .svg or .png
    page          an HTML page: curves, budget, and what every party could learn
    release_log   what the training server learns, for an audit
    request_log   what the authority is asked, for an audit
    """

    model: Path | None = None
    checkpoint: Path | None = None
    curve: Path | None = None
    page: Path | None = None
    release_log: Path | None = None
    request_log: Path | None = None


@dataclass(frozen=True, eq=False)
class TrainingOutcome:
    """Everything that a run found out.

    trained       the model, with what stands for its first layer
    kept          the model as `keep` kept it
    model_epoch   the epoch whose weights the model has: the last one, or the best of a run with
                  early stopping
    spent         the data set's budget; None: the authority was away at the end
    """

    trained: nn.Module
    kept: EncryptedModel | None
    dataset: str
    model: str
    settings: Settings
    rank: int | None
    dim: int
    epochs: tuple[EpochResult, ...]
    model_epoch: int
    authority_requests: int
    authority_s: float
    server_s: float
    claims: Claims
    spent: Summary | None
    remarks: tuple[str, ...]

    @property
    def of_model(self) -> EpochResult | None:
        """The figures of the model's epoch."""
        return self.epochs[self.model_epoch - 1] if self.epochs else None

    @property
    def test_accuracy(self) -> float | None:
        """The model's, on the encrypted test part; None for numbers."""
        return None if self.of_model is None else self.of_model.test_accuracy

    @property
    def has_numbers(self) -> bool:
        """Whether the samples have numbers to learn."""
        return any(one.train_fit is not None for one in self.epochs)

    @property
    def test_fit(self) -> GoodnessOfFit | None:
        """The same of numbers."""
        return None if self.of_model is None else self.of_model.test_fit


def train(
    dataset: EncryptedDataset | Path | str,
    *,
    authority: TrainingAuthority,
    model: nn.Module | ModelDefinition | str = "mlp",
    epochs: int = 5,
    settings: Settings | None = None,
    callbacks: Sequence[Callback] = (),
    host: CiphertextServer | None = None,
    keep: RunFiles | None = None,
    note: Note = lambda text: None,
    update: Update = lambda what, done, total: None,
) -> TrainingOutcome:
    """Train a model on samples that stay encrypted.

    model          a model, or the name of one (`models.MODELS`), or FILE.py, or a definition with
                   loss, optimizer, scheduler or class weights of its own; a model's own weights are
                   where it begins
    callbacks      are called after each step and epoch
    host           with unblind_to trusted: who makes the products on ciphertexts
    note, update   are called with each remark as it arises, and with the progress of the run

    Raises   EncryptionError when the file is not the authority's, before any key is asked for;
             BudgetError; AuthorityUnavailable; in the last two cases after a checkpoint
    """
    settings, keep = settings or Settings(), keep or RunFiles()
    opened = dataset if isinstance(dataset, EncryptedDataset) else EncryptedDataset.open(dataset)
    if keep.curve is not None:
        check_name(keep.curve)
    if keep.page is not None and not keep.page.parent.is_dir():
        raise InputError(f"{keep.page}: there is no folder {keep.page.parent}; make it first")
    torch.manual_seed(settings.seed)
    defined = _defined(model)
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        note(text)

    absent = check_origin(opened, authority)
    if absent:
        remark(absence(opened.path, absent))
    withdrawn = authority.withdrawn(opened.name)
    if withdrawn.holds(opened.ids).any():
        opened = opened.without(withdrawn)
        remark(
            f"{withdrawn.count:,} samples of data set {opened.name} were withdrawn and are left "
            "out; a run that began with one of them does not go on: give a new --checkpoint"
        )
    with ExitStack() as stack:
        log, requests = (
            None if path is None else stack.enter_context(closing(ReleaseLog(path)))
            for path in (keep.release_log, keep.request_log)
        )
        trainer = Trainer(
            defined.module(opened.shape, classes=opened.classes), opened, keys=authority,
            rng=SystemRandom(), settings=settings, server=host, loss=defined.loss,
            optimizer=defined.optimizer, scheduler=defined.scheduler,
            class_weights=defined.class_weights, callbacks=callbacks, source=defined.digest,
            checkpoint_dir=keep.checkpoint, release_log=log, request_log=requests,
        )  # fmt: skip
        if keep.model is not None:
            require_room(keep.model, trainer)
        clients = clients_fingerprint(authority.answer_key(opened.name))
        with _kept(trainer, keep, defined.name, authority.fingerprint, clients) as made:
            trainer.prepare(lambda done, total: update("samples", done, total))
            history = trainer.fit(epochs, update=lambda done, total: update("steps", done, total))
        spent = _spent(authority, opened.name, remark)
    if spent is not None and spent.withdrawn > withdrawn.count:
        remark(
            f"{spent.withdrawn - withdrawn.count:,} samples were withdrawn during this run, and "
            "its model may have learned from them: train again, with a new --checkpoint"
        )
    if keep.curve is not None:
        write_curve(history, keep.curve, title=f"{defined.name} on {opened.name}, encrypted")
    outcome = _outcome(trainer, history, name=defined.name, kept=made, spent=spent, remarks=remarks)
    if keep.page is not None:
        files.replace(keep.page, run_page(outcome).encode(), private=False)
    return outcome


def _defined(model: nn.Module | ModelDefinition | str) -> ModelDefinition:
    if isinstance(model, ModelDefinition):
        return model
    if isinstance(model, str):
        return define(model)
    return ModelDefinition(lambda shape, classes: model, name=type(model).__name__)


@contextmanager
def _kept(
    trainer: Trainer, keep: RunFiles, name: str, authority: str, clients: str
) -> Iterator[list[EncryptedModel]]:
    """A context that trains, and keeps the model at its end; gives a list that holds it then.

    Where the run stops before its end, the error says what is left of it.
    """
    made: list[EncryptedModel] = []

    def save(folder: Path) -> None:
        made.append(kept_model(trainer, name=name, authority=authority, clients=clients))
        made[0].save(folder)

    try:
        yield made
    except CloisterError as error:
        left = []
        if keep.model is not None and trainer.has_begun:
            save(keep.model)
            left.append(f"the model as it is by now is kept in {keep.model}")
        if keep.checkpoint is not None and isinstance(error, ServiceUnavailable):
            left.append(f"the run is kept in {keep.checkpoint}: the same command goes on with it")
        elif isinstance(error, ServiceUnavailable):
            left.append("nothing of the run is kept: name a --checkpoint FOLDER")
        if not left:
            raise
        raise type(error)("; ".join([str(error), *left])) from None
    if keep.model is not None:
        save(keep.model)


def _outcome(
    trainer: Trainer,
    history: Sequence[EpochResult],
    *,
    name: str,
    kept: Sequence[EncryptedModel],
    spent: Summary | None,
    remarks: Sequence[str],
) -> TrainingOutcome:
    counters = trainer.products.counters
    return TrainingOutcome(
        trained=trainer.model,
        kept=kept[0] if kept else None,
        dataset=trainer.info.name,
        model=name,
        settings=trainer.settings,
        rank=trainer.projection.rank if trainer.projection else None,
        dim=trainer.info.dim,
        epochs=tuple(history),
        model_epoch=trainer.model_epoch,
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
        note(f"the ledger cannot be shown: {error}")
        return None
