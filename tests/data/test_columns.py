"""A table's columns as elements of a sample: one definition for every owner and for the export."""

import math

import numpy as np
import pytest

from cloister.data.columns import Column, column_of, days, encode_columns, public_column
from cloister.errors import InputError

AGE = Column("age", "number", 20.0, 60.0, fill=30.0)
SEX = Column("sex", "category", values=("f", "m", "other"))
SEEN = Column("seen", "date", days("2024-01-01"), days("2024-01-11"))


def test_every_kind_of_column_is_mapped_to_minus_one_to_one():
    assert AGE.encode(np.array([20.0, 40, 60])).tolist() == [[-1], [0], [1]]
    assert SEX.encode(np.array([0.0, 2, 1])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert SEEN.encode(np.array([days("2024-01-06")])).tolist() == [[0]]
    assert Column("k", "number", 5.0, 5.0).encode(np.array([5.0])).tolist() == [[0]]


def test_a_missing_cell_is_filled_or_stays_missing():
    assert AGE.encode(np.array([math.nan])).tolist() == [[-0.5]]
    assert np.isnan(SEX.encode(np.array([math.nan]))).all()
    filled = Column("sex", "category", values=("f", "m"), fill="m")
    assert filled.encode(np.array([math.nan, 0.0])).tolist() == [[0, 1], [1, 0]]


def test_elements_follow_the_order_of_the_columns():
    columns = (AGE, SEX, SEEN)
    rows = np.array([[40.0, 1, days("2024-01-11")]])
    assert encode_columns(columns, rows).tolist() == [[0, 0, 1, 0, 1]]
    assert [column_of(columns, i).name for i in range(5)] == ["age", "sex", "sex", "sex", "seen"]


def test_days_are_those_since_1970():
    assert (days("1970-01-01"), days("1969-12-31"), days("2024-02-29")) == (0, -1, 19782)
    with pytest.raises(ValueError):
        days("2023-02-29")


def test_wide_ranges_have_a_middle():
    column = Column("x", "number", -1.7e308, 1.7e308)
    assert column.encode(np.array([-1.7e308, 1.7e308])).tolist() == [[-1], [1]]


@pytest.mark.parametrize("given", [
    {"kind": "text"}, {"kind": "number", "low": 2.0, "high": 1.0}, {"kind": "category"},
    {"kind": "number", "high": math.inf}, {"kind": "number", "high": math.nan},
    {"kind": "number", "high": 1.0, "fill": 2.0}, {"kind": "number", "high": 1.0, "fill": "1"},
    {"kind": "category", "values": ("a", "a")}, {"kind": "category", "values": ("a", "")},
    {"kind": "category", "values": ("a", "b"), "fill": "c"},
])  # fmt: skip
def test_a_column_that_contradicts_itself_is_refused(given):
    with pytest.raises(InputError, match="column odd: "):
        Column("odd", **given)


def test_a_public_range_says_which_kind_a_column_is():
    assert public_column("age", (20, 60)) == Column("age", "number", 20.0, 60.0)
    assert public_column("sex", ("f", "m", "other")) == SEX
    assert public_column("seen", ("2024-01-01", "2024-01-11")) == SEEN
    assert public_column("sex", ("f", "m")).values == ("f", "m")
