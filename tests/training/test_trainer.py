"""Training on ciphertexts: equal to plain training, resumable, and refusing what it must."""

import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloister.base.rng import InsecureSeededRandom
from cloister.data.feature_noise import GaussianNoise
from cloister.errors import (
    AuthorityUnavailable,
    BudgetError,
    EncryptionError,
    FunctionError,
    InputError,
    UnsupportedError,
)
from cloister.ring.bounds import MAX_SAMPLES
from cloister.training.frozen import Lift, projection, random_projection
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer, epoch_order
from training.doubles import MemoryAuthority, MemoryDataset, blobs

PAPER = Settings(first_layer="trainable", allow_unbounded_leakage=True, batch=16, patience_s=0.0)
TRUSTED = Settings(first_layer="trainable", unblind_to="trusted", batch=16, patience_s=0.0)
FROZEN = Settings(batch=16, patience_s=0.0)
SHAPE = (6, 5, 1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def small(shape=SHAPE, classes=3):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(shape[2], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(4 * shape[0] * shape[1], classes),
    )  # fmt: skip


def trainer(
    settings, *, model=None, n=200, offset=0.0, authority=None, seed_of_noise=0, **more
):  # fmt: skip
    x, y, encoding = blobs(n, SHAPE, offset=offset)
    dataset = MemoryDataset(x, y, encoding=encoding)
    authority = authority or MemoryAuthority(dataset, mode=settings.mode)
    authority.dataset = dataset
    made = Trainer(
        model or small(), dataset, keys=authority, rng=InsecureSeededRandom(seed_of_noise),
        optimizer=sgd, settings=settings, **more,
    )  # fmt: skip
    return made, authority, (x, y, dataset)


def plain_training(model, x, y, dataset, epochs, settings):
    """The same run without any encryption."""
    images = torch.from_numpy(x).float().permute(0, 3, 1, 2).contiguous()
    labels, optimizer = torch.from_numpy(y), sgd(model.parameters())
    torch.manual_seed(settings.seed)
    for epoch in range(epochs):
        order = epoch_order(len(dataset.train_ids), seed=settings.seed, epoch=epoch)
        for start in range(0, len(order), settings.batch):
            ids = dataset.train_ids[order[start : start + settings.batch]]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[ids]), labels[ids]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(images[dataset.test_ids]).argmax(1) == labels[dataset.test_ids]
    return model, float(right.float().mean())


@pytest.mark.parametrize("settings", [PAPER, TRUSTED])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_encrypted_training_follows_plain_training(settings, offset):
    made, _, (x, y, dataset) = trainer(settings, offset=offset)
    found = made.fit(2)
    model, accuracy = plain_training(small(), x, y, dataset, 2, settings)
    wanted = dict(model.named_parameters())
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=0, atol=5e-3)
    assert abs(found[-1].test_accuracy - accuracy) <= 0.03
    assert accuracy > 0.9


def test_frozen_features_are_the_projection_of_the_samples():
    made, authority, (x, _, dataset) = trainer(FROZEN, offset=-2.0)
    made.prepare()
    features = made._features[1].numpy()
    rows = made.projection.rows
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    divisor = made.info.encoding.divisor
    assert divisor == 2.0
    np.testing.assert_allclose(features, x.reshape(len(x), -1) @ rows.T / divisor, atol=2e-3)
    assert made.projection.rank == 30 // 4 == features.shape[1]
    assert sum(count for kind, count, _ in authority.log if kind == "forward") == dataset.samples


def test_frozen_training_asks_for_keys_once():
    made, authority, _ = trainer(FROZEN)
    made.fit(1)
    asked = len(authority.log)
    history = made.fit(12)
    assert len(authority.log) == asked
    assert history[-1].test_accuracy > 0.8
    assert [result.epoch for result in history] == list(range(1, 13))


def test_projections_beyond_the_budget_or_degenerate():
    made, authority, (_, _, dataset) = trainer(FROZEN)
    info = authority.describe(dataset.name)
    with pytest.raises(FunctionError, match="allows 1 to 7"):
        random_projection(info, seed=0, rank=8)
    with pytest.raises(FunctionError, match="allows 1 to 7"):
        random_projection(info, seed=0, rank=0)
    with pytest.raises(FunctionError, match="depend"):
        projection(info, np.ones((2, 30)))
    again = random_projection(info, seed=0)
    assert (again.linear.weights == made.projection.linear.weights).all()
    other = random_projection(info, seed=1)
    assert (again.linear.weights != other.linear.weights).any()


