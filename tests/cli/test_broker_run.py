"""`cloister run --broker`: the vendor's broker releases the key, and its ledger says so."""

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import BundleKey, create_keys
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.examples.digits_demo import model_file
from trusted.runtimes import Played

DIGITS = Path(__file__).parents[2] / "examples/digits"
BUNDLE = ("digits.bundle", "digits", "--vendor", "vendor/vendor.pub")
TICKET = ("--ticket", "acme.lic", "--meter", "meter", "--insecure-simulated", "machine.pem")
PROCESS = (sys.executable, "-P", "-m", "cloister")


KEEPERS = ("vendor", "broker")
"""Folders that have keys: those of the vendor."""


def content_and_bundle_key():
    content = Path("vendor/content.key").read_bytes()
    bundle_id = SealedBundle.show(Path("digits.bundle")).bundle_id
    return content, BundleKey.derive(content, bundle_id=bundle_id).key


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A vendor's keys, bundle and broker, and the key of a machine that is played."""
    pytest.importorskip("ziglang")
    from cloister.cli.main import main

    folder = tmp_path_factory.mktemp("vendor")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with model_file() as path:
            shutil.copy(path, "digits.onnx")
        shutil.copytree(DIGITS, "digits")
        create_keys(Path("vendor"), rng=SystemRandom())
        Played(folder).save_policy("policy.toml")
        for command in (
            "plan digits.onnx --policy enclave --last 2 --out vendor/digits.plan",
            *(f"bundle seal vendor/digits.module --plan vendor/digits.plan --key "
              f"vendor/content.key --signer vendor/vendor.key --out {name}.bundle"
              for name in ("digits", "another")),
            "broker init broker --bundle digits.bundle --bundle another.bundle --key "
            "vendor/content.key --vendor vendor/vendor.pub --policy policy.toml",
        ):  # fmt: skip
            assert main(command.split()) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch, cloister):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    issue(cloister)
    return tmp_path / "here"


def issue(cloister, name="acme.lic", *more):
    certificate = re.search(r'"certificate": "(\w+)"', cloister("broker", "ledger", "broker",
                                                               "--json").out)[1]  # fmt: skip
    ran = cloister(
        "license", "issue", name, "--bundle", "digits.bundle", "--signer", "vendor/vendor.key",
        "--license", "acme-7", "--not-after", "2999-12-31T00:00Z", "--outputs", "label", "--quota",
        15, "--broker", certificate, *more,
    )  # fmt: skip
    assert ran.code == 0, ran


parsed = json.loads


