"""Training on an encrypted data set.

    trainable   the first layer is encrypted (`layers`): every step asks for new keys
    frozen      the first layer is a fixed projection (`frozen`): keys once per sample

Either way the loss is an ordinary function of ordinary tensors; the rest of the model, the
optimiser and the order of the samples are those of plain training with the same seed.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from cloister.authority.key_service import KeyService
from cloister.authority.request_log import Recorder
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import StepNoise
from cloister.data.info import DatasetInfo, Targets
from cloister.errors import CloisterError, EncryptionError, InputError
from cloister.ring.bounds import most_at_once
from cloister.training import checkpoint, model_check, models
from cloister.training.callbacks import Callback, StepResult
from cloister.training.checkpoint import Checkpoint, EpochResult, Position
from cloister.training.ciphertexts import (
    Ciphertexts,
    CiphertextServer,
    HostedServer,
    LocalCiphertextServer,
    WitnessedServer,
)
from cloister.training.frozen import Features, Lift, Projection, default_projection
from cloister.training.layers import Encrypted, Samples
from cloister.training.losses import ClassWeights, Loss, TrainingObjective
from cloister.training.metrics import Measured, added, batch_sums, measured
from cloister.training.model_definition import MakeOptimizer
from cloister.training.private import PrivateStep
from cloister.training.products import Products
from cloister.training.schedule import MakeScheduler, Schedule
from cloister.training.settings import LossName, Settings

__all__ = ["Trainer", "TrainingData", "epoch_order"]

_log = logging.getLogger("cloister.training")
Update = Callable[[int, int], None]
EVALUATION_BATCH = 256
LABEL_BATCH = 4096


class TrainingData(Ciphertexts, Protocol):
    """An encrypted data set as its file describes it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a sample."""
        ...

    @property
    def classes(self) -> int:
        """Width of a target: its classes, labels or numbers."""
        ...

    @property
    def targets(self) -> Targets:
        """What a sample has to learn."""
        ...

    @property
    def encoding(self) -> Encoding:
        """Meaning of its integers."""
        ...

    @property
    def identity(self) -> str:
        """Differs wherever the authority or any sample does."""
        ...

    @property
    def train_ids(self) -> Int64[np.ndarray, " n"]:
        """Samples to learn from."""
        ...

    @property
    def test_ids(self) -> Int64[np.ndarray, " n"]:
        """Samples to measure with."""
        ...


class Trainer:
    """Trains a model whose first layer never meets a plain sample.

    The default settings give away the least: a data set's ledger guards every key, and the first
    layer is a fixed projection.

    keys          answers requests for unblinding terms: `cloister.authority.connect` gives one
    rng           of the noise on gradients: `cloister.base.rng.SystemRandom()`
    server        a host for the products on ciphertexts; default: this process makes them
    loss          of scores and targets: a value per sample, or their mean; default: the settings'
    optimizer     makes one; default: that of the settings
    scheduler     makes one, which steps after each epoch; default: a constant learning rate
    class_weights makes a weight for each class; default: those of the settings
    callbacks     are called after each step and epoch, in this order
    source        digest of the file that defines the model: a checkpoint belongs to one text
    checkpoint_dir   keeps the run, and continues it
    release_log   keeps what this process receives where it is the server
    request_log   keeps what the authority is asked

    Raises   BudgetError when a sample's budget is spent, AuthorityUnavailable when the authority
             stays away; in either case after a checkpoint
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: TrainingData,
        *,
        keys: KeyService,
        rng: Csprng,
        settings: Settings | None = None,
        server: CiphertextServer | None = None,
        loss: Loss | LossName | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        class_weights: ClassWeights | None = None,
        callbacks: Sequence[Callback] = (),
        source: str = "",
        projection: Projection | None = None,
        checkpoint_dir: Path | None = None,
        release_log: Recorder | None = None,
        request_log: Recorder | None = None,
    ) -> None:
        settings = settings or Settings()
        _check_once(settings, loss=loss, optimizer=optimizer, class_weights=class_weights)
        if isinstance(loss, str):
            settings = replace(settings, loss=loss)
        if class_weights == "balanced":
            settings = replace(settings, class_weights="balanced")
        self.settings = settings
        self.info = keys.describe(dataset.name)
        _check(dataset, self.info, settings)
        model_check.check_inputs(model)
        self.hosted = server is not None
        own = LocalCiphertextServer(dataset, threads=settings.threads)
        asked: CiphertextServer = own
        if server is not None:
            asked = HostedServer(server, own, gradients=settings.offload_gradients)
        self._witness = None if settings.noise is None else WitnessedServer(asked)
        self.products = Products(
            self.info,
            self._witness or asked,
            keys=keys,
            receiver=settings.unblind_to,
            recorder=release_log,
            requests=request_log,
            patience_s=settings.patience_s,
        )
        self.projection: Projection | None = None
        self._folder = checkpoint_dir
        self._train_ids, self._test_ids = dataset.train_ids, dataset.test_ids
        self._described, self.identity = f"{source} {model!r}", dataset.identity
        self._features: tuple[Features, Tensor] | None = None
        self._samples = Samples(self.info.shape)
        self._private: PrivateStep | None = None
        self._layer: Encrypted | None = None
        if settings.noise is not None and class_weights is not None:
            raise InputError("class_weights: their counts have no noise; train without them")
        self._objective = TrainingObjective(
            loss or settings.loss,
            targets=self.info.targets,
            class_weights=class_weights or settings.class_weights,
        )
        self._rng, self._noise_key = rng, rng.random_bytes(KEY_BYTES)
        self.own_model = model
        if settings.first_layer == "frozen":
            # Independent of the run's seed: a data set gives values of one function, to every run.
            self.projection = projection or default_projection(self.info, rank=settings.rank)
            self.model: nn.Module = nn.Sequential(Lift(self.projection, self.info.shape), model)
        else:
            self.model = model
            self._encrypt()
        self.optimizer = (optimizer or partial(_optimizer, settings))(self.model.parameters())
        self._schedule = Schedule(scheduler, self.optimizer, noisy=settings.noise is not None)
        checkpoint.check_state("scheduler", self._schedule.state_dict())
        self._callbacks = list(callbacks)
        for callback in callbacks:
            checkpoint.check_state(type(callback).__name__, callback.state_dict())
        parameters = {id(parameter) for parameter in self.model.parameters()}
        state = self.model.state_dict(keep_vars=True).values()
        self._statistics = [value for value in state if id(value) not in parameters]
        self._ids = np.sort(np.concatenate([self._train_ids, self._test_ids]))
        self._labels: Tensor | None = None
        self._generator = torch.get_rng_state()
        self.position = Position()
        self.history: list[EpochResult] = []
        self._restored: tuple[int, dict[str, Tensor]] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether any step has changed the model."""
        return bool(self.history) or self.position.step > 0

    @property
    def model_epoch(self) -> int:
        """The epoch after which the model had the weights that it has, counted from 1."""
        return len(self.history) if self._restored is None else self._restored[0]

    def restore(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Give the model the weights that it had after an epoch.

        The next `fit` goes on from those of the last epoch, as a checkpoint does.
        """
        self._go_on()
        last = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        self._restored = epoch, last

    def _go_on(self) -> None:
        """Give the model the weights of the last epoch again."""
        if self._restored is not None:
            self.model.load_state_dict(self._restored[1])
            self._restored = None

    def prepare(self, update: Update = lambda done, total: None) -> None:
        """Check the model, unblind labels and, for a frozen first layer, project every sample.

        It does so once, and asks for no key if the model does not fit.
        """
        if self._labels is None:
            self._try_model()
            step = min(LABEL_BATCH, most_at_once(self.info))
            parts = [
                self.products.labels(self._ids[i : i + step])
                for i in range(0, len(self._ids), step)
            ]
            self._labels = torch.from_numpy(np.concatenate(parts))
            self._objective.weigh(self._targets(self._train_ids), classes=self.info.classes)
        if self.projection is not None and self._features is None:
            features = Features(
                self.projection, self._ids, info=self.info, identity=self.identity,
                folder=self._folder,
            )  # fmt: skip
            features.complete(self.products, update=update)
            self._features = (features, features.tensor())

    def fit(self, epochs: int, *, update: Update = lambda done, total: None) -> list[EpochResult]:
        """Train until `epochs` epochs are done, counting those of a checkpoint, or until a callback
        has finished.

        update   is called with steps done and steps in all
        """
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, got {epochs}")
        torch.set_num_threads(self.settings.threads)
        self.prepare()
        self._go_on()
        resumed = self._resume()
        if not resumed:
            torch.manual_seed(self.settings.seed)
        steps = math.ceil(len(self._train_ids) / self.settings.batch)
        self._generator = torch.get_rng_state()
        if self._private is not None and not resumed:
            self._save()  # the first steps, if they are made again, shall have the same noise
        for callback in self._callbacks:
            callback.before_training(self)
        while self.position.epoch < epochs and not any(one.finished for one in self._callbacks):
            for batch in self._batches():
                loss = self.step(batch)
                position = self.position
                result = StepResult(position.epoch + 1, position.step, steps, loss)
                for callback in self._callbacks:
                    callback.after_step(self, result)
                update(self.position.epoch * steps + self.position.step, epochs * steps)
                if self.position.step % self.settings.checkpoint_every == 0:
                    self._generator = torch.get_rng_state()
                    self._save()
            self._finish_epoch(last=self.position.epoch + 1 == epochs)
        for callback in self._callbacks:
            callback.after_training(self)
        return self.history

    def evaluate(self, ids: Int64[np.ndarray, " n"] | None = None) -> Measured:
        """Figures of the encrypted test split, or of some samples; an encrypted first layer asks
        for keys here too.
        """
        self.prepare()
        ids = self._test_ids if ids is None else ids
        self.model.eval()
        sums: list[float] = []
        with torch.no_grad():
            step = min(EVALUATION_BATCH, most_at_once(self.info))
            for i in range(0, len(ids), step):
                part = ids[i : i + step]
                sums = added(sums, self._sums(self._scores(part), self._targets(part)))
        self.model.train()
        return measured(self.info.targets, sums, self._targets(ids))

    def _sums(self, scores: Tensor, wanted: Tensor) -> list[float]:
        return batch_sums(self.info.targets, scores, wanted)

    @property
    def has_test_samples(self) -> bool:
        """Whether epochs end with an evaluation."""
        return len(self._test_ids) > 0 and self.settings.evaluate_every > 0

    def _try_model(self) -> None:
        """Refuse a model that does not fit."""
        with _OF_MODEL:
            if self._layer is not None:
                scores = model_check.check_reads_once(self.model, self._layer, self._samples)
            else:
                width = self.info.dim if self.projection is None else self.projection.rank
                scores = model_check.tried(self.model, torch.zeros(2, width))
        self._check_scores(scores, 2)

    def _encrypt(self) -> None:
        layer = self._layer = models.encrypt_first(
            self.model,
            self.info.shape,
            samples=self._samples,
            products=self.products,
            encoding=self.info.encoding.normalised,
            weight_bits=self.settings.weight_bits,
        )
        if self.settings.noise is not None:
            self._private = PrivateStep(
                self.model, layer, noise=self.settings.noise, objective=self._objective
            )

    def _batches(self) -> Iterator[Int64[np.ndarray, " n"]]:
        """The rest of the current epoch; its order follows from seed and epoch."""
        order = epoch_order(
            len(self._train_ids), seed=self.settings.seed, epoch=self.position.epoch
        )
        size = self.settings.batch
        for start in range(self.position.step * size, len(order), size):
            yield self._train_ids[order[start : start + size]]

    def step(self, batch: Int64[np.ndarray, " n"]) -> float:
        """The loss of one step on the named samples; a checkpoint is written when it fails."""
        if self._folder is not None:
            self._generator = torch.get_rng_state()
        kept = [value.clone() for value in self._statistics]
        started = time.perf_counter()
        try:
            loss = self._step(batch)
        except CloisterError:
            # A step fails before the optimiser runs; only running statistics may have moved.
            for value, before in zip(self._statistics, kept, strict=True):
                value.copy_(before)
            self._save()
            raise
        self.position.seconds += time.perf_counter() - started
        return loss

    def _step(self, batch: Int64[np.ndarray, " n"]) -> float:
        position = self.position
        self.products.step += 1
        for group in self.optimizer.param_groups:  # `zero_grad` without its 10 us of hooks
            for parameter in group["params"]:
                parameter.grad = None
        targets = self._targets(batch)
        if self._private is None or self._witness is None:
            scores = self._scores(batch)
            with _OF_LOSS:
                loss = self._objective(scores, targets)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            seen = self._witness
            seen.begin(targets.numpy())
            noise = StepNoise(self._noise_key, position.epoch, position.step, seen.digest)
            with _OF_MODEL:
                x = self._samples.of(batch)
                loss, scores = self._private.backward(x, targets, step=noise)
        self.optimizer.step()
        position.step += 1
        value = float(loss.detach())
        position.loss_sum += value * len(batch)
        position.sums = added(position.sums, self._sums(scores, targets))
        return value

    def _finish_epoch(self, *, last: bool) -> None:
        self._generator = torch.get_rng_state()
        position, every = self.position, self.settings.evaluate_every
        due = self.has_test_samples and (last or (position.epoch + 1) % every == 0)
        try:
            tested = self.evaluate() if due else Measured()
        except CloisterError:
            self._save()
            raise
        count = len(self._train_ids)
        loss = position.loss_sum / count
        trained = measured(self.info.targets, position.sums, self._targets(self._train_ids))
        result = EpochResult(
            position.epoch + 1, loss, trained.accuracy, tested.accuracy, position.seconds,
            trained.fit, tested.fit,
        )  # fmt: skip
        self.history.append(result)
        _log.info("data set %s: epoch %d, loss %.4g", self.info.name, result.epoch, result.loss)
        self.position = Position(epoch=position.epoch + 1)
        self._schedule.step(loss)
        for callback in self._callbacks:
            callback.after_epoch(self, result)
        self._generator = torch.get_rng_state()
        self._save()

    def _scores(self, ids: Int64[np.ndarray, " n"]) -> Tensor:
        features = self._features
        x = self._samples.of(ids) if features is None else self._taken(features[1], ids)
        with _OF_MODEL:
            scores: Tensor = self.model(x)
        self._check_scores(scores, len(ids))
        return scores

    def _check_scores(self, scores: Tensor, samples: int) -> None:
        if scores.shape != (samples, self.info.classes):
            raise InputError(
                f"model: gives {tuple(scores.shape)} for {samples} samples of "
                f"{self.info.classes} {self.info.targets}"
            )

    def _targets(self, ids: Int64[np.ndarray, " n"]) -> Tensor:
        if self._labels is None:
            raise InputError("trainer: call prepare() first")
        return self._taken(self._labels, ids)

    def _taken(self, rows: Tensor, ids: Int64[np.ndarray, " n"]) -> Tensor:
        """Rows of the named samples; PyTorch's own indexing would take two to six times as long."""
        return torch.from_numpy(rows.numpy().take(self._ids.searchsorted(ids), axis=0))

    @property
    def run_digest(self) -> str:
        """Which run a kept model belongs to."""
        return hashlib.sha256("".join(self._run_digests().values()).encode()).hexdigest()

    def _run_digests(self) -> dict[str, str]:
        """Which run a checkpoint belongs to: a digest of each thing that decides it.

        Samples count that are in the file, each by its part's digest: the authority's number also
        grows by those of a client that was killed, and that must not orphan a checkpoint.
        """
        settings = self.settings
        data = (
            replace(self.info, samples=0).to_json(),
            self.identity.encode(),
            self._train_ids.tobytes(),
            self._test_ids.tobytes(),
        )
        parts = {
            "data set": b"\0".join(data),
            "model": self._described.encode(),
            "optimizer": f"{type(self.optimizer).__name__} {self.optimizer.defaults}".encode(),
            "loss": self._objective.description.encode(),
            "scheduler": self._schedule.description.encode(),
            "settings": repr((
                settings.first_layer, settings.unblind_to, settings.batch, settings.seed,
                settings.rank, settings.weight_bits, settings.noise,
            )).encode(),
        }  # fmt: skip
        return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}

    def _resume(self) -> bool:
        run = self._run_digests()
        found = None if self._folder is None else checkpoint.load(self._folder, run=run)
        if found is None:
            return self.position != Position() or bool(self.history)
        try:
            self.model.load_state_dict(found.model)
            self.optimizer.load_state_dict(found.optimizer)
            self._schedule.load_state_dict(found.scheduler)
        except (RuntimeError, ValueError, KeyError) as error:
            raise EncryptionError(f"{self._folder}: the checkpoint is of another model") from error
        self._restore_callbacks(found.callbacks)
        torch.set_rng_state(found.generator)
        self.position, self.history = found.position, found.history
        self._noise_key = found.noise_key
        return True

    def _restore_callbacks(self, kept: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Give each callback its state.

        Raises   InputError when the run had other callbacks
        """
        given, before = [type(one).__name__ for one in self._callbacks], [name for name, _ in kept]
        if given != before:
            raise InputError(
                f"{self._folder}: the run was begun with the callbacks {before}, not {given}; give "
                "the same ones, or another --checkpoint"
            )
        for callback, (_, state) in zip(self._callbacks, kept, strict=True):
            callback.load_state_dict(state)

    def _save(self) -> None:
        if self._folder is not None:
            # Steps before this file and behind it share no key: it tells nothing of what is done.
            fresh = self._rng.random_bytes(KEY_BYTES)
            state = Checkpoint(
                self._run_digests(),
                self.position,
                self.history,
                self.model.state_dict(),
                self.optimizer.state_dict(),
                self._schedule.state_dict(),
                [(type(one).__name__, dict(one.state_dict())) for one in self._callbacks],
                self._generator,
                fresh,
            )
            checkpoint.save(state, self._folder)
            self._noise_key = fresh


class _ErrorsOf:
    """A user's model or loss may not fit its tensors; PyTorch says so in many ways.

    A class: the context of a generator would cost several times as much at every step.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError | ValueError | TypeError | IndexError):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self._what}: {first}") from error


