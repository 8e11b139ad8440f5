import numpy as np
import pytest

from cloister.data.encoding import PIXELS, Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import EncryptionError, InputError, RangeError


def test_rounding_is_to_the_nearest_and_ties_go_to_even():
    encoding = Encoding(scale=0.5, offset=1.0, bits=8)
    x = np.array([[1.0, 1.25, 1.75, 1.3, 0.0]])
    np.testing.assert_array_equal(encoding.encode(x), [[0, 0, 2, 1, -2]])
    assert encoding.encode(x).dtype == np.int16
    assert np.abs(encoding.decode(encoding.encode(x)) - x).max() <= encoding.resolution


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_the_ends_of_the_range_are_held_exactly(bits):
    encoding = Encoding.for_range(0.0, 255.0, bits=bits)
    steps = encoding.encode(np.array([[0.0, 255.0]]))
    np.testing.assert_array_equal(steps, [[-encoding.bound, encoding.bound]])
    np.testing.assert_allclose(encoding.decode(steps), [[0.0, 255.0]], atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 256.0, 1e300])
def test_a_value_outside_is_named_by_sample_and_field(bad):
    x = np.zeros((3, 4))
    x[2, 1] = bad
    with pytest.raises(RangeError, match="sample 2, field 1"):
        Encoding.for_range(0.0, 255.0).encode(x)
    with pytest.raises(RangeError, match=r"sample 2, field \(0, 1\)"):
        Encoding.for_range(0.0, 255.0).encode(x.reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("scale", "offset", "bits"),
    [(0.0, 0.0, 8), (np.nan, 0.0, 8), (1.0, np.inf, 8), (1.0, 0.0, 1), (1.0, 0.0, 17)],
)
def test_impossible_encodings_are_refused(scale, offset, bits):
    with pytest.raises(RangeError):
        Encoding(scale, offset, bits)


INFO = DatasetInfo("mnist", (28, 28, 1), 10, Encoding(1.0, 0.1, 8), 60_000, 196)


def test_a_description_survives_its_canonical_bytes():
    assert DatasetInfo.from_json(INFO.to_json()) == INFO
    assert INFO.dim == 784
    assert INFO.row_norm_limit * INFO.encoding.bound < 2**31


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b" ",
        lambda b: b.replace(b'"classes":10', b'"classes":1'),
        lambda b: b.replace(b'"classes":10', b'"classes":10.0'),
        lambda b: b.replace(b'"mode":"budgeted"', b'"mode":"open"'),
        lambda b: b.replace(b'"shape":[28,28,1]', b'"shape":[28,28]'),
        lambda b: b.replace(b'"shape":[28,28,1]', b'"shape":7'),
        lambda b: b.replace(b'"scale":1.0', b'"scale":NaN'),
        lambda b: b.replace(b'"scale":1.0', b'"scale":1'),
        lambda b: b.replace(b'"bits":8', b'"depth":8'),
        lambda b: b"[]",
        lambda b: b"\xff",
    ],
)
def test_a_damaged_description_is_refused(damage):
    assert damage(INFO.to_json()) != INFO.to_json()
    with pytest.raises(EncryptionError):
        DatasetInfo.from_json(damage(INFO.to_json()))


def test_names_and_budgets_are_checked():
    for fields in ({"name": "../x"}, {"budget_rank": 785}, {"classes": 1}, {"mode": "open"}):
        with pytest.raises(InputError):
            DatasetInfo(**{**INFO.__dict__, **fields})


@pytest.mark.parametrize(
    ("encoding", "divisor"),
    [
        (PIXELS, 1.0), (Encoding.for_range(0, 1), 1.0), (Encoding.for_range(-1, 1, bits=12), 1.0),
        (Encoding.for_range(0, 4095, bits=12), 2047.5), (Encoding.for_range(-1024, 3072), 2048.0),
        (Encoding.for_range(-0.1, 0.1), 1.0), (Encoding.for_range(900, 1000), 950.0),
    ],
)  # fmt: skip
def test_inputs_of_a_model_are_small(encoding, divisor):
    assert encoding.divisor == pytest.approx(divisor)
    ends = np.array([-encoding.bound, encoding.bound])
    found = encoding.normalised.decode(ends)
    np.testing.assert_allclose(found, encoding.decode(ends) / encoding.divisor)
    assert np.abs(found).max() <= 2
    assert (encoding.normalised == encoding) is (divisor == 1.0)
