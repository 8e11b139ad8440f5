"""`cloister train` against an authority and a ciphertext server of its own."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest

pytest.importorskip("torch")

from cloister.authority import service, tokens
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.authority.request_log import read_releases
from cloister.authority.requests import Forward, Labels
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap
from cloister.training import ciphertext_service
from cloister.training.ciphertexts import LocalCiphertextServer
from training.doubles import blobs
from training.same_draws import same_draws

SHAPE = (6, 5, 1)


class Place:
    """A served authority, tokens of every role, and data sets by mode."""

    def __init__(self, folder, cloister):
        self.folder, self.cloister = folder, cloister
        self.authority = Authority.create(folder / "authority", rng=SystemRandom())
        self.service = service.serve(folder / "authority", self.authority, listen="127.0.0.1:0")
        self.tokens = {
            role: tokens.issue(folder / "authority" / FILE, role, name="", rng=SystemRandom())
            for role in ("client", "server", "trusted")
        }

    def close(self):
        self.service.close()
        self.authority.close()

    def reach(self, role):
        public = self.folder / "authority" / "authority.pub"
        return (
            "--authority", self.service.url, "--pin", public,
            "--token", self.tokens[role],
        )  # fmt: skip

    def dataset(self, name, *more):
        x, y, _ = blobs(160, SHAPE)
        np.savez(self.folder / f"{name}.npz", x=x, y=y)
        path = self.folder / f"{name}.cloister"
        done = self.cloister(
            "data", "encrypt", self.folder / f"{name}.npz", *self.reach("client"), "--out", path,
            "--range=-1,1", "--test-fraction", 0.25, *more,
        )  # fmt: skip
        assert done.code == 0, done
        return path

    def unblinded(self, path):
        """What only the authority's keys can tell: the samples and classes of a file."""
        held = EncryptedDataset.open(path)
        ids = np.arange(held.samples, dtype=np.int64)
        eye = np.eye(30, dtype=np.int16).reshape(30, *SHAPE)
        geometry = Geometry((6, 5), 1, (1, 1), 30, (6, 5))
        identity = LinearMap(geometry, eye)
        key = self.authority.ask(Forward(held.name, ids, identity), receiver="trusted")
        x = pads.unblind(pads.forward(identity, held.data(ids)), key).reshape(-1, *SHAPE)
        labels = self.authority.ask(Labels(held.name, ids), receiver="trusted")
        return {"x": x, "y": pads.unblind(held.labels(ids), labels).argmax(1)}


@pytest.fixture
def place(tmp_path, cloister):
    with same_draws(), closing(Place(tmp_path, cloister)) as made:
        yield made


