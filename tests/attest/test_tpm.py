"""Quotes of TPMs: real ones of swtpm, recorded and live, and what no TPM would sign."""

import random
import shutil
import socket
import subprocess
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from struct import pack

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest.cases import VECTORS
from attest.forge import NOW, certificate, ec_key
from attest.played_tpm import ATTRIBUTES, DATA, PlayedTpm, sized
from attest.sessions import prover, verifier
from attest.tpm_server import RecordedTpm, answering, recorded, running, swtpm  # noqa: F401
from cloister.attest.appraisal import appraise
from cloister.attest.certificates import to_der
from cloister.attest.check_tree import CheckState
from cloister.attest.policy import Policy
from cloister.attest.tpm import REGISTERS, TpmEvidence
from cloister.attest.tpm_attester import TpmAttester
from cloister.attest.tpm_commands import Tpm, TpmDevice, open_tpm
from cloister.attest.tpm_structures import TpmKey
from cloister.attest.verified_evidence import Rooted
from cloister.attest.verify import verify
from cloister.errors import AttestationError, InputError, TpmError

QUOTES = [VECTORS / "tpm" / f"{name}.bin" for name in ("quote", "quote_rsassa", "quote_rsapss")]
STARTED = {0: b"\x11", 4: b"\x44", 7: b"\x77", 8: b"\x88", 9: b"\x99", 11: b"\xbb"}


def refuses(data, text):
    with pytest.raises(AttestationError, match=text):
        verify(data, now=NOW)


def policy(found, **fields):
    section = {"pcr4": [found.claims["pcr4"].hex()], "keys": [found.claims["key"].hex()]}
    return Policy.of({"tpm": {**section, **fields}})


@pytest.mark.parametrize("path", QUOTES, ids=lambda one: one.stem)
def test_quotes_of_swtpm_are_genuine_and_never_rooted_in_hardware(path):
    found = verify(path.read_bytes(), now=NOW)
    assert (found.format.value, found.report_data) == ("tpm", DATA)
    assert found.rooted is Rooted.SOFTWARE
    for index in REGISTERS:
        value = bytes(32) if index < 17 else b"\xff" * 32
        if index in STARTED:
            value = sha256(value + STARTED[index] * 32).digest()
        assert found.claims[f"pcr{index}"] == value
    appraised = appraise(found, policy(found), DATA)
    assert not appraised.hardware_rooted
    assert appraised.weakened == ()
    (root,) = [one for one in found.checks.parts if one.name == "root"]
    assert root.state is CheckState.NOT_CHECKED
    assert "no vendor's root is pinned" in root.detail


@pytest.mark.parametrize("path", QUOTES, ids=lambda one: one.stem)
def test_every_flipped_bit_of_a_quote_is_refused(path):
    data, draw = path.read_bytes(), random.Random(path.stem)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises(AttestationError):
            verify(bytes(changed), now=NOW)
            pytest.fail(f"byte {place} was flipped, and nobody noticed")


def test_the_attester_makes_the_recorded_quote_of_the_recorded_answers(tmp_path):
    with answering(tmp_path, recorded("evidence")) as tpm:
        assert TpmAttester(tpm.path).evidence(DATA) == QUOTES[0].read_bytes()
        assert tpm.left == []


