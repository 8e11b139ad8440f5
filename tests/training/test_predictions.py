"""Predictions for encrypted samples: equal to plain ones, charged exactly, for samples that fit."""

from dataclasses import replace

import numpy as np
import pytest

from cloister.authority.authority import Authority
from cloister.authority.deletion import delete
from cloister.authority.local import LocalClient
from cloister.authority.requests import Labels
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.id_spans import IdSpans
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.plan.claims import Extent, Role, Verb
from cloister.ring import pads
from cloister.training import (
    ArraySource,
    EncryptedModel,
    NewDataset,
    Privacy,
    RunFiles,
    Settings,
    encrypt,
    open_answers,
    train,
    write_answers,
)
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.training.exported_model import exported
from cloister.training.predictions import PredictionOptions
from training.doubles import blobs
from training.same_draws import same_draws

SHAPE = (6, 5, 1)
PAPER = PredictionOptions(allow_unbounded_leakage=True)
RUNS = {
    "frozen": (Privacy("budget=7"), Settings(batch=16)),
    "exact": (Privacy("budget=7", value_bits=32, max_bits=1000), Settings(batch=16)),
    "paper": (
        Privacy("paper", allow_unbounded_leakage=True),
        Settings(batch=16, allow_unbounded_leakage=True),
    ),
    "trusted": (Privacy("budget=7"), Settings(batch=16, unblind_to="trusted")),
    "secretive": (
        Privacy("budget=7", labels_to="trusted", evaluations=4),
        Settings(batch=16, unblind_to="trusted", first_layer="frozen"),
    ),
}


DRAWS = 4
"""With them the permutation of the three classes is not its own inverse."""


class Clinic:
    """An authority, a data set, a model trained on it, and unlabelled samples beside."""

    def __init__(self, folder, run):
        self.privacy, self.settings = RUNS[run]
        self.authority = Authority.create(folder / "authority", rng=SystemRandom())
        self.client, self.path = LocalClient(self.authority), folder / "set.cloister"
        self.x, self.y, _ = blobs(180, SHAPE)
        labelled, unlabelled = folder / "labelled.npz", folder / "order.npz"
        with same_draws(DRAWS):
            self.encrypt(
                ArraySource(self.x[:120], self.y[:120]), test_fraction=0.25, order=labelled
            )
            train(
                self.path, authority=self.client, epochs=4, settings=self.settings, model="mlp",
                keep=RunFiles(model=folder / "model"),
            )  # fmt: skip
            self.encrypt(ArraySource(self.x[120:], None), unlabelled=True, order=unlabelled)
        self.model = EncryptedModel.open(folder / "model")
        self.rows = _rows(labelled, first=0) | _rows(unlabelled, first=120)
        self.opened = EncryptedDataset.open(self.path)

    def encrypt(self, source, **options):
        return encrypt(
            source, self.path, authority=self.client, privacy=self.privacy,
            new=NewDataset(value_range=(-1.0, 1.0)), **options,
        )  # fmt: skip

    def own_classes(self):
        """The own class that each number in the file stands for, as its labels show."""
        ids = self.opened.train_ids
        own = np.array([self.y[self.rows[one]] for one in ids.tolist()])
        found, numbers = np.empty(3, int), _labels(self, ids)
        found[numbers] = own
        assert (found[numbers] == own).all()
        return found

    def predict(self, **options):
        return self.model.predict(self.opened, authority=self.client, **options)

    def plain(self, rows):
        """The model's scores for samples that are not encrypted."""
        info, linear = self.model.info, self.model.first.linear
        q = info.encoding.encode(self.x[rows]).reshape(len(rows), -1).astype(np.int64)
        weights = linear.weights.astype(np.int64)
        integers = q @ weights.reshape(len(weights), -1).T
        values = self.model.first.values(
            integers.reshape(len(rows), 1, 1, -1).astype(np.int32), info.encoding
        )
        return self.model.scores(values)


