"""Exit codes and streams of the command, and the verbs that run as processes."""

import json
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cloister.cli.main import main
from cloister.errors import VerificationError
from cloister.trusted.session import Session

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-m", "cloister"]


def test_a_wrong_answer_has_its_own_exit_code(refused, model_file, pictures, monkeypatch):
    def lie(*_, **__):
        raise VerificationError("node 'Conv_0': the worker's answer is wrong")

    monkeypatch.setattr(Session, "run", lie)
    message = refused("run", model_file, pictures[0], code=3)
    assert message == "error: node 'Conv_0': the worker's answer is wrong"


def test_interrupt(cloister, model_file, pictures, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupt)
    ran = cloister("run", model_file, pictures[0])
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_full_disk(refused, model_file, pictures, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "out.npz")

    monkeypatch.setattr(np, "savez", full)
    output = tmp_path / "out.npz"
    message = refused("run", model_file, pictures[0], "--out", output)
    assert message == "error: out.npz: No space left on device"


def test_an_unforeseen_exception_is_one_line(cloister, model_file, pictures, monkeypatch, capsys):
    def fault(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(Session, "run", fault)
    given = ("run", model_file, pictures[0])
    ran = cloister(*given)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ZeroDivisionError: division by zero; this is a fault of")
    assert "CLOISTER_TRACEBACK=1" in ran.err
    monkeypatch.setenv("CLOISTER_TRACEBACK", "1")
    assert main([str(argument) for argument in given]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "in fault" in shown
    assert shown.splitlines()[-1].startswith("error: ZeroDivisionError")


def test_reader_of_a_pipe_leaves(model_file):
    with subprocess.Popen(
        [*COMMAND, "inspect", str(model_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


@contextmanager
def listening(*command):
    """A worker's process and its address."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", *command, "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            ready = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:[1-9]\d*", ready)
            assert found, ready
            yield process, found[0]
        finally:
            process.kill()


@pytest.fixture
def worker():
    with listening("cloister", "worker", "serve") as started:
        yield started


@pytest.mark.parametrize("lie", ["flip-one", "swap-channels", "shift-31"])
def test_a_worker_that_lies_is_refused(refused, model_file, pictures, lie):
    with listening("cloister.worker", "--lie", lie) as (_, address):
        message = refused("run", model_file, "--worker", address, "--json", *pictures, code=3)
    assert "the worker's answer is wrong; nothing was released" in message


def test_a_worker_that_hangs_times_out(refused, model_file, pictures):
    with listening("cloister.worker", "--lie", "hang") as (_, address):
        message = refused("run", model_file, "--worker", address, "--timeout", 1, pictures[0])
    assert address in message


def test_worker_serves_runs_and_stops_cleanly(cloister, model_file, pictures, worker):
    process, address = worker
    run = ("run", model_file, "--json", *pictures)
    remote = cloister(*run, "--worker", address)
    assert remote.code == 0, remote
    found = json.loads(remote.out)
    assert found["report"]["bytes_to_worker"] == 3 * 4 * (3 * 8 * 6 + 4 * 4 * 3)
    local = json.loads(cloister(*run).out)
    assert [o["values"] for o in found["outputs"]] == [o["values"] for o in local["outputs"]]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) in (0, 130)
    assert "Traceback" not in process.stderr.read()


def test_a_lone_worker_that_dies_is_named(refused, model_file, pictures, worker):
    process, address = worker
    process.kill()
    process.wait()
    message = refused("run", model_file, "--worker", address, "--timeout", 3, pictures[0])
    assert address in message


HOOK = """
import os, runpy, signal, sys
wanted, handler = sys.argv[1:]
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, getattr(signal, handler))
sys.meta_path.insert(0, Interrupted())
sys.argv[1:] = ["--version"]
runpy.run_module("cloister", run_name="__main__")
"""


def loaded_with_interrupt(module, handler):
    return subprocess.run(
        [sys.executable, "-P", "-c", HOOK, module, handler], capture_output=True, text=True
    )


@pytest.mark.parametrize("module", [
    "cloister.cli.main", "cloister.cli.model_verbs", "typer", "numpy", "onnx",
    "cloister.cli.train_verbs",
])  # fmt: skip
def test_an_interrupt_while_the_command_is_loaded(module):
    ended = loaded_with_interrupt(module, "default_int_handler")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_an_interrupt_that_is_ignored_stays_ignored():
    ended = loaded_with_interrupt("cloister.cli.model_verbs", "SIG_IGN")
    assert ended.returncode == 0
    assert ended.stdout.startswith("cloister ")


def test_the_installed_command_is_the_one_that_is_tested():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"cloister": "cloister.cli.command:run"}
