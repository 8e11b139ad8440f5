"""A curious server against the real authority: what the default budget refuses, and what it allows.

Every request goes through `Authority`, every answer is unblinded as a server would. The second half
states what stays possible within a budget of rank: those tests are the reason for the advice in
docs/tutorials/what-encrypted-training-leaks.md.
"""

import threading

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from audit import leaks
from audit.rogue import ANY, NAME, Rogue
from cloister.audit.training.attacks import run_attacks
from cloister.audit.training.judge import Truth, judge, overall
from cloister.audit.training.lattice import IntegerDecoder
from cloister.audit.training.prior import from_public, uninformed
from cloister.authority.records import Terms
from cloister.authority.requests import Forward
from cloister.errors import BudgetError, CloisterError, EncryptionError, FunctionError
from cloister.ring.bounds import check_size
from cloister.ring.linear import Geometry, LinearMap

IMAGE = (28, 28, 1)
RECORD = (1, 1, 30)
LENET = Geometry((28, 28), 1, (28, 28), 6, (5, 5), pad=(2, 2))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def images(rng):
    return rng.integers(-127, 128, (40, *IMAGE))


@pytest.fixture
def server(tmp_path, images):
    """The default budget: 196 of 784."""
    rogue = Rogue(tmp_path / "authority", images, parts=2)
    yield rogue
    rogue.close()


@pytest.fixture(scope="module")
def patients():
    x = load_breast_cancer().data
    x = np.rint((x - x.mean(0)) / x.std(0) * 20).clip(-127, 127).astype(np.int64)
    return np.random.default_rng(0).permutation(x).reshape(-1, *RECORD)


@pytest.fixture
def clinic(tmp_path, patients):
    """569 records of 30 fields, 300 of them public; no limit of bits, budget of rank 7."""
    rogue = Rogue(tmp_path / "authority", patients[300:])
    yield rogue
    rogue.close()


def wide(rng, *shape):
    return rng.integers(-32000, 32001, shape)


def narrow(rng, *shape):
    return rng.integers(-9, 10, shape)


def spent(rogue):
    return rogue.authority.spent(NAME).rank


# ---- refused


def test_lenet_s_convolution_is_refused_at_the_first_pass(server, rng):
    with pytest.raises(BudgetError, match="sample 0"):
        server.forward(np.arange(8), LENET, narrow(rng, *LENET.weight_shape))
    assert not spent(server).any()


def test_a_wide_dense_layer_gets_one_step(server, images, rng):
    """128 of 784 per step of changing weights: the second step would exceed 196."""
    layer = leaks.dense(IMAGE, 128)
    first = server.forward([0, 1], layer, narrow(rng, 128, 784))
    np.testing.assert_array_equal(
        first.values.reshape(2, 128),
        images[:2].reshape(2, -1) @ first.functional.reshape(128, -1).T.astype(np.int64),
    )
    for _ in range(6):
        with pytest.raises(BudgetError):
            server.forward([0, 1], layer, narrow(rng, 128, 784))
    assert spent(server).tolist() == [128, 128] + [0] * 38


def test_dense_gradients_are_refused(server, rng):
    """delta^T X reveals a batch as wide as the layer, and any batch in a few steps.

    Of a sample whose companions are known it names every element.
    """
    for hidden, batch in ((128, 32), (8, 32), (1, 1)):
        with pytest.raises(FunctionError, match="single element"):
            server.gradient(np.arange(batch), leaks.dense(IMAGE, hidden),
                            narrow(rng, batch, hidden) | 1)  # fmt: skip
    assert not spent(server).any()


