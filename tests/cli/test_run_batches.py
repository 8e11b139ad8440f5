"""`cloister run` and its kin on models of which not every value carries the batch."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nets
from trusted import test_input_kinds as input_kinds
from trusted import test_output_kinds as output_kinds


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    """Samples and a gain; scores by sample, anchors for all, and one scaled table."""
    net = nets.Net()
    net.inputs.append(helper.make_tensor_value_info("gain", TensorProto.FLOAT, []))
    x = net.input("x", 3)
    scores = net.op("Mul", net.gemm(x, 3, 4), "gain")
    anchors = net.op("Identity", net.constant(normal(7, 2)))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(scores, anchors, net.op("Transpose", scores, perm=[1, 0])), path)
    return path


def saved(tmp_path, name="inputs", **arrays):
    path = tmp_path / f"{name}.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("policy", ["enclave", "slalom"])
def test_outputs_by_sample_and_for_all(cloister, tmp_path, model, policy):
    path = saved(tmp_path, x=normal(12, 3), gain=np.float32(2))
    out = tmp_path / "out.npz"
    ran = cloister("run", model, path, "--policy", policy, "--json", "--out", out)
    assert ran.code == 0, ran
    found = json.loads(ran.out)["outputs"]
    assert len(found) == 12
    scores, anchors, turned = found[0]["values"]
    kept = np.load(out)
    assert [kept[name].shape for name in (scores, anchors, turned)] == [(12, 4), (7, 2), (4, 12)]
    for i, one in enumerate(found):
        np.testing.assert_allclose(one["values"][scores], kept[scores][i])
        np.testing.assert_allclose(one["values"][anchors], normal(7, 2))
        np.testing.assert_allclose(one["values"][turned], kept[turned][:, i])
        assert len(one["top"]) == 4


def test_several_files_share_what_holds_for_all(cloister, refused, tmp_path, model):
    first = saved(tmp_path, "first", x=normal(2, 3), gain=np.float32(2))
    single = saved(tmp_path, "single", x=normal(3), gain=np.float32(2))
    other = saved(tmp_path, "other", x=normal(2, 3), gain=np.float32(3))
    arguments = ("run", model, "--policy", "enclave", "--json")
    ran = cloister(*arguments, first, single)
    names = [one["input"] for one in json.loads(ran.out)["outputs"]]
    assert names == [f"{first}[0]", f"{first}[1]", str(single)]
    message = refused(*arguments, first, other)
    assert f"{other}: input 'gain' holds for all samples" in message


def test_inputs_that_do_not_fit_are_named(cloister, refused, tmp_path, model):
    arguments = ("run", model, "--policy", "enclave")
    wrong = saved(tmp_path, x=normal(2, 3), gain=normal(2))
    assert "input 'gain': the model takes shape (), got (2,)" in refused(*arguments, wrong)
    bad = normal(12, 3)
    bad[10, 0] = np.inf
    odd = saved(tmp_path, x=bad, gain=np.float32(1))
    assert "(input 'x': sample 10 contains NaN or infinity)" in refused("run", model, odd)
    outputs = json.loads(cloister(*arguments, "--json", odd).out)["outputs"]
    assert [None in one["values"]["v1"] for one in outputs].index(True) == 10


def test_inspect_and_compare_take_such_a_model(cloister, tmp_path, model):
    ran = cloister("inspect", model, "--json")
    assert json.loads(ran.out)["inputs"] == {
        "gain": ["float32", []], "x": ["float32", ["batch", 3]]
    }  # fmt: skip
    path = saved(tmp_path, x=normal(12, 3), gain=np.float32(2))
    ran = cloister("compare", model, path, "--json")
    assert json.loads(ran.out)["inputs"] == 12


def test_two_free_sizes(cloister, refused, tmp_path):
    net = nets.Net()
    for name, symbol in (("q", "queries"), ("d", "documents")):
        net.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [symbol, 3]))
    turned = net.op("Transpose", "d", perm=[1, 0])
    path = tmp_path / "scores.onnx"
    onnx.save(net.model(net.op("MatMul", net.gemm("q", 3, 3), turned)), path)
    inputs = saved(tmp_path, q=normal(2, 3), d=normal(5, 3))
    ran = cloister("run", path, inputs, "--json")
    values = [one["values"].popitem()[1] for one in json.loads(ran.out)["outputs"]]
    assert np.shape(values) == (2, 5)


def test_a_model_without_inputs_is_refused(refused, tmp_path):
    net = nets.Net()
    path = tmp_path / "constants.onnx"
    onnx.save(net.model(net.op("Add", net.constant(normal(2)), net.constant(normal(2)))), path)
    inputs = saved(tmp_path, x=normal(2))
    message = refused("run", path, inputs, "--policy", "enclave")
    assert "the model has no inputs" in message


@pytest.fixture
def classifier(tmp_path):
    """Labels as text and a map of probabilities for each sample, as scikit-learn models have."""
    net = output_kinds.maps_of_names()
    best = net.outputs[0].name
    named = net.op(
        "LabelEncoder", best, domain=output_kinds.ML, keys_int64s=[0, 1, 2, 3],
        values_strings=["ant", "bee", "cat", "dog"],
    )  # fmt: skip
    net.outputs[0] = helper.make_tensor_value_info(named, TensorProto.STRING, None)
    path = tmp_path / "classifier.onnx"
    onnx.save(net.model(), path)
    return path


@pytest.mark.parametrize("policy", ["enclave", "open", "slalom"])
def test_text_and_maps_by_sample(cloister, tmp_path, classifier, policy):
    path, out = saved(tmp_path, x=normal(11, 3)), tmp_path / "out.npz"
    ran = cloister("run", classifier, path, "--policy", policy, "--json", "--out", out)
    assert ran.code == 0, ran
    found = json.loads(ran.out)["outputs"]
    assert len(found) == 11
    with np.load(out, allow_pickle=False) as kept:
        labels, *columns = (kept[name] for name in kept.files)
    assert [array.shape for array in (labels, *columns)] == [(11,)] * 5
    for i, one in enumerate(found):
        text, maps = one["values"].values()
        assert text == labels[i] == max(maps, key=maps.get)
        assert one["top"][0]["label"] == text
        assert list(maps.values()) == pytest.approx([float(column[i]) for column in columns])
    assert cloister("run", classifier, path, "--policy", policy).out.count(labels[0]) >= 1


def test_inspect_says_what_no_worker_runs(cloister, classifier):
    ran = cloister("inspect", classifier, "--policy", "open")
    assert ran.out.count("stays inside: no message carries value") == 2
    kept = json.loads(cloister("inspect", classifier, "--policy", "open", "--json").out)
    assert len(kept["kept_inside"]) == 2
    assert json.loads(cloister("inspect", classifier, "--json").out)["kept_inside"] == {}


def test_an_input_that_no_file_holds(refused, cloister, tmp_path):
    path = tmp_path / "sequence.onnx"
    onnx.save(input_kinds.sequence().model(), path)
    message = refused("run", path, saved(tmp_path, s=normal(2, 3)), "--policy", "enclave")
    assert "input 's' is a sequence, a map or optional, which no file holds" in message
    shown = json.loads(cloister("inspect", path, "--json").out)
    assert shown["inputs"] == {"s": ["no tensor", None]}
