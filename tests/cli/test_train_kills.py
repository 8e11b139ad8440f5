"""kill -9 of the training server, the authority, and both, through the command line.

A control run is never disturbed; it works on a copy of the same authority and file. The other run
is killed at stated steps, resumed, and must end at the same bits, with the same on record. What is
killed are processes; runs that nobody kills use the command line in this process, which has loaded
PyTorch already.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cli.test_authority import serving
from cloister.authority.request_log import read_releases
from cloister.base import files

torch = pytest.importorskip("torch")
sklearn_datasets = pytest.importorskip("sklearn.datasets")

BATCH, EVERY, EPOCHS = 16, 3, 2
TRAINED, TESTED = 240, 80
HIDDEN, DIM = 8, 64
CONSENT = ("--allow-unbounded-leakage",)
PAPER = ("--privacy", "paper")

# The user's model. Its gate holds the run at stated steps, so that where a test kills is no chance;
# every sample has a gradient, which a dead ReLU might take away.
MODEL = """
import os, time
from pathlib import Path
from torch import nn

class Gate(nn.Module):
    calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if str(self.calls) in os.environ.get("GATE_AT", "").split():
                gate = Path(os.environ["GATE"]) / str(self.calls)
                gate.touch()
                while gate.exists():
                    time.sleep(0.005)
        return x

def build(shape, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 8), Gate(), nn.Tanh(),
        nn.Dropout(0.1), nn.Linear(8, classes),
    )
"""


def process(*arguments, program=("-m", "cloister"), **environment):
    """A command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", *program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(running):
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    return out


@dataclass
class Site:
    """A folder with an authority, a data set, a model and a run; `cloister` is of this process."""

    folder: Path
    cloister: object
    terms: tuple

    @property
    def authority(self):
        return self.folder / "authority"

    def reach(self, url, role):
        public = self.authority / "authority.pub"
        token = f"@{self.folder / role}.token"
        return ("--authority", url, "--pin", public, "--token", token)

    def train(self, url, *more, role="server"):
        return (
            "train", self.folder / "digits.cloister", *self.reach(url, role), *self.terms,
            "--model", self.folder / "net.py", "--epochs", EPOCHS, "--batch", BATCH, "--checkpoint",
            self.folder / "run", "--checkpoint-every", EVERY, "--release-log",
            self.folder / "releases", "--json", *more,
        )  # fmt: skip

    def spent(self):
        """The ledger's columns, by sample."""
        ran = self.cloister("authority", "budget", self.authority, "--json", "--samples")
        [book] = json.loads(ran.out)
        return book["rank_allowed"], {k: np.array(v) for k, v in book["by_sample"].items()}

    def state(self):
        return torch.load(self.folder / "run" / "checkpoint.pt", weights_only=True)

    def position(self):
        found = self.state()["position"]
        return found["epoch"], found["step"]

    def copy(self, folder):
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


@pytest.fixture
def site(tmp_path, cloister):
    """Makes places with the digits of two clients, each encrypted by a process of its own."""

    def make(*options, terms=()):
        made = Site(tmp_path / "site", cloister, terms)
        made.folder.mkdir()
        (made.folder / "net.py").write_text(MODEL)
        assert cloister("authority", "init", made.authority).code == 0
        for role in ("client", "server", "trusted"):
            token = cloister("authority", "token", made.authority, "--role", role).out
            files.create(made.folder / f"{role}.token", token.encode(), private=True)
        digits = sklearn_datasets.load_digits()
        with serving(made.authority) as (url, authority):
            for split, rows in (
                ("train", slice(0, TRAINED)), ("test", slice(TRAINED, TRAINED + TESTED)),
            ):  # fmt: skip
                data = made.folder / f"{split}.npz"
                np.savez(data, x=digits.images[rows, :, :, None] / 16, y=digits.target[rows])
                done(process(
                    "data", "encrypt", data, *made.reach(url, "client"), "--out",
                    made.folder / "digits.cloister", "--range", "0,1", "--split", split, *terms,
                    *options,
                ))  # fmt: skip
            authority.send_signal(signal.SIGTERM)
            assert authority.wait(20) == 0
        return made

    return make


@pytest.fixture
def gates(tmp_path, monkeypatch):
    """The folder where a model's gate shows that it is reached, and waits to be opened."""
    folder = tmp_path / "gates"
    folder.mkdir()
    monkeypatch.setenv("GATE", str(folder))
    return folder


def wait_for(condition, running):
    deadline = time.monotonic() + 60
    while not condition():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(running):
    running.send_signal(signal.SIGKILL)
    assert running.wait(20) == -signal.SIGKILL


@contextmanager
def killed_at(gate, authority, monkeypatch):
    """The authority goes for good while a run in this process waits at its gate."""

    def goes():
        wait_for(gate.exists, authority)
        kill(authority)
        gate.unlink()

    thread = threading.Thread(target=goes)
    monkeypatch.setenv("GATE_AT", gate.name)
    thread.start()
    yield
    thread.join()
    monkeypatch.delenv("GATE_AT")


def figures(ran):
    """What a run printed, without what depends on the clock."""
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in found["epochs"]]


def releases(site):
    """Every answer that the server held: which function of which samples, and its values."""
    return {
        (r.kind, r.ids.tobytes(), r.functional.tobytes(), r.values.tobytes())
        for r in read_releases(site.folder / "releases", tail_ok=True)
    }


