"""Processes start from one place, and run nothing that lies about."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import cloister
import cloister.base._native as native
from cloister.wire import process
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.messages import TensorSpec
from cloister.wire.process import environment, python, run, start

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CLOISTER = str(Path(sys.executable).parent / "cloister")
PLANTED = (
    "numpy", "onnx", "onnxruntime", "grpc", "cloister", "jaxtyping", "grp", "random", "struct",
    "socket", "mmap", "multiprocessing", "resource", "typing_extensions", "_native",
    "sitecustomize", "usercustomize", "torch", "google", "argparse", "queue", "tempfile",
)  # fmt: skip


# ---- one place


def test_nothing_else_starts_processes():
    """Whoever needs a process asks wire/process.py, which has the safe settings."""
    assert len(SOURCES) > 100
    starters = {
        "Popen", "check_call", "check_output", "getoutput", "getstatusoutput", "system", "popen",
        "posix_spawn", "posix_spawnp", "fork", "forkpty", "get_context", "Process", "Pool",
        "ProcessPoolExecutor", "create_subprocess_exec", "create_subprocess_shell",
    }  # fmt: skip
    found = []
    for path in SOURCES:
        if path == Path(process.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node.func)
            name = text.rpartition(".")[2]
            if name in starters or text == "subprocess.run" or re.match(r"os\.(exec|spawn)", text):
                found.append(f"{path.name}:{node.lineno} {text}")
        if "sys.executable" in path.read_text():
            found.append(f"{path.name}: sys.executable")
    assert found == []


def test_tests_start_python_on_a_safe_path_too():
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path == Path(__file__):
            continue
        for place in re.finditer(r"sys\.executable([^\n]*)", path.read_text()):
            if not re.match(r'[)}]*(, "-P"| -P|\)? -P)', place[1]):
                found.append(f"{path.name}: {place[0]}")
    assert found == []


def test_python_is_told_to_look_nowhere_special():
    assert python("-m", "cloister.worker") == [sys.executable, "-P", "-m", "cloister.worker"]


# ---- what a process gets


def test_the_environment_is_what_is_needed(monkeypatch, tmp_path):
    given = {
        "SECRET_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "LD_PRELOAD": "./evil.so",
        "PYTHONSTARTUP": "evil.py", "PYTHONHOME": "evil", "ORT_LOAD_CONFIG_FROM_MODEL": "1",
        "PYTHONPATH": f":.:{tmp_path}::lib:../lib:{ROOT}:", "LD_LIBRARY_PATH": ":lib",
        "PATH": f".::bin:{tmp_path}", "HOME": "/home/somebody", "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    monkeypatch.setattr(os, "environ", given)
    assert environment(MORE="1") == {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "PATH": str(tmp_path),
        "HOME": "/home/somebody",
        "OMP_NUM_THREADS": "3",
        "PYTHONSAFEPATH": "1",
        "MORE": "1",
    }


def test_a_process_starts_in_the_root_folder_without_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(os.getcwd(), sys.flags.safe_path, sys.stdin.read() == '')"
    assert run(python("-c", code)).stdout.split() == [b"/", b"True", b"True"]
    # Its own processes are as safe.
    code = (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-c', 'import sys; print(sys.flags.safe_path)'])"
    )
    assert run(python("-c", code)).stdout == b"True\n"


def test_a_process_that_is_run_has_more_in_its_environment():
    code = "import os; print(os.environ['CLOISTER_OF_A_TEST'])"
    done = run(python("-c", code), more={"CLOISTER_OF_A_TEST": "given"})
    assert done.stdout == b"given\n"


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        run(python("-c", "import time; time.sleep(600)"), timeout_s=0.5)
    with start(python("-c", "import time; time.sleep(600)")) as running:
        running.kill()


# ---- folders with Python files in them


@pytest.fixture
def planted(tmp_path):
    """A folder as it comes from the net: a model, a picture, and modules that leave a mark."""
    folder, mark = tmp_path / "downloads", tmp_path / "EXECUTED"
    folder.mkdir()
    for name in PLANTED:
        code = f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise ImportError({name!r})\n"
        (folder / f"{name}.py").write_text(code)
    shutil.copy(ROOT / "src/cloister/examples/digits.onnx", folder)
    shutil.copy(next((ROOT / "examples/digits").glob("*.png")), folder / "a.png")
    return folder, mark


VERBS = {
    "run": "run digits.onnx a.png",
    "demo": "demo inference --json",
    "demo alone": "demo",
    "bench inference": "bench inference digits.onnx --repeats 1 --json",
    "demo training": "demo training --json",
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_verb_runs_what_lies_in_the_current_folder(planted, verb):
    folder, mark = planted
    if "training" in verb:
        for module in ("torch", "sklearn"):
            pytest.importorskip(module)
    done = subprocess.run([CLOISTER, *verb.split()], cwd=folder, capture_output=True, text=True)
    assert not mark.exists(), mark.read_text()
    assert done.returncode == 0, done.stderr


def test_neither_does_a_server_when_it_starts_the_process_of_a_segment(planted):
    folder, mark = planted
    node = helper.make_node("Add", ["x", "x"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert isinstance(model, onnx.ModelProto)
    command = [CLOISTER, "worker", "serve", "--listen", "127.0.0.1:0", "--memory-gib", "2"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            link = RpcLink(server.stdout.readline().split()[-1])
            link.load_segment(1, model.SerializeToString())
            x = np.ones(2, np.float32)
            link.submit(1, 1, (x,), (TensorSpec.of(x),))
            (reply,) = link.receive(1, timeout_s=60)
            np.testing.assert_array_equal(reply.expose_unchecked(), 2 * x)
            link.close()
        finally:
            server.terminate()
    assert not mark.exists(), mark.read_text()


def test_an_installation_by_its_path_works(tmp_path):
    """Found through PYTHONPATH alone, with what it needs, by an interpreter without packages."""
    package = tmp_path / "cloister"
    shutil.copytree(
        Path(cloister.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    module = Path(native.__file__)
    if not (package / "base" / module.name).exists():
        shutil.copy(module, package / "base")
    code = textwrap.dedent(
        """
        import cloister
        from cloister.wire.shm.shm_link import start_local_worker
        link = start_local_worker()
        with open(f"/proc/{link.pid}/environ", "rb") as file:
            print(cloister.__file__, file.read().count(b"PYTHONPATH="))
        link.close()
        """
    )
    bare = getattr(sys, "_base_executable", sys.executable)
    places = os.pathsep.join([str(tmp_path), sysconfig.get_paths()["purelib"]])
    done = subprocess.run(
        [bare, "-P", "-S", "-c", code],
        env={"PYTHONPATH": places, "PATH": os.environ["PATH"]},
        cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(package / "__init__.py"), "1"]
