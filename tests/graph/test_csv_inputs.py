"""Rows of a CSV file as inputs: columns by name in any order, or features in a named one."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cloister.data.columns import Column, days
from cloister.errors import InputError, RangeError
from cloister.graph.graph import Graph, TensorType
from cloister.graph.input_files import read_inputs
from cloister.graph.sample_form import SampleForm


def graph(**inputs):
    types = {name: TensorType(np.dtype(dtype), shape) for name, (dtype, shape) in inputs.items()}
    return Graph("g", (), tuple(inputs), (), {}, types, 17)


PEOPLE = graph(age=("f4", (None, 1)), job=("O", (None, 1)), children=("i8", (None, 1)))
FEATURES = graph(x=("f4", (None, 2)))


@pytest.fixture
def read(tmp_path):
    def read_text(model, text, columns=None):
        path = tmp_path / "rows.csv"
        path.write_text(text)
        return read_inputs(model, [path], columns=columns)

    return read_text


def test_columns_by_name_in_any_order(read):
    found = read(PEOPLE, "label,job,children,age\nyes,cook,2,41.5\nno, tinker ,0,nan\n")
    assert list(found.arrays) == ["age", "job", "children"]
    assert found.arrays["job"].tolist() == [["cook"], ["tinker"]]
    assert found.arrays["children"].dtype == np.int64
    assert found.arrays["age"].dtype == np.float32
    np.testing.assert_array_equal(found.arrays["age"], [[41.5], [np.nan]])
    assert [name.rsplit("/", 1)[1] for name in found.names] == ["rows.csv[0]", "rows.csv[1]"]


def test_the_features_of_one_input(read):
    text = "\ufeffb, a ,label\r\n1,2.5,9\r\n\r\n3,-4e-1,8\r\n"
    assert read(FEATURES, text, ["a", "b"]).arrays["x"].tolist() == [
        [2.5, 1],
        [np.float32(-0.4), 3],
    ]
    assert read(FEATURES, text, ["b", "label"]).arrays["x"].tolist() == [[1, 9], [3, 8]]
    assert read(FEATURES, "b,a\n1,2\n").arrays["x"].tolist() == [[1, 2]]
    single = graph(age=("f8", (None, 1)))
    assert read(single, "age\n1e300\n").arrays["age"].tolist() == [[1e300]]


def test_separators_encodings_and_decimal_commas_are_found(tmp_path):
    path = tmp_path / "rows.csv"
    for text, encoding in (
        ("a;größe\n1;2,5\n", "utf-8"), ("a;größe\n1;2,5\n", "latin-1"),
        ("a\tgröße\r\n1\t2.5\r\n", "utf-16"), ("# units: kg\na|größe\n1|2.5\n", "utf-8-sig"),
        ('a,größe\n1,"2,5"\n', "utf-8"), ("größe,a\n2.5,1\n", "utf-8"),
    ):  # fmt: skip
        path.write_bytes(text.encode(encoding))
        found = read_inputs(FEATURES, [path], columns=["a", "größe"])
        assert found.arrays["x"].tolist() == [[1, 2.5]]


def test_whole_numbers_are_read_exactly(read):
    large = 2**62 + 1
    assert read(graph(x=("i8", (None, 1))), f"x\n{large}\n").arrays["x"].tolist() == [[large]]
    with pytest.raises(RangeError, match="column 'x': sample 0 has an integer that float32"):
        read(graph(x=("f4", (None, 1))), "x\n16777217\n")


@pytest.mark.parametrize(
    ("model", "text", "columns", "message"),
    [
        (PEOPLE, "age,job\n1,a\n", None, "no column 'children'; its columns are age, job"),
        (FEATURES, "a,b\n1,2\n", ["a", "c"], "no column 'c'"),
        (PEOPLE, "age,job,children\n1,a,2\n", ["age"], "--columns: the model takes columns by"),
        (FEATURES, "a,b,c\n1,2,3\n", None, r"input 'x': the model takes shape \(batch, 2\)"),
        (FEATURES, "a,b\n1,\n", None, "column 'b': the value of row 1 is missing"),
        (FEATURES, "a,b\n1,2\nx,2\n", None, "column 'a': the value of row 2: 'x' is not a number"),
        (FEATURES, "a,b\n1\n", None, "row 1 has 1 cells, and the header 2"),
        (FEATURES, "a,a\n1,2\n", None, "needs a first line with a different name"),
        (FEATURES, "a,\n1,2\n", None, "needs a first line"),
        (FEATURES, "", None, "is empty; it needs a header"),
        (FEATURES, "a,b\n", None, "holds no rows"),
        (FEATURES, "a,b\n1,1e39\n", None, "column 'b': sample 0 has a number beyond"),
        (PEOPLE, "age,job,children\n1,a,2.5\n", None, "column 'children': sample 0 .* not whole"),
        (FEATURES, 'a,b\n1,"2\n', None, "line 2: a quote is not closed"),
        (FEATURES, "a,b\n1,x\x00\n", None, "line 2 is neither UTF-8 nor"),
        (FEATURES, "a;b\n1;2,5\n3;2.5\n4;2,5\n", None, "row 2: '2.5' has a point in a file with"),
        (FEATURES, 'a,b\n1,"1,234"\n', None, "'1,234' may be 1.234 or 1234"),
    ],
)
def test_what_is_refused(read, model, text, columns, message):
    with pytest.raises(InputError, match=message) as caught:
        read(model, text, columns)
    assert "rows.csv" in str(caught.value) or "--columns" in str(caught.value)


def test_a_table_is_found_in_a_folder(tmp_path):
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    np.save(tmp_path / "two.npy", np.array([[3, 4]]))
    found = read_inputs(FEATURES, [tmp_path])
    assert found.arrays["x"].tolist() == [[1, 2], [3, 4]]


COLUMNS = (
    Column("age", "number", low=0.0, high=120.0, fill=50.0),
    Column("sex", "category", values=("f", "m")),
    Column("visit", "date", low=0.0, high=30000.0),
    Column("ward", "category", values=("a", "b"), fill="b"),
)
PATIENTS = replace(
    graph(age=("f4", (None, 1)), sex=("O", (None, 1)), visit=("f4", (None, 1)),
          ward=("O", (None, 1))),
    samples=SampleForm("table", COLUMNS, "classes", ("ill", "well")).to_json(),
)  # fmt: skip


def test_an_exported_model_reads_cells_as_its_data_set_did(read):
    """Other separators, decimal commas, dates and missing cells; a label and ids are left out."""
    found = read(
        PATIENTS,
        "id;visit;age;sex;ward;ill\n"
        "p1;01.02.2020;61,5;f;a;yes\np2;29.02.2020;;m;;no\np3;03.01.2020;130;m;b;\n",
    ).arrays
    np.testing.assert_array_equal(found["age"], np.array([[61.5], [np.nan], [130]], np.float32))
    assert found["sex"].tolist() == [["f"], ["m"], ["m"]]
    assert found["ward"].tolist() == [["a"], [""], ["b"]]
    dates = [[days(text)] for text in ("2020-02-01", "2020-02-29", "2020-01-03")]
    assert found["visit"].tolist() == dates


def test_values_that_an_exported_model_never_saw_are_told(tmp_path):
    path, notes = tmp_path / "rows.csv", []
    rows = ["61,f,2020-01-01,a", "130,m,2060-01-01,b", ",m,2020-01-03,b"]
    path.write_text("\n".join(["age,sex,visit,ward", *rows]))
    read_inputs(PATIENTS, [path], note=notes.append)
    (note,) = notes
    assert "(2 cells)" in note
    assert "line 3, column age: 130 is outside the range 0 to 120; line 3, column visit" in note
    path.write_text("\n".join(["age,sex,visit,ward", rows[0]]))
    read_inputs(PATIENTS, [path], note=notes.append)
    assert len(notes) == 1


def test_bad_cells_of_an_exported_model_are_named_all_at_once(read):
    with pytest.raises(RangeError) as told:
        read(PATIENTS, "age,sex,visit,ward\nold,f,2020-01-01,a\n61,q,soon,a\n7,,2020-01-03,c\n")
    for place in ("line 2, column age", "line 3, column sex", "line 3, column visit",
                  "line 4, column sex", "line 4, column ward"):  # fmt: skip
        assert place in str(told.value)
    assert "; correct it, or say how cells are written with --decimal" in str(told.value)
    # Only what `cloister run` takes as well.
    options = set(re.findall(r"--[a-z-]+", str(told.value)))
    assert options == {"--decimal", "--thousands", "--missing", "--date-format"}


def test_columns_of_an_exported_model_are_not_chosen(read):
    with pytest.raises(InputError, match="has no column ward"):
        read(PATIENTS, "age,sex,visit\n61,f,2020-01-01\n")
    with pytest.raises(InputError, match="--columns: the model takes columns by their names"):
        read(PATIENTS, "age,sex,visit,ward\n61,f,2020-01-01,a\n", columns=["age"])
