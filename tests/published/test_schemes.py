"""Every back end against plain integer arithmetic, through the one interface."""

import importlib

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, FunctionError, RangeError, ShapeError, UnsupportedError
from cloister.published import matrix
from cloister.ring.linear import Geometry, LinearMap


@pytest.fixture(params=["mask", "lwe", "ddh"])
def scheme(request):
    return pytest.importorskip(f"cloister.published.{request.param}")


@pytest.fixture(params=["mask", "lwe"])
def fast(request):
    """The back ends whose answers may be large: discrete logarithms make `ddh` slow there."""
    return importlib.import_module(f"cloister.published.{request.param}")


@pytest.fixture
def rng():
    return InsecureSeededRandom(11)


def test_products_are_exact_on_random_matrices(scheme, rng):
    x = np.random.default_rng(0).integers(-100, 101, (5, 7))
    y = np.random.default_rng(1).integers(-50, 51, (7, 3))
    keys = scheme.setup(7, x_bound=100, y_bound=50, rng=rng)
    found = matrix.dot(scheme, keys, x=x, y=y, rng=rng)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, x @ y)


@pytest.mark.parametrize("sign", [1, -1])
def test_products_are_exact_with_every_entry_at_its_bound(scheme, rng, sign):
    keys = scheme.setup(6, x_bound=31, y_bound=9, rng=rng)
    x, y = np.full((2, 6), 31), np.full((6, 2), sign * 9)
    np.testing.assert_array_equal(matrix.dot(scheme, keys, x=x, y=y, rng=rng), x @ y)


@pytest.mark.parametrize(("dim", "x_bound", "y_bound"), [(784, 255, 100), (2, 3000, 2000)])
def test_wide_and_tall_products(fast, rng, dim, x_bound, y_bound):
    draw = np.random.default_rng(2)
    x = draw.integers(-x_bound, x_bound + 1, (9, dim))
    x[0], x[1] = x_bound, -x_bound
    y = draw.integers(-y_bound, y_bound + 1, (dim, 1 if dim == 2 else 31))
    y[:, 0] = y_bound
    keys = fast.setup(dim, x_bound=x_bound, y_bound=y_bound, rng=rng)
    np.testing.assert_array_equal(matrix.dot(fast, keys, x=x, y=y, rng=rng), x @ y)


def test_one_element_and_no_sample(fast, rng):
    keys = fast.setup(2, x_bound=5, y_bound=5, rng=rng)
    one = matrix.dot(fast, keys, x=np.array([[5, -5]]), y=np.array([[5], [-5]]), rng=rng)
    assert one.tolist() == [[50]]
    none = matrix.dot(fast, keys, x=np.zeros((0, 2), np.int64), y=np.array([[5], [-5]]), rng=rng)
    assert none.shape == (0, 1)


@pytest.mark.parametrize("op", ["+", "-", "*"])
def test_element_wise_operations(scheme, rng, op):
    draw = np.random.default_rng(3)
    x, y = draw.integers(-60, 61, (3, 5)), draw.integers(-20, 21, (3, 5))
    keys = scheme.setup(4, x_bound=60, y_bound=20, rng=rng)
    want = {"+": x + y, "-": x - y, "*": x * y}[op]
    found = matrix.elementwise(scheme, keys, op, x=x, y=y, rng=rng)
    np.testing.assert_array_equal(found, want)


def test_element_wise_division_is_exact_or_refused(scheme, rng):
    y = np.array([[1, -2, 3], [7, 5, -1]])
    q = np.array([[4, 8, -6], [0, 3, -9]])
    keys = scheme.setup(4, x_bound=30, y_bound=10, rng=rng)
    found = matrix.elementwise(scheme, keys, "/", x=q * y, y=y, rng=rng)
    np.testing.assert_array_equal(found, q)
    with pytest.raises(RangeError):
        matrix.elementwise(scheme, keys, "/", x=np.array([[7]]), y=np.array([[2]]), rng=rng)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 9), (5, 4)])
def test_element_wise_at_the_bounds_in_any_shape(fast, rng, shape):
    keys = fast.setup(4, x_bound=127, y_bound=127, rng=rng)
    x, y = np.full(shape, -127), np.full(shape, 127)
    for op, want in (("+", x + y), ("-", x - y), ("*", x * y), ("/", np.full(shape, -1))):
        found = matrix.elementwise(fast, keys, op, x=x, y=y, rng=rng)
        np.testing.assert_array_equal(found, want)


def test_an_unknown_operation_is_refused(fast, rng):
    keys = fast.setup(2, x_bound=1, y_bound=1, rng=rng)
    with pytest.raises(FunctionError, match="operation"):
        matrix.elementwise(fast, keys, "%", x=np.ones((1, 1), int), y=np.ones((1, 1), int), rng=rng)


def test_values_and_functions_outside_the_bounds_are_refused(scheme, rng):
    keys = scheme.setup(3, x_bound=10, y_bound=4, rng=rng)
    x, y = np.zeros((1, 3), np.int64), np.zeros((3, 1), np.int64)
    for bad in (11, -11, -(2**63)):
        with pytest.raises(RangeError):
            matrix.dot(scheme, keys, x=x + bad, y=y, rng=rng)
    for bad in (5, -5, -(2**63)):
        with pytest.raises(RangeError):
            matrix.dot(scheme, keys, x=x, y=y + bad, rng=rng)
    with pytest.raises(ShapeError):
        matrix.dot(scheme, keys, x=x[:, :2], y=y, rng=rng)
    with pytest.raises(ShapeError):
        matrix.dot(scheme, keys, x=x, y=y[:2], rng=rng)


