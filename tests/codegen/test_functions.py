"""Elementary functions in C against float64, within the bounds that their comments state."""

import math
import re
from importlib import resources

import numpy as np
import pytest
from onnx import helper

from cloister.graph.onnx.read import from_model
from codegen.modules import Native, Wasm, compiled

erf = np.vectorize(math.erf, otypes=[np.float64])
EXACT = {
    "Exp": np.exp,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Erf": erf,
    "Gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "GeluTanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
ULPS = {"Exp": 2, "Tanh": 4, "Sigmoid": 4, "Erf": 4}
FILES = {"Exp": "exp.c", "Tanh": "tanh.c", "Sigmoid": "sigmoid.c", "Erf": "erf.c"}
TINY = np.float64(2.0**-149)


def values():
    """Every exponent of float32 with both signs, and many numbers where the functions bend."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 40_000, np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits)]
    parts = [rng.uniform(-limit, limit, 20_000) for limit in (0.01, 1.0, 5.0, 20.0, 110.0)]
    edges = [0.0, -0.0, 0.92, -0.92, 88.72, 88.73, -87.33, -103.9, -104.1, 3.4e38, -3.4e38]
    return np.concatenate([bits, *parts, edges]).astype(np.float32)


def function_graph(count):
    nodes = []
    for name in EXACT:
        attributes = {"approximate": "tanh"} if name == "GeluTanh" else {}
        nodes.append(
            helper.make_node(name.removesuffix("Tanh") or name, ["x"], [name], **attributes)
        )
    floats = helper.make_tensor_value_info
    outputs = [floats(name, 1, ["N", count]) for name in EXACT]
    made = helper.make_graph(nodes, "functions", [floats("x", 1, ["N", count])], outputs)
    opsets = [helper.make_opsetid("", 20)]
    return from_model(helper.make_model(made, opset_imports=opsets, ir_version=9), name="functions")


@pytest.fixture(scope="module", params=["fma", "off"])
def computed(request):
    x = values()
    builds = ("native-x86-64-v4", "native-x86-64-v3", "native-x86-64", "wasm")
    module = compiled(function_graph(len(x)), builds=builds, contraction=request.param)
    runs = [Native(module, build).run(x[None]) for build in builds[:3]]
    if request.param == "off":
        runs.append(Wasm(module).run(x[None]).outputs)
    names = [tensor.name for tensor in module.manifest.outputs]
    for run in runs:
        for first, value in zip(runs[0], run, strict=True):
            assert first.tobytes() == value.tobytes()
    return x, {name: value[0] for name, value in zip(names, runs[0], strict=True)}


@pytest.mark.parametrize("name", ULPS)
def test_an_error_is_at_most_what_the_comment_states(computed, name):
    x, found = computed
    with np.errstate(over="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
    unit = np.maximum(np.spacing(np.abs(rounded)).astype(np.float64), TINY)
    finite = np.isfinite(rounded)
    assert np.array_equal(np.isfinite(found[name]), finite)
    error = np.abs(found[name][finite].astype(np.float64) - exact[finite])
    allowed = ULPS[name] * unit[finite]
    if name == "Sigmoid":
        allowed = np.where(x[finite] < -87, 2.0**-126, allowed)
    if name == "Exp":
        allowed += np.where(rounded[finite] < 2.0**-126, TINY, 0)
    assert np.all(error <= allowed), x[finite][error > allowed][:5]


@pytest.mark.parametrize("name", ["Gelu", "GeluTanh"])
def test_an_error_of_gelu_is_at_most_what_the_comment_states(computed, name):
    x, found = computed
    sane = np.abs(x) < 1e12  # the cube of a larger one is infinite
    exact = EXACT[name](x[sane].astype(np.float64))
    error = np.abs(found[name][sane].astype(np.float64) - exact)
    assert np.all(error <= 2.0**-22 * np.abs(x[sane].astype(np.float64)) + TINY)


@pytest.mark.parametrize(("name", "file"), FILES.items())
def test_a_comment_states_the_tested_bound(name, file):
    text = (resources.files("cloister.codegen") / "c" / file).read_text()
    stated = re.findall(r"Error: at most (\d+) units", " ".join(text.split()).replace(" * ", " "))
    assert stated == [str(ULPS[name])]


def test_nan_stays_nan():
    x = np.full((1, 3), np.nan, np.float32)
    for output in Native(compiled(function_graph(3))).run(x):
        assert np.isnan(output).all()


def test_infinities_have_their_limits():
    x = np.array([[np.inf, -np.inf]], np.float32)
    module = compiled(function_graph(2))
    found = dict(zip((t.name for t in module.manifest.outputs), Native(module).run(x), strict=True))
    limits = {"Exp": (np.inf, 0), "Tanh": (1, -1), "Sigmoid": (1, 0), "Erf": (1, -1)}
    for name, expected in limits.items():
        np.testing.assert_array_equal(found[name][0], np.array(expected, np.float32))
