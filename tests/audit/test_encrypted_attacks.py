"""Every attack on releases made in plain integers: it succeeds and it fails where it must.

Scores are asserted with margins on both sides of the stated thresholds; nothing is a near miss.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from audit import leaks
from cloister.audit.training.attacks import ATTACKS, run_attacks
from cloister.audit.training.batch_solver import gradient_batches, joint_solve
from cloister.audit.training.evidence import collect, noise_width
from cloister.audit.training.functionals import gather, patches, rows_of, scatter
from cloister.audit.training.lattice import IntegerDecoder, NoisyDecoder, reduce
from cloister.audit.training.population import learn_prior
from cloister.audit.training.prior import from_public, uninformed
from cloister.audit.training.score import Score, score_images, score_labels
from cloister.audit.training.solve import box_program, prior_estimate
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError
from cloister.ring.linear import Geometry
from cloister.ring.reference import linear_map

SHAPE = (8, 8, 1)
CONV = Geometry((8, 8), 1, (8, 8), 6, (5, 5), pad=(2, 2))


@pytest.fixture(scope="module")
def digits():
    """(images, labels, prior): the attacker's public images are not those under attack."""
    found = load_digits()
    images = found.images.astype(np.int64)[..., None]
    prior = from_public(images[900:].astype(np.float64), low=0, high=16)
    return images[:900], found.target[:900], prior


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def weights(rng, count, bits=12):
    return rng.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), count)


def attacked(releases, prior, **options):
    evidence, findings = run_attacks(releases, prior, **options)
    assert [finding.attack for finding in findings] == list(ATTACKS)
    return evidence, {finding.attack: finding for finding in findings}


def scored(finding, truth, prior):
    flat = truth.reshape(len(truth), -1).astype(np.float64)[finding.ids]
    span = prior.high - prior.low
    return score_images(finding.x, flat, guess=prior.mean, span=span)


# ---- the attacker's arithmetic


GEOMETRIES = (
    CONV,
    leaks.dense(SHAPE, 3),
    Geometry((8, 8), 1, (3, 4), 2, (3, 2), stride=(3, 2), pad=(1, 0)),
    Geometry((8, 8), 1, (4, 3), 2, (3, 3), dilation=(2, 3)),
    Geometry((8, 8), 1, (15, 15), 2, (3, 3), upsample=(2, 2), pad=(1, 1)),
    Geometry((8, 8), 1, (6, 6), 2, (3, 3), pad=(-1, 0)),
    Geometry((1, 1), 64, (1, 1), 5),
)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rows_are_the_map(geometry, digits, rng):
    x = digits[0][:3].reshape(3, *geometry.in_shape)
    release = leaks.forward(x, [0, 1, 2], geometry, weights(rng, geometry.weight_shape))
    rows = rows_of(release).toarray()
    np.testing.assert_array_equal(
        (x.reshape(3, -1) @ rows.T).reshape(release.values.shape), release.values
    )
    # The transpose really is one: <gather x, z> = <x, scatter z>.
    index = patches(geometry)
    z = rng.integers(-5, 5, (3, *index.shape)).astype(float)
    flat = x.reshape(3, -1).astype(float)
    assert (gather(geometry, flat) * z).sum() == (flat * scatter(geometry, z)).sum()


def test_grouped_layers_are_refused_not_misread():
    with pytest.raises(InputError, match="grouped"):
        patches(Geometry((4, 4), 2, (4, 4), 2, groups=2))


# ---- (1) linear solve


def test_one_pass_through_a_convolution_is_the_image(digits, rng):
    """Paper mode: LeNet's first layer expands 64 pixels to 384 outputs."""
    images, _, prior = digits
    release = leaks.forward(images, np.arange(8), CONV, weights(rng, CONV.weight_shape))
    _, found = attacked([release], prior)
    linear = found["linear solve"]
    assert linear.determined
    assert linear.note == "rank 64 of 64"
    np.testing.assert_array_equal(linear.x.reshape(-1, *SHAPE), images[linear.ids])
    score = scored(linear, images, prior)
    assert (score.verdict, score.value, score.exact) == ("recovered", 99.0, 1.0)
    assert score.guess < 15


