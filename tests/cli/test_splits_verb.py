"""`cloister splits`: its document, its files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "src/cloister/examples/digits.onnx"
PICTURES = ROOT / "examples/digits"
QUICK = ("--engine", "onnxruntime", "--repeats", 2, "--starts", 1)


def test_the_document_and_the_files_are_the_same(cloister, tmp_path):
    folder = tmp_path / "page"
    ran = cloister("splits", DIGITS, "--input", PICTURES, *QUICK, "--json", "--out", folder)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found == json.loads((folder / "splits.json").read_text())
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    assert found["engine"] == "onnxruntime"
    assert found["accuracy"] is None
    assert [one["layers"] for one in found["splits"]] == list(range(len(found["splits"])))
    last = found["splits"][-1]
    assert last["hidden"]["parameters"] == found["parameters"]
    assert last["warm"]["total"]["low"] <= last["warm"]["total"]["median"]
    assert last["cold"]["setup"]["median"] > 0
    assert set(last["modelled"]) == {"sgx1", "sgx2"}


def test_a_preset_without_its_data(refused, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.delenv("CLOISTER_DATA", raising=False)
    message = refused("splits", "--preset", "mnist", "--cache", tmp_path)
    assert "CLOISTER_DATA is not set" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_keras_file(cloister, monkeypatch, tmp_path, suffix):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(2)]
    )
    path, x = tmp_path / f"model{suffix}", tmp_path / "x.npy"
    model.save(path)
    np.save(x, np.ones((2, 6), np.float32))
    ran = cloister("splits", path, "--input", x, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert [one["layers"] for one in json.loads(ran.out)["splits"]] == [0, 1, 2]
