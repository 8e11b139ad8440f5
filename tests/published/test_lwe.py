import math

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import BudgetError, EncryptionError, FunctionError, RangeError, ShapeError
from cloister.published import gaussian, lwe, lwe_keys, modular

RNG = InsecureSeededRandom(4)
PROFILES = [lwe.APPROXIMATE, lwe.EXACT, lwe.WIDE]


def block_size(n, q_bits, sigma):
    """Smallest BKZ block size of the primal attack in the uSVP model (ADPS16), and dimension."""
    for beta in range(100, 1200):
        root = (math.log2(beta / (2 * math.pi * math.e)) + math.log2(math.pi * beta) / beta) / (
            2 * (beta - 1)
        )
        for m in range(n // 2, 3 * n, 16):
            d = n + m + 1
            volume = m * q_bits / d
            # The secret is made as small as the noise, so all coordinates have deviation sigma.
            if 0.5 * math.log2(beta) + math.log2(sigma) <= root * (2 * beta - d) + volume:
                return beta, d
    return None


@pytest.mark.parametrize("parameters", PROFILES, ids=lambda p: p.name)
def test_the_stated_security_is_what_the_estimate_gives(parameters):
    beta, d = block_size(parameters.n, parameters.q_bits, parameters.sigma)
    core = 0.292 * beta
    assert abs(core - parameters.core_svp_bits) <= 3
    assert abs(core + 16.4 + math.log2(8 * d) - parameters.overhead_bits) <= 4
    assert "Not considered" in parameters.security


def test_one_key_serves_every_ciphertext():
    keys = lwe.setup(5, x_bound=99, y_bound=99, rng=RNG)
    y = np.array([[1, -2, 3, 99, -99]])
    key = lwe.keygen(keys.master, y)
    for seed in range(3):
        x = np.random.default_rng(seed).integers(-99, 100, (4, 5))
        found = lwe.decrypt(keys.public, key, lwe.encrypt(keys.encryption, x, rng=RNG))
        np.testing.assert_array_equal(found, x @ y.T)


def test_the_last_independent_function_is_refused():
    keys = lwe.setup(4, x_bound=9, y_bound=9, rng=RNG)
    y = np.array([[1, 2, 3, 4], [0, 1, 1, 0]])
    lwe.keygen(keys.master, y)
    lwe.keygen(keys.master, np.array([[2, 4, 6, 8], [1, 1, 2, 4]]))  # in the same span
    assert keys.master.released.rank == 2
    with pytest.raises(BudgetError, match="from 2 to at least 4 of 4, allowed are 3"):
        lwe.keygen(keys.master, np.array([[1, 0, 0, 0], [0, 0, 0, 1]]))
    assert keys.master.released.rank == 2  # a refused request costs nothing
    lwe.keygen(keys.master, np.array([[1, 0, 0, 0]]))
    with pytest.raises(BudgetError):
        lwe.keygen(keys.master, np.array([[0, 0, 0, 1]]))


@pytest.mark.parametrize("parameters", [lwe.APPROXIMATE, lwe.WIDE], ids=lambda p: p.name)
def test_approximate_profiles_are_as_close_as_they_say(parameters):
    keys = lwe.setup(784, x_bound=127, y_bound=127, rng=RNG, parameters=parameters)
    draw = np.random.default_rng(0)
    x, y = draw.integers(-127, 128, (40, 784)), draw.integers(-127, 128, (50, 784))
    encrypted, key = lwe.encrypt(keys.encryption, x, rng=RNG), lwe.keygen(keys.master, y)
    with pytest.raises(FunctionError, match="decrypt_approximate"):
        lwe.decrypt(keys.public, key, encrypted)
    error = lwe.decrypt_approximate(keys.public, key, encrypted) - x @ y.T
    stated = keys.public.noise_std(float(np.linalg.norm(y, axis=1).mean()))
    assert 0.85 * stated < error.std() < 1.15 * stated
    # Below the rounding of 8-bit inputs, which moves the product by norm(y) / sqrt(12).
    assert stated < np.linalg.norm(y, axis=1).mean() / math.sqrt(12)


def test_answers_at_the_bounds_do_not_wrap():
    keys = lwe.setup(784, x_bound=255, y_bound=127, rng=RNG)
    assert keys.public.exact
    x, y = np.full((3, 784), -255), np.full((1, 784), 127)
    found = lwe.decrypt(
        keys.public, lwe.keygen(keys.master, y), lwe.encrypt(keys.encryption, x, rng=RNG)
    )
    np.testing.assert_array_equal(found, x @ y.T)


def test_an_element_key_repeats_its_noise():
    """Fresh noise at each request could be averaged away, and the pad without noise is linear."""
    keys = lwe.setup(3, x_bound=9, y_bound=9, rng=RNG)
    encrypted = lwe.encrypt_elements(keys.encryption, np.ones((2, 4), np.int64), rng=RNG)
    y = np.ones((2, 4), np.int64)
    ask = [
        lwe.keygen_elements(keys.master, "/", y, commitments=encrypted.commitments).term
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*ask)
    rows = np.arange(3)
    a = lwe_keys.uniform(encrypted.rows.seed, rows, lwe.EXACT, lwe_keys.A_DOMAIN)
    exact = modular.product(a, keys.encryption.element_z).reshape(-1)[:8]
    noise = modular.centre(ask[0].reshape(-1) - exact, lwe.EXACT.q_bits)
    assert 0 < np.abs(noise).max() <= 32


def test_an_element_key_is_bound_to_its_ciphertext():
    keys = lwe.setup(3, x_bound=9, y_bound=9, rng=RNG)
    y = np.ones((2, 4), np.int64)
    one, two = (lwe.encrypt_elements(keys.encryption, y, rng=RNG) for _ in range(2))
    key = lwe.keygen_elements(keys.master, "+", y, commitments=one.commitments)
    with pytest.raises(EncryptionError, match="another ciphertext"):
        lwe.decrypt_elements(keys.public, key, two)
    with pytest.raises(ShapeError):
        lwe.keygen_elements(keys.master, "+", y[:1], commitments=one.commitments)


def test_parameters_are_not_mixed():
    exact = lwe.setup(3, x_bound=1, y_bound=1, rng=RNG)
    wide = lwe.setup(3, x_bound=1, y_bound=1, rng=RNG, parameters=lwe.WIDE)
    x = np.ones((1, 3), np.int64)
    with pytest.raises(EncryptionError, match="parameters"):
        lwe.decrypt(
            exact.public, lwe.keygen(wide.master, x), lwe.encrypt(exact.encryption, x, rng=RNG)
        )


@pytest.mark.parametrize("bits", [32, 42, 44])
def test_modular_products_are_exact_at_extremes(bits):
    draw = np.random.default_rng(0)
    for terms in (1, 1664, 2048, 5000):
        a = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, terms))
        b = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, terms))
        # The digits of largest magnitude, and the ends of the range.
        a[0], b[0] = -(2 ** (bits // 2 - 1)), -(2 ** (bits // 2 - 1))
        a[1], b[1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        found = modular.product(modular.split(a, bits), modular.split(b, bits))
        want = (a.astype(object) @ b.T.astype(object)) % 2**bits
        assert ((found.astype(object) - want) % 2**bits == 0).all()
        assert found.min() >= -(2 ** (bits - 1))
        assert found.max() < 2 ** (bits - 1)


@pytest.mark.parametrize("sigma", [3.2, 4096.0])
def test_noise_has_the_moments_of_the_discrete_gaussian(sigma):
    e = gaussian.noise(sigma, (300_000,), rng=RNG)
    assert e.dtype == np.int64
    assert abs(e.mean()) < 6 * sigma / math.sqrt(len(e))
    assert abs(e.var() / sigma**2 - 1) < 6 * math.sqrt(2 / len(e))
    assert abs((e.astype(float) ** 4).mean() / sigma**4 - 3) < 6 * math.sqrt(96 / len(e))
    assert np.abs(e).max() <= gaussian.TAIL * sigma


def test_noise_follows_the_stated_probabilities():
    sigma, e = 3.2, gaussian.noise(3.2, (200_000,), rng=RNG)
    support = np.arange(-12, 13)
    p = np.exp(-(support**2) / (2 * sigma**2))
    p /= np.exp(-(np.arange(-40, 41) ** 2) / (2 * sigma**2)).sum()
    counts = np.array([(e == s).sum() for s in support])
    assert ((counts - len(e) * p) ** 2 / (len(e) * p)).sum() < 25 + 6 * math.sqrt(50)


def test_the_table_is_symmetric_and_its_ends_are_reached():
    words = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    e = gaussian.from_words(words, sigma=3.2)
    # The ends agree up to the entries rarer than 2^-64, which the table rounds to nothing.
    assert -32 <= e[0] <= -28
    assert 28 <= e[3] <= 32
    assert e[1] == e[2] == 0
    with pytest.raises(RangeError, match="sigma"):
        gaussian.noise(0.0, (1,), rng=RNG)
