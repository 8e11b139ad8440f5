"""Claims of a prediction against what is really sent: every interface is watched."""

from dataclasses import replace

import numpy as np
import pytest

from cloister.plan.claims import Claims, Extent, Role, Strength, Verb
from cloister.training import PredictionOptions, write_answers
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.training.sent import Content, sent_by_prediction
from cloister.training.training_claims import CAN_PREDICTING, prediction_claims
from training.test_predictions import PAPER, Clinic
from training.test_training_claims import Watched

VALUES, LABELS, MODEL, ANSWERS = "a sample's values", "labels", "the model", "a sample's prediction"
CHOICES = {
    "frozen": PredictionOptions(),
    "frozen sealed": PredictionOptions(answers_to="client"),
    "paper evaluated": replace(PAPER, evaluates=True),
    "secretive evaluated": PredictionOptions(unblind_to="server", evaluates=True),
    "trusted sealed hosted": PredictionOptions(answers_to="client"),
    "trusted evaluated": PredictionOptions(evaluates=True),
}


@pytest.fixture(scope="module")
def clinics(tmp_path_factory):
    made = {
        run: Clinic(tmp_path_factory.mktemp(run), run)
        for run in ("frozen", "paper", "secretive", "trusted")
    }
    yield made
    for one in made.values():
        one.authority.close()


@pytest.fixture(params=CHOICES)
def predicted(request, clinics, tmp_path):
    """A prediction, its options, and what crossed each interface."""
    run, options = request.param.split()[0], CHOICES[request.param]
    clinic = clinics[run]
    authority = Watched(clinic.client)
    host = Watched(LocalCiphertextServer(clinic.opened)) if "hosted" in request.param else None
    made = clinic.model.predict(clinic.opened, authority=authority, options=options, host=host)
    if options.answers_to == "client":
        write_answers(made, tmp_path / "a", key=authority.answer_key(made.info.name))
    settings = replace(
        clinic.model.settings, unblind_to=options.unblind_to or clinic.model.settings.unblind_to
    )
    rows = sent_by_prediction(
        settings,
        hosted=host is not None,
        answers_to=options.answers_to,
        evaluates=options.evaluates,
    )
    crossed = {
        Role.AUTHORITY: authority.calls,
        Role.CIPHERTEXT_HOST: [] if host is None else host.calls,
    }
    return made, rows, crossed


def test_whatever_is_sent_is_listed_and_whatever_is_listed_is_sent(predicted):
    _, rows, crossed = predicted
    for role, calls in crossed.items():
        listed = {row.kind for row in rows if row.role is role}
        assert {kind for kind, _ in calls} == listed - {"data set file"}, role


def test_one_function_is_sent_whatever_the_samples(predicted):
    _, rows, crossed = predicted
    for role, calls in crossed.items():
        operands = {args[0].operand.tobytes() for kind, args in calls if kind == "forward"}
        assert len(operands) == bool(calls), role
        assert not {Content.WEIGHTS, Content.OUTPUT_GRADIENTS} & {
            content for row in rows if row.role is role for content in row.carries
        }


def test_every_role_learns_something_and_nothing_is_claimed_that_is_sent(predicted):
    made, rows, _ = predicted
    claims = made.claims
    assert Claims.from_dict(claims.to_dict()) == claims
    assert {one.role for one in claims.statements} == {row.role for row in rows}
    told = {(one.role, one.about): one for one in claims.statements if one.verb is Verb.LEARNS}
    for row in rows:
        carried = set(row.carries)
        if carried & {Content.VALUES, Content.FIXED_VALUES, Content.ANSWERS, Content.GUESSES}:
            assert told[row.role, VALUES].extent is not Extent.NOTHING, row
        if carried & {Content.ANSWERS, Content.GUESSES}:
            assert told[row.role, ANSWERS].extent is Extent.EVERYTHING, row
        if Content.SUMS in carried:
            assert told[row.role, LABELS].extent is not Extent.NOTHING, row
        if row.role in CAN_PREDICTING:
            assert claims.of(row.role, Verb.CAN), row
    for one in told.values():
        if one.extent is Extent.NOTHING and one.about in (VALUES, LABELS):
            assert one.strength is Strength.ASSUMED or one.role is Role.CIPHERTEXT_HOST, one


def test_a_server_that_may_have_labels_is_said_to(clinics):
    info = clinics["paper"].model.info
    settings = clinics["paper"].model.settings
    asked = {"rank": None, "hosted": False, "answers_to": "server", "evaluates": True}
    free = prediction_claims(settings, info, sums=None, **asked)
    few = prediction_claims(settings, info, sums=3, **asked)
    for claims, extent in ((free, Extent.EVERYTHING), (few, Extent.BOUNDED)):
        (one,) = [s for s in claims.of(Role.SERVER, Verb.LEARNS) if s.about == LABELS]
        assert one.extent is extent
    authority = {one.about: one for one in few.of(Role.AUTHORITY, Verb.LEARNS)}
    assert authority[ANSWERS].extent is Extent.EVERYTHING
    assert "it holds the label key" in authority[ANSWERS].text


def test_sealed_answers_hold_uniform_bytes(clinics, tmp_path):
    clinic = clinics["frozen"]
    made = clinic.predict(options=PredictionOptions(answers_to="client"))
    key = clinic.client.answer_key("set")
    pieces = []
    for number in range(20):
        write_answers(made, tmp_path / f"{number}", key=key)
        pieces.append((tmp_path / f"{number}").read_bytes()[-600:])
    counts = np.bincount(np.frombuffer(b"".join(pieces), np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - 255) < 9 * np.sqrt(2 * 255)  # by chance once in 10^12: scipy.stats.chi2
