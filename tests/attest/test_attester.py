"""Evidence of this machine, against folders that behave as the kernel's do."""

import ctypes
import shutil
from contextlib import contextmanager

import cbor2
import pytest

from attest.cases import VECTORS
from cloister.attest import attester, nsm_attester
from cloister.attest.attester import attesters
from cloister.base.rng import SystemRandom
from cloister.errors import AttestationError

DATA = bytes(range(64))
RNG = SystemRandom()


class Tsm:
    """The kernel's folder: an entry has files, and each write adds one to its generation."""

    def __init__(self, root, monkeypatch, provider="sev_guest"):
        self.folder = root / "sys/kernel/config/tsm/report"
        self.folder.mkdir(parents=True)
        self.provider, self.made, self.removed, self.others = provider, [], [], 0
        self.aux = b"certificates"
        monkeypatch.setattr(attester, "_entry", self.entry)
        monkeypatch.setattr(attester, "_write", self.write)

    @contextmanager
    def entry(self, path):
        path.mkdir()
        self.made.append(path)
        (path / "provider").write_text(self.provider + "\n")
        (path / "generation").write_text("0\n")
        if self.aux:
            (path / "auxblob").write_bytes(self.aux)
        try:
            yield path
        finally:
            shutil.rmtree(path)
            self.removed.append(path)

    def write(self, path, data):
        assert path.name == "inblob"
        generation = path.parent / "generation"
        generation.write_text(f"{int(generation.read_text()) + 1 + self.others}\n")
        (path.parent / "outblob").write_bytes(b"report of " + data)


@pytest.mark.parametrize(("provider", "kind"), [("sev_guest", "sev-snp"), ("tdx_guest", "tdx")])
def test_a_report_of_the_kernel_binds_our_bytes(tmp_path, monkeypatch, provider, kind):
    tsm = Tsm(tmp_path, monkeypatch, provider)
    (found,) = attesters(rng=RNG, root=tmp_path)
    assert found.format.value == kind
    assert found.evidence(DATA) == b"report of " + DATA + b"certificates"
    tsm.aux = b""
    assert found.evidence(DATA) == b"report of " + DATA
    assert tsm.made == tsm.removed
    assert len(set(tsm.made)) == len(tsm.made)


def test_another_writer_to_the_entry_is_noticed(tmp_path, monkeypatch):
    tsm = Tsm(tmp_path, monkeypatch)
    (found,) = attesters(rng=RNG, root=tmp_path)
    tsm.others = 1
    with pytest.raises(AttestationError, match="generation 2 where 1 was expected"):
        found.evidence(DATA)
    assert tsm.made == tsm.removed


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_only_whole_report_data_is_bound(tmp_path, monkeypatch, size):
    Tsm(tmp_path, monkeypatch)
    (found,) = attesters(rng=RNG, root=tmp_path)
    with pytest.raises(AttestationError, match=f"has {size} bytes, of 64"):
        found.evidence(bytes(size))


def test_an_unknown_provider_proves_nothing(tmp_path, monkeypatch):
    Tsm(tmp_path, monkeypatch, "somebody")
    assert attesters(rng=RNG, root=tmp_path) == []


def test_gramine(tmp_path):
    folder = tmp_path / "dev/attestation"
    folder.mkdir(parents=True)
    (folder / "user_report_data").write_bytes(b"")
    (folder / "quote").write_bytes(b"quote")
    (found,) = attesters(rng=RNG, root=tmp_path)
    assert (found.format.value, found.evidence(DATA)) == ("sgx", b"quote")
    assert (folder / "user_report_data").read_bytes() == DATA
    (folder / "quote").write_bytes(b"")
    with pytest.raises(AttestationError, match="gave no quote; enable remote attestation"):
        found.evidence(DATA)


def test_a_machine_without_any(tmp_path):
    assert attesters(rng=RNG, root=tmp_path) == []


def test_a_tpm_comes_after_what_says_more(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tpmrm0").touch()
    (found,) = attesters(rng=RNG, root=tmp_path)
    assert (found.format.value, found.name) == ("tpm", f"{tmp_path}/dev/tpmrm0")
    Tsm(tmp_path, monkeypatch)
    other = attesters(rng=RNG, root=tmp_path, tpm=tmp_path / "socket")
    assert [one.format.value for one in other] == ["sev-snp", "tpm"]
    assert other[1].name == f"{tmp_path}/socket"


class Nsm:
    """The kernel's driver of a Nitro security module: reads a request, writes a response."""

    def __init__(self, root, monkeypatch, response):
        (root / "dev").mkdir()
        (root / "dev/nsm").touch()
        self.response, self.asked = response, []
        monkeypatch.setattr(nsm_attester.fcntl, "ioctl", self.ioctl)

    def ioctl(self, file, number, message):
        assert number == 0xC0200A00
        request = ctypes.string_at(message.request.base, message.request.length)
        self.asked.append(cbor2.loads(request))
        if isinstance(self.response, OSError):
            raise self.response
        assert len(self.response) <= message.response.length
        ctypes.memmove(message.response.base, self.response, len(self.response))
        message.response.length = len(self.response)


def test_a_nitro_enclave(tmp_path, monkeypatch):
    document = (VECTORS / "nitro" / "debug_mode.bin").read_bytes()
    nsm = Nsm(tmp_path, monkeypatch, cbor2.dumps({"Attestation": {"document": document}}))
    (found,) = attesters(rng=RNG, root=tmp_path)
    assert (found.format.value, found.name) == ("nitro", f"{tmp_path}/dev/nsm")
    assert found.evidence(DATA) == document
    asked = {"user_data": DATA, "nonce": None, "public_key": None}
    assert nsm.asked == [{"Attestation": asked}]
    with pytest.raises(AttestationError, match="has 32 bytes, of 64"):
        found.evidence(DATA[:32])


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (cbor2.dumps({"Error": "InvalidOperation"}), "refuses to attest: InvalidOperation"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "is no byte string"),
        (cbor2.dumps({"Attestation": {}}), "response is damaged"),
        (cbor2.dumps(["Attestation"]), "response is damaged"),
        (b"\xff", "its response: is no CBOR"),
        (cbor2.dumps({"Error": "x"}) + b"\0", "its response: 1 bytes behind it"),
        (b"", "states 0 bytes"),
        (OSError(25, "Inappropriate ioctl for device"), "Inappropriate ioctl for device"),
    ],
)
def test_a_nitro_module_that_does_not_attest(tmp_path, monkeypatch, response, text):
    Nsm(tmp_path, monkeypatch, response)
    (found,) = attesters(rng=RNG, root=tmp_path)
    with pytest.raises(AttestationError, match=text):
        found.evidence(DATA)
