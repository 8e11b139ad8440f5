"""Operators of ai.onnx.ml: sizes as ONNX Runtime computes them, and long lists of attributes."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from cloister.errors import InputError
from cloister.graph import graph_file, runtime_types
from cloister.graph.graph import ML, Graph, LongList, Node
from cloister.graph.onnx import export, load, read
from cloister.graph.onnx.batching import joining_axes
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session

FEATURES = 4


def tree(prefix: str, ids: list[int], **attributes: object) -> dict[str, object]:
    """One tree of one comparison, with a weight in each leaf for each of `ids`."""
    leaves = [1] * len(ids) + [2] * len(ids)
    return {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.25, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        f"{prefix}_treeids": [0] * len(leaves), f"{prefix}_nodeids": leaves,
        f"{prefix}_ids": ids * 2,
        f"{prefix}_weights": [0.1 * (i + 1) for i in range(len(leaves))],
        **attributes,
    }  # fmt: skip


def vectors(classes: int, **attributes: object) -> dict[str, object]:
    """A support vector for each class."""
    pairs = classes * (classes - 1) // 2
    return {
        "kernel_type": "RBF", "kernel_params": [0.5, 0.0, 3.0], "vectors_per_class": [1] * classes,
        "support_vectors": [0.1 * i for i in range(classes * FEATURES)],
        "coefficients": [0.3 * (-1) ** i for i in range(classes * (classes - 1))],
        "rho": [0.1] * pairs, "classlabels_ints": list(range(classes)), **attributes,
    }  # fmt: skip


CASES = {
    "Binarizer": ("Binarizer", 1, {"threshold": 0.5}),
    "Imputer": ("Imputer", 1, {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}),
    "LabelEncoder": (
        "LabelEncoder", 2,
        {"keys_floats": [0.0, 1.0], "values_int64s": [5, 6], "default_int64": 9},
    ),
    "Normalizer": ("Normalizer", 1, {"norm": "L2"}),
    "Scaler": ("Scaler", 1, {"offset": [0.5] * FEATURES, "scale": [2.0] * FEATURES}),
    "LinearRegressor": ("LinearRegressor", 1, {"coefficients": [0.5] * FEATURES}),
    "LinearRegressor of two": (
        "LinearRegressor", 1,
        {"coefficients": [0.5] * 2 * FEATURES, "targets": 2, "intercepts": [1.0, 2.0]},
    ),
    "LinearClassifier": (
        "LinearClassifier", 1,
        {"coefficients": [0.5, -1.0, 0.2, 0.1] * 3, "intercepts": [0.0, 0.1, 0.2],
         "classlabels_ints": [1, 2, 3]},
    ),
    "SVMRegressor": (
        "SVMRegressor", 1,
        {"kernel_type": "LINEAR", "kernel_params": [0.5, 0.0, 3.0], "n_supports": 1, "rho": [0.5],
         "support_vectors": [0.5] * FEATURES, "coefficients": [1.0]},
    ),
    "SVMClassifier of pairs": ("SVMClassifier", 1, vectors(4)),
    "SVMClassifier of one pair": ("SVMClassifier", 1, vectors(2)),
    "SVMClassifier of probabilities": (
        "SVMClassifier", 1, vectors(3, prob_a=[-1.0] * 3, prob_b=[0.0] * 3)
    ),
    "SVMClassifier, linear": (
        "SVMClassifier", 1,
        {"kernel_type": "LINEAR", "kernel_params": [0.5, 0.0, 3.0], "rho": [0.1],
         "coefficients": [0.1 * i for i in range(12)], "classlabels_strings": ["a", "b", "c"]},
    ),
    "TreeEnsembleRegressor": ("TreeEnsembleRegressor", 1, tree("target", [0], n_targets=1)),
    "TreeEnsembleRegressor of two": (
        "TreeEnsembleRegressor", 3, tree("target", [0, 1], n_targets=2)
    ),
    "TreeEnsembleClassifier": (
        "TreeEnsembleClassifier", 1,
        tree("class", [0, 1, 2], classlabels_int64s=[3, 4, 5], post_transform="SOFTMAX"),
    ),
    "TreeEnsembleClassifier of two": (
        "TreeEnsembleClassifier", 1,
        tree("class", [0], classlabels_int64s=[3, 4], post_transform="LOGISTIC"),
    ),
    "TreeEnsembleClassifier of texts": (
        "TreeEnsembleClassifier", 3, tree("class", [0, 1], classlabels_strings=["a", "b"])
    ),
}  # fmt: skip


def model_of(op: str, version: int, attributes: dict[str, object]) -> onnx.ModelProto:
    outputs = ["y", "z"] if op.endswith("Classifier") else ["y"]
    node = helper.make_node(op, ["x"], outputs, domain=ML, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "net", [x], infos)
    opsets_of = [helper.make_opsetid("", 13), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=opsets_of, ir_version=8)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_outputs_have_the_types_that_onnx_runtime_computes(case):
    op, version, attributes = CASES[case]
    model = model_of(op, version, attributes)
    graph = read.from_model(model, name="net")
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": rows(3)})
    for name, array in zip(graph.outputs, found, strict=True):
        known = graph.types[name]
        assert known.dtype == array.dtype
        assert tuple(3 if size is None else size for size in known.shape) == array.shape


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_to_go_by_rows_does(case):
    graph = read.from_model(model_of(*CASES[case]), name="net")
    assert graph.separable
    assert joining_axes(graph, graph) == dict.fromkeys(graph.outputs, 0)


def test_an_input_of_one_axis_is_one_sample():
    model = model_of(*CASES["Normalizer"])
    del model.graph.input[0].type.tensor_type.shape.dim[1:]
    assert not read.from_model(model, name="net").separable


# ---- long lists


def forest(trees: int = 1000) -> onnx.ModelProto:
    """Trees of nine nodes, a label and a map of probabilities, as scikit-learn exports them."""
    rng = np.random.default_rng(1)
    inner, leaves = [0, 1, 2, 3], [4, 5, 6, 7, 8]
    nodes = len(inner) + len(leaves)
    attributes = {
        "nodes_treeids": np.repeat(np.arange(trees), nodes).tolist(),
        "nodes_nodeids": list(range(nodes)) * trees,
        "nodes_featureids": rng.integers(0, FEATURES, nodes * trees).tolist(),
        "nodes_modes": (["BRANCH_LEQ"] * len(inner) + ["LEAF"] * len(leaves)) * trees,
        "nodes_values": rng.standard_normal(nodes * trees).astype(np.float32).tolist(),
        "nodes_truenodeids": [1, 3, 5, 7, 0, 0, 0, 0, 0] * trees,
        "nodes_falsenodeids": [2, 4, 6, 8, 0, 0, 0, 0, 0] * trees,
        "class_treeids": np.repeat(np.arange(trees), len(leaves)).tolist(),
        "class_nodeids": leaves * trees,
        "class_ids": rng.integers(0, 3, len(leaves) * trees).tolist(),
        "class_weights": rng.random(len(leaves) * trees).astype(np.float32).tolist(),
        "classlabels_int64s": [3, 5, 9],
    }
    model = model_of("TreeEnsembleClassifier", 1, attributes)
    model.graph.node.append(
        helper.make_node("ZipMap", ["z"], ["p"], domain=ML, classlabels_int64s=[3, 5, 9])
    )
    del model.graph.output[1]
    model.graph.output.append(onnx.ValueInfoProto(name="p"))
    return model


def forest_graph() -> Graph:
    return prepare(read.from_model(forest(), name="forest"))


def long_lists(node: Node) -> dict[str, LongList]:
    return {name: v for name, v in node.attributes.items() if isinstance(v, LongList)}


def test_a_large_ensemble_is_written_once_and_loaded_once(tmp_path, monkeypatch):
    """By ONNX Runtime: for the session of the run alone, however many batches are tried."""
    path = tmp_path / "forest.onnx"
    onnx.save(forest(), path)
    large = path.stat().st_size // 2
    written, made = [], []
    to_bytes = export._Message.to_bytes

    class Counted(ort.InferenceSession):
        def __init__(self, model, *arguments, **options):
            made.append(len(model))
            super().__init__(model, *arguments, **options)

    def counted_bytes(message):
        written.append(message.size)
        return to_bytes(message)

    monkeypatch.setattr(export._Message, "to_bytes", counted_bytes)
    monkeypatch.setattr(ort, "InferenceSession", Counted)
    monkeypatch.setattr(runtime_types, "output_types", lambda model: made.append(len(model)) or [])
    x = rows(5)
    with Session(policies.enclave(load.load(path)), batch=2) as session:
        found = session.run(x).outputs
        session.run(x)
    assert sum(size > large for size in written) == 1
    assert sum(size > large for size in made) == 1
    monkeypatch.undo()
    wanted = ort.InferenceSession(path).run(["y", "p"], {"x": x})
    np.testing.assert_array_equal(found["y"], wanted[0])
    assert found["p"] == wanted[1]


def test_a_long_list_takes_no_python_objects():
    (lists,) = [long_lists(n) for n in forest_graph().nodes if n.op == "TreeEnsembleClassifier"]
    assert len(lists) == 7 + 4  # of nodes and of leaves
    assert lists["nodes_modes"].texts == ("BRANCH_LEQ", "LEAF")
    assert {one.values.dtype for one in lists.values()} == {np.dtype("i8"), np.dtype("f4")}


def test_a_long_list_is_written_as_it_was_read():
    graph, model = forest_graph(), forest()
    wanted = {one.name: one for one in model.graph.node[0].attribute}
    found = onnx.NodeProto.FromString(export.node_bytes(graph.nodes[0])).attribute
    assert {one.name: one for one in found} == wanted


def test_a_graph_with_long_lists_comes_back_whole():
    graph = forest_graph()
    data = graph_file.to_bytes(graph)
    again = graph_file.from_bytes(data)
    assert graph_file.to_bytes(again) == data
    for name, one in long_lists(graph.nodes[0]).items():
        other = again.nodes[0].attributes[name]
        assert other.texts == one.texts
        np.testing.assert_array_equal(other.values, one.values)


@pytest.mark.parametrize(
    "damaged",
    [
        LongList(np.zeros((2, 2), np.int64)),
        LongList(np.zeros(2, np.int8)),
        LongList(np.array([0, 2]), ("a", "b")),
        LongList(np.array([-1, 0]), ("a", "b")),
        LongList(np.array([0, 1], np.float32), ("a", "b")),
        LongList(np.array([0, 1]), ("a", "a")),
    ],
)
def test_damaged_lists_are_refused(damaged):
    graph = forest_graph()
    first = graph.nodes[0]
    broken = replace(first, attributes={**first.attributes, "nodes_modes": damaged})
    data = graph_file.to_bytes(replace(graph, nodes=(broken, *graph.nodes[1:])))
    with pytest.raises(InputError):
        graph_file.from_bytes(data)
