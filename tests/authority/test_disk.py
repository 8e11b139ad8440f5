"""An authority whose disk is full, or whose folder cannot be written: nothing leaves unrecorded."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from authority.conftest import make_kit
from authority.test_authority import mixed
from cli.test_authority import serving
from cloister.authority import tokens
from cloister.authority.authority import Authority
from cloister.authority.client import AuthorityClient
from cloister.authority.database import FILE
from cloister.authority.requests import Forward, Labels
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.cli.main import main
from cloister.errors import CloisterError, EncryptionError, InputError

RNG = SystemRandom()
NOBODY = 65534

# A command line of a process for which every disk is full: no file may grow beyond some bytes.
FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from cloister.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def on_a_full_disk(size, *arguments):
    """The one line that a command ends with when files may have `size` bytes at most."""
    command = [sys.executable, "-P", "-c", FULL, str(size), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 2, ran
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("\n") == 1
    return ran.stderr


@pytest.mark.parametrize("size", [0, 100, 5000, 20000])
def test_an_authority_that_there_is_no_room_for(tmp_path, size):
    message = on_a_full_disk(size, "authority", "init", tmp_path / "a")
    assert str(tmp_path / "a" / FILE) in message
    assert "room" in message
    # Half of one is none, and says so.
    assert main(["authority", "serve", str(tmp_path / "a"), "--listen", "127.0.0.1:0"]) == 2


def test_key_files_that_there_is_no_room_for(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloister.base.files.os.fsync", full)
    with pytest.raises(
        InputError, match=r"hpke\.key: cannot be written \(No space left on device\)"
    ):
        Authority.create(tmp_path / "a", rng=RNG)


def test_a_disk_that_is_full_from_the_start(kit):
    kit.authority.close()
    before = (kit.folder / FILE).read_bytes()
    for arguments in (
        ("token", kit.folder, "--role", "client"),
        ("serve", kit.folder, "--listen", "127.0.0.1:0"),
    ):
        message = on_a_full_disk(0, "authority", *arguments)
        assert f"{kit.folder / FILE}: cannot be used" in message
        assert "make its folder writable and room on its disk" in message
    assert (kit.folder / FILE).read_bytes() == before
    kit.authority = Authority(kit.folder)
    kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")


def until_it_answers(ask):
    """What a client does that may repeat every request."""
    for _ in range(200):
        try:
            return ask()
        except EncryptionError as error:
            assert "no key is issued" in str(error)
            time.sleep(0.1)
    raise AssertionError("the authority did not recover")


def test_a_disk_that_fills_up_while_it_serves(kit):
    """What was answered is on record; once there is room, what was asked meanwhile is, too."""
    kit.authority.close()
    token, other = (
        tokens.issue(kit.folder / FILE, role, name="", rng=RNG) for role in ("server", "trusted")
    )
    public, ids = kit.folder / PUBLIC_FILE, kit.ids
    with serving(kit.folder) as (url, process):
        with (
            AuthorityClient(url, public=public, token=token) as keys,
            AuthorityClient(url, public=public, token=other) as trusted,
        ):
            first = keys.ask(Forward("set", ids[:5], mixed(2)), receiver="server")
            old = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, old[1]))
            for ask in (
                lambda: keys.ask(Forward("set", ids, mixed(2)), receiver="server"),
                # A repeat too: its record may never come to the disk.
                lambda: keys.ask(Forward("set", ids[:5], mixed(2)), receiver="server"),
                lambda: keys.ask(Labels("set", ids), receiver="server"),
                lambda: trusted.ask(Forward("set", ids, mixed(2)), receiver="trusted"),
            ):
                with pytest.raises(EncryptionError, match="room on its disk; no key is issued"):
                    ask()
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, old)
            assert keys.describe("set").samples == 10
            again = until_it_answers(
                lambda: keys.ask(Forward("set", ids, mixed(2)), receiver="server")
            )
            np.testing.assert_array_equal(again[:5], first)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = process.stderr.read()
        assert f"{kit.folder / FILE}: cannot be written" in said
        assert f"{kit.folder / FILE}: can be written again" in said
    with Authority(kit.folder) as authority:
        assert authority.spent("set").rank.tolist() == [2] * 10
    with serving(kit.folder) as (url, _), AuthorityClient(url, public=public, token=token) as keys:
        again = keys.ask(Forward("set", ids, mixed(2)), receiver="server")
        np.testing.assert_array_equal(again[:5], first)
    kit.authority = Authority(kit.folder)


@contextmanager
def read_only(folder):
    """As someone who may read the folder and not write in it, also where tests run as root."""
    root = os.geteuid() == 0
    places = [folder, *folder.rglob("*")]
    if root:
        for place in places:
            os.chown(place, NOBODY, -1)
    folder.chmod(0o500)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.fixture
def public_folder():
    """A folder that everyone can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


def test_a_folder_that_cannot_be_written(public_folder, capsys, tmp_path):
    folder = public_folder / "authority"
    make_kit(folder).authority.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refused(*arguments):
        assert main(["authority", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    with read_only(folder):
        for arguments in (
            ("serve", folder, "--listen", "127.0.0.1:0"),
            ("token", folder, "--role", "client"),
        ):
            message = refused(*arguments)
            assert str(folder) in message
            assert "writable" in message
        assert f"{folder / 'new'}: cannot be made (Permission denied)" in refused(
            "init", folder / "new"
        )
    (folder / "authority.lock").unlink()
    with read_only(folder):
        message = refused("serve", folder, "--listen", "127.0.0.1:0")
        assert "authority.lock: cannot be written (Permission denied)" in message
    assert {p.name: p.read_bytes() for p in folder.iterdir()} | {"authority.lock": b""} == before
    # The other way round: with a folder that can be written again nothing was lost.
    shutil.copytree(folder, tmp_path / "copy")
    with Authority(tmp_path / "copy") as authority:
        assert authority.describe("set").samples == 10


def test_a_damaged_ledger_is_named_and_not_believed(kit, capsys):
    """Bits that have turned over, and pages that are gone: one line, never a traceback."""
    kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")
    kit.authority.close()
    path = kit.folder / FILE
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damages = [(int(at), 1) for at in generator.integers(0, len(whole), 150)]
    damages += [(at, 4096) for at in range(0, len(whole), 4096)]
    refused = 0
    for at, count in damages:
        changed = bytes(255 - b for b in whole[at : at + 1]) if count == 1 else bytes(count)
        path.write_bytes(whole[:at] + changed + whole[at + count :])
        for suffix in ("-wal", "-shm"):
            path.with_name(FILE + suffix).unlink(missing_ok=True)
        try:
            with Authority(kit.folder) as authority:
                authority.spent("set")
        except CloisterError as error:
            refused += 1
            assert "ledger" in str(error) or "data set" in str(error)
        code = main(["authority", "budget", str(kit.folder)])
        captured = capsys.readouterr()
        assert code in (0, 2)
        assert "Traceback" not in captured.err
        assert captured.err.count("\n") == (code == 2)
    assert refused >= len(whole) // 4096
    path.write_bytes(whole)
    kit.authority = Authority(kit.folder)