def test_a_frozen_run_and_its_claims(place, cloister, tmp_path):
    data = place.dataset("budgeted")
    log, curve = tmp_path / "log", tmp_path / "curve.svg"
    ran = cloister(
        "train", data, *place.reach("server"), "--epochs", 15, "--batch", 16, "--json",
        "--curve", curve, "--release-log", log, "--checkpoint", tmp_path / "run",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["first_layer"] == "frozen"
    assert found["rank"] == found["spent"]["rank_max"] == 7
    assert found["dim"] == 30
    assert len(found["epochs"]) == 15
    assert found["test_accuracy"] > 0.8
    told = said(found)
    assert told["training server", "a sample's values"]["extent"] == "bounded"
    assert told["training server", "labels"]["extent"] == "everything"
    assert told["authority", "a sample's values"]["extent"] == "nothing"
    assert curve.read_text().count("<circle") == 30
    kinds = [release.kind for release in read_releases(log)]
    assert kinds.count("forward") == 1
    assert set(kinds) == {"labels", "forward"}
    # Going on from the checkpoint costs no key: neither labels nor features change hands twice.
    more = cloister(
        "train", data, *place.reach("server"), "--epochs", 16, "--batch", 16,
        "--checkpoint", tmp_path / "run",
    )  # fmt: skip
    assert more.code == 0, more
    assert "7 fixed linear functions of 30 values" in more.out
    shown = r"^  training server\n    learns  a sample's values +bounded +7 fixed"
    assert re.search(shown, more.out, re.MULTILINE)
    assert "(assuming: it never holds the data set file" in more.out
    assert "rank 7 at most, of 7 allowed and 30 in all" in more.out


def test_numbers_are_trained_and_their_fit_is_shown(place, cloister, refused, tmp_path):
    """Curve, page, checkpoint and audit of a regression by the command."""
    rng = np.random.default_rng(6)
    x = rng.uniform(-1, 1, (160, 8))
    np.savez(tmp_path / "set.npz", x=x, y=x @ rng.normal(size=(8, 2)))
    data, order = tmp_path / "set.cloister", tmp_path / "order.npz"
    ran = cloister(
        "data", "encrypt", tmp_path / "set.npz", *place.reach("client"), "--out", data,
        "--range=-1,1", "--test-fraction", 0.25, "--order", order, "--value-bits", 32,
        "--max-bits", 10**6, "--privacy", "budget=8", "--classes", "pressure,pulse",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert "smallest and largest value of every number" in ran.err
    log, curve, page = tmp_path / "log", tmp_path / "curve.svg", tmp_path / "page.html"
    run = (
        "train", data, *place.reach("server"), "--batch", 16, "--learning-rate", 0.01,
        "--checkpoint", tmp_path / "run",
    )  # fmt: skip
    assert "has numbers to learn; choose mse or l1" in refused(*run, "--loss", "cross-entropy")
    ran = cloister(*run, "--epochs", 40, "--json", "--release-log", log)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["test_accuracy"] is None
    assert all(value > 0.6 for value in found["test_fit"]["r2"])
    assert len(found["epochs"][-1]["train_fit"]["rmse"]) == 2
    assert "as parts of a range" in said(found)["training server", "labels"]["text"]
    # What was measured comes back from the checkpoint.
    ran = cloister(*run, "--epochs", 41, "--curve", curve, "--page", page)
    assert ran.code == 0, ran
    assert re.search("training R2 +encrypted test R2", ran.out)
    assert "root of the mean squared error, in halves of the ranges: 0." in ran.out
    assert curve.read_text().count("<circle") == 82
    assert "encrypted test R2" in curve.read_text()
    assert "R2 by epoch" in page.read_text()
    ran = cloister("audit", "training", log, "--truth", order, "--value-bits", 32)
    assert re.search(r"^labels +recovered ", ran.out, re.MULTILINE), ran


def said(found):
    """What is learned of a run, by role and thing."""
    statements = found["claims"]["statements"]
    return {(one["role"], one["about"]): one for one in statements if one["verb"] == "learns"}


@pytest.mark.parametrize(
    ("mode", "values"), [("paper", "recovered"), ("budgeted", "not recovered")]
)
def test_the_release_log_feeds_the_audit(place, cloister, tmp_path, mode, values):
    """In the paper's mode the attacks succeed; a budgeted run gives away labels, as it says."""
    consent = ["--allow-unbounded-leakage"][: mode == "paper"]
    privacy = ("--privacy", "paper" if mode == "paper" else "strict")
    data, log = place.dataset("attacked", *privacy, *consent), tmp_path / "log"
    ran = cloister(
        "train", data, *place.reach("server"), *consent, "--epochs", 2, "--batch", 8,
        "--release-log", log,
    )  # fmt: skip
    assert ran.code == 0, ran
    np.savez(tmp_path / "truth.npz", **place.unblinded(data))
    noise = ("--value-bits", 32 if mode == "paper" else 8)
    ran = cloister("audit", "training", log, "--truth", tmp_path / "truth.npz", *noise)
    assert re.search(rf"^linear solve +{values} ", ran.out, re.MULTILINE), ran
    assert re.search(r"^labels +recovered ", ran.out, re.MULTILINE), ran


def test_beyond_the_budget_is_refused(place, refused):
    data = place.dataset("budgeted")
    message = refused(
        "train", data, *place.reach("server"), "--first-layer", "trainable", "--epochs", 1
    )
    assert "allowed are 7" in message


def test_the_papers_mode_needs_to_be_asked_for_everywhere(place, cloister, refused):
    budgeted = place.dataset("budgeted")
    data = place.dataset("open", "--privacy", "paper", "--allow-unbounded-leakage")
    reach = place.reach("server")
    asked = ("--allow-unbounded-leakage", "--epochs", 2, "--batch", 16)
    assert "registered in mode 'budgeted'" in refused("train", budgeted, *reach, *asked)
    message = refused("train", data, *reach)
    assert "registered in mode 'paper'" in message
    assert "--allow-unbounded-leakage" in message
    ran = cloister("train", data, *reach, *asked, "--optimizer", "sgd")
    assert ran.code == 0, ran
    assert "every value: no budget" in ran.out
    assert "no bound on the values that the server learns" in ran.err


def test_a_trusted_runtime_and_a_remote_server(place, cloister, refused, tmp_path):
    data = place.dataset("budgeted")
    access = ciphertext_service.init(tmp_path / "host", rng=SystemRandom())
    held = LocalCiphertextServer(EncryptedDataset.open(data))
    server = ciphertext_service.serve(held, folder=tmp_path / "host", listen="127.0.0.1:0")
    try:
        there = ("--unblind-to", "trusted", "--server", server.url, "--access", access)
        results = []
        for where in (there, there[:2], (*there, "--offload-gradients")):
            ran = cloister(
                "train", data, *place.reach("trusted"), *where, "--epochs", 2, "--batch", 16,
                "--json",
            )  # fmt: skip
            assert ran.code == 0, ran
            results.append(json.loads(ran.out))
        losses = [[epoch["loss"] for epoch in result["epochs"]] for result in results]
        assert losses[0] == losses[1] == losses[2]
        assert results[0]["spent"]["rank_max"] == 0, "nothing was given to a server"
        told = [said(result) for result in results]
        host = "ciphertext host"
        assert told[0][host, "a sample's values"]["extent"] == "everything"
        assert (host, "a sample's values") not in told[1]
        assert told[2][host, "labels"]["extent"] == "everything"
        message = refused("train", data, *place.reach("server"), *there)
        assert "trusted" in message
        wrong = json.loads(access.read_text()) | {"token": "0" * 64}
        access.write_text(json.dumps(wrong))
        assert "token" in refused("train", data, *place.reach("trusted"), *there)
    finally:
        server.close()


@pytest.mark.parametrize(("first_layer", "verdict"), [
    ("trainable", "recovered"), ("frozen", "nothing to attack"),
])  # fmt: skip
def test_what_host_and_authority_are_asked_feeds_the_audit(
    place, cloister, tmp_path, first_layer, verdict
):
    """Trained on, the first layer's weights give samples away; a frozen one never changes."""
    data, host, asked = place.dataset("budgeted"), tmp_path / "host.log", tmp_path / "asked.log"
    assert cloister("data", "init", tmp_path / "host").code == 0
    with ciphertexts(tmp_path / "host", data, "--log", host) as server:
        there = ("--unblind-to", "trusted", "--server", server, "--access",
                 tmp_path / "host" / "server.access")  # fmt: skip
        ran = cloister(
            "train", data, *place.reach("trusted"), *there, "--first-layer", first_layer,
            "--optimizer", "sgd", "--epochs", 1, "--batch", 1, "--request-log", asked,
            "--release-log", tmp_path / "empty.log",
        )  # fmt: skip
        assert ran.code == 0, ran
    np.savez(tmp_path / "truth.npz", **place.unblinded(data))
    for log in (host, asked):
        assert log.stat().st_mode & 0o777 == 0o600
        ran = cloister("audit", "training", log, "--truth", tmp_path / "truth.npz")
        assert f"verdict: {verdict}. " in ran.out, ran
    ran = cloister("audit", "training", tmp_path / "empty.log")
    assert "verdict: nothing to attack. Nothing was released to the training server" in ran.out
    assert "--request-log" in ran.out


@contextmanager
def ciphertexts(*arguments):
    """`cloister ciphertexts serve` as a process of its own; gives its address."""
    command = [sys.executable, "-P", "-m", "cloister", "data", "serve", *map(str, arguments)]
    command += ["--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        yield running.stdout.readline().split()[-1]
        running.terminate()


def test_noise_is_reported(place, cloister, refused):
    data = place.dataset("budgeted")
    noisy = ("--noise-sigma", 4, "--epochs", 1)
    ran = cloister(
        "train", data, *place.reach("trusted"), "--unblind-to", "trusted", *noisy, "--json"
    )
    assert ran.code == 0, ran
    claim = said(json.loads(ran.out))["holder of the model", "a sample's values"]
    assert claim["extent"] == "bounded"
    assert "differentially private" in claim["text"]
    assert "unblind_to='trusted'" in refused("train", data, *place.reach("server"), *noisy)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--curve", "curve.gif"), ".svg or .png"),
    (("--server", "https://127.0.0.1:1"), "--access"),
    (("--model", "resnet"), "choose lenet5, mlp"),
    (("--model", "lenet5"), "12x12"),
    (("--rank", "8"), "budget allows 1 to 7"),
])  # fmt: skip
def test_options_that_cannot_be_met(place, refused, arguments, message):
    data = place.dataset("budgeted")
    assert message in refused("train", data, *place.reach("server"), *arguments)


def test_an_authority_that_is_away(place, refused):
    data = place.dataset("budgeted")
    reach = list(place.reach("server"))
    reach[1] = "https://127.0.0.1:9"
    assert "127.0.0.1:9" in refused("train", data, *reach, "--patience", 0)


def test_an_authority_that_comes_back(place, cloister):
    """It is away in the middle of an epoch: the run waits, and ends as if nothing had happened."""
    data = place.dataset("open", "--privacy", "paper", "--allow-unbounded-leakage")
    command = (
        "train", data, *place.reach("server"), "--allow-unbounded-leakage",
        "--epochs", 4, "--batch", 8, "--json",
    )  # fmt: skip
    listen = place.service.url.removeprefix("https://")
    undisturbed = json.loads(cloister(*command).out)
    folder, outages = place.folder / "authority", []

    def interrupt():
        before = place.authority.summary("open").counts["requests"]
        while place.authority.summary("open").counts["requests"] < before + 20:
            time.sleep(0.01)
        place.service.close()
        outages.append(time.monotonic())
        time.sleep(1.0)
        place.service = service.serve(folder, place.authority, listen=listen)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ran = cloister(*command)
    thread.join()
    assert ran.code == 0, ran
    assert outages
    found = json.loads(ran.out)
    losses = [[epoch["loss"] for epoch in run["epochs"]] for run in (undisturbed, found)]
    assert losses[0] == losses[1]
