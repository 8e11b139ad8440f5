"""`cloister trusted serve` and `run --trusted`, as processes: what starts, and what is refused."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nets
from broker.brokers import Vendor
from cloister.attest.runtime_manifest import ISOLATED
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import create_keys
from cloister.cli import trusted_verbs
from cloister.errors import ServiceUnavailable
from cloister.trusted import remote_session
from cloister.trusted.hosted_session import BundleKeys
from cloister.trusted.runtime_service import ServedBundle
from cloister.trusted.session import Session
from trusted.runtimes import Played
from trusted.test_hosted_session import plan_of

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def serving(*options, environment=(), stderr=None):
    """A machine as a process of its own: its process, its address, and the lines that it says."""
    command = [sys.executable, "-P", "-m", "cloister", "trusted", "serve", *map(str, options)]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, **dict(environment)},
    ) as process:  # fmt: skip
        lines = [process.stdout.readline().strip() for _ in range(3)]
        try:
            yield process, lines[0].split()[-1], lines
        finally:
            process.terminate()


@pytest.fixture
def played(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote_session, "RETRY_FOR_S", 0.2)
    made = Played(tmp_path)
    made.save_policy("machine.toml")
    return made


def values(ran):
    assert ran.code == 0, ran
    return [one["values"] for one in json.loads(ran.out)["outputs"]]


def test_a_machine_starts_without_environment_and_runs_models(
    cloister, model_file, pictures, played
):
    calibrated = ("--calibration", pictures[0].parent, "--json")
    plain = cloister("run", model_file, *pictures, *calibrated)
    with serving("--insecure-simulated", played.key, environment={"SECRET": "x"}) as found:
        process, url, lines = found
        where = ("--trusted", url, "--appraisal", "machine.toml")
        assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""
        started = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[1:6]
        assert tuple(part.decode() for part in started) == ISOLATED
        ran = cloister("run", model_file, *pictures, *calibrated, *where)
        assert values(ran) == values(plain)
        report = json.loads(ran.out)["report"]
        assert "--insecure-simulated" in json.loads(ran.out)["manifest"]["arguments"]
        shown = cloister("run", model_file, *pictures, "--calibration", pictures[0].parent, *where)
        assert "machine started as: " in shown.out
        assert f"trusted serve --insecure-simulated {played.key}" in shown.out.replace("\n", " ")
        assert report["hardware_rooted"] is False
        assert report["appraisal"]["manifest"] == lines[2].split()[-1]
        # The manifest can be pinned, and a change of the arguments makes another one.
        policy = Path("machine.toml")
        pinned = f'[runtime]\nmanifests = ["{lines[2].split()[-1]}"]\n'
        Path("pinned.toml").write_text(policy.read_text() + pinned)
        where = ("--trusted", url, "--appraisal", "pinned.toml")
        assert cloister("run", model_file, *pictures, *calibrated, *where).code == 0
    with serving("--insecure-simulated", played.key, "--threads", 2) as (_, url, lines):
        where = ("--trusted", url, "--appraisal", "pinned.toml")
        ran = cloister("run", model_file, *pictures, *calibrated, *where)
        assert (ran.code, ran.out) == (3, "")
        assert "manifest: expected" in ran.err
        assert lines[2].split()[-1][:16] in ran.err.replace("\n", "")
    ran = cloister("run", model_file, *pictures, *calibrated, *where)
    assert ran.code == 2
    assert "cannot be reached" in ran.err


def test_a_machine_that_cannot_prove_itself_does_not_serve(played):
    Path("empty.pem").write_text("")
    for name, reason in (("missing.pem", "no such file"), ("empty.pem", "no Ed25519 key")):
        command = [sys.executable, "-P", "-m", "cloister", "trusted", "serve", "--listen"]
        done = subprocess.run(
            [*command, "127.0.0.1:0", "--insecure-simulated", name], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{name}: " in done.stderr
        assert reason in done.stderr


def test_a_machine_that_is_killed_ends_its_sessions_with_a_clear_error(played):
    feeds = nets.samples(nets.chain(), 2)
    with (
        serving("--insecure-simulated", played.key) as (process, url, _),
        Session(plan_of(nets.chain()), trusted=url, appraisal="machine.toml") as session,
    ):
        session.run(feeds)
        started = children(process.pid)
        process.kill()
        process.wait()
        with pytest.raises(ServiceUnavailable, match=r"cannot be reached .*is it running"):
            session.run(feeds)
    for _ in range(100):  # its processes end with it
        if not any(Path(f"/proc/{pid}").exists() for pid in started):
            break
        time.sleep(0.1)
    assert started
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def children(pid):
    """Processes that a process has started."""
    found = Path("/proc").glob("[0-9]*/stat")
    stats = []
    for path in found:
        with contextlib.suppress(OSError):
            stats.append(path.read_text().rpartition(")"))
    return [int(one[0].split()[0]) for one in stats if int(one[2].split()[1]) == pid]


def test_a_machine_runs_a_bundle_that_the_caller_cannot_open(cloister, played):
    pytest.importorskip("ziglang")
    shutil.copy(ROOT / "src/cloister/examples/digits.onnx", ".")
    shutil.copytree(ROOT / "examples/digits", "digits")
    create_keys(Path("vendor"), rng=SystemRandom())
    for command in (
        ("plan", "digits.onnx", "--last", 2, "--queries", 20, "--calibration", "digits",
         "--out", "vendor/digits.plan"),
        ("bundle", "seal", "vendor/digits.module", "--plan", "vendor/digits.plan", "--key",
         "vendor/content.key", "--signer", "vendor/vendor.key", "--out", "digits.bundle"),
    ):  # fmt: skip
        assert cloister(*command).code == 0
    wanted = values(cloister("run", "digits.onnx", "digits", "--policy", "enclave", "--json"))
    bundle = ("--bundle", "digits.bundle", "--vendor", "vendor/vendor.pub", "--key",
              "vendor/content.key", "--counter", "queries")  # fmt: skip
    with serving("--insecure-simulated", played.key, *bundle) as (_, url, _):
        where = ("--trusted", url, "--appraisal", "machine.toml", "--json")
        vendor = ("--vendor", "vendor/vendor.pub")
        ran = cloister("run", "digits.bundle", "digits", *vendor, *where)
        for one, other in zip(values(ran), wanted, strict=True):
            np.testing.assert_allclose(*[next(iter(v.values())) for v in (one, other)], atol=0.1)
        assert json.loads(ran.out)["report"]["queries_left"] == 10
        refused = cloister("run", "digits.bundle", "digits", *vendor, *where, "--key", "k")
        assert "--key: is decided by the operator" in refused.err
        refused = cloister("run", "digits.onnx", "digits", *where)
        assert "this machine runs bundle" in refused.err


SEALED = (
    "plan digits.onnx --policy enclave --last 2 --out vendor/digits.plan",
    "bundle seal vendor/digits.module --plan vendor/digits.plan --key vendor/content.key "
    "--signer vendor/vendor.key --out digits.bundle",
    "broker init broker --bundle digits.bundle --key vendor/content.key "
    "--vendor vendor/vendor.pub --policy machine.toml",
)
ISSUE = "license issue acme.lic --bundle digits.bundle --signer vendor/vendor.key --license acme-7"


@pytest.fixture
def vendor(cloister, played):
    """A vendor's keys, bundle and broker; the certificate of the broker."""
    pytest.importorskip("ziglang")
    shutil.copy(ROOT / "src/cloister/examples/digits.onnx", ".")
    shutil.copytree(ROOT / "examples/digits", "digits")
    create_keys(Path("vendor"), rng=SystemRandom())
    for command in SEALED:
        ran = cloister(*command.split())
        assert ran.code == 0, ran
    shown = cloister("broker", "ledger", "broker", "--json").out
    return re.search(r'"certificate": "(\w+)"', shown)[1]


