import numpy as np
import pytest

from cloister.errors import ShapeError
from cloister.graph.layout import channels_last_shape, from_channels_last, to_channels_last


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "channels_first", "expected"),
    [
        ((None, 3, 5, 7), True, (5, 7, 3)),
        ((2, 3, 5), True, (1, 5, 3)),
        ((None, 3), True, (1, 1, 3)),
        ((None, 3, 1, 1, 1), True, (1, 1, 3)),
        ((None, 3), False, (1, 1, 3)),
        ((None, 5, 3), False, (1, 5, 3)),
        ((None, 2, 5, 3), False, (1, 10, 3)),
    ],
)
def test_there_and_back(shape, channels_first, expected, dtype):
    assert channels_last_shape(shape, channels_first=channels_first) == expected
    concrete = (4, *shape[1:])
    array = np.random.default_rng(0).standard_normal(concrete).astype(dtype)
    last = to_channels_last(array, channels_first=channels_first)
    assert last.shape == (4, *expected)
    back = from_channels_last(last, (None, *shape[1:]), channels_first=channels_first)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous


def test_channels_move_to_the_end():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert to_channels_last(array, channels_first=True)[1, 2, 3, 1] == array[1, 1, 2, 3]


@pytest.mark.parametrize("shape", [(None,), (None, 3, None)])
def test_shapes_without_a_form_are_refused(shape):
    with pytest.raises(ShapeError):
        channels_last_shape(shape, channels_first=True)
