"""Mappings, tables and iterators as the inputs of a model."""

import numpy as np
import pytest
import torch

from cloister.errors import InputError, RangeError, ShapeError
from cloister.graph.graph import Graph, OpaqueType, TensorType
from cloister.plan import samples
from cloister.plan.samples import as_samples, sample_groups

TEXT = np.dtype(object)


def graph(separable=True, **inputs):
    """A model that takes these inputs: (dtype, shape)."""
    types = {name: TensorType(np.dtype(dtype), shape) for name, (dtype, shape) in inputs.items()}
    return Graph("g", (), tuple(inputs), (), {}, types, 17, separable=separable)


PEOPLE = graph(age=("f4", (None, 1)), job=(TEXT, (None, 1)), children=("i8", (None, 1)))
FEATURES = graph(x=("f4", (None, 3)))
IMAGE = graph(x=("f4", (None, 2, 3)), gain=("f4", ()))


class Frame:
    """A data frame as pandas and Polars have it, as far as inputs need it."""

    def __init__(self, **columns):
        self.values = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self.values[name]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("the columns lose their types and names")


class Arrow(Frame):
    """A table as PyArrow has it."""

    def __init__(self, **columns):
        super().__init__(**columns)
        self.columns, self.column_names = list(columns.values()), list(columns)


COLUMNS = {
    "job": np.array(["cook", "smith"], object), "children": np.array([2, 0]),
    "age": np.array([41.5, 30.0]),
}  # fmt: skip


def structured():
    rows = [(30, "cook", 2), (41, "smith", 0)]
    return np.array(rows, [("age", "i4"), ("job", "U8"), ("children", "f8")])


@pytest.mark.parametrize(
    "given",
    [COLUMNS, {name: array[:, None] for name, array in COLUMNS.items()}, Frame(**COLUMNS),
     Arrow(**COLUMNS), {name: array.tolist() for name, array in COLUMNS.items()}],
    ids=["columns", "arrays", "frame", "arrow", "lists"],
)  # fmt: skip
def test_columns_by_name_in_any_order(given):
    found = as_samples(PEOPLE, given)
    assert list(found) == ["age", "job", "children"]
    assert [array.dtype for array in found.values()] == [np.float32, TEXT, np.int64]
    assert found["age"].tolist() == [[41.5], [30.0]]
    assert found["job"].tolist() == [["cook"], ["smith"]]
    assert found["children"].tolist() == [[2], [0]]


def test_a_structured_array_is_a_table():
    found = as_samples(PEOPLE, structured())
    assert found["age"].tolist() == [[30.0], [41.0]]
    assert found["job"].tolist() == [["cook"], ["smith"]]
    assert found["children"].dtype == np.int64
    numbers = structured()[["children", "age"]]
    pairs = as_samples(graph(x=("f4", (None, 2))), numbers)
    assert pairs["x"].tolist() == [[2.0, 30.0], [0.0, 41.0]]


def test_records_are_samples():
    records = [{"job": "cook", "age": 41.5, "children": 2}, {"age": 30, "children": 0, "job": "x"}]
    found = as_samples(PEOPLE, records)
    assert found["age"].tolist() == [[41.5], [30.0]]
    assert found["job"].tolist() == [["cook"], ["x"]]


def test_a_table_for_one_input_gives_its_features_in_its_order():
    frame = Frame(b=np.array([1, 2]), a=np.array([0.5, 0.25]), c=np.array([True, False]))
    assert as_samples(FEATURES, frame)["x"].tolist() == [[1.0, 0.5, 1.0], [2.0, 0.25, 0.0]]


def test_a_single_column_of_the_inputs_name():
    found = as_samples(graph(age=("f4", (None, 1))), Frame(age=np.array([1.0, 2.0])))
    assert found["age"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("model", "given", "error", "text"),
    [
        (PEOPLE, {**COLUMNS, "salary": [1, 2]}, ShapeError, "input 'salary': the model's inputs"),
        (PEOPLE, {"age": [1]}, ShapeError, "all of them needed"),
        (PEOPLE, {**COLUMNS, 3: [1]}, ShapeError, "input 3: the model's inputs"),
        (PEOPLE, {**COLUMNS, "age": [1.0]}, ShapeError, "'job': axis 0 .* has size 2, but 1"),
        (PEOPLE, {**COLUMNS, "children": [0.5, 1]}, RangeError, "sample 0 .* not whole"),
        (PEOPLE, {**COLUMNS, "job": [1, 2]}, ShapeError, "'job': the model takes texts"),
        (PEOPLE, np.zeros((2, 3)), ShapeError, "has inputs age, job, children; pass a mapping"),
        (FEATURES, Frame(a=np.zeros(2), b=np.array(["x", "y"])), ShapeError, "'x', column 'b'"),
        (FEATURES, Frame(a=np.zeros((2, 2))), ShapeError, "column 'a': has shape"),
        (FEATURES, Frame(a=np.zeros(2), b=np.ones(2)), ShapeError, r"\(batch, 3\), got \(2, 2\)"),
        (FEATURES, np.zeros((2, 3), np.uint8), ShapeError, "got uint8"),
        (FEATURES, "abc", ShapeError, "'x': the model takes"),
        (FEATURES, [], ShapeError, "'x': the model takes"),
        (FEATURES, iter([]), RangeError, "the iterator gave no item"),
        (FEATURES, iter([np.zeros(3), np.zeros(4)]), ShapeError, "item 1: input 'x'"),
        (FEATURES, ["abc" for _ in range(2)], ShapeError, "'x': the model takes"),
    ],
)  # fmt: skip
def test_what_is_refused(model, given, error, text):
    with pytest.raises(error, match=text):
        as_samples(model, given)


