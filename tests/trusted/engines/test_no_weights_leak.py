"""No part of a module's weights is in any file, output, argument or core dump of a run."""

import base64
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nets
from cloister.graph.hidden import hide
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model
from cloister.plan import policies
from cloister.plan.protection import hiding
from cloister.trusted.engines.engine_messages import EngineSettings
from cloister.trusted.engines.module_engine import _settings
from cloister.trusted.session import Session
from codegen.modules import compiled
from trusted.engines import hand_written
from trusted.engines.planted_weights import files, found, leaks, of_process, planted

D, K = 63, 65
CRASH = """
RUN {
  CHECK_LENGTHS
  const float *w = weights, *x = inputs;
  float sum = 0;
  for (int i = 0; i < WEIGHTS / 4; i++) sum += w[i] * x[i % 4];
  *(float *)outputs = sum;
  if (x[0] > 0) __builtin_trap();
  return 0;
}
"""
# Runs a module, has the engine crash, by its own code or by a signal, then aborts itself.
HOST = """
import os, signal, sys
import numpy as np
from pathlib import Path
from cloister.bundle.compiled_module import CompiledModule
from cloister.errors import EngineError
from cloister.trusted.engines.module_engine import start_engine
folder, kind, crash = sys.argv[1:]
module = CompiledModule.load(Path(folder))
x = np.zeros((3, *module.manifest.inputs[0].shape), np.float32)
with start_engine(module, kind) as engine:
    print("engine", engine.pid, flush=True)
    sys.stdin.readline()
    engine.run([x])
    try:
        if crash == "itself":
            engine.run([x + 1])
        os.kill(engine.pid, getattr(signal, crash))
        engine.run([x])
    except EngineError as error:
        print("error", error, file=sys.stderr, flush=True)
    else:
        raise SystemExit("the engine did not crash")
os.abort()
"""


def test_planted_weights_are_found_where_they_are(tmp_path):
    secret = planted(4 * 64)
    assert found(secret, os.urandom(10_000)) == 0
    assert found(secret, b"abc" + secret[40:48] + b"x") == 1
    assert found(secret, b"abc" + secret[40:47] + b"x") == 0
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"12345" + secret[5:21])
    assert leaks(secret, files(tmp_path)) == [(str(tmp_path / "deep" / "file"), 9)]


def cores():
    """Core dumps lie where a process runs, which is / for engines."""
    places = (Path("/"), Path.cwd(), Path("/var/lib/systemd/coredump"))
    return {str(path) for place in places if place.is_dir() for path in place.glob("*core*")}


