"""`EncryptedClassifier`: a trainer's fit, and a client's predictions in its own names."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from cloister.authority.authority import Authority
from cloister.authority.local import LocalClient
from cloister.base.rng import SystemRandom
from cloister.data.csv_source import TableSource
from cloister.data.table_options import TableOptions
from cloister.errors import InputError, RangeError, UnsupportedError
from cloister.training import (
    ArraySource,
    EarlyStopping,
    EncryptedDataset,
    NewDataset,
    RunFiles,
    Settings,
    encrypt,
)
from cloister.training.classifier import EncryptedClassifier
from cloister.training.predictions import answers_of
from training.doubles import blobs
from training.same_draws import same_draws

ONE_SAMPLE = 1.01 / 75
"""Of the test part, whose scores may be equal but for rounding."""
TRUSTED = Settings(batch=16, unblind_to="trusted")


class Site:
    """An authority, its data set of three kinds of blobs, and their plain values."""

    def __init__(self, folder, *, pixels=False):
        self.authority = Authority.create(folder / "authority", rng=SystemRandom())
        self.connection = LocalClient(self.authority)
        self.folder = folder
        self.path, self.order = folder / "set.cloister", folder / "order.npz"
        self.x, y, _ = blobs(300)
        if pixels:
            self.x = np.rint((self.x + 1) * 127.5).astype(np.uint8)
        encrypt(
            ArraySource(self.x, y), self.path, authority=self.connection, test_fraction=0.25,
            new=NewDataset(value_range=None if pixels else (-1.0, 1.0)), privacy="budget=8",
            order=self.order,
        )  # fmt: skip
        self.y = y.astype(str)

    def classifier(self, **options):
        given = {"client": self.connection, "epochs": 12, "settings": TRUSTED} | options
        return EncryptedClassifier(self.connection, **given)


@pytest.fixture(autouse=True)
def _same_draws():
    with same_draws():
        yield


@pytest.fixture(params=[False, True], ids=["values", "pixels"])
def site(request, tmp_path):
    made = Site(tmp_path, pixels=request.param)
    with contextlib.closing(made.authority):
        yield made


def test_fit_predict_and_score_in_own_names(site):
    found = site.classifier().fit(site.path)
    assert list(found.classes_) == ["0", "1", "2"]
    probabilities = found.predict_proba(site.x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    named = found.predict(site.x)
    assert (named == found.classes_[probabilities.argmax(axis=1)]).all()
    assert found.score(site.x, site.y) == (named == site.y).mean() > 0.85
    assert found.outcome_.test_accuracy > 0.8
    assert found.model_.info.name == "set"


@pytest.mark.parametrize("first_layer", ["frozen", "trainable"])
def test_plain_samples_are_predicted_as_their_ciphertexts(site, first_layer):
    """The accuracy on the plain rows of the test part is the run's on their ciphertexts."""
    settings = replace(TRUSTED, first_layer=first_layer)
    found = site.classifier(epochs=10, settings=settings).fit(site.path)
    with np.load(site.order) as order:
        opened = EncryptedDataset.open(site.path)
        rows = order["rows"][np.isin(order["ids"], opened.test_ids)]
    assert len(rows) == 75
    plain = found.score(site.x[rows], site.y[rows])
    assert abs(plain - found.outcome_.test_accuracy) <= ONE_SAMPLE
    assert plain > 0.6


def test_the_papers_loss_gives_a_distribution(site):
    mse = replace(TRUSTED, loss="mse", learning_rate=0.01)
    found = site.classifier(settings=mse, model="logistic", epochs=25).fit(site.path)
    given = found.predict_proba(site.x)
    np.testing.assert_allclose(given.sum(axis=1), 1.0, rtol=1e-5)
    assert found.score(site.x, site.y) > 0.8


def test_without_a_clients_connection_there_are_no_plain_predictions(site):
    found = site.classifier(client=None, epochs=1).fit(site.path)
    assert list(found.classes_) == [0, 1, 2]
    with pytest.raises(InputError, match="give client="):
        found.predict(site.x)


def test_parameters_are_those_of_the_constructor(site):
    made = site.classifier(callbacks=[EarlyStopping(2)])
    given = made.get_params()
    assert given["epochs"] == 12
    assert set(given) == {
        "authority", "client", "model", "epochs", "settings", "callbacks", "keep",
    }  # fmt: skip
    again = EncryptedClassifier(**given)
    assert again.get_params() == given
    assert again.set_params(epochs=3).epochs == 3
    with pytest.raises(InputError, match="takes no depth"):
        again.set_params(depth=3)


def test_scikit_learn_clones_it(site):
    base = pytest.importorskip("sklearn.base")
    made = site.classifier(settings=TRUSTED)
    made.set_params(authority=None, client=None)
    again = base.clone(made)
    assert again is not made
    assert again.get_params() == made.get_params()


