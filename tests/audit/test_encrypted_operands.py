"""Known operands, packed keys, bias gradients: attacks that need no mathematics."""

from fractions import Fraction

import numpy as np
import pytest

from audit import leaks
from cloister.audit.training.attacks import run_attacks
from cloister.audit.training.operands import (
    is_separable,
    read_label,
    unpack,
)
from cloister.audit.training.prior import uninformed
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import InputError
from cloister.published import mask


def known_operand(op, y, result):
    """The encrypted operand x behind `result = x op y`: one FEBO answer is plain decryption."""
    if op == "+":
        return Fraction(result - y)
    if op == "-":
        return Fraction(result + y)
    return Fraction(result, y) if op == "*" else Fraction(result * y)


def bias_gradient_labels(gradient, batch):
    """Classes that occur in a batch, by the sign of the last layer's bias gradient.

    sum over the batch of P - Y is negative only where Y was one at least once; with one sample it
    is that sample's label (iDLG, arXiv:2001.02610).
    """
    negative = np.flatnonzero(gradient < 0)
    order = negative[np.argsort(gradient[negative])]
    return [int(c) for c in order[:batch]]


@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_a_known_operand_is_decryption(op):
    """FEBO's server knows y: it asked for the key."""
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for x, y in ((84, 7), (-84, 7), (0, 3), (84, -4)):
        assert known_operand(op, y, operations[op](x, y)) == x


@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_an_element_wise_key_decrypts(op):
    """Through the real scheme: what the server computes and what it asked for give x."""
    rng = InsecureSeededRandom(4)
    keys = mask.setup(4, x_bound=100, y_bound=100, rng=rng)
    x = np.array([[12, -60, 0, 84], [6, 30, -90, 36]], np.int64)
    y = np.array([[3, -5, 2, 7], [-6, 10, 9, 4]], np.int64)
    ciphertexts = mask.encrypt_elements(keys.encryption, x, rng=rng)
    key = mask.keygen_elements(keys.master, op, y, commitments=ciphertexts.ids)
    results = mask.decrypt_elements(keys.public, key, ciphertexts)
    found = [
        known_operand(op, int(b), int(result))
        for b, result in zip(y.ravel(), results.ravel(), strict=True)
    ]
    assert found == x.ravel().tolist()


def test_the_radix_key_reads_four_pixels():
    """The key of the measurement: 1, 101, 101^2, 101^3 with pixels of 0..100."""
    pixels = [93, 0, 100, 42]
    key = [101**i for i in range(4)]
    assert is_separable(key, low=0, high=100)
    assert unpack(key, int(np.dot(key, pixels)), low=0, high=100).tolist() == pixels


@pytest.mark.parametrize("low", [-50, 0, 7])
def test_every_separable_key_reads_its_pixels(low):
    rng = np.random.default_rng(5)
    for _ in range(50):
        high = low + int(rng.integers(1, 40))
        key, reach = [], 0
        for _ in range(4):
            weight = reach + int(rng.integers(1, 9))
            reach += weight * (high - low)
            key.append(weight * int(rng.choice([-1, 1])))
        rng.shuffle(key)
        pixels = rng.integers(low, high + 1, 4)
        assert is_separable(key, low=low, high=high)
        np.testing.assert_array_equal(
            unpack(key, int(np.dot(key, pixels)), low=low, high=high), pixels
        )


def test_ordinary_keys_are_not_separable():
    assert not is_separable([1, 1], low=0, high=1)
    assert not is_separable([1, 100], low=0, high=100)
    assert is_separable([1, 101], low=0, high=100)
    assert is_separable([0, 7, 0], low=0, high=255)
    with pytest.raises(InputError, match="separable"):
        unpack([1, 1], 1, low=0, high=1)
    for answer in (-1, 102 * 100 + 1):
        with pytest.raises(InputError, match="range"):
            unpack([1, 101], answer, low=0, high=100)


def test_packed_rows_of_a_layer_are_found_in_a_log():
    """Rows of four pixels each in radix 17: one answer reads four; the rest stays unknown."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 10, (5, 4, 4, 1))
    weights = np.zeros((2, 16), np.int64)
    weights[0, :4] = [1, 17, 289, 4913]
    weights[1] = rng.integers(1, 9, 16)
    release = leaks.forward(images, np.arange(5), leaks.dense((4, 4, 1), 2), weights)
    prior = uninformed((4, 4, 1), low=0, high=16)
    _, findings = run_attacks([release], prior)
    found = next(finding for finding in findings if finding.attack == "packed keys")
    assert found.note.startswith("4 of 16")
    assert found.known.sum() == 20
    flat = images.reshape(5, 16)
    np.testing.assert_array_equal(found.x[found.known], flat[found.known])
    assert not found.determined


def test_bias_gradients_name_the_labels_of_a_batch():
    """sum of P - Y over one sample is negative at its label only; over few, at theirs."""
    rng = np.random.default_rng(2)
    labels = np.array([3, 8, 3, 1])
    predictions = rng.dirichlet(np.ones(10) * 50, 4)
    one_hot = np.eye(10)[labels]
    fixed = np.rint((predictions - one_hot) * 4096).astype(np.int64)
    assert bias_gradient_labels(fixed[0], 1) == [3]
    assert set(bias_gradient_labels(fixed.sum(axis=0), 4)) == {1, 3, 8}
    np.testing.assert_array_equal(read_label(fixed), labels)
