"""SEV-SNP reports that no real vector shows: other products, versions and wrappers; forgeries."""

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attest.forge import NOW, Amd, azure, azure_runtime, certificate, ec_key, rsa_key, table
from cloister.attest import sev_snp
from cloister.attest.appraisal import appraise
from cloister.attest.certificates import to_der
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.attest.verified_evidence import Revocation
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
    assert found.claims["csp_id"] == "CN=cc-us-east-2.amazonaws.com"
    # As AWS does: the chip's own key is masked, and its id not told.
    hidden = vendor.report(changes=[(0x1A0, bytes(64)), (0x48, b"\x06")])
    found = verify(hidden, vendor.collateral, now=NOW)
    assert found.claims["chip_key_masked"] is True
    assert found.claims["chip_id"] == bytes(64)


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
        verify(vendor.report(changes=[(0x1A0, bytes(64))]), vendor.collateral, now=NOW)
    with pytest.raises(AttestationError, match="masks its chip key"):
        verify(vendor.report(changes=[(0x48, b"\x02")]), vendor.collateral, now=NOW)


@pytest.mark.parametrize(
    ("offset", "text"),
    [(0x4C, "0x4c to 0x50"), (0x18B, "0x18b to"), (0x1EB, "0x1eb"), (0x1EF, "0x1ef"),
     (0x208, "0x208"), (0x29F, "0x208"), (8 + 3, "guest policy has bits that"),
     (0x40, "platform has bits that"), (0x41, "platform has bits that"),
     (0x48, "key information has bits that"), (0x110, "says that there is none")],
)  # fmt: skip
def test_gaps_that_are_not_empty_are_refused(amd, offset, text):
    vendor = amd()
    report = vendor.report(changes=[(offset, b"\x40" if offset == 0x40 else b"\x80")])
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
    # A host's own entries are passed over; behind the empty one nothing is read.
    own = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6").bytes_le
    more = [(own, b"more"), (guid, to_der(vendor.vcek)), (ask, to_der(vendor.ask))]
    assert verify(vendor.report() + table(*more), now=NOW).claims["trailing_bytes"] == 0
    ended = [more[1], (bytes(16), b""), more[2]]
    with pytest.raises(AttestationError, match="SEV-Genoa is missing"):
        verify(vendor.report() + table(*ended), now=NOW)
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
    assert found.claims["trailing_bytes"] == 0
    assert verify(blob + bytes(9), vendor.collateral, now=NOW).claims["trailing_bytes"] == 9
    with pytest.raises(AttestationError, match="digest of the runtime document"):
        verify(blob.replace(b"HCLAkPub", b"attacker"), vendor.collateral, now=NOW)
    with pytest.raises(AttestationError, match="report type"):
        changed = bytearray(blob)
        changed[32 + 1184 + 8] = 4
        verify(bytes(changed), vendor.collateral, now=NOW)


def test_the_digest_of_a_paravisor_names_no_code_of_its_guest(amd):
    """Whoever rents such a machine has a blob with this digest, whatever system he runs on it."""
    vendor = amd(product="Milan")
    text, digest = azure_runtime(**{"user-data": bytes(64).hex()})
    report = vendor.report(version=3, changes=[(0x50, digest)])
    found = verify(azure(report, text), vendor.collateral, now=NOW)
    code = {"measurements": [found.claims["measurement"].hex()]}
    unknown = {"insecure_allow_unknown_revocation": found.revocation is Revocation.UNKNOWN}
    with pytest.raises(AttestationError, match="paravisor: expected false, found true"):
        appraise(found, Policy.of({"sev-snp": {**code, **unknown}}), bytes(64))
    allowed = {**code, **unknown, "insecure_allow_paravisor": True}
    accepted = appraise(found, Policy.of({"sev-snp": allowed}), bytes(64))
    assert not accepted.hardware_rooted
    assert "insecure_allow_paravisor" in accepted.weakened
    bare = verify(report, vendor.collateral, now=NOW)
    assert appraise(bare, Policy.of({"sev-snp": {**code, **unknown}}), digest)


def test_of_several_chips_certificates_the_one_that_signed_is_taken(amd):
    vendor = amd()
    others = tuple(Amd(chip=bytes(64), leaf_key=f"chip {i}").vcek for i in range(2))
    given = Collateral(certificates=(others[0], vendor.vcek, others[1], vendor.ask))
    found = verify(vendor.report(), given, now=NOW)
    assert found.claims == verify(vendor.report(), vendor.collateral, now=NOW).claims
    with pytest.raises(AttestationError, match=r"several SEV-VCEK certificates .* none is of the"):
        verify(vendor.report(), Collateral(certificates=(*others, vendor.ask)), now=NOW)


