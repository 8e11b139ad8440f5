"""Verdicts: none is better than what an attack found out, and none is given without an attack."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from audit import leaks
from cloister.audit.training import attacks
from cloister.audit.training.attacks import ATTACKS, SINGLE, run_attacks
from cloister.audit.training.evidence import collect
from cloister.audit.training.judge import judge, overall
from cloister.audit.training.prior import uninformed
from cloister.audit.training.score import score_images
from cloister.audit.training.training_page import encrypted_page, severity
from cloister.audit.training.truth import Truth

SHAPE = (2, 3, 1)
PRIOR = uninformed(SHAPE, low=0, high=9)


@pytest.fixture
def rng():
    return np.random.default_rng(30)


@pytest.fixture
def images(rng):
    return rng.integers(0, 10, (8, *SHAPE))


def released(images, rows, ids=None, step=0):
    """A forward release of a dense layer with these rows."""
    rows = np.asarray(rows)
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    return leaks.forward(images, ids, leaks.dense(SHAPE, len(rows)), rows, step=step)


def verdicts(releases, truth=None, prior=PRIOR, **options):
    _, findings = run_attacks(releases, prior, **options)
    judged = [judge(finding, truth, prior) for finding in findings]
    return {one.finding.attack: one for one in judged}, overall(judged)


def test_full_rank_is_recovered_whatever_the_truth_is(images, rng):
    log = [released(images, rng.integers(-9, 10, (6, 6)))]
    plain = Truth(np.arange(8), images.reshape(8, -1)[::-1].astype(float))
    for truth in (plain, None):
        found, verdict = verdicts(log, truth)
        assert found["linear solve"].verdict == verdict == "recovered"


def test_one_determined_sample_is_not_hidden_by_others(images, rng):
    log = [
        released(images, rng.integers(-9, 10, (2, 6)), ids=np.arange(8)),
        released(images, rng.integers(-9, 10, (6, 6)), ids=[5], step=1),
    ]
    truth = Truth(np.arange(8), images.reshape(8, -1).astype(float))
    found, verdict = verdicts(log, truth)
    one = found["linear solve"]
    assert one.score.verdict != "recovered"
    assert one.verdict == verdict == "recovered"
    assert one.finding.certain.all(axis=1).tolist() == [i == 5 for i in one.finding.ids]


def test_determined_elements_are_more_than_nothing(images):
    """Two functions whose difference is one element: that one is exact, the rest is not."""
    log = [released(images, [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]])]
    truth = Truth(np.arange(8), images.reshape(8, -1).astype(float))
    found, _ = verdicts(log, truth)
    linear = found["linear solve"]
    np.testing.assert_array_equal(linear.finding.certain, np.tile(np.arange(6) == 5, (8, 1)))
    np.testing.assert_array_equal(linear.finding.x[:, 5], images.reshape(8, 6)[:, 5])
    assert linear.score.verdict == "not recovered"
    assert linear.verdict == "approximated"
    assert "17% of all elements determined" in linear.finding.note


def test_a_choice_of_rows_does_not_hide_full_rank(images):
    """24 of 96 rows are chosen evenly, and the ones that complete the rank are between them."""
    rows = np.tile([1, 1, 1, 1, 1, 1], (96, 1))
    chosen = np.unique(np.linspace(0, 95, 24).astype(int))
    between = np.setdiff1d(np.arange(96), chosen)
    rows[between[:6]] = np.diag([2, 3, 4, 5, 6, 7]) + 1
    [group] = collect([released(images, rows)]).groups(limit=24)
    assert len(group.rows) == 96
    found, verdict = verdicts([released(images, rows)])
    assert found["linear solve"].finding.determined
    assert verdict == "recovered"


def test_a_guess_does_not_know_the_answer():
    """The mean of one sample is that sample: it beat every attack."""
    truth = np.array([[0.0, 9.0, 3.0, 5.0, 1.0, 7.0]])
    score = score_images(truth + 0.01, truth, guess=PRIOR.mean, span=9.0)
    assert score.verdict == "recovered"
    assert score.guess < 15


@pytest.mark.parametrize("limit", ["LARGEST_SAMPLE", "LARGEST_JOINT"])
def test_what_a_limit_stopped_is_not_attempted(limit, images, rng, monkeypatch):
    log = [released(images, rng.integers(-9, 10, (2, 6)))]
    if limit == "LARGEST_SAMPLE":
        monkeypatch.setattr(attacks, limit, 5)
        stopped = SINGLE
    else:
        monkeypatch.setattr("cloister.audit.training.batch_solver.LARGEST_JOINT", 5)
        stopped = ("joint solve",)
    found, _ = verdicts(log)
    for name in stopped:
        assert found[name].verdict == "not attempted", name
        assert found[name].finding.note
    assert found["gradient batches"].verdict == "nothing to attack"


def test_a_program_without_a_solution_is_not_attempted(images, rng):
    """As under a wrong --range: no image has these values, so nothing was found out."""
    log = [released(images, rng.integers(1, 10, (2, 6)))]
    prior = uninformed(SHAPE, low=20, high=30)
    found, _ = verdicts(log, prior=prior)
    assert found["box program"].verdict == "not attempted"
    assert "--range" in found["box program"].finding.note


def test_a_log_on_which_nothing_could_run_is_not_attempted(images, rng, monkeypatch):
    monkeypatch.setattr(attacks, "LARGEST_SAMPLE", 5)
    monkeypatch.setattr("cloister.audit.training.batch_solver.LARGEST_JOINT", 5)
    found, verdict = verdicts([released(images, rng.integers(-9, 10, (2, 6)))])
    assert verdict == "not attempted"
    assert {one.verdict for one in found.values()} == {"not attempted", "nothing to attack"}
    assert set(found) == set(ATTACKS)


def test_packed_keys_under_noise_are_left_alone(images):
    """Their values are no sums of elements, and reading them as such would end the audit."""
    log = [released(images, [[1, 20, 400, 8000, 0, 0]])]
    found, _ = verdicts(log, value_bits=8)
    assert found["packed keys"].verdict == "not recovered"
    assert verdicts(log)[0]["packed keys"].verdict in ("approximated", "recovered")


def test_the_page_says_how_many_samples_a_verdict_is_about(images, rng):
    """One determined sample of eight is recovered, and the page does not speak as if all were."""
    log = [
        released(images, rng.integers(-9, 10, (2, 6)), ids=np.arange(8)),
        released(images, rng.integers(-9, 10, (6, 6)), ids=[5], step=1),
    ]
    truth = Truth(np.arange(8), images.reshape(8, -1).astype(float))
    evidence, findings = run_attacks(log, PRIOR)
    judged = [judge(finding, truth, PRIOR) for finding in findings]
    assert severity(judged, evidence) == (
        "Samples whose values are recovered: 1 of 8 tried (linear solve); the log concerns 8 "
        "samples."
    )
    shown = encrypted_page(judged, evidence, PRIOR, truth=truth)
    assert '<p class="bad">' in shown
    assert "1 of 8" in shown
    harmless, findings = run_attacks(log[:1], PRIOR)
    judged = [judge(finding, truth, PRIOR) for finding in findings]
    assert "recovered: none; the log concerns 8 samples" in severity(judged, harmless)
    assert '<p class="bad">' not in encrypted_page(judged, harmless, PRIOR, truth=truth)


def test_each_sample_is_scored_alone():
    """The mean over all hides that two of three are exact."""
    truth = np.arange(18.0).reshape(3, 6) % 10
    found = truth.copy()
    found[2] += 9 - 2 * found[2]
    score = score_images(found, truth, guess=PRIOR.mean, span=9.0)
    assert (score.verdict, score.recovered, score.samples) == ("not recovered", 2, 3)


@pytest.mark.parametrize(("shape", "size", "mode"), [
    ((4, 5, 3), (5, 4), "RGB"), ((4, 5, 1), (5, 4), "L"), ((1, 1, 13), (13, 1), "L"),
])  # fmt: skip
def test_pictures_have_colours_and_rows_of_tables_are_strips(shape, size, mode, rng):
    images = rng.integers(0, 10, (3, *shape))
    rows = rng.integers(-9, 10, (np.prod(shape) + 2, np.prod(shape)))
    releases = [leaks.forward(images, np.arange(3), leaks.dense(shape, len(rows)), rows)]
    prior = uninformed(shape, low=0, high=9)
    truth = Truth(np.arange(3), images.reshape(3, -1).astype(float))
    evidence, findings = run_attacks(releases, prior)
    judged = [judge(finding, truth, prior) for finding in findings]
    page = encrypted_page(judged, evidence, prior, truth=truth)
    [original, *_] = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    picture = Image.open(io.BytesIO(base64.b64decode(original)))
    assert (picture.size, picture.mode) == (size, mode)
    assert '<table class="large">' in page
