"""`--maker` of the commands: pads of another party, by TLS, and what is refused."""

import json

import pytest

from cloister.base.tls_identity import TlsIdentity
from cloister.worker.byzantine import Lie
from cloister.worker.serve import start_server

ONE_PARTY = ("--insecure-one-party",)
"""Tests have one machine."""


@pytest.fixture
def maker(tmp_path):
    """Starts a maker; the options that reach it."""
    servers = []

    def start(name="maker", **options):
        identity = TlsIdentity.open_or_create(tmp_path / name)
        servers.append(start_server("127.0.0.1:0", identity=identity, **options))
        certificate = tmp_path / name / "certificate.pem"
        return ("--maker", servers[-1].address, "--maker-certificate", certificate)

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def store(tmp_path):
    return (tmp_path / "pads", "--key", tmp_path / "key")


def run_of(cloister, *words):
    done = cloister("run", "--json", *words)
    assert done.code == 0, done
    return json.loads(done.out)


def values(found):
    return [output["values"] for output in found["outputs"]]


def test_a_run_has_its_pads_made_elsewhere(cloister, model_file, pictures, maker):
    calibration = ("--calibration", pictures[0].parent)
    plain = run_of(cloister, model_file, *pictures, *calibration)
    made = run_of(cloister, model_file, *pictures, *calibration, *maker(), *ONE_PARTY)
    assert values(made) == values(plain)
    report, statements = made["report"], made["claims"]["statements"]
    assert report["pads_from"].startswith("maker, of one party with a worker")
    assert len(report["makers"]) == 1
    assert {"maker of pads", "worker"} <= {statement["role"] for statement in statements}


def test_a_store_is_filled_by_makers_and_used(cloister, model_file, pictures, maker, store):
    makers = maker("a"), maker("b")
    make = ("pads", "make", model_file, *store, "--calibration", pictures[0].parent)
    made = cloister(*make, "--count", 3, "--block-rows", 2, *makers[0], *makers[1])
    assert made.code == 0, made
    assert "made by makers" in cloister("pads", "status", *store).out
    assert "3 pad sets made, 3 ready" in made.out
    assert "no worker of a run with them may be of their party" in made.err.replace("\n", " ")
    pads = ("--pads", store[0], "--key", store[2])
    refused = cloister("run", model_file, *pads, *pictures)
    assert refused.code != 0
    assert "one party" in refused.err
    found = run_of(cloister, model_file, *pads, *pictures, *ONE_PARTY)
    plain = run_of(cloister, model_file, *pictures, "--calibration", pictures[0].parent)
    assert values(found) == values(plain)


def test_a_lie_is_refused_and_says_whose_it_may_be(cloister, model_file, pictures, maker):
    lying = maker(insecure_lie=Lie.GARBAGE)
    done = cloister(
        "run", model_file, *pictures, "--calibration", pictures[0].parent, *lying, *ONE_PARTY
    )
    assert done.code != 0
    assert f"the pads that maker {lying[1]} made are" in done.err.replace("\n", " ")
    assert "cannot be told" in done.err.replace("\n", " ")


def test_another_certificate_is_refused(cloister, model_file, pictures, maker):
    right, other = maker("right"), maker("other")
    done = cloister(
        "run", model_file, *pictures, "--calibration", pictures[0].parent, *ONE_PARTY,
        "--timeout", 20, *right[:3], other[3],
    )  # fmt: skip
    assert done.code != 0
    assert "another certificate" in done.err.replace("\n", " ")


def test_what_does_not_go_together_is_refused(refused, model_file, pictures, store, tmp_path):
    here = ("--maker", "127.0.0.1:7000")
    certificate = ("--maker-certificate", tmp_path / "certificate.pem")
    run, make = ("run", model_file, *pictures), ("pads", "make", model_file, "--count", 1, *store)
    for verb in (run, make):
        assert "--maker-certificate: 0 for 1" in refused(*verb, *here)
        assert "--maker-certificate: 2 for 1" in refused(*verb, *here, *certificate, *certificate)
        assert "--maker" in refused(*verb, *certificate)
        assert "--maker" in refused(*verb, "--insecure-plaintext")
    assert "no such file" in refused(*make, *here, *certificate)
    assert "no such file" in refused(
        *run, *here, *certificate, *ONE_PARTY, "--calibration", pictures[0].parent
    )
    assert "--maker or --pads" in refused(*run, *ONE_PARTY)
    assert "--maker" in refused(*run, *here, *certificate, "--pads", store[0], "--key", store[2])
    assert "--worker" in refused(*make, *here, *certificate, "--worker", "10.0.0.1:7000")
    one_party = refused(*run, *here, "--insecure-plaintext")
    assert "one party" in one_party
    assert not store[2].exists()


def test_plans_that_would_not_notice_a_lie_are_refused(refused, model_file, pictures, store):
    here = ("--maker", "10.0.0.1:7000", "--insecure-plaintext", "--policy", "blinded")
    calibration = ("--calibration", pictures[0].parent)
    for verb in (
        ("run", model_file, *pictures),
        ("pads", "make", model_file, "--count", 1, *store),
    ):
        assert "not checked" in refused(*verb, *here, *calibration)
    assert not store[2].exists()


def test_pads_from_makers_without_encryption_warn(cloister, model_file, pictures, store):
    server = start_server("127.0.0.1:0")
    try:
        done = cloister(
            "pads", "make", model_file, *store, "--count", 1, "--calibration", pictures[0].parent,
            "--maker", server.address, "--insecure-plaintext",
        )  # fmt: skip
    finally:
        server.close()
    assert done.code == 0, done
    assert "a listener knows the pads" in done.err.replace("\n", " ")