def test_lift_keeps_what_the_features_know():
    _, authority, (x, _, dataset) = trainer(FROZEN)
    chosen = random_projection(authority.describe(dataset.name), seed=3)
    lifted = Lift(chosen, SHAPE)(torch.from_numpy(x.reshape(len(x), -1) @ chosen.rows.T).float())
    assert lifted.shape == (len(x), 1, 6, 5)
    back = lifted.permute(0, 2, 3, 1).reshape(len(x), -1).numpy() @ chosen.rows.T
    gain = np.sqrt(30 / chosen.rank)
    np.testing.assert_allclose(back, gain * (x.reshape(len(x), -1) @ chosen.rows.T), atol=1e-4)


def weights(made):
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def same(left, right):
    equal = [torch.equal(left[name], right[name]) for name in left]
    return all(equal) and left.keys() == right.keys()


@pytest.mark.parametrize("settings", [PAPER, FROZEN])
@pytest.mark.parametrize("allowed", [3, 8, 19, 24])
def test_a_run_goes_on_where_the_authority_left(settings, allowed, tmp_path):
    """Dropout, batch statistics and momentum included: bit for bit the undisturbed run."""
    whole, authority, _ = trainer(settings)
    whole.fit(2)
    if allowed >= len(authority.log):
        return  # a frozen run asks for keys only at the beginning
    broken, authority, _ = trainer(settings, checkpoint_dir=tmp_path)
    authority.refuse_after = allowed
    with pytest.raises(BudgetError):
        broken.fit(2)
    resumed, _, _ = trainer(settings, checkpoint_dir=tmp_path)
    history = resumed.fit(2)
    assert same(weights(resumed), weights(whole))
    assert [r.loss for r in history] == [r.loss for r in whole.history]


def test_an_absent_authority_ends_the_run_after_a_checkpoint(tmp_path):
    made, authority, _ = trainer(PAPER, checkpoint_dir=tmp_path)
    made.prepare()
    authority.away = 1
    with pytest.raises(AuthorityUnavailable):
        made.fit(1)
    assert (tmp_path / "checkpoint.pt").exists()


SCRIPT = """
import sys
from pathlib import Path
from dataclasses import replace
from training.test_trainer import PAPER, trainer
made, _, _ = trainer(replace(PAPER, checkpoint_every=2), checkpoint_dir=Path(sys.argv[1]))
print("started", flush=True)
made.fit(4, update=lambda done, total: print(done, flush=True))
"""


def test_kill_9_loses_nothing(tmp_path):
    whole, _, _ = trainer(PAPER)
    whole.fit(4)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for step in (3, 17, 31):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            for line in process.stdout:
                if line.strip().isdigit() and int(line) >= step:
                    process.send_signal(signal.SIGKILL)
                    break
            assert process.wait() == -signal.SIGKILL
    resumed, _, _ = trainer(PAPER, checkpoint_dir=tmp_path)
    resumed.fit(4)
    assert same(weights(resumed), weights(whole))
    assert len(resumed.history) == 4


def test_checkpoints_of_other_runs_and_damaged_ones(tmp_path):
    made, _, _ = trainer(FROZEN, checkpoint_dir=tmp_path)
    made.fit(1)
    other, _, _ = trainer(replace(FROZEN, batch=8), checkpoint_dir=tmp_path)
    with pytest.raises(EncryptionError, match="another run"):
        other.fit(1)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100] + bytes(200) + whole[300:]):
        path.write_bytes(damaged)
        again, _, _ = trainer(FROZEN, checkpoint_dir=tmp_path)
        with pytest.raises(EncryptionError, match="damaged"):
            again.fit(1)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/owned",))

    torch.save({"format": 1, "run": Evil()}, tmp_path / "checkpoint.pt")
    made, _, _ = trainer(FROZEN, checkpoint_dir=tmp_path)
    with pytest.raises(EncryptionError):
        made.fit(1)
    assert not (tmp_path / "owned").exists()


