"""Simulated evidence: accepted only by a section of its own name, and never hardware-rooted."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from attest.cases import LENIENT
from attest.forge import NOW
from cloister.attest.appraisal import appraise
from cloister.attest.policy import Policy
from cloister.attest.simulated import SimulatedAttester, SimulatedMachine
from cloister.attest.verify import verify
from cloister.errors import AttestationError, InputError

KEY = Ed25519PrivateKey.generate()
CODE = "ab" * 32
MACHINE = SimulatedMachine(CODE)
DATA = bytes(range(64))
POLICY = Policy.of({"insecure-simulated": {"measurements": [CODE]}})


def test_it_says_what_it_is():
    found = verify(MACHINE.evidence(DATA, key=KEY), now=NOW)
    appraised = appraise(found, POLICY, DATA)
    assert found.claims["key"] == KEY.public_key().public_bytes_raw()
    assert not found.hardware_rooted
    assert not appraised.hardware_rooted
    with pytest.raises(AttestationError, match=r"no section \[insecure-simulated\]"):
        appraise(found, LENIENT, DATA)
    with pytest.raises(AttestationError, match="report data: expected"):
        appraise(found, POLICY, DATA[::-1])


def test_a_pinned_key_and_debug_mode():
    pinned = {"measurements": [CODE], "keys": ["00" * 32]}
    found = verify(MACHINE.evidence(DATA, key=KEY), now=NOW)
    with pytest.raises(AttestationError, match="key: expected 0000"):
        appraise(found, Policy.of({"insecure-simulated": pinned}), DATA)
    debug = SimulatedMachine(CODE, debug=True).evidence(DATA, key=KEY)
    with pytest.raises(AttestationError, match="debug: expected false, found true"):
        appraise(verify(debug, now=NOW), POLICY, DATA)


def test_every_changed_byte_is_refused():
    evidence = MACHINE.evidence(DATA, key=KEY)
    for place in range(len(evidence)):
        changed = bytearray(evidence)
        changed[place] ^= 1
        with pytest.raises(AttestationError):
            verify(bytes(changed), now=NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [("svn", True), ("svn", "1"), ("debug", 0), ("measurement", "zz"), ("chip_id", None),
     ("report_data", "00"), ("key", "00")],
)  # fmt: skip
def test_fields_of_other_types_are_refused(name, value):
    fields = json.loads(MACHINE.evidence(DATA, key=KEY))
    fields["body"][name] = value
    with pytest.raises(AttestationError):
        verify(json.dumps(fields).encode(), now=NOW)


def test_it_binds_64_bytes():
    with pytest.raises(AttestationError, match="has 32 bytes, of 64"):
        MACHINE.evidence(DATA[:32], key=KEY)


def _file(path, text):
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(text.encode() + pem)
    return SimulatedAttester(path)


def test_a_key_file_may_describe_the_machine(tmp_path):
    text = f'measurement = "{CODE}"\nchip_id = "{"01" * 64}"\ndebug = true\nsvn = 7\n'
    claims = verify(_file(tmp_path / "m.pem", text).evidence(DATA), now=NOW).claims
    assert (claims["measurement"], claims["chip_id"]) == (bytes.fromhex(CODE), b"\1" * 64)
    assert (claims["debug"], claims["svn"]) == (True, 7)
    plain = verify(_file(tmp_path / "plain.pem", "").evidence(DATA), now=NOW)
    assert (plain.claims["measurement"], plain.claims["debug"]) == (bytes(32), False)


@pytest.mark.parametrize(
    ("text", "found"),
    [("svn = 'x'\n", "svn: must be int"), ("size = 1\n", "field 'size' is not known"),
     ("not toml\n", "describes no machine")],
)  # fmt: skip
def test_a_key_file_that_describes_no_machine_is_refused(tmp_path, text, found):
    with pytest.raises(InputError, match=found):
        _file(tmp_path / "m.pem", text).evidence(DATA)