def test_azures_guest_binds_by_its_user_data(amd):
    vendor = amd(product="Milan")

    def blob(*args, **fields):
        text, digest = azure_runtime(*args, **fields)
        return azure(vendor.report(version=3, changes=[(0x50, digest)]), text)

    data = bytes(range(64))
    found = verify(blob(**{"user-data": data.hex()}), vendor.collateral, now=NOW)
    assert found.report_data == data
    for odd in (data[:32].hex(), data.hex() + "00", "zz", 5, None):
        with pytest.raises(AttestationError, match=r"user-data|runtime document"):
            verify(blob(**{"user-data": odd}), vendor.collateral, now=NOW)
    twice = b'{"user-data": "%s", "user-data": ""}' % data.hex().encode()
    with pytest.raises(AttestationError, match="a name stands twice"):
        verify(blob(twice), vendor.collateral, now=NOW)


@pytest.mark.parametrize(
    ("product", "family", "model", "fits"),
    [
        ("Milan", 0x19, 0x0F, True), ("Milan", 0x19, 0x10, False), ("Milan", 0x1A, 0x01, False),
        ("Genoa", 0x19, 0x10, True), ("Genoa", 0x19, 0x1F, True), ("Genoa", 0x19, 0xA0, True),
        ("Genoa", 0x19, 0xAF, True), ("Genoa", 0x19, 0x20, False), ("Genoa", 0x19, 0x9F, False),
        ("Genoa", 0x19, 0x0F, False), ("Genoa", 0x19, 0xB0, False), ("Genoa", 0x1A, 0x11, False),
        ("Turin", 0x1A, 0x00, True), ("Turin", 0x1A, 0x11, True), ("Turin", 0x1A, 0x12, False),
        ("Turin", 0x1A, 0x50, False), ("Turin", 0x19, 0x11, False), ("Milan", 0, 0, False),
    ],
)  # fmt: skip
def test_the_processor_is_one_of_its_product(amd, product, family, model, fits):
    vendor = amd(product=product)
    report = vendor.report(version=3, changes=[(0x188, bytes([family, model]))])
    if fits:
        verify(report, vendor.collateral, now=NOW)
        return
    with pytest.raises(AttestationError, match=r"processor (family|model): expected"):
        verify(report, vendor.collateral, now=NOW)


@pytest.mark.parametrize("named", ["Milan-B0", "Genoa2", "-", "genoa-B1"])
def test_a_certificate_names_its_product(amd, named):
    vendor = amd(product="Genoa", named=named)
    with pytest.raises(AttestationError, match="product name: expected Genoa"):
        verify(vendor.report(), vendor.collateral, now=NOW)


def test_a_chip_id_in_an_octet_string(amd):
    """AMD's service writes it bare; some certificates have it as the format says."""
    vendor = amd(wrapped=True)
    verify(vendor.report(), vendor.collateral, now=NOW)


def test_versions_and_mitigations_are_claims(amd):
    vendor = amd(product="Turin")
    changes = [
        (0x1E8, bytes([7, 55, 1])), (0x1EC, bytes([6, 54, 1])), (0x1F8, b"\3"), (0x200, b"\1"),
        (0x48, b"\1"), (0x110, bytes(range(1, 49))), (0x40, bytes([0b10111111])),
        (8, (1 << 17 | 0x3FD << 16).to_bytes(8, "little")),
    ]  # fmt: skip
    found = verify(vendor.report(changes=changes), vendor.collateral, now=NOW).claims
    assert (found["current_version"], found["committed_version"]) == ("1.55.7", "1.54.6")
    assert (found["launch_mitigations"], found["current_mitigations"]) == (3, 1)
    assert found["author_key_enabled"] is True
    for name in ("alias_check_complete", "tio_enabled", "ciphertext_hiding", "page_swap_disabled"):
        assert found[name] is True


@pytest.mark.parametrize("vmpl", [0, 1])
def test_what_only_a_laxer_policy_accepts_is_not_hardware_rooted(amd, vmpl):
    vendor = amd()
    report = vendor.report(changes=[(0x30, vmpl.to_bytes(4, "little"))])
    found = verify(report, vendor.collateral, now=NOW)
    asked = {"measurements": [found.claims["measurement"].hex()], "max_vmpl": 1}
    unknown = found.revocation is Revocation.UNKNOWN
    asked["insecure_allow_unknown_revocation"] = unknown
    accepted = appraise(found, Policy.of({"sev-snp": asked}), None)
    assert ("max_vmpl" in accepted.weakened) == (vmpl == 1)
    assert accepted.hardware_rooted == (vmpl == 0 and not unknown)