def test_the_model_is_kept_where_asked(site, tmp_path):
    keep = RunFiles(model=tmp_path / "model", checkpoint=tmp_path / "run")
    found = site.classifier(keep=keep, epochs=2).fit(site.path)
    assert (tmp_path / "model" / "model.json").exists()
    assert found.model_.run == site.classifier(keep=keep, epochs=2).fit(site.path).model_.run
    with pytest.raises(InputError, match="name the folder of the model"):
        site.classifier(keep=RunFiles()).fit(site.path)


def test_what_cannot_be_fitted_or_predicted(site):
    made = site.classifier()
    for early in (made.predict, made.predict_proba, lambda x: made.score(x, site.y)):
        with pytest.raises(InputError, match="call fit first"):
            early(site.x)
    with pytest.raises(InputError, match=r"make one with training\.encrypt"):
        made.fit(site.x, site.y)
    made.set_params(epochs=1).fit(site.path)
    with pytest.raises(InputError, match="is none of the classes 0, 1, 2"):
        made.score(site.x, np.full(300, "rare"))
    with pytest.raises(InputError, match="a sample is"):
        made.predict(site.x[:, :3])
    other = site.x.astype(np.float64) if site.x.dtype == np.uint8 else site.x.astype(np.uint8)
    with pytest.raises(InputError, match="predict: data set 'set' is of"):
        made.predict(other)
    if site.x.dtype != np.uint8:
        with pytest.raises(RangeError, match="outside the data set's range"):
            made.predict(site.x + 3)


def test_plain_rows_of_a_table(tmp_path):
    table = tmp_path / "rows.csv"
    rows = [f"{20 + i},{'fm'[i % 2]},{i},{'yes' if i % 2 else 'no'}" for i in range(60)]
    table.write_text("\n".join(["age,sex,stay,label", *rows]))
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as authority:
        connection = LocalClient(authority)
        source = TableSource(table, TableOptions())
        encrypt(source, tmp_path / "a.cloister", authority=connection, privacy="budget=4")
        found = EncryptedClassifier(
            connection, client=connection, epochs=12, settings=replace(TRUSTED, learning_rate=0.05)
        ).fit(tmp_path / "a.cloister")
        assert list(found.predict(np.array([[30, 0, 5], [30, 1, 5]]))) == ["no", "yes"]
        for row, message in (
            ([30, 2, 5], "sample 0, column sex: give the place of a value, 0 to 1 of f, m; 2 is"),
            ([30, 0.5, 5], "column sex: give the place of a value, 0 to 1 of f, m; 0.5 is none"),
            ([30, 0, 5, 1], r"shape \(4,\), and data set 'a' has 3 columns: age, sex, stay"),
            ([30, 0], "has 3 columns: age, sex, stay"),
        ):
            with pytest.raises(InputError, match=message):
                found.predict(np.array([row]))


def test_labels_and_numbers_are_no_classes(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as authority:
        connection = LocalClient(authority)
        x, y, _ = blobs(60)
        encrypt(
            ArraySource(x, np.eye(3, dtype=np.int64)[y], targets="labels"), tmp_path / "a.cloister",
            authority=connection, new=NewDataset(value_range=(-1.0, 1.0)),
        )  # fmt: skip
        with pytest.raises(UnsupportedError, match="has labels to learn"):
            EncryptedClassifier(connection).fit(tmp_path / "a.cloister")


def test_probabilities_of_scores():
    scores = np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], np.float32)
    wanted = {"cross-entropy": [1, 0, 0], None: [1, 0, 0], "mse": [2 / 3, 1 / 3, 0]}
    for loss, first in wanted.items():
        found = answers_of(scores, "classes", loss=loss)
        np.testing.assert_allclose(found, [first, [1 / 3] * 3], rtol=1e-6)
    sunk = answers_of(scores - 2000, "classes", loss="mse")
    np.testing.assert_allclose(sunk, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)


def test_encrypted_samples_are_predicted_and_evaluated(site):
    """The same answers as for the plain ones; the labels stay encrypted."""
    found = site.classifier(epochs=2, settings=replace(TRUSTED, first_layer="frozen"))
    found.fit(site.path)
    assert abs(found.score(site.path) - found.outcome_.test_accuracy) <= ONE_SAMPLE
    with pytest.raises(InputError, match="holds its labels; give no others"):
        found.score(site.path, site.y)
    encrypt(
        ArraySource(site.x, None), site.path, authority=site.connection, unlabelled=True,
        order=site.folder / "new.npz", privacy="budget=8", again=True,
    )  # fmt: skip
    with np.load(site.folder / "new.npz") as order:
        rows = order["rows"]
    np.testing.assert_allclose(
        found.predict_proba(site.path), found.predict_proba(site.x[rows]), atol=1e-6
    )
    assert (found.predict(site.path) == found.predict(site.x[rows])).all()
    numbers = site.classifier(client=None, epochs=2, settings=found.settings).fit(site.path)
    assert numbers.predict(site.path).dtype == np.int64
