"""`cloister attest` as people use it, on real evidence."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attest.cases import VECTORS
from attest.tpm_server import answering, recorded

QUOTE = VECTORS / "tdx" / "tdx_quote"
GIVEN = ("--collateral", VECTORS / "tdx" / "tdx_quote_collateral.json")
NOW = ("--now", "2025-06-19T12:00Z")
MRTD = (
    "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407"
    "de03ae6dc5f87f27428b2538873118b7"
)


@pytest.fixture
def policy(tmp_path):
    """Writes a policy that names the quote's code, and what else is given."""

    def write(*lines, mrtd=MRTD):
        path = tmp_path / "policy.toml"
        path.write_text("\n".join(("[tdx]", f'mrtd = ["{mrtd}"]', *lines)))
        return path

    return write


def test_a_quote_that_the_policy_accepts(cloister, policy):
    ran = cloister("attest", "verify", QUOTE, *GIVEN, *NOW, "--policy", policy())
    assert ran.code == 0
    for text in (
        "passed       signature", "passed       TCB: UpToDate", "passed       mrtd",
        "not checked  rtmr0: the policy does not ask for it", "verdict: accepted",
        "not checked  report data: nothing was expected",
    ):  # fmt: skip
        assert text in ran.out


def test_without_a_policy_the_verdict_is_not_that_it_is_trusted(cloister):
    ran = cloister("attest", "verify", QUOTE, *NOW)
    assert ran.code == 0
    assert "verdict: genuine, not appraised" in ran.out
    assert "not checked  TCB: no TCB information" in ran.out


def test_a_runtimes_manifest_is_compared(cloister, policy, tmp_path):
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(b"{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    asks = policy("[runtime]", f'manifests = ["{digest}"]')
    arguments = ("attest", "verify", QUOTE, *GIVEN, *NOW, "--policy", asks)
    ran = cloister(*arguments, "--manifest", manifest)
    assert ran.code == 0
    assert "passed       manifest" in ran.out
    ran = cloister(*arguments)
    assert ran.code == 3
    assert "manifest: expected the runtime's manifest, found none" in ran.err
    manifest.write_bytes(b"{ }")
    ran = cloister(*arguments, "--manifest", manifest)
    assert (ran.code, "failed       manifest" in ran.out) == (3, True)


def test_a_quote_of_other_code_is_refused_by_name(cloister, policy):
    ran = cloister("attest", "verify", QUOTE, *GIVEN, *NOW, "--policy", policy(mrtd="00" * 48))
    assert ran.code == 3
    assert ran.out.startswith("failed       tdx evidence")
    assert "failed       mrtd" in ran.out
    assert "not checked  tcb_statuses" in ran.out
    assert "verdict: refused" in ran.out
    assert "mrtd: expected 000000" in ran.err
    assert "the policy's field mrtd decides" in ran.err


def test_missing_collateral_is_refused_unless_the_policy_does_without(cloister, policy):
    ran = cloister("attest", "verify", QUOTE, *NOW, "--policy", policy())
    assert ran.code == 3
    assert "tcb_status: expected UpToDate, found no such claim" in ran.err
    assert "Intel's documents say; give them in --collateral" in ran.err
    path = policy("insecure_allow_unknown_tcb = true", "insecure_allow_unknown_revocation = true")
    ran = cloister("attest", "verify", QUOTE, *NOW, "--policy", path, "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["verdict"] == "accepted"
    assert found["hardware_rooted"] is False
    assert found["weakened"] == ["insecure_allow_unknown_revocation", "insecure_allow_unknown_tcb"]


def test_json_says_everything_also_of_what_is_refused(cloister, policy):
    data = "9a9d48e7f6799642d3d1b34e1e5e1742d4bb02dd6ddd551862c1211d35c304f9eca3efdbb481601c163cf52493d6e44aed55d51ec39b7e518fadb92c2b523f20"  # fmt: skip  # noqa: E501
    arguments = ("attest", "verify", QUOTE, *GIVEN, *NOW, "--policy", policy(), "--json")
    ran = cloister(*arguments, "--report-data", data)
    found = json.loads(ran.out)
    assert (ran.code, found["verdict"], found["hardware_rooted"]) == (0, "accepted", True)
    assert found["claims"]["tcb_status"] == "UpToDate"
    ran = cloister(*arguments, "--report-data", data[:-2] + "21")
    found = json.loads(ran.out)
    assert (ran.code, found["verdict"]) == (3, "refused")
    assert found["refused"].startswith("report data: expected 9a9d48")
    # What is short is not filled up.
    ran = cloister(*arguments, "--report-data", data[:64])
    found = json.loads(ran.out)
    assert (ran.code, found["verdict"]) == (3, "refused")
    assert found["refused"].startswith("report data: number of bytes: expected 32, found 64")


def test_evidence_that_cannot_be_verified_has_failed_as_a_whole(cloister, tmp_path):
    (tmp_path / "cut.dat").write_bytes(QUOTE.read_bytes()[:2000])
    ran = cloister("attest", "verify", tmp_path / "cut.dat", *NOW)
    assert ran.code == 3
    assert ran.out.startswith("failed       tdx evidence")
    assert "form: Intel quote: cut short: 2000 bytes, needs 4936" in ran.out
    assert "not checked  signature" in ran.out
    (tmp_path / "notes.txt").write_text("hello")
    ran = cloister("attest", "verify", tmp_path / "notes.txt", *NOW)
    assert ran.out.startswith("failed       ")


def test_a_list_that_has_expired_is_refused_with_times_to_the_second(cloister):
    ran = cloister("attest", "verify", QUOTE, *GIVEN, "--now", "2026-01-31T12:00:00.123456Z")
    assert ran.code == 3
    assert "found 2026-01-31T12:00:00+00:00; fetch a new list" in ran.err.replace("\n", " ")


def test_files_that_are_not_recognised_are_named(cloister, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    ran = cloister("attest", "verify", QUOTE, "--collateral", tmp_path, *NOW)
    assert "collateral notes.txt: not recognised, not used" in ran.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("missing.bin",), "missing.bin: no such file"),
        ((QUOTE, "--collateral", "missing"), "collateral missing: no such file or folder"),
        ((QUOTE, "--now", "soon"), "--now soon: must be such as"),
        ((QUOTE, "--now", "2025-06-19T12:00"), "has no time zone; write it such as"),
        ((QUOTE, "--report-data", "00"), "--report-data: goes with --policy"),
        ((QUOTE, "--manifest", QUOTE), "--manifest: goes with --policy"),
        ((QUOTE, "--policy", "missing.toml"), "missing.toml: no such file"),
    ],
)
def test_bad_options_are_refused(cloister, arguments, text):
    ran = cloister("attest", "verify", *arguments)
    assert ran.code == 2
    assert text in ran.err


