"""Presets as models: from the data, from the folder that keeps them, or random."""

import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.graph.interpreter import interpret
from cloister.splits import preset_model as home
from cloister.splits.preset_data import VARIABLE, PresetData, PresetSamples, read_data
from cloister.splits.preset_model import preset_model
from cloister.splits.presets import PRESETS, Recipe

QUIET = {"progress": lambda *_: None}


@pytest.fixture
def trained(monkeypatch):
    """Counts trainings, which change the last bias alone, on data of one colour."""
    calls = []
    rng = np.random.default_rng(0)
    pictures = PresetSamples(rng.random((40, 1, 28, 28), np.float32), np.arange(40) % 10)

    def train(network, data, recipe, progress):
        calls.append(recipe)
        network.graph.constants["constant_7"][:] = np.arange(10)
        return network.graph

    fake = SimpleNamespace(train=train, accuracy=lambda *_: 0.5)
    monkeypatch.setattr(home, "_training", lambda: fake)
    monkeypatch.setattr(home, "read_data", lambda _: PresetData(pictures, pictures))
    return calls


def test_a_trained_preset_is_kept(trained, tmp_path):
    first = preset_model("mnist", cache=tmp_path / "kept", **QUIET)
    assert first.accuracy == 0.5
    assert first.weights == "trained on MNIST"
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "mnist.json", "mnist.npz", "mnist.onnx",
    ]  # fmt: skip
    again = preset_model("mnist", cache=tmp_path / "kept", **QUIET)
    assert len(trained) == 1
    assert again.accuracy == 0.5
    np.testing.assert_array_equal(again.inputs["image"], first.inputs["image"])
    x = {"image": first.inputs["image"][:2]}
    for one, other in zip(
        interpret(first.graph, x).values(), interpret(again.graph, x).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with np.load(tmp_path / "kept" / "mnist.npz") as arrays:
        assert arrays["x"].shape == (40, 28, 28, 1)  # as data sets have pictures
        assert arrays["y"].shape == (40,)


def test_another_recipe_is_trained_anew(trained, tmp_path, monkeypatch):
    preset_model("mnist", cache=tmp_path, **QUIET)
    other = replace(PRESETS["mnist"], recipe=Recipe("MNIST", epochs=2))
    monkeypatch.setattr(home, "preset", lambda _: other)
    preset_model("mnist", cache=tmp_path, **QUIET)
    assert [recipe.epochs for recipe in trained] == [1, 2]


def test_without_a_folder_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset_model("mnist", cache=None, **QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist.onnx", "mnist.npz"])
def test_a_changed_file_is_refused(trained, tmp_path, name):
    preset_model("mnist", cache=tmp_path, **QUIET)
    with (tmp_path / name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=f"{name}: is not the one that mnist.json describes"):
        preset_model("mnist", cache=tmp_path, **QUIET)


def test_a_description_that_is_none(trained, tmp_path):
    (tmp_path / "mnist.json").write_text(json.dumps({"accuracy": 1}))
    with pytest.raises(InputError, match=r"mnist.json: does not describe .* delete it"):
        preset_model("mnist", cache=tmp_path, **QUIET)


def test_random_weights_are_said_to_be_random():
    found = preset_model("amazon", cache=None, **QUIET)
    assert found.weights == "random, never trained"
    assert found.accuracy is None
    words = found.inputs["words"]
    assert words.dtype == np.int32
    assert words.min() >= 0
    assert 10_000 < words.max() < 20_000
    again = preset_model("amazon", cache=None, **QUIET)
    np.testing.assert_array_equal(words, again.inputs["words"])


# ---- the data


def test_missing_data_names_the_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match="CLOISTER_DATA is not set"):
        read_data("mnist")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist/train-images-idx3-ubyte.gz"),
        ("imdb", "text/imdb50k.jsonl.gz"),
        ("rotten", "text/rt-polarity.neg"),
    ],
)
def test_missing_and_damaged_files_are_named(monkeypatch, tmp_path, name, file):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=f"{file}: no such file"):
        read_data(name)
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(b"\xff nothing of the kind")
    with pytest.raises(InputError, match=f"{file}: not "):
        read_data(name)


def test_small_data_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "text").mkdir()
    for name, word in (("neg", "dull"), ("pos", "fine")):
        lines = "".join(f"a {word} film number {i}\n" for i in range(10))
        (tmp_path / "text" / f"rt-polarity.{name}").write_text(lines)
    reviews = [
        {"split": split, "label": i % 2, "text": f"{('dull', 'fine')[i % 2]} film"}
        for split in ("train", "test")
        for i in range(8)
    ]
    lines = "\n".join(map(json.dumps, reviews)).encode()
    (tmp_path / "text" / "imdb50k.jsonl.gz").write_bytes(gzip.compress(lines))
    rotten = read_data("rotten")
    assert len(rotten.train) == 16
    assert rotten.test.y.tolist() == [0, 0, 1, 1]
    assert rotten.test.x.shape == (4, 51)
    imdb = read_data("imdb")
    assert imdb.test.rows(np.arange(8)).shape == (8, 20_000)
    assert imdb.train.y.tolist() == [0, 1] * 4


def test_the_shared_data_have_the_sizes_of_their_authors(data, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(data))
    mnist = read_data("mnist")
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert mnist.test.x.max() == 1
    rotten = read_data("rotten")
    assert len(rotten.train) + len(rotten.test) == 10_662
    assert rotten.train.x[:, 0].any()  # the longest sentence
