"""What a ticket releases of the outputs, and what it refuses to reduce."""

import hashlib

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.tickets.output_release import OPENING_BYTES, commitment, released
from cloister.tickets.ticket import OutputMode

LABEL, TOP_K, PROBABILITIES = OutputMode
SCORES = np.array(
    [[0.1, 2.5, -3.0, 2.5], [7, 7, 7, 7], [-np.float32(9), -8, -0.0, 0.0]], np.float32
)
ROWS = np.array([[0.25, 0.5, 0.25], [1, 0, 0]], np.float32)


def test_a_label_is_the_first_of_the_largest_scores():
    found = released({"y": SCORES}, LABEL, top=None, count=3)
    assert found["y"].dtype == np.int64
    assert found["y"].tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_labels_of_the_model_are_released_as_they_are(dtype):
    found = released({"y": np.array([3, 1], dtype)}, LABEL, top=None, count=2)
    assert found["y"].dtype == np.int64
    assert found["y"].tolist() == [3, 1]


def test_the_best_classes_come_in_order_and_without_their_scores():
    found = released({"y": SCORES}, TOP_K, top=3, count=3)
    assert found["y"].dtype == np.int64
    assert found["y"].tolist() == [[1, 3, 0], [0, 1, 2], [2, 3, 1]]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_probabilities_are_released_as_they_are(kind):
    rows = ROWS.astype(kind)
    found = released({"y": rows}, PROBABILITIES, top=None, count=2)["y"]
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(found, rows)
    assert found.base is None


@pytest.mark.parametrize(
    "rows", [SCORES, ROWS * 2, ROWS - 0.1, np.array([[1.5, -0.5]], np.float32)]
)
def test_scores_are_not_released_as_probabilities(rows):
    with pytest.raises(InputError, match="'y': its rows are no probabilities"):
        released({"y": rows}, PROBABILITIES, top=None, count=len(rows))


@pytest.mark.parametrize("mode", OutputMode)
@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"y": ROWS, "z": ROWS},
        {"y": ROWS[0]},
        {"y": ROWS[None]},
        {"y": ROWS.astype(np.int64)},
        {"y": ROWS[:, :0]},
        {"y": ROWS[:1]},
        {"y": np.concatenate([ROWS, ROWS])},
        {"y": ROWS.astype(object)},
        {"y": ROWS.astype(str)},
        {"y": ROWS.astype(np.complex64)},
        {"y": ROWS.astype(bool)},
        {"y": list(ROWS)},
        {"y": {0: 0.5}},
        {"y": None},
        {"y": np.float32(1)},
        {"y": np.where(ROWS == 1, np.nan, ROWS)},
        {"y": np.where(ROWS == 1, np.inf, ROWS)},
    ],
)
def test_outputs_that_are_no_scores_are_refused(outputs, mode):
    with pytest.raises(InputError):
        released(outputs, mode, top=2 if mode is TOP_K else None, count=2)


@pytest.mark.parametrize("top", [4, 5, 2**16])
def test_over_long_lengths_leak_nothing(top):
    """More classes than there are, more rows than were paid for: refused, and no value is named."""
    rows = np.array([[0.123456, 0.876544, 0.0]], np.float32)
    with pytest.raises(
        InputError, match=f"has 3 classes, and the ticket is for the best {top}"
    ) as e:
        released({"y": rows}, TOP_K, top=top, count=1)
    assert "0.12" not in str(e.value)
    for count in (0, 2, top, 2**40):
        with pytest.raises(InputError, match="has no row for each input"):
            released({"y": rows}, TOP_K, top=2, count=count)


@pytest.mark.parametrize("mode", OutputMode)
def test_no_more_of_the_scores_is_released_than_the_mode_says(mode):
    """Two outputs that agree in what is sold are the same afterwards, to the bit."""
    one = np.array([[0.5, 0.3, 0.2]], np.float32)
    other = np.array([[0.6, 0.25, 0.15]], np.float32)
    top = 2 if mode is TOP_K else None
    found = [released({"y": rows}, mode, top=top, count=1)["y"] for rows in (one, other)]
    assert (found[0].tobytes() == found[1].tobytes()) == (mode is not PROBABILITIES)


def test_a_commitment_binds_outputs_and_hides_them():
    outputs = {"y": np.array([3], np.int64)}
    opening = bytes(range(OPENING_BYTES))
    made = commitment(outputs, opening)
    assert made == commitment({"y": np.array([3], np.int64)}, opening)
    others = [
        commitment({"y": np.array([4], np.int64)}, opening),
        commitment({"y": np.array([3], np.int32)}, opening),
        commitment({"y": np.array([[3]], np.int64)}, opening),
        commitment({"z": np.array([3], np.int64)}, opening),
        commitment(outputs, bytes(OPENING_BYTES)),
    ]
    assert len({made, *others}) == 6
    guesses = (commitment({"y": np.array([n], np.int64)}, b"") for n in range(10))
    assert made not in guesses
    assert made != hashlib.sha256(outputs["y"].tobytes()).digest()
