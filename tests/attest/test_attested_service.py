"""Attested conversations over HTTPS, whichever side proves itself."""

import hashlib
import ssl

import numpy as np
import pytest

from attest.sessions import CODE, MANIFEST, PlayedAttester, echo, prover, verifier
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_service import AttestedService
from cloister.attest.handshake_messages import Direction
from cloister.attest.simulated import SimulatedMachine
from cloister.base.identity import create_certificate
from cloister.errors import AttestationError, ChannelClosedError, InputError, ProtocolError

CALLEE, CALLER = Direction.CALLEE, Direction.CALLER
OTHER = PlayedAttester(SimulatedMachine("cd" * 32))


@pytest.fixture
def folder(tmp_path):
    create_certificate(tmp_path, "attested service")
    return tmp_path


def service(folder, side, **options):
    return AttestedService("127.0.0.1:0", folder=folder, start=side, operations=echo, **options)


def client(url, side, **options):
    return AttestedClient(url, start=side, retry_for_s=0, **options)


@pytest.mark.parametrize("direction", Direction)
def test_either_side_may_prove_itself(folder, direction):
    sides = (lambda: prover(direction)), (lambda: verifier(direction, context=b"bundle"))
    serves, calls = sides if direction is CALLEE else sides[::-1]
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    with service(folder, serves) as running, client(running.url, calls) as calling:
        for count in range(3):
            answer = calling.call("echo", {"count": count}, (data,))
            assert answer.number("count") == count
            np.testing.assert_array_equal(answer.tensors[0], data)
        described = calling.call("context")
        assert bytes.fromhex(described.text("context")) == b"bundle"
        assert described.text("label") == calling.channel.exporter("x").hex()
        assert calling.channel.manifest == MANIFEST
        calling.reattest()
        assert calling.call("echo", {"after": True}).fields == {"after": True}
        if direction is CALLEE:
            assert calling.appraisal.evidence.claims["measurement"] == bytes.fromhex(CODE)
            assert calling.appraisal.manifest == hashlib.sha256(MANIFEST).digest()
        else:
            with pytest.raises(AttestationError, match="proved nothing"):
                calling.appraisal  # noqa: B018


def test_the_client_refuses_a_service_of_another_measurement(folder):
    with (
        service(folder, lambda: prover(attester=OTHER)) as running,
        pytest.raises(AttestationError, match="measurement: expected abab"),
    ):
        client(running.url, verifier)


def test_the_service_refuses_a_caller_of_another_measurement(folder):
    with (
        service(folder, lambda: verifier(CALLER)) as running,
        pytest.raises(AttestationError, match="measurement: expected abab"),
    ):
        client(running.url, lambda: prover(CALLER, attester=OTHER))


def test_errors_of_operations_cross_by_class_and_the_conversation_goes_on(folder):
    with service(folder, prover) as running, client(running.url, verifier) as calling:
        with pytest.raises(ProtocolError, match="'nothing' is not known"):
            calling.call("nothing")
        with pytest.raises(ProtocolError, match="at most"):
            calling.call("context", {"x": "x" * 2000})
        assert calling.call("echo", {"still": 1}).number("still") == 1


def test_a_closed_conversation_is_over(folder):
    with service(folder, prover) as running:
        calling = client(running.url, verifier)
        calling.call("echo")
        calling.close()
        with pytest.raises(ChannelClosedError):
            calling.call("echo")


def test_a_pinned_certificate_is_compared(folder):
    pem = (folder / "certificate.pem").read_text()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    with service(folder, prover) as running:
        with client(running.url, verifier, certificate=digest) as calling:
            calling.call("echo")
        with pytest.raises(Exception, match="another certificate"):
            client(running.url, verifier, certificate=bytes(32))
        with pytest.raises(InputError, match="32 bytes, not 5"):
            client(running.url, verifier, certificate=bytes(5))


def test_roles_that_do_not_fit_are_refused(folder):
    with service(folder, prover) as running:
        with pytest.raises(ProtocolError, match="judges nobody"):
            client(running.url, lambda: prover(CALLER))
        with pytest.raises(InputError, match="callee-attests"):
            client(running.url, lambda: verifier(CALLER))
