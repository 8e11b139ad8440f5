"""Several clinics: their files are merged, and each withdraws what it registered."""

import hashlib
import json

import numpy as np
import pytest

from cloister.authority import service, tokens
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.authority.requests import Labels
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data import dataset as datasets
from cloister.data.dataset import EncryptedDataset
from cloister.errors import EncryptionError


class Site:
    """An authority that is served, two clinics with a file each, and a trainer."""

    def __init__(self, folder, cloister):
        self.folder, self.run = folder, cloister
        self.authority = Authority.create(folder / "authority", rng=SystemRandom())
        self.server = service.serve(folder / "authority", self.authority, listen="127.0.0.1:0")
        self.north, self.south = self.token("client"), self.token("client")
        self.files = [self.encrypt(self.north, 1), self.encrypt(self.south, 2)]

    def token(self, role):
        return tokens.issue(self.folder / "authority" / FILE, role, name=role, rng=SystemRandom())

    def reach(self, token):
        pin = self.folder / "authority" / PUBLIC_FILE
        return ("--authority", self.server.url, "--pin", pin, "--token", token)

    def encrypt(self, token, seed):
        x = np.random.default_rng(seed).integers(0, 256, (12, 3, 4, 1), dtype=np.uint8)
        path, out = self.folder / f"{seed}.npz", self.folder / f"{seed}.cloister"
        np.savez(path, x=x, y=np.arange(12) % 3)
        ran = self.run(
            "data", "encrypt", path, *self.reach(token), "--out", out, "--name", "set",
            "--test-fraction", 0.25,
        )  # fmt: skip
        assert ran.code == 0, ran
        return out

    def close(self):
        self.server.close()
        self.authority.close()


@pytest.fixture
def site(tmp_path, cloister):
    made = Site(tmp_path, cloister)
    yield made
    made.close()


def test_files_of_two_clinics_are_merged(site, cloister, refused, tmp_path):
    out = tmp_path / "all.cloister"
    north, south = site.files
    reach = site.reach(site.north)
    assert "all.cloister: exists" in _twice(cloister, refused, north, out)
    ran = cloister("data", "merge", north, *reach, "--out", tmp_path / "part.cloister")
    assert "12 registered samples are not in" in ran.err
    ran = cloister("data", "merge", south, north, south, *reach, "--out", tmp_path / "b.cloister")
    assert ran.code == 0, ran
    assert ran.err == ""
    assert "24 samples in 2 parts of data set set merged into" in ran.out
    opened = EncryptedDataset.open(tmp_path / "b.cloister")
    assert opened.parts == site.authority.parts("set")
    found = refused("data", "merge", north, "--pin", tmp_path, "--out", tmp_path / "c.cloister")
    assert "--authority, --pin and --token" in found
    # A forged part is refused where an authority is named.
    content = bytearray(north.read_bytes())
    forged = bytes(content).replace(opened.parts[0].part.encode(), b"0" * 32)
    (tmp_path / "forged.cloister").write_bytes(_described_anew(forged))
    found = refused(
        "data", "merge", south, tmp_path / "forged.cloister", *reach, "--out",
        tmp_path / "d.cloister",
    )  # fmt: skip
    assert f"forged.cloister: part {'0' * 32} is not registered as it stands" in found
    assert not (tmp_path / "d.cloister").exists()


def _twice(cloister, refused, path, out):
    assert cloister("data", "merge", path, "--out", out).code == 0
    return refused("data", "merge", path, "--out", out)


def _described_anew(content):
    """A file whose part has another name, with the digest of its description."""
    at = datasets.BLOCK_BYTES + len(datasets.PART_MAGIC)
    length, _ = datasets.SIZED.unpack_from(content, at)
    described = content[at + datasets.SIZED.size :][:length]
    sized = datasets.SIZED.pack(length, hashlib.sha256(described).digest())
    return content[:at] + sized + content[at + datasets.SIZED.size :]


