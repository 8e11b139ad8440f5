"""The C text itself: warnings, sanitizers, readability, and what a model's names may do to it."""

import re
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import nets
from cloister.codegen.c_source import kernel_texts
from cloister.codegen.toolchain import COMMON, compile_c, find_compiler
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, compiled, packed_inputs, unpacked_outputs
from codegen.random_chains import chain, graph_of

DRIVER = Path(__file__).parent / "driver.c"
SANITIZED = (
    "-std=c11", "-O0", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DHOSTED",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
FILES = sorted(
    path.name for path in (resources.files("cloister.codegen") / "c").iterdir()
    if path.name.endswith(".c")
)  # fmt: skip


def sanitized(module, folder, inputs):
    """The outputs of a module that GCC's sanitizers watch."""
    (folder / "module.c").write_text(module.source)
    (folder / "weights").write_bytes(module.weights)
    (folder / "inputs").write_bytes(packed_inputs(module, inputs))
    program = folder / "program"
    build = ["gcc", *SANITIZED, str(folder / "module.c"), str(DRIVER), "-o", str(program), "-lm"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [str(folder / name) for name in ("weights", "inputs", "outputs")]
    done = subprocess.run([str(program), *files], capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise AssertionError(done.stderr)
    return unpacked_outputs(module, (folder / "outputs").read_bytes())


def normal(graph):
    rng = np.random.default_rng(2)
    return [
        rng.standard_normal((1, *graph.types[name].shape[1:])).astype(np.float32)
        for name in graph.inputs
    ]


@pytest.mark.parametrize("name", ["depthwise", "residual", "several"])
def test_sanitizers_find_nothing_and_change_nothing(name, tmp_path):
    graph = from_model(getattr(nets, name)(), name=name)
    module = compiled(graph, builds=("native-x86-64",), contraction="off")
    given_ = normal(graph)
    found = sanitized(module, tmp_path, given_)
    for value, expected in zip(found, Native(module, "native-x86-64").run(*given_), strict=True):
        assert value.tobytes() == expected.tobytes()


@settings(max_examples=2, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(st.data())
def test_sanitizers_find_nothing_in_random_chains(tmp_path_factory, data):
    def draw(values):
        return data.draw(st.sampled_from(values))

    graph = graph_of([chain(draw, f"k{at}", 4) for at in range(2)])
    module = compiled(graph, builds=())
    sanitized(module, tmp_path_factory.mktemp("chains"), normal(graph))


def test_sanitizers_would_find_a_read_beyond_the_weights(tmp_path):
    graph = from_model(nets.chain(), name="chain")
    module = compiled(graph, builds=())
    source = re.sub(r"\(weights_start \+ 0\)", "(weights_start + WEIGHTS_BYTES)", module.source)
    assert source != module.source
    object.__setattr__(module, "source", source)
    with pytest.raises(AssertionError, match="AddressSanitizer"):
        sanitized(module, tmp_path, normal(graph))


@pytest.mark.parametrize("compiler", ["zig", "gcc"])
def test_all_kernels_compile_together_without_a_warning(compiler):
    assert {"-Wall", "-Wextra", "-Werror"} <= set(COMMON)
    pieces = ["#include <stddef.h>", "#include <stdint.h>", *kernel_texts(["prelude.c", *FILES])]
    text = "\n".join(pieces)
    builds = ["native-x86-64-v4", "native-x86-64-v3", "native-x86-64"]
    for build in builds + ["wasm"] * (compiler == "zig"):
        source = text
        if build == "wasm":
            source += (
                "EXPORT int cloister_module_size(void); EXPORT int cloister_module_run(void);\n"
                "int cloister_module_size(void) { return 0; }\n"
                "int cloister_module_run(void) { return 0; }\n"
            )
        for contraction in ("fma", "off"):
            compile_c(source, build, compiler=find_compiler(compiler), contraction=contraction)


def test_the_text_is_readable():
    module = compiled(from_model(nets.chain(), name="chain"), builds=())
    source = module.source
    assert source.startswith("/*\n * A hidden module:")
    assert " * Operators: Conv, Relu, MaxPool, AveragePool, Flatten\n" in source
    assert " * Input:  image, float32 (3, 13, 10)\n" in source
    assert f"{len(module.weights)} bytes of weights" in source
    assert max(len(line) for line in source.splitlines()) <= 100
    assert not any(line != line.rstrip() or "\t" in line for line in source.splitlines())
    # One function for each layer, under a comment that names its nodes, with named sizes.
    assert "/* Conv Conv_0, then Relu Relu_1\n" in source
    assert len(re.findall(r"^static void layer_\d+_\w+\($", source, re.MULTILINE)) == 6
    assert "KERNEL_H = 3" in source
    assert "STRIDE_W = 2" in source


def test_no_weight_is_in_the_text():
    net = nets.Net()
    x = net.input("x", 4)
    secret = np.array([0.7654321, 123.4567, -9.87654, 3.1415926], np.float32)
    graph = from_model(net.model(net.op("Mul", x, net.constant(secret))), name="n")
    module = compiled(graph, builds=("native", "wasm"))
    for number in secret:
        assert str(number)[:6] not in module.source
        assert number.tobytes() in module.weights
        assert all(number.tobytes() not in binary for binary in module.builds.values())


def test_a_name_of_the_model_cannot_leave_its_comment():
    net = nets.Net()
    x = net.input('x*/ int evil(void) { return 1; } /*\\"', 4)
    y = net.op("Relu", x)
    net.nodes[0].name = "*/ #error injected \\"
    graph = from_model(net.model(y), name="n")
    module = compiled(graph)
    assert "*/ int evil" not in module.source
    assert "*/ #error" not in module.source
    assert "injected" in module.source


@pytest.mark.parametrize("length", [90, 97, 200, 1000])
def test_names_of_any_length_stand_in_the_comment(length):
    """Exporters join the names of nested layers."""
    net = nets.Net()
    x = net.input("x" * length, 4)
    module = compiled(from_model(net.model(net.gemm(x, 4, 3)), name="long"), builds=())
    assert x[:90] in module.source
