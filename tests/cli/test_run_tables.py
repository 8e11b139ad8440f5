"""`cloister run` on tables: models with an input for each column or with features; its answers."""

import csv
import json
import stat

import numpy as np
import onnx
import pytest

import nets
from cloister.data.columns import Column
from cloister.graph.graph import SAMPLES
from cloister.graph.sample_form import SampleForm


@pytest.fixture
def people(tmp_path):
    net = nets.Net()
    columns = [net.input(name, 1) for name in ("age", "income", "rooms")]
    path = tmp_path / "people.onnx"
    onnx.save(net.model(net.gemm(net.op("Concat", *columns, axis=1), 3, 2)), path)
    return path


def values(ran):
    assert ran.code == 0, ran
    outputs = json.loads(ran.out)["outputs"]
    return [next(iter(one["values"].values())) for one in outputs]


@pytest.mark.parametrize("policy", ["enclave", "slalom"])
def test_columns_by_name(cloister, tmp_path, people, policy):
    table, arrays = tmp_path / "rows.csv", tmp_path / "rows.npz"
    table.write_text("rooms,label,age,income\n2,yes,41.5,3e2\n1,no,30,150\n")
    np.savez(arrays, income=np.array([300.0, 150.0]), rooms=np.array([2, 1]), age=[[41.5], [30]])
    found = [
        values(cloister("run", people, inputs, "--policy", policy, "--json"))
        for inputs in (table, arrays)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_features_in_the_named_order(cloister, refused, tmp_path):
    net = nets.Net()
    model, table = tmp_path / "model.onnx", tmp_path / "rows.csv"
    onnx.save(net.model(net.gemm(net.input("x", 2), 2, 3)), model)
    table.write_text("b,label,a\n2,7,0.5\n")
    np.save(tmp_path / "rows.npy", [[0.5, 2.0]])
    run = ("run", model, "--policy", "enclave", "--json")
    found = values(cloister(*run, table, "--columns", "a,b"))
    assert found == values(cloister(*run, tmp_path / "rows.npy"))
    assert "no column 'c'" in refused("run", model, table, "--policy", "enclave", "--columns", "c")


WRITTEN = "rooms;label;age;income\n2;yes;41,5;1.200\n1;no;k. A.;150\n"
AS_WRITTEN = ("--decimal", ",", "--thousands", ".", "--missing", "k. A.", "--separator", ";")


def test_cells_are_read_as_data_encrypt_reads_them(cloister, refused, tmp_path, people):
    """Separator, marks of numbers, texts for missing cells and encoding, by the same options."""
    table, arrays = tmp_path / "rows.csv", tmp_path / "rows.npz"
    table.write_text(WRITTEN.replace("label", "größe"), encoding="utf-16-le")
    run = ("run", people, table, "--policy", "enclave", "--json")
    np.savez(arrays, income=[1200.0, 150.0], rooms=[2, 1], age=[[41.5], [np.nan]])
    wanted = values(cloister("run", people, arrays, "--policy", "enclave", "--json"))
    found = values(cloister(*run, *AS_WRITTEN, "--encoding", "utf-16-le"))
    np.testing.assert_array_equal(np.array(found, float), np.array(wanted, float))
    assert "'41,5' has a comma in a file with decimal points; correct it, or say" in refused(*run)
    assert "'k. A.' is not a number" in refused(*run, "--decimal", ",")
    assert "--decimal x: give . or ," in refused(*run, "--decimal", "x")
    assert "is not ascii; correct --encoding" in refused(*run, "--encoding", "ascii")
    assert "the model takes no dates" in refused(*run, "--date-format", "%Y")
    unused = refused("plan", people, "--policy", "enclave", "--out", tmp_path / "a.plan",
                     "--missing", "-1")  # fmt: skip
    assert "--missing: is about reading inputs" in unused


def test_points_that_may_group_thousands_are_doubted(cloister, tmp_path, people):
    table = tmp_path / "rows.csv"
    run = ("run", people, table, "--policy", "enclave")
    for text, options, doubted in (
        ("rooms;age;income\n2;41;1.200\n1;30;150\n", (), True),
        ("rooms;age;income\n2;41;1.200\n1;30;150\n", ("--decimal", "."), False),
        ("rooms;age;income\n2;41;1.200\n1;30;150\n", ("--thousands", "."), False),
        ("rooms;age;income\n2;41.5;1.200\n1;30;150\n", (), False),
        ("rooms,age,income\n2,41,1.200\n1,30,150\n", (), False),
    ):
        table.write_text(text)
        ran = cloister(*run, *options)
        assert ran.code == 0, ran
        assert ("say --decimal . if it is one, or --thousands ." in ran.err) is doubted, text


COLUMNS = (
    Column("age", "number", low=0.0, high=120.0, fill=50.0),
    Column("seen", "date", low=0.0, high=30000.0, fill=10000.0),
)


@pytest.fixture
def exported(tmp_path):
    """A model of two classes that states its columns, as `cloister export` writes one."""
    net = nets.Net()
    columns = [net.input(column.name, 1) for column in COLUMNS]
    filled = [net.op("Where", net.op("IsNaN", x), net.constant(np.float32(0)), x) for x in columns]
    made = net.model(net.op("Softmax", net.gemm(net.op("Concat", *filled, axis=1), 2, 2), axis=1))
    form = SampleForm("table", COLUMNS, "classes", ("=ill", "well"))
    onnx.helper.set_model_props(made, {SAMPLES: form.to_json()})
    onnx.save(made, tmp_path / "exported.onnx")
    return tmp_path / "exported.onnx"


def test_an_exported_table_is_read_with_the_same_options(cloister, tmp_path, exported):
    table, plain = tmp_path / "rows.csv", tmp_path / "plain.csv"
    table.write_text("seen|age\n3/31/20|41,5\n4/1/20|-1\n")
    plain.write_text("age,seen\n41.5,2020-03-31\n,2020-04-01\n")
    options = ("--date-format", "%m/%d/%y", "--decimal", ",", "--missing", "-1", "--separator", "|")
    run = ("run", exported, "--policy", "enclave", "--json")
    assert values(cloister(*run, table, *options)) == values(cloister(*run, plain))


def test_bad_cells_are_listed_one_a_line(cloister, tmp_path, exported):
    table = tmp_path / "rows.csv"
    table.write_text("age,seen\nold,2020-03-31\n12%,soon\n7,2020-03-31\n")
    ran = cloister("run", exported, table, "--policy", "enclave")
    assert (ran.code, ran.out) == (2, "")
    head, *cells, remedy = ran.err.splitlines()
    assert head == f"error: {table}: 3 cells cannot be used"
    assert [cell.split(":")[0] for cell in cells] == [
        "  line 2, column age", "  line 3, column age", "  line 3, column seen",
    ]  # fmt: skip
    assert remedy.startswith("  correct it, or say how cells are written with --decimal")
    table.write_text("age,seen\nold,2020-03-31\n")
    ran = cloister("run", exported, table, "--policy", "enclave")
    assert ran.err.count("\n") == 1


def rows_of(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_answers_are_written_as_a_table_by_the_suffix(cloister, tmp_path, exported, people):
    """Classes by name and their probabilities; raw outputs of what is no classifier."""
    table, out, raw = tmp_path / "rows.csv", tmp_path / "out.csv", tmp_path / "out.npz"
    table.write_text("age,seen\n41.5,2020-03-31\n0,1970-01-01\n")
    run = ("run", exported, table, "--policy", "enclave", "--out")
    assert cloister(*run, out).code == cloister(*run, raw).code == 0
    header, *rows = rows_of(out)
    assert header == ["input", "class", "'=ill", "well"]
    (scores,) = np.load(raw).values()
    assert [row[0] for row in rows] == [f"{table}[0]", f"{table}[1]"]
    names = ["'=ill", "well"]
    assert [row[1] for row in rows] == [names[i] for i in scores.argmax(axis=1)]
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), scores, rtol=1e-5)
    # The caller's names of classes, for a model that states none.
    table.write_text("rooms,age,income\n2,4,1\n")
    (tmp_path / "names").write_text("cheap\ndear\n")
    more = ("--labels", tmp_path / "names")
    assert cloister("run", people, table, "--policy", "enclave", "--out", out, *more).code == 0
    header, row = rows_of(out)
    assert header == ["input", "class", "cheap", "dear"]
    assert row[1] in header[2:]
    assert sum(map(float, row[2:])) == pytest.approx(1, abs=1e-5)


def test_numbers_are_written_in_a_column_each(cloister, tmp_path, exported):
    made = onnx.load(exported)
    form = SampleForm("table", COLUMNS, "numbers", ("pulse", "pressure"))
    onnx.helper.set_model_props(made, {SAMPLES: form.to_json()})
    onnx.save(made, exported)
    table, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    table.write_text("age,seen\n41.5,2020-03-31\n")
    assert cloister("run", exported, table, "--policy", "enclave", "--out", out).code == 0
    assert rows_of(out)[0] == ["input", "pulse", "pressure"]


def test_outputs_without_rows_are_no_table(refused, tmp_path):
    net, model = nets.Net(), tmp_path / "sum.onnx"
    onnx.save(net.model(net.op("ReduceSum", net.gemm(net.input("x", 2), 2, 3), keepdims=0)), model)
    np.save(tmp_path / "x.npy", np.float32([[1, 2]]))
    run = ("run", model, tmp_path / "x.npy", "--policy", "enclave", "--out")
    assert "has no value for each input" in refused(*run, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert "name a .npz or .csv file" in refused(*run, tmp_path / "out.txt")