def test_features_of_another_projection_are_refused(tmp_path):
    made, _, _ = trainer(FROZEN, checkpoint_dir=tmp_path)
    made.prepare()
    other, _, _ = trainer(replace(FROZEN, rank=5), checkpoint_dir=tmp_path)
    with pytest.raises(EncryptionError, match="another data set or projection"):
        other.prepare()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"batch": 0}, "batch"),
    ({"first_layer": "both"}, "first_layer"),
    ({"unblind_to": "everyone"}, "unblind_to"),
    ({"noise": GaussianNoise(1.0, "gradients")}, "unblind_to='trusted'"),
    ({"noise": GaussianNoise(1.0, "ciphertexts")}, "before they encrypt"),
])  # fmt: skip
def test_settings_that_contradict(wrong, message):
    with pytest.raises(InputError, match=message):
        Settings(**wrong)


def test_the_first_layer_is_trained_only_where_no_budget_binds():
    assert Settings().first_layer == "frozen"
    assert Settings(unblind_to="trusted").first_layer == "trainable"
    assert Settings(allow_unbounded_leakage=True).first_layer == "trainable"
    assert Settings(first_layer="frozen", unblind_to="trusted").first_layer == "frozen"


def test_the_defaults_give_away_the_least():
    x, y, encoding = blobs(20)
    dataset = MemoryDataset(x, y, encoding=encoding)
    keys = MemoryAuthority(dataset, mode="budgeted")
    made = Trainer(small(), dataset, keys=keys, rng=InsecureSeededRandom(0))
    assert made.settings == Settings()
    assert (made.settings.first_layer, made.settings.mode) == ("frozen", "budgeted")
    with pytest.raises(TypeError, match="batches"):
        Settings(batches=3)


def test_the_mode_must_be_the_data_sets():
    x, y, encoding = blobs(20)
    dataset = MemoryDataset(x, y, encoding=encoding)
    for settings, mode in ((FROZEN, "paper"), (PAPER, "budgeted")):
        with pytest.raises(InputError, match="registered in mode"):
            Trainer(
                small(), dataset, keys=MemoryAuthority(dataset, mode=mode),
                rng=InsecureSeededRandom(0), settings=settings,
            )  # fmt: skip


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), nn.Conv2d(1, 2, 3),
    nn.Sequential(nn.ReLU()),
])  # fmt: skip
def test_models_whose_first_layer_cannot_be_encrypted(model):
    with pytest.raises(UnsupportedError):
        trainer(PAPER, model=model)


def test_a_model_that_touches_its_input_is_refused():
    model = nn.Sequential(nn.ReLU(), *small())
    made, _, _ = trainer(PAPER, model=model)
    with pytest.raises(InputError, match="sample itself"):
        made.fit(1)


@pytest.mark.parametrize("settings", [PAPER, FROZEN])
@pytest.mark.parametrize("last", [nn.Linear(7, 3), nn.Linear(120, 5), nn.Identity()])
def test_models_that_do_not_fit(settings, last):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), last)
    made, _, _ = trainer(settings, model=model)
    with pytest.raises(InputError, match="model: "):
        made.fit(1)


def test_without_patience_an_authority_that_is_away_is_asked_once():
    made, authority, _ = trainer(FROZEN)
    authority.away = 10**9
    with pytest.raises(AuthorityUnavailable):
        made.prepare()
    assert authority.away == 10**9 - 1


@pytest.mark.parametrize("settings", [FROZEN, PAPER])
def test_a_trainer_asks_for_no_more_samples_than_a_request_may_name(settings, monkeypatch):
    wanted, _, _ = trainer(settings)
    wanted.prepare()
    accuracy = wanted.evaluate()
    dim = int(np.prod(SHAPE))
    monkeypatch.setattr("cloister.ring.bounds.MAX_REQUEST_ELEMENTS", 12 * dim)
    made, authority, _ = trainer(settings)
    made.prepare()
    assert made.evaluate() == accuracy
    assert authority.log
    assert max(samples for _, samples, _ in authority.log) <= 12
    assert {kind for kind, _, _ in authority.log} == {"labels", "forward"}


def test_numbers_of_samples_that_others_only_claimed_take_no_memory():
    """A client states how many samples it has; the ids of those who come later lie behind them."""
    claimed = MAX_SAMPLES - 60
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(x, y, encoding=encoding)
    dataset.train_ids, dataset.test_ids = (
        claimed + ids for ids in (dataset.train_ids, dataset.test_ids)
    )
    tracemalloc.start()
    try:
        Trainer(
            small(), dataset, keys=MemoryAuthority(dataset, mode="budgeted"),
            rng=InsecureSeededRandom(0),
        )  # fmt: skip
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A table by id would take 512 MiB; what PyTorch imports on the way takes less than this.
    assert peak < 1 << 28