def issue(cloister, *options):
    given = ("--not-after", "2999-12-31T00:00Z", "--outputs", "label", "--quota", 15, *options)
    ran = cloister(*ISSUE.split(), *given)
    assert ran.code == 0, ran


def bought(cloister, url, policy="machine.toml"):
    """A run of the bundle at a machine: its document, or its error."""
    ran = cloister(
        "run", "digits.bundle", "digits", "--vendor", "vendor/vendor.pub", "--trusted", url,
        "--appraisal", policy, "--receipts", "receipts", "--json",
    )  # fmt: skip
    return json.loads(ran.out) if ran.code == 0 else ran.err.replace("\n", " ")


def labels(cloister):
    plain = json.loads(
        cloister("run", "digits.onnx", "digits", "--policy", "enclave", "--json").out
    )
    return [int(np.argmax(*one["values"].values())) for one in plain["outputs"]]


def test_a_machine_sells_outputs_of_a_ticket(cloister, played, vendor):
    issue(cloister, "--insecure-file-counter")
    bundle = ("--bundle", "digits.bundle", "--vendor", "vendor/vendor.pub", "--key",
              "vendor/content.key", "--ticket", "acme.lic", "--meter", "meter",
              "--insecure-file-counter", "count")  # fmt: skip
    with serving("--insecure-simulated", played.key, *bundle) as (_, url, _):
        found = bought(cloister, url)
        assert [next(iter(one["values"].values())) for one in found["outputs"]] == labels(cloister)
        assert Path(found["receipt"]).parent == Path("receipts")
        assert "5 of its 15 outputs are left, and 10 are asked for" in bought(cloister, url)
        # The ticket is the machine's: a caller gives none.
        refused = cloister(
            "run",
            "digits.bundle",
            "digits",
            "--vendor",
            "vendor/vendor.pub",
            "--trusted",
            url,
            "--appraisal",
            "machine.toml",
            "--ticket",
            "acme.lic",
        )
        assert "--ticket: is spent by the --trusted machine" in refused.err
    shown = cloister("license", "show", "acme.lic", "--vendor", "vendor/vendor.pub", "--receipts",
                     "receipts", "--json")  # fmt: skip
    assert shown.code == 0, shown


