"""SEV-SNP reports that no real vector shows: other products, versions and wrappers; forgeries."""

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attest.forge import NOW, Amd, azure, azure_runtime, certificate, ec_key, rsa_key, table
from cloister.attest import sev_snp
from cloister.attest.certificates import to_der
from cloister.attest.collateral import Collateral
from cloister.attest.verify import verify
from cloister.errors import AttestationError


@pytest.fixture
def amd(monkeypatch):
    """Makes vendors, whose roots are the pinned ones from then on."""

    def make(**options):
        vendor = Amd(**options)
        monkeypatch.setattr(sev_snp, "roots", lambda name: (vendor.root,))
        return vendor

    return make


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_product_and_version(amd, product, version):
    vendor = amd(product=product)
    found = verify(vendor.report(version=version), vendor.collateral, now=NOW)
    assert (found.claims["product"], found.claims["version"]) == (product, version)
    assert found.claims["reported_tcb"]["microcode"] == 213
    assert ("fmc" in found.claims["reported_tcb"]) == (product == "Turin")


@pytest.mark.parametrize("version", [0, 1, 6, 255])
def test_other_versions_are_refused(amd, version):
    vendor = amd()
    with pytest.raises(AttestationError, match=f"version: expected 2 to 5, found {version}"):
        verify(vendor.report(version=version), vendor.collateral, now=NOW)


def test_a_vlek_names_no_chip(amd):
    vendor = amd(leaf="SEV-VLEK")
    found = verify(vendor.report(), vendor.collateral, now=NOW)
    assert found.claims["signing_key"] == "VLEK"


def test_a_report_of_the_other_kind_of_key_is_refused(amd):
    vendor = amd()
    report = vendor.report(changes=[(0x48, b"\x04")])
    with pytest.raises(AttestationError, match="no SEV-VLEK certificate is given"):
        verify(report, vendor.collateral, now=NOW)
    with pytest.raises(AttestationError, match="signing key: expected"):
        verify(vendor.report(changes=[(0x48, b"\x1c")]), vendor.collateral, now=NOW)


@pytest.mark.parametrize("level", ["bootloader", "tee", "snp", "microcode"])
def test_a_report_above_or_below_its_certificate_is_refused(amd, level):
    vendor = amd()
    for step in (-1, 1):
        if vendor.levels[level] + step < 0:
            continue
        report = vendor.report(tcb=vendor.tcb(**{level: vendor.levels[level] + step}))
        with pytest.raises(AttestationError, match=f"TCB level {level}: expected"):
            verify(report, vendor.collateral, now=NOW)


def test_the_report_of_another_chip_is_refused(amd):
    vendor = amd()
    other = vendor.report(changes=[(0x1A0, b"\xff")])
    with pytest.raises(AttestationError, match="chip id: expected"):
        verify(other, vendor.collateral, now=NOW)
    with pytest.raises(AttestationError, match="hides its chip id"):
        verify(vendor.report(changes=[(0x48, b"\x02")]), vendor.collateral, now=NOW)


@pytest.mark.parametrize(
    ("offset", "text"),
    [(0x4C, "0x4c to 0x50"), (0x18B, "0x18b to"), (0x1EB, "0x1eb"), (0x1EF, "0x1ef"),
     (0x208, "0x208"), (0x29F, "0x208"), (8 + 3, "bits that this version")],
)  # fmt: skip
def test_gaps_that_are_not_empty_are_refused(amd, offset, text):
    vendor = amd()
    report = vendor.report(changes=[(offset, b"\x80")])
    with pytest.raises(AttestationError, match=text):
        verify(report, vendor.collateral, now=NOW)


@pytest.mark.parametrize("offset", [0x2A0 + 48, 0x2A0 + 71, 0x2E8 + 48, 0x330, 1183])
def test_gaps_behind_the_signature_are_refused(amd, offset):
    vendor = amd()
    report = bytearray(vendor.report())
    report[offset] = 1
    with pytest.raises(AttestationError, match="must be zero"):
        verify(bytes(report), vendor.collateral, now=NOW)


def test_a_report_of_another_key_is_refused(amd):
    vendor = amd()
    with pytest.raises(AttestationError, match="signature is wrong"):
        verify(vendor.report(key=ec_key("attacker")), vendor.collateral, now=NOW)


def test_a_certificate_on_another_curve_is_refused(amd, monkeypatch):
    monkeypatch.setattr("attest.forge.ec_key", lambda name: ec_key(name, ec.SECP256R1))
    vendor = amd()
    monkeypatch.undo()
    monkeypatch.setattr(sev_snp, "roots", lambda name: (vendor.root,))
    report = vendor.report(key=ec_key("attacker"))
    with pytest.raises(AttestationError, match="not on the curve secp384r1"):
        verify(report, vendor.collateral, now=NOW)


def test_a_chain_to_another_root_is_refused(amd):
    theirs = amd(product="Genoa")
    # The same names, another key at the top.
    forged = certificate("SEV-Genoa", rsa_key("ask"), "ARK-Genoa", rsa_key("evil"), ca=True)
    given = Collateral(certificates=(theirs.vcek, forged))
    with pytest.raises(AttestationError, match="SEV-Genoa: is not signed by ARK-Genoa"):
        verify(theirs.report(), given, now=NOW)


def test_an_expired_chip_certificate_is_refused(amd):
    vendor = amd(leaf_options={"days": 3})
    later = NOW.replace(day=10)
    with pytest.raises(AttestationError, match="certificate SEV-VCEK: time: expected"):
        verify(vendor.report(), vendor.collateral, now=later)


def test_the_certificates_of_an_extended_report(amd):
    vendor = amd()
    guid = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes_le
    ask = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes_le
    data = vendor.report() + table((guid, to_der(vendor.vcek)), (ask, to_der(vendor.ask)))
    assert verify(data, now=NOW).claims["product"] == "Genoa"
    cut = vendor.report() + table((guid, to_der(vendor.vcek)))[:60]
    with pytest.raises(AttestationError, match="cut short"):
        verify(cut, vendor.collateral, now=NOW)


def test_azures_blob_binds_its_runtime_document(amd):
    vendor = amd(product="Milan")
    text, digest = azure_runtime(keys=[{"kid": "HCLAkPub"}])
    blob = azure(vendor.report(version=3, changes=[(0x50, digest)]), text)
    found = verify(blob, vendor.collateral, now=NOW)
    assert "HCLAkPub" in found.claims["runtime"]
    assert found.report_data == digest
    with pytest.raises(AttestationError, match="digest of the runtime document"):
        verify(blob.replace(b"HCLAkPub", b"attacker"), vendor.collateral, now=NOW)
    with pytest.raises(AttestationError, match="report type"):
        changed = bytearray(blob)
        changed[32 + 1184 + 8] = 4
        verify(bytes(changed), vendor.collateral, now=NOW)


def test_two_chip_certificates_are_one_too_many(amd):
    vendor = amd()
    other = Amd(product="Genoa")
    given = Collateral(certificates=(vendor.vcek, other.vcek, vendor.ask))
    with pytest.raises(AttestationError, match="several SEV-VCEK certificates"):
        verify(vendor.report(), given, now=NOW)