_OF_MODEL, _OF_LOSS = _ErrorsOf("model"), _ErrorsOf("loss")


def _optimizer(settings: Settings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=settings.learning_rate or 0.05, momentum=0.9)
    return Adam(parameters, lr=settings.learning_rate or 1e-3)


def _check_once(settings: Settings, **given: object) -> None:
    """Refuse a decision that is made twice, as a function and in the settings.

    Raises   InputError naming it
    """
    named = {
        "loss": settings.loss,
        "optimizer": settings.optimizer or settings.learning_rate,
        "class_weights": settings.class_weights,
    }
    for name, value in given.items():
        if value is not None and named[name] is not None:
            raise InputError(
                f"{name}: the model's author gives one, and the settings name {named[name]!r}; "
                "drop one of them"
            )


def epoch_order(count: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " count"]:
    """The order of `count` samples in an epoch; a comparison with plain training needs it."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator).numpy()


def _check(dataset: TrainingData, info: DatasetInfo, settings: Settings) -> None:
    described = (info.name, info.shape, info.classes, info.targets, info.encoding)
    held = (dataset.name, dataset.shape, dataset.classes, dataset.targets, dataset.encoding)
    if described != held:
        raise EncryptionError(
            f"data set {dataset.name!r}: the file and the authority describe it differently; use "
            "the authority it was made with"
        )
    if len(dataset.train_ids) == 0:
        raise InputError(f"data set {dataset.name!r}: it has no training samples")
    if settings.unblind_to == "server" and info.mode != settings.mode:
        raise InputError(
            f"data set {dataset.name!r} is registered in mode {info.mode!r}, the run asks for "
            f"{settings.mode!r}; its first client chose that: run with allow_unbounded_leakage "
            "(--allow-unbounded-leakage) in mode 'paper' and without it in mode 'budgeted', or "
            "encrypt the samples again"
        )
