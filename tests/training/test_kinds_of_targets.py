"""Regression and multi-label training on encrypted samples, from arrays to figures."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn

from cloister.authority.authority import Authority
from cloister.authority.local import LocalClient
from cloister.authority.permutation import target_permutation
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.owner import Notes
from cloister.errors import FunctionError, InputError
from cloister.plan.claims import Role
from cloister.training import ArraySource, NewDataset, Privacy, Settings, encrypt, train
from cloister.training.frozen import Lift, default_projection
from cloister.training.losses import LOSSES
from cloister.training.models import mlp
from cloister.training.trainer import epoch_order
from cloister.training.training_claims import LABELS
from training.same_draws import same_draws

EPOCHS, BATCH, BITS = 5, 32, 12
EXACT = Privacy("budget=5", value_bits=32, max_bits=1 << 20)
"""Values without noise, so that only fixed point is between encrypted and plain training."""
FROZEN = {"first_layer": "frozen"}
TRUSTED = {"first_layer": "trainable", "unblind_to": "trusted"}
RUNS = pytest.mark.parametrize("run", [FROZEN, TRUSTED], ids=["frozen", "trusted"])


@pytest.fixture(autouse=True)
def _same_draws():
    with same_draws():
        yield


@pytest.fixture
def authority(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as made:
        yield made


def regression():
    """Progression of diabetes within a year: 442 patients, 10 values of each."""
    x, y = load_diabetes(return_X_y=True)
    return x, np.stack([y, -y / 10 + 3], axis=1)


def multi_label(n=300):
    """Six labels that several linear functions of ten values decide."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (n, 10))
    return x, (x @ rng.normal(size=(10, 6)) > 0.4).astype(np.int64)


class Encrypted:
    """Samples that were encrypted, with their order."""

    def __init__(self, authority, folder, x, y, *, targets, privacy=EXACT, **options):
        self.x, self.y, self.authority = x, y, authority
        self.path = folder / "set.cloister"
        self.source = ArraySource(x, y, targets=targets)
        order = folder / "order.npz"
        self.part = encrypt(
            self.source, self.path, authority=LocalClient(authority), privacy=privacy,
            new=NewDataset(bits=BITS, **options), test_fraction=0.25, order=order,
        )  # fmt: skip
        with np.load(order) as kept:
            self.rows, self.encoded, self.integers = kept["rows"], kept["x"], kept["y"]
        self.info = authority.describe("set")

    def permutation(self):
        label_key = LocalClient(self.authority).find("set").label_key
        return target_permutation(label_key, self.info)

    def train(self, **settings):
        chosen = Settings(batch=BATCH, seed=4, learning_rate=0.01, **settings)
        return train(
            self.path, authority=LocalClient(self.authority), epochs=EPOCHS, settings=chosen
        )

    def wanted(self):
        """Targets in the order of the file: labels as they are permuted, numbers from -1 to 1."""
        y = self.y[self.rows].astype(np.float64)
        if self.info.targets == "numbers":
            low, high = y.min(axis=0), y.max(axis=0)
            return torch.from_numpy((2 * y - high - low) / (high - low)).float()
        permuted = np.empty_like(y)
        permuted[:, self.permutation()] = y
        return torch.from_numpy(permuted).float()

    def plain_training(self, loss, *, frozen):
        """The same run without encryption or fixed point: parameters, and scores of the tests."""
        opened = EncryptedDataset.open(self.path)
        x = torch.from_numpy(self.x[self.rows].reshape(len(self.x), *self.info.shape)).double()
        torch.manual_seed(4)
        model = mlp(self.info.shape, self.info.classes)
        inputs = x.permute(0, 3, 1, 2).float()
        if frozen:
            chosen = default_projection(self.info)
            model = nn.Sequential(Lift(chosen, self.info.shape), model)
            inputs = (x.reshape(len(x), -1) @ torch.from_numpy(chosen.rows).T).float()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(4)
        wanted = self.wanted()
        for epoch in range(EPOCHS):
            order = epoch_order(len(opened.train_ids), seed=4, epoch=epoch)
            for start in range(0, len(order), BATCH):
                ids = opened.train_ids[order[start : start + BATCH]]
                optimizer.zero_grad()
                loss(model(inputs[ids]), wanted[ids]).backward()
                optimizer.step()
        with torch.no_grad():
            scores = model(inputs[opened.test_ids])
        return scores, wanted[opened.test_ids]


