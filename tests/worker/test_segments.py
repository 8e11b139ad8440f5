"""What of a client's segment reaches ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import cloister
import nets
from cloister.errors import ModelError, UnsupportedError
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Answer, Apply, Failure, Hello, Loaded, LoadSegment
from cloister.worker import engine, segments
from cloister.worker.engine import Engine
from cloister.worker.segments import CUDA, SegmentTarget, checked, segment_device
from graph.test_external_data import PLACES, at, outside
from trusted.split_plans import split_plans

X = np.array([[-1, 2]], np.float32)


def segment(*nodes, **fields):
    """A model from x (1, 2) to y."""
    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy"]
    nodes = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    graph = helper.make_graph(list(nodes), "g", shape[:1], shape[1:])
    opsets = [helper.make_opsetid(domain, 1) for domain in ("com.microsoft", "a.b")]
    opsets.append(helper.make_opsetid("", 17))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **fields)


def run(model):
    engine = Engine()
    loaded = engine.handle(LoadSegment(1, model))
    return engine.handle(Apply(1, 1, (X,))) if loaded == Loaded(1) else loaded


def test_an_honest_segment_runs():
    answer = run(segment().SerializeToString())
    assert isinstance(answer, Answer)
    np.testing.assert_array_equal(answer.tensors[0], [[0, 2]])


@pytest.mark.parametrize("path", PLACES.values(), ids=PLACES)
def test_a_tensor_outside_the_model_is_refused_wherever_it_lies(path, monkeypatch):
    monkeypatch.setattr(segments.ort, "InferenceSession", None)
    model = segment()
    model.MergeFrom(at(path, outside("../../../etc/passwd")))
    with pytest.raises(ModelError, match="'w' lies in another file"):
        SegmentTarget(model.SerializeToString(), device="cpu", threads=1)


def test_memory_addresses_are_no_data_either():
    tensor = outside("*/_ORT_MEM_ADDR_/*", offset=1 << 20, length=16)
    with pytest.raises(ModelError, match="another file"):
        checked(at(PLACES[next(iter(PLACES))], tensor).SerializeToString())


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        ("com.microsoft", "EPContext"),
        ("com.microsoft", "BeamSearch"),
        ("com.microsoft", "anything"),
        ("ai.onnx.preview.training", "Adam"),
        ("a.b", "Relu"),
        ("ai.onnx.contrib", "PythonOp"),
    ],
)
@pytest.mark.parametrize("holder", ["graph", "function", "subgraph"])
def test_only_known_operators_run(domain, operator, holder):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain, name="odd")
    model = segment()
    if holder == "graph":
        model.graph.node.append(node)
    elif holder == "function":
        model.functions.add(name="f", domain="a.b").node.append(node)
    else:
        model.graph.node[0].attribute.add(name="body").g.node.append(node)
    with pytest.raises(UnsupportedError, match=rf"'odd': .*{operator}"):
        checked(model.SerializeToString())


# ---- devices


class Session:
    """ONNX Runtime's, of which only the providers count."""

    def __init__(self, model, options, *, providers, disabled_optimizers):
        self.asked = providers

    def get_providers(self):
        return [one if isinstance(one, str) else one[0] for one in self.asked]

    def get_inputs(self):
        return []

    get_outputs = get_inputs


class Forgetful(Session):
    """One that goes on without CUDA, as ONNX Runtime does where its libraries are absent."""

    def get_providers(self):
        return ["CPUExecutionProvider"]


@pytest.mark.parametrize(("device", "index"), [("cuda", "0"), ("cuda:1", "1")])
def test_a_segment_runs_on_the_workers_device(monkeypatch, device, index):
    monkeypatch.setattr(segments.ort, "get_available_providers", lambda: [CUDA, "CPU"])
    monkeypatch.setattr(segments.ort, "InferenceSession", Session)
    target = SegmentTarget(segment().SerializeToString(), device=device, threads=1)
    assert target._session.asked == [(CUDA, {"device_id": index}), "CPUExecutionProvider"]
    assert segment_device(device) == device
    monkeypatch.setattr(segments.ort, "InferenceSession", Forgetful)
    with pytest.raises(UnsupportedError, match=f"has CUDA and cannot use {device}; install"):
        SegmentTarget(segment().SerializeToString(), device=device, threads=1)


def test_a_worker_says_where_its_segments_run(monkeypatch):
    """PyTorch may have CUDA where ONNX Runtime has none: its clients learn of it."""
    monkeypatch.setattr(engine, "check_device", lambda device: None)
    for known, said in (([CUDA], "cuda:1"), ([], "cuda:1, open segments on cpu")):
        monkeypatch.setattr(segments.ort, "get_available_providers", lambda known=known: known)
        assert Engine(device="cuda:1").handle(Hello()).device == said
    assert Engine().handle(Hello()).device == "cpu"