def test_keys_of_changing_weights_add_up(digits, rng):
    """Seven steps of a layer of rank dim / 6 are more than the dimension."""
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, 11)
    steps = [
        leaks.forward(images, [3, 5], geometry, weights(rng, geometry.weight_shape), step=step)
        for step in range(7)
    ]
    for count, rank in ((1, 11), (5, 55), (6, 64), (7, 64)):
        _, found = attacked(steps[:count], prior, largest_lattice=32)
        assert found["linear solve"].note == f"rank {rank} of 64"
        assert found["linear solve"].determined == (rank == 64)
    np.testing.assert_array_equal(found["linear solve"].x.reshape(-1, *SHAPE), images[[3, 5]])


def test_repeats_add_nothing(digits, rng):
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, 11)
    release = leaks.forward(images, [1], geometry, weights(rng, geometry.weight_shape))
    _, found = attacked([release] * 9, prior, largest_lattice=32)
    assert found["linear solve"].note == "rank 11 of 64"


# ---- (2) linear programming, and a public prior


def test_box_program_recovers_flat_images_below_full_rank(rng):
    """Images of few edges and half as many functionals as pixels."""
    images = np.zeros((4, 12, 12, 1), np.int64)
    for i, image in enumerate(images):
        image[2 + i : 8, 3 : 7 + i] = 200
    prior = uninformed((12, 12, 1), low=0, high=255)
    geometry = leaks.dense((12, 12, 1), 72)
    release = leaks.forward(images, np.arange(4), geometry, rng.choice([-1, 1], (72, 144)))
    _, found = attacked([release], prior)
    box, linear = (scored(found[name], images, prior) for name in ("box program", "linear solve"))
    assert box.verdict == "recovered"
    assert box.value > 60
    assert linear.verdict != "recovered"
    assert linear.value < 20
    few = leaks.forward(images, np.arange(4), leaks.dense((12, 12, 1), 6), np.ones((6, 144)))
    _, found = attacked([few], prior)
    assert scored(found["box program"], images, prior).verdict != "recovered"


def test_box_program_gives_up_politely():
    prior = uninformed((40, 40, 1), low=0, high=255)
    assert box_program(np.ones((1, 1600)), np.ones(1), prior) is None
    prior = uninformed((2, 2, 1), low=0, high=1)
    assert box_program(np.ones((1, 4)), np.array([99.0]), prior) is None


def test_different_keys_teach_the_population_and_one_key_does_not(digits, rng):
    """Rank 16 of 64 for each of 600 images, without public images or any other knowledge."""
    images, _, _ = digits
    prior = uninformed(SHAPE, low=0, high=16)
    layer = leaks.dense(SHAPE, 16)
    own = [leaks.forward(images, [i], layer, rng.choice([-1, 1], (16, 64))) for i in range(600)]
    groups = collect(own, samples=600).groups(limit=256)
    learned = learn_prior(groups, prior)
    truth = images[:600].reshape(600, -1).astype(float)
    np.testing.assert_allclose(learned.mean, truth.mean(axis=0), atol=2.0)
    x = np.concatenate([prior_estimate(g.rows, g.answers, learned) for g in groups])
    score = score_images(x, truth, guess=prior.mean, span=16.0)
    assert score.verdict == "approximated"
    assert score.value > score.guess + 3.3
    same = [leaks.forward(images, np.arange(600), layer, own[0].functional)]
    assert learn_prior(collect(same, samples=600).groups(limit=256), prior) is None


# ---- (7) integers: rank is not information


def standardised_patients():
    x = load_breast_cancer().data
    x = np.rint((x - x.mean(0)) / x.std(0) * 20).clip(-127, 127).astype(np.int64)
    return np.random.default_rng(0).permutation(x).reshape(-1, 1, 1, 30)


