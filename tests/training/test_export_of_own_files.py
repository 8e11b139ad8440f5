"""From owners' own files to predictions in their names and units: encrypt, train, export, run."""

import csv
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import cloister
from cloister.authority.authority import Authority
from cloister.authority.local import LocalClient
from cloister.base.rng import SystemRandom
from cloister.data.csv_source import TableSource
from cloister.data.table_options import TableOptions
from cloister.graph.input_files import read_inputs
from cloister.plan import policies
from cloister.ring.ring_map import RingMap
from cloister.training import Privacy, RunFiles, Settings, encrypt, export, train
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.predictions import answers_of
from cloister.training.translation import translation
from training.same_draws import same_draws
from training.test_kinds_of_targets import Encrypted, multi_label, regression

EXACT = Privacy("budget=12", value_bits=32, max_bits=1 << 20)
SETTINGS = Settings(first_layer="frozen", batch=32, seed=4, learning_rate=0.02)
RUNS = {
    "frozen": SETTINGS,
    "frozen, squared errors": replace(SETTINGS, loss="mse"),
    "trusted": replace(SETTINGS, first_layer="trainable", unblind_to="trusted"),
}
by_run = pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)


@pytest.fixture(autouse=True)
def _same_draws():
    with same_draws():
        yield


@pytest.fixture
def authority(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as made:
        yield LocalClient(made)


def answers_of_the_trained(folder, order, authority):
    """What the kept model answers for the integers that were encrypted, in the owners' order."""
    model = EncryptedModel.open(folder)
    with np.load(order) as kept:
        integers, rows = kept["x"], kept["rows"]
    products = RingMap(model.first.linear).apply(integers).view(np.int32)
    answers = answers_of(
        model.scores(model.first.values(products, model.info.encoding)), model.info.targets,
        loss=model.settings.loss,
    )  # fmt: skip
    told = translation(model, authority=authority)
    own = np.empty_like(answers)
    own[rows] = told.scores(answers)
    return own if model.info.targets != "numbers" else own * told.halves + told.middles


def run_exported(path, arrays):
    plan = policies.enclave(cloister.load(path))
    with cloister.Session(plan) as session:
        return session.run(arrays).outputs


def cancer(folder):
    """Scikit-learn's biopsies as a hospital's file: names, dates, categories and gaps."""
    x, y = load_breast_cancer(return_X_y=True)
    with (folder / "biopsies.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["radius", "texture", "side", "visit", "concavity", "diagnosis"])
        for i, (row, label) in enumerate(zip(x, y, strict=True)):
            gap = "" if i % 11 == 0 else f"{row[1]:.2f}".replace(".", ",")
            rows.writerow([
                f"{row[0]:.2f}".replace(".", ","), gap, ("left", "right")[i % 2],
                (date(2020, 1, 1) + timedelta(days=i)).isoformat(),
                f"{row[6]:.4f}".replace(".", ","), ("malignant", "benign")[label],
            ])  # fmt: skip
    return folder / "biopsies.csv", [("malignant", "benign")[label] for label in y]


@by_run
def test_a_hospitals_table(tmp_path, authority, settings):
    path, diagnoses = cancer(tmp_path)
    options = TableOptions(label=("diagnosis",), fill="median")
    privacy = replace(EXACT, level="budget=6")
    order = tmp_path / "order.npz"
    encrypt(
        TableSource(path, options), tmp_path / "b.cloister", authority=authority, privacy=privacy,
        order=order,
    )  # fmt: skip
    train(tmp_path / "b.cloister", authority=authority, epochs=15, settings=settings,
          keep=RunFiles(model=tmp_path / "model"))  # fmt: skip
    made = export(tmp_path / "model", tmp_path / "b.onnx", authority=authority)
    assert set(made.inputs) == {"radius", "texture", "side", "visit", "concavity"}
    assert set(made.outputs["class"].split(", ")) == {"benign", "malignant"}
    read = read_inputs(cloister.load(tmp_path / "b.onnx"), [path])
    found = run_exported(tmp_path / "b.onnx", read.arrays)
    trained = answers_of_the_trained(tmp_path / "model", order, authority)
    # Encrypted values were rounded to 8 bits; these are not.
    np.testing.assert_allclose(found["probabilities"], trained, atol=0.05)
    right = np.mean([said == own for said, own in zip(found["class"], diagnoses, strict=True)])
    assert right > (0.8 if settings.first_layer == "frozen" else 0.88)


@by_run
@pytest.mark.parametrize("targets", ["labels", "numbers"])
def test_other_targets(tmp_path, authority, settings, targets):
    x, y = multi_label() if targets == "labels" else regression()
    made = Encrypted(authority._authority, tmp_path, x, y, targets=targets)
    settings = replace(settings, rank=5 if settings.first_layer == "frozen" else None)
    train(made.path, authority=authority, epochs=12, settings=settings,
          keep=RunFiles(model=tmp_path / "model"))  # fmt: skip
    export(tmp_path / "model", tmp_path / "m.onnx", authority=authority)
    (found,) = run_exported(tmp_path / "m.onnx", {"x": x.astype(np.float32)}).values()
    trained = answers_of_the_trained(tmp_path / "model", tmp_path / "order.npz", authority)
    scale = 1.0 if targets == "labels" else np.ptp(y, axis=0)
    np.testing.assert_allclose(found / scale, trained / scale, atol=5e-3)
    if targets == "labels":
        assert ((found > 0.5) == y).mean() > 0.7
    else:
        assert np.corrcoef(found[:, 0], y[:, 0])[0, 1] > 0.4
        assert np.corrcoef(found[:, 1], y[:, 1])[0, 1] > 0.4