def after_a_split():
    """The segment that a session of a plan with a split loads."""
    loaded = []
    worker = Engine()

    def handle(message):
        if isinstance(message, LoadSegment):
            loaded.append(message.model)
        return worker.handle(message)

    plan = next(split_plans(nets.chain(), "origami-prefix", ends=1))
    with cloister.Session(plan, workers=[InProcessLink(handle)]) as session:
        session.run(nets.samples(nets.chain(), 1))
    (model,) = loaded
    return model


def test_a_segment_after_a_split_is_refused_with_anything_more():
    """Whatever a client adds: data in files, wherever they are named, and other operators."""
    model = after_a_split()
    assert Engine().handle(LoadSegment(1, model)) == Loaded(1)
    for path in PLACES.values():
        found = onnx.ModelProto.FromString(model)
        found.MergeFrom(at(path, outside("../../../etc/passwd")))
        reply = Engine().handle(LoadSegment(1, found.SerializeToString()))
        assert isinstance(reply, Failure)
        assert "lies in another file" in reply.message
    for domain in ("com.example", "com.microsoft"):
        found = onnx.ModelProto.FromString(model)
        found.graph.node.add(op_type="EPContext", domain=domain, name="odd")
        reply = Engine().handle(LoadSegment(1, found.SerializeToString()))
        assert isinstance(reply, Failure)
        assert "a worker runs no operator" in reply.message


def test_what_onnx_runtime_s_own_tools_write_runs():
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    assert isinstance(run(segment(node).SerializeToString()), Answer)


def test_settings_and_unknown_fields_do_not_arrive():
    model = segment()
    model.metadata_props.add(key="ort_config", value='{"session_options": {}}')
    found = onnx.ModelProto.FromString(checked(model.SerializeToString() + b"\xfa\x7f\x03new"))
    assert not found.metadata_props
    model.ClearField("metadata_props")
    assert found == model
    assert b"new" not in checked(model.SerializeToString() + b"\xfa\x7f\x03new")


def test_bytes_that_are_also_a_file_of_onnx_runtime_are_read_as_onnx():
    model = segment(producer_name="ORTM" + "\0" * 64)
    data = checked(model.SerializeToString())
    assert data[4:8] == b"ORTM"
    # Left to itself, ONNX Runtime takes them for its own format, which nobody checked.
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="ORT model verification failed"):
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    answer = run(model.SerializeToString())
    np.testing.assert_array_equal(answer.tensors[0], [[0, 2]])


@pytest.mark.parametrize("depth", [200, 20_000])
def test_deep_nesting_is_refused(depth):
    data = b""
    for _ in range(depth):  # graph in an attribute in a node in a graph
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + onnx_varint(len(data)) + data
    with pytest.raises(ModelError, match="nested too deeply"):
        checked(b"\x3a" + onnx_varint(len(data)) + data)


def onnx_varint(value):
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


@pytest.mark.parametrize("model", [b"nonsense", b"", b"\x08"])
def test_other_bytes_are_a_failure(model):
    assert isinstance(run(model), Failure)


def compressing():
    """y (rows of x that c names), 1 where all is well."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, [4]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    nodes = [helper.make_node("Compress", ["x", "c"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_truth_values_that_would_read_memory_are_refused():
    engine = Engine()
    assert engine.handle(LoadSegment(1, compressing())) == Loaded(1)
    x, odd = np.ones(4, np.float32), np.array([255, 0, 0, 0], np.uint8).view(np.bool_)
    answer = engine.handle(Apply(1, 1, (x, odd)))
    assert isinstance(answer, Failure) and "'c' holds truth values" in answer.message
    answer = engine.handle(Apply(2, 1, (x, x > 0)))
    assert isinstance(answer, Answer)
    np.testing.assert_array_equal(answer.tensors[0], x)


@pytest.mark.parametrize("path", PLACES.values(), ids=PLACES)
def test_odd_truth_values_are_refused_wherever_they_are_stored(path):
    tensor = helper.make_tensor("w", TensorProto.BOOL, [2], bytes([1, 2]), raw=True)
    model = segment()
    model.MergeFrom(at(path, tensor))
    with pytest.raises(ModelError, match="'w' holds truth values"):
        checked(model.SerializeToString())


def test_what_a_client_names_its_nodes_reaches_no_terminal(capfd):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"], name="\x1b]0;all is checked\x07")]
    nodes.insert(0, helper.make_node("Constant", [], ["s"], value_ints=[7], name="\x1b[2J"))
    nodes.insert(1, helper.make_node("Identity", ["s"], ["unused\x1b[1;1H"]))
    answer = run(segment(*nodes).SerializeToString())
    assert isinstance(answer, Failure)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])],
    ],
    ids=["text", "sequence", "maps"],
)
def test_outputs_that_cannot_be_sent_are_refused_by_name(nodes):
    model = segment(*nodes)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.output[0].type.Clear()
    answer = run(model.SerializeToString())
    assert isinstance(answer, Failure) and "output 'y' is no tensor of numbers" in answer.message
