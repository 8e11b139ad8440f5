"""`cloister predict` and `cloister answers`: from unlabelled files to a table in own names."""

import csv
import json
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("torch")

from cli.test_train import Place
from cloister.data.dataset import EncryptedDataset
from training.doubles import blobs
from training.same_draws import same_draws
from training.test_predictions import DRAWS

SHAPE = (6, 5, 1)


@pytest.fixture
def place(tmp_path, cloister):
    with same_draws(DRAWS), closing(Place(tmp_path, cloister)) as made:
        yield made


@pytest.fixture
def clinic(place, cloister, tmp_path):
    """A data set in classes of the clinic's own names, a model of it, and unlabelled samples."""
    x, y, _ = blobs(240, SHAPE)
    np.savez(tmp_path / "old.npz", x=x[:160], y=y[:160])
    np.savez(tmp_path / "new.npz", x=x[160:])
    path = tmp_path / "set.cloister"
    to = ("--out", path, "--range=-1,1", *place.reach("client"))
    privacy = ("--privacy", "budget=8", "--labels-to", "trusted", "--evaluations", 2)
    assert (
        cloister(
            "data", "encrypt", tmp_path / "old.npz", "--test-fraction", 0.25, *to, *privacy
        ).code
        == 0
    )
    done = cloister(
        "train", path, *place.reach("trusted"), "--unblind-to", "trusted", "--first-layer",
        "frozen", "--epochs", 20, "--out", tmp_path / "model",
    )  # fmt: skip
    assert done.code == 0, done
    done = cloister(
        "data", "encrypt", tmp_path / "new.npz", "--unlabelled", "--order", tmp_path / "order.npz",
        *to, *privacy,
    )  # fmt: skip
    assert done.code == 0, done
    return path, y[160:]


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_predictions_come_back_in_the_clients_names_and_rows(cloister, place, clinic, tmp_path):
    path, truth = clinic
    out = tmp_path / "new.answers"
    done = cloister(
        "predict", tmp_path / "model", path, *place.reach("server"), "--unblind-to", "server",
        "--answers-to", "client", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done
    assert f"80 answers for data set set in {out}, sealed to its clients" in done.out
    assert "sealing protects answers at rest and on the way" in done.out
    done = cloister(
        "answers", out, *place.reach("client"), "--order", tmp_path / "order.npz", "--out",
        tmp_path / "new.csv",
    )  # fmt: skip
    assert done.code == 0, done
    rows = table(tmp_path / "new.csv")
    assert rows[0] == ["row", "sample", "class", "0", "1", "2"]
    assert [int(row[0]) for row in rows[1:]] == list(range(80))
    assert (
        np.mean([int(row[2]) == right for row, right in zip(rows[1:], truth, strict=True)]) > 0.95
    )
    summary = place.authority.summary("set")
    assert (summary.rank_min, summary.rank_max, summary.labels_released) == (0, 8, 0)


def test_evaluation_by_sums_and_as_often_as_allowed(cloister, refused, place, clinic, tmp_path):
    path, _ = clinic
    ask = ("predict", tmp_path / "model", path, "--evaluate", *place.reach("server"))
    told = json.loads(cloister(*ask, "--unblind-to", "server", "--json").out)
    assert told["samples"] == told["evaluated"]["samples"] == 40
    assert told["evaluated"]["accuracy"] > 0.8
    assert told["evaluated"]["accuracy_error"] == 0
    assert told["spent"]["evaluations"] == 2
    done = cloister(*ask, "--unblind-to", "server")
    assert "40 samples: accuracy " in done.out
    assert "at most 12 bits of all labels together in each of 2 sums" in done.out
    found = refused(*ask, "--unblind-to", "server", "--split", "train")
    assert "of the 2 sums over labels that its owner allows a server (--evaluations)" in found


def test_without_a_token_a_readable_file_has_secret_numbers(
    cloister, refused, place, clinic, tmp_path
):
    path, _ = clinic
    model, out = tmp_path / "model", tmp_path / "a.answers"
    reach = (*place.reach("trusted"), "--split", "all")
    done = cloister("predict", model, path, "--out", out, *reach, "--json")
    assert json.loads(done.out)["samples"] == 240
    assert cloister("answers", out, "--out", tmp_path / "a.csv").code == 0
    assert table(tmp_path / "a.csv")[0] == ["sample", "class", "secret 0", "secret 1", "secret 2"]
    done = cloister("predict", model, path, "--out", out, *reach, "--answers-to", "client")
    assert done.code == 0
    found = refused("answers", out, "--out", tmp_path / "a.csv")
    assert "is sealed to the clients of data set set; give --authority, --pin and --token" in found
    found = refused("answers", out, *place.reach("server"), "--out", tmp_path / "a.csv")
    assert "a token of role server may not ask for a data set's names and ranges" in found


def test_bad_input_is_named(cloister, refused, place, clinic, tmp_path):
    path, _ = clinic
    model, to = tmp_path / "model", place.reach("server")
    assert "give --out FILE" in refused("predict", model, path, *to)
    out = ("--out", tmp_path / "a.answers")
    assert "holds no model.json" in refused("predict", tmp_path, path, *to, *out)
    found = refused("predict", model, path, *to, *out, "--server", "https://127.0.0.1:1")
    assert "--server URL and --access FILE go together" in found
    assert "a server's token may not ask as the trusted runtime" in refused(
        "predict", model, path, *to, *out
    )
    other = place.dataset("other")
    found = refused("predict", model, other, *to, *out, "--unblind-to", "server")
    assert "model: was trained on data whose name is set, and the name of" in found
    found = refused("answers", path, "--out", tmp_path / "a.csv")
    assert "is no file of answers; give the --out of cloister predict" in found


def test_unlabelled_samples_are_said_and_labels_are_not_thrown_away(
    cloister, refused, place, clinic, tmp_path
):
    path, _ = clinic
    shown = json.loads(cloister("data", "show", path, "--json").out)
    assert (shown["test_samples"], shown["unlabelled_samples"], shown["samples"]) == (40, 80, 240)
    to = ("--out", path, *place.reach("client"))
    found = refused("data", "encrypt", tmp_path / "new.npz", "--unlabelled", "--split", "test", *to)
    assert "--unlabelled samples train and test nothing" in found
    assert EncryptedDataset.open(path).samples == 240
