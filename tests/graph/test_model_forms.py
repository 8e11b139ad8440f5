"""Files that ONNX Runtime reads, though ONNX's checker may not, mean here what they mean there."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.legality import require_supported
from cloister.graph.onnx import read
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.opsets import newest_version
from cloister.graph.onnx.read import from_model
from cloister.graph.onnx.specialise import specialise
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
ONNX, LEARNING, MICROSOFT = "", "ai.onnx.ml", "com.microsoft"
X = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)
W = np.random.default_rng(4).standard_normal((4, 3)).astype(np.float32)
SPARSE = np.where(W > 0, W, 0).astype(np.float32)


def node(op, inputs, outputs, domain=ONNX, **attributes):
    return helper.make_node(op, inputs.split(","), outputs.split(","), domain=domain, **attributes)


def model(
    *nodes, opset=17, ir=8, constants=None, outputs="y", functions=(), shape=("N", 4), **domains
):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.split(",")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()],
    )
    versions = ({ONNX: opset} if opset else {}) | domains.pop("versions", {})
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*one) for one in versions.items()],
        functions=list(functions),
        ir_version=ir,
    )


def function(name, *nodes, inputs="p", opset=17, defaults=(), **more):
    return helper.make_function(
        "own", name, inputs.split(","), ["q"], nodes, [helper.make_opsetid(ONNX, opset)],
        attribute_protos=[helper.make_attribute(*one) for one in defaults], **more,
    )  # fmt: skip


def body(*nodes, output="r", constants=None):
    graph = helper.make_graph(
        nodes, "body", [], [helper.make_tensor_value_info(output, FLOAT, None)]
    )
    for name, array in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    return graph


def sparse(dense, name, *, places=None):
    flat = dense.reshape(-1)
    held = np.flatnonzero(flat)
    values = numpy_helper.from_array(flat[held], name)
    at = held if places is None else places
    return helper.make_sparse_tensor(
        values, numpy_helper.from_array(at.astype(np.int64), f"{name}_at"), dense.shape
    )


def leaky(attribute="slope"):
    """A LeakyRelu whose slope is an attribute of the function around it."""
    made = node("LeakyRelu", "p", "q")
    made.attribute.add(name="alpha", ref_attr_name=attribute, type=onnx.AttributeProto.FLOAT)
    return made


PRODUCT = (node("MatMul", "x,w", "h"), node("Relu", "h", "y"))
TRUE = {"c": np.array(True)}


def _unnamed():
    built = model(*PRODUCT, constants={"w": W})
    built.graph.name = ""
    return built


def _spelled_out():
    built = model(*PRODUCT, constants={"w": W}, opset=0, versions={"ai.onnx": 17})
    for one in built.graph.node:
        one.domain = "ai.onnx"
    return built


def _named_twice():
    built = model(*PRODUCT, constants={"w": W})
    built.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    return built


def _sparse(**more):
    built = model(node("MatMul", "x,w", "y"))
    built.graph.sparse_initializer.append(sparse(SPARSE, "w", **more))
    return built


def _sparse_in_a_body():
    inner = body(node("MatMul", "x,s", "r"))
    inner.sparse_initializer.append(sparse(SPARSE, "s"))
    other = body(node("MatMul", "x,w", "r2"), output="r2")
    both = {"then_branch": inner, "else_branch": other}
    return model(node("If", "c", "y", **both), constants={**TRUE, "w": W})


def _called(*functions, call="Outer", **attributes):
    return model(
        node(call, "x", "y", domain="own", **attributes), functions=functions, versions={"own": 1}
    )


def _chosen_before():
    later = body(node("Relu", "q", "r"))
    both = {"then_branch": later, "else_branch": body(node("Neg", "x", "r2"), output="r2")}
    return model(node("If", "c", "y", **both), node("Neg", "x", "q"), constants=TRUE)


FORMS = {
    "nodes in any order": model(*PRODUCT[::-1], constants={"w": W}),
    "a body that reads a later node": _chosen_before(),
    "a graph without a name": _unnamed(),
    "constants that are no inputs in an old format": model(
        *PRODUCT, constants={"w": W}, opset=8, ir=3
    ),
    "ONNX's domain by its other name": _spelled_out(),
    "a domain named twice": _named_twice(),
    "Microsoft's operators unnamed": model(node("Gelu", "x", "y", MICROSOFT)),
    "machine learning unnamed": model(
        node("Scaler", "x", "y", LEARNING, offset=[0.1], scale=[2.0])
    ),
    "machine learning alone": model(
        node("Scaler", "x", "h", LEARNING, offset=[0.1], scale=[2.0]),
        node("MatMul", "h,w", "y"),
        constants={"w": W},
        opset=0,
        versions={LEARNING: 1},
    ),
    "an operator that ONNX does not have": model(
        node("SimplifiedLayerNormalization", "x,w", "y"), constants={"w": W[:, 0]}
    ),
    "an operator that ONNX had": model(
        node("ImageScaler", "x", "y", scale=2.0, bias=[1.0, 3.0]), opset=8, shape=["N", 2, 3, 5]
    ),
    "an attribute with a function's default": _called(
        function("Outer", leaky(), defaults=[("slope", 0.4)])
    ),
    "an attribute in place of a default": _called(
        function("Outer", leaky(), defaults=[("slope", 0.4)]), slope=0.3
    ),
    "a default in a function in a function": _called(
        function("Inner", leaky(), defaults=[("slope", 0.4)]),
        helper.make_function(
            "own", "Outer", ["a"], ["b"], [node("Inner", "a", "b", "own")],
            [helper.make_opsetid(ONNX, 17), helper.make_opsetid("own", 1)],
        ),
    ),
    "a function of another version": _called(function("Outer", node("Relu", "p", "q"), opset=13)),
    "a sparse constant": _sparse(),
    "a sparse constant by rows and columns": _sparse(places=np.argwhere(SPARSE)),
    "a sparse constant in a body": _sparse_in_a_body(),
    "normalisation in training": model(
        node("BatchNormalization", "x,s,s,s,s", "y,mean,variance", training_mode=1),
        constants={"s": np.ones(4, np.float32)},
        outputs="y,mean,variance",
    ),
    "a name of a body in the graph": model(
        node("If", "c", "h", then_branch=body(node("Mul", "x,w", "r"), constants={"w": W[:, 0]}),
             else_branch=body(node("Neg", "x", "r2"), output="r2")),
        node("MatMul", "h,w", "y"),
        constants={**TRUE, "w": W},
    ),
}  # fmt: skip


def run(data, x):
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def sample(built):
    sizes = [dim.dim_value or 2 for dim in built.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(5).standard_normal(sizes).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_what_onnx_runtime_reads_is_read(form):
    x = sample(FORMS[form])
    wanted = run(FORMS[form].SerializeToString(), x)
    graph = from_model(FORMS[form], name="net")
    for one in (graph, prepare(graph)):
        for found, right in zip(run(model_bytes(one), x), wanted, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
    with Session(policies.enclave(prepare(graph))) as session:
        outputs = session.run(x).outputs
    for name, right in zip(graph.outputs, wanted, strict=True):
        np.testing.assert_allclose(outputs[name], right, rtol=1e-5, atol=1e-6)


def test_nodes_that_can_run_as_they_are_keep_their_order():
    built = model(
        node("Neg", "x", "a"), node("Relu", "x", "b"), node("Abs", "b", "c"),
        node("Add", "a,c", "y"),
    )  # fmt: skip
    assert [one.op for one in from_model(built, name="net").nodes] == ["Neg", "Relu", "Abs", "Add"]


def test_nodes_that_wait_for_each_other_are_refused():
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        from_model(model(node("Add", "x,b", "a"), node("Neg", "a", "b"), outputs="b"), name="net")


def test_a_model_that_neither_takes_is_refused():
    with pytest.raises(ModelError, match="not a valid ONNX model: No Op registered for Foo"):
        from_model(model(node("Foo", "x", "y")), name="net")


def test_the_judge_of_a_model_opens_no_file(monkeypatch):
    built = model(node("EPContext", "x", "h", MICROSOFT), node("Foo", "h", "y"))
    monkeypatch.setattr(read, "runtime_session", None)
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        from_model(built, name="net")


@pytest.mark.parametrize("place", [-1, 12])
def test_a_sparse_constant_with_values_outside_is_refused(place):
    held = np.flatnonzero(SPARSE)
    built = _sparse(places=np.where(held == held[-1], place, held))
    with pytest.raises(ModelError):
        from_model(built, name="net")


@pytest.mark.parametrize("domain", ["com.acme", "ai.onnx.preview.training"])
def test_an_operator_without_implementation_is_named_in_a_body_too(domain):
    inner = body(node("Adam", "x,x,x,x,x,x", "r,r3,r4", domain))
    both = {"then_branch": inner, "else_branch": body(node("Neg", "x", "r2"), output="r2")}
    built = model(node("If", "c", "y", **both), constants=TRUE, versions={domain: 1})
    with pytest.raises(UnsupportedError, match=rf"operator {domain}\.Adam has no implementation"):
        require_supported(from_model(built, name="net"))


def test_operators_of_models_that_onnx_runtime_has_optimised_are_known():
    built = model(node("ReorderInput", "x", "y", "com.microsoft.nchwc"), shape=[1, 16, 6, 6])
    require_supported(from_model(built, name="net"))


# ---- versions of operators


def before_seven(*nodes, opset=6, **more):
    return model(*nodes, opset=opset, ir=3, **more)


S = np.array([1, 2, 3], np.float32)
IMAGE = np.random.default_rng(6).standard_normal((2, 3, 4, 4)).astype(np.float32)


def along_the_second_axis(*nodes, **more):
    return before_seven(*nodes, constants={"s": S}, shape=["N", 3, 3, 3], **more)


SQUARE = IMAGE[..., :3, :3]
OLD = {
    "slopes of channels": (
        along_the_second_axis(node("PRelu", "x,s", "y")),
        np.where(SQUARE > 0, SQUARE, SQUARE * S[:, None, None]),
    ),
    "an axis behind other operators": (
        along_the_second_axis(
            node("Relu", "x", "h"), node("Mul", "h,s", "g", broadcast=1, axis=2),
            node("Sub", "g,s", "y", broadcast=1, axis=1),
        ),
        np.maximum(SQUARE, 0) * S[:, None] - S[:, None, None],
    ),
    "an axis that is the last": (
        along_the_second_axis(node("Add", "x,s", "y", broadcast=1, axis=3)),
        SQUARE + S,
    ),
    "the last axes": (
        along_the_second_axis(node("Div", "x,s", "y", broadcast=1)), SQUARE / S
    ),
    "broadcasting along an axis": (
        before_seven(node("Add", "x,s", "y", broadcast=1, axis=1), constants={"s": S},
                     shape=["N", 3, 4, 4]),
        IMAGE + S[:, None, None],
    ),
    "normalisation at test": (
        before_seven(node("BatchNormalization", "x,s,s,s,s", "y", is_test=1), constants={"s": S},
                     shape=["N", 3, 4, 4]),
        (IMAGE - S[:, None, None]) / np.sqrt(S + 1e-5)[:, None, None] * S[:, None, None]
        + S[:, None, None],
    ),
    "a shape as an attribute": (
        before_seven(node("Reshape", "x", "y", shape=[0, -1]), opset=4, shape=["N", 3, 4, 4]),
        IMAGE.reshape(2, -1),
    ),
    "nearest neighbours": (
        before_seven(
            node("Upsample", "x", "y", width_scale=2.0, height_scale=3.0, mode="nearest"),
            shape=["N", 3, 4, 4],
        ),
        IMAGE.repeat(3, 2).repeat(2, 3),
    ),
    "an operator of Microsoft's": (
        before_seven(
            node("MatMul", "x,w", "h"), node("FusedMatMul", "h,v", "y", MICROSOFT, alpha=2.0),
            constants={"w": np.eye(4, dtype=np.float32), "v": W},
            shape=[2, 4],
        ),
        2 * IMAGE[0, 0, :2] @ W,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OLD)
def test_operators_before_version_seven_are_converted(kind):
    built, wanted = OLD[kind]
    graph = prepare(from_model(built, name="net"))
    assert graph.opset == 7
    size = graph.sizes("x")
    x = IMAGE[..., : size[2], : size[3]] if len(size) == 4 else IMAGE[0, 0, :2]
    with Session(policies.enclave(graph)) as session:
        (found,) = session.run(x).outputs.values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_large_weights_of_an_old_model_go_out(tmp_path):
    w = np.random.default_rng(7).standard_normal((4, 5000)).astype(np.float32)
    built = before_seven(node("Gemm", "x,w,b", "y", broadcast=1),
                         constants={"w": w, "b": np.ones(5000, np.float32)})  # fmt: skip
    (tmp_path / "old.onnx").write_bytes(built.SerializeToString())
    graph = prepare(read.load(tmp_path / "old.onnx"))
    with Session(policies.slalom(graph, calibration=X)) as session:
        result = session.run(X)
    assert any(row.bytes_to_worker for row in result.report.layers)
    np.testing.assert_allclose(result.outputs["y"], X @ w + 1, atol=0.05)


@pytest.mark.parametrize("op", ["Add", "PRelu"])
def test_an_operand_whose_place_is_not_known_is_refused(op):
    axis = {"axis": 1, "broadcast": 1} if op == "Add" else {}
    unknown = node("Gelu", "x", "h", MICROSOFT)
    built = before_seven(unknown, node(op, "h,s", "y", **axis), constants={"s": S})
    with pytest.raises(UnsupportedError, match=rf"\({op}\).*opset 7 or newer"):
        from_model(built, name="net")
    inner = body(node(op, "x,s", "r", **axis))
    both = {"then_branch": inner, "else_branch": body(node("Neg", "x", "r2"), output="r2")}
    built = before_seven(node("If", "c", "y", **both), constants={**TRUE, "s": S})
    with pytest.raises(UnsupportedError, match=rf"\({op}\).*opset 7 or newer"):
        from_model(built, name="net")


def test_what_cannot_be_converted_is_refused():
    built = before_seven(node("Dropout", "x", "y", is_test=0))
    with pytest.raises(UnsupportedError, match="opset 6 cannot be converted to 7"):
        from_model(built, name="net")


@pytest.mark.parametrize("domain", [ONNX, LEARNING, MICROSOFT])
def test_versions_newer_than_the_runtime_s_are_refused(domain):
    newest = newest_version(domain)
    for version in (newest, newest + 1):
        built = model(node("Relu", "x", "y"), versions={domain: version})
        if version == newest:
            from_model(built, name="net")
            continue
        named = domain or "ai.onnx"
        with pytest.raises(
            UnsupportedError, match=rf"opset {version} of {named} is newer.*{newest}"
        ):
            from_model(built, name="net")


def test_the_newest_version_is_the_runtime_s():
    def runs(version):
        built = model(node("Relu", "x", "y"), opset=version)
        try:
            run(built.SerializeToString(), X)
        except Exception:  # noqa: BLE001
            return False
        return True

    newest = newest_version(ONNX)
    assert runs(newest)
    assert newest == onnx.defs.onnx_opset_version() or not runs(newest + 1)
    assert newest_version("com.acme") is None


def test_a_model_that_names_no_operators_is_refused():
    with pytest.raises(ModelError, match="names no version of its operators"):
        from_model(model(node("Relu", "x", "y"), opset=0), name="net")


def test_names_of_a_graph_do_not_depend_on_the_file_s_format():
    built = model(*PRODUCT, constants={"w": W})
    graph = from_model(built, name="net")
    assert replace(graph, name="net").inputs == ("x",)
    built.graph.input.append(helper.make_tensor_value_info("w", FLOAT, W.shape))
    built.ir_version = 3
    assert from_model(built, name="net").inputs == ("x",)


def test_a_type_that_onnx_runtime_lacks_is_refused_when_the_model_is_planned():
    built = model(*PRODUCT, constants={"w": W, "k": np.ones(3, np.complex64)})
    built.graph.output.append(helper.make_tensor_value_info("k", TensorProto.COMPLEX64, [3]))
    graph = prepare(from_model(built, name="net"))
    with pytest.raises(UnsupportedError, match="ONNX Runtime does not run the model"):
        policies.slalom(graph, calibration=X)


def _doubling(count):
    """Functions of which each calls the next one twice."""
    made = []
    for i in range(count):
        op, domain = ("Identity", "") if i == count - 1 else (f"f{i + 1}", "own")
        nodes = [helper.make_node(op, [f"a{k}"], [f"a{k + 1}"], domain=domain) for k in range(2)]
        sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        made.append(helper.make_function("own", f"f{i}", ["a0"], ["a2"], nodes, sets))
    return made


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        (_doubling(40), "stand for"),
        (
            [
                helper.make_function(
                    "own",
                    "f0",
                    ["a"],
                    ["b"],
                    [helper.make_node("f0", ["a"], ["b"], domain="own")],
                    [helper.make_opsetid("own", 1)],
                )
            ],
            "calls itself",
        ),
    ],
    ids=["many", "endless"],
)
def test_functions_that_no_memory_holds_are_refused(functions, words):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    node = helper.make_node("f0", ["x"], ["y"], domain="own")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=sets, functions=functions)
    with pytest.raises(ModelError, match=words):
        read.from_model(model, name="net")


def test_sparse_constants_that_are_large_together_are_refused():
    sparse = []
    for i in range(17):
        values = numpy_helper.from_array(np.float32([1]), f"s{i}")
        place = numpy_helper.from_array(np.array([3]), f"i{i}")
        sparse.append(helper.make_sparse_tensor(values, place, [2**24]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Add", ["x", "s0"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], sparse_initializer=sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(UnsupportedError, match="sparse"):
        read.from_model(model, name="net")


# ---- types and sizes


def test_a_model_for_one_size_has_large_weights_behind_an_unknown_operator():
    wide = np.ones((4, 1 << 13), np.float32)
    graph = prepare(
        from_model(
            model(
                node("QuickGelu", "x", "h", MICROSOFT), node("MatMul", "h,w", "y"),
                constants={"w": wide}, shape=("N", "T", 4),
            ),
            name="net",
        )
    )  # fmt: skip
    bound = specialise(graph, {"T": 5})
    assert bound.types["y"].shape == (None, 5, 1 << 13)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Scaler", {"offset": [0.1], "scale": [2.0]}),
        ("Normalizer", {"norm": "L2"}),
        ("Binarizer", {"threshold": 0.5}),
        ("Imputer", {"imputed_value_floats": [0.5]}),
    ],
)
def test_a_worker_computes_layers_behind_an_operator_that_prepares_features(op, attributes):
    both = [
        node(op, "x", "h", LEARNING, **attributes),
        node("Concat", "h,h", "hh", axis=1),
        node(op, "hh", "again", LEARNING, **attributes),
        node("MatMul", "again,w", "y"),
    ]
    weights = np.concatenate([W, W])
    graph = prepare(
        from_model(model(*both, constants={"w": weights}, versions={LEARNING: 3}), name="net")
    )
    assert graph.types["again"].shape == (None, 8)
    assert [is_linear(graph, one) for one in graph.nodes] == [False, False, False, True]


def test_columns_of_unnamed_sizes_are_one_batch_with_texts_too():
    column = helper.make_tensor_value_info("city", TensorProto.STRING, [None, 1])
    file = model(
        node("OneHotEncoder", "city", "c", LEARNING, cats_strings=["Bern", "Graz"]),
        node("Reshape", "c,s", "cc"),
        node("Concat", "x,cc", "y", axis=1),
        constants={"s": np.array([-1, 2])},
        shape=(None, 4),
    )
    file.graph.input.append(column)
    graph = from_model(file, name="net")
    assert graph.free_sizes == ()
    assert [graph.types[name].shape for name in graph.inputs] == [(None, 4), (None, 1)]


def test_sizes_may_contradict_a_branch_that_is_not_taken():
    positive = [node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m,zero", "c")]
    branches = {
        "then_branch": body(node("Neg", "x", "r")),
        "else_branch": body(
            node("Squeeze", "x,one", "r2"), output="r2", constants={"one": np.array([1])}
        ),
    }
    file = model(
        *positive, node("If", "c", "y", **branches),
        constants={"zero": np.float32(0)}, shape=(2, "T"),
    )  # fmt: skip
    graph = specialise(prepare(from_model(file, name="net")), {"T": 4})
    with Session(policies.enclave(graph)) as session:
        np.testing.assert_array_equal(session.run(np.abs(X)).outputs["y"], -np.abs(X))