@pytest.mark.parametrize(("bits", "least", "most"), [(15, 0.5, 1.0), (5, 0.0, 0.0)])
def test_seven_answers_name_a_patient_when_their_weights_are_wide(bits, least, most, rng):
    """Rank 7 of 30, a quarter: 7 answers to 15-bit weights still hold more bits than a record."""
    records = standardised_patients()
    prior = from_public(records[:300].astype(float), low=-127, high=127)
    geometry = leaks.dense((1, 1, 30), 7)
    release = leaks.forward(
        records, np.arange(300, 316), geometry, weights(rng, (7, 30), bits=bits)
    )
    _, found = attacked([release], prior)
    assert found["linear solve"].note == "rank 7 of 30"
    integers = found["integer decoding"]
    truth = records[integers.ids].reshape(-1, 30)
    share = float((integers.x == truth).all(axis=1).mean())
    assert least <= share <= most
    # Every point found has the released answers; only the prior tells it from the truth.
    answers = release.values.reshape(16, 7)[np.searchsorted(release.ids, integers.ids)]
    np.testing.assert_array_equal(integers.x @ release.functional.reshape(7, 30).T, answers)


def test_lattice_reduction_keeps_the_lattice_and_shortens(rng):
    basis = np.eye(12, dtype=np.int64)
    basis[:, -1] = rng.integers(-5000, 5000, 12)
    basis[-1, -1] = 40009
    found = reduce(basis, np.eye(12))
    assert round(abs(np.linalg.det(found.astype(float)))) == 40009
    coefficients = np.linalg.solve(basis.T.astype(float), found.T.astype(float))
    np.testing.assert_allclose(coefficients, np.rint(coefficients), atol=1e-6)
    assert np.abs(found).max() < 40


def test_decoder_limits(rng):
    with pytest.raises(RangeError, match="64"):
        IntegerDecoder(np.ones((1, 65), np.int64), uninformed((1, 1, 65), low=0, high=1))
    prior = uninformed((1, 1, 4), low=0, high=9)
    decoder = IntegerDecoder(np.array([[2, 4, 6, 8], [1, 2, 3, 4]]), prior)
    assert decoder.decode(np.array([3, 1])) is None
    assert decoder.decode(np.array([20, 11])) is None
    found = decoder.decode(np.array([20, 10]))
    assert found @ [1, 2, 3, 4] == 10


# ---- (3) batches from gradients


@pytest.mark.parametrize(("hidden", "steps", "succeeds"), [(32, 1, True), (8, 1, False),
                                                           (8, 4, True)])  # fmt: skip
def test_gradients_of_a_dense_layer_are_the_batch(hidden, steps, succeeds, digits, rng):
    """One step where the layer is as wide as the batch; four where it is a quarter of it."""
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, hidden)
    ids = np.arange(100, 132)
    releases = [
        leaks.gradient(images, ids, geometry, weights(rng, (32, hidden)), step=step)
        for step in range(steps)
    ]
    _, found = attacked(releases, prior)
    batch = found["gradient batches"]
    assert batch.determined is succeeds
    assert batch.note == f"rank {min(hidden * steps, 32)} of 32 samples"
    score = scored(batch, images, prior)
    assert (score.verdict == "recovered") is succeeds
    assert score.value == 99.0 if succeeds else score.value < 20


def test_an_epoch_over_changing_batches_is_solved_together(digits, rng):
    """No step and no sample has enough equations alone; the union has."""
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, 16)
    releases = []
    for step in range(12):
        ids = rng.permutation(64)[:32]
        releases.append(leaks.gradient(images, ids, geometry, weights(rng, (32, 16)), step=step))
    found = gradient_batches(releases, prior)
    assert found.determined
    np.testing.assert_array_equal(found.x.reshape(-1, *SHAPE), images[:64])
    assert not gradient_batches(releases[:3], prior).determined


