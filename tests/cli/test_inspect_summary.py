import json

import onnx
import pytest
from onnx import TensorProto, helper


@pytest.mark.parametrize("policy", ["slalom", "verified", "open", "enclave"])
def test_the_last_line_of_inspect_says_what_the_plan_gains(cloister, model_file, policy):
    ran = cloister("inspect", model_file, "--policy", policy)
    assert ran.code == 0, ran
    last = ran.out.splitlines()[-1]
    assert last.startswith(f"{policy}: a worker computes ")
    assert "running the model yourself" in last
    summary = json.loads(cloister("inspect", model_file, "--policy", policy, "--json").out)[
        "summary"
    ]
    assert summary["line"] == last
    assert (summary["share"] > 0) == (policy != "enclave")
    assert (summary["own_ms"] is None) == (policy == "enclave")


def test_a_plan_is_summarised_as_its_model_is(cloister, model_file, pictures, tmp_path):
    plan = tmp_path / "model.plan"
    assert cloister("plan", model_file, *pictures, "--out", plan).code == 0
    lines = [cloister("inspect", path).out.splitlines()[-1] for path in (model_file, plan)]
    assert lines[0] == lines[1]


def test_a_model_of_unknown_shapes_is_summarised(cloister, tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    versions = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=8), tmp_path / "m.onnx")
    ran = cloister("inspect", tmp_path / "m.onnx")
    assert ran.code == 0, ran
    assert "none of the arithmetic" in ran.out.splitlines()[-1]
