"""kill -9 of a client anywhere: its file holds whole parts, and others go on with it."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from cli.test_encrypt import decrypted
from cloister.authority import service, tokens
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.writer import check_registered
from cloister.errors import AuthorityUnavailable, EncryptionError

# A client that ends itself, as kill -9 would, at a stated place.
CLIENT = """
import os, sys
from cloister.authority.client import AuthorityClient
from cloister.cli.main import main

place, count = sys.argv[1], 0

def here(name):
    if name == place:
        os.kill(os.getpid(), 9)

def around(name):
    real = getattr(AuthorityClient, name)
    def method(*arguments, **more):
        here("before " + name)
        found = real(*arguments, **more)
        here("after " + name)
        return found
    setattr(AuthorityClient, name, method)

def fsync(descriptor, real=os.fsync):
    global count
    here(f"sync {count}")
    count += 1
    real(descriptor)

os.fsync = fsync
around("find")
around("register")
sys.exit(main(sys.argv[2:]))
"""
# The file's first block takes two syncs, of itself and of its folder; then the part, then its slot.
PLACES = {
    "before find": (0, 0),
    "after find": (0, 0),
    "sync 0": (0, 0),
    "sync 1": (0, 0),
    "before register": (0, 0),
    "after register": (1, 0),
    "sync 2": (1, 0),
    "sync 3": (1, 1),
}
"""Where a client dies: parts on record at the authority, and parts in the file, of this client."""


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "authority"
    with Authority.create(folder, rng=SystemRandom()) as authority:
        server = service.serve(folder, authority, listen="127.0.0.1:0")
        token = tokens.issue(folder / FILE, "client", name="", rng=SystemRandom())
        reach = ("--authority", server.url, "--pin", folder / PUBLIC_FILE, "--token")
        yield authority, (*reach, token)
        server.close()


def pixels(path, seed):
    x = np.random.default_rng(seed).integers(0, 256, (20, 3, 2, 1), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 3)
    return path, {sample.tobytes() for sample in x}


@pytest.mark.parametrize("place", PLACES)
def test_a_client_killed_anywhere_leaves_whole_parts_and_others_go_on(
    site, cloister, tmp_path, place
):
    authority, reach = site
    file = tmp_path / "set.cloister"
    one, mine = pixels(tmp_path / "one.npz", 1)
    two, others = pixels(tmp_path / "two.npz", 2)
    arguments = ("data", "encrypt", one, *reach, "--out", file)
    dying = subprocess.run(
        [sys.executable, "-P", "-c", CLIENT, place, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert dying.returncode == -signal.SIGKILL, dying
    assert dying.stdout == ""
    registered, written = PLACES[place]
    if file.exists():
        assert len(EncryptedDataset.open(file).parts) == written
    else:
        assert (registered, written) == (0, 0)
    said = "20 registered samples are not in" if registered > written else ""
    assert sum(p.samples for n in authority.datasets() for p in authority.parts(n)) == (
        20 * registered
    )

    # Another client adds to it.
    ran = cloister("data", "encrypt", two, *reach, "--out", file, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["parts"][0]["first"] == 20 * registered
    assert said in ran.err
    assert bool(said) == ("registered samples are not in" in ran.err)
    # And the one that was killed, if its part is not there, begins anew.
    if not written:
        ran = cloister(*arguments)
        assert ran.code == 0, ran
        assert said in ran.err
    opened, plain, one_hot = decrypted(authority, file)
    found = {sample.tobytes() for sample in np.rint(plain * 255).astype(np.uint8)}
    assert found == mine | others
    assert (one_hot.sum(axis=1) == 1).all()
    assert (opened.samples, len(opened.parts)) == (40, 2)
    absent = check_registered(opened, authority.parts("set"))
    assert len(absent) == registered - written


def values(path, seed):
    np.savez(path, x=np.random.default_rng(seed).random((20, 4)), y=np.arange(20) % 3)
    return path


TYPO = ("--range", "0,2", "--bits", 12, "--privacy", "budget=4", "--classes", "0,1,2,3,4")
CORRECTED = ("--range", "0,1", "--classes", "0,1,2")


@pytest.mark.parametrize("place", [place for place, (held, _) in PLACES.items() if not held])
def test_a_client_killed_before_its_part_is_on_record_has_decided_nothing(
    site, cloister, tmp_path, place
):
    """Neither the authority nor the file keeps a name for what was never begun."""
    authority, reach = site
    file, data = tmp_path / "set.cloister", values(tmp_path / "values.npz", 1)
    dying = subprocess.run(
        [sys.executable, "-P", "-c", CLIENT, place,
         *map(str, ("data", "encrypt", data, *reach, "--out", file, *TYPO))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert dying.returncode == -signal.SIGKILL, dying
    assert authority.datasets() == ()
    ran = cloister("data", "encrypt", data, *reach, "--out", file, *CORRECTED)
    assert ran.code == 0, ran
    info = authority.describe("set")
    assert (info.classes, info.encoding.bits, info.budget_rank) == (3, 8, 1)
    assert EncryptedDataset.open(file).encoding == info.encoding
    assert info.samples == EncryptedDataset.open(file).samples == 20


def _full(*_, **__):
    raise OSError(28, "No space left on device")


def _away(*_):
    raise AuthorityUnavailable("authority: nobody answers")


def _refuses(*_, **__):
    raise EncryptionError("no key is issued until a restart")


STAGES = {
    "the terms": (None, ("--privacy", "budget=100000"), "its budget is 0 to"),
    "the classes": (None, ("--classes", "0,1"), "gives 2 names, but the samples have 3 classes"),
    "the values": (None, ("--range", "0,0.5"), "outside the data set's range"),
    "the noise": (None, ("--noise", "-1"), "sigma"),
    "the samples": (("cloister.ring.pads.blind", _full), (), "No space left"),
    "the file": (("os.fsync", _full), (), "No space left"),
    "the request": (("cloister.authority.client.AuthorityClient.register", _away), (), "answers"),
    "the record": (("cloister.authority.authority.new_dataset", _refuses), (), "no key is issued"),
    "the accounts": (("cloister.authority.ledger.new_account", _refuses), (), "no key is issued"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_fails_at_any_stage_can_be_corrected(
    site, cloister, refused, tmp_path, monkeypatch, stage
):
    """The name is not used up, neither at the authority nor by a file."""
    authority, reach = site
    file, data = tmp_path / "set.cloister", values(tmp_path / "values.npz", 1)
    broken, more, message = STAGES[stage]
    with monkeypatch.context() as patch:
        if broken is not None:
            patch.setattr(*broken)
        wrong = {**dict(zip(TYPO[::2], TYPO[1::2], strict=True)), **dict([more] if more else [])}
        found = refused(
            "data",
            "encrypt",
            data,
            *reach,
            "--out",
            file,
            *(x for pair in wrong.items() for x in pair),
        )
        assert message in found
    assert authority.datasets() == ()
    assert not file.exists()
    ran = cloister("data", "encrypt", data, *reach, "--out", file, *CORRECTED)
    assert ran.code == 0, ran
    assert (authority.describe("set").classes, EncryptedDataset.open(file).samples) == (3, 20)


def test_samples_that_are_in_although_the_order_is_lost_are_not_added_again(
    site, refused, tmp_path, monkeypatch
):
    authority, reach = site
    file, data = tmp_path / "set.cloister", values(tmp_path / "values.npz", 1)
    monkeypatch.setattr("numpy.savez", _full)
    order = ("--order", tmp_path / "order.npz")
    found = refused("data", "encrypt", data, *reach, "--out", file, *CORRECTED, *order)
    assert f"the samples are in {file} all the same, do not encrypt them again" in found
    assert authority.describe("set").samples == EncryptedDataset.open(file).samples == 20


def test_training_goes_on_beside_a_client_that_was_killed(site, cloister, tmp_path):
    """Its samples are on record, and in no file: a checkpoint of the run stays good."""
    pytest.importorskip("torch")
    authority, reach = site
    file, run = tmp_path / "set.cloister", tmp_path / "run"
    one, _ = pixels(tmp_path / "one.npz", 1)
    assert cloister("data", "encrypt", one, *reach, "--out", file).code == 0
    role = tokens.issue(tmp_path / "authority" / FILE, "server", name="", rng=SystemRandom())
    train = ("train", file, *reach[:-1], role, "--checkpoint", run, "--batch", 4, "--json")
    first = cloister(*train, "--epochs", 1)
    assert first.code == 0, first
    assert first.err == ""
    dying = subprocess.run(
        [sys.executable, "-P", "-c", CLIENT, "after register",
         *map(str, ("data", "encrypt", one, *reach, "--out", file, "--again"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert dying.returncode == -signal.SIGKILL
    assert authority.describe("set").samples == 40
    second = cloister(*train, "--epochs", 2)
    assert second.code == 0, second
    assert "note: 20 registered samples are not in" in second.err
    epochs = [json.loads(ran.out)["epochs"] for ran in (first, second)]
    assert epochs[1][0] == epochs[0][0]
    assert len(epochs[1]) == 2
    # Once samples are added to the file it is another run, and says so.
    assert cloister("data", "encrypt", one, *reach, "--out", file, "--again").code == 0
    third = cloister(*train, "--epochs", 3)
    assert third.code == 2
    assert "use another --checkpoint" in third.err