def _rows(order, *, first):
    """The row of every sample, by its id."""
    with np.load(order) as kept:
        return dict(zip(kept["ids"].tolist(), (kept["rows"] + first).tolist(), strict=True))


@pytest.fixture
def clinics(tmp_path):
    made = []

    def make(run):
        folder = tmp_path / f"{run}{len(made)}"
        folder.mkdir()
        made.append(Clinic(folder, run))
        return made[-1]

    yield make
    for one in made:
        one.authority.close()


def options_for(clinic):
    return PAPER if clinic.privacy.mode == "paper" else PredictionOptions()


@pytest.mark.parametrize("run", ["exact", "paper", "trusted"])
def test_answers_are_those_of_the_model_on_plain_samples(clinics, run):
    clinic = clinics(run)
    made = clinic.predict(options=options_for(clinic))
    assert made.ids.tolist() == clinic.opened.unlabelled_ids.tolist() == list(clinic.rows)[120:]
    scores = clinic.plain([clinic.rows[one] for one in made.ids.tolist()])
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(made.answers, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    assert made.answers.dtype == np.float32
    assert np.ptp(made.answers) > 0.25


def test_a_frozen_model_answers_under_the_noise_of_its_data_set(clinics):
    clinic = clinics("frozen")
    made = clinic.predict()
    scores = clinic.plain([clinic.rows[one] for one in made.ids.tolist()])
    assert (made.answers.argmax(axis=1) == scores.argmax(axis=1)).mean() > 0.9
    again = clinic.predict()
    np.testing.assert_array_equal(made.answers, again.answers)


@pytest.mark.parametrize("run", ["frozen", "exact", "paper"])
def test_the_ledger_is_charged_exactly(clinics, run):
    """A new sample costs what a sample of the training cost; the same again costs nothing."""
    clinic = clinics(run)
    before = clinic.authority.spent("set")
    trained = clinic.opened.train_ids[0]
    some = clinic.opened.unlabelled_ids[::2]
    made = clinic.predict(ids=some, options=options_for(clinic))
    after = clinic.authority.spent("set")
    rank = clinic.model.first.linear.geometry.out_channels
    costs = (
        (before.rank[trained], before.bits[trained])
        if run != "paper"
        else (min(rank, 30), after.bits[some[0]])
    )
    for found, old, cost in zip(
        (after.rank, after.bits), (before.rank, before.bits), costs, strict=True
    ):
        expected = old.copy()
        expected[some] = cost
        np.testing.assert_array_equal(found, expected)
        assert cost > 0
    np.testing.assert_array_equal(after.labels, before.labels)
    assert made.requests == 1
    requests = clinic.authority.summary("set").counts["forward"]
    clinic.predict(ids=some, options=options_for(clinic))
    clinic.predict(ids=clinic.opened.train_ids, options=options_for(clinic))
    again = clinic.authority.spent("set")
    if run != "paper":
        np.testing.assert_array_equal(again.rank, after.rank)
        np.testing.assert_array_equal(again.bits, after.bits)
    assert clinic.authority.summary("set").counts["forward"] == requests + 2
    assert made.spent.samples == 180


def test_a_trusted_runtime_is_counted_and_not_charged(clinics):
    clinic = clinics("trusted")
    counted = clinic.authority.summary("set").counts["trusted"]
    clinic.predict()
    assert clinic.authority.summary("set").counts["trusted"] == counted + 1
    assert clinic.authority.spent("set").rank.max() == 0


def test_a_host_computes_on_ciphertexts_for_a_trusted_runtime(clinics):
    clinic = clinics("trusted")
    host = LocalCiphertextServer(clinic.opened)
    made = clinic.predict(host=host)
    np.testing.assert_array_equal(made.answers, clinic.predict().answers)
    assert made.claims.of(Role.CIPHERTEXT_HOST, Verb.LEARNS)
    with pytest.raises(InputError, match="only for unblind_to='trusted'"):
        clinic.predict(host=host, options=PredictionOptions(unblind_to="server"))


def test_a_trained_first_layer_does_not_go_beyond_the_budget_of_a_server(clinics):
    """The model of a trusted runtime, asked for by a server: its rank is 30, the budget 7."""
    clinic = clinics("trusted")
    with pytest.raises(BudgetError, match="frozen first layer or unblind to a trusted runtime"):
        clinic.predict(options=PredictionOptions(unblind_to="server"))
    assert clinic.authority.spent("set").rank.max() == 0


@pytest.mark.parametrize("run", ["frozen", "trusted", "paper", "secretive"])
def test_encrypted_labels_tell_accuracy_and_loss(clinics, run):
    clinic = clinics(run)
    options = replace(options_for(clinic), evaluates=True)
    made = clinic.predict(options=options)
    ids = clinic.opened.test_ids
    assert made.ids.tolist() == ids.tolist()
    labels, found = _labels(clinic, ids), made.evaluated
    right = (made.answers.argmax(axis=1) == labels).mean()
    lost = -np.log(np.maximum(made.answers[np.arange(len(ids)), labels], 2.0**-16)).mean()
    assert found.samples == len(ids) == 30
    assert abs(found.accuracy - right) <= found.accuracy_error + 1e-12
    assert abs(found.loss - lost) <= found.loss_error + 1e-9
    assert found.accuracy_error == 0
    assert found.loss_error < 0.01


def _labels(clinic, ids):
    """The labels under the numbers of the file, as a trusted runtime may have them."""
    term = clinic.client.ask(Labels("set", ids), "trusted")
    return pads.unblind(clinic.opened.labels(ids), term).argmax(axis=1)


def test_a_server_evaluates_without_labels_as_often_as_the_owner_allows(clinics):
    clinic = clinics("secretive")
    options = PredictionOptions(unblind_to="server", evaluates=True)
    made = clinic.predict(options=options)
    assert made.spent.evaluations == 2
    assert made.spent.labels_released == 0
    labels = _labels(clinic, made.ids)
    right = (made.answers.argmax(axis=1) == labels).mean()
    assert abs(made.evaluated.accuracy - right) <= made.evaluated.accuracy_error + 1e-12
    np.testing.assert_array_equal(clinic.predict(options=options).answers, made.answers)
    assert clinic.authority.summary("set").evaluations == 2
    train_ids = clinic.opened.train_ids
    clinic.predict(options=options, ids=train_ids)
    with pytest.raises(BudgetError, match="--evaluations"):
        clinic.predict(options=options, ids=train_ids[:40])
    claims = {one.about: one for one in made.claims.of(Role.SERVER, Verb.LEARNS)}
    assert claims["labels"].extent is Extent.BOUNDED
    assert "at most 12 bits of all labels together in each of 4 sums" in claims["labels"].text


def test_a_model_of_other_data_is_refused_before_any_key(clinics):
    clinic = clinics("frozen")
    asked = clinic.authority.summary("set").counts["requests"]
    info = clinic.model.info
    changed = {
        "name": {"name": "other"},
        "classes": {"classes": 4},
        "encoding": {"encoding": replace(info.encoding, scale=0.5)},
        "targets": {"targets": "labels"},
    }
    for field, change in changed.items():
        other = _like(clinic.model, info=replace(info, **change))
        with pytest.raises(EncryptionError, match=f"trained on data whose {field} is"):
            other.predict(clinic.opened, authority=clinic.client)
    other = _like(clinic.model, authority="f" * 64)
    with pytest.raises(EncryptionError, match="trained on data of authority ffffffffffffffff"):
        other.predict(clinic.opened, authority=clinic.client)
    assert clinic.authority.summary("set").counts["requests"] == asked


def _like(model, **changes):
    """A model that differs in what it says of its data."""
    other = object.__new__(EncryptedModel)
    for name in model.__dataclass_fields__:
        object.__setattr__(other, name, changes.get(name, getattr(model, name)))
    return other


def test_a_model_of_a_data_set_that_was_made_anew_is_refused(tmp_path):
    """Its classes had other numbers: names and answers would be wrong without a word."""
    clinic = Clinic(tmp_path, "frozen")
    write_answers(clinic.predict(), tmp_path / "a.answers", key=None)
    clinic.authority.close()
    delete(tmp_path / "authority", "set")
    clinic.path.rename(tmp_path / "old.cloister")
    with Authority(tmp_path / "authority") as authority:
        clinic.client = LocalClient(authority)
        clinic.encrypt(ArraySource(clinic.x[:60], clinic.y[:60]), order=tmp_path / "anew.npz")
        opened = EncryptedDataset.open(clinic.path)
        for use in (
            lambda: clinic.model.predict(opened, authority=clinic.client),
            lambda: exported(clinic.model, authority=clinic.client),
            lambda: open_answers(tmp_path / "a.answers", authority=clinic.client),
        ):
            with pytest.raises(EncryptionError, match="data set set: was deleted and made anew"):
                use()
    readable = open_answers(tmp_path / "a.answers")
    with pytest.raises(InputError, match=r"anew\.npz: is of another data set than set"):
        readable.of_owner(tmp_path / "anew.npz")


def test_a_file_of_another_authority_is_refused(clinics):
    clinic, other = clinics("frozen"), clinics("frozen")
    with pytest.raises(EncryptionError, match="belongs to authority"):
        clinic.model.predict(other.opened, authority=clinic.client)


def test_samples_that_cannot_be_answered_for_are_named(clinics):
    clinic = clinics("frozen")
    gone = int(clinic.opened.unlabelled_ids[3])
    clinic.authority.withdraw("set", IdSpans.of([(gone, gone + 1)]))
    with pytest.raises(InputError, match=f"sample {gone} was withdrawn"):
        clinic.predict(ids=clinic.opened.unlabelled_ids)
    assert gone not in clinic.predict().ids
    with pytest.raises(InputError, match="has no label to evaluate with"):
        clinic.predict(
            ids=clinic.opened.unlabelled_ids[:3], options=PredictionOptions(evaluates=True)
        )
    with pytest.raises(InputError, match="ids: must be a list of whole numbers"):
        clinic.predict(ids=np.zeros(3))
    with pytest.raises(EncryptionError, match="holds no sample 999"):
        clinic.predict(ids=np.array([999]))
    with pytest.raises(InputError, match="answers_to must be server or client"):
        PredictionOptions(answers_to="host")


def test_nothing_to_predict_is_said(clinics, tmp_path):
    clinic = clinics("frozen")
    whole = IdSpans.of([(120, 180)])
    with pytest.raises(InputError, match="has no samples of split unlabelled"):
        clinic.model.predict(clinic.opened.without(whole), authority=clinic.client)


def test_mode_paper_needs_its_consent(clinics):
    clinic = clinics("paper")
    with pytest.raises(InputError, match="--allow-unbounded-leakage"):
        clinic.predict()


def test_claims_say_who_knows_the_answers(clinics):
    clinic = clinics("frozen")
    readable = clinic.predict()
    sealed = clinic.predict(options=PredictionOptions(answers_to="client"))
    for made, extent in ((readable, Extent.EVERYTHING), (sealed, Extent.NOTHING)):
        told = {
            (one.role, one.about): one for one in made.claims.statements if one.verb is Verb.LEARNS
        }
        answers = "a sample's prediction"
        assert told[Role.ANSWERS_READER, answers].extent is extent
        server = told[Role.SERVER, answers]
        assert server.extent is Extent.EVERYTHING
        assert "not from who computes them" in server.text
        assert "7 fixed linear functions" in told[Role.SERVER, "a sample's values"].text
        assert told[Role.AUTHORITY, "a sample's values"].extent is Extent.NOTHING
        assert made.claims.worst(Role.SERVER, Verb.CAN) is Extent.EVERYTHING