@RUNS
def test_regression_follows_plain_training(authority, tmp_path, run):
    made = Encrypted(authority, tmp_path, *regression(), targets=None)
    assert (made.info.targets, made.info.classes, made.source.names) == ("numbers", 2, ("y0", "y1"))
    found = made.train(**run)
    scores, wanted = made.plain_training(nn.functional.mse_loss, frozen=run is FROZEN)
    errors = (scores - wanted).square().mean(0)
    spread = (wanted - wanted.mean(0)).square().mean(0)
    fit = found.test_fit
    np.testing.assert_allclose(fit.rmse, errors.sqrt(), atol=2e-3)
    np.testing.assert_allclose(fit.r2, 1 - errors / spread, atol=1e-2)
    assert found.test_accuracy is None
    if run is TRUSTED:
        assert fit.mean_r2 > 0.3  # of diabetes: what linear regression comes to, and a little less
    # Decoded, the numbers are the owner's to half a step of 65,534 for the range.
    notes = Notes.read(authority.terms("set").notes, made.info)
    decoded = [e.decode(made.integers[:, i]) for i, e in enumerate(notes.number_encodings)]
    step = np.ptp(made.y, axis=0) / 65534
    assert (np.abs(np.stack(decoded, axis=1) - made.y[made.rows]) <= 0.51 * step).all()


@RUNS
def test_several_labels_follow_plain_training(authority, tmp_path, run):
    made = Encrypted(authority, tmp_path, *multi_label(), targets=None)
    assert (made.info.targets, made.info.classes) == ("labels", 6)
    found = made.train(**run)
    bce = nn.functional.binary_cross_entropy_with_logits
    scores, wanted = made.plain_training(bce, frozen=run is FROZEN)
    accuracy = float(((scores > 0) == (wanted > 0)).float().mean())
    assert abs(found.test_accuracy - accuracy) <= 0.01
    assert found.test_fit is None
    if run is TRUSTED:
        assert accuracy > 0.9


@pytest.mark.parametrize("name", LOSSES["numbers"])
def test_a_loss_is_chosen_by_name(authority, tmp_path, name):
    made = Encrypted(authority, tmp_path, *regression(), targets="numbers")
    losses = {"mse": nn.functional.mse_loss, "l1": nn.functional.l1_loss}
    scores, wanted = made.plain_training(losses[name], frozen=False)
    error = float((scores - wanted)[:, 0].square().mean().sqrt())
    found = made.train(loss=name, **TRUSTED)
    assert found.test_fit.rmse[0] == pytest.approx(error, abs=3e-3)
    assert math.isfinite(found.epochs[-1].loss)


@pytest.mark.parametrize(("targets", "loss"), [
    ("numbers", "cross-entropy"), ("numbers", "binary-cross-entropy"), ("labels", "cross-entropy"),
    ("labels", "l1"), ("classes", "l1"), ("classes", "binary-cross-entropy"),
])  # fmt: skip
def test_a_loss_of_other_targets_is_refused_before_a_key_is_asked_for(
    authority, tmp_path, targets, loss
):
    x, y = multi_label(30)
    y = {"numbers": y[:, :2] + 0.5, "labels": y, "classes": y[:, 0]}[targets]
    made = Encrypted(authority, tmp_path, x, y, targets=targets)
    message = f"loss {loss}: the data set has {targets} to learn; choose"
    with pytest.raises(InputError, match=message):
        made.train(loss=loss)
    assert authority.summary("set").labels_released == 0


def test_labels_are_permuted_and_numbers_are_not(authority, tmp_path):
    (tmp_path / "labels").mkdir()
    made = Encrypted(authority, tmp_path / "labels", *multi_label(40), targets="labels")
    # The order file has the owner's own order; the data set file has the permuted one.
    np.testing.assert_array_equal(made.integers, made.y[made.rows])
    with Authority.create(tmp_path / "other", rng=SystemRandom()) as other:
        (tmp_path / "numbers").mkdir()
        numbers = Encrypted(other, tmp_path / "numbers", *regression(), targets="numbers")
        assert numbers.permutation().tolist() == [0, 1]
        assert np.abs(numbers.integers).max() == 32767


@pytest.mark.parametrize(("targets", "text"), [
    ("labels", "which labels every sample has, under names only the clients can translate"),
    ("numbers", "the numbers of every sample, as parts of a range from -1 to 1; only the clients"),
])  # fmt: skip
def test_what_a_server_learns_of_targets_is_said(authority, tmp_path, targets, text):
    x, y = multi_label(40)
    y = y if targets == "labels" else y.astype(float) * 3
    made = Encrypted(authority, tmp_path, x, y, targets=targets)
    server, trusted = made.train(**FROZEN).claims, made.train(**TRUSTED).claims
    said = [one.text for one in server.statements if one.about == LABELS]
    assert any(text in one for one in said)
    about = [one for one in trusted.statements if one.about == LABELS and one.role is Role.SERVER]
    assert about == []


def test_targets_may_go_to_a_trusted_runtime_only(authority, tmp_path):
    hidden = Privacy("budget=5", value_bits=32, max_bits=1 << 20, labels_to="trusted")
    made = Encrypted(authority, tmp_path, *regression(), targets="numbers", privacy=hidden)
    with pytest.raises(FunctionError, match="its labels go to a trusted runtime only"):
        made.train(**FROZEN)
    assert made.train(**TRUSTED).test_fit.mean_r2 > 0.2
