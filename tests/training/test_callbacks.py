"""Callbacks, early stopping and schedulers, and that a run that goes on has their state."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from cloister.base.rng import InsecureSeededRandom
from cloister.data.feature_noise import GaussianNoise
from cloister.errors import BudgetError, InputError
from cloister.training.callbacks import Callback, EarlyStopping, StepResult
from cloister.training.models import mlp
from cloister.training.trainer import Trainer
from training.doubles import MemoryAuthority, MemoryDataset, blobs
from training.test_trainer import FROZEN, PAPER, TRUSTED, same, trainer, weights


class Recorder(Callback):
    """Keeps what it is told, and draws random numbers."""

    def __init__(self):
        self.seen = []
        self.begun = 0

    def before_training(self, training):
        self.begun += 1

    def after_step(self, training, result):
        assert training.model.training
        rate = training.optimizer.param_groups[0]["lr"]
        self.seen.append([result.epoch, result.step, result.loss, rate, float(torch.rand(1))])

    def after_epoch(self, training, result):
        self.seen.append([result.epoch, result.test_accuracy, float(torch.rand(1))])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def falling(optimizer):
    return lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)


def on_plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3)


def test_callbacks_see_every_step_and_epoch():
    recorder = Recorder()
    made, _, _ = trainer(FROZEN, callbacks=[recorder])
    made.fit(2)
    steps = [one[:2] for one in recorder.seen if len(one) == 5]
    assert steps == [[epoch, step] for epoch in (1, 2) for step in range(1, 11)]
    epochs = [one for one in recorder.seen if len(one) == 3]
    assert [one[:2] for one in epochs] == [[r.epoch, r.test_accuracy] for r in made.history]
    assert recorder.begun == 1


def test_a_scheduler_steps_after_each_epoch():
    recorder = Recorder()
    made, _, _ = trainer(FROZEN, callbacks=[recorder], scheduler=falling)
    made.fit(4)
    rates = [one[3] for one in recorder.seen if len(one) == 5][::10]
    assert rates == pytest.approx([0.05, 0.025, 0.025, 0.0125])


def test_a_scheduler_may_follow_the_loss():
    made, _, _ = trainer(FROZEN, scheduler=on_plateau)
    made.fit(4)
    found = [one.loss for one in made.history]
    best, bad = found[0], 0
    for loss in found[1:]:
        good = loss < best * 0.7
        best, bad = (loss, bad) if good else (best, bad + 1)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**bad)


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from training.test_callbacks import everything
from cloister.training.models import mlp
from training.test_trainer import PAPER, trainer
made, _, _ = trainer(
    replace(PAPER, checkpoint_every=2), checkpoint_dir=Path(sys.argv[1]), **everything(sys.argv[2])
)
print("started", flush=True)
made.fit(5, update=lambda done, total: print(done, flush=True))
"""


def everything(scheduler):
    make = {"falling": falling, "on_plateau": on_plateau}[scheduler]
    stopping = EarlyStopping(2, min_delta=0.02)
    return {"scheduler": make, "callbacks": [Recorder(), stopping]}


@pytest.mark.parametrize("scheduler", ["falling", "on_plateau"])
def test_kill_9_loses_no_state_of_scheduler_or_callbacks(scheduler, tmp_path):
    whole, _, _ = trainer(PAPER, **everything(scheduler))
    whole.fit(5)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for step in (3, 13, 25):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SCRIPT, str(tmp_path), scheduler],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            for line in process.stdout:
                if line.strip().isdigit() and int(line) >= step:
                    process.send_signal(signal.SIGKILL)
                    break
            process.wait()
    resumed, _, _ = trainer(PAPER, checkpoint_dir=tmp_path, **everything(scheduler))
    resumed.fit(5)
    assert same(weights(resumed), weights(whole))
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    kept, wanted = ([one.state_dict() for one in made._callbacks] for made in (resumed, whole))
    best, best_wanted = kept[1].pop("weights"), wanted[1].pop("weights")
    assert kept == wanted
    assert best.keys() == best_wanted.keys()
    assert all(torch.equal(best[name], best_wanted[name]) for name in best)
    assert resumed.model_epoch == whole.model_epoch
    assert len(resumed.history) == len(whole.history)


@pytest.mark.parametrize("allowed", [3, 11, 22])
def test_a_run_that_was_refused_keys_goes_on_with_its_state(allowed, tmp_path):
    """Also between the last step of an epoch and its evaluation."""
    whole, _, _ = trainer(PAPER, **everything("falling"))
    whole.fit(2)
    broken, authority, _ = trainer(PAPER, checkpoint_dir=tmp_path, **everything("falling"))
    authority.refuse_after = allowed
    with pytest.raises(BudgetError):
        broken.fit(2)
    resumed, _, _ = trainer(PAPER, checkpoint_dir=tmp_path, **everything("falling"))
    resumed.fit(2)
    assert same(weights(resumed), weights(whole))
    assert resumed._callbacks[0].seen == whole._callbacks[0].seen


def test_early_stopping_ends_a_run_and_it_stays_ended(tmp_path):
    stopping = EarlyStopping(2)
    made, _, _ = trainer(FROZEN, callbacks=[stopping], checkpoint_dir=tmp_path)
    history = made.fit(60)
    accuracies = [result.test_accuracy for result in history]
    best = max(accuracies)
    assert len(history) < 60
    assert stopping.best_epoch == accuracies.index(best) + 1 == len(history) - 2
    again, _, _ = trainer(FROZEN, callbacks=[EarlyStopping(2)], checkpoint_dir=tmp_path)
    assert len(again.fit(60)) == len(history)
    longer, _, _ = trainer(FROZEN, callbacks=[EarlyStopping(4)], checkpoint_dir=tmp_path)
    assert len(longer.fit(60)) > len(history)


