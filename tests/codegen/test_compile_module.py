"""Whole networks through the compiler: values, bits, determinism, the C interface, bad input."""

import shutil

import numpy as np
import pytest

import nets
from cloister.codegen import toolchain
from cloister.codegen.toolchain import LEVELS
from cloister.errors import InputError, UnsupportedError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, Wasm, aligned, compiled, saved

NETS = ("branches", "chain", "depthwise", "residual", "separable", "sequence", "several", "text")


def graph_of(name):
    return from_model(getattr(nets, name)(), name=name)


def samples(graph, seed=1):
    rng = np.random.default_rng(seed)
    shapes = {name: [size or 1 for size in graph.types[name].shape] for name in graph.inputs}
    return {
        name: rng.standard_normal(shape).astype(graph.types[name].dtype)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", NETS)
def test_a_network_equals_its_graph_on_every_build(name):
    graph = graph_of(name)
    builds = tuple(LEVELS) if name in ("chain", "depthwise") else ("native-x86-64-v3",)
    module = compiled(graph, builds=(*builds, "wasm"), contraction="off")
    given = samples(graph)
    expected = interpret(graph, given)
    wasm = Wasm(module).run(*given.values()).outputs
    for build in builds:
        for at, value in enumerate(Native(module, build).run(*given.values())):
            np.testing.assert_allclose(value, expected[graph.outputs[at]], rtol=1e-4, atol=1e-5)
            assert value.tobytes() == wasm[at].tobytes()


@pytest.mark.parametrize("name", ["chain", "separable"])
def test_contracted_builds_have_the_same_bits_on_every_instruction_set(name):
    graph = graph_of(name)
    module = compiled(graph, builds=("native",), contraction="fma")
    given = samples(graph)
    runs = [Native(module, build).run(*given.values()) for build in LEVELS]
    expected = interpret(graph, given)
    for at, output in enumerate(graph.outputs):
        assert len({run[at].tobytes() for run in runs}) == 1
        np.testing.assert_allclose(runs[0][at], expected[output], rtol=1e-4, atol=1e-5)


def test_the_same_graph_gives_the_same_text_and_binaries():
    first, second = (
        compiled(graph_of("residual"), builds=("native-x86-64-v4", "wasm", "onnx"))
        for _ in range(2)
    )
    assert first.source == second.source
    assert first.weights == second.weights
    assert first.builds == second.builds
    assert first.manifest.digest == second.manifest.digest
    assert set(first.builds) == {"native-x86-64-v4", "wasm", "onnx"}


def test_no_path_and_no_host_name_is_in_a_binary():
    module = compiled(graph_of("chain"), builds=("native", "wasm"))
    for binary in module.builds.values():
        for secret in (b"/tmp", b"module.c", b"/root", b"/home"):
            assert secret not in binary
    flags = " ".join(module.manifest.builds["native-x86-64"].flags)
    assert "/" not in flags
    assert "zig cc 0.17" in module.manifest.builds["wasm"].compiler


def test_lengths_are_only_compared_and_wrong_ones_write_nothing():
    module = compiled(graph_of("chain"))
    native = Native(module)
    manifest = module.manifest
    sizes = (
        manifest.weights_bytes,
        manifest.input_bytes,
        manifest.output_bytes,
        manifest.arena_bytes,
    )
    assert [native.size(which) for which in range(5)] == [manifest.abi, *sizes]
    assert native.size(-1) == native.size(5) == native.size(2**31 - 1) == 0
    inputs, outputs = aligned(manifest.input_bytes), aligned(manifest.output_bytes)
    untouched = outputs.tobytes()
    for at in range(4):
        for wrong in (0, 1, sizes[at] - 1, sizes[at] + 1, sizes[at] + 64, 2**32, 2**64 - 1):
            lengths = tuple(wrong if i == at else size for i, size in enumerate(sizes))
            assert native.call(inputs, outputs, lengths=lengths) == at + 1
            assert outputs.tobytes() == untouched
    assert native.call(inputs, outputs) == 0
    assert outputs.tobytes() != untouched


def test_a_module_survives_its_folder(tmp_path):
    module = compiled(graph_of("several"), builds=("wasm",))
    again = saved(module, tmp_path / "module")
    assert again.manifest == module.manifest
    given = samples(graph_of("several"))
    for a, b in zip(
        Wasm(module).run(*given.values()).outputs,
        Wasm(again).run(*given.values()).outputs,
        strict=True,
    ):
        assert a.tobytes() == b.tobytes()


def test_gcc_makes_native_modules_alone():
    if shutil.which("gcc") is None:
        pytest.fail("the development environment has gcc")
    graph = graph_of("chain")
    given = samples(graph)
    gcc = compiled(graph, contraction="off", compiler="gcc")
    assert gcc.manifest.builds["native-x86-64"].compiler.startswith("gcc ")
    zig = compiled(graph, contraction="off")
    assert gcc.source == zig.source
    a, b = (Native(one).run(*given.values())[0] for one in (gcc, zig))
    assert a.tobytes() == b.tobytes()
    with pytest.raises(InputError, match="gcc makes no WebAssembly"):
        compiled(graph, builds=("wasm",), compiler="gcc")


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'cloister\[compile\]'"):
        compiled(graph_of("chain"))
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="gcc is not installed"):
        compiled(graph_of("chain"), compiler="gcc")
    with pytest.raises(InputError, match="choose zig or gcc"):
        compiled(graph_of("chain"), compiler="clang")


def test_every_unsupported_operator_is_named_at_once():
    net = nets.Net()
    x = net.input("x", 6)
    x = net.op("Softsign", x)
    x = net.op("Relu", x)
    x = net.op("Sinh", x)
    graph = from_model(net.model(x), name="net")
    with pytest.raises(UnsupportedError, match=r"'Softsign_0' \(Softsign\), 'Sinh_2' \(Sinh\)"):
        compiled(graph)


def test_the_reasons_of_all_nodes_are_told_at_once():
    net = nets.Net()
    x = net.input("x", 3, 5, 4)
    x = net.op("Pow", x, net.constant(np.float32(3)))
    x = net.op("Relu", net.conv(x, 3, 2, (2, 2)))
    x = net.op("Pad", x, net.constant(np.array([0] * 4 + [9] * 4)), mode="reflect")
    graph = from_model(net.model(net.op("Relu", x)), name="net")
    with pytest.raises(UnsupportedError) as refused:
        compiled(graph)
    assert "'Pow_0' (Pow): only powers" in str(refused.value)
    assert "(Pad): adds more rows" in str(refused.value)


def test_a_shape_that_depends_on_data_is_refused_with_its_node():
    net = nets.Net()
    x = net.input("x", 3)
    shape = net.op("Cast", net.op("Identity", x), to=7)
    graph = from_model(net.model(net.op("Reshape", x, net.op("Squeeze", shape))), name="net")
    with pytest.raises(UnsupportedError, match=r"shapes depend on data.*\(Reshape\)"):
        compiled(graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builds": ("sgx",)}, "build 'sgx': choose native, native-x86-64-v4"),
        ({"contraction": "maybe"}, "contraction 'maybe': choose fma or off"),
    ],
)
def test_an_unknown_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        compiled(graph_of("chain"), **options)