def on_record(site, *, whole, half):
    """Whether the ledger has `whole` steps' samples in full, those of `half` more by the forward
    pass alone, and nobody else's."""
    allowed, spent = site.spent()
    ranks = np.bincount(spent["rank"], minlength=DIM + 1)
    assert allowed == DIM
    assert (ranks[DIM], ranks[HIDDEN]) == (whole * BATCH, half * BATCH)
    assert ranks[0] == TRAINED + TESTED - (whole + half) * BATCH


def test_kill_9_of_training_authority_and_both(site, cloister, tmp_path, gates, monkeypatch):
    """In the paper's mode every step asks for keys, and each sample's account shows how far the
    training has come: the forward pass costs a rank of 8, the gradient of a dense layer the rest.
    """
    site = site(*PAPER, terms=CONSENT)
    control = site.copy(tmp_path / "control")
    with serving(control.authority) as (url, _):
        undisturbed = figures(cloister(*control.train(url)))
    with serving(site.authority) as (url, authority):
        listen = url.removeprefix("https://")
        running = process(*site.train(url), GATE_AT="4 8")
        with running:
            # Step 4 has its forward key. Its gradient's is asked for when nobody answers.
            wait_for((gates / "4").exists, running)
            kill(authority)
            on_record(site, whole=3, half=1)
            (gates / "4").unlink()
            with serving(site.authority, listen) as (_, authority):
                # The training has waited for the authority, and lost nothing.
                wait_for((gates / "8").exists, running)
                kill(running)
                on_record(site, whole=7, half=1)
                assert site.position() == (0, 6)
                # It begins anew at step 7, and asks again for what it had.
                running = process(*site.train(url), GATE_AT="5")
                with running:
                    (gates / "8").unlink()
                    wait_for((gates / "5").exists, running)
                    kill(running)
                    kill(authority)
    (gates / "5").unlink()
    on_record(site, whole=10, half=1)
    assert site.position() == (0, 9)

    # An authority that stays away ends the run, which says where it is kept.
    with (
        serving(site.authority, listen) as (url, authority),
        killed_at(gates / "2", authority, monkeypatch),
    ):
        ran = cloister(*site.train(url, "--patience", 0.2))
    assert ran.code == 2
    assert f"{url}: cannot be reached" in ran.err
    assert f"the run is kept in {site.folder / 'run'}: the same command goes on" in ran.err
    assert ran.err.count("\n") == 1
    # Step 10 was done; so the failing step 11 is the next, without waiting for a multiple of 3.
    assert site.position() == (0, 10)

    with serving(site.authority, listen) as (url, _):
        assert figures(cloister(*site.train(url))) == undisturbed
        before = site.spent()[1]
        # Whoever trains it again spends nothing.
        shutil.rmtree(site.folder / "run")
        assert figures(cloister(*site.train(url))) == undisturbed
    same_state(site, control)
    for name, column in site.spent()[1].items():
        np.testing.assert_array_equal(column, control.spent()[1][name], err_msg=name)
        np.testing.assert_array_equal(column, before[name], err_msg=name)
    # Test samples: as many functions as epochs have evaluated, not one more for all the kills.
    assert np.bincount(before["rank"])[EPOCHS * HIDDEN] == TESTED
    assert releases(site) == releases(control)


def same_state(one, two):
    left, right = one.state(), two.state()
    assert left["run"] == right["run"]
    assert left["position"] | {"seconds": 0} == right["position"] | {"seconds": 0}
    assert left["model"].keys() == right["model"].keys()
    for name, value in left["model"].items():
        assert torch.equal(value, right["model"][name]), name
    for index, state in left["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, right["optimizer"]["state"][index][name])
    assert torch.equal(left["generator"], right["generator"])


# Ends itself, as kill -9 would, at a stated sync of a file.
AT_SYNC = """
import os, sys
from cloister.cli.main import main
from cloister.training import frozen

frozen.CHUNK, left, real = 64, int(sys.argv[1]), os.fsync

def fsync(descriptor):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    real(descriptor)

os.fsync = fsync
main(sys.argv[2:])
"""


def test_kill_9_of_a_frozen_run(site, cloister, tmp_path, gates, monkeypatch):
    """Within a budget, which is spent once, in pieces: killed while samples are projected and in an
    epoch, then left without an authority, it ends as if nothing had happened."""
    site = site("--privacy", "budget=16")
    control = site.copy(tmp_path / "control")
    with serving(control.authority) as (url, _):
        undisturbed = figures(cloister(*control.train(url)))
    with serving(site.authority) as (url, authority):
        # Three syncs for each 64 samples: this is within the second 64.
        with process(4, *site.train(url), program=("-c", AT_SYNC)) as running:
            assert running.wait(60) == -signal.SIGKILL
        kept = json.loads((site.folder / "run" / "features.json").read_text())
        assert kept["done"] == 64
        allowed, spent = site.spent()
        assert allowed == 16
        assert np.bincount(spent["rank"]).tolist() == [TRAINED + TESTED - 128, *[0] * 15, 128]
        with process(*site.train(url), GATE_AT="20") as running:
            wait_for((gates / "20").exists, running)
            kill(running)
        (gates / "20").unlink()
        assert site.position() == (1, 3)
        with killed_at(gates / "2", authority, monkeypatch):
            ran = cloister(*site.train(url, "--patience", 0.2))
    assert figures(ran) == undisturbed
    assert f"note: the ledger cannot be shown: {url}: cannot be reached" in ran.err
    same_state(site, control)
    for name, column in site.spent()[1].items():
        np.testing.assert_array_equal(column, control.spent()[1][name], err_msg=name)
    assert set(column_of(site, "rank")) == {16}
    assert set(column_of(site, "bits")) == {16 * 8}


def column_of(site, name):
    return site.spent()[1][name].tolist()
