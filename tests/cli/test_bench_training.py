"""`cloister bench training`, on few samples."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from cloister.cli.bench import training, training_data
from cloister.errors import InputError


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(training, "QUICK_TRAIN", 96)
    monkeypatch.setattr(training, "QUICK_TEST", 32)


def test_without_data(few, cloister, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_DATA", str(tmp_path))
    ran = cloister("bench", "training", "--quick", "--steps", 2, "--epochs", 1, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert [(step["model"], step["mode"]) for step in found["steps"]] == [
        ("lenet5", "paper"), ("lenet5", "trusted"), ("mlp", "paper"), ("mlp", "trusted"),
    ]  # fmt: skip
    assert all(step["data"].startswith("random images") for step in found["steps"])
    assert all(step["server_ratio"] > 0 for step in found["steps"])
    assert {(run["model"], run["mode"]) for run in found["runs"]} == {
        ("lenet5", "paper"), ("lenet5", "trusted"), ("lenet5", "frozen"), ("mlp", "paper"),
    }  # fmt: skip
    assert found["paper"]["encrypted_h"] == 57


def test_encrypted_runs_follow_plain_ones(few, cloister, data):
    ran = cloister(
        "bench", "training", "--quick", "--steps", 2, "--only", "heart mlp trusted",
        "--data", data, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    (run,) = json.loads(ran.out)["runs"]
    assert len(run["accuracy"]) == len(run["accuracy_plain"]) == 3
    assert abs(run["difference_points"][-1]) < 3


def test_every_pixel_is_exact():
    pixels = np.arange(256) / 255
    assert training_data.PIXELS.encode(pixels).tolist() == list(range(256))
    np.testing.assert_allclose(
        training_data.PIXELS.decode(training_data.PIXELS.encode(pixels)), pixels, atol=1e-12
    )


def test_files_that_are_not_mnist(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(InputError, match="not a file of MNIST"):
        training_data.mnist(tmp_path, train=1, test=1)
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a file of MNIST"):
        training_data.mnist(tmp_path, train=1, test=1)