@contextmanager
def serving(policy=None):
    if policy is not None:
        Path("broker/policy.toml").write_text(policy)
    command = [*PROCESS, "broker", "serve", "broker", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def run(url, *more, bundle=BUNDLE, ticket=TICKET, code=0, json=True):
    """In a process of its own: it starts itself anew, and proves how."""
    command = [*PROCESS, "run", *bundle, *ticket, "--broker", url, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    if code:
        return done.stderr.splitlines()[-1]
    return parsed(done.stdout) if json else done.stdout


def releases(cloister):
    found = json.loads(cloister("broker", "ledger", "broker", "--json").out)
    return [one for one in found["entries"] if one["kind"] == "release"], found


def test_a_run_by_a_broker_gives_the_models_answers_and_is_in_the_ledger(cloister, folder):
    plain = json.loads(cloister("run", *BUNDLE, "--key", "vendor/content.key", "--json").out)
    with serving() as url:
        found = run(url, "--json")
        for bought, free in zip(found["outputs"], plain["outputs"], strict=True):
            (label,), (scores,) = bought["values"].values(), free["values"].values()
            assert label == np.argmax(scores)
        (entry,), ledger = releases(cloister)
        assert {"entry": entry["number"], "digest": entry["digest"]} == found["release"]
        assert (entry["license"], entry["format"]) == ("acme-7", "insecure-simulated")
        assert [one["count"] for one in ledger["counters"]] == [10]
        assert Path(found["receipt"]).exists()
        kept = cloister("broker", "ledger", "broker", "--entry", found["release"]["digest"])
        assert kept.code == 0
        assert found["outputs_left"] == 5
        # The quota is 15, and 10 inputs are asked for again.
        assert "5 of its 15 outputs are left, and 10 are asked for" in run(url, code=2)
    left = [path for path in folder.glob("**/*") if path.is_file()]
    outside = [path for path in left if path.relative_to(folder).parts[0] not in KEEPERS]
    content, key = content_and_bundle_key()
    assert {path.name for path in outside} > {"meter.id", "receipts.ledger", "digits.bundle"}
    assert not [path for path in outside if content in (data := path.read_bytes()) or key in data]
    assert [path for path in left if key in path.read_bytes()]


def test_the_folder_of_another_tickets_meter_is_refused_before_the_broker_counts_it(
    cloister, folder
):
    issue(cloister, "other.lic", "--serials", "16-30")
    with serving() as url:
        told = run(url, bundle=("digits.bundle", "digits/0.png", *BUNDLE[2:]), code=0, json=False)
        assert "ticket acme-7: 14 of 15 outputs are left" in told
        other = (*TICKET[:1], "other.lic", *TICKET[2:])
        assert "meter: is the meter of ticket " in run(url, ticket=other, code=2)
        run(url, "--json", ticket=(*other[:3], "meter of other", *other[4:]))


def test_a_revoked_licence_runs_no_more(cloister, folder):
    with serving() as url:
        ran = cloister("broker", "revoke", "broker", "acme-7")
        assert ran.code == 0
        assert "no key was released for licence acme-7 so far" in ran.err
        assert "licence acme-7: the vendor has revoked it" in run(url, code=2)
    assert releases(cloister)[1]["refusals"] == {"revoked": 1}


def test_refusals_are_shown_as_text_that_does_not_steer_the_terminal(cloister, folder):
    with contextlib.closing(sqlite3.connect("broker/releases.sqlite")) as ledger:
        ledger.execute("INSERT INTO refusals VALUES (?, 1)", ("\x1b[2J",))
        ledger.commit()
    shown = cloister("broker", "ledger", "broker")
    assert shown.code == 0
    assert r"refused for \x1b[2J: 1" in shown.out


def test_a_machine_that_the_policy_does_not_know_gets_nothing(cloister, folder):
    other = '[insecure-simulated]\nmeasurements = ["ff"]\n'
    with serving(other) as url:
        assert "measurement: expected ff, found 00" in run(url, code=3)
    found, ledger = releases(cloister)
    assert found == []
    assert ledger["refusals"] == {"evidence": 1}


def test_a_ticket_of_another_bundle_is_refused_before_the_broker_is_asked(cloister, folder):
    other = ("another.bundle", *BUNDLE[1:])
    with serving() as url:
        assert "acme-7: buys outputs of bundle" in run(url, bundle=other, code=2)
    assert releases(cloister)[0] == []


def test_a_broker_that_cannot_be_reached(cloister, folder):
    assert "https://127.0.0.1:9: cannot be reached" in run("https://127.0.0.1:9", code=2)


def test_the_environment_of_a_run_that_proves_itself_is_empty(cloister, folder, monkeypatch):
    """A variable could have code loaded that no measurement shows."""
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with serving() as url:
        run(url, "--json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BUNDLE, "--broker", "https://b:1"), "give --ticket FILE, --meter DIR"),
        ((*BUNDLE, *TICKET, "--broker", "https://b:1", "--key", "k"), "--key: the broker releases"),
        ((*BUNDLE, "--insecure-simulated", "k"), "--insecure-simulated: goes with --broker"),
        (("digits.onnx", "digits", "--broker", "https://b:1"), "--broker: goes with a bundle"),
    ],
)
def test_options_that_mean_nothing_are_refused(cloister, folder, arguments, message):
    ran = cloister("run", *arguments)
    assert ran.code == 2
    assert message in ran.err