@pytest.mark.parametrize(
    "geometry",
    [
        leaks.dense(IMAGE, 1),
        Geometry((28, 28), 1, (28, 28), 1),
        Geometry((1, 1), 784, (1, 1), 1),
        Geometry((28, 28), 1, (1, 1), 1, (2, 2), pad=(1, 1)),
        Geometry((28, 28), 1, (29, 29), 1, (2, 2), pad=(1, 1)),
        Geometry((28, 28), 1, (1, 1), 1, (2, 2), dilation=(50, 50)),
        Geometry((28, 28), 1, (1, 1), 1, (2, 2), upsample=(2, 2)),
        Geometry((28, 28), 1, (1, 1), 1, (2, 2), pad=(-27, -27)),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, -300])
def test_single_elements_cannot_be_asked_for(geometry, scale, server):
    """Directly, or by padding, crops, dilation and inserted zeros that leave one element."""
    weights = np.zeros(geometry.weight_shape)
    weights.reshape(-1)[0] = scale
    if geometry.kernel == (2, 2):
        weights[...] = scale
    with pytest.raises(CloisterError) as caught:
        server.forward([0], geometry, weights)
    assert isinstance(caught.value, FunctionError | BudgetError)
    assert not spent(server).any()


def test_radix_keys_are_refused(server):
    for key in ((1, 255, 255 * 128), (300, 1), (-1, 255), (1, 0, 0, 32767)):
        weights = np.zeros((1, 784))
        weights[0, 100 : 100 + len(key)] = key
        with pytest.raises(FunctionError):
            server.forward([0], leaks.dense(IMAGE, 1), weights)


def test_ids_outside_the_data_set_are_refused(server, rng):
    weights = narrow(rng, 2, 784)
    for ids in ([-1], [40], [0, -40], [2**62], [-(2**63)]):
        with pytest.raises(EncryptionError):
            server.forward(ids, leaks.dense(IMAGE, 2), weights)
        with pytest.raises(EncryptionError):
            server.gradient(ids, Geometry((28, 28), 1, (1, 1), 1, (2, 2)), np.ones(len(ids)))
    assert not spent(server).any()


def test_a_sample_cannot_hide_behind_itself_in_a_gradient(server):
    with pytest.raises(FunctionError, match="twice"):
        server.gradient([3, 3], Geometry((28, 28), 1, (1, 1), 1, (2, 2)), np.array([1, 2]))


# ---- ways around the count


def test_repeats_scaled_and_permuted_rows_are_free_and_say_nothing_new(server, rng):
    rows = narrow(rng, 100, 784)
    layer = leaks.dense(IMAGE, 100)
    server.forward([5, 5, 6], layer, rows)
    for again in (rows, rows[::-1], -3 * rows, rows[rng.permutation(100)]):
        server.forward([6, 5], layer, again)
    server.forward([5], leaks.dense(IMAGE, 99), rows[1:] + rows[:-1])
    assert spent(server)[[4, 5, 6]].tolist() == [0, 100, 100]


def test_small_changes_are_counted_in_full(server, rng):
    """A sparse perturbation of known rows is a new direction: differences would read pixels."""
    rows = narrow(rng, 98, 784)
    layer = leaks.dense(IMAGE, 98)
    server.forward([0], layer, rows)
    changed = rows.copy()
    changed[:, 300] += 1
    server.forward([0], layer, changed)
    assert spent(server)[0] == 99
    changed = rows.copy()
    changed[np.arange(98), 301 + np.arange(98)] += 1
    with pytest.raises(BudgetError):
        server.forward([0], layer, changed)


def test_requests_split_over_time_and_samples_add_up(server, rng):
    """One row at a time, in other company each time: 196 of them and no more."""
    layer = leaks.dense(IMAGE, 14)
    granted = 0
    for step in range(20):
        try:
            server.forward([7, 8 + step], layer, narrow(rng, 14, 784), step=step)
        except BudgetError:
            continue
        granted += 14
    assert granted == 196
    assert spent(server)[7] == 196