@pytest.mark.parametrize(
    ("kind", "crash"),
    [("native", "itself"), ("native", "SIGSEGV"), ("wasm", "SIGABRT"), ("onnxruntime", "SIGQUIT")],
)
def test_a_run_leaves_nothing_of_the_weights(tmp_path, kind, crash):
    secret = planted(4 * (D * K + K))
    if kind == "onnxruntime":
        module, _ = hand_written.dense_onnx(D, K, weights=secret)
    else:
        build = "wasm" if kind == "wasm" else "native-x86-64"
        module = hand_written.made(CRASH, weights=secret, builds=(build,))
    vendor, folders = tmp_path / "vendor", [tmp_path / name for name in ("cwd", "tmp", "home")]
    module.save(vendor)
    assert found(secret, (vendor / "weights.bin").read_bytes()) > 0
    for folder in folders:
        folder.mkdir()
    before = cores()
    shared = {name for name, _ in files("/dev/shm")}
    environment = {
        "PATH": os.environ["PATH"], "TMPDIR": str(folders[1]), "HOME": str(folders[2]),
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    command = [sys.executable, "-P", "-c", HOST, str(vendor), kind, crash]
    with subprocess.Popen(
        command, cwd=folders[0], env=environment, text=False, preexec_fn=_with_cores,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as host:  # fmt: skip
        pid = int(host.stdout.readline().split()[1])
        shown = [*of_process(pid), *of_process(host.pid)]
        stdout, stderr = host.communicate(b"run\n", timeout=120)
    assert host.returncode < 0, stderr  # it aborted itself
    assert b"error module 'hand', engine" in stderr
    assert cores() == before
    new = [(name, data) for name, data in files("/dev/shm") if name not in shared]
    places = [*shown, ("stdout", stdout), ("stderr", stderr), *files(*folders), *new]
    assert leaks(secret, places) == []
    for form in (base64.b64encode(secret), secret.hex().encode()):
        assert leaks(form, places) == []


def _with_cores():
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_the_settings_that_come_first_say_sizes_and_shapes_only():
    """They arrive before the process is locked."""
    module, _ = hand_written.dense()
    settings = _settings(module, "native", "native-x86-64", 1, False)
    assert EngineSettings.from_bytes(settings.to_bytes()) == settings
    assert set(json.loads(settings.to_bytes())) == {
        "kind", "sizes", "code_bytes", "rows", "memory_bytes", "padding_bytes", "grid_ns",
        "threads", "fuel", "inputs", "outputs",
    }  # fmt: skip


# ---- a whole session


def hidden_words(hidden, module):
    """The weights in the orders in which they may be copied: the model's, turned, and packed."""
    arrays = [array for array in hidden.constants.values() if array.dtype == np.float32]
    assert sum(array.size for array in arrays) > 500
    turned = (np.ascontiguousarray(array.T) for array in arrays)
    return b"".join(array.tobytes() for array in (*arrays, *turned)) + module.weights


@pytest.mark.parametrize("outer", policies.NAMES)
def test_no_message_of_a_session_has_a_part_of_the_hidden_weights(outer):
    """Messages to the worker and from it, the plan, its claims, the report and the outer model."""
    pytest.importorskip("ziglang")
    model = nets.chain()
    split = hide(from_model(model, name="chain"), last=2)
    module = compiled(split.hidden, builds=("native",), contraction="off")
    named = split.named(module.manifest.digest)
    plan = policies.make(hiding(outer), named, calibration=nets.samples(model, 6))
    secret = hidden_words(split.hidden, module)
    with Session(
        plan, modules={split.node: module}, record_payloads=True,
        on_clip="ignore",
    ) as session:  # fmt: skip
        result = session.run(nets.samples(model, 3, seed=2))
    payloads = [entry.payload for entry in result.transcript.entries]
    places = [
        ("plan", plan.to_bytes()),
        ("claims", str(plan.claims).encode()),
        ("report", json.dumps(result.report.to_dict(), default=str).encode()),
        ("outer model", model_bytes(split.outer)),
        *((f"message {at}", payload.tobytes()) for at, payload in enumerate(payloads)),
    ]
    assert len(payloads) > 0 or outer == "enclave"
    assert leaks(secret, places) == []
    # The model that is not split has them, and so does a plan that hides nothing.
    assert leaks(secret, [("model", model.SerializeToString())]) != []


# ---- core dumps


ABORTS = """
import os, sys
kept = open("secret", "rb").read()
os.remove("secret")
if sys.argv[1] == "isolated":
    from cloister.trusted.engines import sandbox
    # What is left is that the process is not dumpable.
    sandbox.resource.setrlimit = lambda which, limits: None
    sandbox.isolate(1 << 30)
os.abort()
"""


@pytest.mark.parametrize("how", ["isolated", "plain"])
def test_core_dumps_would_be_found(tmp_path, how):
    """Without the settings of an engine the weights are in one."""
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        pytest.skip("this machine sends core dumps elsewhere")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine writes none")
    secret = planted(4 * 64)
    (tmp_path / "secret").write_bytes(secret)
    command = [sys.executable, "-P", "-c", ABORTS, how]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=_with_cores, check=False)
    assert done.returncode == -signal.SIGABRT
    assert bool(leaks(secret, files(tmp_path))) == (how == "plain")
