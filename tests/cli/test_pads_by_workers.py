import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cloister.worker.byzantine import Lie
from cloister.worker.serve import start_server

ONE_PARTY = ("--insecure-one-party",)
"""Tests have one machine."""


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        servers.append(start_server("127.0.0.1:0", **options))
        return servers[-1].address

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def store(tmp_path):
    return (tmp_path / "pads", "--key", tmp_path / "key")


def ready(cloister, store):
    return json.loads(cloister("pads", "status", *store, "--json").out)["ready"]


def test_two_workers_make_the_pads_of_a_run(cloister, model_file, pictures, serve, store):
    workers = (*ONE_PARTY, "--worker", serve(), "--worker", serve())
    made = cloister(
        "pads", "make", model_file, "--count", 3, *store, *workers,
        "--calibration", pictures[0].parent,
    )  # fmt: skip
    assert made.code == 0, made
    assert "3 pad sets made, 3 ready" in made.out
    assert "one machine" in made.err
    assert "traffic" in made.err
    pads = ("--pads", store[0], "--key", store[2])
    ran = cloister("run", model_file, *pads, "--json", *pictures)
    plain = cloister(
        "run", model_file, "--json", *pictures, "--calibration", pictures[0].parent
    )  # fmt: skip
    got, expected = (json.loads(r.out) for r in (ran, plain))
    assert got["report"]["pads_from"] == (
        "store, made by workers of one party, who can compute every pad"
    )
    assert [o["values"] for o in got["outputs"]] == [o["values"] for o in expected["outputs"]]


def test_one_worker_or_one_twice_is_refused(refused, model_file, store):
    make = ("pads", "make", model_file, "--count", 1, *store)
    assert "alone would see the whole pads" in refused(*make, "--worker", "10.0.0.1:7000")
    for other in ("localhost:7000", "127.0.0.2:7000", "0.0.0.0:7000", "127.0.0.1:7001"):
        message = refused(*make, "--worker", "127.0.0.1:7000", "--worker", other)
        assert "two shares" in message and "--insecure-one-party" in message
    assert not store[2].exists()
    assert "--worker" in refused(*make, *ONE_PARTY)
    assert "HOST:PORT" in refused(*make, "--worker", "a", "--worker", "b")


def test_a_lie_stores_nothing(cloister, model_file, pictures, serve, store):
    workers = (*ONE_PARTY, "--worker", serve(), "--worker", serve(insecure_lie=Lie.FLIP_ONE))
    made = cloister(
        "pads", "make", model_file, "--count", 2, *store, *workers,
        "--calibration", pictures[0].parent,
    )  # fmt: skip
    assert made.code != 0
    assert "the worker's answer is wrong" in made.err
    assert ready(cloister, store) == 0


@pytest.mark.parametrize("rate", ["100%", "50%", "1000000/h"])
def test_rates(cloister, model_file, pictures, store, rate):
    made = cloister(
        "pads", "make", model_file, "--count", 2, *store, "--rate", rate,
        "--calibration", pictures[0].parent,
    )  # fmt: skip
    assert made.code == 0, made
    assert ready(cloister, store) == 2


@pytest.mark.parametrize("rate", ["0%", "101%", "0/h", "fast", "10", "-1%"])
def test_rates_that_are_none(refused, model_file, store, rate):
    message = refused("pads", "make", model_file, "--count", 1, *store, f"--rate={rate}")
    assert "rate" in message


def test_filling_goes_on_after_kill_9(cloister, model_file, pictures, serve, store):
    make = [
        "pads", "make", model_file, *store, *ONE_PARTY, "--worker", serve(), "--worker", serve(),
        "--calibration", pictures[0].parent,
    ]  # fmt: skip
    command = [sys.executable, "-P", "-m", "cloister", *map(str, make), "--count", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(store[0].glob("*.pad")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = ready(cloister, store)
    assert before >= 1
    made = cloister(*make, "--count", before + 2)
    assert made.code == 0, made
    assert f"2 pad sets made, {before + 2} ready" in made.out