def test_forward_and_gradient_share_one_budget(server, rng):
    server.forward([0], leaks.dense(IMAGE, 190), narrow(rng, 190, 784))
    patch = Geometry((28, 28), 1, (27, 27), 1, (2, 2))
    server.gradient([0, 1], patch, narrow(rng, 2, 27, 27))
    with pytest.raises(BudgetError):
        server.gradient([0, 2], patch, narrow(rng, 2, 27, 27))
    assert spent(server)[:3].tolist() == [194, 4, 0]


def test_the_same_delta_in_other_company_teaches_nothing_about_one_sample(server, rng):
    """Sample 0 keeps its delta while its company changes: each companion pays for itself."""
    patch = Geometry((28, 28), 1, (27, 27), 1, (2, 2))
    fixed = narrow(rng, 27, 27)
    for other in (1, 2, 3):
        server.gradient([0, other], patch, np.stack([fixed, narrow(rng, 27, 27)]))
    assert spent(server)[:4].tolist() == [4, 4, 4, 4]


def test_racing_requests_cannot_overdraw(server, rng):
    rows = [narrow(rng, 60, 784) for _ in range(8)]
    granted = []

    def ask(weights):
        try:
            granted.append(server.forward([9], leaks.dense(IMAGE, 60), weights))
        except BudgetError:
            return

    threads = [threading.Thread(target=ask, args=(weights,)) for weights in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 3
    assert spent(server)[9] == 180


def test_a_part_cannot_be_registered_again_under_new_ids(server, images):
    """The same samples under fresh ids would have a fresh budget."""
    with pytest.raises(EncryptionError, match="replay"):
        server.register(0, images[:7])
    with pytest.raises(EncryptionError, match="replay"):
        server.register(1, images[:7])
    # Registering exactly what is there gives the old ids, and no new samples.
    server.register(1, images[20:])
    assert server.authority.describe(NAME).samples == 40


def test_a_restart_forgets_nothing(tmp_path, images, rng):
    rogue = Rogue(tmp_path / "authority", images[:4])
    rows = narrow(rng, 150, 784)
    rogue.forward([0, 1], leaks.dense(IMAGE, 150), rows)
    rogue.close()
    rogue.authority = type(rogue.authority)(tmp_path / "authority")
    assert spent(rogue).tolist() == [150, 150, 0, 0]
    rogue.forward([0], leaks.dense(IMAGE, 150), rows)
    with pytest.raises(BudgetError):
        rogue.forward([0], leaks.dense(IMAGE, 150), narrow(rng, 150, 784))
    rogue.close()


@pytest.mark.parametrize("field", ["stride", "dilation"])
@pytest.mark.parametrize("size", [2**20, 2**31 - 1, 2**62, 2**63 - 1])
def test_absurd_geometries_never_reach_the_kernel(field, size, server):
    """Sizes whose products wrap: the kernel would touch memory beside the masks."""
    spread = {field: (size, size)}
    with pytest.raises(CloisterError):
        check_size(server.info, Geometry((28, 28), 1, (2, 2), 1, (2, 2), **spread), 1)


def test_no_request_makes_the_authority_allocate_gigabytes(server):
    with pytest.raises(CloisterError):
        spread = Geometry((28, 28), 1, (2, 2), 1, (2, 2), stride=(30_000, 30_000))
        check_size(server.info, spread, 1)


def test_an_unknown_receiver_gets_nothing(server, rng):
    linear = LinearMap(LENET, narrow(rng, *LENET.weight_shape).astype(np.int16))
    for receiver in ("Server", "", None):
        with pytest.raises(CloisterError):
            server.authority.ask(Forward(NAME, np.arange(2), linear), receiver=receiver)


def test_weights_changed_after_the_request_do_not_change_the_books(server, rng):
    """A trainer reuses its buffer; the span on record is that of the weights it asked with."""
    layer = leaks.dense(IMAGE, 196)
    weights = narrow(rng, *layer.weight_shape).astype(np.int16)
    server.authority.ask(Forward(NAME, np.array([0]), LinearMap(layer, weights)), receiver="server")
    for other in range(1, 36):  # until the span has to be computed again from what is kept
        server.forward([other], leaks.dense(IMAGE, 2), narrow(rng, 2, 784))
    weights[...] = narrow(rng, *weights.shape)
    with pytest.raises(BudgetError):
        server.forward([0], layer, weights.copy())


# ---- what rank alone allows


def test_a_budget_of_rank_reads_as_many_elements_as_it_allows(clinic, patients, rng):
    """No unit vector is needed: differences of rows, or one gradient, name single fields."""
    layer = leaks.dense(RECORD, 1)
    base = wide(rng, 30) // 2
    answers = []
    for changed in range(7):
        row = base.copy()
        row[:changed] += 1
        answers.append(int(clinic.forward([0], layer, row).values.squeeze()))
    assert np.diff(answers).tolist() == patients[300].ravel()[:6].tolist()
    assert spent(clinic)[0] == 7
    with pytest.raises(BudgetError):
        clinic.forward([0], layer, wide(rng, 30))


def test_wide_weights_make_rank_worthless_and_a_limit_of_bits_stops_it(
    clinic, patients, tmp_path, rng
):
    """7 of 30 functionals, within the default rank: most patients are read in full."""
    prior = from_public(patients[:300].astype(float), low=-127, high=127)
    weights = wide(rng, 7, 30)
    layer = leaks.dense(RECORD, 7)
    release = clinic.forward(np.arange(40), layer, weights)
    _, findings = run_attacks([release], prior, samples=40)
    found = next(one for one in findings if one.attack == "integer decoding")
    truth = patients[300:][found.ids].reshape(-1, 30)
    assert (found.x == truth).all(axis=1).sum() >= 20
    # A quarter of the record's bits, as the rank is a quarter of its elements.
    limited = Rogue(
        tmp_path / "limited", patients[300:], terms=Terms(**(ANY | {"max_bits": 30 * 8 // 4}))
    )
    with pytest.raises(BudgetError, match="bits"):
        limited.forward(np.arange(40), layer, weights)
    limited.close()


def test_a_quarter_of_the_rank_reads_chosen_pixels_three_for_one(tmp_path, images, rng):
    """12 rows of wide weights on 30 pixels name all 30, without any knowledge about images."""
    server = Rogue(tmp_path / "open", images[:3])
    weights = np.zeros((24, 784), np.int64)
    pixels = [400 + np.arange(30), 600 + np.arange(30)]
    for block, chosen in enumerate(pixels):
        weights[12 * block : 12 * block + 12, chosen] = wide(rng, 12, 30)
    release = server.forward([0, 1, 2], leaks.dense(IMAGE, 24), weights)
    for block, chosen in enumerate(pixels):
        rows = slice(12 * block, 12 * block + 12)
        decoder = IntegerDecoder(weights[rows, chosen], uninformed((1, 1, 30), low=-127, high=127))
        for sample, answers in enumerate(release.values.reshape(3, 24)):
            found = decoder.decode(answers[rows])
            np.testing.assert_array_equal(found, images[sample].ravel()[chosen])
    server.close()


# ---- what the default terms leave


def attacked(rogue, weights, truth, public, geometry):
    """Every attack on one release under the default terms: verdict, and exact samples found."""
    release = rogue.forward(np.arange(len(truth)), geometry, weights)
    prior = from_public(public.astype(float), low=-127, high=127)
    _, findings = run_attacks([release], prior, samples=len(truth), value_bits=8)
    flat = truth.reshape(len(truth), -1)
    real = Truth(np.arange(len(truth)), flat.astype(float), None)
    ran = [finding for finding in findings if len(finding.ids)]
    assert "integer decoding" in {finding.attack for finding in ran}
    assert not any(finding.determined for finding in ran)
    exact = max(int((np.rint(f.x) == flat[f.ids]).all(axis=1).sum()) for f in ran)
    return overall([judge(finding, real, prior) for finding in ran]), exact


def few(rng, rows, dim):
    """All rows on hardly more elements than there are rows."""
    weights = np.zeros((rows, dim), np.int64)
    weights[:, rng.permutation(dim)[: rows + 2]] = rng.choice([-1, 1], (rows, rows + 2))
    return weights


CHOICES = {
    "signs": lambda rng, rows, dim: rng.choice([-1, 1], (rows, dim)),
    "wide": wide,
    "few": few,
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", range(3))
def test_no_patient_is_read_under_default_terms(choice, seed, patients, tmp_path):
    """The server chooses its function, and knows 300 patients. Before: 20 to 29 of 40 exactly."""
    rng = np.random.default_rng(seed)
    truth = patients[300:500]
    rogue = Rogue(tmp_path / "authority", truth, terms=Terms())
    weights = CHOICES[choice](rng, 7, 30)
    verdict, exact = attacked(rogue, weights, truth, patients[:300], leaks.dense(RECORD, 7))
    assert (verdict, exact) == ("approximated", 0)
    assert rogue.authority.summary(NAME).bits_max == 7 * 8
    rogue.close()


@pytest.mark.parametrize("choice", CHOICES)
def test_no_digit_is_read_under_default_terms(choice, tmp_path, rng):
    x = np.rint(load_digits().images / 16 * 254 - 127).astype(np.int64)[..., None]
    x = rng.permutation(x)
    truth = x[1000:1016]
    rogue = Rogue(tmp_path / "authority", truth, terms=Terms())
    weights = CHOICES[choice](rng, 16, 64)
    verdict, exact = attacked(rogue, weights, truth, x[:1000], leaks.dense((8, 8, 1), 16))
    assert verdict in ("approximated", "not recovered")
    assert exact == 0
    rogue.close()


def test_differences_of_functions_cannot_be_asked_for_under_default_terms(patients, tmp_path, rng):
    """In one function they can, but the noise is wider than the element."""
    truth = patients[300:500]
    layer = leaks.dense(RECORD, 2)
    base = wide(rng, 30) // 2
    rows = np.stack([base, base])
    rows[1, 4] += 1
    rogue = Rogue(tmp_path / "authority", truth, terms=Terms())
    values = rogue.forward(np.arange(200), layer, rows).values.reshape(200, 2)
    found = values[:, 1] - values[:, 0]
    real = truth.reshape(200, 30)[:, 4]
    assert abs(np.corrcoef(found, real)[0, 1]) < 0.3
    assert (found == real).sum() <= 2
    rows[1, 5] += 1
    with pytest.raises(BudgetError, match="one function only"):
        rogue.forward([0], layer, rows)
    rogue.close()


# ---- paper mode, end to end


def test_paper_mode_gives_everything_away(tmp_path, rng):
    """LeNet's first pass, one gradient step and no refusal: counted, and recovered."""
    images = rng.integers(-127, 128, (12, 12, 12, 1))
    server = Rogue(tmp_path / "paper", images, mode="paper")
    conv = Geometry((12, 12), 1, (12, 12), 6, (5, 5), pad=(2, 2))
    releases = [
        server.forward(np.arange(6), conv, narrow(rng, *conv.weight_shape)),
        server.gradient(np.arange(6, 12), leaks.dense((12, 12, 1), 16), narrow(rng, 6, 16)),
    ]
    prior = uninformed((12, 12, 1), low=-127, high=127)
    _, findings = run_attacks(releases, prior)
    found = {one.attack: one for one in findings}
    for attack, ids in (("linear solve", range(6)), ("gradient batches", range(6, 12))):
        assert found[attack].determined
        assert found[attack].ids.tolist() == list(ids)
        np.testing.assert_array_equal(
            found[attack].x.reshape(-1, 12, 12, 1), images[found[attack].ids]
        )
    assert spent(server).tolist() == [144] * 12
    server.close()
