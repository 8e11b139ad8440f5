import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from cloister.authority.client import AuthorityClient, read_token
from cloister.authority.requests import Forward
from cloister.errors import AuthorityUnavailable, InputError
from cloister.ring.linear import Geometry, LinearMap


@contextmanager
def serving(folder, listen="127.0.0.1:0"):
    """`cloister authority serve` as a process of its own; gives its address and the process."""
    command = [
        sys.executable, "-P", "-m", "cloister", "authority", "serve", str(folder),
        "--listen", listen,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        try:
            line = p.stdout.readline()
            found = re.fullmatch(r"authority: serving on (https://127\.0\.0\.1:\d+)\n", line)
            assert found, line + p.stderr.read()
            assert p.stdout.readline().startswith("fingerprint ")
            yield found[1], p
        finally:
            p.kill()


@pytest.fixture
def folder(cloister, tmp_path):
    ran = cloister("authority", "init", tmp_path / "authority")
    assert ran.code == 0
    assert "authority.pub" in ran.out
    assert re.search(r"fingerprint [0-9a-f]{64}", ran.out)
    assert "never put back an old copy" in ran.err
    return tmp_path / "authority"


def token(cloister, folder, role):
    ran = cloister("authority", "token", folder, "--role", role)
    assert ran.code == 0
    return ran.out.strip()


def test_init_overwrites_nothing(refused, folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "not empty" in refused("authority", "init", folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_tokens(cloister, refused, folder, tmp_path):
    assert re.fullmatch(r"clo_server_[0-9a-f]{16}_[0-9a-f]{64}", token(cloister, folder, "server"))
    assert "--role admin" in refused("authority", "token", folder, "--role", "admin")
    assert "authority init" in refused("authority", "token", tmp_path / "no", "--role", "server")


def test_a_token_can_be_revoked_by_its_name(cloister, refused, folder):
    for _ in range(2):
        ran = cloister("authority", "token", folder, "--role", "server", "--name", "gpu farm",
                       "--dataset", "demo")  # fmt: skip
        assert ran.code == 0
    token(cloister, folder, "server")
    assert cloister("authority", "token", folder, "--revoke", "gpu farm").out == (
        "2 revoked, at once\n"
    )
    assert "no token has this name" in refused("authority", "token", folder, "--revoke", "gpu farm")
    assert "no token has this name" in refused("authority", "token", folder, "--revoke", "")
    assert "alone" in refused("authority", "token", folder, "--revoke", "x", "--role", "server")
    assert "--role" in refused("authority", "token", folder)
    wrong = ("--role", "server", "--dataset", "../x")
    assert "no name of a data set" in refused("authority", "token", folder, *wrong)


def test_an_empty_budget(cloister, refused, folder):
    assert "no data sets" in cloister("authority", "budget", folder).out
    assert json.loads(cloister("authority", "budget", folder, "--json").out) == []
    assert "not known" in refused("authority", "budget", folder, "x")


def test_serve_says_what_is_wrong(refused, folder, tmp_path):
    assert "holds no authority" in refused(
        "authority", "serve", tmp_path / "none", "--listen", "127.0.0.1:0"
    )
    assert "HOST:PORT" in refused("authority", "serve", folder, "--listen", "nonsense")
    with serving(folder):
        assert "in use" in refused("authority", "serve", folder, "--listen", "127.0.0.1:0")


def test_the_whole_life_of_an_authority(cloister, refused, folder, tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "demo.cloister"
    generator = np.random.default_rng(0)
    np.savez(
        data, x=generator.integers(0, 256, (40, 4, 4), dtype=np.uint8),
        y=generator.integers(0, 3, 40),
    )  # fmt: skip
    public = folder / "authority.pub"
    client, server = token(cloister, folder, "client"), token(cloister, folder, "server")
    linear = LinearMap(
        Geometry((1, 1), 16, (1, 1), 3),
        np.random.default_rng(1).integers(-9, 10, (3, 1, 1, 16)).astype(np.int16),
    )
    ids = np.arange(10, dtype=np.int64)
    with serving(folder) as (url, process):
        made = cloister(
            "data", "encrypt", data, "--authority", url, "--pin", public, "--token", client,
            "--out", out,
        )  # fmt: skip
        assert made.code == 0, made
        with AuthorityClient(url, public=public, token=server) as keys:
            key = keys.ask(Forward("demo", ids, linear), receiver="server")
        [shown] = json.loads(cloister("authority", "budget", folder, "--json").out)
        assert (shown["rank_max"], shown["rank_min"], shown["rank_allowed"]) == (3, 0, 4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    listen = url.removeprefix("https://")
    with serving(folder, listen) as (url, process):
        with AuthorityClient(url, public=public, token=server) as keys:
            np.testing.assert_array_equal(
                keys.ask(Forward("demo", ids, linear), receiver="server"), key
            )
            process.kill()
            process.wait()
        with (
            pytest.raises(AuthorityUnavailable),
            AuthorityClient(url, public=public, token=server, retry_for_s=0.1) as keys,
        ):
            keys.describe("demo")
    table = cloister("authority", "budget", folder, "demo", "--samples").out
    assert re.search(r"demo +budgeted +40 +0 +16 +4 +0 +0 +3", table)
    assert "rank spent" in table
    [shown] = json.loads(cloister("authority", "budget", folder, "--json", "--samples").out)
    assert shown["by_sample"]["rank"] == [3] * 10 + [0] * 30


@pytest.fixture
def samples(tmp_path):
    data = tmp_path / "data.npz"
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (12, 4, 4), dtype=np.uint8), np.arange(12) % 3
    np.savez(data, x=x, y=y)
    return data


def encrypted(cloister, folder, url, data, name, *more):
    return cloister(
        "data", "encrypt", data, "--authority", url, "--pin", folder / "authority.pub",
        "--token", token(cloister, folder, "client"), "--out", data.with_name(f"{name}.cloister"),
        *more,
    )  # fmt: skip


def test_the_data_sets_are_listed(cloister, folder, samples):
    assert cloister("authority", "list", folder).out == "no data sets\n"
    assert json.loads(cloister("authority", "list", folder, "--json").out) == []
    weak = (
        "--many-functions",
        "--value-bits",
        12,
        "--labels-to",
        "trusted",
        "--privacy",
        "budget=3",
    )
    with serving(folder) as (url, _):
        assert encrypted(cloister, folder, url, samples, "plain").code == 0
        for again in ((), ("--again",)):
            assert encrypted(cloister, folder, url, samples, "weak", *weak, *again).code == 0
        paper = ("--privacy", "paper", "--allow-unbounded-leakage")
        assert encrypted(cloister, folder, url, samples, "paper", *paper).code == 0
        keys = {"public": folder / "authority.pub", "token": token(cloister, folder, "server")}
        linear = LinearMap(
            Geometry((1, 1), 16, (1, 1), 2),
            np.random.default_rng(1).integers(-9, 10, (2, 1, 1, 16)).astype(np.int16),
        )
        with AuthorityClient(url, **keys) as client:
            client.ask(Forward("plain", np.arange(3), linear), receiver="server")
        # Also while it serves.
        shown = cloister("authority", "list", folder).out
        found = {one["name"]: one for one in json.loads(
            cloister("authority", "list", folder, "--json").out
        )}  # fmt: skip
    assert re.search(r"plain +budgeted +12 +0 +1 +2 +4 +16 +32 +8 +one +server", shown)
    assert re.search(r"weak +budgeted +24 +0 +2 +0 +3 +0 +24 +12 +many +trusted", shown)
    assert re.search(r"paper +paper +12 +0 +1 +0 +16 +0 +- +32 +many +server", shown)
    assert list(found) == ["paper", "plain", "weak"]
    assert found["paper"]["bits_allowed"] is None
    assert (found["weak"]["samples"], found["weak"]["functions"]) == (24, "many")


def test_a_data_set_is_deleted_when_that_is_meant(cloister, refused, folder, samples):
    out = samples.with_name("set.cloister")
    with serving(folder) as (url, _):
        assert encrypted(cloister, folder, url, samples, "set").code == 0
        found = refused("authority", "delete", folder, "set", "--yes")
        assert "in use by another process; stop that authority first" in found
    token_of_it = ("--role", "server", "--dataset", "set")
    assert cloister("authority", "token", folder, *token_of_it).code == 0
    found = refused("authority", "delete", folder, "set")
    assert "its 12 samples could never be used again; confirm with --yes" in found
    assert "not known" in refused("authority", "delete", folder, "other")
    assert "not known" in refused("authority", "delete", folder, "other", "--yes")
    ran = cloister("authority", "delete", folder, "set", "--yes")
    assert ran.code == 0, ran
    assert ran.out == "data set set deleted: 12 samples in 1 parts, 1 tokens\n"
    assert "backups of the folder still hold the keys" in ran.err
    assert cloister("authority", "list", folder).out == "no data sets\n"
    with serving(folder) as (url, _):
        # The file is of keys that are gone; the name is free for another one.
        ran = encrypted(cloister, folder, url, samples, "set")
        assert "exists, but data set set is not known to this authority; choose" in ran.err
        out.unlink()
        assert encrypted(cloister, folder, url, samples, "set").code == 0


def test_interrupting_the_service_is_no_error(folder):
    with serving(folder) as (_, process):
        os.kill(process.pid, signal.SIGINT)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.returncode == 0
        assert "stopped" in process.stderr.read()


def test_a_token_file_is_its_owners_alone_and_is_taken_only_so(cloister, refused, folder, tmp_path):
    path = tmp_path / "client.token"
    umask = os.umask(0)
    try:
        ran = cloister("authority", "token", folder, "--role", "client", "--out", path)
    finally:
        os.umask(umask)
    assert (ran.code, ran.out) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"clo_client_[0-9a-f]{16}_[0-9a-f]{64}\n", path.read_text())
    again = ("authority", "token", folder, "--role", "client", "--out", path)
    assert "exists already" in refused(*again)
    assert "alone" in refused("authority", "token", folder, "--revoke", "x", "--out", path)
    assert read_token(path) == path.read_text().strip()
    for permissions in (0o644, 0o640, 0o602):
        path.chmod(permissions)
        with pytest.raises(InputError, match="chmod 600"):
            read_token(path)


def test_a_token_that_cannot_be_written_is_not_issued(cloister, refused, folder, tmp_path):
    (tmp_path / "taken").write_text("")
    issued = ("authority", "token", folder, "--role", "server", "--name", "farm")
    for path in (tmp_path / "taken", tmp_path / "none" / "token"):
        refused(*issued, "--out", path)
    assert "no token has this name" in refused("authority", "token", folder, "--revoke", "farm")