def test_bounds_that_could_wrap_are_refused_at_setup(fast, rng):
    with pytest.raises(RangeError, match="fewer bits"):
        fast.setup(2**10, x_bound=2**11, y_bound=2**10, rng=rng)
    with pytest.raises(RangeError, match="fewer bits"):
        fast.setup(1, x_bound=2**31 - 1, y_bound=1, rng=rng)
    with pytest.raises(RangeError, match="at least 1"):
        fast.setup(0, x_bound=1, y_bound=1, rng=rng)


def test_a_weight_gradient_is_a_product_over_the_batch(scheme, rng):
    draw = np.random.default_rng(6)
    x, delta = draw.integers(-15, 16, (8, 5)), draw.integers(-31, 32, (8, 3))
    keys = scheme.setup(8, x_bound=15, y_bound=31, rng=rng)
    found = matrix.weight_gradient(scheme, keys, x=x, delta=delta, rng=rng)
    np.testing.assert_array_equal(found, x.T @ delta)


def test_label_errors_are_outputs_less_labels(scheme, rng):
    labels = 100 * np.eye(3, dtype=np.int64)[[2, 0, 1, 2]]
    outputs = np.random.default_rng(9).integers(0, 101, (4, 3))
    outputs[0], outputs[1] = 100, 0
    keys = scheme.setup(4, x_bound=100, y_bound=100, rng=rng)
    encrypted = scheme.encrypt_elements(keys.encryption, labels, rng=rng)
    found = matrix.label_errors(scheme, keys, encrypted, outputs=outputs)
    np.testing.assert_array_equal(found, outputs - labels)
    # Samples are encrypted once, and serve every function.
    again = matrix.label_errors(scheme, keys, encrypted, outputs=outputs // 2)
    np.testing.assert_array_equal(again, outputs // 2 - labels)


def test_products_of_what_was_encrypted_once(scheme, rng):
    draw = np.random.default_rng(10)
    x, y = draw.integers(-15, 16, (6, 5)), draw.integers(-9, 10, (5, 2))
    keys = scheme.setup(5, x_bound=15, y_bound=9, rng=rng)
    encrypted = scheme.encrypt(keys.encryption, x, rng=rng)
    for functions in (y, -y):
        found = matrix.evaluate(scheme, keys, encrypted, y=functions)
        np.testing.assert_array_equal(found, x @ functions)


def test_losses_of_encrypted_labels(fast, rng):
    labels = np.eye(4, dtype=np.int64)[[2, 0, 3]]
    costs = np.random.default_rng(7).integers(0, 1000, (3, 4))
    keys = fast.setup(4, x_bound=1, y_bound=1000, rng=rng)
    found = matrix.losses(fast, keys, labels=labels, costs=costs, rng=rng)
    np.testing.assert_array_equal(found, costs[[0, 1, 2], [2, 0, 3]])


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((6, 5), 2, (3, 4), 3, kernel=(3, 2), stride=(2, 1), pad=(1, 0)),
        Geometry((7, 4), 1, (3, 4), 4, kernel=(3, 3), dilation=(2, 1), pad=(0, 1)),
    ],
)
def test_convolution_by_windows_is_the_masked_layer(scheme, rng, geometry):
    mask = importlib.import_module("cloister.published.mask")
    draw = np.random.default_rng(8)
    x = draw.integers(-15, 16, (2, *geometry.in_shape))
    linear = LinearMap(geometry, draw.integers(-7, 8, geometry.weight_shape).astype(np.int16))
    elements = geometry.kernel[0] * geometry.kernel[1] * geometry.in_channels
    keys = scheme.setup(elements, x_bound=15, y_bound=7, rng=rng)
    found = matrix.convolve(scheme, keys, linear, x=x, rng=rng)
    plain = mask.forward(linear, x.astype(np.uint32)).view(np.int32)
    np.testing.assert_array_equal(found, plain)


def test_windows_of_unusual_convolutions_are_refused():
    grouped = Geometry((4, 4), 2, (3, 3), 2, kernel=(2, 2), groups=2)
    with pytest.raises(UnsupportedError, match="groups"):
        matrix.windows(grouped, np.zeros((1, 4, 4, 2), np.int64))
    with pytest.raises(ShapeError):
        matrix.windows(Geometry((4, 4), 2, (3, 3), 2, kernel=(2, 2)), np.zeros((4, 4, 2), int))


def test_a_key_of_another_setup_does_not_decrypt(fast, rng):
    one = fast.setup(3, x_bound=9, y_bound=9, rng=rng)
    two = fast.setup(3, x_bound=9, y_bound=9, rng=rng)
    x, y = np.array([[9, 8, 7]]), np.array([[1, 1, 1]])
    encrypted = fast.encrypt(one.encryption, x, rng=rng)
    ids = getattr(encrypted, "ids", None)
    wrong = fast.decrypt(one.public, fast.keygen(two.master, y, ciphertexts_ids=ids), encrypted)
    assert abs(int(wrong[0, 0]) - 24) > 1000
    other = fast.setup(4, x_bound=9, y_bound=9, rng=rng)
    key = fast.keygen(one.master, y, ciphertexts_ids=ids)
    with pytest.raises(EncryptionError, match="dimension"):
        fast.decrypt(other.public, key, encrypted)