class Weights(Callback):
    """Keeps the model's weights after each epoch."""

    def __init__(self):
        self.seen = []

    def after_epoch(self, training, result):
        self.seen.append({name: one.clone() for name, one in training.model.state_dict().items()})


def has(made, seen):
    state = made.model.state_dict()
    return state.keys() == seen.keys() and all(
        torch.equal(state[name], seen[name]) for name in seen
    )


@pytest.mark.parametrize("settings", [FROZEN, PAPER])
@pytest.mark.parametrize("epochs", [60, 4])
def test_the_model_ends_with_the_weights_of_its_best_epoch(settings, epochs):
    """Also where the run ends by its number of epochs."""
    seen, stopping = Weights(), EarlyStopping(2, min_delta=0.01)
    made, _, _ = trainer(settings, callbacks=[seen, stopping])
    history = made.fit(epochs)
    best = stopping.best_epoch
    assert made.model_epoch == best
    assert has(made, seen.seen[best - 1])
    if settings is FROZEN:
        assert made.evaluate().accuracy == history[best - 1].test_accuracy
    last = Weights()
    kept, _, _ = trainer(
        settings, callbacks=[last, EarlyStopping(2, min_delta=0.01, restore_best=False)]
    )  # fmt: skip
    assert len(kept.fit(epochs)) == kept.model_epoch == len(history)
    assert has(kept, last.seen[-1])
    assert (epochs == 4) or (best < len(history) and not has(kept, seen.seen[best - 1]))


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_run_goes_on_from_its_last_epoch_not_its_best(in_folder, tmp_path):
    def made(folder):
        return trainer(
            FROZEN, callbacks=[EarlyStopping(9, min_delta=0.5)],
            checkpoint_dir=folder if in_folder else None,
        )[0]  # fmt: skip

    whole, parts = made(tmp_path / "whole"), made(tmp_path / "parts")
    whole.fit(4)
    parts.fit(2)
    assert parts.model_epoch == 1
    parts.fit(4)
    assert [one.loss for one in parts.history] == [one.loss for one in whole.history]
    assert same(weights(parts), weights(whole))
    if in_folder:
        again = made(tmp_path / "parts")
        again.fit(4)
        assert again.model_epoch == whole.model_epoch
        assert same(weights(again), weights(whole))


def test_early_stopping_by_the_loss_counts_what_is_no_number():
    stopping = EarlyStopping(2, monitor="loss")
    made, _, _ = trainer(
        FROZEN, callbacks=[stopping],
        loss=lambda scores, targets: scores.sum(1) * float("nan"),
    )  # fmt: skip
    assert len(made.fit(9)) == 2


def test_early_stopping_without_anything_to_watch():
    made, _, _ = trainer(replace(FROZEN, evaluate_every=0), callbacks=[EarlyStopping()])
    with pytest.raises(InputError, match="evaluates no test samples"):
        made.fit(1)
    for wrong in ({"patience": 0}, {"monitor": "test_loss"}):
        with pytest.raises(InputError, match="EarlyStopping"):
            EarlyStopping(**wrong)


def test_what_follows_the_samples_does_not_go_with_noise():
    noisy = replace(TRUSTED, noise=GaussianNoise(1.0, "gradients"))
    with pytest.raises(InputError, match="ReduceLROnPlateau follows the loss"):
        trainer(noisy, model=mlp((6, 5, 1), 3), scheduler=on_plateau)
    made, _, _ = trainer(
        noisy, model=mlp((6, 5, 1), 3), callbacks=[EarlyStopping(monitor="loss")]
    )  # fmt: skip
    with pytest.raises(InputError, match="without noise; use monitor='test_quality'"):
        made.fit(1)


def test_other_callbacks_are_another_run(tmp_path):
    made, _, _ = trainer(FROZEN, callbacks=[EarlyStopping()], checkpoint_dir=tmp_path)
    made.fit(1)
    other, _, _ = trainer(FROZEN, callbacks=[Recorder()], checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=r"begun with the callbacks \['EarlyStopping'\]"):
        other.fit(2)


def test_states_that_no_checkpoint_could_keep():
    class Odd(Callback):
        def state_dict(self):
            return {"file": Path("x")}

    with pytest.raises(InputError, match="Odd: its state_dict must hold numbers"):
        trainer(FROZEN, callbacks=[Odd()])


def test_what_is_no_scheduler():
    with pytest.raises(InputError, match=r"gives a float; give a scheduler of torch\.optim"):
        trainer(FROZEN, scheduler=lambda optimizer: 0.1)


def test_a_callback_that_does_nothing():
    made, _, _ = trainer(FROZEN, callbacks=[Callback()])
    plain, _, _ = trainer(FROZEN)
    assert [one.loss for one in made.fit(2)] == [one.loss for one in plain.fit(2)]
    assert StepResult(1, 1, 10, 0.5) == StepResult(1, 1, 10, 0.5)


def test_early_stopping_follows_the_fit_of_numbers():
    x, _, encoding = blobs(40)
    y = np.rint(32767 * x.reshape(40, -1)[:, :1]).astype(int)
    dataset = MemoryDataset(x, y, encoding=encoding, targets="numbers")

    def made(monitor):
        return Trainer(
            mlp(dataset.shape, 1), dataset, keys=MemoryAuthority(dataset, mode="budgeted"),
            rng=InsecureSeededRandom(0), settings=FROZEN,
            callbacks=[EarlyStopping(1, monitor=monitor, min_delta=10.0)],
        )  # fmt: skip

    for split in ("test", "train"):
        assert len(made(f"{split}_quality").fit(5)) == 2