def test_an_attester_that_binds_other_than_64_bytes_asks_nothing(tmp_path):
    for size in (0, 32, 63, 65):
        with pytest.raises(AttestationError, match=f"has {size} bytes, of 64"):
            TpmAttester(tmp_path / "none").evidence(bytes(size))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"magic": 0xFF544346}, "magic: expected 4283712327"),
        ({"kind": 0x8014}, "kind: expected 32792, found 32788"),
        ({"qualifying": bytes(32)}, "qualifying data: expected fdeab9"),
        ({"qualifying": DATA}, "qualifying data: expected fdeab9"),
        ({"safe": 2}, "clock is safe is neither 0 nor 1"),
        ({"behind": b"\0"}, "1 bytes behind it"),
        ({"behind_key": b"\0"}, "TPM key: 1 bytes behind it"),
        ({"attributes": ATTRIBUTES & ~(1 << 16)}, "attributes: expected restricted signing key"),
        ({"attributes": ATTRIBUTES | 1 << 17}, "attributes: expected restricted"),
        ({"attributes": ATTRIBUTES & ~(1 << 1)}, "attributes: expected restricted"),
        ({"attributes": ATTRIBUTES & ~(1 << 4)}, "attributes: expected restricted"),
        ({"attributes": ATTRIBUTES & ~(1 << 5)}, "attributes: expected restricted"),
        ({"attributes": ATTRIBUTES & ~(1 << 18)}, "attributes: expected restricted"),
        ({"name_hash": 0x0C}, "hash of its name: expected 11"),
        ({"scheme": (0x18, 0x04)}, "scheme: expected RSASSA"),
        ({"scheme": (0x10, 0x0B)}, "scheme: expected RSASSA"),
        ({"scheme": (0x14, 0x0B)}, "does not go with its scheme"),
        ({"curve": 4}, "is no point of its curve"),
        ({"curve": 0x10}, "curve: expected P-256 or P-384, found 0x10"),
        ({"kdf": 0x20}, "curve: expected"),
        ({"symmetric": 0x06}, "symmetric algorithm: expected 16"),
        ({"selection": pack(">I", 0)}, "banks of registers: expected 1"),
        ({"selection": pack(">IHB", 1, 0x04, 3) + b"\xff\xff\x7e"}, "bank: expected 0xb"),
        ({"selection": pack(">IHB", 1, 0x0B, 4) + b"\xff\xff\x7e\0"}, "size of the selection"),
        ({"selection": pack(">IHB", 1, 0x0B, 3) + b"\xff\xff\x7f"}, "registers: expected"),
        ({"selection": pack(">IHB", 1, 0x0B, 3) + b"\xfe\xff\x7e"}, "registers: expected"),
    ],
)  # fmt: skip
def test_statements_that_no_attestation_key_signs_are_refused(changed, text):
    verify(PlayedTpm().evidence(), now=NOW)
    refuses(PlayedTpm(**changed).evidence(), text)


def test_a_wrong_signature_or_register_is_refused():
    tpm = PlayedTpm()
    other = PlayedTpm(key=ec_key("another", ec.SECP256R1))
    refuses(tpm.evidence(signature=other.signature(tpm.statement)), "TPM signature: is wrong")
    refuses(tpm.evidence(key=other.public), "qualified name of the key: expected")
    long = pack(">HH", *tpm.scheme) + sized(bytes(33)) + sized(bytes(32))
    refuses(tpm.evidence(signature=long), "TPM signature: is wrong")
    zero = pack(">HH", *tpm.scheme) + sized(b"") + sized(b"")
    refuses(tpm.evidence(signature=zero), "TPM signature: is wrong")
    for value in (bytes(32), bytes(31), b""):
        changed = {**tpm.registers, 4: value}
        refuses(tpm.evidence(registers=changed), "digest of the registers|bytes of register 4")
    fewer = {index: value for index, value in tpm.registers.items() if index != 4}
    refuses(tpm.evidence(registers=fewer), "registers: expected")


def test_evidence_has_one_form():
    data = PlayedTpm().evidence()
    fields = cbor2.loads(data)
    refuses(cbor2.dumps({**fields, "more": b""}), "its fields are others")
    refuses(cbor2.dumps({**fields, "statement": "text"}), "a field is no byte string")
    refuses(cbor2.dumps({**fields, "registers": {24: bytes(32)}}), "no number from 0 to 23")
    refuses(cbor2.dumps({**fields, "registers": {True: bytes(32)}}), "no number from 0 to 23")
    refuses(cbor2.dumps({**fields, "registers": [bytes(32)]}), "is damaged")
    refuses(cbor2.dumps({**fields, "report_data": bytes(32)}), "has 32 bytes, of 64")
    swapped = dict(sorted(fields.items(), key=lambda one: (one[0] != "kind", one[0])))
    assert list(swapped) != list(fields)
    refuses(data + b"\0", "1 bytes behind it")
    # A tag for a regular expression, a name twice, and many brackets.
    name = cbor2.dumps("statement")
    refuses(data.replace(name, name + b"\xd8\x23", 1), "is no CBOR")
    refuses(b"\xa8" + data[1:] + cbor2.dumps("key") + cbor2.dumps(b""), "is no CBOR")
    refuses(data[:25] + b"\x81" * 4000, "is no CBOR")
    for other in (cbor2.dumps(swapped), cbor2.dumps({**fields, "key": bytes(99999)})):
        refuses(other, "one form|no format|bytes are more|is damaged")


def test_a_certificate_has_to_be_of_the_key_and_is_not_trusted():
    tpm = PlayedTpm()
    maker = ec_key("maker")
    own = certificate("tpm", tpm.key, "maker", maker)
    found = verify(tpm.evidence(certificate=to_der(own)), now=NOW)
    assert found.rooted is Rooted.SOFTWARE
    assert found.not_after == own.not_valid_after_utc
    (check,) = [one for one in found.checks.parts if one.name == "certificate"]
    assert check.detail == "of this key, by CN=maker, which is not verified"
    other = certificate("tpm", maker, "maker", maker)
    refuses(tpm.evidence(certificate=to_der(other)), "TPM certificate: key: expected")
    refuses(tpm.evidence(certificate=b"0"), "TPM certificate: is not a certificate")
    with pytest.raises(AttestationError, match="certificate tpm: time"):
        verify(tpm.evidence(certificate=to_der(own)), now=NOW + timedelta(days=60))