def test_a_sample_that_occurs_twice_counts_twice(digits, rng):
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, 4)
    release = leaks.gradient(images, [7, 9, 7], geometry, weights(rng, (3, 4)))
    found = gradient_batches([release], prior)
    assert found.ids.tolist() == [7, 9]
    np.testing.assert_array_equal(found.x.reshape(-1, *SHAPE), images[[7, 9]])


def test_what_is_counted_apart_is_solved_together(digits, rng):
    """40 forward and 32 gradient functionals: each alone is below the dimension."""
    images, _, prior = digits
    dense = leaks.dense(SHAPE, 40)
    forward = leaks.forward(images, [4], dense, weights(rng, dense.weight_shape))
    patch = Geometry((8, 8), 1, (4, 8), 1, (5, 1))
    gradients = [
        leaks.gradient(images, [4], patch, weights(rng, (1, 32)), step=s) for s in range(7)
    ]
    alone = [joint_solve(part, prior) for part in ([forward], gradients)]
    both = joint_solve([forward, *gradients], prior)
    truth = images[[4]].reshape(1, -1)
    assert [float(np.abs(found.x - truth).max()) > 1 for found in alone] == [True, True]
    np.testing.assert_allclose(both.x, truth, atol=0.01)
    assert joint_solve([], prior) is None


# ---- (4) labels


@pytest.mark.parametrize("with_predictions", [True, False])
def test_label_releases_are_the_labels(with_predictions, digits, rng):
    _, labels, prior = digits
    predictions = rng.dirichlet(np.ones(10), 200) if with_predictions else None
    secret = rng.permutation(10)
    release = leaks.labels(secret[labels], np.arange(200), 10, shape=SHAPE, predictions=predictions)
    _, found = attacked([release], prior)
    finding = found["labels"]
    assert finding.labels
    score = score_labels(finding.x[:, 0].astype(np.int64), labels[finding.ids])
    assert (score.verdict, score.value) == ("recovered", 1.0)
    assert score.guess < 0.2
    assert score.exact < 0.5


def test_random_labels_are_no_recovery(digits, rng):
    labels = digits[1]
    score = score_labels(rng.integers(0, 10, len(labels)), labels)
    assert score.verdict == "not recovered"
    assert score.value < 0.2


def test_a_majority_is_no_recovery():
    truth = np.array([0] * 95 + [1] * 5)
    assert score_labels(np.zeros(100, np.int64), truth).verdict == "not recovered"
    half = truth.copy()
    half[95:98] = 0
    assert score_labels(half, truth).verdict == "approximated"


# ---- thresholds, evidence


def test_verdicts_need_both_an_error_and_a_gain():
    def verdict(value, guess):
        return Score(value, guess, 0.0, "dB", 1, 0).verdict

    assert verdict(99.0, 12.0) == "recovered"
    assert verdict(31.0, 22.0) == "approximated"
    assert verdict(29.0, 12.0) == "approximated"
    assert verdict(14.0, 12.0) == "not recovered"
    assert verdict(12.0, 12.0) == "not recovered"


def test_the_mean_image_recovers_nothing(digits):
    images, _, prior = digits
    flat = images.reshape(len(images), -1).astype(float)
    found = np.tile(flat.mean(axis=0), (len(flat), 1))
    score = score_images(found, flat, guess=prior.mean, span=16.0)
    assert score.verdict == "not recovered"
    assert score.value == pytest.approx(score.guess, abs=0.05)


def test_mixed_logs_and_wrong_shapes_are_refused(digits, rng):
    _, labels, prior = digits
    one = leaks.labels(labels, [0], 10, shape=SHAPE)
    two = leaks.labels(labels, [0], 10, shape=(4, 4, 1))
    with pytest.raises(EncryptionError, match="mixed"):
        run_attacks([one, two], prior)
    with pytest.raises(ShapeError, match="shape"):
        run_attacks([two], prior)
    with pytest.raises(InputError, match="at least one"):
        run_attacks([one], prior, samples=0)


