"""`cloister run` on tables: a model with an input for each column, and one with features."""

import json

import numpy as np
import onnx
import pytest

import nets


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