@pytest.mark.parametrize(
    ("parent", "name"),
    [(b"\x40\0\0\1", "owner"), (b"\x40\0\0\7", "other"), (b"\0\x0b" + bytes(32), "other")],
)
def test_counters_of_keys_elsewhere_are_not_claims(parent, name):
    found = verify(PlayedTpm(parent=parent).evidence(), now=NOW)
    assert found.claims["hierarchy"] == name
    refuses(PlayedTpm().evidence(parent=parent), "qualified name of the key: expected")
    with pytest.raises(AttestationError, match="reset_count: expected 99, found no such claim"):
        appraise(found, policy(found, max_reset_count=99), DATA)


def test_a_policy_names_registers_of_code_and_a_key():
    with pytest.raises(InputError, match=r"\[tpm\]: names no code; set pcr4 or pcr8"):
        Policy.of({"tpm": {"pcr0": ["00" * 32], "keys": ["00" * 32]}})
    with pytest.raises(InputError, match="names no key, and every program can play a TPM"):
        Policy.of({"tpm": {"pcr4": ["00" * 32]}})
    with pytest.raises(InputError, match="field 'pcr16' is not known"):
        Policy.of({"tpm": {"pcr4": ["00" * 32], "pcr16": ["00" * 32]}})
    found = verify(PlayedTpm().evidence(), now=NOW)
    lax = {"tpm": {"pcr4": [found.claims["pcr4"].hex()], "insecure_allow_any_key": True}}
    assert appraise(found, Policy.of(lax), DATA).weakened == ("insecure_allow_any_key",)


def test_a_register_that_was_not_quoted_is_not_what_the_policy_asks_for():
    tpm = PlayedTpm()
    tpm.registers = {4: tpm.registers[4]}
    found = verify(tpm.evidence(), now=NOW)
    appraise(found, policy(found), DATA)
    with pytest.raises(AttestationError, match=r"pcr7: expected 0707.* found no such claim"):
        appraise(found, policy(found, pcr7=["07" * 32]), DATA)


class TestSwtpm:
    """A TPM that runs."""

    def test_it_attests(self, swtpm):  # noqa: F811
        found = verify(TpmAttester(swtpm).evidence(DATA), now=NOW)
        assert appraise(found, policy(found, max_reset_count=1, clock_safe=True), DATA)
        again = verify(TpmAttester(swtpm).evidence(DATA[::-1]), now=NOW)
        assert again.claims["key"] == found.claims["key"]
        with pytest.raises(AttestationError, match="report data: expected"):
            appraise(again, policy(found), DATA)

    def test_a_restart_has_the_same_key_and_a_higher_count(self, swtpm, tmp_path):  # noqa: F811
        first = verify(TpmAttester(swtpm).evidence(DATA), now=NOW)
        state = tmp_path / "again"
        shutil.copytree(swtpm.parent, state, ignore=shutil.ignore_patterns("socket*"))
        with running(state) as path:
            second = verify(TpmAttester(path).evidence(DATA), now=NOW)
        assert second.claims["key"] == first.claims["key"]
        with pytest.raises(AttestationError, match="reset_count: expected at most 1, found 2"):
            appraise(second, policy(first, max_reset_count=1), DATA)

    def test_another_tpm_has_another_key(self, swtpm, tmp_path):  # noqa: F811
        first = verify(TpmAttester(swtpm).evidence(DATA), now=NOW)
        with running(tmp_path / "other") as path:
            other = verify(TpmAttester(path).evidence(DATA), now=NOW)
        with pytest.raises(AttestationError, match="key: expected"):
            appraise(other, policy(first), DATA)

    def test_it_leaves_no_key_behind(self, swtpm):  # noqa: F811
        """A TPM has room for three."""
        for _ in range(5):
            TpmAttester(swtpm).evidence(DATA)

    def test_tpm2_tools_accept_our_quote(self, swtpm, tmp_path):  # noqa: F811
        if shutil.which("tpm2_checkquote") is None:
            pytest.skip("tpm2-tools are not installed")
        made = TpmEvidence.decode(TpmAttester(swtpm).evidence(DATA))
        public = TpmKey.parse(made.key).key.public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        for name, data in (("k", public), ("m", made.statement), ("s", made.signature)):
            (tmp_path / name).write_bytes(data)
        command = ["tpm2_checkquote", "-u", "k", "-m", "m", "-s", "s", "-g", "sha256", "-q"]
        nonce = "fdeab9acf3710362bd2658cdc9a29e8f9c757fcf9811603a8c447cd1d9151108"
        subprocess.run([*command, nonce], cwd=tmp_path, check=True, capture_output=True)
        other = subprocess.run([*command, "00" * 32], cwd=tmp_path, capture_output=True)
        assert other.returncode != 0

    def test_a_conversation_on_it(self, swtpm):  # noqa: F811
        found = verify(TpmAttester(swtpm).evidence(DATA), now=NOW)
        asks = verifier(policy=policy(found))
        answer, proves = prover(attester=TpmAttester(swtpm)).answer(asks.offer())
        judges = asks.accept(answer)
        proves.confirm(judges.confirmation)
        assert judges.open(proves.seal(b"hello")) == b"hello"
        assert not judges.appraisal.hardware_rooted

    def test_errors_say_what_to_do(self, swtpm):  # noqa: F811
        with open_tpm(swtpm) as tpm, pytest.raises(TpmError, match="no such index or key") as found:
            tpm.increment(0x01800000)
        assert found.value.code == 0x8B