def test_a_clinic_withdraws_its_own_part_and_single_samples(site, cloister, refused, tmp_path):
    _, second = site.authority.parts("set")
    north, south = site.reach(site.north), site.reach(site.south)
    found = refused("data", "withdraw", "set", *north, "--part", second.part)
    assert "were registered with another token" in found
    assert "registered with another" in refused("data", "withdraw", "set", *north, "--ids", "1,12")
    ran = cloister("data", "withdraw", "set", *south, "--part", second.part[:8])
    assert ran.code == 0, ran
    assert ran.out == "12 samples of data set set withdrawn, 12 are left\n"
    assert "have them train anew" in ran.err
    ran = cloister("data", "withdraw", "set", *north, "--ids", "1, 3-5")
    assert ran.out == "4 samples of data set set withdrawn, 8 are left\n"
    assert site.authority.withdrawn("set").spans == [(1, 2), (3, 6), (12, 24)]
    with pytest.raises(EncryptionError, match="sample 4 was withdrawn"):
        site.authority.ask(Labels("set", np.array([4], np.int64)), receiver="server")
    both = tmp_path / "all.cloister"
    assert cloister("data", "merge", *site.files, "--out", both).code == 0
    shown = json.loads(cloister("data", "show", both, *north, "--json").out)
    assert shown["withdrawn"] == 16
    assert shown["withdrawn_spans"] == [[1, 2], [3, 6], [12, 24]]
    text = cloister("data", "show", both, *north).out
    assert [line.split()[1:4] for line in text.splitlines()[-2:]] == [
        ["0", "12", "4"], ["12", "12", "12"],
    ]  # fmt: skip
    assert "withdrawn" not in cloister("data", "show", both).out
    listed = json.loads(cloister("authority", "list", tmp_path / "authority", "--json").out)
    assert listed[0]["withdrawn"] == 16


def test_what_cannot_be_withdrawn_is_named(site, refused):
    reach = site.reach(site.north)

    def said(*options, name="set"):
        return refused("data", "withdraw", name, *reach, *options)

    assert "give --part ID or --ids" in said()
    assert "no part begins with it" in said("--part", "zz")
    assert "no part begins with it" in said("--part", "")
    for ids in ("", "1,,2", "3-", "-3", "a", "1-2-3", "9" * 10):
        assert f"--ids {ids}: give sample numbers" in said(f"--ids={ids}")
    assert "at least one id" in said("--ids", "5-3")
    assert "holds no sample 24" in said("--ids", "20-24")
    assert "is not known" in said("--ids", "1", name="other")
    server = site.reach(site.token("server"))
    found = refused("data", "withdraw", "set", *server, "--ids", "1")
    assert "role server may not ask for withdraw" in found


def test_the_operator_withdraws_for_a_clinic(site, cloister, refused, tmp_path):
    folder, part = tmp_path / "authority", site.authority.parts("set")[1].part
    withdraw = ("authority", "withdraw", folder, "set", "--part", part, "--ids", "2")
    assert "is in use by another process" in refused(*withdraw)
    site.close()
    ran = cloister(*withdraw)
    assert ran.out == "13 samples of data set set withdrawn, 11 are left\n"
    site.authority = Authority(folder)
    assert site.authority.withdrawn("set").spans == [(2, 3), (12, 24)]


def test_a_run_after_a_withdrawal_leaves_the_clinic_out(site, cloister, tmp_path):
    pytest.importorskip("torch")
    both, run = tmp_path / "all.cloister", tmp_path / "run"
    assert cloister("data", "merge", *site.files, "--out", both).code == 0
    train = ("train", both, *site.reach(site.token("server")), "--batch", 4, "--json")
    before = cloister(*train, "--epochs", 1, "--checkpoint", run)
    assert before.code == 0, before
    spent = site.authority.spent("set")
    south = site.reach(site.south)
    part = site.authority.parts("set")[1].part
    assert cloister("data", "withdraw", "set", *south, "--part", part).code == 0
    resumed = cloister(*train, "--epochs", 2, "--checkpoint", run)
    assert resumed.code == 2
    assert "12 samples of data set set were withdrawn and are left out" in resumed.err
    assert "use another --checkpoint" in resumed.err
    again = cloister(*train, "--epochs", 1, "--checkpoint", tmp_path / "again")
    assert again.code == 0, again
    # The ledger keeps what was spent, and a repeat for the others is free.
    for name in ("rank", "bits", "labels"):
        np.testing.assert_array_equal(
            getattr(spent, name), getattr(site.authority.spent("set"), name)
        )
