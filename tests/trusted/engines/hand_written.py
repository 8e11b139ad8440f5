"""Modules whose C was written by hand, compiled as `cloister compile` compiles them."""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import ABI, BUILDS, Build, Manifest, ModuleTensor, span

HEAD = """
#include <stdint.h>
#ifndef ABI
#define ABI 1
#endif
typedef unsigned long size;
uint64_t cloister_module_size(int32_t which) {
  static const uint64_t sizes[5] = {ABI, WEIGHTS, INPUTS, OUTPUTS, ARENA};
  return which >= 0 && which < 5 ? sizes[which] : 0;
}
#define CHECK_LENGTHS \\
  if (weights_bytes != WEIGHTS) return 1; \\
  if (inputs_bytes != INPUTS) return 2; \\
  if (outputs_bytes != OUTPUTS) return 3; \\
  if (arena_bytes != ARENA) return 4;
#define RUN int32_t cloister_module_run(const void *weights, uint64_t weights_bytes, \\
  const void *inputs, uint64_t inputs_bytes, void *outputs, uint64_t outputs_bytes, \\
  void *arena, uint64_t arena_bytes)
"""
# y = W x + b for d inputs and k outputs, with the sum kept in the arena.
DENSE = """
RUN {
  CHECK_LENGTHS
  const float *w = weights, *x = inputs;
  float *sum = arena, *y = outputs;
  for (int k = 0; k < K; k++) {
    sum[k] = w[K * D + k];
    for (int d = 0; d < D; d++) sum[k] += w[k * D + d] * x[d];
  }
  for (int k = 0; k < K; k++) y[k] = sum[k];
  return 0;
}
"""
SYSTEM_CALLS = """
static long call(long n, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d; register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8),
    "r"(r9) : "rcx", "r11", "memory");
  return result;
}
"""
TARGETS = {
    "native-x86-64-v4": ["-target", "x86_64-linux-musl", "-march=x86_64_v4", "-shared", "-fPIC"],
    "native-x86-64-v3": ["-target", "x86_64-linux-musl", "-march=x86_64_v3", "-shared", "-fPIC"],
    "native-x86-64": ["-target", "x86_64-linux-musl", "-march=x86_64", "-shared", "-fPIC"],
    "wasm": ["-target", "wasm32-wasi", "-msimd128", "-nostdlib", "-Wl,--no-entry",
             "-Wl,--export=cloister_module_run", "-Wl,--export=cloister_module_size",
             "-Wl,--export=__heap_base"],
}  # fmt: skip


@functools.cache
def compiled(source, build, more=()):
    """The binary of a C text; zig keeps what it compiled before in a folder for all tests."""
    cache = os.path.join(tempfile.gettempdir(), f"cloister-zig-{os.getuid()}")
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "module.c"), Path(folder, "module.bin")
        text.write_text(source)
        command = [sys.executable, "-P", "-m", "ziglang", "cc", "-O2", "-ffp-contract=off",
                   *TARGETS[build], *more, "-o", str(binary), str(text)]  # fmt: skip
        places = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
        assert done.returncode == 0, done.stderr
        return binary.read_bytes()


def made(
    body, *, inputs=(("x", "float32", (4,)),), outputs=(("y", "float32", (3,)),), weights=b"",
    arena_bytes=64, builds=("native-x86-64",), defines="", binaries=None, claimed=None,
):  # fmt: skip
    """A module; `claimed` replaces sizes that the code says of itself, `binaries` its builds."""
    given, returned = (tuple(ModuleTensor(*one) for one in side) for side in (inputs, outputs))
    sizes = {"WEIGHTS": len(weights), "INPUTS": span(given), "OUTPUTS": span(returned),
             "ARENA": arena_bytes, **(claimed or {})}  # fmt: skip
    constants = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    source = constants + defines + HEAD + body
    if binaries is None:
        binaries = {build: compiled(source, build) for build in builds}
    return of_parts(given, returned, weights, arena_bytes, binaries, source)


def of_parts(inputs, outputs, weights, arena_bytes, binaries, source=""):
    def sha256(data):
        return hashlib.sha256(data).hexdigest()

    order = {build: binaries[build] for build in BUILDS if build in binaries}
    manifest = Manifest(
        name="hand", inputs=inputs, outputs=outputs, arena_bytes=arena_bytes,
        weights_bytes=len(weights), weights_sha256=sha256(weights),
        source_sha256=sha256(source.encode()),
        builds={name: Build("zig", (), sha256(one), len(one)) for name, one in order.items()},
        contraction="off", operators=(), salt="00" * 32, abi=ABI,
    )  # fmt: skip
    return CompiledModule(manifest, order, weights, source)


def dense(d=4, k=3, *, seed=1, builds=("native-x86-64",), **more):
    """A dense layer with random weights: the module, and what it computes in NumPy."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((k, d)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    module = made(
        DENSE, inputs=(("x", "float32", (d,)),), outputs=(("y", "float32", (k,)),),
        weights=matrix.tobytes() + bias.tobytes(), arena_bytes=-(-4 * k // 64) * 64,
        builds=builds, defines=f"#define D {d}\n#define K {k}\n", **more,
    )  # fmt: skip

    def reference(x):
        y = np.broadcast_to(bias, (len(x), k)).copy()
        for i in range(d):  # in the order of the C
            y += x[:, i, None] * matrix[:, i]
        return y

    return module, reference


def dense_onnx(d=4, k=3, *, seed=1, weights=None):
    """The layer of `dense` for ONNX Runtime."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((k, d)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    if weights is not None:
        flat = np.frombuffer(weights, np.float32)
        matrix, bias = flat[: k * d].reshape(k, d), flat[k * d :]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], "g",
        [value("x", TensorProto.FLOAT, (1, d))], [value("y", TensorProto.FLOAT, (1, k))],
        [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    tensors = (ModuleTensor("x", "float32", (d,)),), (ModuleTensor("y", "float32", (k,)),)
    weights = matrix.tobytes() + bias.tobytes()
    module = of_parts(*tensors, weights, 64, {"onnx": model.SerializeToString()})
    return module, lambda x: x @ matrix.T + bias
