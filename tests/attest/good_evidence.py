"""Good evidence of every format: the real vectors, and forged evidence of what no vector has."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attest.cases import GENUINE, VECTORS
from attest.forge import NOW, Amd, azure, azure_runtime
from attest.forge_intel import Intel, qe_identity, tcb_info, tcb_level
from attest.played_tpm import PlayedTpm
from cloister.attest import intel, sev_snp
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.verify import verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def good_evidence():
    """Verified evidence by name."""
    found = {case.name: verify(case.data, case.given(), now=case.at) for case in GENUINE}
    found |= {
        path.stem: verify(path.read_bytes(), now=NOW)
        for path in sorted((VECTORS / "tpm").glob("*.bin"))
    }
    found["a TPM that was started often"] = verify(PlayedTpm().evidence(), now=NOW)
    for debug in (False, True):
        machine = SimulatedMachine("ab" * 32, chip_id="cd" * 32, debug=debug, svn=3)
        data = machine.evidence(bytes(range(64)), key=KEY)
        found[f"simulated, debug {debug}"] = verify(data, now=NOW)
    with pytest.MonkeyPatch.context() as patch:
        found |= dict(_snp(patch))
        found |= dict(_intel(patch))
    return found


def _snp(patch):
    policies = {
        "everything allowed": (1 << 26) - (1 << 16), "nothing allowed": 1 << 17,
    }  # fmt: skip
    for leaf, product in (("SEV-VCEK", "Turin"), ("SEV-VLEK", "Genoa")):
        vendor = Amd(product=product, leaf=leaf)
        patch.setattr(sev_snp, "roots", lambda name, vendor=vendor: (vendor.root,))
        for name, bits in policies.items():
            changes = [
                (8, bits.to_bytes(8, "little")), (0x30, b"\2"), (4, b"\7"), (0x1F8, b"\6"),
                (0x200, b"\6"), (0x40, b"\x25"), (0xC0, bytes(range(32))),
                (0x48, bytes([1 | (4 if leaf == "SEV-VLEK" else 0)])), (0x110, bytes(range(48))),
            ]  # fmt: skip
            report = vendor.report(changes=changes)
            yield f"snp {leaf}, {name}", verify(report, vendor.collateral, now=NOW)
        text, digest = azure_runtime(keys=[])
        blob = azure(vendor.report(changes=[(0x50, digest)]), text)
        yield f"snp {leaf}, Azure's blob", verify(blob, vendor.collateral, now=NOW)


def _intel(patch):
    vendor = Intel()
    patch.setattr(intel, "roots", lambda name: (vendor.root,))
    everything = sum(1 << bit for bit in intel._TD_ATTRIBUTES.values()) & ~(1 << 28) | 1
    for name, attributes in (("everything", everything), ("nothing", 1 << 28)):
        filled = bytes(range(256)) * 3
        body = [(120, attributes.to_bytes(8, "little")), (136, filled[:384]), (600, filled[:48])]
        yield f"tdx 1.5, {name}", verify(vendor.quote(body=body), now=NOW)
    old = tcb_level("OutOfDate", tdx=(5, 0, 2), advisoryIDs=["INTEL-SA-1", "INTEL-SA-2"])
    info = tcb_info(old, modules=[(1, [(5, "UpToDate")])])
    given = vendor.collateral(info=info, identity=qe_identity())
    yield "tdx 1.5, out of date", verify(vendor.quote(), given, now=NOW)
    filled = bytes(range(1, 100))
    body = [(32, filled[:16]), (192, filled[:64]), (256, b"\1\0\2\0\3\0"), (304, filled[:16])]
    yield "sgx v5", verify(vendor.quote(tdx=False, body=body), now=NOW)