def test_a_device_takes_a_command_and_gives_its_answer():
    """A file that behaves as the kernel's device: a command written, then an answer read."""
    (command, answer), *_ = [one for one in recorded("evidence") if one[0][6:10] == PCR_READ]
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernels:
        kernels.send(answer)
        tpm = Tpm(TpmDevice(ours.fileno(), Path("device")))
        with pytest.raises(TpmError, match="gives registers"):
            tpm.registers([16])
        assert kernels.recv(4096) != command
        kernels.send(answer[:9])
        with pytest.raises(TpmError, match="another length than stated"):
            tpm.registers(REGISTERS)
        assert kernels.recv(4096) == command
    with pytest.raises(TpmError, match="device: Bad file descriptor"):
        Tpm(TpmDevice(-1, Path("device"))).registers(REGISTERS)


PCR_READ = bytes.fromhex("0000017e")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "ended in the middle of an answer"),
        (pack(">HII", 0x8002, 5, 0), "states an answer of 5 bytes"),
        (pack(">HII", 0x8002, 99999, 0), "states an answer of 99999 bytes"),
        (pack(">HII", 0x8001, 10, 0x100), "it was not started"),
        (pack(">HII", 0x8001, 10, 0x98E), "its owner set a password"),
        (pack(">HII", 0x8001, 10, 0x1FF), "code 0x1ff"),
        (pack(">HIII", 0x8002, 14, 0, 1), "TPM's answer: cut short"),
        (pack(">HIIII", 0x8002, 18, 0, 1, 99), "TPM's answer: cut short"),
    ],
)
def test_answers_that_no_tpm_gives_are_refused(tmp_path, answer, text):
    (command, _), *_ = recorded("evidence")
    with (
        answering(tmp_path, [(command, answer)]) as tpm,
        pytest.raises(AttestationError, match=text),
    ):
        TpmAttester(tpm.path).evidence(DATA)


def test_a_busy_tpm_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("cloister.attest.tpm_commands._BUSY_S", 0)
    first, *rest = recorded("evidence")
    busy = (first[0], pack(">HII", 0x8001, 10, 0x922))
    with answering(tmp_path, [busy, busy, first, *rest]) as tpm:
        assert TpmAttester(tpm.path).evidence(DATA) == QUOTES[0].read_bytes()
    (tmp_path / "recorded").unlink()
    with answering(tmp_path, [busy] * 60) as tpm, pytest.raises(TpmError, match="stays busy"):
        TpmAttester(tpm.path).evidence(DATA)


def test_registers_that_change_all_the_time_are_no_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr("cloister.attest.tpm_attester._fits", lambda made: False)
    first, *middle, last = recorded("evidence")
    with (
        answering(tmp_path, [first, *middle * 5, last]) as tpm,
        pytest.raises(AttestationError, match="registers change all the time"),
    ):
        TpmAttester(tpm.path).evidence(DATA)


def test_a_path_that_is_no_tpm(tmp_path):
    with pytest.raises(TpmError, match="none: No such file or directory; give a TPM"):
        TpmAttester(tmp_path / "none").evidence(DATA)
    RecordedTpm(tmp_path / "gone", []).close()
    with pytest.raises(TpmError, match="Connection refused"):
        TpmAttester(tmp_path / "gone").evidence(DATA)