def test_a_new_policy_names_no_code_yet(cloister, tmp_path):
    path = tmp_path / "policy.toml"
    assert cloister("attest", "policy", "init", path).code == 0
    ran = cloister("attest", "verify", QUOTE, "--policy", path)
    assert ran.code == 2
    assert "[sev-snp]: names no code; set measurements" in ran.err
    ran = cloister("attest", "policy", "init", path)
    assert ran.code == 2
    assert "exists already" in ran.err


def test_this_machine_and_a_simulated_one(cloister, tmp_path):
    assert "nothing: no interface" in cloister("attest", "show").out
    out = tmp_path / "evidence.json"
    ran = cloister("attest", "show", "--out", out)
    assert (ran.code, out.exists()) == (3, False)
    assert "has no interface that proves anything" in ran.err
    key = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(key)
    simulated = ("--insecure-simulated", tmp_path / "key.pem")
    ran = cloister("attest", "show", "--out", out, "--report-data", "00ff", *simulated)
    assert (ran.code, out.exists()) == (2, False)
    assert "--report-data: has 2 bytes, of 64; machines fill up what is short" in ran.err
    asked = ("--report-data", "00ff" + "00" * 62)
    ran = cloister("attest", "show", "--out", out, *asked, *simulated)
    assert "insecure-simulated" in ran.out
    ran = cloister("attest", "verify", out, "--json")
    found = json.loads(ran.out)
    assert found["report_data"] == "00ff" + "00" * 62
    assert found["hardware_rooted"] is False
    (tmp_path / "key.pem").write_bytes(b"none")
    ran = cloister("attest", "show", "--out", out, *simulated)
    assert (ran.code, "is no Ed25519 key in PEM" in ran.err) == (2, True)
    ran = cloister("attest", "show", "--report-data", "00")
    assert (ran.code, "--report-data: goes with --out" in ran.err) == (2, True)


def test_a_tpm_that_is_not_there_is_not_listed(cloister, tmp_path):
    ran = cloister("attest", "show", "--tpm", tmp_path / "none")
    assert (ran.code, ran.out) == (2, "")
    assert "no such device or socket" in ran.err


def test_a_tpm_by_its_socket(cloister, tmp_path):
    asked = ("--out", tmp_path / "quote", "--report-data", bytes(range(64)).hex())
    with answering(tmp_path, recorded("evidence")) as tpm:
        ran = cloister("attest", "show", "--tpm", tpm.path, *asked)
    assert ran.code == 0
    assert "a TPM proves how the machine started, not what reads its memory" in ran.out
    assert (tmp_path / "quote").read_bytes() == (VECTORS / "tpm" / "quote.bin").read_bytes()
    ran = cloister("attest", "verify", tmp_path / "quote", "--json")
    found = json.loads(ran.out)
    assert (found["format"], found["rooted"], found["hardware_rooted"]) == (
        "tpm",
        "software",
        False,
    )