def test_a_broker_releases_the_key_to_a_machine(cloister, played, vendor):
    issue(cloister, "--broker", vendor)
    command = [sys.executable, "-P", "-m", "cloister", "broker", "serve", "broker", "--listen",
               "127.0.0.1:0"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        broker = process.stdout.readline().split()[-1]
        bundle = ("--bundle", "digits.bundle", "--vendor", "vendor/vendor.pub", "--broker", broker,
                  "--ticket", "acme.lic", "--meter", "meter")  # fmt: skip
        try:
            with (
                open("notes", "w") as notes,
                serving("--insecure-simulated", played.key, *bundle, stderr=notes) as served,
            ):
                _, url, lines = served
                found = bought(cloister, url)
                told = [next(iter(one["values"].values())) for one in found["outputs"]]
                assert told == labels(cloister)
                ledger = json.loads(cloister("broker", "ledger", "broker", "--json").out)
        finally:
            process.terminate()
    (entry,) = [one for one in ledger["entries"] if one["kind"] == "release"]
    assert entry["manifest"] == lines[2].split()[-1]  # of the machine that serves
    kept = f"entry {entry['number']} of the broker's ledger, {entry['digest']}"
    assert kept in Path("notes").read_text()
    assert [one["count"] for one in ledger["counters"]] == [10]


@pytest.mark.parametrize("way", ["--broker", "--key"])
def test_memory_is_hidden_before_a_key_is_in_it(monkeypatch, tmp_path, way):
    """A meter whose lock is held keeps the process waiting with the key."""

    def key(*_):
        done.append("key")
        raise KeyError

    done = []
    monkeypatch.setattr(trusted_verbs, "hide_memory", lambda: done.append("hidden"))
    monkeypatch.setattr(trusted_verbs, "load_content_key", key)
    sold = Vendor.make(tmp_path)
    client = SimpleNamespace(release=key, close=lambda: None) if way == "--broker" else None
    given = SimpleNamespace(client=lambda *_, **__: client)
    trust = SimpleNamespace(vendor=tmp_path / "vendor.pub", at_least=None)
    served = trusted_verbs._served(
        sold.bundle(), trust, given, tmp_path / "content.key", None, None, None
    )
    with pytest.raises(KeyError), served:
        pass
    assert done == ["hidden", "key"]


def test_the_keys_of_a_bundle_are_in_no_message():
    keys = BundleKeys(Path("a.bundle"), bytes(16), b"K" * 32, bytes(32))
    assert "KK" not in repr(keys)
    assert "KK" not in repr(ServedBundle(None, keys))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bundle", "a.bundle"), "--bundle a.bundle: give --vendor FILE"),
        (("--vendor", "v"), "--vendor: goes with a bundle"),
        (("--session-gib", 0.1), "--session-gib"),
        (("--insecure-simulated", "none.pem"), "environment: expected none"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, cloister):
    ran = cloister("trusted", "serve", "--listen", "127.0.0.1:0", *options)
    assert ran.code in (2, 3)
    assert said in ran.err.replace("\n", " ")


def test_a_machine_that_proves_nothing_does_not_serve():
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "cloister", "trusted", "serve", "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 3
    assert "has no interface that proves anything" in ran.stderr