# ---- budgeted mode


def test_nothing_released_is_nothing_recovered(digits):
    evidence, found = attacked([], digits[2])
    assert evidence is None
    for finding in found.values():
        assert len(finding.ids) == 0
        assert finding.state == "nothing to attack"


def test_frozen_projection_of_a_quarter_withstands_every_attack(digits, rng):
    """Narrow weights: 16 answers, released once. What a prior finds is said, not hidden."""
    images, _, prior = digits
    geometry = leaks.dense(SHAPE, 16)
    projection = rng.choice([-1, 1], (16, 64))
    releases = [
        leaks.forward(images, np.arange(start, start + 4), geometry, projection, step=start)
        for start in (0, 4, 0)
    ]
    _, found = attacked(releases, prior)
    assert found["linear solve"].note == "rank 16 of 64"
    scores = {
        name: scored(found[name], images, prior)
        for name in ("linear solve", "box program", "public prior", "joint solve")
    }
    for name, score in scores.items():
        assert score.verdict != "recovered", name
        assert score.value < 22, name
        assert score.exact < 0.6, name
    assert len(found["packed keys"].ids) == 0
    assert len(found["gradient batches"].ids) == 0
    assert len(found["labels"].ids) == 0
    integers = found["integer decoding"]
    truth = images[integers.ids].reshape(-1, 64)
    assert not (integers.x == truth).all(axis=1).any()


def test_linear_reference_agrees(digits, rng):
    """The releases of these tests are what the ring's reference computes."""
    x = digits[0][:2]
    release = leaks.forward(x, [0, 1], CONV, weights(rng, CONV.weight_shape))
    from cloister.ring.linear import LinearMap

    words = linear_map(LinearMap(CONV, release.functional), leaks.as_ring(x))
    np.testing.assert_array_equal(leaks.centred(words), release.values)


@pytest.mark.parametrize("width", [2.0, 64.0])
def test_noise_that_leaves_one_plausible_point_is_decoded_through(width):
    """Four times as many answers as elements: the noisy decoder finds the integers all the same."""
    rng = np.random.default_rng(8)
    images = rng.integers(-127, 128, (6, 1, 1, 10))
    weights = rng.integers(-3000, 3001, (40, 10))
    decoder = NoisyDecoder(weights, uninformed((1, 1, 10), low=-127, high=127), width=width)
    for x in images.reshape(6, 10):
        answers = weights @ x + np.floor(rng.uniform(-width / 2, width / 2, 40))
        np.testing.assert_array_equal(decoder.decode(answers), x)


def test_the_width_of_the_noise_follows_from_the_weights():
    rows = np.array([[1.0, -1.0, 2.0], [5.0, 0.0, 0.0]])
    assert noise_width(rows, bound=127, value_bits=8) == 8
    assert noise_width(rows, bound=127, value_bits=32) == 0
    assert noise_width(np.zeros((2, 3)), bound=127, value_bits=1) == 0


def test_attacks_allow_for_the_noise():
    """A box program that insisted on noisy values would find no image at all."""
    x = np.zeros((1, 12, 12, 1), np.int64)
    x[:, 3:7, 3:9] = 100
    rng = np.random.default_rng(2)
    weights = rng.choice([-1, 1], (70, 144))
    release = leaks.forward(x, np.arange(1), leaks.dense((12, 12, 1), 70), weights)
    noisy = replace(release, values=release.values + rng.integers(-32, 32, release.values.shape))
    prior = uninformed((12, 12, 1), low=0, high=127)
    _, findings = run_attacks([noisy], prior, value_bits=9)
    box = next(finding for finding in findings if finding.attack == "box program")
    assert np.abs(box.x - x.reshape(1, -1)).mean() < 8
    assert not any(finding.determined for finding in findings)