def test_two_columns_of_one_name():
    frame = Frame(a=np.zeros(2))
    frame.columns = ["a", "a"]
    with pytest.raises(ShapeError, match="two columns of the table have one name"):
        as_samples(FEATURES, frame)


def test_a_frame_with_numbered_columns_is_an_array():
    class Numbered(Frame):
        def __array__(self, dtype=None, copy=None):
            return np.ones((2, 3))

    frame = Numbered()
    frame.columns = range(3)
    assert as_samples(FEATURES, frame)["x"].shape == (2, 3)


# ---- iterators


def groups(model, given, size):
    return [
        {name: array.tolist() for name, array in group.items()}
        for group in sample_groups(model, given, size)
    ]


def test_the_items_of_an_iterator_are_gathered():
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    expected = [{"x": rows[:2].tolist()}, {"x": rows[2:4].tolist()}, {"x": rows[4:].tolist()}]
    assert groups(FEATURES, iter(rows), 2) == expected
    assert groups(FEATURES, ({"x": row} for row in rows.tolist()), 2) == expected
    assert groups(FEATURES, (torch.tensor(row) for row in rows), 2) == expected
    batches = [rows[:3], rows[3:]]
    assert groups(FEATURES, iter(batches), 2) == [{"x": b.tolist()} for b in batches]
    assert groups(FEATURES, iter(batches), 4) == [{"x": rows.tolist()}]
    assert groups(FEATURES, rows, 2) == [{"x": rows.tolist()}]


def test_any_object_that_is_iterated_over():
    loader = torch.utils.data.DataLoader(torch.arange(15.0).reshape(5, 3), batch_size=2)
    assert [len(group["x"]) for group in sample_groups(FEATURES, loader, 2)] == [2, 2, 1]


def test_items_are_read_as_they_are_needed():
    read = []

    def items():
        for i in range(6):
            read.append(i)
            yield np.full(3, i)

    found = sample_groups(FEATURES, items(), 2)
    next(found)
    assert read == [0, 1]
    next(found)
    assert read == [0, 1, 2, 3]


def test_what_holds_for_all_samples_is_the_same_in_every_item():
    x = np.zeros((1, 2, 3), np.float32)
    nan = np.array(np.nan)
    assert len(groups(IMAGE, ({"x": x, "gain": nan.copy()} for _ in range(3)), 1)) == 3
    with pytest.raises(InputError, match="item 2: input 'gain' holds for all samples"):
        groups(IMAGE, ({"x": x, "gain": i // 2} for i in range(3)), 2)


def test_values_that_are_no_tensors_are_compared_too():
    one = [np.array([1.0, np.nan]), np.array([2])]
    assert samples._equal(one, [array.copy() for array in one])
    assert not samples._equal(one, one[:1])
    assert not samples._equal(one, [one[0], np.array([3])])
    assert samples._equal({"a": 1}, {"a": 1})
    assert not samples._equal(None, {"a": 1})
    assert samples._equal(None, None)


def test_samples_that_depend_on_each_other_are_one_part():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = graph(separable=False, x=("f4", (None, 3)))
    assert groups(model, iter(rows), 1) == [{"x": rows.tolist()}]


def test_items_of_a_fixed_batch_are_not_joined():
    model, batch = graph(x=("f4", (2, 3))), np.zeros((2, 3))
    assert len(groups(model, iter([batch]), 1)) == 1
    with pytest.raises(InputError, match="item 1: the model takes 2 samples at a time"):
        groups(model, iter([batch, batch]), 1)


def test_items_of_different_sizes_are_not_joined():
    types = {"x": OpaqueType(np.dtype("f4"), ("batch", "length"))}
    model = Graph("g", (), ("x",), (), {}, {}, 17, opaque=types)
    with pytest.raises(ShapeError, match="'x': the items' samples have different sizes"):
        groups(model, iter([np.zeros((1, 4)), np.zeros((1, 5))]), 2)
    assert len(groups(model, iter([np.zeros((1, 4)), np.zeros((1, 4))]), 2)) == 1
